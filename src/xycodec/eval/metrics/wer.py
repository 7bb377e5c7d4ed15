"""Word and character errors of transcripts, as counts that add up over batches and processes."""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Normaliser = Callable[[str], str]
"""A text in the form in which texts are compared."""

_APOSTROPHES = "'\N{RIGHT SINGLE QUOTATION MARK}"


@dataclass(frozen=True)
class WordErrors:
    """Substituted, deleted and inserted words, and the words of the references."""

    errors: int
    words: int

    def __add__(self, other: "WordErrors") -> "WordErrors":
        return WordErrors(self.errors + other.errors, self.words + other.words)

    @property
    def capped(self) -> "WordErrors":
        """These counts with at most as many errors as the references have words."""
        return WordErrors(min(self.errors, self.words), self.words)

    @property
    def rate(self) -> float:
        """Errors per word of the references; insertions may take it beyond 1. 0 where there are no words."""
        return self.errors / max(self.words, 1)


@dataclass(frozen=True)
class CharacterErrors:
    """Substituted, deleted and inserted characters, and the characters of the references; spaces are some."""

    errors: int
    characters: int


def word_error_rate(
    references: Sequence[str], hypotheses: Sequence[str], normaliser: Normaliser | None = None
) -> WordErrors:
    """Fewest word edits that turn each hypothesis into its reference, summed.

    Both go through `normaliser` first, or `normalise`. A reference without words counts its hypothesis as insertions.
    """
    import jiwer

    measured = jiwer.process_words(*_normalised(references, hypotheses, normaliser))
    return WordErrors(
        errors=measured.substitutions + measured.deletions + measured.insertions,
        words=measured.substitutions + measured.deletions + measured.hits,
    )


def character_errors(
    references: Sequence[str], hypotheses: Sequence[str], normaliser: Normaliser | None = None
) -> CharacterErrors:
    """Character error rate, otherwise like `word_error_rate`."""
    import jiwer

    measured = jiwer.process_characters(*_normalised(references, hypotheses, normaliser))
    return CharacterErrors(
        errors=measured.substitutions + measured.deletions + measured.insertions,
        characters=measured.substitutions + measured.deletions + measured.hits,
    )


def _normalised(
    references: Sequence[str], hypotheses: Sequence[str], normaliser: Normaliser | None
) -> tuple[list[str], list[str]]:
    change = normaliser or normalise
    return [change(text) for text in references], [change(text) for text in hypotheses]


def normalise(text: str, *, apostrophe: str = "") -> str:
    """Lower case (NFKC), all punctuation and white space turned into single spaces, apostrophes into `apostrophe`."""
    text = unicodedata.normalize("NFKC", text).lower()
    apostrophes = dict.fromkeys(_APOSTROPHES, apostrophe)
    kept = (
        apostrophes.get(character, " " if unicodedata.category(character).startswith("P") else character)
        for character in text
    )
    return " ".join("".join(kept).split())


def whisper_normaliser(spellings: Mapping[str, str]) -> Normaliser:
    """Whisper's text normaliser for English (Radford et al. 2022, appendix C), from Transformers.

    It writes contractions and titles out and numbers in digits, and leaves out hesitations and what stands in
    brackets. `spellings`: British to American, which Whisper's tokenizers bring along.
    """
    from transformers.models.whisper import english_normalizer

    library: Any = english_normalizer
    whole = library.EnglishTextNormalizer(dict(spellings))
    return lambda text: str(whole(text)).strip()
