"""VALL-E: both stages learn by heart, a cache changes nothing, prompts are what their modes say."""

import pytest
import torch
from tests.lm.speaking import ABOUT, FRAMES, GREEDY, TEXTS, TINY, codes_of, recipe, trained, write_speech
from torch.nn import functional as F

import xycodec.lm
from xycodec.data.codes import StoreCatalogue
from xycodec.errors import CheckpointError, ConfigError, EmptySpeechError, XycodecError
from xycodec.lm.measures import NO_LABEL
from xycodec.lm.text import TextConfig, TextFrontEnd
from xycodec.lm.valle import ValleAr, ValleArConfig, ValleNar, ValleNarConfig, ValleSpeaker, ar_task, nar_task
from xycodec.train.export import export_valle
from xycodec.train.stages.valle import ValleNarStage

SIZE = ABOUT.codebook_size
TEXT = TextConfig(symbols=tuple(" ,abdegiknoprstuwl"))
RELU = {**TINY, "activation": "relu"}
SCALED = {"kind": "scaled_adam", "lr": 0.05, "schedule": "eden", "warmup_steps": 20, "clip": None, "weight_decay": 0}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_speech(tmp_path_factory.mktemp("speech") / "store")


@pytest.fixture(scope="module")
def runs(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    sizes = {"transformer": RELU}
    trained("valle_ar", folder / "ar", store, model={**sizes, "sampling": GREEDY}, steps=120)
    # One of two codebooks is drawn each step.
    trained("valle_nar", folder / "nar", store, model=sizes, steps=200, optimizer=SCALED)
    export_valle(folder / "ar", folder / "nar", folder / "both")
    return folder


@pytest.fixture(scope="module")
def speaker(runs):
    return xycodec.lm.load(runs / "both", device="cpu")


def ar(**changes):
    torch.manual_seed(0)
    return ValleAr(ValleArConfig(codec=ABOUT, text=TEXT, transformer=RELU, **changes)).eval()


def nar(**changes):
    torch.manual_seed(0)
    return ValleNar(ValleNarConfig(codec=ABOUT, text=TEXT, transformer=RELU, **changes)).eval()


def texts_of(numbers):
    return [TextFrontEnd(TEXT).encode(TEXTS[number]) for number in numbers]


def ar_task_of(config, store, numbers, **more):
    return ar_task(texts_of(numbers), [codes_of(store, number) for number in numbers], config, **more)


def nar_task_of(config, store, numbers, seed=0, others=None):
    codes = [codes_of(store, number) for number in numbers]
    draw = torch.Generator().manual_seed(seed)
    return nar_task(texts_of(numbers), codes, others or [None] * len(numbers), config, draw)


@pytest.mark.parametrize("number", range(3))
def test_an_utterance_is_learned_by_heart(speaker, store, number):
    codes = codes_of(store, number)
    spoken = speaker.speak(TEXTS[number], prompt_codes=codes[:, :4])
    assert torch.equal(spoken.codes, codes[:, 4:])
    assert not spoken.hit_cap
    assert torch.equal(speaker.speak(TEXTS[number], first_codebook_only=True).codes, codes[:1])


def test_one_stage_speaks_one_codebook(runs, store):
    alone = xycodec.lm.load(runs / "ar", device="cpu")
    assert torch.equal(alone.speak(TEXTS[0], first_codebook_only=True).codes, codes_of(store, 0)[:1])
    with pytest.raises(XycodecError, match="no second stage"):
        alone.speak(TEXTS[0])
    with pytest.raises(CheckpointError, match="second stage alone does not speak"):
        xycodec.lm.load(runs / "nar")
    with pytest.raises(CheckpointError, match="not valle_ar"):
        export_valle(runs / "nar", runs / "ar", runs / "wrong")


@pytest.mark.parametrize("changes", [{}, {"attention": "causal"}, {"begin": False}, {"tied": True}], ids=str)
def test_a_cache_changes_no_logit(store, changes):
    model = ar(**changes)
    task = ar_task_of(model.config, store, [0])
    letters, rows = task.text.shape[1], task.rows[0]
    x = torch.cat([model._text(task.text), model._codes(task.rows)], dim=1)
    whole = model.logits(model.stack(x, model._mask(letters, len(rows))))[0, letters:]
    logits, cache = model.begin(task.text[0], rows[:2])
    cached = [logits] + [model.step(int(code), place, cache) for place, code in enumerate(rows[2:], 2)]
    # Sums of 32 products in other orders.
    torch.testing.assert_close(torch.stack(cached), whole[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ["prefix", "causal"])
def test_who_sees_whom(attention):
    mask = ar(attention=attention)._mask(3, 2)[0, 0]
    text = torch.ones(3, 3, dtype=torch.bool) if attention == "prefix" else torch.ones(3, 3).tril().bool()
    assert torch.equal(mask[:3, :3], text)
    assert not mask[:3, 3:].any()
    assert mask[3:, :3].all()
    assert torch.equal(mask[3:, 3:], torch.tensor([[True, False], [True, True]]))


def test_neighbours_and_padding_change_no_loss(store):
    first, second = ar(), nar(prefix_mode=0)
    for model, make in ((first, ar_task_of), (second, nar_task_of)):
        together = model(make(model.config, store, [0, 1, 2]))
        alone = [model(make(model.config, store, [number])) for number in range(3)]
        for name, mean in together.items():
            total = sum(float(one[name].detach().total) for one in alone)
            assert float(mean.detach().total) == pytest.approx(total, rel=1e-4)
            assert float(mean.count) == sum(FRAMES) + 3 * (model is first)


def test_the_loss_of_the_source_counts_padding_and_no_first_frame(store):
    model = ar(begin=False)
    legacy = ar_task_of(model.config, store, [0, 1], legacy_loss=True)
    codes = [codes_of(store, number)[0] for number in (0, 1)]
    # As the source makes them: ends behind each clip, rows without the last, labels without the first.
    stream = torch.stack([F.pad(one, (0, max(FRAMES[:2]) + 1 - len(one)), value=SIZE) for one in codes])
    assert torch.equal(legacy.rows, stream[:, :-1])
    assert torch.equal(legacy.labels, stream[:, 1:])
    assert float(model(legacy)["ar"].count) == 2 * max(FRAMES[:2])
    ours = ar_task_of(model.config, store, [0, 1])
    assert float(model(ours)["ar"].count) == sum(FRAMES[:2])
    begun = ar_task_of(ar().config, store, [0])
    assert begun.rows[0].tolist() == [SIZE + 1, *codes[0].tolist()]
    assert begun.labels[0].tolist() == [*codes[0].tolist(), SIZE]


def test_a_model_without_a_begin_symbol_needs_a_prompt(store):
    speaker = ValleSpeaker(ar(begin=False))
    with pytest.raises(XycodecError, match="give a prompt"):
        speaker.speak("red", first_codebook_only=True)
    speaker.speak("red", first_codebook_only=True, prompt_codes=codes_of(store, 0)[:, :1])


@pytest.mark.parametrize("mode", [0, 1, 2, 4])
def test_what_is_given_and_what_is_asked(store, mode):
    config = nar(prefix_mode=mode).config
    codes = [codes_of(store, number) for number in (0, 1)]
    other = codes_of(store, 2)
    stages = set()
    for seed in range(8):
        task = nar_task_of(config, store, [0, 1], seed, [other, None])
        stage = int(task.stage)
        stages.add(stage)
        for row, one in enumerate(codes):
            length, given, labels = int(task.lengths[row]), task.given[row], task.labels[row]
            ahead = length - one.shape[1]
            assert torch.equal(task.codes[row, :, ahead:length], one)
            asked = labels[ahead:length] != NO_LABEL
            assert torch.equal(labels[ahead:length][asked], one[stage][asked])
            assert (labels[:ahead] == NO_LABEL).all()
            assert (labels[length:] == NO_LABEL).all()
            known = given[ahead:length]
            if mode == 0:
                assert (ahead, int(given.sum())) == (0, 0)
                assert asked.all()
            elif mode == 1:  # a quarter to a half of 9 frames
                assert ahead == 0
                assert 2 <= int(known.sum()) < 4
                assert torch.equal(asked, ~known)
            elif mode == 2:  # a piece, whose own place is not asked
                start = int((~asked).nonzero()[0])
                assert (ahead, int((~asked).sum()), int(known.sum())) == (2, 2, 0)
                assert torch.equal(task.codes[row, :, :2], one[:, start : start + 2])
            else:
                assert ahead == (0 if row else FRAMES[2])
                assert torch.equal(task.codes[row, :, :ahead], other[:, :ahead])
                assert asked.all()
    assert stages == {1, 2}


def test_stage_and_prompt_decide_what_the_second_stage_hears(store):
    model = nar()
    task = nar_task_of(model.config, store, [0])
    stage, given, codes = int(task.stage), task.given[0], task.codes
    changed = codes.clone()
    changed[0, stage:, ~given] = (changed[0, stage:, ~given] + 1) % SIZE
    hears = model._hidden(task.text, codes, task.given, task.stage)
    assert torch.equal(hears, model._hidden(task.text, changed, task.given, task.stage))
    changed[0, stage - 1, -1] = (changed[0, stage - 1, -1] + 1) % SIZE
    assert not torch.equal(hears, model._hidden(task.text, changed, task.given, task.stage))
    assert not torch.equal(hears, model._hidden(task.text, codes, task.given, 3 - task.stage))


@pytest.mark.parametrize("mode", [0, 1, 2, 4])
def test_with_a_prompt_of_another_text_each_mode_speaks(store, mode, monkeypatch):
    first, second = ar(), nar(prefix_mode=mode)
    heard = {}

    def fill(text, codes, given, frames):
        heard.update(text=text.tolist(), codes=codes, given=given.tolist())
        return codes[:, -frames:]

    monkeypatch.setattr(second, "fill", fill)
    prompt = codes_of(store, 0)[:, :3]
    made = ValleSpeaker(first, second).speak("a bird", prompt_text="red", prompt_codes=prompt, seed=3).codes
    front = TextFrontEnd(TEXT)
    own, both = front.encode("a bird"), front.encode("red a bird")
    assert heard["text"] == (own if mode in (2, 4) else both)
    assert torch.equal(heard["codes"][:, :3], prompt)
    assert heard["given"] == [mode != 0] * 3 + [False] * made.shape[1]


def test_the_end_is_where_a_code_is_likeliest_or_drawn(monkeypatch):
    model = ar()
    speaker = ValleSpeaker(model)
    monkeypatch.setattr("xycodec.lm.valle.sample", lambda *_: SIZE)
    with pytest.raises(EmptySpeechError, match="nothing was spoken with 5 seeds"):
        speaker.speak("red", first_codebook_only=True)
    monkeypatch.setattr("xycodec.lm.valle.sample", lambda *_: 3)
    monkeypatch.setattr(model, "logits", lambda hidden: F.one_hot(torch.tensor(4), SIZE + 1).float())
    spoken = speaker.speak("red", first_codebook_only=True)
    assert (spoken.codes.shape, spoken.hit_cap) == ((1, 22 * 5), True)
    monkeypatch.setattr(model, "logits", lambda hidden: F.one_hot(torch.tensor(SIZE), SIZE + 1).float())
    with pytest.raises(EmptySpeechError):
        speaker.speak("red", first_codebook_only=True)


def test_codes_of_one_codebook_have_no_second_stage(tmp_path):
    single = write_speech(tmp_path / "store", n_q=1)
    with pytest.raises(ConfigError, match="no second stage"):
        ValleNarStage.configure(recipe("valle_nar", tmp_path / "run", single))


def test_another_clip_of_the_speaker_comes_along(store):
    data = recipe("valle_nar", "unused", store, model={"prefix_mode": 4}).data
    catalogue = StoreCatalogue(store.folder, companions=True)
    found = {catalogue.clip(0, data, seed=0, epoch=epoch).companion.shape[1] for epoch in range(12)}
    assert found == {FRAMES[1], FRAMES[2]}
    assert StoreCatalogue(store.folder).clip(0, data, seed=0, epoch=0).companion is None
