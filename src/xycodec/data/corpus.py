"""Several sources as one corpus: their cuts by number, their weights, and seeded orders of cuts."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from lhotse.cut import Cut
from numpy.typing import NDArray

from xycodec.data.catalogue import Catalogue, Tell, open_catalogue
from xycodec.data.clip import generator_of
from xycodec.data.config import DataConfig, SourceConfig
from xycodec.data.facts import Facts, usable

Fact = Literal["text", "labels"]
Numbers = NDArray[np.uint32]
"""Numbers of cuts, (N,)."""


@dataclass(frozen=True)
class Corpus:
    """The cuts of several sources by number, one source after the other."""

    catalogues: tuple[Catalogue, ...]
    weights: tuple[float, ...] | None = None
    """Share of the draws of each source, which then repeats without end; None: every cut comes once an epoch."""
    required: Fact | None = None
    """Fact that a cut must have to be usable."""

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Number of the first cut of each source, and that of all cuts: (sources + 1,)."""
        return np.cumsum([0, *map(len, self.catalogues)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, number: int) -> Cut:
        source = int(np.searchsorted(self.starts, number, side="right")) - 1
        return self.catalogues[source][int(number - self.starts[source])]

    @property
    def facts(self) -> Facts:
        """Rows of FACTS, (N,), of all cuts."""
        only = len(self.catalogues) == 1
        return self.catalogues[0].facts if only else np.concatenate([part.facts for part in self.catalogues])

    def usable(self, config: DataConfig, output_sample_rate: int) -> Numbers:
        """Numbers of the cuts that can be trained on at `output_sample_rate` (Hz), ascending."""
        facts = self.facts
        good = usable(facts, config, output_sample_rate)
        if self.required is not None:
            good &= facts[self.required]
        return np.flatnonzero(good).astype(np.uint32)


def open_corpus(
    sources: Sequence[SourceConfig], required: Fact | None = None, tell: Tell = lambda line: None
) -> Corpus:
    """Open sources as one corpus, mixed without end if they have weights.

    Cuts without the `required` fact are never drawn. `tell` gets a line now and then while a large source is read for
    the first time. Raises ConfigError as `open_catalogue` does.
    """
    weights = tuple(source.weight for source in sources if source.weight is not None)
    return Corpus(tuple(open_catalogue(source, tell) for source in sources), weights or None, required)


def shuffled(numbers: Numbers, *facts: int | str) -> Numbers:
    """Shuffle `numbers`: a uniform permutation that depends on `facts` alone, the same on every machine."""
    # The raw numbers of a generator are the same in every version of numpy; its permutations need not be.
    keys = generator_of(*facts).bit_generator.random_raw(len(numbers))
    return numbers[np.argsort(keys, kind="stable")]
