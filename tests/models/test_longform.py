import weakref
from itertools import count, repeat

import numpy as np
import pytest
import torch
from torch import nn

from xycodec.checkpoints.build import random_codec
from xycodec.checkpoints.load import load_codec
from xycodec.errors import AudioError, XycodecError
from xycodec.models.base import Codec
from xycodec.models.longform import decode_blocks, decode_long, embed_long, encode_long
from xycodec.models.windows import BATCH
from xycodec.models.xy_tokenizer.config import CONFIGS

HOP, WINDOW = 16, 375  # a window of 375 frames at 12.5 a second, as the published models have
OVERLAPS = [0, 3, 7, 10, 29.9]


class Ruler(Codec):
    """Codes that tell where they were made: (place in the clip, frames to the window's left end, to its right).

    Its audio must hold, in every sample, that sample's place in the clip. Decoding gives one hop of samples a
    frame with the first layer's code.
    """

    def __init__(self, output_sample_rate=200):
        super().__init__(
            model_id="ruler",
            input_sample_rate=200,
            output_sample_rate=output_sample_rate,
            n_q=3,
            codebook_size=1 << 20,
            hop_length=HOP,
            window_frames=WINDOW,
        )
        self.weight = nn.Parameter(torch.zeros(1))
        self.calls = 0
        self.watch = lambda call, clips: None

    def _encode(self, clips, n_q, search):
        made = []
        for clip in clips:
            # The published rule keeps a frame that lacks less than an eighth.
            frames = -(-len(clip) // (HOP // 8)) // 8 if self.reference else -(-len(clip) // HOP)
            place = clip[::HOP][:frames].long() // HOP
            left = torch.arange(frames)
            made.append(torch.stack([place, left, frames - 1 - left])[:n_q])
        return made

    def _decode(self, codes):
        hop = self.num_output_samples(HOP)
        return [item[0].float().repeat_interleave(hop) for item in codes]

    def _embed(self, codes):
        return codes.float()

    def encode_windows(self, clips, n_q, search=1):
        self.calls += 1
        self.watch(self.calls, clips)
        return super().encode_windows(clips, n_q, search)


def ramp(samples):
    return torch.arange(samples, dtype=torch.float32)


def overlap_frames(overlap_s):
    return round(overlap_s * 12.5)


def lengths_around(overlap_s):
    """Sample counts just around windows and steps, where an index is most easily off by one."""
    step = WINDOW - overlap_frames(overlap_s)
    frames = {1, 2, step, WINDOW, WINDOW + 1, WINDOW + step, 2 * WINDOW, WINDOW + 3 * step, 3 * WINDOW + 2}
    if step > 1:
        frames |= {step - 1, step + 1, WINDOW - 1, WINDOW + step - 1, WINDOW + step + 1, 2 * step, 2 * step + 1}
    samples = {frame * HOP + extra for frame in frames for extra in (-HOP + 1, -1, 0, 1)}
    return sorted(n for n in samples if n > 0)


# where kept frames come from


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_every_kept_frame_has_context_on_both_sides(overlap):
    codec, shared = Ruler(), overlap_frames(overlap)
    for n in lengths_around(overlap):
        place, left, right = encode_long(codec, ramp(n), overlap)
        total = -(-n // HOP)
        assert place.tolist() == list(range(total)), n
        to_end = total - 1 - place
        assert (left >= torch.full_like(place, shared // 2).minimum(place)).all(), n
        assert (right >= torch.full_like(place, shared - shared // 2).minimum(to_end)).all(), n


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_the_published_rule_keeps_the_beginning_of_every_window(overlap):
    codec, step = Ruler(), WINDOW - overlap_frames(overlap)
    codec.reference = True
    for n in lengths_around(overlap):
        place, left, right = encode_long(codec, ramp(n), overlap)
        assert place.tolist() == list(range(n // HOP)), n
        start = place // step * step
        window = (n - start * HOP).clamp(max=WINDOW * HOP)
        frames = torch.ceil(window / (HOP / 8)).long() // 8
        assert torch.equal(left, place - start), n
        assert torch.equal(right, frames - 1 - left), n


def test_windows_lie_where_independent_arithmetic_puts_them():
    codec = small_codec()
    window, hop, overlap = codec.window_frames, codec.hop_length, 6
    step, left = window - overlap, overlap // 2
    audio = noise(3 * step * hop + window * hop - 700)
    total = -(-len(audio) // hop)
    expected, start = [], 0
    while True:
        part = codec.encode(audio[None, start * hop : (start + window) * hop]).codes[0]
        last = start + window >= total
        expected.append(part[:, left if start else 0 : None if last else left + step])
        if last:
            break
        start += step
    assert len(expected) == 4
    assert torch.equal(encode_long(codec, audio, overlap / 12.5), torch.cat(expected, dim=1))


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("reference", [False, True])
def test_decoding_keeps_every_frame_once_and_in_order(overlap, reference):
    codec = Ruler()
    codec.reference = reference
    step = WINDOW - overlap_frames(overlap)
    for frames in {1, step, step + 1, WINDOW, WINDOW + 1, WINDOW + step, WINDOW + step + 1, 3 * WINDOW + 1}:
        codes = torch.arange(frames).expand(2, frames)
        audio = decode_long(codec, codes, overlap)
        assert torch.equal(audio, codes[0].float().repeat_interleave(HOP)), frames


class Disagreeing(Ruler):
    """Each window decodes to a constant of its own: the number of its first frame."""

    def _decode(self, codes):
        return [torch.full((HOP * item.shape[1],), float(item[0, 0])) for item in codes]


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("frames", [WINDOW, WINDOW + 1, 3 * WINDOW + 1])
def test_windows_that_disagree_fade_over_one_frame(overlap, frames):
    shared = overlap_frames(overlap)
    step, left = WINDOW - shared, shared // 2
    expected = []
    for place in range(frames * HOP):
        frame = place // HOP
        # A window takes over `left` frames after its start; no window starts where the one before reaches the end.
        starts = range(0, max(1, frames - shared), step)
        now = max(start for start in starts if start == 0 or start + left <= frame)
        share = (place - (now + left) * HOP + 0.5) / HOP
        fades = shared > 0 and now > 0 and share < 1
        expected.append(now - step * (1 - share) if fades else now)
    audio = decode_long(Disagreeing(), torch.arange(frames).expand(2, frames), overlap)
    torch.testing.assert_close(audio, torch.tensor(expected, dtype=torch.float32))


def test_the_published_rule_cuts_where_windows_disagree():
    codec = Disagreeing()
    codec.reference = True
    audio = decode_long(codec, torch.arange(900).expand(2, 900), 10)
    assert torch.equal(audio, (torch.arange(900 * HOP) // HOP // 250 * 250).float())


def test_a_steady_tone_has_no_click_where_windows_meet():
    codec = load_codec("xy-mini", device="cpu")
    audio = 0.3 * torch.sin(2 * torch.pi * 180 * torch.arange(20 * 16000) / 16000)
    codes = encode_long(codec, audio)
    overlap = round(codec.window_frames / 3)
    step, left = codec.window_frames - overlap, overlap // 2
    seams = [frame * 1280 for frame in range(left + step, codes.shape[1] - left, step)]
    assert len(seams) == 4
    bend = decode_long(codec, codes).diff(n=2).abs()
    at = torch.tensor([bend[end - 2 : end + 1].max() for seam in seams for end in (seam, seam + 1280)])
    elsewhere = torch.ones(len(bend), dtype=torch.bool)
    for seam in [0, *seams, len(bend)]:
        elsewhere[max(0, seam - 400) : seam + 1280 + 400] = False
    assert at.max() <= bend[elsewhere].quantile(0.999)


# the whole and its blocks


def small_codec(**changes):
    tower = CONFIGS["xy-random"].acoustic_encoder.model_copy(update={"d_model": 32, "layers": 1, "ffn_dim": 32})
    config = CONFIGS["xy-random"].model_copy(
        update={
            "window_frames": 25,
            **dict.fromkeys(("semantic_encoder", "semantic_encoder_adapter", "acoustic_encoder"), tower),
            **dict.fromkeys(("pre_rvq_adapter", "post_rvq_adapter", "acoustic_decoder"), tower),
            **changes,
        }
    )
    return random_codec(config)


def noise(samples):
    return torch.randn(samples, generator=torch.Generator().manual_seed(samples)) * 0.1


def blocks(audio, size):
    return (part.numpy() for part in audio.split(size))


@pytest.mark.exact
@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("size", [97, 1280, 10_000, 32_000, 32_001, 200_000])
def test_blocks_of_any_size_give_the_codes_of_the_whole(size, reference):
    codec = small_codec()
    codec.reference = reference
    audio = noise(100_001)
    whole = encode_long(codec, audio, 0.5)
    assert whole.shape == (8, 100_001 // 1280 + (not reference))
    assert torch.equal(encode_long(codec, blocks(audio, size), 0.5), whole)
    assert torch.equal(encode_long(codec, audio.numpy(), 0.5), whole)


@pytest.mark.parametrize("reference", [False, True])
def test_empty_blocks_change_nothing(reference):
    codec, audio = Ruler(), ramp(400 * HOP + 5)
    codec.reference = reference
    parts = [part for block in blocks(audio, 1000) for part in (np.zeros(0, np.float32), block)]
    parts.append(np.zeros(0, np.float32))
    assert torch.equal(encode_long(codec, parts, 3), encode_long(codec, audio, 3))


@pytest.mark.parametrize("samples", [1, 1279, 1280, 20_000, 32_000])
def test_a_clip_within_a_window_is_encoded_whole(samples):
    codec, audio = small_codec(), noise(samples)
    alone = codec.encode(audio[None]).codes[0]
    assert torch.equal(encode_long(codec, audio, 1.5), alone)
    assert torch.equal(decode_long(codec, alone, 1.5), codec.decode(alone[None]).audio[0])


@pytest.mark.parametrize("n_q", [1, 5])
def test_the_first_layers_alone(n_q):
    codec, audio = small_codec(), noise(50_000)
    assert torch.equal(encode_long(codec, audio, 0.5, n_q=n_q), encode_long(codec, audio, 0.5)[:n_q])
    assert encode_long(codec, audio[:0], 0.5, n_q=n_q).shape == (n_q, 0)


@pytest.mark.parametrize("nothing", [torch.zeros(0), np.zeros(0, np.float32), [], [np.zeros(0, np.float32)]])
def test_nothing_gives_no_codes(nothing):
    codes = encode_long(Ruler(), nothing)
    assert codes.shape == (3, 0)
    assert codes.dtype == torch.int64


def test_read_only_blocks_are_taken_without_a_warning():
    audio = noise(5000).numpy()
    audio.flags.writeable = False
    codec = small_codec()
    assert encode_long(codec, audio, 0.5).shape == (8, 4)
    assert encode_long(codec, [audio], 0.5).shape == (8, 4)


# lengths of decoded audio


@pytest.mark.parametrize("rate", [16_000, 24_000, 32_000])
@pytest.mark.parametrize("samples", [1, 1279, 1280, 1281, 32_001, 64_000, 100_003])
def test_decoded_audio_lasts_exactly_as_long(rate, samples):
    codec = small_codec(output_sample_rate=rate)
    frames = -(-samples // 1280)
    codes = torch.randint(0, 1024, (8, frames), generator=torch.Generator().manual_seed(0))
    audio = decode_long(codec, codes, 0.5, samples)
    assert audio.shape == (-(-samples * rate // 16_000),)
    assert audio.dtype == torch.float32
    whole = decode_long(codec, codes, 0.5)
    assert whole.shape == (frames * 1280 * rate // 16_000,)
    assert torch.equal(audio, whole[: len(audio)])


@pytest.mark.exact
@pytest.mark.parametrize("reference", [False, True])
def test_blocks_joined_are_the_whole(reference):
    codec = small_codec(output_sample_rate=24_000)
    codec.reference = reference
    codes = torch.randint(0, 1024, (8, 88), generator=torch.Generator().manual_seed(1))
    samples = 88 * 1280 - 333
    pieces = list(decode_blocks(codec, codes, 0.5, samples))
    assert len(pieces) > 2
    assert all(piece.shape[0] <= 25 * 1920 for piece in pieces)
    assert torch.equal(torch.cat(pieces), decode_long(codec, codes, 0.5, samples))


def test_no_codes_give_no_audio():
    assert decode_long(Ruler(), torch.zeros(3, 0, dtype=torch.int64)).shape == (0,)
    assert decode_long(Ruler(), torch.zeros(3, 0, dtype=torch.int64), num_samples=0).shape == (0,)


@pytest.mark.parametrize("samples", [0, 1, HOP - 1, HOP, 700 * HOP, 700 * HOP + 1])
def test_encoding_and_decoding_gives_the_length_back(samples):
    codec = Ruler(output_sample_rate=300)
    codes = encode_long(codec, ramp(samples))
    assert decode_long(codec, codes, num_samples=samples).shape == (-(-samples * 3 // 2),)


# memory


class Stop(Exception):
    pass


@pytest.mark.parametrize("overlap", [0, 10, 29])
def test_an_endless_source_is_read_no_further_than_its_windows_reach(overlap):
    codec, size = Ruler(), 50 * HOP + 3
    step = WINDOW - overlap_frames(overlap)
    read, alive = 0, []

    def source():
        nonlocal read
        for i in count():
            block = np.arange(i * size, (i + 1) * size, dtype=np.float32)
            alive.append(weakref.ref(block))
            read += size
            assert read < 100 * WINDOW * HOP, "reads on without encoding"
            yield block
            del block

    def watch(call, clips):
        begun = call * BATCH - 1  # the index of the last window that this call encodes
        assert read <= begun * step * HOP + WINDOW * HOP + 1 + size
        held = sum(reference() is not None for reference in alive) * size
        assert held <= (BATCH + 1) * WINDOW * HOP + 2 * size
        assert len(clips) <= BATCH
        if call == 12:
            raise Stop

    codec.watch = watch
    with pytest.raises(Stop):
        encode_long(codec, source(), overlap)


def test_decoding_yields_before_it_is_done():
    codec = Ruler()
    calls = 0
    decode = codec._decode

    def counted(codes):
        nonlocal calls
        calls += 1
        return decode(codes)

    codec._decode = counted
    stream = decode_blocks(codec, torch.zeros(3, 100 * WINDOW, dtype=torch.int64), 0)
    next(stream)
    assert 1 <= calls <= BATCH
    assert sum(1 for _ in stream) == 99
    assert calls == 100


# what is refused


@pytest.mark.parametrize("overlap", [-1, -0.1, 30, 31, 1e9, float("inf"), float("nan")])
def test_an_overlap_that_leaves_no_step(overlap):
    for work in (
        lambda: encode_long(Ruler(), ramp(100), overlap),
        lambda: decode_long(Ruler(), torch.zeros(3, 2, dtype=torch.int64), overlap),
    ):
        with pytest.raises(XycodecError) as error:
            work()
        assert "overlap_s" in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "audio",
    [
        torch.zeros(1, 100),
        np.zeros((100, 2), np.float32),
        [np.zeros((2, 5), np.float32)],
        torch.zeros(()),
        torch.zeros(100, dtype=torch.int32),
        torch.full((100,), float("nan")),
        [np.zeros(10, np.float32), np.full(10, np.inf, np.float32)],
    ],
)
def test_audio_that_is_not_one_clip_of_numbers(audio):
    with pytest.raises(AudioError) as error:
        encode_long(Ruler(), audio)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("n_q", [0, -1, 4])
def test_layers_that_are_not_there(n_q):
    with pytest.raises(XycodecError):
        encode_long(Ruler(), ramp(100), n_q=n_q)


@pytest.mark.parametrize("samples", [-1, 0, HOP, 3 * HOP + 1, 10**9])
def test_a_length_that_does_not_belong_to_the_codes(samples):
    codes = torch.zeros(3, 3, dtype=torch.int64)
    with pytest.raises(XycodecError) as error:
        decode_long(Ruler(), codes, num_samples=samples)
    assert "3 frames" in str(error.value)


@pytest.mark.parametrize(
    "codes",
    [
        torch.zeros(1, 3, 5, dtype=torch.int64),
        torch.zeros(5, dtype=torch.int64),
        torch.zeros(4, 5, dtype=torch.int64),
        torch.zeros(0, 5, dtype=torch.int64),
        torch.full((3, 5), 1 << 20),
        torch.full((3, 5), -1),
        torch.zeros(3, 5),
    ],
)
def test_codes_that_are_none(codes):
    with pytest.raises(XycodecError):
        decode_long(Ruler(), codes)


def test_errors_come_with_the_window_that_holds_them():
    blocks_of_ones = [np.ones(1000, np.float32)] * 20
    blocks_of_ones[15] = np.full(1000, np.nan, np.float32)
    with pytest.raises(AudioError):
        encode_long(Ruler(), blocks_of_ones)
    with pytest.raises(ZeroDivisionError):  # a source's own error is not swallowed
        encode_long(Ruler(), (1 / 0 for _ in repeat(0, 3)))


@pytest.mark.parametrize("frames", [1, 25, 26, 60, 240])
def test_embeddings_of_long_codes_are_those_of_their_frames(frames):
    codec = small_codec()
    codes = torch.from_numpy(np.random.default_rng(0).integers(0, codec.codebook_size, (2, frames)))
    alone = [codec.embed(codes[None, :, i : i + 1])[0, :, 0] for i in range(frames)]
    torch.testing.assert_close(embed_long(codec, codes), torch.stack(alone, dim=1), rtol=0, atol=1e-5)
