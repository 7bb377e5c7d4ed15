"""All that a server does its work with: models, workers for audio files, and what is counted."""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from xycodec.checkpoints.load import load_codec
from xycodec.errors import XycodecError
from xycodec.io.cores import use_threads
from xycodec.io.xyc import CodecFile
from xycodec.models.base import Codec
from xycodec.serve.engine import Engine
from xycodec.serve.metrics import Metrics
from xycodec.serve.problems import Problem
from xycodec.serve.settings import Settings
from xycodec.serve.workers import AudioWorkers


def load_models(settings: Settings) -> dict[str, Codec]:
    """Load the models of a server, by their ids. Raises CheckpointError."""
    use_threads(settings.threads)
    codecs = [load_codec(name, device=settings.device) for name in settings.models]
    return {codec.model_id: codec for codec in codecs}


class Service:
    """All that requests are done with: models, workers, and what is counted."""

    def __init__(self, settings: Settings, codecs: Mapping[str, Codec] | None = None) -> None:
        self.settings, self.metrics = settings, Metrics()
        self._codecs = codecs
        self.engines: dict[str, Engine] = {}
        self.ready = False
        self.stopping = asyncio.Event()

    async def start(self) -> None:
        """Load what is not loaded yet, and start the workers."""
        codecs = self._codecs if self._codecs is not None else await asyncio.to_thread(load_models, self.settings)
        self._thread = ThreadPoolExecutor(1, "compute")
        self.engines = {
            name: Engine(codec, self._thread, self.settings, self.metrics) for name, codec in codecs.items()
        }
        self.workers = AudioWorkers(self.settings.workers, self.settings.limits.audio_s, self.metrics.workers_lost.inc)
        self.ready = True

    async def stop(self) -> None:
        """End what `start` began."""
        self.ready = False
        await asyncio.gather(*(engine.close() for engine in self.engines.values()))
        await asyncio.to_thread(self.workers.close)
        self._thread.shutdown()

    def engine(self, name: str | None = None) -> Engine:
        """The engine of a loaded model, of the first by default. Raises Problem."""
        if name is None or name == "":
            return next(iter(self.engines.values()))
        if name not in self.engines:
            raise Problem(422, f"model {name[:80]!r} is not loaded here: use one of {', '.join(self.engines)}")
        return self.engines[name]

    async def encode(self, data: bytes, engine: Engine, n_q: int) -> CodecFile:
        """Codes of an audio file of any kind: those of `xycodec encode`. Raises Problem."""
        codec = engine.codec
        samples = await self.workers.read(data, codec.input_sample_rate, self.settings.limits.clip_s)
        return await self.encode_samples(samples, engine, n_q)

    async def encode_samples(self, samples: NDArray[np.float32], engine: Engine, n_q: int) -> CodecFile:
        """Codes of samples (T,) at the model's input rate."""
        codes = await engine.encode(torch.from_numpy(samples), n_q)
        return CodecFile.from_codes(codes, engine.codec, num_samples=len(samples))

    async def decode(self, file: CodecFile, engine: Engine) -> NDArray[np.float32]:
        """Audio (T,) of codes: that of `xycodec decode`. Raises Problem."""
        if file.duration > self.settings.limits.clip_s:
            raise Problem(413, f"the codes last more than {self.settings.limits.clip_s:g} s: send them in parts")
        if not file.frames:
            raise Problem(422, "there are no codes: give at least one frame")
        try:
            engine.codec.require_own(file, "the codes")
        except XycodecError as error:
            raise Problem(422, str(error)) from None
        audio = await engine.decode(torch.from_numpy(file.codes.astype(np.int64)), file.num_samples)
        heard: NDArray[np.float32] = audio.numpy()
        return heard
