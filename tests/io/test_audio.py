import io
import os
import re
import resource
import struct
import threading
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile as sf
import soxr

import xycodec.io.audio
from xycodec.errors import AudioError
from xycodec.io.audio import audio_extensions, audio_info, ignore, read_audio, stream_audio, write_audio

LOSSY = [("ogg", "VORBIS", 44100), ("ogg", "OPUS", 48000), ("mp3", "MPEG_LAYER_III", 44100)]
LOSSLESS = [("wav", "PCM_16", 44100), ("wav", "DOUBLE", 48000), ("flac", "PCM_16", 44100)]
PCM_16_STEP = 1 / 32768


def noise(seconds, rate=16000, channels=1, seed=0):
    """Noise in [-0.5, 0.5], (frames,) or (frames, channels), exact in 16 bits."""
    size = (round(seconds * rate), channels) if channels > 1 else round(seconds * rate)
    return np.random.default_rng(seed).integers(-16384, 16384, size) * PCM_16_STEP


def save(path, samples, rate=16000, subtype="PCM_16", **options):
    sf.write(path, samples, rate, subtype, **options)
    return path


def expected(samples, rate, target=16000):
    mono = samples.reshape(len(samples), -1).mean(axis=1).astype(np.float32)
    return mono if rate == target else soxr.resample(mono, rate, target, "HQ")


def one_line(error):
    message = str(error.value)
    assert message
    assert "\n" not in message
    return message


# reading


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000, 192000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_rate_and_channel_count_becomes_mono_at_the_asked_rate(tmp_path, rate, channels):
    samples = noise(1.5, rate, channels)
    audio = read_audio(save(tmp_path / "a.wav", samples, rate))
    assert audio.dtype == np.float32
    assert len(audio) == 24000
    np.testing.assert_array_equal(audio, expected(samples, rate))


@pytest.mark.parametrize(
    ("form", "subtype"),
    [
        ("WAV", "PCM_U8"),
        ("AIFF", "PCM_S8"),
        ("WAV", "PCM_16"),
        ("WAV", "PCM_24"),
        ("FLAC", "PCM_24"),
        ("WAV", "PCM_32"),
        ("WAV", "FLOAT"),
        ("W64", "FLOAT"),
        ("WAV", "DOUBLE"),
        ("CAF", "ALAC_16"),
        ("NIST", "PCM_16"),
        ("WAV", "ULAW"),
        ("WAV", "GSM610"),
    ],
)
def test_any_sample_format_is_read(tmp_path, form, subtype):
    samples = noise(1, 16000)
    path = save(tmp_path / "speech", samples, 16000, subtype, format=form)
    audio = read_audio(path)
    exact = subtype.startswith(("PCM", "FLOAT", "DOUBLE", "ALAC"))
    if exact:
        np.testing.assert_allclose(audio, samples, atol=1 / 128 if "8" in subtype else 0)
    assert len(audio) == 16000


@pytest.mark.parametrize(("suffix", "subtype", "rate"), LOSSLESS + LOSSY)
def test_result_does_not_depend_on_the_block_size(tmp_path, suffix, subtype, rate):
    path = save(tmp_path / f"a.{suffix}", noise(5.3, rate, 2), rate, subtype)
    for target in (16000, rate):
        whole = read_audio(path, target)
        assert len(whole) == round(5.3 * target)
        for block_s in (0.01304, 0.37, 2, 1e6):
            blocks = list(stream_audio(path, target, block_s))
            size = round(block_s * target)
            assert all(block.shape == (size,) and block.dtype == np.float32 for block in blocks[:-1])
            assert 0 < len(blocks[-1]) <= size
            np.testing.assert_array_equal(np.concatenate(blocks), whole)


@pytest.mark.parametrize(("suffix", "subtype", "rate"), LOSSLESS + LOSSY)
def test_a_stream_that_is_left_early_closes_what_it_opened(tmp_path, suffix, subtype, rate):
    path = save(tmp_path / f"a.{suffix}", noise(20, rate), rate, subtype)
    before = len(os.listdir("/dev/fd")), threading.active_count()
    stream = stream_audio(path, block_s=0.1)
    next(stream)
    stream.close()
    assert (len(os.listdir("/dev/fd")), threading.active_count()) == before


