"""Whatever callers hand to a codec of either class: the codes of the plainest kind, or one clear line."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.published_xcodec import tiny_config as tiny_xcodec
from tests.reference import tiny_config

from xycodec.checkpoints.build import random_codec
from xycodec.errors import AudioError, XycodecError
from xycodec.models.longform import decode_long, embed_long, encode_long

WINDOW = 10  # frames


@pytest.fixture(scope="module", params=["xy", "x"])
def codec(request):
    config = tiny_config(window_frames=WINDOW) if request.param == "xy" else tiny_xcodec(window_frames=WINDOW)
    return random_codec(config)


def noise(samples, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype(np.float32))


def lengths_around_a_window(codec):
    window = codec.window_samples
    return [1, codec.hop_length + 1, window - 1, window, window + 1, 3 * window + 77]


# any length


def test_encode_gives_the_codes_of_encode_long(codec):
    for samples in lengths_around_a_window(codec):
        clip = noise(samples)
        out = codec.encode(clip)
        expected = encode_long(codec, clip)
        assert torch.equal(out.codes[0], expected)
        assert out.lengths.tolist() == [codec.num_frames(samples)]
        assert out.num_samples.tolist() == [samples]
        assert torch.equal(codec.decode(out.codes).audio[0], decode_long(codec, expected))
        assert torch.equal(codec.embed(out)[0], embed_long(codec, expected))


def test_what_encode_gave_decodes_to_as_many_samples(codec):
    for samples in (0, *lengths_around_a_window(codec)):
        out = codec.encode(noise(samples))
        back = codec.decode(out)
        assert back.audio.shape == (1, samples)
        assert back.lengths.tolist() == [samples]
        assert torch.equal(back.audio, codec.decode(out.codes, out.lengths).audio[:, :samples])


def test_a_list_of_clips_of_any_lengths(codec):
    clips = [noise(samples, samples) for samples in (0, *lengths_around_a_window(codec))]
    out = codec.encode([clips[0], *(clip.numpy() for clip in clips[1:])])
    assert out.num_samples.tolist() == [len(clip) for clip in clips]
    back, embedded = codec.decode(out), codec.embed(out)
    assert torch.equal(codec(clips).audio, back.audio)
    for i, clip in enumerate(clips):
        alone, frames = codec.encode(clip), int(out.lengths[i])
        assert torch.equal(out.codes[i, :, :frames], alone.codes[0])
        assert not out.codes[i, :, frames:].any()
        assert torch.equal(back.audio[i, : len(clip)], codec.decode(alone).audio[0])
        assert not back.audio[i, len(clip) :].any()
        assert torch.equal(embedded[i, :, :frames], codec.embed(alone)[0])
        assert not embedded[i, :, frames:].any()
    assert codec.encode([]).codes.shape == (0, codec.n_q, 0)
    padded = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True, padding_value=9.0)
    assert torch.equal(codec.encode(padded, [len(clip) for clip in clips]).codes, out.codes)


def test_the_semantic_branch_of_long_codes():
    codec = random_codec(tiny_xcodec(window_frames=WINDOW))
    codes = torch.randint(codec.codebook_size, (2, codec.n_q, 3 * WINDOW + 1))
    embedded = codec.embed(codes, [3 * WINDOW + 1, 4], branch="semantic")
    assert torch.equal(embedded[0], embed_long(codec, codes[0], branch="semantic"))
    assert torch.equal(embedded[1, :, :4], codec.embed(codes[1, :, :4], branch="semantic")[0])
    assert not embedded[1, :, 4:].any()


def test_the_published_rule_for_a_clip_within_a_window_and_a_longer_one(codec):
    codec.reference = True
    try:
        for samples in lengths_around_a_window(codec)[-2:]:
            out = codec.encode(noise(samples))
            assert torch.equal(out.codes[0], encode_long(codec, noise(samples)))
            frames = codec.reference_frames(samples)
            assert out.lengths.tolist() == [frames]
            assert codec.decode(out).lengths.tolist() == [min(samples, frames * codec.hop_length)]
    finally:
        codec.reference = False


# any kind of array


def kinds_of(clip):
    array = clip.numpy()
    frozen = array.copy()
    frozen.flags.writeable = False
    yield "(T,)", clip
    yield "(1, T)", clip[None]
    yield "(1, 1, T)", clip[None, None]
    yield "numpy", array
    yield "read-only", frozen
    yield "reversed twice", array[::-1].copy()[::-1]
    yield "every second", np.repeat(array, 2)[::2]
    yield "big-endian", array.astype(">f4")
    yield "double", clip.double()
    yield "long double", array.astype(np.longdouble)
    yield "list", [clip]
    yield "list of (1, T)", [array[None]]
    yield "tuple", (array,)
    yield "gradient", clip.clone().requires_grad_()


def test_kinds_of_audio(codec):
    clip = noise(5 * codec.hop_length + 3)
    expected = codec.encode(clip[None]).codes
    for name, audio in kinds_of(clip):
        assert torch.equal(codec.encode(audio).codes, expected), name
        if not isinstance(audio, list | tuple) and audio.ndim == 1:
            assert torch.equal(encode_long(codec, audio), expected[0]), name
    half = clip.bfloat16()
    for audio in (half, half.float(), half.float().numpy(), half.double()):
        assert torch.equal(codec.encode(audio).codes, codec.encode(half.float()).codes)
    assert torch.equal(codec.encode(clip.numpy().astype(np.float16)).codes, codec.encode(clip.half()).codes)


@pytest.mark.parametrize("kind", [np.int16, ">i2", torch.int16])
def test_int16_is_divided_by_32768(codec, kind):
    pcm = np.random.default_rng(0).integers(-32768, 32768, 3 * codec.hop_length)
    audio = torch.from_numpy(pcm).to(kind) if isinstance(kind, torch.dtype) else pcm.astype(kind)
    expected = codec.encode(pcm.astype(np.float32) / 32768).codes
    assert torch.equal(codec.encode(audio).codes, expected)
    assert torch.equal(encode_long(codec, [audio[:1000], audio[1000:]]), expected[0])


def test_audio_is_not_copied_where_it_need_not_be():
    from xycodec.models.inputs import read_clips

    batch = torch.zeros(2, 100)
    for audio in (batch, batch.numpy(), [batch[0], batch.numpy()[1]]):
        first, second = read_clips(audio, [50, 100])
        assert (first.data_ptr(), second.data_ptr()) == (batch[0].data_ptr(), batch[1].data_ptr())


@pytest.mark.parametrize("kind", [np.uint16, np.int32, ">i8", np.uint64, torch.uint8, torch.int32, torch.int64])
def test_codes_of_any_integer_type(codec, kind):
    codes = torch.randint(min(codec.codebook_size, 256), (codec.n_q, 2 * WINDOW))
    given = codes.to(kind) if isinstance(kind, torch.dtype) else codes.numpy().astype(kind)
    expected, embedded = codec.decode(codes[None]), codec.embed(codes[None])
    for shape in (given, given[None], [given]):
        assert torch.equal(codec.decode(shape).audio, expected.audio)
        assert torch.equal(codec.embed(shape), embedded)
    assert torch.equal(decode_long(codec, given), expected.audio[0])
    assert torch.equal(codec.decode([given, given[:, :3]]).audio[1, : 3 * codec.hop_length],
                       codec.decode(codes[:, :3]).audio[0])  # fmt: skip


@pytest.mark.parametrize(
    "lengths", [[1500, 0], (1500, 0), np.array([1500, 0], np.uint16), torch.tensor([1500, 0], dtype=torch.int32),
                [np.int64(1500), torch.tensor(0)]],
)  # fmt: skip
def test_kinds_of_lengths(codec, lengths):
    audio = noise(4000).view(2, 2000)
    expected = codec.encode(audio, torch.tensor([1500, 0]))
    assert torch.equal(codec.encode(audio, lengths).codes, expected.codes)
    assert torch.equal(codec.encode(list(audio), lengths).codes, expected.codes)


def test_kinds_of_layers_and_rates(codec):
    clip = noise(2000)
    for n_q in (2, np.int64(2), torch.tensor(2)):
        assert torch.equal(codec.encode(clip, n_q=n_q).codes, codec.encode(clip).codes[:, :2])
    for rate in (None, 16_000, 16_000.0, np.int32(16_000)):
        assert codec.encode(clip, sample_rate=rate).num_samples.tolist() == [2000]
    for rate in (8000, 44_100, "16000", True, [16_000], float("nan")):
        with pytest.raises(AudioError, match="takes 16000 Hz") as error:
            codec.encode(clip, sample_rate=rate)
        assert "\n" not in str(error.value)


# what is refused, in one line that mentions no window


SILENCE = np.zeros((2, 3000), np.float32)


@pytest.mark.parametrize(
    "audio",
    [
        "talk.wav", Path("talk.wav"), b"RIFF", None, 3, 0.5, {"array": SILENCE}, object(), iter([SILENCE[0]]),
        [0.0, 0.1], [[0.0, 0.1]], ["talk.wav"], [None], [SILENCE], [SILENCE[0], "talk.wav"],
        SILENCE.astype(bool), SILENCE.astype(np.int32), SILENCE.astype(np.uint8), SILENCE.astype(np.complex64),
        SILENCE.T, SILENCE.T[:, :1], SILENCE.astype(object), SILENCE.astype("U"),
        np.zeros((), np.float32), SILENCE[:, None, None],
        np.zeros((2, 2, 9), np.float32), np.float32(1), SILENCE[0].astype("M8[s]"),
        torch.zeros(9, dtype=torch.bool), torch.zeros(9, dtype=torch.complex64), torch.zeros(9, dtype=torch.int64),
        torch.zeros(3, 3).to_sparse(), torch.zeros(3, device="meta"),
        SILENCE + np.nan, [SILENCE[0], SILENCE[1] - np.inf], np.full(9, 1e300),
    ],
)  # fmt: skip
def test_audio_that_is_none(codec, audio):
    with pytest.raises(AudioError) as error:
        codec.encode(audio)
    assert "\n" not in str(error.value)
    assert "window" not in str(error.value)


def test_floats_of_the_size_of_integers(codec):
    quiet_talk = np.array([0, 200, -300], np.int16)
    with pytest.raises(AudioError, match=r"has samples of 300, but floats lie in .* divide int16 by 32768"):
        codec.encode(quiet_talk.astype(np.float32))
    codec.encode(quiet_talk)
    codec.encode(np.array([0, 3.0, -2.5], np.float32))  # loud, as float files can be


def test_a_file_of_codes_has_its_own_method(codec):
    with pytest.raises(XycodecError, match=r"not str; for a \.xyc file, use decode_file"):
        codec.decode("a.xyc")


@pytest.mark.parametrize("audio", ["talk.wav", b"RIFF", None, 3, {"array": SILENCE[0]}, [0.0], [SILENCE], ["talk.wav"]])
def test_a_clip_or_stream_that_is_none(codec, audio):
    with pytest.raises(AudioError) as error:
        encode_long(codec, audio)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "lengths",
    [
        [True, True], torch.tensor([True, False]), np.array([True, False]), [torch.tensor(True)] * 2, ["1", "2"], "12",
        [1.0, 2.0], [None, None], 5, object(), [1], [1, 2, 3], [-1, 2], [1, 3001], [[1], [2]], {1: 2},
        np.array([1j, 2]), [10**30, 1],
    ],
)  # fmt: skip
def test_lengths_that_are_none(codec, lengths):
    for call in (codec.encode, codec.decode, codec.embed):
        given = SILENCE if call == codec.encode else np.zeros((2, 2, 3000), np.int64)
        with pytest.raises(XycodecError, match="lengths must be 2 integers, each from 0 to its item") as error:
            call(given, lengths)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("n_q", [0, -1, 99, True, 2.0, "2", [2], torch.tensor(True), torch.tensor([1, 2])])
def test_layers_that_are_none(codec, n_q):
    for call in (lambda: codec.encode(SILENCE, n_q=n_q), lambda: encode_long(codec, SILENCE[0], n_q=n_q)):
        with pytest.raises(XycodecError, match="n_q must be an integer from 1 to"):
            call()


ZEROS = np.zeros((2, 5), np.int64)


@pytest.mark.parametrize(
    "codes",
    [
        "talk.xyc", None, 3, object(), {}, [], [1, 2], [[1, 2]], [ZEROS, "x"], [ZEROS, ZEROS[:1]], [ZEROS[0]], ZEROS[0],
        ZEROS.astype(float), ZEROS.astype(bool), ZEROS.astype(complex), ZEROS.astype(object), ZEROS.astype("U"),
        ZEROS[None, None], np.zeros((99, 5), int), np.zeros((0, 5), int), ZEROS - 1, ZEROS + (1 << 40),
        np.full((2, 5), 1 << 63, np.uint64), torch.zeros(2, 5), torch.zeros(2, 5, dtype=torch.bool),
        torch.zeros(2, 5, dtype=torch.int64, device="meta"),
    ],
)  # fmt: skip
def test_codes_that_are_none(codec, codes):
    for call in (codec.decode, codec.embed, lambda codes: decode_long(codec, codes), lambda c: embed_long(codec, c)):
        with pytest.raises(XycodecError) as error:
            call(codes)
        assert "\n" not in str(error.value)
        assert "window" not in str(error.value)


def test_the_encoders_output_has_its_own_lengths(codec):
    out = codec.encode(noise(3000))
    with pytest.raises(XycodecError, match="leave lengths out"):
        codec.decode(out, out.lengths)


@pytest.mark.parametrize("change", ["half", "double", "bfloat16"])
def test_another_type_is_refused_and_changes_nothing(codec, change):
    clip = noise(3000)
    before = codec.encode(clip).codes
    for work in (getattr(codec, change), lambda: codec.to(getattr(torch, change)), torch.nn.Sequential(codec).half):
        with pytest.raises(XycodecError, match="keeps float32") as error:
            work()
        assert "\n" not in str(error.value)
    assert torch.equal(codec.float().to("cpu").encode(clip).codes, before)
