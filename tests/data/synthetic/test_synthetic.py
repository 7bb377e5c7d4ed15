"""Synthetic speech: the sentences, who speaks them, and the corpus that becomes of them.

flite and espeak-ng need not be installed: a program of the test's own stands in for both, and speaks by a rule.
"""

import json
import os
import re
import subprocess
import sys
from ast import literal_eval
from collections import Counter
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import soundfile as sf
from lhotse import CutSet

from xycodec.cli import app as cli
from xycodec.data.synthetic.synthesise import synthesise
from xycodec.data.synthetic.utterances import Grammar, Voice, draw_utterance, grammar
from xycodec.errors import ConfigError

ALPHABETS = {
    "en": "abcdefghijklmnopqrstuvwxyz' ",
    "de": "abcdefghijklmnopqrstuvwxyzäöüß ",
    "nl": "abcdefghijklmnopqrstuvwxyzëï' ",
    "fr": "abcdefghijklmnopqrstuvwxyzàâçéèêëîïôùûœ' ",
    "es": "abcdefghijklmnopqrstuvwxyzáéíñóúü ",
    "it": "abcdefghijklmnopqrstuvwxyzàèéìòù' ",
    "pt": "abcdefghijklmnopqrstuvwxyzàáâãçéêíóôõú ",
}


@pytest.fixture(scope="module")
def utterances():
    return [draw_utterance(0, index) for index in range(6000)]


# ---- sentences and voices ------------------------------------------------------------------------


def all_sentences(symbols, text):
    """Every sentence that `text` may become, by trying all alternatives."""
    reference = re.search(r"<(\w+)(\??)>", text)
    if not reference:
        return {" ".join(text.split())}
    name, optional = reference.groups()
    ways = [*symbols[name], *([""] if optional else [])]
    return set().union(
        *(all_sentences(symbols, text[: reference.start()] + way + text[reference.end() :]) for way in ways)
    )


def test_a_grammar_says_all_that_it_may_and_nothing_else():
    symbols = {
        "sentence": ["a <thing> <where?>.", "is a <size?> <thing> <where>?"],
        "thing": ["dog", "ox", "<size> ant"],
        "size": ["old", "big"],
        "where": ["at_home", ", here"],
    }
    plain = Grammar(symbols, [])
    possible = {
        sentence.replace("_", " ").replace(" ,", ",").replace(" .", ".").replace(" ?", "?")
        for sentence in all_sentences(symbols, "<sentence>")
    }
    draw = Random("0")
    drawn = Counter(plain.sentence(draw) for _ in range(20_000))
    assert set(drawn) == possible
    assert "a dog." in possible
    assert "is a big ox at home?" in possible
    # One of two sentences, one of three things, no place in half of them.
    assert drawn["a dog."] / 20_000 == pytest.approx(1 / 12, rel=0.1)
    rewritten = Grammar(symbols, [(re.compile(r"\ba (?=[ao])"), "an "), (re.compile("an old"), "some old")])
    draw = Random("0")
    said = {rewritten.sentence(draw) for _ in range(5000)}
    assert {"an ox.", "some old ant at home.", "is a big ant, here?"} <= said
    assert not any("a ox" in sentence or "an old" in sentence for sentence in said)


@pytest.mark.parametrize("language", ALPHABETS)
def test_every_symbol_of_a_grammar_is_defined_and_used(language):
    symbols = grammar(language).symbols
    used = {
        name
        for alternatives in symbols.values()
        for text in alternatives
        for name, _ in re.findall(r"<(\w+)(\??)>", text)
    }
    assert used | {"sentence"} == set(symbols)
    assert all(symbols.values())


def test_an_utterance_follows_from_seed_and_number(utterances):
    assert [draw_utterance(0, index) for index in reversed(range(200))] == utterances[199::-1]
    assert all(draw_utterance(1, index) != utterances[index] for index in range(200))
    program = (
        "from xycodec.data.synthetic.utterances import draw_utterance\nfor i in range(50): print(draw_utterance(0, i))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONIOENCODING": "utf-8"}
    elsewhere = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, check=True, encoding="utf-8"
    )
    assert elsewhere.stdout.splitlines() == [str(utterance) for utterance in utterances[:50]]


def test_an_id_changes_with_whatever_is_heard(utterances):
    first = utterances[0]
    others = [
        replace(first, index=1),
        replace(first, text=first.text + "!"),
        replace(first, rate=first.rate + 0.01),
        replace(first, pitch=first.pitch + 0.01),
        replace(first, voice=Voice("flite", "other", "en")),
    ]
    assert len({first.id, *(other.id for other in others)}) == 6
    assert len({utterance.id for utterance in utterances}) == len(utterances)


