"""Word error rate of transcripts, as counts that add up over batches and processes."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

_APOSTROPHES = "'\N{RIGHT SINGLE QUOTATION MARK}"


@dataclass(frozen=True)
class WordErrors:
    """Substituted, deleted and inserted words, and the words of the references."""

    errors: int
    words: int

    def __add__(self, other: "WordErrors") -> "WordErrors":
        return WordErrors(self.errors + other.errors, self.words + other.words)

    @property
    def rate(self) -> float:
        """Errors per word of the references; insertions may take it beyond 1. 0 where there are no words."""
        return self.errors / max(self.words, 1)


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> WordErrors:
    """Fewest word edits that turn each hypothesis into its reference, summed, after `normalise` on both.

    A reference without words counts its hypothesis as insertions.
    """
    import jiwer

    measured = jiwer.process_words([normalise(text) for text in references], [normalise(text) for text in hypotheses])
    return WordErrors(
        errors=measured.substitutions + measured.deletions + measured.insertions,
        words=measured.substitutions + measured.deletions + measured.hits,
    )


def normalise(text: str, *, apostrophe: str = "") -> str:
    """Lower case (NFKC), all punctuation and white space turned into single spaces, apostrophes into `apostrophe`."""
    text = unicodedata.normalize("NFKC", text).lower()
    apostrophes = dict.fromkeys(_APOSTROPHES, apostrophe)
    kept = (
        apostrophes.get(character, " " if unicodedata.category(character).startswith("P") else character)
        for character in text
    )
    return " ".join("".join(kept).split())
