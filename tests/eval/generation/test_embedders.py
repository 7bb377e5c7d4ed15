import json

import numpy as np
import pytest
import torch
from tests.embedding import panns_state, save_clap, save_mert, save_panns, save_vggish, tones, vggish_state
from torch.nn import functional as F

from xycodec.errors import AudioError, CheckpointError
from xycodec.eval.generation.choose import make_embedders
from xycodec.eval.generation.embedders.base import EMBEDDING, LOGITS
from xycodec.eval.generation.embedders.clap import Clap
from xycodec.eval.generation.embedders.log_mel_statistics import LogMelStatistics
from xycodec.eval.generation.embedders.mert import LAYER, Mert
from xycodec.eval.generation.embedders.panns import Cnn14, Panns
from xycodec.eval.generation.embedders.vggish import Vggish, VggishNetwork, log_mel_windows

PUBLISHED_WIDTHS = (64, 128, 256, 512, 1024, 2048)


def shapes(state):
    return {key: tuple(value.shape) for key, value in state.items()}


# ---- PANNs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "n_fft"), [(16_000, 512), (32_000, 1024)])
def test_cnn14_has_the_published_names_and_shapes(rate, n_fft):
    with torch.device("meta"):
        ours = shapes(Cnn14(n_fft, 64, PUBLISHED_WIDTHS, 2048, 527).state_dict())
    published = {"bn0.num_batches_tracked": (), "logmel_extractor.melW": (n_fft // 2 + 1, 64)}
    published |= {f"bn0.{part}": (64,) for part in ("weight", "bias", "running_mean", "running_var")}
    for number, (inputs, outputs) in enumerate(zip((1, *PUBLISHED_WIDTHS), PUBLISHED_WIDTHS, strict=False), 1):
        for place, channels in ((1, inputs), (2, outputs)):
            block = f"conv_block{number}"
            published[f"{block}.conv{place}.weight"] = (outputs, channels, 3, 3)
            published[f"{block}.bn{place}.num_batches_tracked"] = ()
            for part in ("weight", "bias", "running_mean", "running_var"):
                published[f"{block}.bn{place}.{part}"] = (outputs,)
    published |= {"fc1.weight": (2048, 2048), "fc1.bias": (2048,)}
    published |= {"fc_audioset.weight": (527, 2048), "fc_audioset.bias": (527,)}
    assert ours == published
    assert len(published) + 2 == 84  # and the two convolutions that are a Fourier transform
    assert set(panns_state(rate)) - set(published) == {
        f"spectrogram_extractor.stft.conv_{part}.weight" for part in ("real", "imag")
    }


@pytest.mark.parametrize("rate", [16_000, 32_000])
def test_cnn14_by_the_checkpoints_own_transform(tmp_path, rate):
    """The network again in functions, with the file's convolutions in the place of an FFT."""
    embedder = make_embedders(panns=save_panns(tmp_path / "panns.pth", rate=rate), device="cpu")[0]
    assert embedder.sample_rate == rate
    (clip,) = tones(1, seconds=2.5, rate=rate)
    state = panns_state(rate)

    def norm(x, name):
        parts = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts)

    size = 512 if rate == 16_000 else 1024
    padded = F.pad(torch.from_numpy(clip)[None, None], (size // 2, size // 2), mode="reflect")
    power = sum(
        F.conv1d(padded, state[f"spectrogram_extractor.stft.conv_{part}.weight"], stride=rate // 100).square()
        for part in ("real", "imag")
    )
    mels = 10 * (power.transpose(1, 2) @ state["logmel_extractor.melW"]).clamp_min(1e-10).log10()
    x = norm(mels.transpose(1, 2)[..., None], "bn0").permute(0, 3, 2, 1)
    for number in range(1, 7):
        for place in (1, 2):
            x = F.conv2d(x, state[f"conv_block{number}.conv{place}.weight"], padding=1)
            x = norm(x, f"conv_block{number}.bn{place}").relu()
        x = F.avg_pool2d(x, 2) if number < 6 else x
    x = x.mean(3)
    embedding = F.linear(x.max(2).values + x.mean(2), state["fc1.weight"], state["fc1.bias"]).relu()
    logits = F.linear(embedding, state["fc_audioset.weight"], state["fc_audioset.bias"])
    made = embedder(clip)
    # Sums of thousands in the transform, then six blocks: some 1e-6 of the largest value.
    for name, expected in ((EMBEDDING, embedding), (LOGITS, logits)):
        np.testing.assert_allclose(made[name], expected.numpy(), atol=1e-4 * float(expected.abs().max()))
    assert made[EMBEDDING].any()


def test_cnn14_fills_short_clips(tmp_path):
    embedder = Panns(save_panns(tmp_path / "panns.pth"), "cpu")
    short = tones(1, seconds=0.2)[0]
    filled = np.concatenate([short, np.zeros(32_000 - len(short), np.float32)])
    np.testing.assert_array_equal(embedder(short)[EMBEDDING], embedder(filled)[EMBEDDING])


def test_cnn14_refuses_other_files(tmp_path):
    state = panns_state()
    cases = {
        "it lacks 'logmel_extractor.melW'": {k: v for k, v in state.items() if "melW" not in k},
        "Missing key": {k: v for k, v in state.items() if k != "fc1.bias"},
        "Unexpected key": state | {"more": torch.zeros(1)},
        "size mismatch": state | {"bn0.weight": torch.zeros(3)},
        "its window has 256 samples": state | {"spectrogram_extractor.stft.conv_real.weight": torch.zeros(129, 1, 256)},
    }
    for complaint, changed in cases.items():
        torch.save({"model": changed}, tmp_path / "other.pth")
        with pytest.raises(CheckpointError, match=f"other.pth: not PANNs Cnn14 .*{complaint}"):
            Panns(tmp_path / "other.pth", "cpu")
    (tmp_path / "other.pth").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="holds no weights"):
        Panns(tmp_path / "other.pth", "cpu")
    with pytest.raises(CheckpointError, match="no such file"):
        Panns(tmp_path / "none.pth", "cpu")


# ---- VGGish ------------------------------------------------------------------------------------


def test_vggish_has_the_published_names_and_shapes():
    with torch.device("meta"):
        ours = VggishNetwork((64, 128, 256, 256, 512, 512), 4096, 128)
    with torch.device("meta"):
        published = {
            "features.0": (64, 1, 3, 3), "features.3": (128, 64, 3, 3), "features.6": (256, 128, 3, 3),
            "features.8": (256, 256, 3, 3), "features.11": (512, 256, 3, 3), "features.13": (512, 512, 3, 3),
            "embeddings.0": (4096, 12288), "embeddings.2": (4096, 4096), "embeddings.4": (128, 4096),
        }  # fmt: skip
    expected = {f"{name}.weight": shape for name, shape in published.items()}
    expected |= {f"{name}.bias": shape[:1] for name, shape in published.items()}
    assert shapes(ours.state_dict()) == expected


def test_vggish_hears_windows_of_96_frames(tmp_path):
    embedder = Vggish(save_vggish(tmp_path / "vggish.pth"), "cpu")
    clip = tones(1, seconds=2.5)[0]
    made = embedder(clip)[EMBEDDING]
    assert made.shape == (2, 5)
    # A window is of its own 0.96 s, and of the 15 ms by which its last frame reaches beyond.
    alone = embedder(clip[15_360 : 2 * 15_360 + 240])[EMBEDDING]
    np.testing.assert_allclose(made[1:], alone, atol=1e-4 * np.abs(alone).max())
    with pytest.raises(AudioError, match=r"under 0\.975 s"):
        embedder(clip[: 15_360 + 239])
    with pytest.raises(AudioError, match=r"under 0\.975 s"):
        embedder(clip[:100])


def test_vggish_log_mels_of_a_tone_and_of_silence():
    time = np.arange(16_000) / 16_000
    mels = log_mel_windows(np.sin(2 * np.pi * 1000 * time).astype(np.float32))
    assert mels.shape == (1, 96, 64)
    # 64 centres between 125 and 7500 Hz on HTK's scale: 1 kHz lies at band 19.5 of those counted from 0.
    assert set(mels[0].argmax(axis=1)) <= {19, 20}
    np.testing.assert_allclose(log_mel_windows(np.zeros(16_000, np.float32)), np.log(0.01), rtol=1e-6)


def test_vggish_refuses_other_files(tmp_path):
    state = vggish_state()
    cases = {
        "it lacks 'features.3.weight'": {k: v for k, v in state.items() if k != "features.3.weight"},
        "Unexpected key": state | {"embeddings.6.weight": torch.zeros(1)},
    }
    for complaint, changed in cases.items():
        torch.save(changed, tmp_path / "other.pth")
        with pytest.raises(CheckpointError, match=f"not VGGish in torchvggish's layout .*{complaint}"):
            Vggish(tmp_path / "other.pth", "cpu")
    torch.save(state | {"pproc.pca_means": torch.zeros(1)}, tmp_path / "other.pth")
    Vggish(tmp_path / "other.pth", "cpu")


# ---- MERT --------------------------------------------------------------------------------------


def test_mert_is_hubert_where_it_needs_no_code_of_its_own(tmp_path):
    folder, model = save_mert(tmp_path / "mert")
    embedder = Mert(str(folder), "cpu")
    assert embedder.sample_rate == 24_000
    (clip,) = tones(1, seconds=0.5, rate=24_000)
    normed = torch.from_numpy((clip - clip.mean()) / np.sqrt(clip.var() + 1e-7))[None]
    with torch.inference_mode():
        expected = model(normed, output_hidden_states=True).hidden_states[LAYER][0]
    made = embedder(clip)[EMBEDDING]
    assert made.shape == (37, 16)
    np.testing.assert_allclose(made, expected.numpy(), atol=1e-4)
    with pytest.raises(AudioError, match="the least that MERT hears"):
        embedder(clip[:300])


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"feature_extractor_cqt": True}, "feature_extractor_cqt needs the model's own code, which is never run"),
        ({"deepnorm": True}, "deepnorm needs the model's own code"),
        ({"attention_relax": 32.0}, "attention_relax needs the model's own code"),
        ({"model_type": "wavlm"}, "is a wavlm, choose MERT-v1-95M"),
        ({"num_hidden_layers": 4}, "has no layer 9"),
        ({"hidden_size": 32}, "gives no MERT"),
    ],
)
def test_mert_refuses_what_it_is_not(tmp_path, changes, complaint):
    folder, _ = save_mert(tmp_path / "mert", **changes)
    with pytest.raises(CheckpointError, match=complaint):
        Mert(str(folder), "cpu")


