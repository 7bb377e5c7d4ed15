"""The interface of models that judge a decoding."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xycodec.errors import XycodecError, reason_of
from xycodec.eval.results import Scores
from xycodec.io.audio import Samples
from xycodec.io.rate import SPEECH_RATE

PIECE_S = 40.0
"""A self-attention over more takes gigabytes; no clip of LibriSpeech is as long."""


@dataclass(frozen=True)
class Pair:
    """A decoding and its original, both (n,) at 16 kHz, and what is said, where that is known."""

    decoded: Samples
    original: Samples
    text: str | None = None
    language: str | None = None
    """A code or a name, `de` or `German`; None where it is not known."""
    heard: str | None = None
    """Text that the recogniser hears in the original: the reference where there is no transcript."""


class Judge(ABC):
    """One metric or several that a model computes: call it with pairs for the scores of each.

    What it says of a clip does not depend on the clips beside it. A clip that cannot be judged has the reason in
    `missing`.
    """

    names: tuple[str, ...]
    """Names of its metrics."""
    shortest: int
    """Samples of the shortest clip that it can judge."""
    batch_size: int = 1
    """Clips that it judges at once."""

    @abstractmethod
    def describe(self) -> str:
        """One line for the protocol: model, revision where that is known, and settings."""

    @abstractmethod
    def judge(self, pairs: Sequence[Pair]) -> list[Scores]:
        """The scores of at most `batch_size` pairs, none of which it refuses."""

    def refusal(self, pair: Pair) -> str | None:
        """The reason why it cannot judge the pair, or None."""
        if not (np.isfinite(pair.decoded).all() and np.isfinite(pair.original).all()):
            return "has samples that are not finite"
        if min(len(pair.decoded), len(pair.original)) < self.shortest:
            return f"under {self.shortest / SPEECH_RATE:.3g} s"
        return None

    def __call__(self, pairs: Sequence[Pair]) -> list[Scores]:
        """The scores of each pair, in order."""
        refusals = [self.refusal(pair) for pair in pairs]
        judged = iter(self._in_groups([pair for pair, why in zip(pairs, refusals, strict=True) if why is None]))
        return [next(judged) if why is None else self._missing(why) for why in refusals]

    def _in_groups(self, pairs: Sequence[Pair]) -> list[Scores]:
        groups = [pairs[start : start + self.batch_size] for start in range(0, len(pairs), self.batch_size)]
        return [scores for group in groups for scores in self._guarded(group)]

    def _guarded(self, pairs: Sequence[Pair]) -> list[Scores]:
        try:
            return self.judge(pairs)
        except XycodecError as error:
            if len(pairs) == 1:
                return [self._missing(str(error))]
        # A library that fails on one clip, or a device without the memory for it, must not cost the others' hours.
        except Exception as error:
            if len(pairs) == 1:
                return [self._missing(f"not computed: {reason_of(error)}")]
        return [scores for pair in pairs for scores in self._guarded([pair])]

    def _missing(self, reason: str) -> Scores:
        return Scores(missing=dict.fromkeys(self.names, reason))


def pieces(audio: Samples, seconds: float = PIECE_S) -> list[Samples]:
    """(n,) at 16 kHz in the fewest equal pieces, to a sample, of at most so many seconds."""
    return np.array_split(audio, max(1, int(np.ceil(len(audio) / (seconds * SPEECH_RATE)))))
