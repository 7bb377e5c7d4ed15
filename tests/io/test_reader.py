"""Files as people have them: joined, tagged, cut, streamed, of lying headers. Each is made here."""

import io
import multiprocessing
import os
import struct
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile as sf
import soxr

from xycodec.errors import AudioError, AudioWarning
from xycodec.io.audio import audio_files, audio_info, ignore, open_audio, read_audio, stream_audio, write_audio

RATE = 44_100
CASES = Path(__file__).parents[3] / "shared" / "cases"


def voice(seconds, rate=RATE, seed=0):
    """Harmonics with an envelope and a little noise, whose place a correlation finds."""
    draw, times = np.random.default_rng(seed), np.arange(round(seconds * rate)) / rate
    sound = sum(0.3 / k * np.sin(2 * np.pi * 150 * k * times + draw.uniform(0, 6)) for k in range(1, 12))
    return (sound * (0.5 + 0.4 * np.sin(2 * np.pi * 1.3 * times)) + 0.02 * draw.standard_normal(len(times))) * 0.5


def by_sndfile(samples, rate, form, subtype):
    file = io.BytesIO()
    sf.write(file, samples, rate, subtype, format=form)
    return file.getvalue()


def by_ffmpeg(samples, rate, form, codec):
    file = io.BytesIO()
    with av.open(file, "w", format=form) as output:
        stream = output.add_stream(codec, rate=rate, layout="mono")
        resampler = av.AudioResampler(stream.format, "mono", rate)
        frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            output.mux(stream.encode(part))
        output.mux(stream.encode(None))
    return file.getvalue()


