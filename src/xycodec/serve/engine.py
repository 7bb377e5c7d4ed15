"""The computation of a server: windows of all its requests and streams, in batches, on one thread.

A clip's windows are those of `encode_long` and `decode_long`, and each is computed as if alone: what a client gets does
not depend on who else asks.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from xycodec.models.base import Codec
from xycodec.models.streaming import StreamingDecoder, StreamingEncoder
from xycodec.models.windows import BATCH, Piece
from xycodec.serve.metrics import Metrics
from xycodec.serve.settings import Settings


@dataclass
class _Waiting:
    item: Tensor
    seconds: float
    result: "asyncio.Future[Tensor]"


class Batcher:
    """Computes what several callers give in one call of `compute(items) -> results`.

    A batch begins when the one before has ended and something waits; `wait_s` after that at the latest, or when
    `batch_s` seconds of audio are there, it is computed on `thread`. `seconds_of` an item is its length.
    """

    def __init__(
        self,
        direction: str,
        compute: Callable[[list[Tensor]], list[Tensor]],
        seconds_of: Callable[[Tensor], float],
        thread: ThreadPoolExecutor,
        settings: Settings,
        metrics: Metrics,
    ) -> None:
        self._direction, self._compute, self._seconds_of, self._thread = direction, compute, seconds_of, thread
        self._settings, self._metrics = settings, metrics
        self._waiting: deque[_Waiting] = deque()
        self._came = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None

    async def compute(self, items: Sequence[Tensor]) -> list[Tensor]:
        """Results of items, in order."""
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run())
        loop = asyncio.get_running_loop()
        mine = [_Waiting(item, self._seconds_of(item), loop.create_future()) for item in items]
        self._waiting.extend(mine)
        self._count()
        self._came.set()
        try:
            return [await waiting.result for waiting in mine]
        finally:
            # A caller that has gone away leaves nothing to compute.
            for waiting in mine:
                waiting.result.cancel()

    async def close(self) -> None:
        """Stop; what waits is cancelled."""
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.gather(self._runner, return_exceptions=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._came.wait()
            await self._company()
            batch = self._take()
            if not batch:
                continue
            start = time.perf_counter()
            try:
                results = await loop.run_in_executor(self._thread, self._computed, [one.item for one in batch])
            except Exception as error:  # it belongs to the callers, and the next batch is another
                for one in batch:
                    if not one.result.done():
                        one.result.set_exception(error)
                continue
            for one, result in zip(batch, results, strict=True):
                if not one.result.done():
                    one.result.set_result(result)
            self._observe(batch, time.perf_counter() - start)

    async def _company(self) -> None:
        """Wait until there is enough for a batch, at most `wait_s`."""
        deadline = time.perf_counter() + self._settings.wait_s
        while sum(one.seconds for one in self._waiting) < self._settings.batch_s:
            self._came.clear()
            try:
                await asyncio.wait_for(self._came.wait(), max(0.0, deadline - time.perf_counter()))
            except TimeoutError:
                return

    def _take(self) -> list[_Waiting]:
        """Take what fits into a batch, in the order it came."""
        batch, seconds = list[_Waiting](), 0.0
        while self._waiting and (not batch or seconds + self._waiting[0].seconds <= self._settings.batch_s):
            one = self._waiting.popleft()
            if not one.result.cancelled():
                batch.append(one)
                seconds += one.seconds
        if self._waiting:
            self._came.set()
        else:
            self._came.clear()
        self._count()
        return batch

    def _computed(self, items: list[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return [result.cpu() for result in self._compute(items)]

    def _count(self) -> None:
        self._metrics.queue.labels(self._direction).set(len(self._waiting))

    def _observe(self, batch: Sequence[_Waiting], took: float) -> None:
        seconds = sum(one.seconds for one in batch)
        self._metrics.batch_windows.labels(self._direction).observe(len(batch))
        self._metrics.batch_seconds.labels(self._direction).observe(seconds)
        if seconds:
            self._metrics.real_time_factor.labels(self._direction).observe(took / seconds)


class Engine:
    """One model of a server. Its methods are called in the server's event loop."""

    def __init__(self, codec: Codec, thread: ThreadPoolExecutor, settings: Settings, metrics: Metrics) -> None:
        self.codec, self._metrics = codec, metrics
        rate = codec.input_sample_rate
        self.encoding = Batcher(
            "encode", lambda items: codec.encode_windows(items, codec.n_q), lambda item: len(item) / rate,
            thread, settings, metrics,
        )  # fmt: skip
        self.decoding = Batcher(
            "decode", codec.decode_windows, lambda item: item.shape[1] / codec.frame_rate, thread, settings, metrics
        )

    async def encode(self, audio: Tensor, n_q: int | None = None) -> Tensor:
        """Codes (n_q, L) of a clip (T,) float32, as `encode_long` gives them."""
        # All layers are computed, of which the first are the codes of fewer: so that all requests share batches.
        stream = StreamingEncoder(self.codec)
        return (await self.whole(stream, audio))[: self.codec.check_layers(n_q)]

    async def decode(self, codes: Tensor, num_samples: int) -> Tensor:
        """Audio (T,) float32 of codes (k, L) of a clip of so many input samples, as `decode_long` gives it."""
        stream = StreamingDecoder(self.codec)
        return (await self.whole(stream, codes))[: self.codec.num_output_samples(num_samples)]

    async def whole(self, stream: StreamingEncoder | StreamingDecoder, clip: Tensor) -> Tensor:
        """Result of a clip that is there as a whole."""
        result = await self.push(stream, [*stream.cut(clip), *stream.end()])
        return torch.cat([result, stream.rest()], dim=-1)

    async def push(self, stream: StreamingEncoder | StreamingDecoder, pieces: Sequence[Piece]) -> Tensor:
        """Result that windows of a stream add; a few are computed at once, so that others get their turn."""
        encodes = isinstance(stream, StreamingEncoder)
        batcher = self.encoding if encodes else self.decoding
        unit = self.codec.input_sample_rate if encodes else self.codec.frame_rate
        parts = [stream.join([], [])]
        for start in range(0, len(pieces), BATCH):
            batch = pieces[start : start + BATCH]
            parts.append(stream.join(await batcher.compute([piece.items for piece in batch]), batch))
            seconds = sum(piece.items.shape[-1] for piece in batch) / unit
            self._metrics.audio_seconds.labels("encode" if encodes else "decode").inc(seconds)
        return torch.cat(parts, dim=-1)

    async def close(self) -> None:
        """Stop computing."""
        await asyncio.gather(self.encoding.close(), self.decoding.close())
