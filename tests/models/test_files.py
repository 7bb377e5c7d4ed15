import dataclasses
import io
import os

import numpy as np
import pytest
import soundfile as sf
import torch

from published_layout import tiny_config
from xycodec.checkpoints.build import random_codec
from xycodec.errors import AudioError, BitstreamError, XycodecError
from xycodec.eval.metrics.quality import measure_quality
from xycodec.eval.roundtrip import roundtrip_file
from xycodec.io.audio import ignore, read_audio, write_audio
from xycodec.io.xyc import CodecFile
from xycodec.models.files import decode_file, encode_file
from xycodec.models.longform import decode_long, encode_long

OVERLAP = 0.5  # seconds; the window is 2 s


@pytest.fixture(scope="module")
def codec():
    return random_codec(tiny_config(output_sample_rate=24000))


@pytest.fixture
def reference():
    made = random_codec(tiny_config())
    made.reference = True
    return made


@pytest.fixture
def clip(tmp_path):
    """3.7 s and a part of a frame, 22.05 kHz, stereo."""
    audio = np.random.default_rng(0).standard_normal((81_599, 2)) * 0.1
    sf.write(tmp_path / "clip.flac", audio, 22_050)
    return str(tmp_path / "clip.flac")


def encoded(codec, clip, tmp_path, **options):
    target = str(tmp_path / "clip.xyc")
    encode_file(codec, clip, target, overlap_s=OVERLAP, **options)
    return CodecFile.read(target)


def test_the_code_file_holds_the_codes_and_the_length(codec, clip, tmp_path):
    file = encoded(codec, clip, tmp_path)
    audio = read_audio(clip)
    assert np.array_equal(file.codes, encode_long(codec, audio, OVERLAP).numpy())
    assert dataclasses.asdict(file) | {"codes": None} == {
        "codes": None,
        "model": "tiny",
        "codebook_size": 32,
        "sample_rate": 16_000,
        "output_sample_rate": 24_000,
        "hop_length": 1280,
        "num_samples": len(audio),
        "search": 1,
    }