def test_blocks_are_the_callers_own(tmp_path):
    path = save(tmp_path / "a.wav", noise(1))
    whole = read_audio(path)
    changed = []
    for block in stream_audio(path, block_s=0.1):
        changed.append(block.copy())
        block[:] = 0
    np.testing.assert_array_equal(np.concatenate(changed), whole)


@pytest.mark.parametrize(("suffix", "subtype", "rate"), LOSSY)
def test_lossy_formats_keep_length_and_signal(tmp_path, suffix, subtype, rate):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    audio = read_audio(save(tmp_path / f"a.{suffix}", tone, rate, subtype), rate)
    assert audio.shape == tone.shape
    assert np.corrcoef(audio, tone)[0, 1] > 0.99


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 192000])
@pytest.mark.parametrize("frames", [1, 2, 7, 0.01])
def test_very_short_clips(tmp_path, rate, frames):
    count = frames if isinstance(frames, int) else round(frames * rate)
    audio = read_audio(save(tmp_path / "a.wav", noise(count / rate, rate), rate))
    assert len(audio) == max(1, round(count * 16000 / rate))
    assert np.isfinite(audio).all()


def test_a_clip_shorter_than_one_output_sample_keeps_its_first_sample(tmp_path):
    path = save(tmp_path / "a.wav", np.array([0.25, 0.5]), 192000)
    np.testing.assert_array_equal(read_audio(path), np.float32([0.25]))


def test_float_files_may_exceed_one(tmp_path):
    path = save(tmp_path / "a.wav", np.array([3.0, -2.0]), 16000, "FLOAT")
    np.testing.assert_array_equal(read_audio(path), np.float32([3, -2]))


def test_the_mean_of_huge_finite_channels_does_not_overflow(tmp_path):
    path = save(tmp_path / "a.wav", np.full((4, 2), 3e38, np.float32), 16000, "FLOAT")
    np.testing.assert_array_equal(read_audio(path, tell=ignore), np.full(4, 3e38, np.float32))


def streamed(path, **options):
    """Return the number of samples and the peak memory of streaming `path`."""
    tracemalloc.start()
    total = sum(map(len, stream_audio(path, **options, tell=ignore)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return total, peak


def test_a_header_that_claims_a_hundred_hertz_stays_bounded(tmp_path):
    path = save(tmp_path / "a.wav", noise(1000, 100), 100)
    total, peak = streamed(path, block_s=1)
    assert total == 16_000_000
    assert peak < 4 * total / 16  # a second at a time, of 1000


def test_many_channels_stay_bounded(tmp_path):
    path = save(tmp_path / "a.wav", np.zeros((10_000, 1000), np.int16), 16000)
    total, peak = streamed(path, block_s=1)
    assert total == 10_000
    assert peak < path.stat().st_size / 5


def test_memory_does_not_grow_with_the_file(tmp_path):
    def peak(minutes):
        path = save(tmp_path / f"{minutes}.wav", np.zeros(8000), 8000)
        frames = minutes * 60 * 8000
        with open(path, "r+b") as file:  # silence, as a hole in the file
            file.seek(40)
            file.write(struct.pack("<I", 2 * frames))
            file.truncate(44 + 2 * frames)
        total, memory = streamed(path)
        assert total == 2 * frames
        return memory

    assert peak(20) < 1.1 * peak(2)


# sources


class Pipe(io.RawIOBase):
    """A stream that cannot seek, delivering a few bytes at a time."""

    def __init__(self, data):
        self.data = io.BytesIO(data)

    def readable(self):
        return True

    def readinto(self, buffer):
        return self.data.readinto(memoryview(buffer)[:1000])


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3"])
def test_paths_objects_pipes_and_stdin_give_the_same(tmp_path, monkeypatch, suffix):
    subtype = "MPEG_LAYER_III" if suffix == "mp3" else "PCM_16"
    path = save(tmp_path / f"a.{suffix}", noise(1, 44100), 44100, subtype)
    data = path.read_bytes()
    whole = read_audio(path)
    np.testing.assert_array_equal(read_audio(str(path)), whole)
    np.testing.assert_array_equal(read_audio(io.BytesIO(data)), whole)
    np.testing.assert_array_equal(read_audio(io.BufferedReader(Pipe(data))), whole)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BufferedReader(Pipe(data))))
    np.testing.assert_array_equal(read_audio("-"), whole)


