"""The C++ example: built where ONNX Runtime's headers are, and the same files as Python's runtime."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from tests.exporting import speech

from xycodec.export.runtime import OnnxCodec

SOURCE = Path(__file__).parents[2] / "examples" / "cpp"
ORT = os.environ.get("ORT")
"""A folder with include/onnxruntime_c_api.h and lib/libonnxruntime.so, as the releases of ONNX Runtime have them."""


def test_the_program_is_short():
    assert len((SOURCE / "xycodec.cpp").read_text().splitlines()) <= 300


@pytest.mark.long
@pytest.mark.skipif(ORT is None, reason="ORT names no folder with ONNX Runtime's headers and library")
@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")
def test_it_makes_the_files_that_python_makes(exports, tmp_path):
    codec, folder = exports("xy")
    for command in (["cmake", "-B", tmp_path, "-S", SOURCE, f"-DORT={ORT}"], ["cmake", "--build", tmp_path]):
        subprocess.run(command, check=True, capture_output=True)
    samples = codec.window_samples + 12_345
    sf.write(tmp_path / "a.wav", speech(samples).numpy(), 16_000)

    def run(*arguments):
        environment = os.environ | {"LD_LIBRARY_PATH": f"{ORT}/lib"}
        command = [tmp_path / "xycodec", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    encoded = run("encode", folder, "a.wav", "a.xyc")
    assert encoded.returncode == 0, encoded.stderr
    runtime = OnnxCodec.load(folder)
    wanted = runtime.encode_file(tmp_path / "a.wav")
    assert (tmp_path / "a.xyc").read_bytes() == wanted.to_bytes()
    assert run("decode", folder, "a.xyc", "b.wav").returncode == 0
    runtime.decode_file(wanted, tmp_path / "c.wav")
    heard, expected = (sf.read(tmp_path / name, dtype="int16")[0].astype(int) for name in ("b.wav", "c.wav"))
    assert len(heard) == samples
    assert np.abs(heard - expected).max() <= 1
    refused = run("decode", folder, "a.wav", "d.wav")
    assert (refused.returncode, refused.stderr) == (1, "error: not a .xyc file: it does not begin with XYC1\n")
