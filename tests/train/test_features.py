"""Pre-training by parts: the loss on what the vocoder reads, a vocoder from elsewhere, excerpts that are heard."""

import pytest
import torch
from tests.training import batch, clip, pretraining, seeded, tiny_model

from xycodec.checkpoints.build import random_codec
from xycodec.checkpoints.load import load_codec
from xycodec.checkpoints.save import save_codec
from xycodec.errors import CheckpointError, ConfigError
from xycodec.models.xy_tokenizer.config import VocosConfig
from xycodec.train.config import EngineConfig
from xycodec.train.engine import Engine
from xycodec.train.stages.pretrain import PretrainStage, build

CLIPS = (clip(0), clip(1, 0.6), clip(2, 1.3))
FEATURES = {"asr": 0, "mel": 0, "features": 10}


def stage_of(recipe):
    return PretrainStage(recipe, Engine(EngineConfig(device="cpu", precision="float32")))


def step(stage, number, *clips):
    seeded(number)
    return stage.step([batch(*(clips or CLIPS))], number)


def test_the_vocoder_is_neither_run_nor_trained_for_features_alone():
    stage = stage_of(pretraining(loss=FEATURES))
    stage.codec.vocos.register_forward_hook(lambda *_: pytest.fail("the vocoder was run"))
    before = {name: value.clone() for name, value in stage.codec.named_parameters()}
    values = step(stage, 0).values
    assert set(values) == {"features", "commitment", "loss"}
    assert float(values["loss"]) == pytest.approx(10 * float(values["features"]) + float(values["commitment"]))
    for name, value in stage.codec.named_parameters():
        assert torch.equal(value, before[name]) == name.startswith(("vocos.", "semantic_encoder.")), name


def test_the_distance_is_over_valid_frames_of_each_clip():
    stage = stage_of(pretraining(loss=FEATURES))
    measured = stage.measure(batch(*CLIPS), transcribe=False).means["features"]
    codec, total, count = stage.codec, 0.0, 0
    for one in CLIPS:
        audio = one.audio[None]
        with torch.no_grad():
            latents, *_ = codec.encode_latents(audio, [audio.shape[1]])
            made = codec.acoustic_features(codec.post_rvq_adapter(codec.quantizer(latents).quantized))
        ideal = codec.ideal_features(audio, [audio.shape[1]])
        assert made.shape == ideal.shape
        assert ideal.min() >= 0
        frames = -(-audio.shape[1] // 160)
        total += float((made - ideal).abs().mean(dim=1)[0, :frames].sum())
        count += frames
    assert float(measured.count) == count
    assert float(measured.value()) == pytest.approx(total / count, rel=1e-4)


def test_features_and_audio_can_be_taught_together():
    stage = stage_of(pretraining(loss={"asr": 0, "features": 10}))
    assert set(step(stage, 0).values) == {"features", "mel", "commitment", "loss"}
    assert all(p.requires_grad for p in stage.codec.vocos.parameters())


def test_a_vocoder_from_elsewhere(tmp_path):
    other = random_codec(tiny_model(), seed=5)
    folder = save_codec(other, tmp_path / "other")
    model = build(pretraining(vocos=str(folder)))
    plain = build(pretraining())
    for name, value in model.codec.state_dict().items():
        source = load_codec(folder, device="cpu") if name.startswith("vocos.") else plain.codec
        assert torch.equal(value, source.state_dict()[name]), name
    size = tiny_model(vocos=VocosConfig(dim=16, intermediate_dim=32, layers=1))
    with pytest.raises(CheckpointError, match=r"other: its vocoder is of another size than the recipe's model\.vocos"):
        build(pretraining(model=size.model_dump(), vocos=str(folder)))


def test_a_part_of_each_clip_is_heard():
    stage = stage_of(pretraining(loss={"asr": 0}, segment_seconds=0.4))
    heard = {}
    stage.codec.vocos.register_forward_hook(lambda _, args, out: heard.update(features=args[0], audio=out))
    stage.model.mel.register_forward_hook(lambda _, args, out: heard.update(target=args[1], lengths=args[2]))
    seen = set()
    for number in range(6):
        step(stage, number)
        assert heard["audio"].shape == heard["target"].shape == (3, 5 * 1280)
        assert heard["features"].shape[2] == 5 * 8
        for one, target, length in zip(CLIPS, heard["target"], heard["lengths"].tolist(), strict=True):
            padded = torch.nn.functional.pad(one.audio, (0, -len(one.audio) % 1280))
            places = [at for at in range(0, len(padded), 1280) if torch.equal(padded[at : at + 6400], target)]
            assert len(places) == 1
            assert length == min(6400, len(one.audio) - places[0])
            seen.add((len(one.audio), places[0]))
    assert len(seen) > 8
    # What is measured is all of it.
    assert stage.measure(batch(*CLIPS), transcribe=False).audio.shape == (3, 17 * 1280)


def test_features_and_audio_are_of_the_same_place():
    stage = stage_of(pretraining(loss={"asr": 0}, segment_seconds=0.4))
    made = {}
    stage.codec.acoustic_decoder.register_forward_hook(lambda _, args, out: made.update(all=out))
    stage.codec.vocos.register_forward_hook(lambda _, args, out: made.update(part=args[0]))
    stage.model.mel.register_forward_hook(lambda _, args, out: made.update(target=args[1]))
    one = clip(5)
    step(stage, 0, one)
    padded = torch.nn.functional.pad(one.audio, (0, -len(one.audio) % 1280))
    (place,) = (n for n in range(13) if torch.equal(padded[n * 1280 : (n + 5) * 1280], made["target"][0]))
    assert torch.equal(made["part"], made["all"][:, :, place * 8 : (place + 5) * 8])


def test_the_mel_loss_can_be_kept_from_all_but_the_vocoder():
    weights = {"asr": 0, "commitment": 0, "mel": 1, "features": 1e-9}
    stage = stage_of(pretraining(loss=weights, mel_reaches="vocoder"))
    step(stage, 0)  # gradients are cleared by a step: look at those of a pass
    made = stage.model(batch(*CLIPS), None)
    (made.losses["mel"][0] / made.losses["mel"][1]).sum().backward()
    for name, value in stage.codec.named_parameters():
        assert (value.grad is not None and bool(value.grad.any())) == name.startswith("vocos."), name
    with pytest.raises(ConfigError, match=r"mel_reaches: .* loss\.features alone: give it a weight"):
        pretraining(loss={"asr": 0}, mel_reaches="vocoder")