def test_a_file_object_is_read_from_where_it_stands(tmp_path):
    data = save(tmp_path / "a.wav", noise(0.01)).read_bytes()
    file = io.BytesIO(b"other" + data)
    file.seek(5)
    np.testing.assert_array_equal(read_audio(file), read_audio(tmp_path / "a.wav"))


def test_a_named_pipe(tmp_path):
    data = save(tmp_path / "a.wav", noise(1)).read_bytes()
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=[data])
    writer.start()
    np.testing.assert_array_equal(read_audio(tmp_path / "pipe"), read_audio(tmp_path / "a.wav"))
    writer.join()


def test_a_name_that_is_not_unicode(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.wav")
    write_audio(path, noise(0.1), 16000)
    assert len(read_audio(path)) == 1600
    Path(path).write_bytes(b"")
    with pytest.raises(AudioError) as error:
        read_audio(path)
    one_line(error).encode()


def test_audio_info(tmp_path):
    path = save(tmp_path / "a.flac", noise(2, 44100, 2), 44100, "PCM_24")
    info = audio_info(path)
    assert (info.sample_rate, info.channels, info.num_samples, info.duration) == (44100, 2, 88200, 2.0)
    assert (info.format, info.subtype) == ("FLAC", "FLAC")


def test_extensions():
    assert {
        ".wav",
        ".flac",
        ".ogg",
        ".oga",
        ".opus",
        ".mp3",
        ".aiff",
        ".sph",
        ".m4a",
        ".aac",
        ".webm",
        ".mp4",
    } <= audio_extensions()
    assert all(suffix == suffix.lower() and suffix[0] == "." for suffix in audio_extensions())


# files whose header is wrong about their length


def without_length(mp3):
    """Drop the first MPEG frame, which holds the length (MPEG-1 layer III, 44.1 kHz)."""
    kbits = [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320][mp3[2] >> 4]
    assert b"Xing" in mp3[:64] or b"Info" in mp3[:64]
    return mp3[144000 * kbits // 44100 + (mp3[2] >> 1 & 1) :]


def variable_mp3(path, samples):
    options = {"compression_level": 0.5, "bitrate_mode": "VARIABLE"}
    return save(path, samples, 44100, "MPEG_LAYER_III", **options).read_bytes()


def test_flac_of_unknown_length(tmp_path):
    path = save(tmp_path / "a.flac", noise(4, 44100), 44100)
    whole = read_audio(path)
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0  # the 36-bit number of samples in STREAMINFO; 0 means unknown
    data[22:26] = bytes(4)
    path.write_bytes(data)
    np.testing.assert_array_equal(read_audio(path), whole)
    assert audio_info(path).num_samples == 4 * 44100


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000])
def test_wav_written_to_a_pipe(tmp_path, size):
    path = save(tmp_path / "a.wav", noise(1))
    whole = read_audio(path)
    data = path.read_bytes()
    path.write_bytes(data[:40] + struct.pack("<I", size) + data[44:])
    np.testing.assert_array_equal(read_audio(path), whole)


def test_mp3_with_tags_or_no_length(tmp_path):
    path = tmp_path / "a.mp3"
    data = variable_mp3(path, noise(3, 44100))
    whole = read_audio(path)
    picture = b"ID3\3\0\0" + bytes([0, 0x10, 1, 2]) + np.random.default_rng(1).bytes((0x10 << 14) + 130)
    for before, after in [(picture, b""), (picture * 2, b""), (b"", b"TAG" + bytes(125)), (b"", bytes(5000))]:
        path.write_bytes(before + data + after)
        np.testing.assert_array_equal(read_audio(path), whole)


