"""SpeechTokenizer's training: what moves, what it is taught, what a checkpoint holds, and the recipes of the table."""

import pytest
import torch
from tests.training import batch, clip, recipe, seeded
from torch.nn import functional as F

from xycodec.checkpoints.load import load_codec
from xycodec.errors import ConfigError
from xycodec.losses.speech_tokenizer import distillation_loss
from xycodec.models.xcodec.config import SelfSupervisedConfig
from xycodec.train.checkpoint import RunState, network_state, save_state
from xycodec.train.engine import Engine
from xycodec.train.recipe_file import load_recipe
from xycodec.train.stages.speech_tokenizer import SpeechTokenizerStage, build

SECONDS = 0.64
TEACHER = SelfSupervisedConfig(
    d_model=20, layers=2, heads=2, ffn_dim=28, conv_dim=8, position_kernel=16, position_groups=4
).model_dump()
SIZE = {
    "model_id": "tiny", "width": 2, "dim": 24, "semantic_dim": 20, "lstm_layers": 1,
    "quantizer": {"n_q": 3, "codebook_size": 16, "decay": 0.5, "kmeans_iterations": 3},
}  # fmt: skip
FAST = {"lr": 1e-3, "warmup_steps": 0}


def stage_of(**changes):
    given = {
        "model": SIZE,
        "teacher": None,
        "teacher_model": TEACHER,
        "data": {"train": ["unused"], "clip_seconds": SECONDS},
        "discriminators": {"channels": 4, "scale": False, "spectrogram": False},
        "optimizer": FAST,
        "discriminator_optimizer": FAST,
    }
    made = recipe("speech_tokenizer", **{**given, **changes})
    return SpeechTokenizerStage(made, Engine(made.engine))


CLIPS = (clip(0, SECONDS), clip(1, 0.5))


def run(stage, steps, clips=CLIPS):
    values = []
    for number in range(steps):
        seeded(number)
        report = stage.step([batch(*clips)], number)
        values.append({name: float(value) for name, value in (report.values | report.norms).items()})
    return values


def test_the_teacher_stays_all_else_moves_and_a_checkpoint_has_the_codec_alone(tmp_path):
    stage = stage_of()
    before = {key: value.clone() for key, value in stage.generator.state_dict().items()}
    (values, _) = run(stage, 2)
    stayed = {key for key, value in stage.generator.state_dict().items() if torch.equal(value, before[key])}
    assert stayed == {key for key in before if key.startswith("teacher.")}
    weights = stage.weights
    assert set(values) == {*weights, "discriminator", "loss", "grad_norm", "discriminator_grad_norm"}
    assert values["loss"] == pytest.approx(sum(weight * values[name] for name, weight in weights.items()))
    networks = {
        name: network_state(net, lambda key, n=name: stage.kept(n, key)) for name, net in stage.networks.items()
    }
    assert not any("teacher" in key for key in networks["model"])
    state = RunState(stage.name, 1, 0, 1, None, stage.model_config(), {}, networks)
    save_state(tmp_path / "run", state, 1, best=False)
    codec = load_codec(tmp_path / "run", device="cpu")
    audio = clip(3, 0.3).audio
    out = codec.encode(audio)
    assert (codec.model_id, out.codes.shape) == ("tiny", (1, 3, 15))
    # The run's own weights, whose norm is folded in what was loaded.
    latents = stage.codec.eval().encode_latents(audio[None])
    torch.testing.assert_close(codec.encode_latents(audio[None]), latents, atol=1e-5, rtol=1e-4)


def test_a_clip_is_learned():
    weights = {"adversarial": 0, "feature": 0, "waveform": 0, "fine_mel": 0, "mel": 1, "distillation": 5}
    stage = stage_of(loss={**weights, "commitment": 1}, optimizer={"lr": 3e-3, "warmup_steps": 0})
    values = run(stage, 40, (clip(0, SECONDS),))
    assert values[-1]["mel"] < 0.7 * values[0]["mel"]
    assert values[-1]["distillation"] < values[0]["distillation"] - 0.1


def test_distillation_teaches_the_first_codebook_over_valid_frames():
    generator = torch.Generator().manual_seed(0)
    features, taught = torch.randn(2, 2, 7, 5, generator=generator)
    mask = torch.arange(7) < torch.tensor([7, 4])[:, None]
    alone = [distillation_loss(features[i, None, :n], taught[i, None, :n]).value() for i, n in ((0, 7), (1, 4))]
    together = distillation_loss(features, taught, mask).value()
    torch.testing.assert_close(together, sum(alone) / 2)
    by_hand = -F.logsigmoid(F.cosine_similarity(features[0], taught[0], dim=0)).mean()
    torch.testing.assert_close(alone[0], by_hand)
    # A pass without distillation builds no teacher, and nothing waits for the map to its features.
    generator, _ = build(stage_of(loss={"distillation": 0}).recipe)
    assert generator.teacher is None
    assert not any(p.requires_grad for p in generator.codec.semantic_proj.parameters())


def test_the_loss_of_the_first_codebook_reaches_the_encoder_and_not_the_decoder():
    stage = stage_of()
    stage.weights = dict.fromkeys(stage.weights, 0.0) | {"distillation": 1.0}
    seeded(0)
    _, _, losses = stage._generate(batch(clip(0, SECONDS)), 0)
    losses["distillation"].value().backward()
    reached = {name.split(".")[1] for name, p in stage.generator.named_parameters() if p.grad is not None}
    assert reached == {"encoder", "semantic_proj"}


def test_recipes_of_the_table_differ_in_the_weight_of_distillation():
    whole = load_recipe("speech_tokenizer/train.yaml")
    for name, weight in (("x1", 24), ("x2", 120), ("x3", 600)):
        made = load_recipe(f"speech_tokenizer/{name}.yaml")
        assert (made.loss.distillation, made.model.quantizer.n_q, made.model.bitrate) == (weight, 3, 1500)
        same = {"loss": whole.loss, "model": whole.model, "output": whole.output}
        assert made.loss.model_copy(update={"distillation": 120}) == whole.loss
        assert made.model_copy(update=same) == whole
    generator, _ = build(whole, meta=True)
    assert sum(p.numel() for p in generator.codec.decoder.parameters()) > 30e6


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"model": {**SIZE, "semantic_dim": 21}}, r"semantic_dim: 21, teacher_model\.d_model is 20"),
        ({"model": {**SIZE, "strides": [8, 5]}}, r"model\.strides: they multiply to 40"),
        ({"loss": {"waveform": 0, "mel": 0, "fine_mel": 0, "adversarial": 0, "feature": 0}}, "the decoder has none"),
    ],
)
def test_recipes_that_cannot_be_are_refused(changes, line):
    with pytest.raises(ConfigError, match=line):
        stage_of(**changes)