def test_transcripts_have_the_letters_of_their_language(utterances):
    heard = {language: set() for language in ALPHABETS}
    for utterance in utterances:
        heard[utterance.voice.language] |= set(utterance.transcript)
        assert utterance.transcript == utterance.transcript.strip() != ""
        assert "  " not in utterance.transcript
        words = re.findall(r"[\w']+", utterance.text.lower())
        assert utterance.transcript.split() == words
        assert not re.search(r"[<>_\d]| [,.?]", utterance.text)
    for language, alphabet in ALPHABETS.items():
        assert heard[language] <= set(alphabet)
        assert len(heard[language]) > 20


def test_words_that_melt_together_do(utterances):
    def said(language):
        return " | ".join(utterance.transcript for utterance in utterances if utterance.voice.language == language)

    assert not re.search(
        r"\ba (?:[aio](?!ne)|e(?!u)|u[mpg])|\ban [bcdfgjklmnpqrstvwxyz]|sss\b|[^aeiou]ys\b", said("en")
    )
    assert re.search(r"\ban [aeiou]", said("en"))
    assert not re.search(r"\b(?:de|à) les? |\b[ld][ea] [aéèê]", said("fr"))
    assert not re.search(r"\b(?:de|a) el\b", said("es"))
    assert not re.search(r"\b(?:em|de) [oa]\b", said("pt"))
    assert not re.search(r"\b(?:il|lo|la|una) [aeiou]|\bil s[bcpt]", said("it"))
    assert not re.search(r"\bin dem\b", said("de"))


def test_sentences_are_many_long_and_short(utterances):
    texts = [utterance.transcript for utterance in utterances]
    assert len(set(texts)) > 0.96 * len(texts)
    english = [text.split() for text, who in zip(texts, utterances, strict=True) if who.voice.language == "en"]
    assert len({word for words in english for word in words}) > 4000
    lengths = np.array([len(words) for words in english])
    assert (lengths <= 3).mean() > 0.05
    assert ((lengths >= 10) & (lengths <= 25)).mean() > 0.3
    assert lengths.max() < 50


def test_shares_of_languages_and_voices(utterances):
    def shares(names):
        return {name: count / len(utterances) for name, count in Counter(names).items()}

    languages = shares(utterance.voice.language for utterance in utterances)
    expected = {"en": 0.8, "de": 0.06, "nl": 0.04, "fr": 0.03, "es": 0.03, "it": 0.02, "pt": 0.02}
    assert languages == pytest.approx(expected, abs=0.015)
    flite = shares(utterance.voice.name for utterance in utterances if utterance.voice.program == "flite")
    assert flite == pytest.approx({"slt": 0.16, "rms": 0.16, "awb": 0.16, "kal16": 0.02}, abs=0.02)
    espeak = {utterance.voice.name for utterance in utterances if utterance.voice.program == "espeak-ng"}
    assert len({name for name in espeak if name.startswith("en")}) == 8 * 13
    assert 0.8 <= min(u.rate for u in utterances) < 0.81
    assert 1.19 < max(u.rate for u in utterances) <= 1.2
    assert -4 <= min(u.pitch for u in utterances) < -3.9


# ---- the corpus ----------------------------------------------------------------------------------

SPEAKER = """#!{python} -IS
import array, math, sys, time, wave
arguments = sys.argv[1:]
flite = sys.argv[0].endswith("flite")
text = arguments[arguments.index("-t") + 1] if flite else arguments[-1]
target = arguments[arguments.index("-o" if flite else "-w") + 1]
with open({log!r}, "a") as log:
    log.write(repr(arguments) + "\\n")
rate, seconds, level = 16000 if flite else 22050, 0.3 + 0.02 * len(text), 9000
{rule}
samples = [round(level * math.sin(2 * math.pi * 440 * i / rate)) for i in range(round(seconds * rate))]
with wave.open(target, "wb") as file:
    file.setnchannels(1), file.setsampwidth(2), file.setframerate(rate)
    file.writeframes(array.array("h", samples).tobytes())
"""
HOURS = 20 / 3600


@pytest.fixture
def speaker(tmp_path, monkeypatch):
    """Put programs that speak by `rule`, lines of Python, where flite and espeak-ng are looked for."""
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))

    def install(rule=""):
        for name in ("flite", "espeak-ng"):
            text = SPEAKER.format(python=sys.executable, log=str(tmp_path / "log"), rule=rule)
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)

    def spoken():
        """The arguments of every call since the last question."""
        log = tmp_path / "log"
        calls = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return calls

    install()
    install.again, install.spoken = install, spoken
    return install


def rows(folder):
    return [json.loads(line) for line in (folder / "clips.jsonl").read_text(encoding="utf-8").splitlines()]


def contents(folder):
    return {row["audio"]: (folder / row["audio"]).read_bytes() for row in rows(folder)}


