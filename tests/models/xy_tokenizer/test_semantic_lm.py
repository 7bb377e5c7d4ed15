import copy

import pytest
import torch
from tests.reference import randomise
from torch.utils._python_dispatch import TorchDispatchMode

from xycodec.errors import CheckpointError, ConfigError
from xycodec.models.config import TowerConfig
from xycodec.models.xy_tokenizer.config import LanguageModelConfig
from xycodec.models.xy_tokenizer.semantic_branch import Tokens
from xycodec.models.xy_tokenizer.semantic_lm import SemanticLM, load_semantic_lm

ADAPTER = TowerConfig(d_model=32, layers=1, heads=4, ffn_dim=48)
INPUT_DIM, WINDOW, POSITIONS, VOCABULARY = 24, 20, 80, 295
SENTENCES = ["the cat sat on the mat", "a dog ran after the cat", "she sells sea shells by the sea shore"]
LM_SCALE = 2.0  # so that what comes next depends on what came before
KINDS = ("qwen2", "gpt2", "llama")


@pytest.fixture(scope="session")
def tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<end>"], initial_alphabet=letters, show_progress=False
    )
    made.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")


def random_lm(kind, seed=3, **changes):
    import transformers as hf

    size = {
        "vocab_size": VOCABULARY,
        "hidden_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": POSITIONS,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    narrow = {"intermediate_size": 56, "num_key_value_heads": 2}
    config, lm = {
        "qwen2": lambda: (hf.Qwen2Config(**{**size, **narrow, **changes}), hf.Qwen2ForCausalLM),
        "gpt2": lambda: (hf.GPT2Config(**{**size, **changes}), hf.GPT2LMHeadModel),
        "llama": lambda: (hf.LlamaConfig(**{**size, **narrow, **changes}), hf.LlamaForCausalLM),
        "bert": lambda: (hf.BertConfig(**{**size, "intermediate_size": 56, **changes}), hf.BertLMHeadModel),
    }[kind]()
    return randomise(lm(config), seed=seed, scale=LM_SCALE)


@pytest.fixture
def folder(tmp_path, tokenizer):
    """A function that saves a random language model of a kind, with the tokenizer, and returns its folder."""

    def save(kind="qwen2", **changes):
        place = tmp_path / kind
        random_lm(kind, **changes).save_pretrained(place)
        tokenizer.save_pretrained(place)
        return place

    return save


def load(place, meta=False, **settings):
    config = LanguageModelConfig(source=str(place), adapter=ADAPTER, **{"max_tokens": 30, **settings})
    return load_semantic_lm(config, input_dim=INPUT_DIM, window_frames=WINDOW, meta=meta)


@pytest.fixture
def build(folder):
    """A function that loads a saved random model whose adapter is random as well."""

    def make(kind="qwen2", **settings):
        model = load(folder(kind), **settings)
        randomise(model.adapter, seed=4)
        return model.eval()

    return make


def speech(*shape):
    return torch.randn(*shape, INPUT_DIM, generator=torch.Generator().manual_seed(1))


def embedded(model, features, ids):
    """One clip's speech (L, D) and token ids as the language model's input, put together by hand."""
    words = model.lm.get_input_embeddings()(torch.tensor(ids, dtype=torch.int64))
    return torch.cat([model.adapter(features[None]), words[None]], dim=1)


def by_hand(model, features, frames, texts, prompt=""):
    """Summed loss by Transformers' own labels, right guesses and target tokens, one clip after the other."""
    loss, right, count = torch.zeros(()), 0, 0
    prompt = model.tokenizer(prompt, add_special_tokens=False).input_ids if prompt else []
    for item, valid, text in zip(features, frames, texts, strict=True):
        if not valid or text is None:
            continue
        ids = model.tokenizer(text + "<end>", add_special_tokens=False).input_ids
        labels = torch.tensor([[-100] * (valid + len(prompt)) + ids])
        out = model.lm(inputs_embeds=embedded(model, item[:valid], prompt + ids), labels=labels)
        loss = loss + out.loss * len(ids)
        right += sum(
            int(row.argmax()) == label for row, label in zip(out.logits[0, -len(ids) - 1 :], ids, strict=False)
        )
        count += len(ids)
    return loss, right, count


# ---- the loss --------------------------------------------------------------------------------------


FRAMES, TEXTS = [7, WINDOW, 1, 0, 12], [*SENTENCES[:2], "x", SENTENCES[2], None]


@pytest.mark.parametrize("prompt", ["", "write: "])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_what_transformers_computes_clip_by_clip(build, kind, prompt):
    model = build(kind, prompt=prompt)
    features = speech(5, WINDOW)
    expected, right, count = by_hand(model, features, FRAMES, TEXTS, prompt)
    out = model(features, FRAMES, model.tokenize(TEXTS))
    assert out.loss.count.tolist() == out.accuracy.count.tolist() == [count]
    assert out.loss.total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert out.accuracy.total.item() == right
    assert expected.item() / count > 1  # nats: far from trivial


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_passes_the_frozen_model_to_adapter_and_features(build, kind):
    model = build(kind)
    features = speech(5, WINDOW).requires_grad_()
    inputs = [features, *model.adapter.parameters()]
    expected = torch.autograd.grad(by_hand(model, features, FRAMES, TEXTS)[0], inputs)
    out = model(features, FRAMES, model.tokenize(TEXTS))
    assert not out.accuracy.total.requires_grad
    out.loss.total.sum().backward()
    for value, wanted in zip(inputs, expected, strict=True):
        assert (value.grad - wanted).norm() < 1e-4 * wanted.norm()
    assert features.grad[0, :7].abs().sum() > 0
    assert features.grad[0, 7:].abs().sum() == 0
    assert all(value.grad is None for value in model.lm.parameters())


def test_speech_may_look_like_tokens(folder):
    place = folder("llama")
    plain, like = load(place), load(place, like_tokens=True)
    like.adapter.load_state_dict(plain.adapter.state_dict())
    features = torch.randn(3, 9, INPUT_DIM, generator=torch.Generator().manual_seed(0))
    before, made = (branch._adapted(features, None) for branch in (plain, like))
    table = like.lm.get_input_embeddings().weight.double()
    spread, mean = torch.std_mean(table, dim=0)
    around = (made.double() - mean) / spread
    # Frame by frame what it was, but for its own mean and size.
    torch.testing.assert_close(around.mean(dim=-1), torch.zeros(3, 9).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(around.square().mean(dim=-1), torch.ones(3, 9).double(), atol=1e-3, rtol=0)
    flat = (before - before.mean(dim=-1, keepdim=True)).double()
    torch.testing.assert_close(torch.cosine_similarity(flat, around, dim=-1), torch.ones(3, 9).double())
    # Checkpoints are as they were: the statistics come with the model.
    assert plain.state_dict().keys() == like.state_dict().keys()


def test_padding_and_neighbours_change_nothing(build):
    model = build(prompt="write: ")
    features = speech(3, WINDOW)
    frames, texts = [7, 11, 4], [SENTENCES[2], "a", SENTENCES[0]]
    joined = model(features, frames, model.tokenize(texts))
    single = [
        model(features[i : i + 1, : frames[i]], frames[i : i + 1], model.tokenize(texts[i : i + 1])) for i in range(3)
    ]
    assert joined.loss.count.item() == sum(part.loss.count.item() for part in single)
    torch.testing.assert_close(joined.loss.total, sum(part.loss.total for part in single))
    for row, valid in zip(features, frames, strict=True):
        row[valid:] = 1000.0
    again = model(features, frames, model.tokenize(texts))
    assert torch.equal(again.loss.total, joined.loss.total)


@pytest.mark.parametrize(
    ("frames", "texts"),
    [([5, 9], [None, None]), ([0, 0], SENTENCES[:2]), ([0, 5], [None, None]), ([0, 5], ["text", "  "])],
)
@pytest.mark.parametrize("prompt", ["", "write: "])
def test_nothing_to_transcribe_gives_a_gradient_of_zeros(build, frames, texts, prompt):
    model = build(prompt=prompt)
    features = speech(2, WINDOW).requires_grad_()
    out = model(features, frames, model.tokenize(texts))
    for mean in (out.loss, out.accuracy):
        assert mean.total.tolist() == mean.count.tolist() == [0.0]
        assert mean.value().item() == 0
    out.loss.total.sum().backward()
    for value in (features, *model.adapter.parameters()):
        assert torch.equal(value.grad, torch.zeros_like(value))


def test_clips_without_text_are_not_computed(build):
    model = build()
    seen = []
    model.lm.model.register_forward_pre_hook(
        lambda _, args, given: seen.append(given["inputs_embeds"].shape), with_kwargs=True
    )
    model.lm.get_output_embeddings().register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    tokens = model.tokenize([None, "cat", None, "dog"])
    model(speech(4, WINDOW), [WINDOW, 3, 5, 6], tokens)
    # The longest of the two has 6 frames; logits are computed for the targets only.
    assert seen == [(2, 6 + tokens.lengths[3], 40), (2, max(tokens.lengths), 40)]


def test_loss_is_float32_under_autocast(build):
    model = build()
    features, tokens = speech(2, WINDOW), model.tokenize(SENTENCES[:2])
    exact = model(features, [5, 9], tokens)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(features, [5, 9], tokens)
    assert rough.loss.total.dtype == torch.float32
    assert rough.loss.total.item() == pytest.approx(exact.loss.total.item(), rel=0.03)
    assert rough.loss.total.item() != exact.loss.total.item()


class NoLooking(TorchDispatchMode):
    """Raises where the host would wait to see a value or a shape that the device computes."""

    waits = ("_local_scalar_dense", "nonzero", "masked_select", "equal.default", "unique")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(name in str(func) for name in self.waits):
            raise AssertionError(f"{func} waits for the device")
        if "index.Tensor" in str(func) and any(i is not None and i.dtype == torch.bool for i in args[1]):
            raise AssertionError("indexing by a mask waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", KINDS)
def test_the_host_never_waits(build, kind):
    model = build(kind, prompt="write: ")
    model.lm.config.use_cache = False  # as fine-tuned checkpoints often have it
    features, tokens = speech(5, WINDOW).requires_grad_(), model.tokenize(TEXTS)
    with NoLooking():
        model(features, FRAMES, tokens).loss.value().backward()
    assert features.grad.abs().sum() > 0
    with NoLooking(), pytest.raises(AssertionError, match="waits"):
        model.lm(inputs_embeds=torch.zeros(1, 3, 40), attention_mask=torch.ones(1, 3))


# ---- text ------------------------------------------------------------------------------------------


def test_tokens_are_the_text_and_its_end(build, tokenizer):
    tokens = build().tokenize([SENTENCES[0], None, "", " \n", "cat"])
    assert tokens.ids.dtype == torch.int64
    assert tokens.lengths[1:4] == (0, 0, 0)
    for row, length, text in zip(tokens.ids, tokens.lengths, [SENTENCES[0], "", "", "", "cat"], strict=True):
        assert tokenizer.decode(row[:length]) == (text + "<end>" if text else "")
        assert not row[length:].any()
    assert tokens.ids.shape == (5, max(tokens.lengths))


def test_long_texts_are_cut_and_lose_their_end(build, tokenizer):
    whole = tokenizer(SENTENCES[2] + "<end>", add_special_tokens=False).input_ids
    model = build(max_tokens=len(whole))
    assert model.tokenize([SENTENCES[2]]).ids.tolist() == [whole]
    for limit in (1, 5, len(whole) - 1):
        model.max_tokens = limit
        tokens = model.tokenize([SENTENCES[2]])
        assert tokens.ids.tolist() == [whole[:limit]]
        assert model(speech(1, 4), [4], tokens).loss.count.item() == limit


def test_prompt_is_read_but_not_learned(build, tokenizer):
    plain, prompted = build(), build(prompt="write: ")
    features = speech(1, 6)
    left, right = (model(features, [6], model.tokenize(["cat"])).loss for model in (plain, prompted))
    assert left.count.item() == right.count.item()
    assert left.total.item() != pytest.approx(right.total.item(), rel=1e-3)
    assert tokenizer.decode(prompted.prompt) == "write: "


# ---- frozen or not ---------------------------------------------------------------------------------


def test_frozen_model_stays_in_eval_mode(build):
    model = build("gpt2")
    model.train()
    assert model.adapter.training
    assert not any(part.training for part in model.lm.modules())
    assert not any(value.requires_grad for value in model.lm.parameters())
    assert all(value.requires_grad for value in model.adapter.parameters())
    assert not model.eval().adapter.training


def test_trainable_model_trains(build):
    model = build("gpt2", trainable=True).train()
    assert model.lm.training
    model(speech(1, 6), [6], model.tokenize(["cat"])).loss.total.sum().backward()
    assert all(value.grad is not None for value in model.parameters())
    assert not model.eval().lm.training


# ---- listening -------------------------------------------------------------------------------------


@torch.no_grad()
def greedy(model, features, steps):
    """Token ids, one whole forward pass for each."""
    ids = []
    for _ in range(steps):
        logits = model.lm(inputs_embeds=embedded(model, features, model.prompt + ids)).logits
        ids.append(int(logits[0, -1].argmax()))
    return ids


@pytest.mark.parametrize("prompt", ["", "write: "])
@pytest.mark.parametrize("kind", KINDS)
def test_transcripts_are_the_likeliest_tokens(build, kind, prompt):
    model = build(kind, prompt=prompt)
    features, frames = speech(4, WINDOW), [9, 0, WINDOW, 2]
    expected = [greedy(model, item[:count], 8) if count else [] for item, count in zip(features, frames, strict=True)]
    texts = model.transcribe(features, frames, max_new_tokens=8)
    assert texts == [model.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in expected]
    assert len({tuple(ids) for ids in expected}) == 4
    for index, count in enumerate(frames):
        assert model.transcribe(features[index : index + 1, : max(count, 1)], [count], 8) == [texts[index]]
    # Told what it says itself, the model is always right.
    tokens = Tokens(torch.tensor([expected[0]]), (8,))
    assert model(features[:1], frames[:1], tokens).accuracy.value().item() == 1


def test_transcript_ends_where_the_model_ends_it(build, tokenizer):
    model = build()
    features = speech(2, WINDOW)
    ids, others = (greedy(model, item, 8) for item in features)
    stop = next(place for place in range(2, 8) if ids[place] not in ids[:place] + others)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ids[stop])
    stopping = SemanticLM(model.lm, tokenizer, model.adapter, prompt="", max_tokens=30, trainable=False).eval()
    texts = stopping.transcribe(features, [WINDOW, WINDOW], max_new_tokens=8)
    assert texts[0] == tokenizer.decode(ids[:stop], skip_special_tokens=True).strip()
    assert texts[1] == tokenizer.decode(others, skip_special_tokens=True).strip()


def test_the_checkpoints_way_of_generating_is_ignored(folder):
    from transformers import GenerationConfig

    place = folder()
    GenerationConfig(do_sample=True, temperature=5.0, repetition_penalty=9.0).save_pretrained(place)
    model = load(place).eval()
    features = speech(2, WINDOW)
    expected = [model.tokenizer.decode(greedy(model, item, 8), skip_special_tokens=True).strip() for item in features]
    assert model.transcribe(features, [WINDOW, WINDOW], 8) == expected


def test_nothing_heard_nothing_written(build):
    assert build().transcribe(speech(2, 3), [0, 0], 8) == ["", ""]


# ---- loading ---------------------------------------------------------------------------------------


def test_meta_model_has_the_parameters_and_no_values(folder):
    place = folder()
    real = load(place)
    (place / "model.safetensors").unlink()
    planned = load(place, meta=True)
    assert {value.device.type for value in planned.parameters()} == {"meta"}
    shapes = [
        {name: (value.shape, value.requires_grad) for name, value in model.named_parameters()}
        for model in (real, planned)
    ]
    assert shapes[0] == shapes[1]


def test_weights_are_those_of_the_folder(folder):
    place = folder("llama")
    expected = random_lm("llama").state_dict()
    loaded = load(place).lm.state_dict()
    assert expected.keys() == loaded.keys()
    assert all(torch.equal(loaded[key], value) for key, value in expected.items())


def test_half_precision_weights_are_loaded_as_float32(tmp_path, tokenizer):
    random_lm("qwen2").to(torch.bfloat16).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert {value.dtype for value in load(tmp_path).parameters()} == {torch.float32}


def remove(*names):
    return lambda place: [(place / name).unlink() for name in names]


def without_end(place):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(place)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(place)


def without_head(place):
    from transformers import Qwen2Model

    Qwen2Model.from_pretrained(place).save_pretrained(place)


def spoil(place):
    (place / "model.safetensors").write_bytes(b"nothing")


def of_a_speech_model(place):
    from transformers import Wav2Vec2Config

    Wav2Vec2Config().save_pretrained(place)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (remove("config.json"), "gives no configuration"),
        (remove("tokenizer.json", "tokenizer_config.json"), "gives no tokenizer"),
        (remove("model.safetensors"), "gives no causal language model"),
        (spoil, "gives no causal language model"),
        (of_a_speech_model, "gives no causal language model"),
        (without_head, "lacks the weights of lm_head.weight"),
        (without_end, "no end-of-text token"),
    ],
)
def test_what_is_no_language_model_is_told_in_one_line(folder, damage, told):
    place = folder()
    damage(place)
    with pytest.raises(CheckpointError, match=told) as raised:
        load(place)
    assert str(place) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_model_that_looks_ahead_is_refused(folder):
    with pytest.raises(CheckpointError, match="BertLMHeadModel is not a plain causal"):
        load(folder("bert"))


def test_a_tokenizer_of_another_model_is_refused(folder):
    place = folder("qwen2", vocab_size=200)
    with pytest.raises(CheckpointError, match=r"tokenizer has \d+ tokens, the model 200"):
        load(place)


@pytest.mark.parametrize("meta", [False, True])
def test_a_window_that_is_too_long_is_told_at_once(folder, meta):
    place = folder()
    load(place, meta, max_tokens=POSITIONS - WINDOW)
    with pytest.raises(ConfigError, match=rf"{place}: reads {POSITIONS} positions, .* takes {POSITIONS + 1}"):
        load(place, meta, max_tokens=POSITIONS - WINDOW + 1)


@pytest.mark.parametrize("source", ["./nowhere", "/no/such/folder", "~/models/none"])
def test_an_unknown_folder_is_told_without_asking_the_hub(source):
    with pytest.raises(CheckpointError, match=f"{source}: no such folder"):
        load(source)


def test_an_unreachable_hub_is_told_in_one_line(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="nobody/no-model: gives no configuration") as raised:
        load("nobody/no-model")
    assert "\n" not in str(raised.value)