@pytest.mark.parametrize("tag", [b"", b"ID3\3\0\0\0\x20\0\0" + bytes(0x20 << 14)])
@pytest.mark.parametrize("loud_first", [True, False])
def test_mp3_of_unknown_length_is_read_to_its_end(tmp_path, loud_first, tag):
    """libsndfile guesses the length from the size of the first frame."""
    samples = np.concatenate([noise(4, 44100), np.zeros(8 * 44100)])[:: 1 if loud_first else -1]
    data = variable_mp3(tmp_path / "a.mp3", samples)
    whole = read_audio(tmp_path / "a.mp3", 44100)
    (tmp_path / "a.mp3").write_bytes(tag + without_length(data))
    assert abs(sf.info(tmp_path / "a.mp3").duration - 12) > 1
    audio = read_audio(tmp_path / "a.mp3", 44100)
    # Without the header the padding at both ends stays, and the signal is late by it.
    assert len(whole) < len(audio) < len(whole) + 4 * 1152
    assert audio_info(tmp_path / "a.mp3").num_samples == len(audio)
    late = np.argmax(np.correlate(audio[88200 : 88200 + 8000], whole[88200 : 88200 + 4000]))
    if loud_first:
        np.testing.assert_allclose(audio[88200 + late :][:4000], whole[88200:][:4000], atol=1e-4)


