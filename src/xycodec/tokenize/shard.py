"""The work on one shard: its clips read, encoded and written in order, from where a kill left them."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xycodec import __version__
from xycodec.errors import XycodecError
from xycodec.io.audio import Samples
from xycodec.io.tokens.layout import Description, Windowing
from xycodec.io.tokens.write import ShardWriter
from xycodec.models.base import Codec, fingerprint
from xycodec.models.longform import CountedBlocks, encode_long, overlap_frames
from xycodec.tokenize.inputs.audio import blocks_of
from xycodec.tokenize.inputs.item import Item

_AHEAD = 8  # clips that are read while others are encoded

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
    """Settings of encoding: the codec, its first layers, the seconds that windows share, the seconds of a batch."""

    codec: Codec
    n_q: int | None = None
    overlap_s: float | None = None
    batch_s: float = 30.0

    def describe(self) -> Description:
        """The description of the store of such codes. Raises XycodecError on a wrong number of layers or overlap."""
        codec = self.codec
        config: Any = getattr(codec, "config", None)
        low = next((str(one.dtype)[6:] for one in codec.parameters() if one.dtype is torch.bfloat16), "float32")
        return Description(
            model=codec.model_id,
            weights=fingerprint(codec),
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
    except XycodecError as error:
        made.error = str(error)
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
    times = Times()
    codec = encoding.codec
    with ShardWriter(part, description) as writer:
        left = items[writer.done :]
        loaded = _ahead(left, lambda item: load(item, codec.input_sample_rate, codec.window_samples))
        for batch in _batches(_timed(loaded, times), encoding.batch_s * codec.input_sample_rate):
            start = time.perf_counter()
            made = encode(encoding, batch)
            middle = time.perf_counter()
            seconds = 0.0
            for clip, result in zip(batch, made, strict=True):
                seconds += _write(writer, clip, result, codec)
            times.encoding += middle - start
            times.writing += time.perf_counter() - middle
            times.reading += sum(clip.reading for clip in batch)
            times.audio, times.clips = times.audio + seconds, times.clips + len(batch)
            advance(len(batch), seconds)
        start = time.perf_counter()
        writer.finish(place)
        times.writing += time.perf_counter() - start
    return times


Result = tuple[np.ndarray[Any, Any], int] | str
"""Codes (n_q, L) and the samples they are of; or why there are none."""


def encode(encoding: Encoding, batch: list[Loaded]) -> list[Result]:
    """Codes of some clips, each as if alone; clips of one window in one call."""
    codec = encoding.codec
    results: dict[int, Result] = {place: clip.error for place, clip in enumerate(batch) if clip.error}
    short = [place for place, clip in enumerate(batch) if clip.audio is not None]
    try:
        results |= dict(zip(short, _together(encoding, [batch[place] for place in short]), strict=True))
    except XycodecError:
        for place in short:  # one of them will not do
            results[place] = _alone(lambda clip: _together(encoding, [clip])[0], batch[place])
    for place, clip in enumerate(batch):
        if clip.stream is not None:
            results[place] = _alone(lambda long: _streamed(encoding, long), clip)
    return [
        (made[0], min(made[1], made[0].shape[1] * codec.hop_length)) if not isinstance(made, str) else made
        for made in (results[place] for place in range(len(batch)))
    ]


def _alone(work: Callable[[Loaded], Result], clip: Loaded) -> Result:
    try:
        return work(clip)
    except XycodecError as error:
        return str(error)


def _together(encoding: Encoding, clips: list[Loaded]) -> list[Result]:
    if not clips:
        return []
    audio = [clip.audio for clip in clips if clip.audio is not None]
    made = encoding.codec.encode(audio, n_q=encoding.n_q)
    codes = made.codes.cpu().numpy()
    return [(codes[i, :, : int(made.lengths[i])], len(samples)) for i, samples in enumerate(audio)]


def _streamed(encoding: Encoding, clip: Loaded) -> Result:
    counted = CountedBlocks(clip.stream or iter(()))
    codes = encode_long(encoding.codec, counted, encoding.overlap_s, n_q=encoding.n_q)
    return codes.numpy(), counted.samples


def _write(writer: ShardWriter, clip: Loaded, result: Result, codec: Codec) -> float:
    """Add a clip or its failure; seconds of its audio."""
    if isinstance(result, str):
        writer.fail(clip.item.id, str(clip.item.meta.get("audio", "")), result)
        return 0.0
    codes, samples = result
    remarks = {"remarks": clip.remarks} if clip.remarks else {}
    writer.add(clip.item.id, codes, samples, {**clip.item.meta, **remarks})
    return samples / codec.input_sample_rate


# ---- reading beside encoding -------------------------------------------------------------------


def _ahead(items: Iterable[Item], work: Callable[[Item], Loaded]) -> Iterator[Loaded]:
    """The clips in order, some of them read in a thread before they are asked for."""
    with ThreadPoolExecutor(1, "reader") as pool:
        waiting: deque[Any] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _timed(clips: Iterator[Loaded], times: Times) -> Iterator[Loaded]:
    while True:
        start = time.perf_counter()
        clip = next(clips, None)
        times.waiting += time.perf_counter() - start
        if clip is None:
            return
        yield clip


def _batches(clips: Iterable[Loaded], samples: float) -> Iterator[list[Loaded]]:
    """Consecutive clips of about so many samples together; a long one ends its batch."""
    batch: list[Loaded] = []
    held = 0
    for clip in clips:
        batch.append(clip)
        held += len(clip.audio) if clip.audio is not None else 0
        if held >= samples or clip.stream is not None:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch
