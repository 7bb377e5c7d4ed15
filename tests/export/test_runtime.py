"""The runtime without torch: the library's codes and files, its windows, its errors, and its start."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from tests.exporting import differing, speech

import xycodec
from xycodec import decode_long
from xycodec.checkpoints.save import save_codec
from xycodec.errors import AudioError, BitstreamError, CheckpointError, XycodecError
from xycodec.export.runtime import OnnxCodec
from xycodec.io.xyc import CodecFile


@pytest.fixture(scope="module")
def pair(exports):
    """(the codec, the same in ONNX Runtime, its folder)."""
    codec, folder = exports("xy")
    return codec, OnnxCodec.load(folder, threads=1), folder


def test_clips_of_any_length_have_the_codecs_codes_and_audio(pair):
    codec, runtime, _ = pair
    clips = [speech(n).numpy() for n in (1, 9000, 2 * codec.window_samples + 777)]
    wanted, got = codec.encode(clips), runtime.encode(clips)
    assert got.codes.shape == tuple(wanted.codes.shape)
    assert np.array_equal(got.lengths, wanted.lengths)
    assert np.array_equal(got.num_samples, wanted.num_samples)
    for clip, item, frames in zip(clips[:2], got.codes, got.lengths, strict=False):
        differing(codec, speech(len(clip)), item[:, :frames])
    assert np.mean(got.codes == wanted.codes.numpy()) > 0.999  # of three windows, but for near-ties
    heard, audio = runtime.decode(got), codec.decode(got.codes, got.lengths).audio
    assert np.array_equal(heard.lengths, [len(clip) for clip in clips])
    for item, other, count in zip(heard.audio, audio.numpy(), heard.lengths, strict=True):
        np.testing.assert_allclose(item[:count], other[:count], atol=1e-4, rtol=0)


def test_audio_in_blocks_is_the_whole(pair):
    _, runtime, _ = pair
    clip = speech(600_000).numpy()
    whole = runtime.encode(clip, n_q=2).codes[0]
    assert np.array_equal(runtime.encode_long([clip[:5000], clip[5000:500_001], clip[500_001:]], n_q=2), whole)


def test_integers_and_no_samples(pair):
    _, runtime, _ = pair
    clip = (speech(4000).numpy() * 32768).astype(np.int16)
    assert np.array_equal(runtime.encode(clip).codes, runtime.encode(clip / np.float32(32768)).codes)
    assert runtime.encode(np.zeros(0, np.float32)).codes.shape == (1, runtime.n_q, 0)
    assert runtime.decode(np.zeros((2, 0), np.int64)).audio.shape == (1, 0)


def test_files_go_both_ways(pair, tmp_path):
    codec, runtime, _ = pair
    sf.write(tmp_path / "a.wav", speech(30_001).numpy(), 16_000)
    runtime.encode_file(tmp_path / "a.wav").write(tmp_path / "runtime.xyc")
    codec.encode_file(tmp_path / "a.wav").write(tmp_path / "torch.xyc")
    one, two = CodecFile.read(tmp_path / "runtime.xyc"), CodecFile.read(tmp_path / "torch.xyc")
    assert (one.model, one.num_samples, one.frames) == (two.model, two.num_samples, two.frames)
    np.testing.assert_allclose(runtime.decode_file(two), decode_long(codec, two.codes, None, 30_001), atol=1e-4, rtol=0)
    np.testing.assert_allclose(codec.decode_file(one), runtime.decode_file(one), atol=1e-4, rtol=0)
    runtime.decode_file(tmp_path / "torch.xyc", tmp_path / "b.wav")
    assert sf.info(tmp_path / "b.wav").frames == codec.num_output_samples(30_001)


def test_wrong_input_is_refused(pair):
    codec, runtime, _ = pair
    with pytest.raises(AudioError, match="holds NaN"):
        runtime.encode(np.full(100, np.nan, np.float32))
    with pytest.raises(AudioError, match="int64"):
        runtime.encode(np.zeros(100, np.int64))
    with pytest.raises(XycodecError, match=f"n_q must be an integer from 1 to {codec.n_q}"):
        runtime.encode(np.zeros(100, np.float32), n_q=codec.n_q + 1)
    with pytest.raises(XycodecError, match="no search"):
        runtime.encode_long([np.zeros(100, np.float32)], search=2)
    with pytest.raises(XycodecError, match="codes must lie in"):
        runtime.decode(np.full((1, 3), codec.codebook_size))
    other = CodecFile(np.zeros((1, 1), np.uint16), "other", codec.codebook_size, 16000, 16000, 1280, 1280)
    with pytest.raises(BitstreamError, match="from model 'other'"):
        runtime.decode_file(other)


def test_a_folder_that_is_no_codec_is_refused(pair, tmp_path):
    _, _, folder = pair
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        OnnxCodec.load(tmp_path)
    shutil.copytree(folder, tmp_path / "mixed")
    config = (tmp_path / "mixed" / "config.json").read_text()
    (tmp_path / "mixed" / "config.json").write_text(config.replace(json.loads(config)["checksum"], "0" * 16))
    with pytest.raises(CheckpointError, match="of another codec"):
        OnnxCodec.load(tmp_path / "mixed").decode(np.zeros((1, 2), np.int64))
    (tmp_path / "mixed" / "encoder.onnx").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"encoder.onnx: damaged"):
        OnnxCodec.load(tmp_path / "mixed").encode(np.zeros(100, np.float32))
    (tmp_path / "mixed" / "config.json").write_text(config.replace('"format_version": 1', '"format_version": 9'))
    with pytest.raises(CheckpointError, match="no codec exported for this version"):
        OnnxCodec.load(tmp_path / "mixed")


WITHOUT_TORCH = """
import sys
from xycodec.cli import app
try:
    app.main()
