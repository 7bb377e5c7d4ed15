import pytest
import torch
from tests.training import batch, clip, recipe, seeded, tiny_model

from xycodec.checkpoints.build import random_codec
from xycodec.checkpoints.save import save_codec
from xycodec.losses.mel import MultiScaleMel
from xycodec.models.xy_tokenizer.model import RAISE
from xycodec.nn.mel import LogMel
from xycodec.train.config import EngineConfig
from xycodec.train.engine import Engine
from xycodec.train.stages.vocoder import VocoderStage

CLIPS = (clip(0), clip(1, 0.6), clip(2, 1.3))


def stage_of(**changes):
    settings = {"model": tiny_model().model_dump(), **changes}
    return VocoderStage(recipe("vocoder", **settings), Engine(EngineConfig(device="cpu", precision="float32")))


def run(stage, steps, *batches):
    values = []
    for number in range(steps):
        seeded(number)
        values.append(float(stage.step(batches or [batch(*CLIPS)], number).values["loss"]))
    return values


def test_only_the_vocoder_learns():
    stage = stage_of()
    before = {name: value.clone() for name, value in stage.codec.state_dict().items()}
    run(stage, 1)
    for name, value in stage.codec.state_dict().items():
        learned = name.startswith("vocos.") and "window" not in name
        assert torch.equal(value, before[name]) != learned, name


def test_the_distance_is_of_each_clip_from_its_own_log_mel():
    stage = stage_of()
    both, (one, *others) = batch(*CLIPS), CLIPS
    measured = stage.measure(both, transcribe=False)
    # By hand: silence after the clip, Whisper's log-mel of whole code frames, raised.
    audio = torch.nn.functional.pad(one.audio, (0, 13 * 1280 - len(one.audio) + 320))[None]
    features = (LogMel(stage.codec.config.n_mels, 16_000)(audio)[..., : 13 * 8] + RAISE).clamp_min(0)
    with torch.no_grad():
        decoded = stage.codec.vocos(features)
    torch.testing.assert_close(measured.audio[0, : 13 * 1280], decoded[0], atol=1e-5, rtol=0)
    target = torch.nn.functional.pad(one.audio, (0, 13 * 1280 - len(one.audio)))[None]
    alone = MultiScaleMel(16_000)(decoded, target, torch.tensor([len(one.audio)]))
    rest = stage.measure(batch(*others), transcribe=False).means["mel"]
    torch.testing.assert_close(measured.means["mel"].value(), (alone + rest).value())


@pytest.mark.long
def test_it_learns_a_clip_by_heart_and_its_average_follows():
    stage = stage_of(ema=0.9, optimizer={"lr": 5e-3, "warmup_steps": 0, "clip": 10})
    first = stage.measure(batch(*CLIPS), transcribe=False).means["mel"].value()
    values = run(stage, 60)
    assert values[-1] < 0.7 * values[0]
    last = stage.measure(batch(*CLIPS), transcribe=False).means["mel"].value()
    assert last < 0.7 * first
    with torch.no_grad():
        now = stage.model(batch(*CLIPS))
    assert last != now[0].sum() / now[1].sum()


def test_micro_batches_of_like_length_are_one_batch():
    even = [clip(number) for number in range(4)]
    whole, halves = stage_of(), stage_of()
    one = run(whole, 1, batch(*even))
    two = run(halves, 1, batch(*even[:2]), batch(*even[2:]))
    assert one == pytest.approx(two)
    for mine, theirs in zip(whole.codec.vocos.parameters(), halves.codec.vocos.parameters(), strict=True):
        # Adam's first step is as long where a gradient is next to nothing.
        assert (mine - theirs).abs().max() < 2e-3
        torch.testing.assert_close(mine.mean(), theirs.mean(), atol=1e-4, rtol=0)


def test_a_batch_of_nothing_teaches_nothing():
    stage = stage_of()
    report = stage.step([batch()], 0)
    assert float(report.values["loss"]) == 0
    assert float(report.norms["grad_norm"]) == 0


def test_it_can_start_from_another_one(tmp_path):
    save_codec(random_codec(tiny_model()), tmp_path / "codec")
    vocos = stage_of(weights=str(tmp_path / "codec")).codec.vocos.state_dict()
    expected = random_codec(tiny_model()).vocos.state_dict()
    assert all(torch.equal(vocos[key], value) for key, value in expected.items())
    assert any(not torch.equal(stage_of().codec.vocos.state_dict()[key], value) for key, value in expected.items())
