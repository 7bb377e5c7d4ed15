import io

import numpy as np
import pytest
import soundfile as sf
import soxr
from corpus import config, cut_of, encoded, noise, save, tone
from lhotse import AudioSource, Recording, SupervisionSegment

from xycodec.data.clip import load_clip
from xycodec.data.config import Augmentation
from xycodec.data.manifest import row_cut
from xycodec.errors import AudioError, AudioWarning
from xycodec.io.audio import open_audio

FORMATS = (".wav", ".flac", ".mp3", ".ogg", ".opus")


def load(cut, rate=16000, seed=0, epoch=0, **settings):
    return load_clip(cut, config(**settings), output_sample_rate=rate, seed=seed, epoch=epoch)


def reading(path):
    if path.suffix == ".opus":  # which libsndfile decodes at another rate
        with open_audio(path) as audio:
            return audio.excerpt(0, audio.length()), audio.sample_rate
    samples, rate = sf.read(path, dtype="float32", always_2d=True)
    return samples.mean(axis=1), rate


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(("rate", "out"), [(16000, 16000), (24000, 16000), (24000, 24000), (48000, 32000)])
def test_a_whole_clip_of_every_format_and_rate(tmp_path, suffix, rate, out):
    path = save(tmp_path / f"a{suffix}", noise(1.3, rate), rate)
    clip = load(cut_of(path, "hello"), out)
    whole, found = reading(path)
    assert found == (48000 if suffix == ".opus" else rate)
    expected = soxr.resample(whole, found, out)
    assert abs(len(clip.target) - 1.3 * out) <= 3
    assert len(clip.target) * 16000 == len(clip.audio) * out
    np.testing.assert_allclose(clip.target.numpy(), expected[: len(clip.target)], atol=2e-6)
    np.testing.assert_allclose(clip.audio.numpy(), soxr.resample(clip.target.numpy(), out, 16000), atol=1e-6)
    assert clip.text == "hello"


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_part_is_the_same_as_that_part_of_the_whole(tmp_path, suffix):
    path = save(tmp_path / f"a{suffix}", noise(6, 16000), 16000)
    cut = cut_of(path).truncate(offset=2.5, duration=1.5)
    whole, rate = reading(path)
    inner = slice(0, None) if rate == 16000 else slice(200, -200)  # resampling sees other neighbours at the ends
    expected = soxr.resample(whole, rate, 16000)[40000:64000]
    np.testing.assert_allclose(load(cut).audio.numpy()[inner], expected[inner], atol=1e-4)


def test_only_the_needed_part_of_a_file_is_read(tmp_path):
    path = save(tmp_path / "a.wav", noise(60))
    assert path.stat().st_size > 1_900_000
    with open(path, "r+b") as file:
        file.truncate(700_000)  # the header still promises 60 s
    cut = Recording("a", [AudioSource("file", [0], str(path))], 16000, 960_000, 60.0).to_cut()
    assert len(load(cut).audio) == 32000


