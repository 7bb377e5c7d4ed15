"""Several sources as one corpus: their cuts by number, their weights, and seeded orders of cuts."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from xycodec.data.catalogue import Catalogue, Tell, open_catalogue
from xycodec.data.clip import generator_of
from xycodec.data.codes import StoreCatalogue, open_store
from xycodec.data.config import DataConfig, SourceConfig
from xycodec.data.facts import Facts, usable
from xycodec.errors import ConfigError

Fact = Literal["text", "labels"]
Numbers = NDArray[np.uint32]
"""Numbers of cuts, (N,)."""


@dataclass(frozen=True)
class Corpus:
    """The cuts of several sources by number, one source after the other; or the clips of stores of tokens."""

    catalogues: tuple[Catalogue, ...] | tuple[StoreCatalogue, ...]
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

    def __getitem__(self, number: int) -> Any:
        source = int(np.searchsorted(self.starts, number, side="right")) - 1
        return self.catalogues[source][int(number - self.starts[source])]

    @property
    def facts(self) -> Facts:
        """Rows of FACTS, (N,), of all cuts."""
        only = len(self.catalogues) == 1
        return self.catalogues[0].facts if only else np.concatenate([part.facts for part in self.catalogues])

    @property
    def places(self) -> NDArray[np.int64]:
        """Frames and characters of text (N,) of all clips of stores. Raises ConfigError where there are recordings."""
        stores = [part for part in self.catalogues if isinstance(part, StoreCatalogue)]
        if not stores:
            raise ConfigError("data.batch_places: recordings have no frames: set batch_seconds")
        return np.concatenate([part.places for part in stores])

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


def open_stores(sources: Sequence[SourceConfig], required: Fact | None = None, *, companions: bool = False) -> Corpus:
    """Open stores of tokens as one corpus; `companions` lets each clip come with another one of its speaker.

    Raises ConfigError if one is not there or holds nothing.
    """
    weights = tuple(source.weight for source in sources if source.weight is not None)
    return Corpus(tuple(open_store(source, companions) for source in sources), weights or None, required)


def shuffled(numbers: Numbers, *facts: int | str) -> Numbers:
    """Shuffle `numbers`: a uniform permutation that depends on `facts` alone, the same on every machine."""
    # The raw numbers of a generator are the same in every version of numpy; its permutations need not be.
    keys = generator_of(*facts).bit_generator.random_raw(len(numbers))
    return numbers[np.argsort(keys, kind="stable")]
