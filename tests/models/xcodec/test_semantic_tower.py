"""A Whisper-style tower in the place of a self-supervised model."""

import pytest
import torch
from tests.published_xcodec import tiny_config as x_config
from torch.nn import functional as F

import reference
from xycodec.checkpoints.build import random_codec
from xycodec.checkpoints.load import load_codec
from xycodec.checkpoints.save import save_codec
from xycodec.errors import ConfigError
from xycodec.io.config import parse_config
from xycodec.models.xcodec.config import SemanticTowerConfig, XCodecConfig
from xycodec.models.xcodec.semantic import SelfSupervisedModel, SemanticTower, frames_of
from xycodec.nn.mel import LogMel

SIZE = SemanticTowerConfig(kind="tower", d_model=20, layers=2, heads=2, ffn_dim=28, positions=50)


@pytest.fixture(scope="module")
def tower():
    return reference.randomise(SemanticTower(**SIZE.model_dump()), scale=0.8)


@pytest.fixture(scope="module")
def codec():
    return random_codec(x_config(semantic=SIZE, window_frames=50))


def noise(*shape):
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("samples", [320, 3200, 3200 + 79, 3200 + 80, 3519, 50 * 320])
def test_features_are_the_mean_of_all_normed_states(tower, samples):
    audio = noise(1, samples)
    features = tower(audio)
    rows = (samples + 240) // 320
    assert features.shape == (1, rows, 20)
    # Silence up to the end of the window changes nothing: what lies past a row's own frames is not seen.
    mel = LogMel(80, 16_000)(F.pad(audio, (0, 50 * 320 - samples)))[..., : 2 * rows + 2]
    encoder = tower.tower
    x = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mel)))).transpose(1, 2)[:, :rows]
    states = [x + encoder.positional_embedding[:rows]]
    for layer in encoder.layers:
        states.append(layer(states[-1]))
    normed = [(s - s.mean(-1, keepdim=True)) / (s.var(-1, correction=0, keepdim=True) + 1e-5).sqrt() for s in states]
    torch.testing.assert_close(features, sum(normed) / 3, atol=1e-5, rtol=1e-5)


def test_frames_are_as_many_as_huberts(tower):
    sizes = {"conv_dim": 4, "position_kernel": 4, "position_groups": 2}
    hubert = SelfSupervisedModel(kind="hubert", d_model=8, layers=1, heads=2, ffn_dim=8, **sizes)
    for samples in (400, 719, 720, 799, 800, 3199, 3200):
        assert len(hubert(noise(1, samples))[0]) == len(tower(noise(1, samples))[0]) == frames_of(samples)
    assert [frames_of(n) for n in (0, 79, 80, 399, 400)] == [0, 0, 1, 1, 2]


def test_it_is_frozen_and_in_eval_mode(tower):
    assert not any(p.requires_grad for p in tower.parameters())
    assert not any(part.training for part in tower.train().modules())


@pytest.mark.exact
@pytest.mark.parametrize("count", [1, 2])
def test_a_codec_with_one_computes_every_clip_as_if_alone(codec, threads, count):
    threads(count)
    lengths = [4000, 1, 2560, 50 * 320]
    audio = noise(4, max(lengths))
    batch = codec.encode(audio, torch.tensor(lengths))
    decoded = codec.decode(batch.codes, batch.lengths)
    for i, samples in enumerate(lengths):
        alone = codec.encode(audio[i : i + 1, :samples]).codes
        frames = alone.shape[2]
        assert frames == -(-samples // 320)
        assert torch.equal(batch.codes[i, :, :frames], alone[0])
        assert torch.equal(decoded.audio[i, : 320 * frames], codec.decode(alone).audio[0])
        assert codec.embed(alone, branch="semantic").shape == (1, 20, frames)


def test_it_travels_with_the_codec(codec, tmp_path):
    save_codec(codec, tmp_path / "codec")
    again = load_codec(tmp_path / "codec", device="cpu")
    assert again.config == codec.config
    assert torch.equal(again.encode(noise(1, 9000)).codes, codec.encode(noise(1, 9000)).codes)


def test_a_window_longer_than_the_tower_is_refused():
    with pytest.raises(ValueError, match="must not exceed the semantic tower's 50 positions"):
        x_config(semantic=SIZE, window_frames=51)
    wrong = x_config().model_dump() | {"semantic": SIZE.model_dump() | {"position": 3}}
    with pytest.raises(ConfigError, match=r"semantic\.position: unknown key, did you mean 'positions'"):
        parse_config(XCodecConfig, wrong, "x")