@pytest.mark.parametrize("rate", [16000, 22050, 44100])
@pytest.mark.parametrize("out", [16000, 24000, 32000])
def test_lengths_have_the_ratio_of_the_rates_exactly(tmp_path, rate, out):
    if rate < out:
        rate = out
    for samples in range(rate // 2, rate // 2 + 40):
        path = save(tmp_path / "a.wav", noise(samples / rate, rate), rate)
        clip = load(cut_of(path), out)
        assert len(clip.target) * 16000 == len(clip.audio) * out
        assert abs(len(clip.audio) - samples * 16000 / rate) <= 2


def test_channels_are_averaged(tmp_path):
    left, right = noise(1, seed=1), noise(1, seed=2)
    cut = cut_of(save(tmp_path / "a.wav", np.stack([left, right], axis=1)))
    np.testing.assert_allclose(load(cut).audio.numpy(), (left + right) / 2, atol=1e-4)
    only = load(cut.with_channels(1)).audio
    np.testing.assert_allclose(only.numpy(), right, atol=1e-4)


def test_a_recording_in_memory_and_a_mixed_cut_of_lhotse(tmp_path):
    samples = noise(1)
    path = save(tmp_path / "a.wav", samples)
    memory = Recording.from_bytes(encoded(samples, 16000, ".wav"), "m").to_cut()
    np.testing.assert_allclose(load(memory).audio.numpy(), samples, atol=1e-4)
    joined = cut_of(path, "one").append(cut_of(save(tmp_path / "b.wav", samples[::-1]), "two"))
    clip = load(joined)
    np.testing.assert_allclose(clip.audio.numpy(), np.concatenate([samples, samples[::-1]]), atol=1e-4)
    assert clip.text == "one two"


def test_the_first_part_of_a_long_clip_is_kept(tmp_path):
    path = save(tmp_path / "a.wav", noise(5, 48000), 48000)
    clip = load(cut_of(path, "too long"), 24000)
    whole, _ = reading(path)
    assert (len(clip.audio), len(clip.target)) == (32000, 48000)
    # The last millisecond sees another right context.
    expected = soxr.resample(whole, 48000, 24000)[:47000]
    np.testing.assert_allclose(clip.target.numpy()[:47000], expected, atol=1e-4)
    assert clip.text is None


@pytest.mark.parametrize("out", [16000, 24000, 32000])
def test_a_random_part_is_62_frames_of_5_s(tmp_path, out):
    cut = cut_of(save(tmp_path / "a.flac", noise(9, 44100), 44100))
    for epoch in range(20):
        clip = load(cut, out, epoch=epoch, crop="random", clip_seconds=5)
        assert (len(clip.audio), len(clip.target)) == (79_360, 79_360 * out // 16000)


def test_random_parts_lie_anywhere_and_depend_on_seed_epoch_and_id(tmp_path):
    ramp = np.linspace(-0.9, 0.9, 10 * 16000).astype(np.float32)  # a sample tells its place
    cut = cut_of(save(tmp_path / "a.wav", ramp))

    def start(**which):
        clip = load(cut, crop="random", clip_seconds=1, **which)
        return (float(clip.audio[0]) / 0.9 + 1) * 5

    starts = np.array([start(epoch=epoch) for epoch in range(200)])
    assert starts.min() < 0.4
    assert starts.max() > 8.6
    assert np.mean(starts) == pytest.approx(4.5, abs=0.6)
    assert start(epoch=3) == starts[3]
    assert start(epoch=3, seed=1) != starts[3]
    one, other = (load(named, crop="random", clip_seconds=1).audio for named in (cut, cut.with_id("other")))
    assert not np.array_equal(one, other)


def test_a_clip_that_is_no_longer_than_the_crop_is_taken_whole(tmp_path):
    cut = cut_of(save(tmp_path / "a.wav", noise(4.9)), "all of it")
    clip = load(cut, crop="random", clip_seconds=5)
    assert (len(clip.audio), clip.text) == (78_400, "all of it")


def words(start, seconds, text):
    return SupervisionSegment(f"{start}", "a", start, seconds, text=text)


@pytest.mark.parametrize(
    ("supervisions", "text"),
    [
        ([words(0, 1.9, "a")], "a"),
        ([words(0, 1, "a"), words(1.2, 0.8, "b")], "a b"),
        ([words(0, 2.5, "a")], None),
        ([words(0, 1, "a"), words(1.5, 1, "b")], None),
        ([words(0, 1, "a"), words(2.5, 1, "b")], "a"),
        ([words(-1, 2, "a")], None),
        ([words(2.5, 1, "b")], None),
        ([words(0, 1, "")], None),
        ([words(0, 1, "a"), words(1, 0.5, None)], None),
        ([words(0, 1, "  ")], None),
        ([], None),
    ],
)
def test_a_text_must_lie_wholly_in_the_kept_part(tmp_path, supervisions, text):
    cut = cut_of(save(tmp_path / "a.wav", noise(4)))
    cut.supervisions = supervisions
    assert load(cut).text == text


def test_speed_takes_as_much_of_the_file_as_the_clip_needs(tmp_path):
    augment = Augmentation(speed=1, speed_range=(1.1, 1.1))
    path = save(tmp_path / "a.wav", tone(440, 4, 16000))
    clip = load(cut_of(path, "text"), augment=augment)
    assert len(clip.audio) == 32000
    spectrum = np.abs(np.fft.rfft(clip.audio.numpy() * np.hanning(32000)))
    assert np.argmax(spectrum) / 2 == pytest.approx(484, abs=1)
    short = save(tmp_path / "b.wav", noise(2.1))
    assert load(cut_of(short, "text"), augment=augment).text == "text"


def test_augmentation_is_the_same_for_the_same_draw(tmp_path):
    augment = Augmentation(speed=1, pitch=1, gain=1, eq=1)
    cut = cut_of(save(tmp_path / "a.wav", noise(4)))
    one, again, other = (load(cut, augment=augment, crop="random", epoch=epoch).audio for epoch in (4, 4, 5))
    np.testing.assert_array_equal(one, again)
    assert len(other) != len(one) or not np.array_equal(one, other)


def broken(tmp_path, kind):
    path = tmp_path / "clip.wav"
    samples = noise(1)
    if kind == "missing":
        cut = cut_of(save(path, samples))
        path.unlink()
        return cut
    if kind == "not audio":
        cut = cut_of(save(path, samples))
        path.write_bytes(b"these are no samples" * 100)
        return cut
    if kind == "breaks off":
        cut = cut_of(save(path, samples))
        path.write_bytes(path.read_bytes()[:16000])
        return cut
    if kind == "NaN":
        sf.write(path, np.where(np.arange(16000) == 5000, np.nan, samples), 16000, subtype="FLOAT")
    elif kind == "silent":
        save(path, noise(1, level=1e-5))
    elif kind == "8000 Hz":
        save(path, noise(1, 8000), 8000)
    return cut_of(path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "cannot be read (No such file"),
        ("not audio", "is not audio that can be read ("),
        ("breaks off", "ends 0.50 s before its cut does"),
        ("NaN", "holds a NaN or an infinity"),
        ("silent", "silent (loudest sample -"),
        ("8000 Hz", "recorded at 8000 Hz, needs 16000 Hz"),
    ],
)
def test_what_cannot_be_used_says_why_in_one_line(tmp_path, kind, message):
    cut = broken(tmp_path, kind)
    with pytest.raises(AudioError) as caught:
        load(cut)
    line = str(caught.value)
    assert "clip.wav" in line
    assert message in line
    assert "\n" not in line


