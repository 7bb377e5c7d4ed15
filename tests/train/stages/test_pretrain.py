from dataclasses import replace

import pytest
import torch
from tests.judging import save_whisper
from tests.training import QUICK, NoLooking, batch, clip, pretraining, save_lm, seeded, tiny_model

from xycodec.errors import ConfigError
from xycodec.losses.mel import MultiScaleMel
from xycodec.nn.mean import Mean
from xycodec.nn.mel import LogMel
from xycodec.nn.vocos import InverseSTFT
from xycodec.train.config import EngineConfig
from xycodec.train.engine import Engine
from xycodec.train.stage import joint_values
from xycodec.train.stages.pretrain import PretrainStage, build

CLIPS = (clip(0), clip(1, 0.6), clip(2, 1.3))


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return save_lm(tmp_path_factory.mktemp("models") / "lm")


def stage_of(recipe, **engine):
    return PretrainStage(recipe, Engine(EngineConfig(**{"device": "cpu", "precision": "float32", **engine})))


def run(stage, steps=2, clips=CLIPS):
    reports = []
    for number in range(steps):
        seeded(number)
        reports.append(stage.step([batch(*clips)], number))
    return [{name: float(value) for name, value in report.values.items()} for report in reports]


def gradients(stage, *batches):
    """Gradients of the mean of the batches' losses, without a step."""
    stage.model.train()
    seeded(0)
    for one in batches:
        values = joint_values({k: v for k, v in _means(stage, one).items() if k != "accuracy"})
        (sum(stage.weights[name] * value for name, value in values.items()) / len(batches)).backward()
    made = {name: value.grad for name, value in stage.model.named_parameters()}
    stage.model.zero_grad(set_to_none=True)
    return made


def _means(stage, one):
    made = stage.model(one, stage.semantic_lm and stage.semantic_lm.tokenize(one.texts))
    return {name: Mean(*pair) for name, pair in made.losses.items()}


def state_of(stage):
    return {name: value.clone() for name, value in stage.model.state_dict().items()}


# ---- what learns -----------------------------------------------------------------------------------

FIXED = ("codec.semantic_encoder.", "semantic_lm.lm.")
NO_SEMANTIC = {"semantic_encoder": None, "semantic_encoder_adapter": None}


@pytest.mark.parametrize(
    ("changes", "fixed"),
    [
        ({}, FIXED),
        ({"freeze_semantic": False}, ("semantic_lm.lm.",)),
        ({"lm": {"trainable": True}}, ("codec.semantic_encoder.",)),
        ({"lm": {"reads": "quantizer", "prompt": "write: "}}, FIXED),
        ({"model": tiny_model(**NO_SEMANTIC).model_dump()}, FIXED),
        ({"loss": {"commitment": 0}}, FIXED),
        ({"loss": {"asr": 0}}, FIXED),
        (
            {"loss": {"mel": 0}, "lm": {"reads": "quantizer"}},
            (*FIXED, *(f"codec.{part}." for part in ("upsample", "acoustic_decoder", "vocos", "post_rvq_adapter"))),
        ),
        ({"loss": {"mel": 0}}, (*FIXED, "codec.upsample.", "codec.acoustic_decoder.", "codec.vocos.")),
    ],
)
def test_what_is_frozen_stays_and_all_else_learns(lm, changes, fixed):
    stage = stage_of(pretraining(lm, **changes))
    parameters = dict(stage.model.named_parameters())
    for name, gradient in gradients(stage, batch(*CLIPS)).items():
        trained = not name.startswith(fixed)
        assert parameters[name].requires_grad == trained, name
        # Every one, or other processes would wait for it; and none that cannot learn.
        assert (gradient is not None and bool(gradient.any())) == trained, name
    before = state_of(stage)
    run(stage)
    for name, value in stage.model.state_dict().items():
        if name in parameters or name.endswith((".codebook", ".embed_avg")):
            assert torch.equal(value, before[name]) == name.startswith(fixed), name
    if "semantic_lm.lm." in fixed and stage.semantic_lm is not None:
        assert not any(part.training for part in stage.semantic_lm.lm.modules())


def test_a_whisper_s_decoder_listens_and_stays_as_it_is(tmp_path):
    torch.manual_seed(0)
    recipe = pretraining(save_whisper(tmp_path, multilingual=False))
    stage = stage_of(recipe)
    before = state_of(stage)
    for name, gradient in gradients(stage, batch(*CLIPS)).items():
        trained = not name.startswith(FIXED)
        assert (gradient is not None and bool(gradient.any())) == trained, name
    first, *_, last = (values["asr"] for values in run(stage, 12))
    assert last < first
    for name, value in stage.model.state_dict().items():
        if name.startswith("semantic_lm."):
            learned = name.startswith("semantic_lm.adapter.") and "positional" not in name
            assert torch.equal(value, before[name]) != learned, name
            assert stage.kept("model", name) != name.startswith("semantic_lm.lm.")
    measured = stage.measure(batch(*CLIPS, clip(3, text=None)), transcribe=True)
    assert len(measured.texts) == 4
    assert measured.texts[3] == ""
    assert measured.words.words == sum(len(one.text.split()) for one in CLIPS)
    planned = build(recipe, meta=True).semantic_lm
    assert [value.shape for value in planned.parameters()] == [v.shape for v in stage.semantic_lm.parameters()]


