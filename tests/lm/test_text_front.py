"""Text front ends: tables of symbols, tags of speakers, and one line for what they do not know."""

import sys
from types import SimpleNamespace

import pytest

from xycodec.errors import CheckpointError, XycodecError
from xycodec.lm.say import sentences
from xycodec.lm.text import BEGIN, END, SPECIALS, TextConfig, TextFrontEnd, collect_symbols

FIRST = len(SPECIALS)


def test_characters_are_those_of_the_texts():
    config = collect_symbols(["Ab, \u2018c", "[S1] a"], TextConfig())
    assert config.symbols == (" ", "'", ",", "a", "b", "c")
    front = TextFrontEnd(config)
    assert front.encode("B\nA") == [BEGIN, FIRST + 4, FIRST, FIRST + 3, END]
    assert front.encode("[S1]a[S2]b") == [BEGIN, 5, FIRST + 3, 6, FIRST + 4, END]
    with pytest.raises(XycodecError, match="does not know 'x', 'z': spell it in its symbols") as told:
        front.encode("a zx")
    assert "\n" not in str(told.value)
    assert front.known("a z") == [BEGIN, FIRST + 3, FIRST, END]
    assert front.known("zz") == front.known(None) == []


def test_bytes_know_every_text():
    front = TextFrontEnd(TextConfig(kind="bytes"))
    assert front.encode("\u00e9A") == [BEGIN, FIRST + 0xC3, FIRST + 0xA9, FIRST + 0x41, END]
    assert TextConfig(kind="bytes").size == FIRST + 256
    for text in ("", "  ", "...", "[S2]"):
        with pytest.raises(XycodecError, match="no text to speak"):
            front.encode(text)


def test_a_table_is_of_different_symbols():
    with pytest.raises(ValueError, match="given twice"):
        TextConfig(symbols=("a", "a"))
    with pytest.raises(ValueError, match="a table of their own"):
        TextConfig(kind="bytes", symbols=("a",))
    with pytest.raises(XycodecError, match="no text has a symbol"):
        collect_symbols(["", "[S1]"], TextConfig())


def test_phonemes_are_espeaks(monkeypatch):
    asked = {}

    def phonemize(text, **settings):
        asked.update(settings, text=text)
        return "h|\u0259|l|o\u028a|_w|\u025c\u02d0|l|d|!"

    separator = SimpleNamespace(Separator=lambda **marks: marks)
    monkeypatch.setitem(sys.modules, "phonemizer", SimpleNamespace(phonemize=phonemize, separator=separator))
    config = collect_symbols(["hello"], TextConfig(kind="phonemes"))
    assert set(config.symbols) == {"h", "\u0259", "l", "o\u028a", "_", "w", "\u025c\u02d0", "d", "!"}
    front = TextFrontEnd(config)
    heard = [([*SPECIALS, *config.symbols])[number] for number in front.encode("Hello world!")[1:-1]]
    assert heard == ["h", "\u0259", "l", "o\u028a", "_", "w", "\u025c\u02d0", "l", "d", "!"]
    assert asked["separator"] == {"word": "_", "syllable": "-", "phone": "|"}
    assert (asked["language"], asked["backend"], asked["with_stress"]) == ("en-us", "espeak", False)


def test_without_phonemizer_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "phonemizer", None)
    with pytest.raises(CheckpointError, match=r"pip install 'xycodec\[phonemes\]'"):
        TextFrontEnd(TextConfig(kind="phonemes", symbols=("a",))).encode("a")


def test_dots_alone_are_no_sentence():
    assert sentences("He said: ... nothing.") == ["He said:", "nothing."]
    with pytest.raises(XycodecError, match="the text is empty"):
        sentences("... !")