finally:
    found = {"torch", "transformers", "scipy", "matplotlib"} & set(sys.modules)
    assert not found, found
"""


def test_the_command_line_encodes_and_decodes_without_torch(pair, tmp_path):
    codec, _, folder = pair
    sf.write(tmp_path / "a.wav", speech(30_001).numpy(), 16_000)
    environment = os.environ | {"PYTHONPATH": str(Path(xycodec.__file__).parents[1])}

    def run(*arguments):
        command = [sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments), "--runtime", "onnx"]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    encoded = run("encode", "a.wav", "--model", folder, "-o", "a.xyc")
    assert encoded.returncode == 0, encoded.stderr
    decoded = run("decode", "a.xyc", "--model", folder, "-o", "b.wav")
    assert decoded.returncode == 0, decoded.stderr
    file = CodecFile.read(tmp_path / "a.xyc")
    differing(codec, speech_of(tmp_path / "a.wav"), file.codes)
    assert sf.info(tmp_path / "b.wav").frames == 30_001
    assert "already" in run("encode", "a.wav", "--model", folder, "-o", "a.xyc").stderr


@pytest.mark.long
def test_the_command_line_exports_what_it_then_runs(xycodec, pair, tmp_path):
    codec, _, _ = pair
    save_codec(codec, tmp_path / "tiny")
    code, out, err = xycodec("export-onnx", tmp_path / "tiny", tmp_path / "exported")
    assert code == 0, err
    assert "checked on" in out
    sf.write(tmp_path / "a.wav", speech(3000).numpy(), 16_000)
    options = ("--runtime", "onnx", "--model", tmp_path / "exported")
    assert xycodec("encode", tmp_path / "a.wav", *options)[0] == 0
    differing(codec, speech_of(tmp_path / "a.wav"), CodecFile.read(tmp_path / "a.xyc").codes)
    code, _, err = xycodec("export-onnx", tmp_path / "tiny", tmp_path / "exported")
    assert (code, "exists already" in err) == (1, True)


def speech_of(path):
    import torch

    return torch.from_numpy(sf.read(path, dtype="float32")[0])


def test_the_command_line_refuses_what_onnx_has_not(xycodec, pair, tmp_path):
    _, _, folder = pair
    sf.write(tmp_path / "a.wav", speech(3000).numpy(), 16_000)
    code, _, err = xycodec("encode", tmp_path / "a.wav", "--runtime", "onnx", "--model", folder, "--reference")
    assert code == 1
    assert "--runtime onnx computes in float32 on the CPU" in err
    code, _, err = xycodec("encode", tmp_path / "a.wav", "--runtime", "onnx")
    assert code == 1
    assert "has no config.json" in err
    code, _, err = xycodec("encode", tmp_path / "a.wav", "--runtime", "onnx", "--model", folder, "--search", 4)
    assert code == 1
    assert "no search" in err


def test_a_list_of_unequal_codes(pair):
    codec, runtime, _ = pair
    draw = np.random.default_rng(0)
    parts = [draw.integers(0, codec.codebook_size, (codec.n_q, frames)) for frames in (3, 5)]
    made = runtime.decode(parts)
    for part, audio, length in zip(parts, made.audio, made.lengths, strict=True):
        assert np.array_equal(audio[:length], runtime.decode(part).audio[0])
    assert made.lengths[0] < made.lengths[1]
    with pytest.raises(XycodecError, match="give a list of arrays"):
        runtime.decode([[[1, 2], [3]], [[1], [2]]])
