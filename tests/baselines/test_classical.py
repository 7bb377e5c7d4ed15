import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import soxr
import torch
from pystoi import stoi
from torch.nn.utils.rnn import pad_sequence

from xycodec.baselines.classical import CODEC2_MODES, Codec2
from xycodec.errors import XycodecError
from xycodec.models.longform import decode_long, encode_long

SPEECH = Path(__file__).parents[3] / "shared" / "data" / "speech"
MISSING = "c2enc is not installed: install Debian's package codec2"
HALF_BYTES = {"3200": 16, "2400": 12, "1600": 16, "1400": 14, "1300": 13, "1200": 12, "700c": 7}


def voice(seconds, seed=0):
    """A buzz of gliding pitch under three formants, in syllables."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * 8000)) / 8000
    pitch = 120 + 30 * np.sin(2 * np.pi * 0.7 * time + rng.uniform(0, 6))
    phase = 2 * np.pi * np.cumsum(pitch) / 8000
    harmonics = np.arange(1, 20)[:, None]
    centres = np.array([500, 1500, 2500]) + 200 * np.sin(2 * np.pi * 2 * time)[:, None]
    gains = np.exp(-(((harmonics[..., None] * pitch[:, None] - centres) / 200) ** 2)).sum(axis=-1)
    syllables = np.sin(2 * np.pi * 2.5 * time + rng.uniform(0, 6)).clip(0) ** 0.5
    return torch.from_numpy(0.1 * syllables * (gains * np.sin(harmonics * phase)).sum(axis=0)).float()


def codec_or_refusal(name):
    """The codec, or None after a look at the line that says what is missing."""
    if shutil.which("c2enc"):
        return Codec2(CODEC2_MODES[name]).eval()
    with pytest.raises(XycodecError, match=f"^{MISSING}$"):
        Codec2(CODEC2_MODES[name])
    return None


def spectra(audio):
    """Log spectra (n, bins) of 16 ms every millisecond, each bin's mean taken out."""
    frames = np.lib.stride_tricks.sliding_window_view(audio, 128)[::8] * np.hanning(128)
    log = np.log(np.abs(np.fft.rfft(frames))[:, 2:50] + 1e-3)
    return log - log.mean(axis=0)


def lateness(decoded, original, widest=25):
    """Milliseconds by which `decoded` is late, by the correlation of spectra summed over pairs."""
    sums = np.zeros(2 * widest + 1)
    for late, right in zip(decoded, original, strict=True):
        left, centre = spectra(late), spectra(right)[widest:-widest]
        scale = np.sqrt((left**2).sum() * (centre**2).sum())
        sums += [(left[lag : lag + len(centre)] * centre).sum() / scale for lag in range(2 * widest + 1)]
    return int(sums.argmax()) - widest