def test_a_rate_between_input_and_output_is_refused(tmp_path):
    cut = cut_of(save(tmp_path / "a.wav", noise(1, 22050), 22050))
    with pytest.raises(AudioError, match="recorded at 22050 Hz, needs 24000 Hz"):
        load(cut, 24000)


def test_a_damaged_flac_is_an_audio_error(tmp_path):
    path = save(tmp_path / "a.flac", noise(3))
    cut = cut_of(path)
    data = bytearray(path.read_bytes())
    data[20000:40000] = bytes(20000)
    path.write_bytes(data)
    with pytest.raises(AudioError, match=r"a\.flac"):
        load(cut)


def test_a_cut_without_a_recording_is_an_audio_error(tmp_path):
    cut = cut_of(save(tmp_path / "a.wav", noise(1)))
    cut.recording = None
    with pytest.raises(AudioError, match="has no recording"):
        load(cut)


def test_bytes_of_a_file_object_and_of_a_path_agree(tmp_path):
    path = save(tmp_path / "a.flac", noise(1))
    np.testing.assert_array_equal(load(cut_of(path)).audio, sf.read(io.BytesIO(path.read_bytes()), dtype="float32")[0])


@pytest.mark.parametrize("rate", [16000, 24000])
def test_a_clip_that_holds_no_sample_of_the_input_is_refused(tmp_path, rate):
    cut = cut_of(save(tmp_path / "a.wav", np.full(1, 0.5, np.float32), 48000))
    with pytest.raises(AudioError, match="too short for a sample at 16000 Hz"):
        load(cut, rate)


def test_what_is_left_out_is_told(tmp_path):
    data = bytearray(encoded(noise(4, 44100), 44100, ".mp3"))
    path = tmp_path / "a.mp3"
    path.write_bytes(b"no audio at all" * 20 + data)
    with pytest.warns(AudioWarning, match="its first 300 bytes are no audio and were left out"):
        cut = row_cut(tmp_path, {"audio": "a.mp3"})
    with pytest.warns(AudioWarning, match=r"a\.mp3: its first 300 bytes"):
        assert len(load(cut).audio) == 32000
