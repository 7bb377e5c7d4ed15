"""The stream of batches that training reads: endless, the same in every run, and resumed exactly."""

import atexit
import signal
import weakref
from collections.abc import Generator, Iterator
from itertools import islice

import torch
from lhotse.cut import Cut
from torch.utils.data import DataLoader, Dataset

from xycodec.data.batch import BEGINNING, Batch, Position, collate
from xycodec.data.clip import Clip, load_clip
from xycodec.data.codes import CodeClip, StoreCatalogue, StoredAt, collate_codes
from xycodec.data.config import Augmentation, DataConfig
from xycodec.data.corpus import Corpus, Numbers, shuffled
from xycodec.data.memory import Memory, MemoryBatches
from xycodec.data.sampling import Draw, Sampler
from xycodec.errors import AudioError

_AHEAD = 4  # batches that a worker decodes in advance

_Step = tuple[list[Draw], Position]


class BatchStream:
    """Batches of `corpus` for process `rank` of `world_size`, epoch after epoch.

    The main process draws the numbers of the clips of a batch; `config.workers` processes read and decode them. All
    draws depend on `seed` and the epoch, and those within a clip on its id too. Cuts that are too short or were
    recorded below the output rate are passed over; clips that turn out unusable are listed in their batch.

    Args:
        corpus: what `open_corpus` gives; every process the same.
        config: the recipe's part on data.
        output_sample_rate: rate in Hz of the batches' `target`.
        seed: of all draws; the same in every process.
        rank: number of this process.
        world_size: number of processes.
        memory: the recordings of `corpus`, decoded: batches are cut out of it, on its device, without workers.

    Raises:
        ConfigError: no cut can be used, or a batch may not hold even one clip.
    """

    def __init__(
        self,
        corpus: Corpus,
        config: DataConfig,
        *,
        output_sample_rate: int,
        seed: int,
        rank: int,
        world_size: int,
        memory: Memory | None = None,
    ) -> None:
        self._sampler = Sampler(
            corpus, config, output_sample_rate=output_sample_rate, seed=seed, rank=rank, world_size=world_size
        )
        self._corpus = corpus
        self._decoder = _decoder(corpus, config, output_sample_rate, seed)
        self._memory = None if memory is None else MemoryBatches(memory, config, seed)
        self._workers = config.workers

    def resumed(self, position: Position) -> Position:
        """The position at which `batches(position)` begins: see `Sampler.resumed`."""
        return self._sampler.resumed(position)

    def batches_per_epoch(self) -> int | None:
        """Batches that each process takes of an epoch; None for an endless mix."""
        return self._sampler.batches_per_epoch()

    def batches(self, start: Position = BEGINNING) -> Iterator[Batch]:
        """Yield the batches after `start`, without end, in steps that all processes share.

        From the `position` of any batch of an earlier stream it goes on at once with the same batches, sample for
        sample, for any number of workers; for another number of processes with the clips of the epoch that are left. If
        the corpus has changed since, the next epoch begins (`resumed`).
        """
        stream = self._batches(start)
        # Python ends its children with SIGTERM and waits for them, but the workers leave that signal to us.
        atexit.register(_close, weakref.ref(stream))
        return stream

    def _batches(self, start: Position) -> Generator[Batch, None, None]:
        if self._memory is not None:
            for draws, position in self._sampler.steps(start):
                yield self._memory.make([(self._corpus[number], turn) for number, turn in draws], position)
        workers = self._workers
        yield from DataLoader(
            self._decoder,
            sampler=self._sampler.steps(start),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=_AHEAD if workers else None,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_leave_signals,
            # Or it would draw from the global generator, and a resumed run would differ.
            generator=torch.Generator(),
        )


def draw_validation(corpus: Corpus, config: DataConfig, output_sample_rate: int, seed: int) -> Numbers:
    """Numbers of the usable cuts in an order that `seed` decides: the first ones are drawn from the whole corpus."""
    return shuffled(corpus.usable(config, output_sample_rate), "validation", seed)