def test_the_report_of_encoding(codec, clip, tmp_path):
    heard, target = [], str(tmp_path / "x.xyc")
    made = encode_file(codec, clip, target, overlap_s=OVERLAP, n_q=2, advance=heard.append)
    samples = len(read_audio(clip))
    assert (made.source, made.target, made.model) == (clip, target, "tiny")
    assert made.seconds == samples / 16_000 == pytest.approx(sum(heard))
    assert made.frames == -(-samples // 1280)
    assert made.bytes == os.path.getsize(target)
    assert made.bitrate == 12.5 * 2 * 5
    assert made.speed == pytest.approx(made.seconds / made.wall_seconds)
    assert CodecFile.read(target).n_q == 2


def test_decoding_gives_audio_of_exactly_the_length(codec, clip, tmp_path):
    file, target, heard = encoded(codec, clip, tmp_path), str(tmp_path / "out.wav"), []
    made = decode_file(codec, file, target, name="clip.xyc", overlap_s=OVERLAP, advance=heard.append)
    audio, rate = sf.read(target, dtype="float32")
    assert rate == 24_000
    assert len(audio) == -(-file.num_samples * 3 // 2)
    codes = torch.from_numpy(file.codes.astype(np.int64))
    expected = decode_long(codec, codes, OVERLAP, file.num_samples).numpy().clip(-1, 1)
    assert np.abs(audio - expected).max() < 1e-4
    assert made.source == "clip.xyc"
    assert made.seconds == file.duration
    assert sum(heard) == pytest.approx(file.duration, abs=1e-4)


@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3", "aiff"])
def test_the_targets_suffix_names_the_format(codec, clip, tmp_path, suffix):
    target = tmp_path / f"out.{suffix}"
    decode_file(codec, encoded(codec, clip, tmp_path), str(target), name="x", overlap_s=OVERLAP)
    assert sf.info(target).samplerate == 24_000


@pytest.mark.parametrize("samples", [1, 100, 1279, 1280, 1281, 40_000])
def test_a_round_trip_keeps_every_length(codec, tmp_path, samples):
    source = str(tmp_path / "in.wav")
    sf.write(source, np.random.default_rng(1).uniform(-0.1, 0.1, samples), 16_000)
    codes, target = str(tmp_path / "x.xyc"), str(tmp_path / "x.wav")
    made = roundtrip_file(codec, source, codes, target, overlap_s=OVERLAP)
    assert sf.info(target).frames == -(-samples * 3 // 2)
    assert CodecFile.read(codes).num_samples == samples
    assert made.quality == measure_quality(*([read_audio(path, tell=ignore)] for path in (target, source)))
    assert (made.encoded.target, made.decoded.target) == (codes, target)
    assert made.encoded.seconds == made.decoded.seconds == samples / 16_000


def test_the_published_rule_promises_whole_frames(reference, clip, tmp_path):
    file = encoded(reference, clip, tmp_path)
    assert file.num_samples == len(read_audio(clip)) // 1280 * 1280
    target = str(tmp_path / "out.wav")
    decode_file(reference, file, target, name="x", overlap_s=OVERLAP)
    assert sf.info(target).frames == file.num_samples


def test_a_clip_under_a_frame_has_no_codes_by_the_published_rule(reference, tmp_path):
    sf.write(tmp_path / "short.wav", np.zeros(1000), 16_000)
    file = encoded(reference, str(tmp_path / "short.wav"), tmp_path)
    assert (file.frames, file.num_samples) == (0, 0)
    with pytest.raises(AudioError):
        decode_file(reference, file, str(tmp_path / "out.wav"), name="x", overlap_s=OVERLAP)
    assert not (tmp_path / "out.wav").exists()


# codes of another model


def test_another_models_codes_are_refused_unless_asked_for(codec, clip, tmp_path):
    file = dataclasses.replace(encoded(codec, clip, tmp_path), model="sibling")
    target = tmp_path / "out.wav"
    with pytest.raises(BitstreamError) as error:
        decode_file(codec, file, str(target), name="clip.xyc", overlap_s=OVERLAP)
    assert str(error.value).startswith("clip.xyc: ")
    assert all(word in str(error.value) for word in ("'sibling'", "'tiny'", "--any-model"))
    assert not target.exists()
    decode_file(codec, file, str(target), name="clip.xyc", overlap_s=OVERLAP, any_model=True)
    assert target.exists()


@pytest.mark.parametrize("any_model", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        {"codebook_size": 64},
        {"hop_length": 640, "num_samples": 640 * 3},
        {"sample_rate": 8000},
        {"codes": np.zeros((4, 3), np.uint16)},
    ],
)
def test_codes_of_another_shape_never_pass(codec, change, any_model):
    fields = {
        "codes": np.zeros((3, 3), np.uint16), "model": "tiny", "codebook_size": 32, "sample_rate": 16_000,
        "output_sample_rate": 24_000, "hop_length": 1280, "num_samples": 3 * 1280,
    }  # fmt: skip
    codec.require_own(CodecFile(**fields), "x.xyc", any_model=any_model)
    with pytest.raises(BitstreamError) as error:
        codec.require_own(CodecFile(**{**fields, **change}), "x.xyc", any_model=any_model)
    assert str(error.value).startswith("x.xyc: ")


# failures leave nothing


@pytest.mark.parametrize("cause", ["not audio", "missing", "no folder", "layers"])
def test_nothing_is_left_when_encoding_fails(codec, clip, tmp_path, cause):
    source, target, options = clip, tmp_path / "made" / "x.xyc", {}
    if cause != "no folder":
        target.parent.mkdir()
    if cause == "not audio":
        source = str(tmp_path / "text.wav")
        (tmp_path / "text.wav").write_text("hello " * 100)
    elif cause == "missing":
        source = str(tmp_path / "missing.wav")
    elif cause == "layers":
        options["n_q"] = 4
    with pytest.raises(XycodecError) as error:
        encode_file(codec, source, str(target), overlap_s=OVERLAP, **options)
    assert "\n" not in str(error.value)
    assert not target.parent.exists() or not os.listdir(target.parent)


def test_nothing_is_left_when_decoding_fails_midway(codec, clip, tmp_path, monkeypatch):
    file, folder = encoded(codec, clip, tmp_path), tmp_path / "made"
    folder.mkdir()
    calls = 0

    def advance(seconds):
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode_file(codec, file, str(folder / "out.wav"), name="x", overlap_s=OVERLAP, advance=advance)
    assert os.listdir(folder) == []


def test_an_unknown_format_is_refused_before_the_work(codec, clip, tmp_path):
    file = encoded(codec, clip, tmp_path)
    with pytest.raises(AudioError, match="m4a"):
        decode_file(codec, file, str(tmp_path / "out.m4a"), name="x", advance=pytest.fail)


# the codec's own methods


def test_a_codec_encodes_a_file_and_decodes_it_again(codec, clip, tmp_path):
    file = codec.encode_file(clip, overlap_s=OVERLAP)
    assert file == encoded(codec, clip, tmp_path)
    assert codec.encode_file(clip, n_q=1, overlap_s=OVERLAP).n_q == 1
    audio = codec.decode_file(file, overlap_s=OVERLAP)
    assert len(audio) == -(-file.num_samples * 3 // 2)
    file.write(tmp_path / "clip.xyc")
    assert torch.equal(codec.decode_file(tmp_path / "clip.xyc", overlap_s=OVERLAP), audio)
    assert codec.decode_file(str(tmp_path / "clip.xyc"), tmp_path / "out.flac", overlap_s=OVERLAP) is None
    assert np.abs(read_audio(tmp_path / "out.flac", 24_000) - audio.numpy().clip(-1, 1)).max() < 1e-4


def test_codes_of_another_model_are_not_decoded(codec, clip, tmp_path):
    file = dataclasses.replace(codec.encode_file(clip), model="sibling")
    for given in (file, tmp_path / "sibling.xyc"):
        file.write(tmp_path / "sibling.xyc")
        with pytest.raises(BitstreamError, match="sibling"):
            codec.decode_file(given, tmp_path / "out.wav")
    assert not (tmp_path / "out.wav").exists()


@pytest.mark.parametrize("source", [None, 3, b"RIFF", ["a.wav"], io.StringIO("text")])
def test_files_that_are_none(codec, source):
    for work in (codec.encode_file, codec.decode_file):
        with pytest.raises(XycodecError) as error:
            work(source)
        assert "\n" not in str(error.value)


def test_a_file_of_codes(codec, clip):
    file, audio = codec.encode_file(clip), read_audio(clip)
    codes = codec.encode(audio).codes
    for given in (codes, codes[0], codes.numpy(), codes[0].numpy().astype(">u2"), codes.int()):
        assert CodecFile.from_codes(given, codec, num_samples=len(audio)) == file
    assert CodecFile.from_codes(codes, codec).num_samples == codes.shape[-1] * 1280
    refused = [
        None, "codes", codes[0, 0], codes.expand(2, -1, -1), codes.float(), codes.bool(), codes - 40, codes + 40,
        codes[0].tolist(), np.zeros((3, 2), object),
    ]  # fmt: skip
    for given in refused:
        with pytest.raises(BitstreamError) as error:
            CodecFile.from_codes(given, codec)
        assert "\n" not in str(error.value)
    with pytest.raises(BitstreamError, match="frames"):
        CodecFile.from_codes(codes, codec, num_samples=len(audio) + 1280)


def test_audio_is_written_from_any_array(tmp_path):
    samples = np.random.default_rng(0).uniform(-1, 1, 3000).astype(np.float32)
    tensor = torch.from_numpy(samples)
    wanted = None
    for audio in (samples, samples[None], tensor, tensor[None], tensor.double(), tensor.clone().requires_grad_(),
                  [tensor[:100], samples[100:]], iter(tensor.split(999))):  # fmt: skip
        write_audio(tmp_path / "a.wav", audio, 16_000)
        wanted = wanted or (tmp_path / "a.wav").read_bytes()
        assert (tmp_path / "a.wav").read_bytes() == wanted
    write_audio(tmp_path / "b.wav", tensor.bfloat16(), 16_000)
    assert len(read_audio(tmp_path / "b.wav")) == 3000
    for audio in (None, 3, "a.wav", tensor.int(), tensor.expand(2, -1), [tensor[None]], tensor[0], [0.1, 0.2]):
        with pytest.raises(AudioError) as error:
            write_audio(tmp_path / "c.wav", audio, 16_000)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "c.wav").exists()
