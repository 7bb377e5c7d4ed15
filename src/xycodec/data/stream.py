"""The stream of batches that training reads: endless, the same in every run, and resumed exactly."""

import atexit
import signal
import weakref
from collections.abc import Generator, Iterable, Iterator
from itertools import islice

import torch
from lhotse.cut import Cut
from torch.utils.data import DataLoader, Dataset

from xycodec.data.batch import BEGINNING, Batch, Position, collate
from xycodec.data.clip import Clip, load_clip
from xycodec.data.config import Augmentation, DataConfig
from xycodec.data.memory import Memory, MemoryBatches
from xycodec.data.sampling import Sampler
from xycodec.data.sources import Cuts
from xycodec.data.survey import obstacle
from xycodec.errors import AudioError, ConfigError

_AHEAD = 4  # batches that a worker decodes in advance

_GIVE_UP = 100_000  # clips: an endless mix of nothing usable would be searched for ever

_Step = tuple[list[Cut], Position]


class BatchStream:
    """Batches of `cuts` for process `rank` of `world_size`, epoch after epoch.

    The main process draws which clips make up a batch; `config.workers` processes decode them. All draws depend on
    `seed` and the epoch, and those within a clip on its id too. Cuts that are too short or were recorded below the
    output rate are passed over; clips that turn out unusable are listed in their batch.

    Args:
        cuts: what `open_sources` gives; every process the same.
        config: the recipe's part on data.
        output_sample_rate: rate in Hz of the batches' `target`.
        seed: of all draws; the same in every process.
        rank: number of this process.
        world_size: number of processes.
        memory: the recordings of `cuts`, decoded: batches are cut out of it, on its device, without workers.

    Raises:
        ConfigError: no cut can be used, or a batch may not hold even one clip.
    """

    def __init__(
        self,
        cuts: Cuts,
        config: DataConfig,
        *,
        output_sample_rate: int,
        seed: int,
        rank: int,
        world_size: int,
        memory: Memory | None = None,
    ) -> None:
        self._sampler = Sampler(
            _Usable(cuts, config, output_sample_rate), config, seed=seed, rank=rank, world_size=world_size
        )
        self._decoder = _Decoder(config, output_sample_rate, seed)
        self._memory = None if memory is None else MemoryBatches(memory, config, seed)
        self._config = config

    def batches(self, start: Position = BEGINNING) -> Iterator[Batch]:
        """Yield the batches after `start`, without end, in steps that all processes share.

        From the `position` of any batch of an earlier stream it goes on with the same batches, sample for sample, for
        any number of workers. Until then it draws without decoding.
        """
        stream = self._batches(start)
        # Python ends its children with SIGTERM and waits for them, but the workers leave that signal to us.
        atexit.register(_close, weakref.ref(stream))
        return stream

    def _batches(self, start: Position) -> Generator[Batch, None, None]:
        if self._memory is not None:
            for cuts, position in self._steps(start):
                yield self._memory.make(cuts, position)
        workers = self._config.workers
        yield from DataLoader(
            self._decoder,
            sampler=self._steps(start),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=_AHEAD if workers else None,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_leave_signals,
            # Or it would draw from the global generator, and a resumed run would differ.
            generator=torch.Generator(),
        )

    def batches_per_epoch(self) -> int | None:
        """Batches this process takes of the first epoch, counted by drawing them; None for an endless mix."""
        if _endless(self._config):
            return None
        return sum(1 for _ in self._sampler.epoch(0))

    def _steps(self, start: Position) -> Iterator[_Step]:
        epoch, taken = start.epoch, start.batch
        while True:
            for number, cuts in enumerate(islice(self._sampler.epoch(epoch), taken, None), taken + 1):
                yield cuts, Position(epoch, number)
            epoch, taken = epoch + 1, 0


def validation_batches(
    cuts: Iterable[Cut], config: DataConfig, *, output_sample_rate: int, clips: int, rank: int, world_size: int
) -> Iterator[Batch]:
    """Yield the first `clips` usable cuts, in order, once, decoded in this process: unchanged, from their beginning.

    Process `rank` takes every `world_size`-th batch, so processes may take unequally many.
    """
    plain = config.model_copy(update={"augment": Augmentation(), "crop": "first"})
    usable = (cut for cut in cuts if obstacle(cut, plain, output_sample_rate) is None)
    steps = ((chunk, Position(0, number)) for number, chunk in enumerate(_chunks(islice(usable, clips), plain), 1))
    decoder = _Decoder(plain, output_sample_rate, seed=0)
    yield from map(decoder.__getitem__, islice(steps, rank, None, world_size))


def _chunks(cuts: Iterable[Cut], config: DataConfig) -> Iterator[list[Cut]]:
    chunk: list[Cut] = []
    for cut in cuts:
        longest = max(min(part.duration, config.clip_seconds) for part in [*chunk, cut])
        full = len(chunk) == config.batch_clips
        if chunk and (full or (config.batch_seconds and (len(chunk) + 1) * longest > config.batch_seconds)):
            yield chunk
            chunk = []
        chunk.append(cut)
    if chunk:
        yield chunk


class _Usable:
    def __init__(self, cuts: Cuts, config: DataConfig, output_sample_rate: int) -> None:
        self.cuts, self.config, self.output_sample_rate = cuts, config, output_sample_rate

    def __iter__(self) -> Iterator[Cut]:
        endless, refused = _endless(self.config), 0
        for cut in self.cuts:
            why = obstacle(cut, self.config, self.output_sample_rate)
            if why is None:
                refused = 0
                yield cut
            elif endless and (refused := refused + 1) == _GIVE_UP:
                raise ConfigError(
                    f"data.train: {refused} clips in a row are left out, this one {why}: check the sources"
                )


def _endless(config: DataConfig) -> bool:
    return any(source.weight is not None for source in config.train)


class _Decoder(Dataset[Batch]):
    """Makes the batch of a step: what runs in the workers."""

    def __init__(self, config: DataConfig, output_sample_rate: int, seed: int) -> None:
        self.config, self.output_sample_rate, self.seed = config, output_sample_rate, seed

    def __getitem__(self, step: _Step) -> Batch:
        cuts, position = step
        tried = [(cut.id, self._attempt(cut, position.epoch)) for cut in cuts]
        clips = [result for _, result in tried if isinstance(result, Clip)]
        skipped = [(name, str(result)) for name, result in tried if isinstance(result, AudioError)]
        return collate(clips, skipped, position, output_sample_rate=self.output_sample_rate)

    def _attempt(self, cut: Cut, epoch: int) -> Clip | AudioError:
        try:
            return load_clip(cut, self.config, output_sample_rate=self.output_sample_rate, seed=self.seed, epoch=epoch)
        except AudioError as error:
            return error


def _leave_signals(worker: int) -> None:
    """Signals that stop a run go to all its processes; the main process decides, and ends its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _close(stream: "weakref.ref[Generator[Batch, None, None]]") -> None:
    left = stream()
    if left is not None:
        left.close()