def test_texts_of_another_language_are_none_to_a_whisper(tmp_path):
    torch.manual_seed(0)
    stage = stage_of(pretraining(save_whisper(tmp_path, multilingual=False), ema=None))
    english, german = (replace(clip(0), language=language) for language in ("en", "de"))
    alone, both = (stage.measure(batch(*clips), transcribe=True) for clips in ([english], [english, german]))
    assert both.means["asr"].count.item() == alone.means["asr"].count.item() > 0
    assert both.words.words == alone.words.words > 0
    assert both.texts == (*alone.texts, "")
    none = stage.measure(batch(german), transcribe=True)
    assert none.means["asr"].count.item() == none.words.words == 0


def test_asr_alone_reaches_the_acoustic_encoder(lm):
    stage = stage_of(pretraining(lm, loss={"mel": 0, "commitment": 0}, lm={"reads": "quantizer"}))
    made = gradients(stage, batch(*CLIPS))
    assert made["codec.acoustic_encoder.conv1.weight"].abs().max() > 0
    mute = gradients(stage, batch(*(clip(number, text=None) for number in range(2))))
    assert mute["codec.acoustic_encoder.conv1.weight"].abs().max() == 0


def test_frozen_tower_keeps_no_graph(lm):
    stage = stage_of(pretraining(lm))
    seen = {}
    for name in ("semantic_encoder", "semantic_encoder_adapter"):
        part = getattr(stage.codec, name)
        part.register_forward_hook(lambda _, args, out, n=name: seen.update({n: out.requires_grad}))
    gradients(stage, batch(*CLIPS))
    assert seen == {"semantic_encoder": False, "semantic_encoder_adapter": True}


# ---- losses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("off", ["asr", "mel", "commitment"])
def test_a_loss_that_is_off_is_not_computed(lm, off):
    stage = stage_of(pretraining(lm, loss={off: 0}))
    calls = []
    for part in (stage.model.mel, stage.codec.vocos):
        part.register_forward_hook(lambda module, *_: calls.append(type(module).__name__))
    (values,) = run(stage, 1)
    losses = {"asr": ["asr", "accuracy"], "mel": ["mel"], "commitment": ["commitment"]}
    expected = {"loss", *(name for key, names in losses.items() for name in names if key != off)}
    assert set(values) == expected
    assert calls == ([] if off == "mel" else ["Vocos", "MultiScaleMel"])
    assert (stage.semantic_lm is None) == (off == "asr")
    weights = {"asr": 20, "mel": 15, "commitment": 1}
    assert values["loss"] == pytest.approx(sum(weights[name] * values[name] for name in expected & set(weights)))
    # What is validated is decoded all the same.
    assert stage.measure(batch(*CLIPS), transcribe=False).audio.shape == (3, 17 * 1280)


def test_a_batch_of_nothing_teaches_nothing(lm):
    stage = stage_of(pretraining(lm))
    run(stage, 1)
    book = stage.codec.quantizer.codebook.clone()
    for name, gradient in gradients(stage, batch()).items():
        assert gradient is None or not gradient.any(), name
    (values,) = run(stage, 1, clips=())
    assert values == {"mel": 0, "commitment": 0, "asr": 0, "accuracy": 0, "loss": 0}
    assert torch.equal(stage.codec.quantizer.codebook, book)


def test_a_codec_that_began_with_nothing_learns_later():
    stage = stage_of(pretraining())
    run(stage, 1, clips=())
    assert not stage.codec.quantizer.inited.any()
    assert run(stage, 2)[1]["commitment"] > 0
    assert stage.codec.quantizer.inited.all()


