"""Text front ends: what a text-to-speech model reads, as numbers; the table of symbols belongs to the model."""

import re
from collections.abc import Iterable
from functools import cached_property, lru_cache
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from xycodec.errors import XycodecError
from xycodec.io.config import Config
from xycodec.io.libraries import require_library
from xycodec.lm.spelling import spell_out

SPECIALS = ("<pad>", "<begin>", "<end>", "<speech>", "</speech>", "[S1]", "[S2]")
"""Symbols of every table: around a text and around speech; the last two say who of two speaks."""
PAD, BEGIN, END, SPEECH, STOP = range(5)
_REMEMBERED = 1 << 18  # texts
_TAGS = re.compile(r"\[S([12])\]")
_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "-"})


class TextConfig(Config):
    """A text front end and its symbols."""

    kind: Literal["characters", "bytes", "phonemes", "tokenizer"] = "characters"
    """Lower-case characters; bytes of UTF-8, which know every text; phonemes of espeak (`xycodec[phonemes]`); or the
    tokens of a language model of Transformers, where it speaks."""
    language: str = "en-us"
    """The language, as espeak names it: of phonemes; and English texts of characters have their numbers written out."""
    symbols: Annotated[tuple[str, ...], Field(max_length=65536)] | None = None
    """Symbols that the model knows; null: those of the training texts. Not for bytes and tokens."""
    tokenizer: str | None = None
    """The language model's `tokenizer.json`, where `kind` is tokenizer; null: that of the model's source."""

    @model_validator(mode="after")
    def _one_table(self) -> "TextConfig":
        if self.kind in ("bytes", "tokenizer") and self.symbols is not None:
            raise ValueError(f"symbols: {self.kind} have a table of their own: leave it out")
        if self.symbols is not None and len(set(self.symbols)) < len(self.symbols):
            raise ValueError("symbols: one is given twice: give each once")
        return self

    @property
    def size(self) -> int:
        """Ids in all."""
        if self.kind == "tokenizer":
            return len(SPECIALS) + int(self.tokens.get_vocab_size())
        return len(SPECIALS) + (256 if self.kind == "bytes" else len(self.symbols or ()))

    @cached_property
    def tokens(self) -> Any:
        """The tokenizer, of the package `tokenizers`."""
        return require_library("tokenizers", "train").Tokenizer.from_str(self.tokenizer)


def symbols_of(text: str, config: TextConfig) -> list[str]:
    """The symbols of a text, speaker tags included, of any table. Raises CheckpointError without phonemizer."""
    found: list[str] = []
    for number, part in enumerate(_TAGS.split(text)):
        found += [f"[S{part}]"] if number % 2 else _split(part, config)
    return found


def _split(text: str, config: TextConfig) -> list[str]:
    if config.kind == "bytes":
        return [f"{byte:02x}" for byte in text.encode()]
    if config.kind == "tokenizer":
        return [str(number) for number in config.tokens.encode(text, add_special_tokens=False).ids]
    words = re.sub(r"\s+", " ", text.translate(_QUOTES))
    return list(words.lower()) if config.kind == "characters" else _phonemes(words, config.language)


def _phonemes(text: str, language: str) -> list[str]:
    if not text:
        return []
    phonemizer = require_library("phonemizer", "phonemes")
    separator = phonemizer.separator.Separator(word="_", syllable="-", phone="|")
    try:
        said: str = phonemizer.phonemize(
            text, language=language, backend="espeak", separator=separator, strip=True, preserve_punctuation=True,
            with_stress=False, tie=False, language_switch="keep-flags",
        )  # fmt: skip
    except RuntimeError as error:
        raise XycodecError(f"phonemes: {' '.join(str(error).split())}: apt-get install espeak-ng") from None
    # The gap between words is a symbol too.
    return [symbol for symbol in re.split(r"\|+|(_)|\s+", said) if symbol]


def collect_symbols(texts: Iterable[str], config: TextConfig) -> TextConfig:
    """The front end with the symbols of `texts`, sorted. Raises XycodecError if there are none."""
    if config.kind in ("bytes", "tokenizer") or config.symbols is not None:
        return config
    found = {symbol for text in texts for symbol in symbols_of(text, config)} - set(SPECIALS)
    if not found:
        raise XycodecError("no text has a symbol to learn from: give clips with texts")
    return config.model_copy(update={"symbols": tuple(sorted(found))})


@lru_cache(8)
def front_end(config: TextConfig) -> "TextFrontEnd":
    """The front end of a configuration, made once."""
    return TextFrontEnd(config)


class TextFrontEnd:
    """Texts as ids of a table that is complete."""

    def __init__(self, config: TextConfig) -> None:
        self.config = config
        table: Iterable[str] = config.symbols or ()
        if config.kind == "bytes":
            table = [f"{byte:02x}" for byte in range(256)]
        if config.kind == "tokenizer":
            table = map(str, range(config.tokens.get_vocab_size()))
        self._ids = {symbol: number for number, symbol in enumerate((*SPECIALS, *table))}
        self._known = lru_cache(_REMEMBERED)(self._find)

    def encode(self, text: str) -> list[int]:
        """Ids of a text between those of `<begin>` and `<end>`.

        Raises XycodecError, one line, if nothing is said or a symbol is not in the model's table.
        """
        symbols = symbols_of(text.strip(), self.config)
        if not any(sign.isalnum() for sign in _TAGS.sub("", text)):
            raise XycodecError(f"{text!r}: no text to speak: give some words")
        unknown = sorted(set(symbols) - self._ids.keys())
        if unknown:
            raise XycodecError(
                f"{text!r}: the model does not know {', '.join(map(repr, unknown))}: spell it in its symbols, "
                f"{''.join(self.config.symbols or ())!r}"
            )
        return [BEGIN, *(self._ids[symbol] for symbol in symbols), END]

    def spelled(self, text: str) -> str:
        """The text as a model of English letters reads it: `spell_out` between tags. Others read it as it is."""
        if self.config.kind != "characters" or not self.config.language.startswith("en"):
            return text
        parts = enumerate(_TAGS.split(text))
        return " ".join(
            f"[S{part}]" if number % 2 else spell_out(part.translate(_QUOTES), self._ids) for number, part in parts
        ).strip()

    def known(self, text: str | None) -> list[int]:
        """Ids as `encode`'s, of a training text whose unknown symbols are left out; [] where nothing is left.

        They are remembered: phonemes take long.
        """
        return list(self._known(text))

    def _find(self, text: str | None) -> list[int]:
        symbols = [self._ids[symbol] for symbol in symbols_of(text or "", self.config) if symbol in self._ids]
        return [BEGIN, *symbols, END] if symbols else []
