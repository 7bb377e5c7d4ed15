"""The GPT: nanoGPT's size, learns by heart, keeps to the codebook that is due, and stays within its context."""

import numpy as np
import pytest
import torch
from tests.lm.speaking import ABOUT, FRAMES, GREEDY, TINY, codes_of, recipe, trained, write_speech

import xycodec.lm
from xycodec.errors import ConfigError, XycodecError
from xycodec.io.tokens.vectors import write_vectors
from xycodec.lm.config import CodecIdentity
from xycodec.lm.gpt import GPT, Composer, GPTConfig, gpt_task
from xycodec.lm.transformer import Cache
from xycodec.train.recipe_file import load_recipe
from xycodec.train.stages.gpt import GPTStage

SIZE = ABOUT.codebook_size
NANO = {**TINY, "bias": False}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    made = write_speech(tmp_path_factory.mktemp("sounds") / "store")
    write_vectors(made, np.eye(3, 4), {"model": "test"})
    return made


def network(**changes):
    torch.manual_seed(0)
    return GPT(GPTConfig(**{"codec": ABOUT, "transformer": NANO, "context": 64, **changes})).eval()


def test_the_papers_model_has_307_million_parameters():
    codec = CodecIdentity(name="x", weights="0", n_q=8, codebook_size=1024, hop_length=320, sample_rate=16_000)
    settings = dict(load_recipe("lm/music.yaml").model)
    with torch.device("meta"):
        model = GPT(GPTConfig(codec=codec, **settings))
    blocks = 24 * (12 * 1024**2 + 2 * 1024) + 1024
    assert sum(p.numel() for p in model.parameters()) == blocks + 1024 * 1024 + 4096 * 1024 == 307_282_944


def test_weights_start_as_nanogpts():
    model = network(transformer={**NANO, "d_model": 128, "layers": 8, "ffn_dim": 512})
    block = model.stack.blocks[0]
    for weight, deviation in (
        (model.ids.weight, 0.02),
        (block.fc1.weight, 0.02),
        (block.fc2.weight, 0.02 / 4),
        (block.attention.out.weight, 0.02 / 4),
    ):
        assert float(weight.detach().std()) == pytest.approx(deviation, rel=0.1)
    assert block.fc1.bias is None


def test_a_clip_is_gone_on_with(store, tmp_path):
    run = trained("gpt", tmp_path / "run", store, model={"transformer": TINY, "context": 64, "sampling": GREEDY})
    composer = xycodec.lm.load(run, device="cpu")
    codes = codes_of(store, 1)
    assert torch.equal(composer.generate(frames=8, prompt_codes=codes[:, :4]), codes[:1, 4:])
    assert (composer.codec_hash, composer.books) == ("0f", 1)


def test_a_condition_tells_the_sound(store, tmp_path):
    model = {"transformer": TINY, "context": 64, "books": 2, "condition_dim": 4, "end": True, "sampling": GREEDY}
    composer = xycodec.lm.load(trained("gpt", tmp_path / "run", store, model=model), device="cpu")
    for number in range(3):
        condition = torch.eye(3, 4)[number]
        assert torch.equal(composer.generate(frames=20, condition=condition), codes_of(store, number)[:2])
        assert torch.equal(composer.generate(frames=20, condition=condition, guidance=1.5), codes_of(store, number)[:2])


def test_a_cache_changes_no_row(store):
    for changes in ({}, {"books": 2, "condition_dim": 4}):
        model = network(**changes)
        task = gpt_task([codes_of(store, 0)], model.config)
        whole = model.encode(task.ids, task.conditions, task.dropped)[0]
        cache = Cache()
        rows = [model.encode(task.ids[:, :2], task.conditions, task.dropped, cache)[0]]
        rows += [
            model.encode(task.ids[:, row : row + 1], task.conditions, task.dropped, cache)[0]
            for row in range(2, task.ids.shape[1])
        ]
        # Sums of 32 products in other orders.
        torch.testing.assert_close(torch.cat(rows), whole, rtol=1e-4, atol=1e-5)


