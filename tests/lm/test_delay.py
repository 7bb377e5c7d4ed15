"""The delay-pattern model: learns by heart, goes on with a voice, and says the same with and without a cache."""

import pytest
import torch
from tests.lm.speaking import ABOUT, FRAMES, GREEDY, TEXTS, TINY, codes_of, recipe, trained, write_speech
from tests.training import save_lm

import xycodec.lm
from xycodec.errors import CheckpointError, ConfigError, EmptySpeechError, XycodecError
from xycodec.lm.backbone import HuggingFaceConfig
from xycodec.lm.delay import DelayConfig, DelayNetwork, DelaySpeaker, delay_task
from xycodec.lm.measures import NO_LABEL
from xycodec.lm.patterns import one_after_another
from xycodec.lm.text import PAD, SPEECH, STOP, TextConfig, TextFrontEnd
from xycodec.train.stages.delay import DelayStage

SIZE = ABOUT.codebook_size
TEXT = TextConfig(symbols=tuple(" ,abdegiknoprstuwl"))
KINDS = {"causal": {}, "aligned": {"attention": "prefix", "aligned": True}}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_speech(tmp_path_factory.mktemp("speech") / "store")


@pytest.fixture(scope="module", params=KINDS)
def speaker(request, store, tmp_path_factory):
    model = {"transformer": TINY, "sampling": GREEDY, "sampling_others": GREEDY, **KINDS[request.param]}
    return xycodec.lm.load(trained("delay", tmp_path_factory.mktemp("run") / "run", store, model=model), device="cpu")


def network(**changes):
    torch.manual_seed(0)
    return DelayNetwork(DelayConfig(codec=ABOUT, text=TEXT, transformer=TINY, **changes)).eval()


def task_of(config, store, numbers):
    front = TextFrontEnd(TEXT)
    return delay_task([front.encode(TEXTS[n]) for n in numbers], [codes_of(store, n) for n in numbers], config)


@pytest.mark.parametrize("number", range(3))
def test_an_utterance_is_learned_by_heart(speaker, store, number):
    spoken = speaker.speak(TEXTS[number])
    assert torch.equal(spoken.codes, codes_of(store, number))
    assert (spoken.hit_cap, spoken.retries) == (False, 0)
    first = speaker.speak(TEXTS[number], first_codebook_only=True)
    assert torch.equal(first.codes, codes_of(store, number)[:1])


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_a_prompt_is_gone_on_with(speaker, store, frames):
    codes = codes_of(store, 1)
    spoken = speaker.speak(TEXTS[1], prompt_codes=codes[:, :frames])
    assert torch.equal(spoken.codes, codes[:, frames:])


def test_the_codec_is_named(speaker):
    assert (speaker.codec_name, speaker.codec_hash, speaker.frame_rate) == ("tiny", "0f", 100.0)


