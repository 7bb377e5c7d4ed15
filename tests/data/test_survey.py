import pytest
from corpus import config, corpus, cut_of, noise, numbered, save

from xycodec.data.survey import LeftOut, survey


def test_a_survey_counts_what_can_be_used_and_what_is_left_out(tmp_path):
    cuts = [
        cut_of(save(tmp_path / "long.wav", noise(5, 24000), 24000), "words"),
        cut_of(save(tmp_path / "plain.wav", noise(1, 24000), 24000), " "),
        cut_of(save(tmp_path / "short.wav", noise(0.4, 24000), 24000), "words"),
        cut_of(save(tmp_path / "low.wav", noise(1, 16000), 16000), "words"),
        cut_of(save(tmp_path / "lower.wav", noise(1, 8000), 8000), "words"),
        cut_of(save(tmp_path / "lost.wav", noise(1, 24000), 24000), "words"),
    ]
    cuts[-1].recording = None
    found = survey(numbered(cuts), config(), 24000)
    assert (found.clips, found.with_text) == (2, 1)
    assert found.hours == pytest.approx((2.0 + 1.0) / 3600)
    assert found.left_out == (
        LeftOut("without a recording", 1, "lost.wav"),
        LeftOut("shorter than data.min_seconds 0.5", 1, "short.wav"),
        LeftOut("recorded below 24000 Hz", 2, "low.wav"),
    )
    assert survey(numbered(cuts), config(), 16000).clips == 3


def test_a_survey_reads_no_audio(tmp_path):
    cuts = corpus(tmp_path, 3)
    for path in tmp_path.iterdir():
        path.unlink()
    assert survey(numbered(cuts), config(), 16000).clips == 3
