"""The work of tokenization on one process: clips are read, encoded and written in order."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from xycodec import __version__
from xycodec.errors import XycodecError, described
from xycodec.io.audio import Samples
from xycodec.io.tokens.layout import Description, Windowing
from xycodec.io.tokens.write import ShardWriter
from xycodec.models.base import Codec, codes_fingerprint
from xycodec.models.longform import encode_long
from xycodec.models.windows import CountedBlocks, overlap_frames
from xycodec.tokenize.inputs.audio import blocks_of
from xycodec.tokenize.inputs.item import Item

T = TypeVar("T")

_AHEAD = 64  # clips that are read while others are encoded
_BUCKETED = 4  # batches that are cut from clips sorted by length

AdvanceClips = Callable[[int, float], None]
"""Callback for progress: clips and seconds that were just done."""


@dataclass
class Times:
    """Seconds that a worker spent: waiting for audio, encoding, writing; and the seconds of audio that it encoded.

    Reading and resampling run beside the encoding; `reading` counts their own time.
    """

    waiting: float = 0.0
    encoding: float = 0.0
    writing: float = 0.0
    reading: float = 0.0
    audio: float = 0.0
    clips: int = 0

    def __iadd__(self, other: "Times") -> "Times":
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)
        return self


@dataclass(frozen=True)
class Encoding:
    """Settings of encoding clips.

    Attributes:
        codec: at any rate; audio is resampled to it.
        n_q: its first layers (None: all).
        overlap_s: seconds that windows share (None: a third).
        batch_s: seconds of audio that are encoded in one call.
        search: width of the search over codes.
    """

    codec: Codec
    n_q: int | None = None
    overlap_s: float | None = None
    batch_s: float = 30.0
    search: int = 1

    def describe(self) -> Description:
        """The description of the store of such codes. Raises XycodecError on a wrong number of layers or overlap."""
        codec = self.codec
        config: Any = getattr(codec, "config", None)
        low = next((str(one.dtype)[6:] for one in codec.parameters() if one.dtype is torch.bfloat16), "float32")
        return Description(
            model=codec.model_id,
            weights=codes_fingerprint(codec),
            n_q=codec.check_layers(self.n_q),
            codebook_size=codec.codebook_size,
            hop_length=codec.hop_length,
            sample_rate=codec.input_sample_rate,
            output_sample_rate=codec.output_sample_rate,
            window=Windowing(
                codec.window_frames,
                overlap_frames(codec, self.overlap_s),
                "beginning" if codec.reference else "middle",
            ),
            search=codec.check_search(self.search),
            precision=low + (", shared batches" if codec.share_batches else ""),
            config=config.model_dump(mode="json") if hasattr(config, "model_dump") else {},
            versions={"xycodec": __version__, "torch": torch.__version__},
        )


@dataclass
class Loaded:
    """A clip whose audio is there: whole, or as a stream if it is longer than a window; or why it is not."""

    item: Item
    audio: Samples | None = None
    stream: Iterator[Samples] | None = None
    error: str | None = None
    remarks: list[str] = field(default_factory=list)
    reading: float = 0.0
    """Seconds spent reading it before it was encoded."""
    waited: float = 0.0
    """Seconds that the encoding of a stream waited for its next block."""


def load(item: Item, rate: int, window: int) -> Loaded:
    """Read a clip's audio at `rate` (Hz); one of over `window` samples is read as it is encoded."""
    made = Loaded(item, error=item.error)
    if item.error:
        return made
    start = time.perf_counter()
    try:
        blocks = blocks_of(item, rate, made.remarks.append)
        kept: list[Samples] = []
        for block in blocks:
            kept.append(block)
            if sum(map(len, kept)) > window:
                made.stream = chain(kept, blocks)
                break
        else:
            made.audio = np.concatenate(kept)
    except Exception as error:  # whatever a file system or a decoder raises: the rest goes on
        made.error = described(error)
    made.reading = time.perf_counter() - start
    return made


def encode_shard(
    encoding: Encoding,
    items: list[Item],
    part: Path,
    place: Path,
    description: Description,
    advance: AdvanceClips = lambda clips, seconds: None,
) -> Times:
    """Encode the clips of a shard in folder `part`, after those that are there, and move it to `place`.

    A clip that cannot be read or encoded is a failure of the shard. Raises StoreError if the disk does not take it.
    """
    with ShardWriter(part, description) as writer:
        times = encode_into(writer, encoding, items[writer.go_on([item.id for item in items]) :], advance)
        start = time.perf_counter()
        writer.finish(place)
        times.writing += time.perf_counter() - start
    return times


class ClipWriter(Protocol):
    """Interface of what codes are written to: a shard, or a store that grows."""

    def add(self, name: str, codes: "np.ndarray[Any, Any]", samples: int, meta: Mapping[str, Any]) -> None:
        """Keep the codes (n_q, L) of a clip, its samples, and what is known of it."""

    def fail(self, name: str, audio: str, error: str) -> None:
        """Note why a clip has none."""


