import json

import numpy as np
import pytest
import soundfile as sf
import torch

from xycodec.errors import XycodecError
from xycodec.eval.corpus import open_corpora, safe_name
from xycodec.eval.evaluate import evaluate
from xycodec.eval.foreign import DecodedFolder, is_foreign, open_foreign
from xycodec.io.audio import read_audio

METRICS = ("si_sdr", "mel_distance")
CLASS = """
import numpy as np

class Mine:
    sample_rate = 16_000
    def encode(self, audio):
        return np.round(127 * audio).astype(np.int8)
    def decode(self, codes):
        return codes / 127
    def bits(self, codes):
        return 8 * codes.size
"""


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Two clips, 1 s and 0.9 s, in the working directory."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("a/x", "a/y")):
        path = tmp_path / "speech" / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        time = np.arange(16_000 - 1600 * number) / 16_000
        sf.write(path, 0.4 * np.sin(2 * np.pi * (150 + 70 * number) * time) * np.sin(2 * np.pi * 3 * time) ** 2, 16_000)
    return open_corpora(["speech"])


def only(result):
    """The one codec beside the originals."""
    _, codec = result.codecs
    return codec


def test_a_class_is_scored_by_what_it_decodes(corpus, tmp_path):
    (tmp_path / "mine.py").write_text(CLASS)
    found = only(evaluate(["mine.py:Mine"], corpus, tmp_path / "out", metrics=METRICS))
    assert [clip.error for clip in found.clips] == [None, None]
    assert found.bitrate == pytest.approx(128_000)
    assert (found.title, found.model, found.codebooks, found.parameters) == ("mine.py:Mine", "mine.py:Mine", (), None)
    assert found.encode_speed > 0
    for clip in found.clips:
        decoded = read_audio(tmp_path / "out" / found.name / "audio" / f"{clip.clip}.flac", 16_000)
        original = read_audio(tmp_path / "speech" / f"{clip.clip}.wav", 16_000)
        np.testing.assert_allclose(decoded, np.round(127 * original) / 127, atol=2 / 32768)  # two roundings to 16 bits
        assert 20 < clip.scores.values["si_sdr"] < 60


def test_a_module_of_the_working_directory(corpus, tmp_path):
    (tmp_path / "my_codec_of_this_test.py").write_text(CLASS.replace("127", "7"))
    found = only(evaluate(["my_codec_of_this_test:Mine"], corpus, tmp_path / "out", metrics=METRICS))
    assert all(clip.scores.values["si_sdr"] < 20 for clip in found.clips)


class Short:
    """Decodes tensors (1, T) at 8 kHz, half of the clip; fails on the second clip, and does not tell its rate."""

    sample_rate = output_sample_rate = 8000
    frame_rate, name = 50, "short"

    def encode(self, audio):
        if len(audio) < 8000:
            raise RuntimeError("too\nshort")
        return audio

    def decode(self, codes):
        return torch.from_numpy(codes)[None, :4000].requires_grad_()


def test_other_rates_and_lengths_and_what_fails(corpus, tmp_path):
    spec = f"{__file__}:Short"
    found = only(evaluate([spec], corpus, tmp_path / "out", metrics=METRICS))
    assert [clip.error for clip in found.clips] == [None, "RuntimeError: too short"]
    assert (found.model, found.frame_rate, found.bitrate) == ("short", 50.0, None)
    decoded = read_audio(tmp_path / "out" / found.name / "audio" / "a/x.flac", 16_000)
    original = read_audio(tmp_path / "speech/a/x.wav", 16_000)
    assert len(decoded) == 16_000
    assert not decoded[8200:].any()
    np.testing.assert_allclose(decoded[200:7800], original[200:7800], atol=0.01)  # what resampling twice leaves


