"""A corpus decoded once into the memory of a device, and batches that are cut out of it there."""

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import soundfile as sf
import torch
from lhotse import MonoCut
from lhotse.cut import Cut
from numpy.typing import NDArray
from torch import Tensor

from xycodec.data.batch import Batch, Position, collate
from xycodec.data.clip import Excerpt, draw_excerpt, language_of, longest_clip, require_loudness, text_of
from xycodec.data.config import DataConfig
from xycodec.errors import AudioError, ConfigError
from xycodec.io.cores import available_cores
from xycodec.io.rate import SPEECH_RATE

_FULL_SCALE = 32768
_BLOCK = 1280  # samples whose loudest one is remembered on the host
_TAPS = 16  # neighbours on either side that a sample between samples is computed from
_ROLL_OFF = 0.97  # of the band that a faster clip keeps: the filter is not steep


@dataclass(frozen=True)
class _Drawn:
    """A clip drawn for a batch: the place of its samples in memory, its augmentation, and its length after it."""

    cut: Cut
    excerpt: Excerpt
    first: int
    count: int
    length: int


class Memory:
    """The samples of recordings, one after the other, as 16-bit numbers on a device.

    Attributes:
        samples: (N,) int16.
        remark: a line that says how much was decoded.
    """

    def __init__(self, samples: Tensor, places: dict[str, tuple[int, int]], peaks: NDArray[np.int32]) -> None:
        self.samples, self._places, self._peaks = samples, places, peaks
        self.remark = ""

    @classmethod
    def load(cls, cuts: Iterable[Cut], *, output_sample_rate: int, device: torch.device | str) -> "Memory":
        """Decode every file that `cuts` name, on all cores.

        Raises ConfigError if a cut is none of one file, a file is not mono or not at 16 kHz, cannot be decoded, or
        the codec decodes at another rate than 16 kHz.
        """
        if output_sample_rate != SPEECH_RATE:
            raise ConfigError(f"data.in_memory: for codecs that decode at 16 kHz, not at {output_sample_rate} Hz")
        began = time.monotonic()
        files = list(dict.fromkeys(_file_of(cut) for cut in cuts))
        with ThreadPoolExecutor(available_cores()) as pool:  # libsndfile decodes without Python's lock
            decoded = list(pool.map(_decoded, files))
        places: dict[str, tuple[int, int]] = {}
        end = 0
        for name, block in zip(files, decoded, strict=True):
            places[name] = (end, end + len(block))
            end += len(block)
        samples = np.concatenate([*decoded, np.zeros(-end % _BLOCK, np.int16)])
        peaks = np.abs(samples.reshape(-1, _BLOCK).astype(np.int32)).max(axis=1)
        memory = cls(torch.from_numpy(samples).to(device), places, peaks)
        memory.remark = (
            f"in memory: {end / SPEECH_RATE / 3600:,.2f} h, {memory.samples.nbytes / 1e9:.2f} GB, "
            f"decoded in {time.monotonic() - began:.0f} s"
        )
        return memory

    def place(self, cut: Cut, excerpt: Excerpt) -> tuple[int, int]:
        """First sample of an excerpt and the one behind its last."""
        begin, end = self._places[_file_of(cut)]
        edges = (cut.start + excerpt.start, cut.start + excerpt.start + excerpt.seconds)
        first, last = (min(begin + round(edge * SPEECH_RATE), end) for edge in edges)
        return first, last

    def loudest(self, first: int, last: int) -> float:
        """Peak (full scale is 1) of the blocks of 80 ms within samples `first` to `last`, or around them if none is."""
        inner = self._peaks[-(-first // _BLOCK) : last // _BLOCK]
        blocks = inner if len(inner) else self._peaks[first // _BLOCK : -(-last // _BLOCK)]
        return float(blocks.max(initial=0)) / _FULL_SCALE


class MemoryBatches:
    """Makes batches out of a memory as a decoder makes them out of files: the same draws, and the same samples.

    Where the speed changes they differ a little: windowed sincs stand for soxr. Silence is told from blocks of 80 ms.
    """

    def __init__(self, memory: Memory, config: DataConfig, seed: int) -> None:
        self.memory, self.config, self.seed = memory, config, seed

    def make(self, cuts: Sequence[tuple[Cut, int]], position: Position) -> Batch:
        """The batch of `cuts`, each with the epoch of its draws, on the memory's device. The host waits for nothing."""
        drawn: list[_Drawn] = []
        skipped: list[tuple[str, str]] = []
        for cut, epoch in cuts:
            try:
                drawn.append(self._draw(cut, epoch))
            except AudioError as error:
                skipped.append((cut.id, str(error)))
        if not drawn:
            return collate((), skipped, position, output_sample_rate=SPEECH_RATE).to(self.memory.samples.device)
        audio = self._audio(drawn)
        lengths = tuple(clip.length for clip in drawn)
        return Batch(
            ids=tuple(clip.cut.id for clip in drawn),
            audio=audio,
            lengths=lengths,
            target=audio,
            target_lengths=lengths,
            texts=tuple(text_of(clip.cut, clip.excerpt.start, clip.excerpt.end) for clip in drawn),
            languages=tuple(language_of(clip.cut) for clip in drawn),
            skipped=tuple(skipped),
            position=position,
        )

    def _draw(self, cut: Cut, epoch: int) -> _Drawn:
        excerpt = draw_excerpt(cut, self.config, seed=self.seed, epoch=epoch)
        first, last = self.memory.place(cut, excerpt)
        length = min(longest_clip(self.config), round((last - first) / excerpt.change.speed))
        if length < 1:
            raise AudioError(f"{cut.id}: holds no samples: leave it out")
        require_loudness(cut, self.memory.loudest(first, last), self.config)
        return _Drawn(cut, excerpt, first, last - first, length)

    def _audio(self, drawn: Sequence[_Drawn]) -> Tensor:
        device = self.memory.samples.device
        changes = [clip.excerpt.change for clip in drawn]
        first, count, length = (
            torch.tensor([getattr(clip, name) for clip in drawn]).to(device, non_blocking=True)[:, None]
            for name in ("first", "count", "length")
        )
        time = torch.arange(max(clip.length for clip in drawn), device=device)
        audio = read(self.memory.samples, first, count, time.expand(len(drawn), -1))
        moved = [row for row, change in enumerate(changes) if change.speed != 1]
        if moved:
            rows = torch.tensor(moved).to(device, non_blocking=True)
            speed = torch.tensor([changes[row].speed for row in moved], dtype=torch.float64)
            at_speed = read_at_speed(
                self.memory.samples, first[rows], count[rows], time, speed.to(device, non_blocking=True)[:, None]
            )
            audio = audio.index_copy(0, rows, at_speed)
        audio = audio * (time < length)
        gain = torch.tensor([10 ** (change.gain_db / 20) for change in changes]).to(device, non_blocking=True)
        peak = audio.abs().amax(dim=1) * gain
        # A clip that would go beyond full scale is turned down as a whole; one without changes cannot.
        return audio * (gain / peak.clamp_min(1))[:, None]


def read(samples: Tensor, first: Tensor, count: Tensor, place: Tensor) -> Tensor:
    """Samples (B, T) in [-1, 1] at places (B, T) of excerpts that begin at `first` (B, 1); 0 outside their `count`."""
    inside = (place >= 0) & (place < count)
    index = (first + place).clamp(0, len(samples) - 1)
    return samples[index].float() * inside / _FULL_SCALE


def read_at_speed(samples: Tensor, first: Tensor, count: Tensor, time: Tensor, speed: Tensor) -> Tensor:
    """Excerpts as `read`'s, `speed` (B, 1) times as fast: sample t is that at t * speed, from a windowed sinc's sum.

    What would lie above half the rate at a higher speed is filtered out.
    """
    place = time * speed
    whole = place.floor()
    part = (place - whole).float()
    band = (_ROLL_OFF / speed).clamp(max=1).float()
    whole = whole.long()
    audio = torch.zeros_like(part)
    for tap in range(1 - _TAPS, _TAPS + 1):
        away = tap - part
        weight = band * torch.sinc(band * away) * torch.cos(torch.pi / (2 * _TAPS) * away).square()
        audio += weight * read(samples, first, count, whole + tap)
    return audio


def _file_of(cut: Cut) -> str:
    recording = getattr(cut, "recording", None)
    if not isinstance(cut, MonoCut) or recording is None or recording.transforms or len(recording.sources) != 1:
        raise ConfigError(f"data.in_memory: {cut.id} is not of one recording: use xycodec data pack")
    source = recording.sources[0]
    if source.type != "file":
        raise ConfigError(f"data.in_memory: {cut.id} is not of a file: use xycodec data pack")
    return str(source.source)


def _decoded(path: str) -> NDArray[np.int16]:
    try:
        block, rate = sf.read(path, dtype="int16", always_2d=True)
    except (sf.LibsndfileError, OSError) as error:
        raise ConfigError(f"data.in_memory: {path}: cannot be decoded ({error}): use xycodec data pack") from None
    if rate != SPEECH_RATE or block.shape[1] != 1:
        raise ConfigError(
            f"data.in_memory: {path} has {block.shape[1]} channels at {rate} Hz, needs 1 at {SPEECH_RATE}: "
            "use xycodec data pack"
        )
    samples: NDArray[np.int16] = block[:, 0]
    return samples
