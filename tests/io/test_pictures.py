import os

import numpy as np
import pytest
import soundfile as sf
from matplotlib import image

from xycodec.errors import XycodecError
from xycodec.io.pictures import SHOWN_S, draw_pair, draw_roundtrip
from xycodec.io.xyc import CodecFile


def make(folder, samples, audio=None, n_q=8, seed=0):
    """A source, codes and a decoded file of `samples` samples."""
    random = np.random.default_rng(seed)
    audio = random.uniform(-0.3, 0.3, samples) if audio is None else audio
    sf.write(folder / "in.wav", audio, 16_000)
    sf.write(folder / "out.wav", np.repeat(audio, 3)[::2], 24_000)
    codes = random.integers(0, 1024, (n_q, -(-samples // 1280)), np.uint16)
    CodecFile(codes, "made-up", 1024, 16_000, 24_000, 1280, samples).write(folder / "codes.xyc")
    return [str(folder / name) for name in ("in.wav", "codes.xyc", "out.wav")]


def pixels(folder, *arguments, **options):
    files = make(folder, *arguments, **options)
    draw_roundtrip(*files, folder / "picture.png")
    return image.imread(folder / "picture.png")


@pytest.mark.parametrize("samples", [1, 300, 1280, 50_000])
def test_a_picture_of_any_clip(tmp_path, samples):
    drawn = pixels(tmp_path, samples)
    assert drawn.shape[:2] == (800, 1200)
    assert len(np.unique(drawn @ np.array([1, 7, 49, 0], np.float32)[: drawn.shape[2]])) > 100
    assert sorted(os.listdir(tmp_path)) == ["codes.xyc", "in.wav", "out.wav", "picture.png"]


def test_silence_has_a_picture(tmp_path):
    assert pixels(tmp_path, 20_000, audio=np.zeros(20_000)).shape[:2] == (800, 1200)


@pytest.mark.parametrize("n_q", [1, 3])
def test_few_codebooks(tmp_path, n_q):
    assert pixels(tmp_path, 30_000, n_q=n_q).shape[:2] == (800, 1200)


def test_the_picture_shows_the_audio_and_the_codes(tmp_path):
    first = pixels(tmp_path, 30_000)
    assert np.array_equal(pixels(tmp_path, 30_000), first)
    other = pixels(tmp_path, 30_000, seed=1)
    thirds = [slice(0, 280), slice(300, 550), slice(590, 800)]  # original, decoded, codes
    for rows in thirds:
        assert (other[rows] != first[rows]).any()


def test_a_title(tmp_path):
    plain = pixels(tmp_path, 30_000)
    draw_roundtrip(*make(tmp_path, 30_000), tmp_path / "titled.png", title="One clip")
    titled = image.imread(tmp_path / "titled.png")
    assert titled.shape == plain.shape
    # Only a title stands above the middle of the first spectrogram.
    assert (titled[:20, 500:700] < 0.5).any()
    assert (plain[:20, 500:700] == 1).all()


def test_a_tone_stands_beside_its_frequency_in_both_spectrograms():
    """Seconds and kHz on the axes are those of the audio."""
    rate, start, end = 16_000, 0.5, 1.5
    time = np.arange(2 * rate) / rate
    for hertz in (250, 1000, 4000):
        tone = (np.sin(2 * np.pi * hertz * time) * ((time > start) & (time < end))).astype(np.float32)
        figure = draw_pair(tone, 0.5 * tone, rate)
        for axis, loudest in zip(figure.axes[:2], (0, -6), strict=True):
            picture = axis.images[0]
            left, right, bottom, top = picture.get_extent()
            values = np.asarray(picture.get_array())
            band, frame = np.unravel_index(values.argmax(), values.shape)
            marks = {
                label.get_text(): place for label, place in zip(axis.get_yticklabels(), axis.get_yticks(), strict=True)
            }
            assert abs(bottom + (band + 0.5) * (top - bottom) / len(values) - marks[f"{hertz / 1000:g}"]) < 1
            assert start < left + (frame + 0.5) * (right - left) / values.shape[1] < end
            loud = left + (np.flatnonzero(values[band] > values.max() - 6) + 0.5) * (right - left) / values.shape[1]
            assert np.allclose((loud[0], loud[-1]), (start, end), atol=0.02)
            assert values.max() == pytest.approx(loudest, abs=0.1)
            assert picture.get_clim() == (-80, 0)


def test_long_audio_is_shown_for_its_beginning(tmp_path):
    seconds = int(SHOWN_S)
    tone = np.sin(np.arange((seconds + 20) * 16_000)) * 0.2
    make(tmp_path, len(tone), tone)
    files = [str(tmp_path / name) for name in ("in.wav", "codes.xyc", "out.wav")]
    draw_roundtrip(*files, tmp_path / "one.png")
    changed = tone.copy()
    changed[(seconds + 1) * 16_000 :] = 0
    sf.write(files[0], changed, 16_000)
    draw_roundtrip(*files, tmp_path / "two.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    changed[(seconds - 2) * 16_000 :] = 0
    sf.write(files[0], changed, 16_000)
    draw_roundtrip(*files, tmp_path / "three.png")
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "three.png").read_bytes()


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_file_leaves_no_picture(tmp_path, missing):
    files = make(tmp_path, 5000)
    os.remove(files[missing])
    with pytest.raises(XycodecError) as error:
        draw_roundtrip(*files, tmp_path / "picture.png")
    assert files[missing] in str(error.value)
    assert not (tmp_path / "picture.png").exists()


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(XycodecError):
        draw_roundtrip(*make(tmp_path, 5000), tmp_path / "nowhere" / "picture.png")