def test_rows_are_text_and_then_late_codes(store):
    config = network().config
    task = task_of(config, store, [2])
    letters = len(TEXTS[2]) + 2
    codes, delayed = codes_of(store, 2), one_after_another(3, SIZE).apply(codes_of(store, 2))
    rows = task.rows[0]
    assert rows[letters, 0] == SPEECH
    assert (rows[: letters + 1, 1:] == SIZE).all()
    speech = rows[letters + 1 :]
    assert torch.equal(speech[: FRAMES[2], 0], codes[0] + TEXT.size)
    assert speech[FRAMES[2] :, 0].tolist() == [STOP]  # and PAD in the last row, which predicts nothing
    assert torch.equal(speech[:, 1:], delayed[:-1, 1:])
    labels = task.labels[0]
    assert (labels[:letters] == NO_LABEL).all()
    assert labels[letters + FRAMES[2], 0] == SIZE
    assert torch.equal(labels[letters:][one_after_another(3, SIZE).mask(FRAMES[2])], delayed[delayed != SIZE])
    assert (labels[letters:] != NO_LABEL).sum() == 3 * FRAMES[2] + 1
    assert PAD not in rows[:, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_changes_no_logit(store, kind):
    model = network(**KINDS[kind])
    task = task_of(model.config, store, [0])
    letters = int(task.text[0])
    whole, _ = model._encode(task)
    for first in (letters + 1, letters + 4):
        state = model.begin(letters)
        hidden = [model.step(task.rows[0, :first], state)]
        hidden += [model.step(task.rows[0, row : row + 1], state) for row in range(first, task.rows.shape[1])]
        # Sums of 32 products in other orders.
        torch.testing.assert_close(torch.stack(hidden), whole[0, first - 1 :], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_and_padding_change_no_loss(store, kind):
    model = network(**KINDS[kind])
    together = model(task_of(model.config, store, [0, 1, 2]))
    alone = [model(task_of(model.config, store, [number])) for number in range(3)]
    for name, mean in together.items():
        assert float(mean.count) == sum(float(one[name].count) for one in alone)
        total = sum(float(one[name].detach().total) for one in alone)
        assert float(mean.detach().total) == pytest.approx(total, rel=1e-4)
    counts = task_of(model.config, store, [0, 1, 2]).counts()
    assert {name: float(count) for name, count in counts.items()} == {
        name: float(mean.count) for name, mean in together.items()
    }


def test_a_language_model_of_transformers_speaks(store, tmp_path):
    folder = save_lm(tmp_path / "lm", positions=120)
    model = {"text": {"kind": "tokenizer"}, "transformer": {"source": str(folder)}}
    model |= {"sampling": GREEDY, "sampling_others": GREEDY}
    run = trained("delay", tmp_path / "run", store, model=model, loss={"books": [8, 2, 1]}, steps=100)
    (folder / "model.safetensors").unlink()  # all is in the checkpoint
    speaker = xycodec.lm.load(run, device="cpu")
    assert torch.equal(speaker.speak(TEXTS[1]).codes, codes_of(store, 1))
    with pytest.raises(XycodecError, match="over the model's context of 120: say less"):
        speaker.speak("red green " * 40)
    with pytest.raises(CheckpointError, match="no causal language model"):
        HuggingFaceConfig(source=str(tmp_path)).described()


def test_what_a_prompt_must_be(speaker, store):
    codes = codes_of(store, 0)
    for wrong, told in (
        (codes[:2], "speaks 3 codebooks of tiny"),
        (codes[:, :0], "shorter than a frame"),
        (codes + SIZE, "of another codec"),
    ):
        with pytest.raises(XycodecError, match=told):
            speaker.speak("red", prompt_codes=wrong)
    with pytest.raises(XycodecError, match="without its codes"):
        speaker.speak("red", prompt_text="green")
    for text, told in (
        ("", "no text to speak"),
        (" , ", "no text to speak"),
        ("[S1]", "no text to speak"),
        ("zoo", "does not know 'z'"),
    ):
        with pytest.raises(XycodecError, match=told):
            speaker.speak(text)


def speaks(monkeypatch, choose):
    """A random model whose draws of the first codebook `choose` decides, from (logits, number of the draw)."""
    model = network()
    drawn = []

    def sample(logits, config, generator, past=()):
        del config, generator, past
        if len(logits) <= SIZE:
            return 0
        drawn.append(choose(logits, len(drawn)))
        return drawn[-1]

    monkeypatch.setattr("xycodec.lm.delay.sample", sample)
    return DelaySpeaker(model)


def test_empty_speech_is_tried_again_and_then_an_error(monkeypatch):
    spoken = speaks(monkeypatch, lambda logits, number: SIZE if number in (0, 1, 4) else 7).speak("red")
    assert (spoken.retries, spoken.codes[0].tolist(), spoken.hit_cap) == (2, [7, 7], False)
    with pytest.raises(EmptySpeechError, match="nothing was spoken with 5 seeds"):
        speaks(monkeypatch, lambda logits, number: SIZE).speak("red")


def test_speech_that_does_not_end_is_cut_off(monkeypatch):
    spoken = speaks(monkeypatch, lambda logits, number: 7).speak("red")
    assert spoken.hit_cap
    assert spoken.codes.shape == (3, 22 * 5)  # 16 frames a symbol at 75 a second are 22 at 100


def test_among_the_prompt_it_cannot_end(monkeypatch, store):
    seen = []

    def choose(logits, number):
        seen.append(bool(logits[SIZE].isinf()))
        return 7 if seen[-1] else SIZE

    spoken = speaks(monkeypatch, choose).speak("red", prompt_codes=codes_of(store, 0)[:, :4])
    assert seen == [True, True, False]
    assert spoken.codes.shape == (3, 2)


def test_a_seed_is_a_reading(store):
    speaker = DelaySpeaker(network())
    one, again, other = (speaker.speak("red", seed=seed).codes for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert one.shape != other.shape or not torch.equal(one, other)


def test_what_a_recipe_must_be(store, tmp_path):
    with pytest.raises(ConfigError, match="2 weights for 3 codebooks"):
        DelayStage.configure(recipe("delay", tmp_path, store, loss={"books": [1, 2]}))
    with pytest.raises(ConfigError, match="for a language model of Transformers"):
        DelayStage.configure(recipe("delay", tmp_path, store, model={"text": {"kind": "tokenizer"}}))
    with pytest.raises(ConfigError, match="for a transformer of ours"):
        recipe("delay", tmp_path, store, model={"transformer": {"source": "x"}, "aligned": True})


def test_durations_are_what_attention_goes_by():
    model = network(**KINDS["aligned"])
    said = torch.tensor([[True] * 4 + [False] * 3])
    centres, total = model.align.centres(model.first(torch.ones(1, 7, dtype=torch.long)), said)
    each = ABOUT.frame_rate / 15
    torch.testing.assert_close(centres[0, :4], each * (torch.arange(4) + 0.5))
    torch.testing.assert_close(total, torch.tensor([4 * each]))
    late = torch.arange(7)[None] - 4
    mask = torch.ones(1, 1, 7, 7, dtype=torch.bool)
    narrow = model.align.masks(mask, late, centres, said)[0][0, 0]
    assert (narrow[:4] == 0).all()
    assert (narrow[:, 4:] == 0).all()
    torch.testing.assert_close(narrow[5, :4], -((1 - centres[0, :4]) ** 2) / (2 * 1.5**2))


def test_one_codebook_is_learned_and_spoken(tmp_path):
    single = write_speech(tmp_path / "store", n_q=1)
    model = {"transformer": TINY, "sampling": GREEDY}
    speaker = xycodec.lm.load(trained("delay", tmp_path / "run", single, model=model, steps=100), device="cpu")
    assert torch.equal(speaker.speak(TEXTS[1]).codes, codes_of(single, 1))
