"""Numbers, amounts and signs as words; what a table knows stays."""

import sys

import pytest

from xycodec.errors import CheckpointError
from xycodec.lm import spelling
from xycodec.lm.spelling import spell_out
from xycodec.lm.text import TextConfig, TextFrontEnd

LETTERS = set("abcdefghijklmnopqrstuvwxyz '.,?!-")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("21 apples, 1,234.5 pears", "twenty-one apples, one thousand two hundred thirty-four point five pears"),
        ("In 1999, 1905 and 1900", "In nineteen ninety-nine, nineteen oh five and nineteen hundred"),
        ("2030 of 15000", "two thousand thirty of fifteen thousand"),
        ("at 10:30, 9:05 and 12:00", "at ten thirty, nine oh five and twelve o'clock"),
        ("the 1st and 22nd", "the first and twenty-second"),
        ("$3.50, $1, \u00a30.01", "three dollars fifty cents, one dollar, zero pounds one penny"),
        ("\u20ac5 million, $1.5 billion", "five million euros, one point five billion dollars"),
        ("007, 1111111111111111", f"zero zero seven, {' '.join(16 * ['one'])}"),
        ("5% & 20\u00b0", "five percent and twenty degrees"),
        ("Dr. Gr\u00fcn (Mr. Caf\u00e9's)", "doctor Grun mister Cafe's"),
        ("wait\u2026 no", "wait. no"),
        ("\u043f\u0440\u0438", "\u043f\u0440\u0438"),
        ("  ", ""),
    ],
)  # fmt: skip
def test_what_letters_lack_is_said_in_words(text, said):
    assert spell_out(text, LETTERS) == said


def test_what_the_table_knows_stays():
    assert spell_out("5% (\u00e9)", LETTERS | set("0123456789%()\u00e9")) == "5% (\u00e9)"


def test_a_number_needs_the_package(monkeypatch):
    spelling._engine.cache_clear()
    monkeypatch.setitem(sys.modules, "inflect", None)
    assert spell_out("no number", LETTERS) == "no number"
    with pytest.raises(CheckpointError, match=r"inflect is not installed: pip install 'xycodec\[say\]'"):
        spell_out("1", LETTERS)


def test_tags_are_no_numbers():
    front = TextFrontEnd(TextConfig(symbols=tuple(sorted(LETTERS))))
    assert front.spelled("[S1]take 2[S2]\u2018No\u2019") == "[S1] take two [S2] 'No'"
    assert front.encode(front.spelled("[S1] 2"))


@pytest.mark.parametrize("config", [TextConfig(kind="bytes"), TextConfig(symbols=tuple("az"), language="de")])
def test_other_models_read_the_text_as_it_is(config):
    assert TextFrontEnd(config).spelled("2 \u2013 3%") == "2 \u2013 3%"