def validation_batches(
    corpus: Corpus, numbers: Numbers, config: DataConfig, *, output_sample_rate: int, rank: int, world_size: int
) -> Iterator[Batch]:
    """Yield the cuts of these `numbers`, in order, once, decoded in this process: unchanged, from their beginning.

    Process `rank` takes every `world_size`-th batch, so processes may take unequally many.
    """
    plain = config.model_copy(update={"augment": Augmentation(), "crop": "first"})
    steps = ((chunk, Position(0, number)) for number, chunk in enumerate(_chunks(corpus, numbers, plain), 1))
    decoder = _decoder(corpus, plain, output_sample_rate, seed=0)
    yield from map(decoder.__getitem__, islice(steps, rank, None, world_size))


def _chunks(corpus: Corpus, numbers: Numbers, config: DataConfig) -> Iterator[list[Draw]]:
    chunk: list[Draw] = []
    longest = 0.0
    for number, seconds in zip(numbers.tolist(), corpus.facts["seconds"][numbers].tolist(), strict=True):
        longest = max(longest, min(seconds, config.clip_seconds))
        full = len(chunk) == config.batch_clips
        if chunk and (full or (config.batch_seconds and (len(chunk) + 1) * longest > config.batch_seconds)):
            yield chunk
            chunk, longest = [], min(seconds, config.clip_seconds)
        chunk.append((number, 0))
    if chunk:
        yield chunk


def _decoder(corpus: Corpus, config: DataConfig, output_sample_rate: int, seed: int) -> Dataset[Batch]:
    first = corpus.catalogues[0]
    if isinstance(first, StoreCatalogue):
        return _Reader(corpus, config, first.description.n_q, seed)
    return _Decoder(corpus, config, output_sample_rate, seed)


class _Reader(Dataset[Batch]):
    """Dataset that reads the batch of a step out of stores of tokens; runs in the workers."""

    def __init__(self, corpus: Corpus, config: DataConfig, n_q: int, seed: int) -> None:
        self.corpus, self.config, self.n_q, self.seed = corpus, config, n_q, seed

    def __getitem__(self, step: _Step) -> Batch:
        draws, position = step
        clips: list[CodeClip] = []
        skipped: list[tuple[str, str]] = []
        for number, turn in draws:
            place: StoredAt = self.corpus[number]
            try:
                clips.append(place.catalogue.clip(place.number, self.config, seed=self.seed, epoch=turn))
            except AudioError as error:
                skipped.append((place.id, str(error)))
        return collate_codes(clips, skipped, position, self.n_q)


class _Decoder(Dataset[Batch]):
    """Dataset that decodes the batch of a step; runs in the workers."""

    def __init__(self, corpus: Corpus, config: DataConfig, output_sample_rate: int, seed: int) -> None:
        self.corpus, self.config, self.output_sample_rate, self.seed = corpus, config, output_sample_rate, seed

    def __getitem__(self, step: _Step) -> Batch:
        draws, position = step
        tried = [self._attempt(self.corpus[number], turn) for number, turn in draws]
        clips = [result for result in tried if isinstance(result, Clip)]
        skipped = [result for result in tried if not isinstance(result, Clip)]
        return collate(clips, skipped, position, output_sample_rate=self.output_sample_rate)

    def _attempt(self, cut: Cut, turn: int) -> Clip | tuple[str, str]:
        try:
            return load_clip(cut, self.config, output_sample_rate=self.output_sample_rate, seed=self.seed, epoch=turn)
        except AudioError as error:
            return cut.id, str(error)


def _leave_signals(worker: int) -> None:
    """Let a worker ignore SIGTERM and SIGINT: the main process decides, and ends its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _close(stream: "weakref.ref[Generator[Batch, None, None]]") -> None:
    left = stream()
    if left is not None:
        left.close()