def encode_into(
    writer: ClipWriter,
    encoding: Encoding,
    items: Iterable[Item],
    advance: AdvanceClips = lambda clips, seconds: None,
) -> Times:
    """Read and encode clips, and write them in their order; one that cannot be is noted as a failure.

    Clips are read beside the encoding. `advance` is told of each group that is written. Raises what the writer raises.
    """
    times, codec = Times(), encoding.codec

    def wait(seconds: float) -> None:
        times.waiting += seconds

    loaded = _ahead(items, lambda item: load(item, codec.input_sample_rate, codec.window_samples))
    for group in _groups(_timed(loaded, wait), _BUCKETED * encoding.batch_s * codec.input_sample_rate):
        start = time.perf_counter()
        made = encode(encoding, group)
        middle = time.perf_counter()
        seconds = sum(
            write(writer, clip, result, codec.input_sample_rate) for clip, result in zip(group, made, strict=True)
        )
        waited = sum(clip.waited for clip in group)
        times += Times(
            waiting=waited,
            encoding=middle - start - waited,
            writing=time.perf_counter() - middle,
            reading=sum(clip.reading for clip in group),
            audio=seconds,
            clips=len(group),
        )
        advance(len(group), seconds)
    return times


Result = tuple[np.ndarray[Any, Any], int] | str
"""Codes (n_q, L) and the samples they are of; or why there are none."""


def encode(encoding: Encoding, clips: Sequence[Loaded]) -> list[Result]:
    """Codes of some clips, each as if alone; those of like length, of `batch_s` together, in one call.

    Raises XycodecError where the memory does not suffice.
    """
    results: dict[int, Result] = {place: clip.error for place, clip in enumerate(clips) if clip.error}
    for batch in _bucketed(clips, encoding.batch_s * encoding.codec.input_sample_rate):
        try:
            results |= zip(batch, _together(encoding, [clips[place] for place in batch]), strict=True)
        except _OF_THE_MACHINE as error:
            raise _out_of_memory() from error
        except Exception:  # one of them will not do
            for place in batch:
                results[place] = _alone(lambda clip: _together(encoding, [clip])[0], clips[place])
    for place, clip in enumerate(clips):
        if clip.stream is not None:
            results[place] = _alone(lambda long: _streamed(encoding, long), clip)
    return [results[place] for place in range(len(clips))]


_OF_THE_MACHINE = (MemoryError, torch.OutOfMemoryError)
"""Errors that end the job, because every clip after them would fail too."""


def _out_of_memory() -> XycodecError:
    return XycodecError("out of memory: encode less at once (--batch-seconds), or by fewer --jobs")


def _alone(work: Callable[[Loaded], Result], clip: Loaded) -> Result:
    try:
        return work(clip)
    except _OF_THE_MACHINE as error:
        raise _out_of_memory() from error
    except Exception as error:  # whatever a codec or a file system raises
        return described(error)


def _together(encoding: Encoding, clips: list[Loaded]) -> list[Result]:
    if not clips:
        return []
    audio = [clip.audio for clip in clips if clip.audio is not None]
    made = encoding.codec.encode(audio, n_q=encoding.n_q, search=encoding.search)
    codes = made.codes.cpu().numpy()
    return [_covered(encoding, codes[i, :, : int(made.lengths[i])], len(one)) for i, one in enumerate(audio)]


def _streamed(encoding: Encoding, clip: Loaded) -> Result:
    def wait(seconds: float) -> None:
        clip.waited += seconds

    counted = CountedBlocks(_timed(clip.stream or iter(()), wait))
    codes = encode_long(encoding.codec, counted, encoding.overlap_s, n_q=encoding.n_q, search=encoding.search)
    return _covered(encoding, codes.numpy(), counted.samples)


def _covered(encoding: Encoding, codes: "np.ndarray[Any, Any]", samples: int) -> Result:
    """The published rule leaves out the last part of a frame, and its samples with it."""
    return codes, min(samples, codes.shape[1] * encoding.codec.hop_length)


def write(writer: ClipWriter, clip: Loaded, result: Result, rate: int) -> float:
    """Write a clip, or that it failed; seconds of its audio, which has `rate` samples a second."""
    if isinstance(result, str):
        writer.fail(clip.item.id, str(clip.item.meta.get("audio", "")), result)
        return 0.0
    codes, samples = result
    remarks = {"remarks": clip.remarks} if clip.remarks else {}
    writer.add(clip.item.id, codes, samples, {**clip.item.meta, **remarks})
    return samples / rate


# ---- reading beside encoding -------------------------------------------------------------------


def _ahead(items: Iterable[Item], work: Callable[[Item], Loaded]) -> Iterator[Loaded]:
    """The clips in order, some of them read in a thread before they are asked for."""
    pool = ThreadPoolExecutor(1, "reader")
    try:
        waiting: deque[Any] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _timed(source: Iterator[T], waited: Callable[[float], None]) -> Iterator[T]:
    """The items of `source`; `waited` is told the seconds that each took to come."""
    while True:
        start = time.perf_counter()
        item = next(source, None)
        waited(time.perf_counter() - start)
        if item is None:
            return
        yield item


def _groups(clips: Iterable[Loaded], samples: float) -> Iterator[list[Loaded]]:
    """Consecutive clips of about so many samples together; a long one ends its group.

    The first groups are smaller, so that encoding does not wait for all to be read.
    """
    group: list[Loaded] = []
    held, size = 0, samples / 16
    for clip in clips:
        group.append(clip)
        held += len(clip.audio) if clip.audio is not None else 0
        if held >= size or clip.stream is not None:
            yield group
            group, held, size = [], 0, min(samples, 2 * size)
    if group:
        yield group


def _bucketed(clips: Sequence[Loaded], samples: float) -> Iterator[list[int]]:
    """Places of whole clips, shortest first, in batches of about so many samples."""
    lengths = {place: len(clip.audio) for place, clip in enumerate(clips) if clip.audio is not None}
    batch: list[int] = []
    for place in sorted(lengths, key=lengths.__getitem__):
        batch.append(place)
        if sum(lengths[one] for one in batch) >= samples:
            yield batch
            batch = []
    if batch:
        yield batch
