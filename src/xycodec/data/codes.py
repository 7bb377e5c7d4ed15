"""Stores of tokens as corpora: clips that are codes already, drawn and batched as recordings are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from xycodec.data.batch import Batch, Position
from xycodec.data.clip import generator_of
from xycodec.data.config import DataConfig, SourceConfig
from xycodec.data.facts import FACTS, Facts
from xycodec.errors import AudioError, ConfigError, StoreError
from xycodec.io.tokens.layout import Description
from xycodec.io.tokens.read import TokenStore
from xycodec.io.tokens.vectors import has_vectors, read_vectors


@dataclass(frozen=True)
class CodeClip:
    """A clip of a store: codes (n_q, L), `samples` at the codec's input rate, and what is known of it."""

    id: str
    codes: Tensor
    samples: int
    text: str | None
    language: str | None
    companion: Tensor | None = None
    """Codes (n_q, L) of another clip of the same speaker."""
    condition: Tensor | None = None
    """(D,) float32."""


class StoreCatalogue:
    """The clips of a store by number, with the facts that batches are drawn by. Pickled, it is its folder's name."""

    def __init__(self, folder: Path, companions: bool = False) -> None:
        self.store, self._companions = TokenStore(folder), companions

    def texts(self) -> Iterator[str | None]:
        """Yield the text of every clip; None of one that has none."""
        return (_text(self.store.meta(number)) for number in range(len(self)))

    # Not for workers, which read the clips that they are told of: all metadata are parsed for these two.

    @cached_property
    def facts(self) -> Facts:
        """(N,) rows of FACTS."""
        facts = np.zeros(len(self), FACTS)
        facts["seconds"] = self.store.lengths() / self.description.frame_rate
        # Codes have been made: no rate is too low any more.
        facts["rate"] = np.iinfo(np.uint32).max
        facts["text"] = self._characters > 0
        return facts

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """(N,) frames and characters of text of every clip: what a model that reads both has to hold."""
        return self.store.lengths() + self._characters

    @cached_property
    def _characters(self) -> NDArray[np.int64]:
        return np.array([len(text or "") for text in self.texts()], np.int64)

    def __reduce__(self) -> tuple[Any, ...]:
        return StoreCatalogue, (self.store.folder, self._companions)

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, number: int) -> "StoredAt":
        return StoredAt(self, number)

    @property
    def description(self) -> Description:
        """The description of the store's codes."""
        return self.store.description

    @cached_property
    def vectors(self) -> NDArray[np.float16] | None:
        """(N, D) vectors of all clips, mapped; None where the store has none."""
        return read_vectors(self.store) if has_vectors(self.store) else None

    @cached_property
    def _speakers(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for number in range(len(self)):
            speaker = self.store.meta(number).get("speaker")
            if isinstance(speaker, str):
                found.setdefault(speaker, []).append(number)
        return found

    def clip(self, number: int, config: DataConfig, *, seed: int, epoch: int) -> CodeClip:
        """A clip, or the part of it that `config` takes; it depends on `seed`, `epoch` and the clip's id alone.

        A part of a clip has no text. Raises AudioError if the store is damaged there or the clip holds no frame.
        """
        try:
            found = self.store[number]
        except StoreError as error:
            raise AudioError(str(error)) from None
        about, generator = self.description, generator_of(seed, epoch, found.id)
        frames, most = found.codes.shape[1], round(config.clip_seconds * about.frame_rate)
        if not frames:
            raise AudioError(f"{found.id}: holds no frame: leave it out")
        spare = max(0, frames - most)
        start = int(generator.integers(spare + 1)) if config.crop == "random" else 0
        codes = torch.from_numpy(found.codes[:, start : start + most].astype(np.int64))
        language = found.meta.get("language")
        return CodeClip(
            id=found.id,
            codes=codes,
            samples=min(found.samples - start * about.hop_length, codes.shape[1] * about.hop_length),
            text=None if spare else _text(found.meta),
            language=language if isinstance(language, str) else None,
            companion=self._companion(number, found.meta.get("speaker"), generator) if self._companions else None,
            condition=None if self.vectors is None else torch.from_numpy(self.vectors[number].astype(np.float32)),
        )

    def _companion(self, number: int, speaker: Any, generator: Generator) -> Tensor | None:
        found = self._speakers.get(speaker, ()) if isinstance(speaker, str) else ()
        others = [other for other in found if other != number]
        if not others:
            return None
        chosen = others[int(generator.integers(len(others)))]
        return torch.from_numpy(self.store.codes(chosen).astype(np.int64))


@dataclass(frozen=True)
class StoredAt:
    """A clip of a catalogue that has not been read yet."""

    catalogue: StoreCatalogue
    number: int

    @property
    def id(self) -> str:
        """Id of the clip."""
        return str(self.catalogue.store.meta(self.number)["id"])


def open_store(source: SourceConfig, companions: bool = False) -> StoreCatalogue:
    """Open the store at a source. Raises ConfigError, one line, if it is none or holds no clip."""
    try:
        made = StoreCatalogue(Path(source.path), companions)
    except StoreError as error:
        raise ConfigError(str(error)) from None
    if not len(made):
        raise ConfigError(f"{source.path}: holds no clips: check the path, or leave the source out")
    return made


def same_codec(sources: Sequence[SourceConfig]) -> Description:
    """The description of the codes that all sources hold. Raises ConfigError if they are of several codecs."""
    found = [open_description(source) for source in sources]
    for source, other in zip(sources, found, strict=True):
        if differs := found[0].difference(other):
            raise ConfigError(f"{sources[0].path} and {source.path} hold other codes ({differs}): use stores of one")
    return found[0]


def open_description(source: SourceConfig) -> Description:
    """The description of a store's codes. Raises ConfigError if it is none."""
    try:
        return TokenStore(source.path).description
    except StoreError as error:
        raise ConfigError(str(error)) from None


def _text(meta: dict[str, Any]) -> str | None:
    text = meta.get("text")
    return text.strip() or None if isinstance(text, str) else None


def collate_codes(clips: Sequence[CodeClip], skipped: Sequence[tuple[str, str]], position: Position, n_q: int) -> Batch:
    """Join clips into a batch without audio; of no clip, a batch of one frame that belongs to none."""
    codes = [clip.codes for clip in clips] or [torch.zeros(n_q, 1, dtype=torch.int64)]
    frames = tuple(one.shape[1] for one in codes) if clips else (0,)
    longest = max(one.shape[1] for one in codes)
    nothing = torch.zeros(len(codes), 0)
    samples = tuple(clip.samples for clip in clips) or (0,)
    conditions = [clip.condition for clip in clips if clip.condition is not None]
    return Batch(
        ids=tuple(clip.id for clip in clips) or ("",),
        audio=nothing,
        lengths=samples,
        target=nothing,
        target_lengths=samples,
        texts=tuple(clip.text for clip in clips) or (None,),
        languages=tuple(clip.language for clip in clips) or (None,),
        skipped=tuple(skipped),
        position=position,
        codes=torch.stack([torch.nn.functional.pad(one, (0, longest - one.shape[1])) for one in codes]),
        frames=frames,
        companions=tuple(clip.companion for clip in clips) or (None,),
        conditions=torch.stack(conditions) if clips and len(conditions) == len(clips) else None,
    )
