import numpy as np
import pytest
import torch
from tests.models.test_longform import Ruler, noise, ramp, small_codec

from published_xcodec import tiny_config as xcodec_config
from xycodec.checkpoints.build import random_codec
from xycodec.checkpoints.load import load_codec
from xycodec.errors import AudioError, XycodecError
from xycodec.models.longform import TENSORS, decode_long, encode_long
from xycodec.models.receptive_field import measure_receptive_field
from xycodec.models.streaming import StreamingDecoder, StreamingEncoder
from xycodec.models.windows import Cutter, Windows

HOP = 1280
SHORT = Windows(step=3, left=8, right=2)
BLOCKS = range(1, 65)


def streamed(stream, whole, size, **end):
    parts = [stream.push(block) for block in whole.split(size, dim=-1)]
    return torch.cat([*parts, stream.flush(**end)], dim=-1)


@pytest.fixture(scope="module")
def codec():
    return small_codec()


# streamed equals offline


@pytest.mark.exact
@pytest.mark.parametrize("windows", [None, SHORT], ids=["default", "short"])
def test_codes_and_audio_are_those_of_the_whole_for_every_block_size(codec, windows):
    audio = noise(70 * HOP - 333)
    codes = encode_long(codec, audio, windows=windows)
    heard = decode_long(codec, codes, num_samples=len(audio), windows=windows)
    encoder, decoder = StreamingEncoder(codec, windows), StreamingDecoder(codec, windows)
    computed = {}

    def remember(compute):
        """Equal windows give equal results; computing each 64 times would only take long."""

        def known(items, *settings):
            keys = [(item.dtype, item.shape, item.numpy().tobytes()) for item in items]
            for key, item in zip(keys, items, strict=True):
                if key not in computed:
                    (computed[key],) = compute([item], *settings)
            return [computed[key] for key in keys]

        return known

    encode, decode = codec.encode_windows, codec.decode_windows
    codec.encode_windows, codec.decode_windows = remember(encode), remember(decode)
    try:
        for frames in BLOCKS:
            assert torch.equal(streamed(encoder, audio, frames * HOP), codes), frames
            assert torch.equal(streamed(decoder, codes, frames, num_samples=len(audio)), heard), frames
    finally:
        codec.encode_windows, codec.decode_windows = encode, decode
    assert torch.equal(streamed(encoder, audio, 777), codes)


@pytest.mark.exact
@pytest.mark.parametrize("samples", [0, 1, HOP, 24 * HOP, 25 * HOP, 25 * HOP + 1, 42 * HOP, 43 * HOP - 1])
@pytest.mark.parametrize("windows", [None, SHORT, Windows(5)], ids=["default", "short", "apart"])
def test_any_length(codec, windows, samples):
    audio = noise(samples)
    codes = encode_long(codec, audio, windows=windows)
    assert torch.equal(streamed(StreamingEncoder(codec, windows), audio, 2000), codes)
    heard = decode_long(codec, codes, num_samples=samples, windows=windows)
    assert heard.shape == (samples,)
    if windows is None or windows.right or samples % HOP == 0:
        assert torch.equal(streamed(StreamingDecoder(codec, windows), codes, 2, num_samples=samples), heard)


def test_fewer_codebooks_and_int16(codec):
    audio = (noise(40 * HOP) * 32768).to(torch.int16)
    codes = encode_long(codec, audio, n_q=3)
    assert codes.shape[0] == 3
    assert torch.equal(streamed(StreamingEncoder(codec, n_q=3), audio, HOP), codes)


# where and when


