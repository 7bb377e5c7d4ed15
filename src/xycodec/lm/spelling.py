"""English text as letters: numbers, amounts and signs written out in words, for a model that knows letters only."""

import re
import unicodedata
from collections.abc import Container
from functools import cache
from typing import Any

from xycodec.io.libraries import require_library

_ABBREVIATIONS = {"mr": "mister", "mrs": "missis", "ms": "miss", "dr": "doctor", "vs": "versus", "etc": "et cetera"}
_SIGNS = {
    "&": "and", "+": "plus", "=": "equals", "@": "at", "%": "percent", "/": "slash", "#": "number", "\u00b0": "degrees",
}  # fmt: skip
_UNITS = {"$": ("dollar", "cent"), "\u20ac": ("euro", "cent"), "\u00a3": ("pound", "penny")}

_ABBREVIATION = re.compile(rf"\b({'|'.join(_ABBREVIATIONS)})\.", re.IGNORECASE)
_NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"
_AMOUNT = re.compile(rf"([{''.join(_UNITS)}])\s?({_NUMBER})(\s(?:thousand|million|billion|trillion)\b)?")
_TIME = re.compile(r"\b([01]?\d|2[0-3]):([0-5]\d)\b")
_ORDINAL = re.compile(r"\b(\d+)(?:st|nd|rd|th)\b", re.IGNORECASE)
_YEAR = re.compile(r"(?<![\d.,])1[1-9]\d\d(?![\d.,]\d|\d)")
_LONGEST = 15  # digits; a longer number is read digit by digit


def spell_out(text: str, known: Container[str]) -> str:
    """Write out what is no symbol of a table: digits, amounts, percent, times, some abbreviations; accents are dropped.

    Signs of the table stay; other punctuation is a space, and letters of other scripts are left as they are. Raises
    CheckpointError without the package inflect where a number is to be read.
    """
    text = text.replace("\u2026", ".")
    text = _ABBREVIATION.sub(lambda found: _ABBREVIATIONS[found[1].lower()], text)
    if "1" not in known and re.search(r"\d", text):
        text = _AMOUNT.sub(_amount, text)
        text = _TIME.sub(_time, text)
        text = _ORDINAL.sub(lambda found: _engine().ordinal(_words(found[1])), text)
        text = _YEAR.sub(_year, text)
        text = re.sub(_NUMBER, lambda found: f" {_words(found[0])} ", text)
    for sign, word in _SIGNS.items():
        if sign not in known:
            text = text.replace(sign, f" {word} ")
    text = "".join(sign if sign.lower() in known else _bare(sign) for sign in text)
    return re.sub(r"\s+", " ", re.sub(r"\s+(?=[.,;:!?])", "", text)).strip()


@cache
def _engine() -> Any:
    return require_library("inflect", "say").engine()


def _words(number: str) -> str:
    digits = number.replace(",", "")
    whole = digits.partition(".")[0]
    by_digit = len(whole) > _LONGEST or (len(whole) > 1 and whole[0] == "0")
    words: str = _engine().number_to_words(digits, andword="", comma="", group=1 if by_digit else 0)
    return words


def _year(found: re.Match[str]) -> str:
    century, rest = found[0][:2], found[0][2:]
    tail = "hundred" if rest == "00" else f"oh {_words(rest[1])}" if rest[0] == "0" else _words(rest)
    return f"{_words(century)} {tail}"


def _time(found: re.Match[str]) -> str:
    hour, minute = (part.lstrip("0") or "0" for part in found.groups())
    tail = "o'clock" if minute == "0" else f"oh {_words(minute)}" if len(minute) == 1 else _words(minute)
    return f"{_words(hour)} {tail}"


def _amount(found: re.Match[str]) -> str:
    unit, part = _UNITS[found[1]]
    whole, _, cents = found[2].partition(".")
    if found[3] or len(cents) not in (0, 2):
        return f"{_words(found[2])}{found[3] or ''} {unit}s"
    said = f"{_words(whole)} {_engine().plural(unit, int(whole.replace(',', '')))}"
    return said if not cents.strip("0") else f"{said} {_words(cents.lstrip('0'))} {_engine().plural(part, int(cents))}"


def _bare(sign: str) -> str:
    """A letter without its accents, a space for punctuation; anything else as it is."""
    if unicodedata.category(sign).startswith("P"):
        return " "
    return "".join(part for part in unicodedata.normalize("NFKD", sign) if not unicodedata.combining(part)) or sign