def test_the_corpus_is_the_first_utterances_that_last_long_enough(tmp_path, speaker):
    told = []
    report = synthesise(tmp_path / "new/out", hours=HOURS, seed=3, jobs=2, advance=told.append)
    cuts = list(CutSet.from_file(tmp_path / "new/out/cuts.jsonl.gz"))
    durations = [cut.duration for cut in cuts]
    assert sum(durations[:-1]) < 20 <= sum(durations)
    assert (report.clips, report.made, report.left_out) == (len(cuts), len(cuts), ())
    assert report.seconds == pytest.approx(sum(durations)) == pytest.approx(sum(told))
    for index, cut in enumerate(cuts):
        utterance = draw_utterance(3, index)
        (words,) = cut.supervisions
        assert cut.id == f"audio/{utterance.id}.flac"
        assert (words.text, words.speaker) == (utterance.transcript, utterance.voice.name)
        assert (words.language, words.custom) == (utterance.voice.language, {"source": utterance.voice.program})
        info = sf.info(cut.recording.sources[0].source)
        assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
        samples, _ = sf.read(cut.recording.sources[0].source)
        seconds = 0.3 + 0.02 * len(utterance.text)
        assert len(samples) == pytest.approx(seconds * 16000, abs=1)
        tone = 9000 / 32768 * np.sin(2 * np.pi * 440 * np.arange(len(samples)) / 16000)
        inner = slice(200, -200)  # a resampler needs its surroundings
        np.testing.assert_allclose(samples[inner], tone[inner], atol=3e-4)


def test_every_voice_is_asked_for_its_rate_and_pitch(tmp_path, speaker):
    report = synthesise(tmp_path / "out", hours=2 * HOURS, jobs=1)
    calls = [literal_eval(call) for call in speaker.spoken()]
    seen = set()
    for index, call in enumerate(calls[: report.clips]):
        utterance = draw_utterance(0, index)
        options = dict(zip(call[::2], call[1::2], strict=False))
        seen.add(utterance.voice.program)
        if utterance.voice.program == "flite":
            manner = dict(word.split("=") for word in call if "=" in word)
            assert options["-voice"] == utterance.voice.name
            assert float(manner["duration_stretch"]) * utterance.rate == pytest.approx(1, abs=1e-3)
            own = {"slt": 170, "rms": 100, "awb": 128, "kal16": 95}[utterance.voice.name]
            semitones = 12 * np.log2(float(manner["int_f0_target_mean"]) / own)
            assert semitones == pytest.approx(utterance.pitch, abs=0.02)
        else:
            assert options["-v"] == utterance.voice.name
            assert int(options["-s"]) == pytest.approx(160 * utterance.rate, abs=0.5)
            assert 20 <= int(options["-p"]) <= 80
            assert np.sign(int(options["-p"]) - 50) in (0, np.sign(utterance.pitch))
    assert seen == {"flite", "espeak-ng"}


def test_the_number_of_processes_changes_nothing(tmp_path, speaker):
    one = synthesise(tmp_path / "one", hours=HOURS, jobs=1)
    # The earlier of two neighbours may well be ready later.
    speaker.again("time.sleep(0.1 * (len(text) % 2))")
    four = synthesise(tmp_path / "four", hours=HOURS, jobs=4)
    assert one == four
    assert rows(tmp_path / "one") == rows(tmp_path / "four")
    assert contents(tmp_path / "one") == contents(tmp_path / "four")


def test_an_interrupted_corpus_goes_on_with_what_is_whole(tmp_path, speaker):
    synthesise(tmp_path / "whole", hours=HOURS)
    out, told = tmp_path / "out", []

    def interrupt(seconds):
        told.append(seconds)
        if len(told) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesise(out, hours=HOURS, jobs=1, advance=interrupt)
    assert not (out / "cuts.jsonl.gz").exists()
    done = sorted((out / "audio").glob("*.flac"))
    assert len(done) >= 4
    done[1].write_bytes(b"")
    done[2].write_bytes(b"no longer a sound")
    speaker.spoken()
    report = synthesise(out, hours=HOURS, jobs=1)
    assert report.made == report.clips - len(done) + 2
    again = speaker.spoken()
    for index in range(len(done)):
        spoken = any(repr(draw_utterance(0, index).text) in call for call in again)
        assert spoken == (index in (1, 2))
    assert contents(out) == contents(tmp_path / "whole")