@pytest.mark.parametrize("windows", [SHORT, Windows(1, 4, 1), Windows(7, 0, 3), Windows(4, 2, 6, first=9)])
@pytest.mark.parametrize("frames", [1, 2, 9, 10, 15, 16, 50])
def test_every_frame_comes_once_with_its_context_and_no_later_than_stated(windows, frames):
    codec = Ruler()
    encoder = StreamingEncoder(codec, windows)
    whole, when = [], []
    for now, block in enumerate(ramp(frames * 16).split(16), start=1):
        whole.append(encoder.push(block))
        when += [now] * whole[-1].shape[1]
    whole.append(encoder.flush())
    when += [frames] * whole[-1].shape[1]
    place, left, right = torch.cat(whole, dim=1)
    assert place.tolist() == list(range(frames))
    assert (left >= place.clamp(max=windows.left)).all()
    assert (right >= (frames - 1 - place).clamp(max=windows.right)).all()
    assert max(now - i for i, now in enumerate(when)) == min(windows.latency, frames)
    assert encoder.latency_s == windows.latency / 12.5


def test_a_window_is_computed_as_soon_as_it_is_whole_and_each_once():
    codec = Ruler()
    encoder = StreamingEncoder(codec)
    for _ in range(375):
        assert codec.calls == 0
        encoder.push(torch.zeros(16))
    assert codec.calls == 1
    encoder.flush()
    assert codec.calls == 1


def test_cost_is_how_often_a_frame_is_computed():
    windows, frames = Windows(2, 6, 2), 1000
    pieces = list(Cutter(windows, 1, TENSORS).pieces([torch.zeros(frames)]))
    assert sum(len(piece.items) for piece in pieces) / frames == pytest.approx(windows.cost, rel=0.02)


# state


@pytest.mark.exact
def test_a_state_is_kept_and_put_back(codec):
    audio, other = noise(60 * HOP), noise(50 * HOP)
    codes, encoder = encode_long(codec, audio, windows=SHORT), StreamingEncoder(codec, SHORT)
    first = encoder.push(audio[: 20 * HOP])
    kept = encoder.state
    encoder.reset()
    assert torch.equal(streamed(encoder, other, HOP), encode_long(codec, other, windows=SHORT))
    for encoder_again in (encoder, StreamingEncoder(codec, SHORT)):
        encoder_again.state = kept
        rest = [encoder_again.push(audio[20 * HOP :]), encoder_again.flush()]
        assert torch.equal(torch.cat([first, *rest], dim=1), codes)


@pytest.mark.exact
def test_a_block_may_be_overwritten_after_it_was_given(codec):
    audio, encoder = noise(30 * HOP), StreamingEncoder(codec, SHORT)
    buffer, parts = np.zeros(HOP, np.float32), []
    for block in audio.split(HOP):
        buffer[:] = block
        parts.append(encoder.push(buffer))
        buffer[:] = 1
    assert torch.equal(torch.cat([*parts, encoder.flush()], dim=1), encode_long(codec, audio, windows=SHORT))


def test_memory_does_not_grow(codec):
    encoder = StreamingEncoder(Ruler())
    for _ in range(100):
        encoder.push(torch.zeros(50 * 16))
        assert encoder.state.held.count <= 375 * 16
        assert sum(part.untyped_storage().nbytes() for part in encoder.state.held.parts) <= 4 * 16 * (2 * 375 + 50)


# seams


def test_windows_as_wide_as_the_decoder_hears_give_what_one_piece_gives():
    codec = random_codec(xcodec_config())
    field = measure_receptive_field(codec, "decode")
    assert field.bounded
    codes = torch.randint(
        codec.codebook_size, (codec.n_q, codec.window_frames), generator=torch.Generator().manual_seed(0)
    )
    whole = codec.decode_windows([codes])[0]
    level = whole.square().mean().sqrt()
    for step in (2, 30):
        decoder = StreamingDecoder(codec, Windows.around(field.left, field.right, step))
        # Shapes differ, so sums are rounded in another order, layer after layer.
        assert (streamed(decoder, codes, 5) - whole).abs().max() < 1e-4 * level
    narrow = StreamingDecoder(codec, Windows(7, 2, 2))
    assert (streamed(narrow, codes, 5) - whole).abs().max() > 1e-2 * level