def test_mp3_of_unknown_length_that_is_cut_or_damaged(tmp_path):
    path = tmp_path / "a.mp3"
    data = without_length(variable_mp3(path, noise(12, 44100)))
    path.write_bytes(data)
    whole = read_audio(path, 44100)
    for length in range(len(data) // 2, len(data) // 2 + 3000, 211):  # within a frame, mostly
        path.write_bytes(data[:length])
        audio = read_audio(path, 44100)
        assert len(audio) > 0.496 * len(whole)
        sure = len(audio) - 1152  # the decoder makes something of a frame that is cut off
        np.testing.assert_array_equal(audio[:sure], whole[:sure])
    path.write_bytes(data[:40000] + np.random.default_rng(1).bytes(5000) + data[45000:])
    told = []
    audio = read_audio(path, 44100, tell=told.append)
    assert 0.9 * len(whole) < len(audio) < len(whole)
    assert len(told) == 1
    assert re.search(r"\d+ of \d+ packets could not be decoded and were left out, the first after \d\.\d\d s", told[0])


@pytest.mark.parametrize("frames", range(1000, 3000, 93))
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_mp3_that_ends_in_padding(tmp_path, rate, frames):
    """Some lengths leave a last frame of nothing but padding, which is not a second file."""
    path = save(tmp_path / "a.mp3", noise(frames / rate, rate), rate, "MPEG_LAYER_III")
    assert len(read_audio(path, rate)) == frames


def ogg_checksum(page):
    value = 0
    for byte in page:
        value ^= byte << 24
        for _ in range(8):
            value = value << 1 ^ (0x104C11DB7 if value & 0x80000000 else 0)
    return value


def test_ogg_that_ends_in_an_empty_page(tmp_path):
    """A writer that learns too late that a stream has ended closes it with a page that holds nothing."""
    path = save(tmp_path / "a.ogg", noise(1, 48000), 48000, "VORBIS")
    whole = read_audio(path)
    data = path.read_bytes()
    at = data.rfind(b"OggS")

    def page(flags, number, rest):
        header = data[at : at + 4] + bytes([0, flags]) + data[at + 6 : at + 18] + struct.pack("<I", number)
        checksum = ogg_checksum(header + bytes(4) + rest)
        return header + struct.pack("<I", checksum) + rest

    number = struct.unpack_from("<I", data, at + 18)[0]
    path.write_bytes(data[:at] + page(0, number, data[at + 26 :]) + page(4, number + 1, b"\0"))
    np.testing.assert_array_equal(read_audio(path), whole)


def test_mp3_whose_length_counts_one_frame_too_many(tmp_path):
    path = save(tmp_path / "a.mp3", noise(3, 44100), 44100, "MPEG_LAYER_III")
    data, whole = path.read_bytes(), read_audio(path)
    at = max(data.find(b"Xing"), data.find(b"Info")) + 8  # the number of frames
    for extra in (1, 9):
        count = struct.unpack_from(">I", data, at)[0] + extra
        path.write_bytes(data[:at] + struct.pack(">I", count) + data[at + 4 :])
        if extra == 1:
            np.testing.assert_allclose(read_audio(path)[: len(whole) - 100], whole[:-100], atol=1e-6)
        else:
            with pytest.raises(AudioError, match="breaks off"):
                read_audio(path)


@pytest.mark.parametrize(("suffix", "subtype"), [("flac", "PCM_16"), ("mp3", "MPEG_LAYER_III")])
def test_a_file_cut_off_is_refused(tmp_path, suffix, subtype):
    path = save(tmp_path / f"a.{suffix}", noise(3, 44100), 44100, subtype)
    data = path.read_bytes()
    for part in (0.1, 0.5, 0.9):
        path.write_bytes(data[: int(part * len(data))])
        with pytest.raises(AudioError, match=r"breaks off|damaged") as error:
            read_audio(path)
        assert "get a whole copy" in one_line(error)


@pytest.mark.parametrize(("suffix", "subtype", "rate"), LOSSLESS + LOSSY)
def test_a_file_cut_anywhere_gives_audio_or_one_line(tmp_path, suffix, subtype, rate):
    path = save(tmp_path / f"a.{suffix}", noise(0.5, rate), rate, subtype)
    data = path.read_bytes()
    for length in {*range(0, 200, 7), *range(200, len(data), len(data) // 40)}:
        path.write_bytes(data[:length])
        try:
            outcome = len(read_audio(path)) <= 8000
        except AudioError as error:
            outcome = "\n" not in str(error)
        assert outcome


# bad input


def bad_files():
    noise_bytes = np.random.default_rng(1).bytes(5000)
    wav = io.BytesIO()
    sf.write(wav, noise(0.1), 16000, "PCM_16", format="WAV")
    header = wav.getvalue()[:44]
    return {
        "empty.wav": (b"", "is empty"),
        "text.wav": (b"Dear reader,\n" * 100, "not audio"),
        "zeros.wav": (bytes(5000), "not audio"),
        "raw.raw": (noise_bytes, "ffmpeg -i"),
        "a.m4a": (b"\0\0\0\x20ftypM4A \0\0\0\0" + noise_bytes, "m4a.*ffmpeg -i"),
        "a.webm": (b"\x1aE\xdf\xa3" + noise_bytes, "webm.*ffmpeg -i"),
        "header.wav": (header[:40] + bytes(4), "holds no samples"),
        "half-header.wav": (header[:30], "not audio"),
        "no-channels.wav": (header[:22] + bytes(2) + header[24:] + noise_bytes, "not audio"),
        "no-rate.wav": (header[:24] + bytes(4) + header[28:] + noise_bytes, "not audio"),
    }


@pytest.mark.parametrize("name", bad_files())
def test_what_is_not_audio(tmp_path, name):
    data, message = bad_files()[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(AudioError, match=message) as error:
        read_audio(tmp_path / name)
    assert name in one_line(error)
    with pytest.raises(AudioError, match="file object"):
        read_audio(io.BytesIO(data))


@pytest.mark.parametrize(
    ("path", "message"),
    [("no.wav", "No such file"), (".", "directory"), ("a\0.wav", "null"), ("x" * 300, "too long")],
)
@pytest.mark.parametrize("reader", [read_audio, audio_info])
def test_what_cannot_be_opened(tmp_path, reader, path, message):
    with pytest.raises(AudioError, match=message) as error:
        reader(f"{tmp_path}/{path}")
    assert "check the path" in one_line(error)


def test_permission_denied(tmp_path):
    path = save(tmp_path / "a.wav", noise(0.1))
    path.chmod(0)
    if os.getuid() == 0:  # root may read anything: become nobody
        os.seteuid(65534)
    try:
        with pytest.raises(AudioError, match="Permission denied") as error:
            read_audio(path)
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
    assert "a.wav" in one_line(error)


def test_empty_stdin(monkeypatch):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO()))
    with pytest.raises(AudioError, match="stdin is empty"):
        read_audio("-")


@pytest.mark.parametrize(("sample_rate", "block_s"), [(0, 1), (-1, 1), (16000, 0), (16000, np.nan), (1, np.inf)])
def test_numbers_that_are_not_positive(tmp_path, sample_rate, block_s):
    with pytest.raises(AudioError, match="positive"):
        next(stream_audio(save(tmp_path / "a.wav", noise(0.1)), sample_rate, block_s))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("channels", [1, 2])
def test_nan_and_infinity_are_located(tmp_path, value, channels):
    samples = noise(10, 16000, channels)
    samples[152345::3000, ...] = value
    path = save(tmp_path / "a.wav", samples, 16000, "DOUBLE")
    with pytest.raises(AudioError, match=r"NaN or an infinity at 9\.5216 s") as error:
        read_audio(path)
    assert "a.wav" in one_line(error)


# writing


SUFFIXES = [".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".caf", ".w64"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_container_keeps_rate_length_and_signal(tmp_path, suffix):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(24000 * 3) / 24000)
    path = tmp_path / f"a{suffix.upper()}"
    write_audio(path, tone, 24000)
    info = audio_info(path)
    rate = 48000 if suffix == ".opus" else 24000  # Opus has no other
    assert (info.sample_rate, info.channels, info.num_samples) == (rate, 1, len(tone) * rate // 24000)
    assert np.corrcoef(read_audio(path, 24000), tone)[0, 1] > 0.99
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_file_does_not_depend_on_the_blocks(tmp_path, suffix):
    samples = noise(9, 16000).astype(np.float32)  # over two internal chunks

    def reused():
        buffer = np.empty(777, np.float32)
        for start in range(0, len(samples), 777):
            part = samples[start : start + 777]
            buffer[: len(part)] = part
            yield buffer[: len(part)]

    encoded = []
    for blocks in (samples, reused(), [samples[:5], samples[:0], samples[5:].astype(np.float64)]):
        write_audio(tmp_path / f"a{suffix}", blocks, 16000)
        encoded.append((tmp_path / f"a{suffix}").read_bytes())
    if suffix in (".ogg", ".opus"):  # an Ogg stream begins with a random serial number
        encoded = [read_audio(io.BytesIO(data)).tobytes() for data in encoded]
    assert encoded[0] == encoded[1] == encoded[2]


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".aiff"])
def test_sixteen_bits_are_exact_rounded_and_clipped(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    every = (np.arange(-32768, 32768) * PCM_16_STEP).astype(np.float32)
    write_audio(path, every, 16000)
    np.testing.assert_array_equal(read_audio(path), every)
    write_audio(path, np.array([1.0, 1.5, 1e30, -1.5, -1e300, 0.6 * PCM_16_STEP, -0.6 * PCM_16_STEP]), 16000)
    np.testing.assert_array_equal(sf.read(path, dtype="int16")[0], [32767] * 3 + [-32768] * 2 + [1, -1])


@pytest.mark.parametrize("suffix", [".ogg", ".opus", ".mp3"])
def test_lossy_writers_clip_too(tmp_path, suffix):
    tone = np.sin(2 * np.pi * 440 * np.arange(48000) / 48000)
    write_audio(tmp_path / f"loud{suffix}", 5 * tone, 48000)
    write_audio(tmp_path / f"clipped{suffix}", (5 * tone).clip(-1, 1), 48000)
    loud, clipped = (read_audio(tmp_path / f"{name}{suffix}", 48000) for name in ("loud", "clipped"))
    np.testing.assert_array_equal(loud, clipped)


def never():
    pytest.fail("asked for a block before checking the rest")
    yield


@pytest.mark.parametrize(
    ("name", "rate", "message"),
    [
        ("a.xyz", 16000, "use one of .*wav"),
        ("a", 16000, "use one of .*wav"),
        (".wav", 16000, "use one of .*wav"),
        ("", 16000, "use one of .*wav"),
        ("missing/a.wav", 16000, "missing' is not a folder: create it"),
        ("file/a.wav", 16000, "file' is not a folder"),
        ("folder.wav", 16000, "is a folder or a device"),
        ("a\0.wav", 16000, "null"),
        ("x" * 300 + ".wav", 16000, "too long"),
        ("a.opus", 44100, "8000, 12000, 16000, 24000"),
        ("a.mp3", 96000, "44100"),
        ("a.ogg", 400_000, "use 1 to 192000 Hz"),
        ("a.wav", 0, "use 1 to 192000 Hz"),
    ],
)
def test_nothing_is_computed_for_what_cannot_be_written(tmp_path, name, rate, message):
    (tmp_path / "file").touch()
    (tmp_path / "folder.wav").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(AudioError, match=message) as error:
        write_audio(f"{tmp_path}/{name}" if name else name, never(), rate)
    one_line(error)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_not_a_regular_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")  # as /dev/null would be
    with pytest.raises(AudioError, match="device"):
        write_audio(tmp_path / "pipe.wav", never(), 16000)
    assert (tmp_path / "pipe.wav").is_fifo()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("failure", [RuntimeError, OSError, KeyboardInterrupt, GeneratorExit])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, suffix, failure):
    def blocks():
        yield noise(5).astype(np.float32)
        raise failure("stop")

    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"old")
    with pytest.raises(failure, match="stop"):
        write_audio(path, blocks(), 16000)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (np.zeros(0, np.float32), "no samples"),
        ([], "no samples"),
        (np.zeros((2, 5), np.float32), r"float32 of shape \(2, 5\)"),
        (np.zeros(5, np.int16), "int16"),
        (np.zeros(5, np.complex64), "complex64"),
        ([0.5, 0.25], r"float64 of shape \(\)"),
        ([np.zeros(8000), np.array([0, np.nan])], r"NaN or an infinity at 0\.5001 s"),
        ([np.zeros(80000), np.array([0, np.inf])], r"NaN or an infinity at 5\.0001 s"),
    ],
)
@pytest.mark.parametrize("suffix", [".wav", ".flac", ".opus", ".mp3"])
def test_bad_blocks(tmp_path, suffix, blocks, message):
    with pytest.raises(AudioError, match=message) as error:
        write_audio(tmp_path / f"a{suffix}", blocks, 16000)
    assert f"a{suffix}" in one_line(error)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".opus", ".mp3"])
