"""Parity with the reference implementation, whose outputs were recorded with random weights (../shared/golden)."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F

from xycodec import decode_long, encode_long, load_codec

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "xy_tiny"
CLIPS = (1279, 2560, 17150, 48037, 80000)
STAGES = ("mel", "semantic_encoder", "semantic_adapter", "acoustic_encoder", "pre_rvq_adapter", "downsample")
TOLERANCE = 1e-4

pytestmark = [
    pytest.mark.golden,
    pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden vectors are not at ../shared/golden/xy_tiny"),
]


def recorded(name):
    with safe_open(GOLDEN / "vectors.safetensors", "pt") as file:
        return file.get_tensor(name)


def wave(clip):
    return recorded(f"{clip}.wave_int16").float() / 32768


def worst(ours, theirs):
    assert ours.shape == theirs.shape
    return (ours - theirs).abs().max().item()


@pytest.fixture(scope="module")
def codec():
    return load_codec(GOLDEN, device="cpu", reference=True)


@pytest.fixture(scope="module")
def activations(codec):
    """Every module's output for the 80,000-sample clip, padded to 30 s as the reference does."""
    audio = F.pad(wave("clip80000"), (0, 400_000))[None]
    mask = torch.arange(1500)[None] < 250
    with torch.no_grad():
        mel = codec.mel(audio)
        semantic = codec.semantic_encoder(mel, 1500, mask)
        adapted = codec.semantic_encoder_adapter(semantic, mask)
        acoustic = codec.acoustic_encoder(mel, 1500, mask)
        joint = codec.pre_rvq_adapter(torch.cat([adapted, acoustic], dim=-1), mask)
        latents = codec.downsample(joint)
    rows = (mel.transpose(1, 2), semantic, adapted, acoustic, joint, latents)
    return {name: value[0].T for name, value in zip(STAGES, rows, strict=True)}


@pytest.mark.parametrize("n", CLIPS)
def test_codes_of_a_clip_are_equal(codec, n):
    codes = codec.encode(wave(f"clip{n}")[None]).codes[0]
    assert torch.equal(codes, recorded(f"clip{n}.codes").long())


def test_codes_of_a_batch_are_equal(codec):
    waves = [wave(f"clip{n}") for n in CLIPS]
    audio = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True, padding_value=0.5)
    out = codec.encode(audio, torch.tensor(CLIPS))
    for n, codes, frames in zip(CLIPS, out.codes, out.lengths.tolist(), strict=True):
        assert torch.equal(codes[:, :frames], recorded(f"clip{n}.codes").long())


def test_codes_of_whole_frames_do_not_depend_on_the_mode():
    codec = load_codec(GOLDEN, device="cpu")
    assert torch.equal(codec.encode(wave("clip2560")[None]).codes[0], recorded("clip2560.codes").long())


@pytest.mark.parametrize("n", CLIPS)
def test_quantized_vectors_agree(codec, n):
    zq = codec.embed(recorded(f"clip{n}.codes").long()[None])[0]
    assert worst(zq, recorded(f"clip{n}.zq")) < TOLERANCE


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_agrees(activations, stage):
    theirs = recorded(f"stages80000.{stage}")
    assert worst(activations[stage][:, : theirs.shape[1]], theirs) < TOLERANCE


@pytest.mark.parametrize("n", CLIPS)
def test_decoded_audio_agrees(codec, n):
    audio = codec.decode(recorded(f"clip{n}.codes").long()[None]).audio[0]
    assert worst(audio, recorded(f"clip{n}.decoded")) < TOLERANCE


def test_decoded_audio_of_a_batch_agrees(codec):
    items = [recorded(f"clip{n}.codes").long() for n in CLIPS]
    lengths = torch.tensor([item.shape[1] for item in items])
    codes = torch.stack([F.pad(item, (0, int(lengths.max()) - item.shape[1])) for item in items])
    out = codec.decode(codes, lengths)
    for n, audio, samples in zip(CLIPS, out.audio, out.lengths.tolist(), strict=True):
        assert worst(audio[:samples], recorded(f"clip{n}.decoded")) < TOLERANCE


@pytest.mark.parametrize("overlap", [0, 10])
def test_long_audio_agrees(codec, overlap):
    codes = encode_long(codec, wave("long"), overlap)
    assert torch.equal(codes, recorded(f"long.codes_overlap{overlap}").long())
    audio = decode_long(codec, codes, overlap)
    assert worst(audio, recorded(f"long.decoded_overlap{overlap}")) < TOLERANCE