@pytest.mark.parametrize("windows", [Windows(10, 30, 10), Windows(5, 25, 6)])
def test_seams_of_a_stream_do_not_click(windows):
    """The second difference at the seams of a steady tone is among those elsewhere."""
    codec = load_codec("xy-mini", device="cpu")
    audio = 0.3 * torch.sin(2 * torch.pi * 180 * torch.arange(6 * 16000) / 16000)
    codes = encode_long(codec, audio, windows=windows)
    bend = streamed(StreamingDecoder(codec, windows), codes, 1).diff(n=2).abs()
    seams = [frame * HOP for frame in range(windows.first, codes.shape[1] - windows.right, windows.step)]
    assert len(seams) > 4
    at = torch.tensor([bend[end - 2 : end + 1].max() for seam in seams for end in (seam, seam + HOP)])
    elsewhere = torch.ones(len(bend), dtype=torch.bool)
    for seam in [0, *seams, len(bend)]:
        elsewhere[max(0, seam - 300) : seam + HOP + 300] = False
    assert elsewhere.sum() > 5_000
    assert at.max() <= bend[elsewhere].quantile(0.999)


# receptive field


class Smeared(Ruler):
    """Audio of a frame that depends on two frames before it and three after."""

    def _decode(self, codes):
        padded = [torch.nn.functional.pad(item[0].double(), (2, 3)) for item in codes]
        return [sum(p[i : len(p) - 5 + i] for i in range(6)).float().repeat_interleave(16) for p in padded]


def test_what_a_decoder_hears_is_found():
    field = measure_receptive_field(Smeared(), "decode", frames=41)
    assert (field.left, field.right, field.bounded) == (2, 3, True)
    field = measure_receptive_field(Ruler(), "decode", frames=41)
    assert (field.left, field.right) == (0, 0)


def test_attention_hears_the_whole_window(codec):
    assert not measure_receptive_field(codec, "decode").bounded


def test_what_an_encoder_hears(codec):
    field = measure_receptive_field(codec, "encode")
    assert field.left + field.right > 5


# what is refused


@pytest.mark.parametrize("changes", [{"step": 0}, {"step": 1, "left": -1}, {"step": 1, "right": -1}])
def test_windows_that_are_none(changes):
    with pytest.raises(XycodecError, match="windows need"):
        Windows(**changes)


def test_what_cannot_be_streamed(codec):
    with pytest.raises(XycodecError, match="at most 25 at once"):
        StreamingEncoder(codec, Windows(20, 3, 3))
    with pytest.raises(XycodecError, match="leave overlap_s out"):
        encode_long(codec, noise(10), 0.5, windows=SHORT)
    with pytest.raises(XycodecError, match="n_q"):
        StreamingEncoder(codec, n_q=9)
    codec.reference = True
    try:
        for build in (StreamingEncoder, StreamingDecoder):
            with pytest.raises(XycodecError, match="length-true"):
                build(codec)
        with pytest.raises(XycodecError, match="published"):
            encode_long(codec, noise(10), windows=SHORT)
    finally:
        codec.reference = False


def test_bad_blocks_change_nothing(codec):
    encoder, decoder = StreamingEncoder(codec, SHORT), StreamingDecoder(codec, SHORT)
    encoder.push(noise(HOP))
    decoder.push(torch.zeros(2, 1, dtype=torch.int64))
    for stream, block, kind in [
        (encoder, torch.full((5,), float("nan")), AudioError),
        (encoder, torch.zeros(2, 5), AudioError),
        (decoder, torch.full((2, 1), 5000), XycodecError),
        (decoder, torch.zeros(3, 1, dtype=torch.int64), XycodecError),
    ]:
        before = stream.state
        with pytest.raises(kind) as error:
            stream.push(block)
        assert "\n" not in str(error.value)
        assert stream.state == before


@pytest.mark.parametrize("samples", [3 * HOP, 5 * HOP + 1, -1])
def test_a_length_that_is_not_of_the_codes(codec, samples):
    decoder = StreamingDecoder(codec, SHORT)
    given = decoder.push(torch.zeros(2, 5, dtype=torch.int64))
    with pytest.raises(XycodecError, match="5 frames do not belong"):
        decoder.flush(samples)
    assert len(given) + len(decoder.flush(5 * HOP)) == 5 * HOP