# ---- CLAP --------------------------------------------------------------------------------------


def test_clap_vectors_have_unit_length_and_are_transformers_own(clap):
    import transformers

    embedder = Clap(clap, "cpu")
    assert embedder.sample_rate == 48_000
    made = embedder.captions(["a dog barks", "rain"])
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, rtol=1e-5)
    # A caption does not depend on those beside it, so it is not padded.
    np.testing.assert_array_equal(embedder.captions(["rain"]), made[1:])
    model = transformers.ClapModel.from_pretrained(clap).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(clap)(["rain"], return_tensors="pt")
    with torch.inference_mode():
        hidden = model.text_model(**tokens).pooler_output
        plain = model.text_projection(hidden)[0].numpy()
    np.testing.assert_allclose(made[1], plain / np.linalg.norm(plain), atol=1e-5)


def test_clap_hears_the_middle_at_one_level(clap):
    embedder, level = Clap(clap, "cpu"), Clap(clap, "cpu", keep_level=True)
    (clip,) = tones(1, seconds=2, rate=48_000)
    heard = embedder(clip)[EMBEDDING]
    np.testing.assert_allclose(np.linalg.norm(heard, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(heard, embedder(clip)[EMBEDDING])
    np.testing.assert_array_equal(heard, embedder(clip[24_000:72_000])[EMBEDDING])
    np.testing.assert_allclose(heard, embedder(clip / 2)[EMBEDDING], atol=1e-5)
    assert np.abs(level(clip)[EMBEDDING] - level(clip / 100)[EMBEDDING]).max() > 1e-3
    assert np.isfinite(embedder(np.zeros(48_000, np.float32))[EMBEDDING]).all()


def test_clap_that_finds_all_captions_alike_is_refused(tmp_path, clap):
    one, two = Clap(clap, "cpu").captions(["a dog barks", "rain"])
    assert one @ two < 0.9
    with pytest.raises(CheckpointError, match=r"alike \(cosine 1\.000\), so that it tells no captions apart"):
        Clap(str(save_clap(tmp_path / "alike", alike=True)), "cpu")


# ---- statistics, and all of them ---------------------------------------------------------------


def test_log_mel_statistics_follow_the_level():
    embedder = LogMelStatistics()
    (clip,) = tones(1, seconds=2.2)
    made = embedder(clip)[EMBEDDING]
    assert made.shape == (2, 32)
    louder = embedder(3 * clip)[EMBEDDING]
    np.testing.assert_allclose((louder - made)[:, :16], np.log(3), atol=0.01)
    np.testing.assert_allclose((louder - made)[:, 16:], 0, atol=0.01)
    assert "no FAD" in embedder.about
    with pytest.raises(AudioError, match="the least that a window takes"):
        embedder(clip[:1024])


def test_what_is_asked_for_is_made(tmp_path, clap):
    folder, _ = save_mert(tmp_path / "mert")
    made = make_embedders(
        panns=save_panns(tmp_path / "p.pth"),
        vggish=save_vggish(tmp_path / "v.pth"),
        mert=str(folder),
        clap=clap,
        log_mel_statistics=True,
        device="cpu",
    )
    assert [one.name for one in made] == ["panns", "vggish", "mert", "clap", "log_mel_statistics"]
    assert len({one.weights for one in made}) == 5
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"layerdrop": 0.0}))
    assert Mert(str(folder), "cpu").weights != made[2].weights
    assert make_embedders() == []
