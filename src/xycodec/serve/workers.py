"""Processes that read and write audio files: what hangs or crashes on a stranger's file is killed, and replaced."""

import asyncio
import contextlib
import io
import multiprocessing
import queue
import signal
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xycodec.errors import AudioError
from xycodec.io.audio import open_audio, write_audio
from xycodec.serve.problems import Problem

Samples = NDArray[np.float32]
_MEMORY = 4 << 30  # bytes of address space: enough for any decoder, and not for a file that asks for more


class AudioWorkers:
    """A pool of processes, one request at a time in each.

    `timeout_s` is what a request may take; `lost` is called for each process that died or was killed.
    """

    def __init__(self, processes: int, timeout_s: float, lost: Callable[[], None]) -> None:
        self._timeout, self._lost = timeout_s, lost
        self._threads = ThreadPoolExecutor(processes, "audio")
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for _ in range(processes):
            self._idle.put(_Worker())

    async def read(self, data: bytes, sample_rate: int, longest_s: float) -> Samples:
        """Mono samples (T,) of a file of any kind, at `sample_rate`.

        Raises Problem: 415 for no audio, 413 for more than `longest_s`, 422 for damaged audio.
        """
        return await self._call(_read, data, sample_rate, longest_s)  # type: ignore[no-any-return]

    async def write(self, samples: Samples, sample_rate: int, suffix: str) -> bytes:
        """Return a file of `suffix` (.wav, .flac, .opus) that holds the samples. Raises Problem."""
        return await self._call(_write, samples, sample_rate, suffix)  # type: ignore[no-any-return]

    def close(self) -> None:
        """End all processes."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait().kill()

    async def _call(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._do, work, *arguments)

    def _do(self, work: Callable[..., Any], *arguments: Any) -> Any:
        worker = self._idle.get()
        try:
            if not worker.process.is_alive():
                self._lost()
                worker = _Worker()
            worker.pipe.send((work, arguments))
            if not worker.pipe.poll(self._timeout):
                raise Problem(422, f"the audio took more than {self._timeout:g} s to read: convert it to wav first")
            status, result = worker.pipe.recv()
        except (EOFError, OSError) as error:
            worker = self._replaced(worker)
            raise Problem(503, "the process that read the audio died: try again", Retry_After="1") from error
        except Problem:
            worker = self._replaced(worker)
            raise
        finally:
            self._idle.put(worker)
        if status != 200:
            raise Problem(status, result)
        return result

    def _replaced(self, worker: "_Worker") -> "_Worker":
        worker.kill()
        self._lost()
        return _Worker()


class _Worker:
    """A process and the pipe to it."""

    def __init__(self) -> None:
        # Forking a process that has used torch's threads can hang, so fresh ones are started.
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), name="xycodec-audio", daemon=True)
        self.process.start()
        theirs.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


# ---- in the process ------------------------------------------------------------------------------


def _serve(pipe: Connection) -> None:
    """Do what comes until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(EOFError, OSError):
        while True:
            work, arguments = pipe.recv()
            try:
                answer = 200, work(*arguments)
            except _Refused as refused:
                answer = refused.args
            except AudioError as error:
                answer = 422, str(error)
            except MemoryError:
                answer = 413, "the audio takes too much memory: give a shorter or a simpler file"
            pipe.send(answer)


class _Refused(Exception):
    """A status and a line on why a file is not taken."""


def _read(data: bytes, sample_rate: int, longest_s: float) -> Samples:
    if not data:
        raise _Refused(422, "the upload is empty (0 bytes): give a file that holds audio")
    blocks, count = [], 0
    opened = False
    try:
        with open_audio(io.BytesIO(data), "the upload") as audio:
            opened = True
            for block in audio.blocks(sample_rate):
                blocks.append(block)
                count += len(block)
                if count > longest_s * sample_rate:
                    raise _Refused(413, f"the audio lasts more than {longest_s:g} s: send it in parts, or as a stream")
    except AudioError as error:
        if opened:
            raise
        raise _Refused(415, str(error)) from error
    if not count:
        raise _Refused(422, "the upload holds no samples: give a recording that is not empty")
    return np.concatenate(blocks)


def _write(samples: Samples, sample_rate: int, suffix: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"audio{suffix}"
        write_audio(path, samples, sample_rate)
        return path.read_bytes()