def test_rows_and_labels(store):
    codes = codes_of(store, 0)
    plain = gpt_task([codes], network(books=2).config)
    ids = (codes[:2] + torch.tensor([[0], [SIZE]])).T.flatten()
    assert torch.equal(plain.ids[0], ids[:-1])
    assert torch.equal(plain.labels[0], ids[1:])
    conditioned = gpt_task([codes], network(books=2, condition_dim=4, end=True).config)
    assert torch.equal(conditioned.ids[0], ids)
    assert torch.equal(conditioned.labels[0], torch.cat([ids, torch.tensor([2 * SIZE])]))
    shared = gpt_task([codes], network(books=2, shared=True, context=7).config)
    assert torch.equal(shared.labels[0], codes[:2].T.flatten()[1:8])


def test_only_codes_of_the_codebook_that_is_due_can_come():
    model = network(books=2, end=True, condition_dim=4)
    logits = model.logits(torch.randn(2, 32), torch.tensor([0, 1]))
    finite = logits.isfinite()
    assert finite[0].tolist() == [True] * SIZE + [False] * SIZE + [True]
    assert finite[1].tolist() == [False] * SIZE + [True] * SIZE + [False]
    made = Composer(model).generate(frames=5, condition=torch.randn(4), seed=1)
    assert made.shape[0] == 2


def test_conditions_are_dropped_now_and_then_in_training_alone(store, tmp_path):
    model = {"transformer": TINY, "condition_dim": 4, "condition_dropout": 0.5, "context": 64}
    settings = recipe("gpt", tmp_path, store, model=model)
    config = GPTStage.configure(settings)
    codes = [codes_of(store, 0)] * 400
    draw = torch.Generator().manual_seed(0)
    dropped = gpt_task(codes, config, torch.zeros(400, 4), draw).dropped
    assert 150 < int(dropped.sum()) < 250
    assert not gpt_task(codes, config, torch.zeros(400, 4)).dropped.any()
    assert gpt_task(codes, config).dropped.all()
    model = GPT(config).eval()
    ids = torch.zeros(2, 3, dtype=torch.int64)
    hidden = model.encode(ids, torch.randn(2, 4), torch.tensor([True, True]))
    assert torch.equal(hidden[0], hidden[1])


def test_what_cannot_be_made_is_said(store):
    music, sound = Composer(network()), Composer(network(condition_dim=4, books=2))
    codes = codes_of(store, 0)
    assert music.generate(frames=65 - FRAMES[0], prompt_codes=codes).shape == (1, 65 - FRAMES[0])
    for composer, given, told in (
        (music, {"frames": 66 - FRAMES[0], "prompt_codes": codes}, f"ask for {65 - FRAMES[0]} at most"),
        (music, {"frames": 1}, "give prompt codes"),
        (music, {"frames": 1, "prompt_codes": codes[:, :0]}, "shorter than a frame"),
        (music, {"frames": 1, "prompt_codes": codes + SIZE}, "of another codec"),
        (music, {"frames": 0, "prompt_codes": codes}, "ask for one at least"),
        (music, {"frames": 1, "prompt_codes": codes, "condition": torch.zeros(4)}, "model without a condition"),
        (sound, {"frames": 1, "condition": torch.zeros(3)}, "a model of 4 numbers"),
        (sound, {"frames": 1, "prompt_codes": codes[:1]}, "reads 2 codebooks of tiny"),
        (sound, {"frames": 33}, "ask for 32 at most"),
    ):
        with pytest.raises(XycodecError, match=told):
            composer.generate(**given)


def test_what_a_recipe_must_be(store, tmp_path):
    with pytest.raises(ConfigError, match="the codes have 3"):
        GPTStage.configure(recipe("gpt", tmp_path, store, model={"books": 4}))
    wrong = recipe("gpt", tmp_path, store, model={"condition_dim": 5})
    with pytest.raises(ConfigError, match="vectors of 4 numbers"):
        GPTStage.open(wrong, wrong.data.train, print)
    bare = write_speech(tmp_path / "bare")
    lacking = recipe("gpt", tmp_path, bare, model={"condition_dim": 4})
    with pytest.raises(ConfigError, match="make vectors with xycodec tokens describe"):
        GPTStage.open(lacking, lacking.data.train, print)