def test_a_full_disk(tmp_path, suffix):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(AudioError, match=r"cannot be written.*check .* the disk") as error:
            write_audio(tmp_path / f"a{suffix}", noise(60), 16000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    one_line(error)
    assert not os.listdir(tmp_path)


def test_wav_does_not_outgrow_its_32_bit_sizes(tmp_path, monkeypatch):
    monkeypatch.setitem(xycodec.io.audio._MAX_BYTES, "WAV", 100_000)
    write_audio(tmp_path / "a.wav", noise(3), 16000)
    with pytest.raises(AudioError, match=r"4 GiB of WAV: use \.flac or \.w64"):
        write_audio(tmp_path / "b.wav", noise(4), 16000)
    write_audio(tmp_path / "b.w64", noise(4), 16000)
    assert sorted(os.listdir(tmp_path)) == ["a.wav", "b.w64"]


def test_stdout_gets_a_whole_wav_or_nothing(monkeypatch):
    samples, out = noise(0.1).astype(np.float32), io.BytesIO()
    monkeypatch.setattr("sys.stdout", SimpleNamespace(buffer=io.BufferedWriter(out)))
    with pytest.raises(AudioError, match="stdout holds a NaN"):
        write_audio("-", [samples, np.array([np.nan])], 16000)
    assert out.getvalue() == b""
    write_audio("-", samples, 16000)
    np.testing.assert_array_equal(read_audio(io.BytesIO(out.getvalue())), samples)


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_the_umask_decides_the_mode(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_audio(tmp_path / "a.wav", noise(0.1), 16000)
    finally:
        os.umask(before)
    assert (tmp_path / "a.wav").stat().st_mode & 0o777 == 0o666 & ~umask
