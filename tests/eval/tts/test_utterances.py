import json

import pytest
from tests.talking import write_speech

from xycodec.errors import AudioError, ConfigError
from xycodec.eval.corpus import open_corpora
from xycodec.eval.tts.utterances import (
    Utterance,
    open_utterances,
    read_utterances,
    select_utterances,
    write_utterances,
)

GOOD = {"id": "u0", "text": "SO", "audio": "u0.wav"}


@pytest.fixture
def librispeech(tmp_path):
    """Two speakers in LibriSpeech's layout: lengths by clip."""
    lengths = {"1-5-0000": 2, "1-5-0001": 4.2, "1-5-0002": 3.5, "1-6-0000": 9.9, "2-7-0000": 5, "2-7-0001": 11}
    for number, (clip, seconds) in enumerate(lengths.items()):
        place = tmp_path / "LibriSpeech/test-clean" / "/".join(clip.split("-")[:2])
        write_speech(place / f"{clip}.flac", seconds, number)
        with open(place / f"{'-'.join(clip.split('-')[:2])}.trans.txt", "a") as file:
            file.write(f"{clip} WORDS OF {number}\n")
    return tmp_path / "LibriSpeech"


def test_a_corpus_gives_its_utterances_of_4_to_10_seconds(librispeech):
    found = open_utterances(f"librispeech:test-clean:{librispeech}")
    assert [(one.id, one.text, one.speaker) for one in found] == [
        ("1-5-0001", "WORDS OF 1", "1"),
        ("1-6-0000", "WORDS OF 3", "1"),
        ("2-7-0000", "WORDS OF 4", "2"),
    ]
    assert found[0].audio.endswith("test-clean/1/5/1-5-0001.flac")
    # The prompt is the speaker's utterance that is nearest to 3 s, of all lengths, with all its words.
    assert [one.prompt_text for one in found] == ["WORDS OF 2", "WORDS OF 2", "WORDS OF 5"]
    assert found[1].prompt_audio.endswith("1/5/1-5-0002.flac")
    with pytest.raises(ConfigError, match=r"has no clip with a text that lasts from 30 to 40 s"):
        select_utterances(open_corpora([f"librispeech:test-clean:{librispeech}"]), "x", 30, 40)


def test_a_list_is_read_as_it_was_written(tmp_path):
    for name in ("u0", "p"):
        write_speech(tmp_path / f"a/{name}.wav", 0.1, 1)
    rows = [GOOD, {**GOOD, "id": "b/u1", "speaker": "s", "prompt_audio": "p.wav", "prompt_text": "OH"}]
    (tmp_path / "a/list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = open_utterances(str(tmp_path / "a/list.jsonl"))
    assert found[0] == Utterance("u0", "SO", str(tmp_path / "a/u0.wav"))
    assert found[1].prompt_audio == str(tmp_path / "a/p.wav")
    write_utterances(found, tmp_path / "b/list.jsonl")
    assert read_utterances(tmp_path / "b/list.jsonl") == found


def test_what_an_utterance_is_known_by(tmp_path):
    audio = write_speech(tmp_path / "u0.wav", 0.1, 1)
    one = Utterance("u0", "SO", audio)
    before = {
        one.identity(),
        Utterance("u0", "OH", audio).identity(),
        Utterance("u0", "SO", audio, None, audio).identity(),
    }
    assert len(before) == 3
    assert Utterance("u1", "SO", audio).identity() == one.identity()
    write_speech(tmp_path / "u0.wav", 0.1, 2)
    assert one.identity() not in before
    with pytest.raises(AudioError, match="cannot be read"):
        Utterance("u0", "SO", str(tmp_path / "none.wav")).identity()


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (["{"], r':1: a row is {"id"'),
        ([json.dumps(GOOD), json.dumps({"id": "u1", "text": "SO"})], ":2: a row is"),
        ([json.dumps({**GOOD, "text": " "})], ":1: a row is"),
        ([json.dumps({**GOOD, "text": 3})], ":1: a row is"),
        ([json.dumps(GOOD)] * 2, ":2: a second u0"),
        ([json.dumps({**GOOD, "prompt_text": "OH"})], ":1: prompt_audio and prompt_text go together"),
        ([json.dumps({**GOOD, "id": "../u 0"})], ":1: the id '../u 0' is no plain file name: take 'u_0'"),
        ([], "holds no utterances"),
    ],
)
def test_rows_that_are_not_valid(tmp_path, lines, complaint):
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=complaint):
        read_utterances(tmp_path / "list.jsonl")


def test_parts_of_recordings_are_refused(tmp_path):
    write_speech(tmp_path / "long.wav", 12, 1)
    (tmp_path / "all.jsonl").write_text(json.dumps({"audio": "long.wav", "duration": 12, "text": "SO"}) + "\n")
    (item,) = open_corpora([str(tmp_path / "all.jsonl")])
    part = type(item)("part", "x", None, "SO", 5.0, item.cut.truncate(duration=5.0))
    with pytest.raises(ConfigError, match="part: is no file of its own"):
        select_utterances([part], "x")
    with pytest.raises(ConfigError, match="no-such: there is no such file"):
        open_utterances("no-such")


def test_a_text_keeps_other_ends_of_lines(tmp_path):
    row = {**GOOD, "text": "a\u2028b\x85c"}
    (tmp_path / "list.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [one.text for one in read_utterances(tmp_path / "list.jsonl")] == [row["text"]]