def test_more_hours_keep_the_first_ones_and_fewer_too(tmp_path, speaker):
    first = synthesise(tmp_path, hours=HOURS)
    before, dates = rows(tmp_path), {path: path.stat().st_mtime_ns for path in (tmp_path / "audio").iterdir()}
    second = synthesise(tmp_path, hours=2 * HOURS)
    assert rows(tmp_path)[: first.clips] == before
    assert second.clips > first.clips
    assert second.made <= second.clips - first.clips
    assert {path: path.stat().st_mtime_ns for path in dates} == dates
    speaker.spoken()
    third = synthesise(tmp_path, hours=HOURS)
    assert (rows(tmp_path), third.clips, third.made) == (before, first.clips, 0)


def test_another_seed_in_the_same_folder_does_not_mix(tmp_path, speaker):
    synthesise(tmp_path, hours=HOURS, seed=0)
    report = synthesise(tmp_path, hours=HOURS, seed=1)
    assert report.made == report.clips
    assert [row["text"] for row in rows(tmp_path)] == [draw_utterance(1, i).transcript for i in range(report.clips)]


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ("sys.exit('no such phoneme')", "failed: no such phoneme"),
        ("sys.exit(3)", "failed: exit code 3"),
        ("sys.exit(0)", "cannot be read"),
        ("seconds = 0", "no samples"),
        ("level = 100", "was silent"),
    ],
)
def test_a_sentence_that_cannot_be_spoken_is_passed_over(tmp_path, speaker, rule, reason):
    speaker.again(f"if len(text) % 3 == 0:\n    {rule}")
    report = synthesise(tmp_path / "out", hours=HOURS)
    assert report.left_out
    tried = [draw_utterance(0, index) for index in range(report.clips + len(report.left_out))]
    refused = [utterance.id for utterance in tried if len(utterance.text) % 3 == 0]
    assert [name for name, _ in report.left_out] == refused
    assert all(reason in why for _, why in report.left_out)
    assert all(not (tmp_path / f"out/audio/{name}.flac").exists() for name in refused)
    assert [row["text"] for row in rows(tmp_path / "out")] == [u.transcript for u in tried if u.id not in refused]


def test_a_program_that_never_speaks_ends_the_run(tmp_path, speaker):
    speaker.again("sys.exit('out of order')")
    with pytest.raises(ConfigError, match=r"^50 sentences in a row .* failed: out of order$"):
        synthesise(tmp_path / "out", hours=HOURS, jobs=4)
    assert not list((tmp_path / "out/audio").iterdir())


def test_what_is_missing_is_named(tmp_path, speaker, monkeypatch):
    with pytest.raises(ConfigError, match=r"^0 hours of speech cannot be made"):
        synthesise(tmp_path / "out", hours=0)
    speaker.again("rate = 8000")
    with pytest.raises(ConfigError, match=r"^flite has no voice awb of 16000 Hz here: install Debian's flite$"):
        synthesise(tmp_path / "out", hours=HOURS)
    (tmp_path / "programs/espeak-ng").unlink()
    with pytest.raises(ConfigError, match=r"^espeak-ng is not installed: apt-get install espeak-ng"):
        synthesise(tmp_path / "none", hours=HOURS)
    assert not (tmp_path / "none").exists()


def test_the_command_says_what_it_made_and_left_out(tmp_path, speaker, monkeypatch, capfd):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["xycodec", "data", "synthesise", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capfd.readouterr()

    speaker.again("if text == " + repr(draw_utterance(0, 2).text) + ":\n    sys.exit('tongue tied')")
    code, out, err = run(str(tmp_path / "out"), "--hours", "0.003", "--jobs", "1")
    clips = len(rows(tmp_path / "out"))
    assert (code, out) == (0, f"{tmp_path}/out/cuts.jsonl.gz: {clips} clips ({clips} new), 0.00 h, 1 left out\n")
    (line,) = err.splitlines()
    assert line.startswith(f"left out: {draw_utterance(0, 2).id}: ")
    assert line.endswith("failed: tongue tied")
    assert run(str(tmp_path / "out"), "--hours", "-1") == (
        1, "", "error: -1 hours of speech cannot be made: give a positive number\n",
    )  # fmt: skip


def test_one_voice_says_grammar_and_texts_in_turns_as_they_are_written(tmp_path, speaker):
    texts = ["Hello, World.", "red and blue"]
    synthesise(tmp_path / "one", hours=8 / 3600, voice="slt", texts=texts)
    cuts = list(CutSet.from_file(tmp_path / "one" / "cuts.jsonl.gz"))
    said = [cut.supervisions[0] for cut in cuts]
    assert {words.speaker for words in said} == {"slt"}
    assert [words.text for words in said][1:4:2] == texts
    assert said[0].text == grammar("en").sentence(Random("0 0"))
    with pytest.raises(ConfigError, match="none of flite's: give one of slt, rms"):
        synthesise(tmp_path / "two", hours=1, voice="nobody")
    with pytest.raises(ConfigError, match="for one voice to say"):
        synthesise(tmp_path / "two", hours=1, texts=texts)