SNDFILE = {
    "wav": ("WAV", "PCM_16"), "aiff": ("AIFF", "PCM_16"), "au": ("AU", "PCM_16"), "caf": ("CAF", "PCM_16"),
    "w64": ("W64", "PCM_16"), "flac": ("FLAC", "PCM_16"), "ogg": ("OGG", "VORBIS"), "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}  # fmt: skip
FFMPEG = {
    "m4a": ("ipod", "aac"), "mp4": ("mp4", "aac"), "3gp": ("3gp", "aac"), "alac": ("ipod", "alac"),
    "webm": ("webm", "libopus"), "mka": ("matroska", "flac"), "mov": ("mov", "pcm_s16le"),
}  # fmt: skip
WITH_DELAY = {"aac": ("adts", "aac"), "ts": ("mpegts", "aac"), "mp3 in wav": ("wav", "libmp3lame")}
LOSSLESS = ("wav", "aiff", "au", "caf", "w64", "flac", "alac", "mka", "mov")


def made(kind, seconds=2.0, rate=RATE, seed=0):
    rate = 48_000 if kind in ("opus", "webm") else rate
    samples = voice(seconds, rate, seed)
    if kind in SNDFILE:
        return by_sndfile(samples, rate, *SNDFILE[kind]), samples
    return by_ffmpeg(samples, rate, *{**FFMPEG, **WITH_DELAY}[kind]), samples


def delay(audio, original):
    """Samples by which `audio` is late."""
    size = 1 << (len(audio) + len(original)).bit_length()
    product = np.fft.irfft(np.fft.rfft(audio, size) * np.conj(np.fft.rfft(original, size)))
    lag = int(np.argmax(product))
    return lag if lag < size // 2 else lag - size


def read(data, rate=None):
    """The audio at its own rate, and what was told."""
    told = []
    with open_audio(io.BytesIO(data)) as opened:
        rate = rate or opened.sample_rate
    audio = read_audio(io.BytesIO(data), rate, tell=told.append)
    return audio, told


ID3 = b"ID3\4\0\0" + bytes([0, 1, 2, 3]) + np.random.default_rng(1).bytes((1 << 14) + (2 << 7) + 3)
FOOTED = b"ID3\4\0\x10" + bytes([0, 0, 1, 0]) + bytes(128) + b"3DI\4\0\x10" + bytes([0, 0, 1, 0])
ID3V1 = b"TAG" + b"title".ljust(125)
APE = b"".join(
    struct.pack("<8sIIII8x", b"APETAGEX", 2000, 96, 1, flags) + body
    for flags, body in ((0xA0000000, b"\x08\0\0\0\0\0\0\0Title\0a song" + bytes(46)), (0x80000000, b""))
)

# what is read, how long it is, and where it begins


@pytest.mark.parametrize("kind", [*SNDFILE, *FFMPEG])
def test_every_container_has_its_length_and_no_delay(kind):
    data, samples = made(kind)
    audio, told = read(data)
    assert told == []
    assert len(audio) == len(samples) == audio_info(io.BytesIO(data)).num_samples
    assert delay(audio, samples) == 0
    if kind in LOSSLESS:
        assert np.abs(audio - samples).max() <= 2**-15


@pytest.mark.parametrize("kind", WITH_DELAY)
def test_streams_that_do_not_tell_their_delay_are_read_whole(kind):
    data, samples = made(kind)
    audio, _ = read(data)
    assert audio_info(io.BytesIO(data)).num_samples == len(audio)
    assert 0 <= delay(audio, samples) <= 1200
    assert len(audio) >= len(samples) + delay(audio, samples)


@pytest.mark.parametrize("kind", ["wav", "flac"])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_lossless_samples_are_bit_exact(kind, subtype):
    data = by_sndfile(voice(1.0), RATE, SNDFILE[kind][0], subtype)
    np.testing.assert_array_equal(read(data)[0], sf.read(io.BytesIO(data), dtype="float32")[0])


@pytest.mark.parametrize("name", ["a.wav", "a.raw", "a.mp3", "a.m3u8", "a"])
def test_the_content_counts_not_the_name(tmp_path, name):
    for kind in ("flac", "m4a"):
        data, samples = made(kind)
        (tmp_path / name).write_bytes(data)
        assert len(read_audio(tmp_path / name, RATE)) == len(samples)


@pytest.mark.parametrize(
    "text", ["#EXTM3U\n#EXTINF:2,\nsecret.wav\n", "ffconcat version 1.0\nfile secret.wav\n", "v=0\no=- 0 0 IN IP4\n"]
)
def test_a_file_does_not_choose_what_else_is_read(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    Path("secret.wav").write_bytes(made("wav")[0])
    for name in ("list.m3u8", "list.ffconcat", "list.sdp"):
        Path(name).write_text(text)
        with pytest.raises(AudioError, match="is not audio that can be read"):
            read_audio(name)


# files joined, with tags between them


# libsndfile takes what follows the samples of W64 for samples, so that no tag may lie between two.
JOINS = [
    pytest.param(kind, between, id=f"{kind} {name}")
    for kind in (*SNDFILE, "m4a", "webm", "mka")
    for name, between in (("", b""), ("id3v1", ID3V1), ("id3", ID3V1 + ID3), ("ape", APE + ID3V1))
    if kind != "w64" or not between
]


@pytest.mark.parametrize(("kind", "between"), JOINS)
def test_joined_files_are_read_one_after_another(kind, between):
    (one, first), (two, second) = made(kind, 1.5), made(kind, 1.0, seed=1)
    audio, _ = read(one + between + two)
    with open_audio(io.BytesIO(one + between + two)) as opened:
        assert opened.length() == len(audio)
    late = len(audio) - len(first) - len(second)
    assert 0 <= late <= (2 * 1152 if kind == "mp3" and between else 0)
    assert delay(audio[: len(first)], first) == 0
    assert delay(audio[-len(second) :], second) == 0


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3", "m4a"])
def test_a_rate_that_changes_where_files_are_joined(kind):
    (one, first), (two, second) = made(kind, 1.5, 16_000), made(kind, 1.0, RATE, seed=1)
    for rate in (16_000, RATE):
        audio, _ = read(one + two, rate)
        assert len(audio) == round(1.5 * rate) + rate
        assert delay(audio[: round(1.5 * rate)], soxr.resample(first, 16_000, rate)) == 0
        assert delay(audio[round(1.5 * rate) :], soxr.resample(second, RATE, rate)) == 0
    info = audio_info(io.BytesIO(one + two))
    assert (info.sample_rate, info.duration) == (16_000, 2.5)


def test_channels_that_change_where_files_are_joined():
    both = np.stack([voice(1.0), voice(1.0, seed=1)], axis=1)
    for form, subtype in (("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("MP3", "MPEG_LAYER_III")):
        one, two = by_sndfile(both, RATE, form, subtype), by_sndfile(voice(1.0), RATE, form, subtype)
        audio, _ = read(one + two)
        assert len(audio) == 2 * RATE
        assert np.abs(audio[1000 : RATE - 1000] - both.mean(axis=1)[1000 : RATE - 1000]).mean() < 0.01


def without_info(mp3):
    """An MP3 of 44.1 kHz without the frame that tells its length."""
    kbits = [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320][mp3[2] >> 4]
    return mp3[144_000 * kbits // RATE + (mp3[2] >> 1 & 1) :]


def test_a_stitched_mp3_whose_format_changes_inside():
    stereo = by_sndfile(np.stack([voice(1.5)] * 2, axis=1), RATE, "MP3", "MPEG_LAYER_III")
    mono = by_sndfile(voice(4.0), RATE, "MP3", "MPEG_LAYER_III")
    audio, _ = read(without_info(stereo) + without_info(mono))
    assert len(audio) / RATE == pytest.approx(5.5, abs=0.12)  # the padding of headerless streams stays
    info = audio_info(io.BytesIO(without_info(stereo) + without_info(mono)))
    assert info.num_samples == len(audio)


@pytest.mark.parametrize("follows", [b"\x55" * 3000, b"no chunk at all" * 100])
@pytest.mark.parametrize("kind", ["wav", "aiff", "au"])
def test_samples_after_the_stated_end_are_not_dropped_silently(kind, follows):
    data, _ = made(kind)
    with pytest.raises(AudioError, match=r"goes on after its first 2\.00 s"):
        read_audio(io.BytesIO(data + follows))
    with pytest.raises(AudioError, match="goes on after"):
        audio_info(io.BytesIO(data + follows))


@pytest.mark.parametrize(
    "follows", [b"LIST\x0c\0\0\0INFOISFT\0\0\0\0", ID3V1, APE, bytes(5000)], ids=["chunk", "id3v1", "ape", "zeros"]
)
def test_chunks_tags_and_padding_may_follow_samples(follows):
    data, samples = made("wav")
    audio, told = read(data + follows)
    assert len(audio) == len(samples)
    assert told == []


# lengths that lie


def test_flac_of_unknown_length():
    data, samples = made("flac")
    unknown = bytearray(data)
    unknown[21] &= 0xF0
    unknown[22:26] = bytes(4)
    np.testing.assert_array_equal(read(bytes(unknown))[0], read(data)[0])
    assert audio_info(io.BytesIO(bytes(unknown))).num_samples == len(samples)


def test_flac_that_is_longer_than_it_says():
    data, samples = made("flac")
    short = bytearray(data)
    short[22:26] = struct.pack(">I", 1000)
    assert len(read(bytes(short))[0]) == len(samples) == audio_info(io.BytesIO(bytes(short))).num_samples


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFF000, 500_000])
def test_wav_whose_size_is_wrong(size):
    data, samples = made("wav")
    assert len(read(data[:40] + struct.pack("<I", size) + data[44:])[0]) == len(samples)
    assert len(read(data[:4] + bytes(4) + data[8:40] + struct.pack("<I", size) + data[44:])[0]) == len(samples)


def test_au_whose_size_is_wrong():
    data, samples = made("au")
    for size in (0xFFFFFFFF, 500_000):
        assert len(read(data[:8] + struct.pack(">I", size) + data[12:])[0]) == len(samples)
    for size in (0, 100):
        with pytest.raises(AudioError, match=r"goes on after its first 0\.00 s"):
            read_audio(io.BytesIO(data[:8] + struct.pack(">I", size) + data[12:]))


@pytest.mark.parametrize(
    ("kind", "subtype"), [("wav", "PCM_16"), ("wav", "PCM_24"), ("aiff", "FLOAT"), ("au", "DOUBLE")]
)
@pytest.mark.parametrize("missing", [1, 2, 5, 11])
def test_pcm_that_breaks_off_within_a_sample_gives_those_before(kind, subtype, missing):
    samples = np.stack([voice(1.0), -voice(1.0)], axis=1)
    data = by_sndfile(samples, RATE, kind.upper(), subtype)
    whole = int(subtype.removeprefix("PCM_")) // 4 if subtype.startswith("PCM") else {"FLOAT": 8, "DOUBLE": 16}[subtype]
    left = len(samples) - -(-missing // whole)
    assert len(read(data[:-missing])[0]) == left == audio_info(io.BytesIO(data[:-missing])).num_samples


@pytest.mark.parametrize("kind", ["mp3", "flac", "m4a", "webm"])
@pytest.mark.parametrize("part", [0.4, 0.9])
def test_a_file_that_was_cut_off_is_refused(kind, part):
    data, _ = made(kind)
    with pytest.raises(AudioError, match=r"breaks off|damaged|not audio that can be read"):
        read_audio(io.BytesIO(data[: int(part * len(data))]))


def test_damage_in_flac_is_refused_in_whole_and_in_part():
    data = bytearray(made("flac", 4.0)[0])
    data[len(data) // 2] ^= 1
    with pytest.raises(AudioError, match=r"is damaged after \d\.\d\d s"):
        read_audio(io.BytesIO(bytes(data)))
    with open_audio(io.BytesIO(bytes(data))) as audio, pytest.raises(AudioError, match="is damaged"):
        audio.excerpt(RATE, 2 * RATE)


def test_packets_that_cannot_be_decoded_are_counted_and_told():
    data, samples = made("aac", 4.0)
    frames = [at for at in range(len(data) - 1) if data[at] == 0xFF and data[at + 1] & 0xF6 == 0xF0]
    broken = bytearray(data)
    broken[frames[50] + 7 : frames[50] + 60] = b"\xff" * 53
    audio, told = read(bytes(broken))
    assert len(audio) > len(samples) - 2048
    assert len(told) == 1
    assert " of " in told[0]
    assert "packets could not be decoded and were left out, the first after" in told[0]


# what lies before the audio


@pytest.mark.parametrize(
    "before", [bytes(215), bytes(3000), ID3, FOOTED, ID3 + ID3, APE, ID3 + bytes(1044)], ids=range(7)
)
def test_junk_and_tags_before_the_first_mp3_frame(before):
    data, samples = made("mp3", 4.0)
    audio, told = read(before + data)
    np.testing.assert_array_equal(audio, read(data)[0])
    assert len(audio) == len(samples)
    with open_audio(io.BytesIO(before + data)) as opened:
        assert opened.length() == len(samples)
    assert all("are no audio and were left out" in line for line in told)


def ogg_checksum(page):
    value = 0
    for byte in page:
        value ^= byte << 24
        for _ in range(8):
            value = value << 1 ^ (0x104C11DB7 if value & 0x80000000 else 0)
    return value


def later(ogg, samples):
    """An Ogg stream whose positions begin `samples` later, as one cut from a live stream has."""
    pages, place = [], 0
    while place < len(ogg):
        count = ogg[place + 26]
        end = place + 27 + count + sum(ogg[place + 27 : place + 27 + count])
        page = bytearray(ogg[place:end])
        (position,) = struct.unpack_from("<q", page, 6)
        if position > 0:
            struct.pack_into("<q", page, 6, position + samples)
        page[22:26] = bytes(4)
        struct.pack_into("<I", page, 22, ogg_checksum(bytes(page)))
        pages.append(bytes(page))
        place = end
    return b"".join(pages)


@pytest.mark.parametrize("samples", [312, 960, 48_000])
def test_opus_that_does_not_begin_at_0_has_its_pre_skip_taken_out(samples):
    data, original = made("opus")
    audio, _ = read(later(data, samples))
    assert delay(audio, original) == 0
    assert len(audio) == len(original)


# excerpts are what the whole has there


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "opus", "mp3", "m4a", "webm", "mka"])
def test_excerpts_are_the_whole_cut(kind):
    data, _ = made(kind, 12.0, 16_000)
    whole, _ = read(data)
    rate = audio_info(io.BytesIO(data)).sample_rate
    for start in (0.0, 0.5, 2.9, 3.0007, 6.12345, 11.9):
        with open_audio(io.BytesIO(data)) as audio:
            first = round(start * rate)
            np.testing.assert_array_equal(audio.excerpt(first, rate // 2), whole[first : first + rate // 2])


@pytest.mark.parametrize("samples", [1, 100, 4095, 4096, 4097, 8192, 9000])
@pytest.mark.parametrize("rate", [1000, 16_000])
def test_flac_of_a_few_frames(samples, rate):
    data = by_sndfile(voice(samples / rate, rate), rate, "FLAC", "PCM_16")
    with open_audio(io.BytesIO(data)) as audio:
        assert audio.length() == samples
        whole = audio.excerpt(0, samples)
        np.testing.assert_array_equal(whole, sf.read(io.BytesIO(data), dtype="float32")[0])
        for first in (samples // 2, samples - 1, samples):
            np.testing.assert_array_equal(audio.excerpt(first, 1000), whole[first : first + 1000])


def test_excerpts_of_joined_files():
    data = made("mp3", 3.0)[0] + made("mp3", 2.0, 16_000, 1)[0]
    whole, _ = read(data)
    for start in (0.0, 2.5, 3.2, 4.8):
        with open_audio(io.BytesIO(data)) as audio:
            first = round(start * RATE)
            np.testing.assert_array_equal(audio.excerpt(first, RATE), whole[first : first + RATE])


def test_one_file_gives_excerpts_again_and_again():
    data, _ = made("flac", 6.0)
    whole, _ = read(data)
    with open_audio(io.BytesIO(data)) as audio:
        for first in (200_000, 0, 100_000):
            np.testing.assert_array_equal(audio.excerpt(first, 1000), whole[first : first + 1000])
        assert audio.length() == len(whole)


# levels


@pytest.mark.parametrize(("scale", "says"), [(32768, r"\+8\d dB"), (0.001, r"very quiet.* -\d\d dB"), (0, "-inf dB")])
def test_an_odd_level_is_told(tmp_path, scale, says):
    path = tmp_path / "a.wav"
    sf.write(path, scale * voice(1.0), RATE, "FLOAT")
    with pytest.warns(AudioWarning, match=says):
        read_audio(path)
    told = []
    list(stream_audio(path, tell=told.append))
    assert len(told) == 1
    assert str(path) in told[0]


def test_a_usual_level_is_not(tmp_path):
    for scale in (0.05, 1, 3):
        sf.write(tmp_path / "a.wav", scale * voice(1.0), RATE, "FLOAT")
        read_audio(tmp_path / "a.wav")


# processes


def test_a_process_that_forks_does_not_stop_the_stream(tmp_path):
    for kind in ("mp3", "flac", "m4a", "wav"):
        path = tmp_path / f"a.{kind}"
        path.write_bytes(made(kind, 20.0, 16_000)[0])
        stream = stream_audio(path, block_s=1.0)
        next(stream)
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
        child.start()
        begin = time.perf_counter()
        try:
            assert sum(map(len, stream)) == 19 * 16_000
            assert time.perf_counter() - begin < 30
        finally:
            child.kill()
            child.join()


def test_nothing_is_written_to_the_terminal(capfd):
    data, _ = made("mp3", 3.0)
    flac, _ = made("flac")
    for odd in (data + bytes(9000), data[:3000] + data[9000:], data + APE * 40 + data, flac[:9000], b"\xff\xfb" * 999):
        try:
            read_audio(io.BytesIO(odd), tell=ignore)
        except AudioError:
            continue
    assert capfd.readouterr() == ("", "")


@pytest.mark.long
def test_memory_does_not_grow_with_a_compressed_file(tmp_path):
    resident = Path("/proc/self/statm")
    if not resident.exists():
        pytest.skip("needs Linux")
    write_audio(tmp_path / "a.mp3", (voice(10.0, 16_000, seed).astype(np.float32) for seed in range(60)), 16_000)
    peak, before = 0, int(resident.read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    for _ in stream_audio(tmp_path / "a.mp3", block_s=10):
        peak = max(peak, int(resident.read_text().split()[1]) * os.sysconf("SC_PAGESIZE"))
    assert peak - before < 40e6  # ten minutes of float32 would take 38 MB, and twice that to join


# folders


def test_hidden_files_are_not_found(tmp_path):
    for name in ("a.wav", "._a.wav", "b/c.M4A", ".cache/d.flac", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in audio_files(tmp_path)] == ["a.wav", "b/c.M4A"]


# the recorded cases


@pytest.mark.skipif(not CASES.is_dir(), reason="needs the recorded cases")
@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("mp3_stitched_format_change/stitched.mp3", 5.59),
        ("mp3_stitched_format_change/stitched_48k.mp3", 5.575),
        ("flac_unknown_length/u.flac", 4.0),
        ("mp3_fork_hang/a.mp3", 30.0),
        ("mp3_junk_before_first_frame/zeros_then_mp3.mp3", 4.0),
        ("mp3_junk_before_first_frame/zeros_after_id3.mp3", 4.0),
        ("mp3_junk_before_first_frame/id3_footer.mp3", 4.0),
        ("opus_start_granule/start312.opus", 3.0),
    ],
)
def test_the_recorded_cases(name, seconds):
    assert len(read_audio(CASES / name, tell=ignore)) / 16_000 == pytest.approx(seconds, abs=0.001)
    with open_audio(CASES / name) as opened:
        assert opened.length() / opened.sample_rate == pytest.approx(seconds, abs=0.001)
