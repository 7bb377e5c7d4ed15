"""The bundled models give the codes that they gave when these files were written (version 0.1), bit for bit.

`recorded/MODEL.SAMPLE.xyc` was made by `xycodec encode SAMPLE.flac --model MODEL`; those of xy-mini were made anew when
its second model, with Whisper's tower, took the place of the first. A codec whose codes change makes every corpus that
was encoded with it worthless, so new files are no way to make a failing test pass.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

import xycodec
from xycodec import CodecFile, decode_long, encode_long, load_codec
from xycodec.io.audio import read_audio

ASSETS = Path(xycodec.__file__).parent / "assets"
RECORDED = Path(__file__).parent / "recorded"
SAMPLES = ("fox", "harbour", "numbers")


@pytest.fixture(scope="module", params=["xy-mini"])
def codec(request):
    return load_codec(request.param, device="cpu")


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_bundled_model_gives_the_recorded_codes(codec, sample):
    recorded = CodecFile.read(RECORDED / f"{codec.model_id}.{sample}.xyc")
    audio = read_audio(ASSETS / f"{sample}.flac", codec.input_sample_rate)
    codes = encode_long(codec, audio).numpy()
    np.testing.assert_array_equal(codes, recorded.codes)
    assert recorded.num_samples == len(audio)
    assert (recorded.model, recorded.codebook_size, recorded.hop_length) == (
        codec.model_id, codec.codebook_size, codec.hop_length,
    )  # fmt: skip


def test_recorded_codes_decode_to_as_many_samples_as_went_in(codec):
    recorded = CodecFile.read(RECORDED / f"{codec.model_id}.fox.xyc")
    decoded = decode_long(codec, torch.from_numpy(recorded.codes.astype(np.int64)), num_samples=recorded.num_samples)
    assert len(decoded) == recorded.num_samples
