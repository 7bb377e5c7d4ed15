"""`encode(search=K)` of both classes of codecs: greedy at 1, exact beside other clips, and told in files."""

import numpy as np
import pytest
import torch
from tests.published_xcodec import tiny_config as tiny_xcodec
from tests.reference import tiny_config

from xycodec import CodecFile
from xycodec.baselines.opus import Opus
from xycodec.checkpoints.build import random_codec
from xycodec.errors import XycodecError
from xycodec.io.audio import write_audio
from xycodec.models.files import encode_file
from xycodec.models.longform import encode_long
from xycodec.models.xy_tokenizer.model import XYTokenizer

WIDTH = 6
LENGTHS = (3000, 9000, 12_345, 40_000)


@pytest.fixture(scope="module", params=["xy", "x"])
def codec(request):
    config = tiny_config(window_frames=20) if request.param == "xy" else tiny_xcodec(window_frames=80)
    return random_codec(config)


def noise(samples, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype(np.float32))


@pytest.fixture(scope="module")
def clips():
    return [noise(samples, samples) for samples in LENGTHS]


def test_a_width_of_one_is_greedy(codec, clips):
    assert torch.equal(codec.encode(clips, search=1).codes, codec.encode(clips).codes)
    assert torch.equal(encode_long(codec, clips[3], search=1), encode_long(codec, clips[3]))


def test_the_codes_lie_nearer_to_the_latents(codec):
    clip = noise(12 * codec.hop_length)[None]
    with torch.no_grad():
        encoded = codec.encode_latents(clip, *([[clip.shape[1]]] if isinstance(codec, XYTokenizer) else []))
        target = codec.quantizer.input_proj(getattr(encoded, "latents", encoded))
    for n_q in (2, codec.n_q):
        found, greedy = (
            (target - codec.quantizer.sum_codebooks(codec.encode(clip, n_q=n_q, search=width).codes)).square().sum(2)
            for width in (WIDTH, 1)
        )
        assert (found <= greedy * (1 + 1e-5)).all()
        assert found.mean() < greedy.mean()


@pytest.mark.exact
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_batch_equals_single_clips_with_any_number_of_threads(codec, clips, threads, count):
    threads(count)
    together = codec.encode(clips, search=WIDTH)
    assert not torch.equal(together.codes, codec.encode(clips).codes)
    threads(1)
    for item, frames, clip in zip(together.codes, together.lengths.tolist(), clips, strict=True):
        assert torch.equal(item[:, :frames], codec.encode(clip, search=WIDTH).codes[0])
        assert torch.equal(item[:, :frames], encode_long(codec, [clip[:2000], clip[2000:]], search=WIDTH))


@pytest.mark.parametrize("width", [0, 257, 2.0, True, "4"])
def test_a_width_out_of_range_is_refused_in_a_line(codec, width):
    for call in (
        lambda: codec.encode(noise(2000), search=width),
        lambda: encode_long(codec, noise(2000), search=width),
    ):
        with pytest.raises(XycodecError, match="search must be an integer from 1 to 256"):
            call()


def test_a_codec_without_a_search_says_so():
    codec = Opus(6)
    assert torch.equal(codec.encode(noise(4000), search=1).codes, codec.encode(noise(4000)).codes)
    with pytest.raises(XycodecError, match=r"opus-6k has no search over its codes: leave search out"):
        codec.encode(noise(4000), search=4)


def test_files_and_reports_tell_the_width(codec, tmp_path):
    clip, target = str(tmp_path / "clip.wav"), str(tmp_path / "clip.xyc")
    write_audio(clip, noise(9000).numpy(), 16_000)
    report = encode_file(codec, clip, target, search=WIDTH)
    file = CodecFile.read(target)
    assert report.search == file.search == WIDTH
    assert file == codec.encode_file(clip, search=WIDTH) != codec.encode_file(clip)
    assert encode_file(codec, clip, str(tmp_path / "greedy.xyc")).search == 1
    assert codec.decode_file(file).shape[0] == codec.num_output_samples(9000)