def test_a_program_that_is_missing_is_named_with_its_package(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(XycodecError, match=f"^{MISSING}$"):
        Codec2(CODEC2_MODES["1200"])


@pytest.mark.parametrize("name", CODEC2_MODES)
def test_codes_are_what_the_programs_write_and_read(name):
    codec = codec_or_refusal(name)
    if codec is None:
        return
    audio, mode = voice(1.234), codec.mode
    codes = codec.encode(audio[None]).codes
    lead = mode.hop_length - mode.delay
    pcm = np.rint(np.concatenate([np.zeros(lead), audio.numpy() * 32768.0, np.zeros(4 * 320)])).astype("<i2").tobytes()
    coded = subprocess.run(["c2enc", mode.name, "-", "-"], input=pcm, capture_output=True, check=True).stdout
    size = -(-mode.bits // 8)
    count = -(-len(audio) // mode.hop_length)
    kept = coded[size : size * (1 + count)]
    digits = "".join("".join(f"{code:x}" for code in frame) + "0" * (mode.bits % 8 // 4) for frame in codes[0].T)
    assert digits == kept.hex()

    decoded = codec.decode(codes).audio[0].numpy()
    out = subprocess.run(["c2dec", mode.name, "-", "-"], input=kept, capture_output=True, check=True).stdout
    np.testing.assert_array_equal(decoded * 32768, np.frombuffer(out, "<i2"))


@pytest.mark.parametrize(("name", "n_q"), HALF_BYTES.items())
def test_the_bitrate_is_the_one_in_the_name(name, n_q):
    codec = codec_or_refusal(name)
    if codec is None:
        return
    codes = encode_long(codec, voice(2.0))
    nominal = int(name.rstrip("c"))
    assert (codec.n_q, codec.codebook_size, codec.bitrate) == (n_q, 16, nominal)
    assert codec.payload_bits(codes) == 2 * nominal


@pytest.mark.parametrize("name", ["3200", "1200", "700c"])
def test_clips_keep_their_length_alone_and_in_a_batch(name, threads):
    codec = codec_or_refusal(name)
    if codec is None:
        return
    clips = [voice(seconds, seed) for seed, seconds in enumerate((0.5, 1.23, 0.000125, 0.0, 0.04))]
    threads(2)
    out = codec.encode(pad_sequence(clips, batch_first=True), torch.tensor([len(clip) for clip in clips]))
    audio = codec.decode(out.codes, out.lengths)
    for number, clip in enumerate(clips):
        alone = codec.encode(clip[None])
        assert alone.codes.shape[2] == out.lengths[number] == -(-len(clip) // codec.hop_length)
        assert torch.equal(alone.codes[0], out.codes[number, :, : out.lengths[number]])
        assert audio.lengths[number] == out.lengths[number] * codec.hop_length
        again = decode_long(codec, alone.codes[0], num_samples=len(clip))
        assert len(again) == len(clip)
        assert torch.equal(again, audio.audio[number, : len(clip)])


@pytest.mark.parametrize("name", CODEC2_MODES)
def test_decoded_syllables_lie_where_they_were(name):
    codec = codec_or_refusal(name)
    if codec is None:
        return
    clips = [voice(3.0, seed) for seed in range(2)]
    decoded = [decode_long(codec, encode_long(codec, clip), num_samples=len(clip)).numpy() for clip in clips]
    assert abs(lateness(decoded, [clip.numpy() for clip in clips])) <= 6  # of 20 or more without compensation


@pytest.mark.speech
@pytest.mark.skipif(not SPEECH.is_dir(), reason="the recordings are not at ../shared/data/speech")
@pytest.mark.parametrize("name", CODEC2_MODES)
def test_decoded_speech_is_neither_late_nor_early(name):
    codec = codec_or_refusal(name)
    if codec is None:
        return
    rows = [json.loads(line) for line in (SPEECH / "dev.jsonl").read_text().splitlines()]
    files = [SPEECH / row["audio"] for row in rows if "test-other" in row["audio"]][::22]
    clips = [soxr.resample(sf.read(file, stop=16_000 * 4, dtype="float32")[0], 16_000, 8000) for file in files]
    decoded = [decode_long(codec, encode_long(codec, clip), num_samples=len(clip)).numpy() for clip in clips]
    # 700C has a flat peak, which moves with the clips.
    slack = 24 if name == "700c" else 8
    # Correlations of spectra and of envelopes are flat, and lie up to 5 ms apart; this has one clear peak between.
    means = {
        lag: np.mean(
            [
                stoi(one[80:-80], late[80 + lag : len(late) - 80 + lag], 8000)
                for one, late in zip(clips, decoded, strict=True)
            ]
        )
        for lag in (-3 * slack, -slack, 0, slack, 3 * slack)
    }
    assert abs(max(means, key=means.get)) <= slack


def test_what_it_cannot_do_is_said_in_a_line():
    codec = codec_or_refusal("1200")
    if codec is None:
        return
    codes = codec.encode(voice(0.2)[None]).codes
    with pytest.raises(XycodecError, match=r"codec2-1200 cannot leave out layers, got n_q 4: choose a lower bitrate"):
        codec.encode(voice(0.2)[None], n_q=4)
    with pytest.raises(XycodecError, match="cannot leave out layers, got n_q 2"):
        codec.decode(codes[:, :2])
    with pytest.raises(XycodecError, match="codec2-1200 has no embeddings: choose a neural codec"):
        codec.embed(codes)


def test_a_program_that_fails_is_named(monkeypatch, tmp_path):
    for name in ("c2enc", "c2dec"):
        program = tmp_path / name
        program.write_text("#!/bin/sh\nexit 3\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    codec = Codec2(CODEC2_MODES["700c"])
    with pytest.raises(XycodecError, match="c2enc 700C ended with status 3: check its version"):
        codec.encode(torch.zeros(1, 800))