def test_micro_batches_give_the_average_of_their_gradients(lm):
    """Each micro-batch is a mean of its own; the step goes along the average of theirs."""
    one, two = batch(*CLIPS[:2]), batch(CLIPS[2], clip(3))
    # Codebooks that stand still, so that the order does not matter.
    quantizer = {**tiny_model().quantizer.model_dump(), "decay": 1.0, "dead_code_threshold": 0.0}
    model = tiny_model(quantizer=quantizer).model_dump()
    stage, other = (stage_of(pretraining(lm, model=model)) for _ in range(2))
    for each in (stage, other):
        seeded(0)
        each.model.train()
        each.codec.quantizer(torch.randn(4, 40, 128))
    first, second, both = gradients(other, one), gradients(other, two), gradients(other, one, two)
    caught = {}
    stage.updaters["model"].update = lambda step: (
        caught.update(
            {name: value.grad.clone() for name, value in stage.model.named_parameters() if value.grad is not None}
        )
        or torch.zeros(())
    )
    seeded(0)
    report = stage.step([one, two], 0)
    assert caught.keys() == {name for name, value in first.items() if value is not None}
    for name, gradient in caught.items():
        torch.testing.assert_close(gradient, (first[name] + second[name]) / 2, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(gradient, both[name], atol=1e-6, rtol=1e-5)
    alone = [float(_means(other, each)["mel"].detach().value()) for each in (one, two)]
    assert float(report.values["mel"]) == pytest.approx(sum(alone) / 2, rel=1e-5)
    # Token means of uneven batches: the average of two means is not the mean over all tokens.
    assert report.counts.sum() == 4 * (13 + 8 + 17 + 13)


def test_micro_batches_move_the_codebooks_as_one_batch():
    """Once a step, and from k-means on; weights stand still, so that nothing else differs."""
    clips = tuple(clip(number) for number in range(4))
    # Few codes leave every layer more than rounding to choose by.
    few = tiny_model(quantizer=QUICK.model_copy(update={"n_q": 3, "codebook_size": 8})).model_dump()
    made = [stage_of(pretraining(model=few, optimizer={"lr": 1e-12, "warmup_steps": 0})) for _ in range(2)]
    for step in range(3):
        for stage, batches in zip(made, ([batch(*clips)], [batch(*clips[:1]), batch(*clips[1:])]), strict=True):
            seeded(step)
            stage.step(batches, step)
    whole, parts = (stage.codec.quantizer for stage in made)
    for name in ("codebook", "embed_avg", "cluster_size", "inited"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), atol=1e-5, rtol=1e-5)


# ---- precision -------------------------------------------------------------------------------------


def test_under_bf16_the_exact_parts_stay_float32(lm):
    stage = stage_of(pretraining(lm), precision="bf16")
    codec, seen = stage.codec, {}

    def watch(name, module):
        module.register_forward_hook(lambda _, args, out: seen.update({name: (args, out)}))

    parts = {
        "log-mel": next(part for part in codec.modules() if isinstance(part, LogMel)),
        "quantizer": codec.quantizer,
        "quantizer in": codec.quantizer.input_proj,
        "quantizer out": codec.quantizer.output_proj,
        "head": codec.vocos.head.out,
        "inverse stft": next(part for part in codec.modules() if isinstance(part, InverseSTFT)),
        "mel": next(part for part in stage.model.modules() if isinstance(part, MultiScaleMel)),
        "tower": codec.acoustic_encoder.layers[0].fc1,
    }
    for name, part in parts.items():
        watch(name, part)
    values = run(stage, 1)[0]
    assert seen["tower"][1].dtype == torch.bfloat16
    for name in ("log-mel", "quantizer in", "quantizer out", "head", "inverse stft"):
        assert seen[name][1].dtype == torch.float32, name
    assert seen["inverse stft"][0][0].dtype == torch.complex64
    assert {value.dtype for value in (seen["quantizer"][1].quantized, seen["mel"][1].total)} == {torch.float32}
    with torch.no_grad():
        assert torch.equal(parts["log-mel"](*seen["log-mel"][0]), seen["log-mel"][1])
        assert torch.equal(parts["inverse stft"](*seen["inverse stft"][0]), seen["inverse stft"][1])
        assert torch.equal(parts["mel"](*seen["mel"][0]).total, seen["mel"][1].total)
    exact = run(stage_of(pretraining(lm)), 1)[0]
    assert values["mel"] != exact["mel"]
    assert values["mel"] == pytest.approx(exact["mel"], rel=0.02)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_steps_lower_the_loss(lm, precision):
    values = run(stage_of(pretraining(lm), precision=precision), 12)
    assert values[-1]["mel"] < 0.9 * values[0]["mel"]
    assert values[-1]["asr"] < values[0]["asr"]


# ---- the device ------------------------------------------------------------------------------------


def test_the_host_never_waits_after_the_first_step(lm):
    stage = stage_of(pretraining(lm))
    run(stage, 1)
    with NoLooking(of_masks=1):
        stage.step([batch(*CLIPS)], 1)
    with NoLooking(of_masks=0):
        stage.step([batch(CLIPS[0], clip(5))], 2)
    with NoLooking(of_masks=0), pytest.raises(AssertionError, match="waits"):
        float(stage.codec.vocos.head.out.weight.sum())


# ---- bad input -------------------------------------------------------------------------------------


def test_a_clip_longer_than_the_window_is_refused():
    recipe = pretraining(data={"train": ["unused"], "clip_seconds": 2.5})
    with pytest.raises(ConfigError, match=r"clip_seconds: 2.5 s is longer than the model's window of 2 s") as raised:
        build(recipe)
    assert "\n" not in str(raised.value)


def test_clips_without_text_are_not_transcribed(lm):
    stage = stage_of(pretraining(lm))
    run(stage, 1)
    measured = stage.measure(batch(CLIPS[0], clip(1, text=None)), transcribe=True)
    assert measured.texts[1] == ""
    assert measured.words.words == 3
