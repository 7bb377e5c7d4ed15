"""Codes of two computations, and that those by different libraries agree but for near-ties."""

from pathlib import Path

import pytest
import torch
from tests.published_xcodec import tiny_config as tiny_xcodec
from tests.reference import tiny_config

import xycodec
from xycodec import load_codec
from xycodec.checkpoints.build import random_codec
from xycodec.io.audio import read_audio
from xycodec.models.agreement import CodeAgreement, compare_codes
from xycodec.models.presets import NAMED_CONFIGS
from xycodec.nn.deterministic.kernels import by_library, has_onednn
from xycodec.nn.nearest import nearest

ASSETS = Path(xycodec.__file__).parent / "assets"
needs_both = pytest.mark.skipif(
    not (has_onednn() and torch.backends.mkl.is_available()), reason="this torch has only one of MKL and oneDNN"
)


def speech(codec, seconds=None):
    """The bundled samples, cut to the codec's window."""
    most = round((seconds or 30) * codec.input_sample_rate)
    window = min(codec.window_frames * codec.hop_length, most)
    return [torch.from_numpy(read_audio(ASSETS / f"{name}.flac"))[:window] for name in ("fox", "harbour", "numbers")]


@pytest.fixture(scope="module", params=["xy", "x"])
def codec(request):
    return random_codec(tiny_config(window_frames=20) if request.param == "xy" else tiny_xcodec(window_frames=60))


@pytest.fixture(scope="module")
def audio(codec):
    return speech(codec)[0]


def test_equal_codes_agree(codec, audio):
    codes = codec.encode(audio[None]).codes[0]
    assert compare_codes(codec, audio, codes) == CodeAgreement(codes.numel(), 0, 0, 0)


def test_another_code_is_a_mistake_and_counts_once_a_frame(codec, audio):
    codes = codec.encode(audio[None]).codes[0].clone()
    codes[1:, 3] = (codes[1:, 3] + 1) % codec.codebook_size
    codes[-1, 5] = (codes[-1, 5] + 1) % codec.codebook_size
    found = compare_codes(codec, audio, codes)
    assert (found.different, found.near_ties, found.mistakes) == (codec.n_q, 0, 2)


def test_the_same_vector_twice_is_a_near_tie(codec, audio):
    codes = codec.encode(audio[None]).codes[0]
    twin, frame = (int(codes[0, 2]) + 1) % codec.codebook_size, 2
    before = codec.quantizer.codebook.clone()
    try:
        codec.quantizer.codebook[0, twin] = codec.quantizer.codebook[0, codes[0, frame]] * (1 + 1e-8)
        own = codec.encode(audio[None]).codes[0]
        other = own.clone()
        other[0, frame] = int(codes[0, frame]) if own[0, frame] == twin else twin
        assert compare_codes(codec, audio, other) == CodeAgreement(own.numel(), 1, 1, 0)
    finally:
        codec.quantizer.codebook.copy_(before)


def test_codes_of_another_shape_are_refused(codec, audio):
    codes = codec.encode(audio[None]).codes[0]
    with pytest.raises(ValueError, match="must have the shape"):
        compare_codes(codec, audio, codes[:, :-1])


def test_distances_are_those_of_the_quantizer(codec, audio):
    """What is compared is the quantizer's choice: without it, a difference could hide."""
    vectors = []
    hook = codec.quantizer.input_proj.register_forward_hook(lambda *call: vectors.append(call[-1]))
    codes = codec.encode(audio[None]).codes[0]
    hook.remove()
    assert torch.equal(nearest(vectors[0].flatten(0, 1), codec.quantizer.codebook[0]), codes[0])


def by_both(codec, clips):
    total = CodeAgreement(0, 0, 0, 0)
    for clip in clips:
        with by_library("mkl"):
            codes = codec.encode(clip[None]).codes[0]
        with by_library("onednn"):
            total += compare_codes(codec, clip, codes)
    return total


@needs_both
def test_the_bundled_model_has_the_same_codes_by_any_library():
    codec = load_codec("xy-mini", device="cpu")
    total = by_both(codec, speech(codec))
    print(f"xy-mini: {total}")
    assert total.codes > 1000
    assert total.mistakes == 0


@needs_both
@pytest.mark.long
@pytest.mark.parametrize("name", ["xy-tokenizer", "x-codec-hubert"])
def test_a_full_size_model_has_the_same_codes_by_any_library(name):
    codec = random_codec(NAMED_CONFIGS[name])
    total = by_both(codec, speech(codec, seconds=3))
    print(f"{name}: {total}")
    assert total.codes > 500
    assert total.mistakes == 0