def test_a_folder_of_decoded_files(corpus, tmp_path):
    for name, gain in (("a/x.flac", 0.5), ("a/y.wav", 0.25), ("a/other.wav", 1)):
        path = tmp_path / "decoded" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        audio, rate = sf.read(tmp_path / "speech" / ("a/y.wav" if "y" in name else "a/x.wav"))
        sf.write(path, gain * audio, rate)
    found = only(evaluate(["folder:decoded"], corpus, tmp_path / "out", metrics=METRICS))
    assert [clip.error for clip in found.clips] == [None, None]
    assert (found.bitrate, found.encode_speed, found.title) == (None, None, "folder:decoded")
    assert all(clip.scores.values["si_sdr"] > 40 for clip in found.clips)  # it does not mind the level
    # Nothing is done again, until a file changes.
    again = evaluate(["folder:decoded"], corpus, tmp_path / "out", metrics=METRICS)
    assert only(again) == found
    (tmp_path / "decoded/a/x.flac").unlink()
    with pytest.raises(XycodecError, match="holds scores of other weights"):
        evaluate(["folder:decoded"], corpus, tmp_path / "out", metrics=METRICS)
    missing = only(evaluate(["folder:decoded"], corpus, tmp_path / "new", metrics=METRICS))
    assert "there is no decoded file of this name" in missing.clips[0].error
    assert missing.clips[1].error is None


def test_a_class_that_changed_is_another_codec(corpus, tmp_path):
    (tmp_path / "mine.py").write_text(CLASS)
    evaluate(["mine.py:Mine"], corpus, tmp_path / "out", metrics=METRICS)
    (tmp_path / "mine.py").write_text(CLASS.replace("127", "31"))
    with pytest.raises(XycodecError, match="holds scores of other weights"):
        evaluate(["mine.py:Mine"], corpus, tmp_path / "out", metrics=METRICS)


def test_the_command_line(corpus, tmp_path, xycodec):
    (tmp_path / "mine.py").write_text(CLASS)
    options = ("--metrics", "si_sdr,mel_distance", "--search", "4", "-j", "1", "-o", "out")
    code, out, _ = xycodec("evaluate", "speech", "-c", "mine.py:Mine", *options)
    assert code == 0
    assert "mine.py:Mine" in out
    told = json.loads(next((tmp_path / "out").glob("mine*/codec.json")).read_text())
    assert (told["spec"], told["codebook_size"]) == ("mine.py:Mine", None)  # and not searched
    assert "128" in (tmp_path / "out/report.md").read_text()


@pytest.mark.parametrize(
    ("text", "foreign"),
    [
        ("folder:anything at all", True), ("a.b:C", True), ("dir/a b.py:C", True), ("hf:mimi", False),
        ("hf:a/b:8", False),
        ("xy-mini", False), ("xy-mini@4+16", False), ("ZhenYe234/xcodec:file.pth", False), ("C:/models/tiny", False),
        ("a:b:C", False),
    ],
)  # fmt: skip
def test_what_has_the_form_of_one(text, foreign):
    assert is_foreign(text) == foreign


class Rateless:
    sample_rate = "16k"

    def encode(self, audio):
        return audio

    decode = encode


class Demanding:
    def __init__(self, weights):
        self.weights = weights


class Empty:
    pass


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("folder:nowhere", "nowhere: there is no folder with files of audio"),
        ("nowhere.py:C", "nowhere.py cannot be imported (FileNotFoundError: there is no such file)"),
        ("no_such_module_at_all:C", "no_such_module_at_all cannot be imported (ModuleNotFoundError"),
        ("json:Nothing", "json has no class Nothing"),
        ("json:dumps", "json has no class dumps"),
        (f"{__file__}:Empty", "lacks sample_rate, encode, decode: see xycodec.eval.foreign"),
        (f"{__file__}:Demanding", "cannot be made without arguments (TypeError"),
        (f"{__file__}:Rateless", "sample_rate is '16k', must be a positive int"),
    ],
)
def test_what_is_no_codec_is_refused_in_one_line(text, words):
    with pytest.raises(XycodecError) as refused:
        open_foreign(text)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_two_files_of_one_clip_are_refused(tmp_path):
    for suffix in ("wav", "flac"):
        sf.write(tmp_path / f"a.{suffix}", np.zeros(100), 16_000)
    with pytest.raises(XycodecError, match="are of one clip: leave one out"):
        open_foreign(f"folder:{tmp_path}")


def test_a_folder_s_files_are_called_as_clips_are(tmp_path):
    (tmp_path / "a b (1).wav").touch()
    assert set(DecodedFolder(tmp_path).files) == {safe_name("a b (1).wav")}
