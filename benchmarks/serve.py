"""A server under load, on this machine: latency, throughput beside the offline rate, overload, and a long soak.

    python benchmarks/serve.py [--model xy-mini] [--seconds 60] [--soak 10000]

Starts `xycodec serve` in a process of its own on a free port of 127.0.0.1, and asks it from this one with 1, 4 and 16
clients, each of which sends its next clip when the last was answered: 2 to 10 s long, drawn from the bundled samples.
The offline rate is that of `codec.encode` of the same clips, one at a time, before and after each row. First audio is
the time from a stream's first code to its first sample, of codes that are sent as fast as the server takes them, in
windows of `Windows(10, 30, 10)`. Prints Markdown; ends with an error where a request failed that should not.
"""

import argparse
import asyncio
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import soundfile as sf

import xycodec
from xycodec import Windows, load_codec, read_audio
from xycodec.io.cores import available_cores
from xycodec.serve.client import AsyncClient, ServerError

ASSETS = Path(xycodec.__file__).parent / "assets"
RATE = 16_000
WINDOWS = Windows(10, 30, 10)


def make_clips(folder: Path, count: int = 16) -> list[tuple[bytes, float]]:
    """FLAC files of 2 to 10 s and their seconds, cut from the bundled samples joined."""
    speech = np.concatenate([read_audio(path) for path in sorted(ASSETS.glob("*.flac"))])
    chance, clips = random.Random(0), []
    for number in range(count):
        seconds = chance.uniform(2, 10)
        start = chance.randrange(len(speech) - round(seconds * RATE))
        path = folder / f"{number}.flac"
        sf.write(path, speech[start : start + round(seconds * RATE)], RATE)
        clips.append((path.read_bytes(), seconds))
    return clips


@contextmanager
def server(model: str, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address and the process of a server that is ready."""
    command = [sys.executable, "-m", "xycodec", "serve", "-m", model, "--port", "0", "--no-page", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        url = process.stderr.readline().split()[0]
        try:
            for _ in range(600):
                try:
                    if httpx.get(f"{url}/readyz", trust_env=False).status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.1)
            yield url, process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def resident_mb(process: subprocess.Popen[str]) -> float:
    """Memory of the server's process and of those that it started, MB."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in (process.pid, *children))
    return pages * 4096 / 1e6


def offline_rate(model: str, clips: list[tuple[bytes, float]]) -> float:
    """Seconds of audio that `codec.encode` takes in a second, in a process of its own."""
    program = (
        "import sys, time, torch, soundfile as sf\nfrom xycodec import load_codec\n"
        "from xycodec.cli.options import set_threads\nset_threads(None)\n"
        f"codec = load_codec({model!r}, device='cpu')\n"
        "clips = [torch.from_numpy(sf.read(name, dtype='float32')[0]) for name in sys.argv[1:]]\n"
        "codec.encode(clips[0])\nstart = time.perf_counter()\nfor clip in clips: codec.encode(clip)\n"
        "print(sum(map(len, clips)) / 16000 / (time.perf_counter() - start))\n"
    )
    names = [str(FOLDER / f"{number}.flac") for number in range(len(clips))]
    return float(
        subprocess.run([sys.executable, "-c", program, *names], capture_output=True, text=True, check=True).stdout
    )


async def clients(count: int, until: float, one: Callable[[int, int], Awaitable[float]]) -> tuple[list[float], float]:
    """Latencies of requests by so many clients, and seconds of audio that they had done, until a time."""
    latencies, audio = list[float](), 0.0

    async def client(number: int) -> None:
        nonlocal audio
        place = 0
        while time.perf_counter() < until:
            start = time.perf_counter()
            length = await one(number, place)
            audio += length
            latencies.append(time.perf_counter() - start)
            place += 1

    await asyncio.gather(*(client(number) for number in range(count)))
    return latencies, audio


def quantiles(values: list[float]) -> str:
    """Median and 95th percentile, in milliseconds."""
    ordered = sorted(values)
    return f"{1000 * statistics.median(ordered):.0f} | {1000 * ordered[int(0.95 * (len(ordered) - 1))]:.0f}"


async def load(url: str, clips: list[tuple[bytes, float]], count: int, seconds: float) -> tuple[str, float]:
    """A row of the table of encoding, and the throughput."""
    async with AsyncClient(url, retries=0) as client:

        async def encode(number: int, place: int) -> float:
            data, length = clips[(number * 7 + place) % len(clips)]
            await client.encode(data)
            return length

        await encode(0, 0)
        start = time.perf_counter()
        latencies, audio = await clients(count, start + seconds, encode)
        throughput = audio / (time.perf_counter() - start)
    return f"| {count} | {len(latencies)} | {quantiles(latencies)} | {throughput:.1f}", throughput


async def first_audio(url: str, model: str, count: int, seconds: float) -> str:
    """A row of the table of streams."""
    codec = load_codec(model, device="cpu")
    codes = codec.encode_file(ASSETS / "fox.flac").codes
    firsts = list[float]()

    async def blocks():  # type: ignore[no-untyped-def]
        for start in range(0, codes.shape[1], 5):
            yield codes[:, start : start + 5]

    async with AsyncClient(url, retries=0) as client:

        async def listen(number: int, place: int) -> float:
            start, heard = time.perf_counter(), 0
            async for audio in client.stream_decode(blocks(), windows=WINDOWS):
                if not heard:
                    firsts.append(time.perf_counter() - start)
                heard += len(audio)
            return heard / RATE

        start = time.perf_counter()
        _, audio = await clients(count, start + seconds, listen)
        return f"| {count} | {len(firsts)} | {quantiles(firsts)} | {audio / (time.perf_counter() - start):.1f} |"


async def overload(url: str, clips: list[tuple[bytes, float]], count: int) -> Counter[int]:
    """Statuses of so many requests at once, on a server that takes few."""
    async with AsyncClient(url, retries=0) as client:

        async def one(number: int) -> int:
            try:
                await client.encode(clips[number % len(clips)][0])
            except ServerError as error:
                return error.status
            return 200

        return Counter(await asyncio.gather(*(one(number) for number in range(count))))


async def soak(url: str, process: "subprocess.Popen[str]", requests: int) -> list[tuple[int, float]]:
    """Memory (MB) after each tenth of so many requests of 16 clients: sound, broken and of the wrong kind in turn."""
    tone = (0.1 * np.sin(np.arange(8000) / 10)).astype(np.float32)
    sf.write(FOLDER / "tone.wav", tone, RATE)
    sound, left = (FOLDER / "tone.wav").read_bytes(), iter(range(requests))
    seen: list[tuple[int, float]] = []
    step = max(1, requests // 10)
    async with AsyncClient(url) as client:

        async def worker() -> None:
            for number in left:
                try:
                    await client.encode(sound if number % 3 else b"no audio", n_q=None if number % 5 else 99)
                except ServerError as error:
                    if error.status not in (415, 422):
                        raise
                if number % step == step - 1:
                    seen.append((number + 1, resident_mb(process)))

        await asyncio.gather(*(worker() for _ in range(16)))
    return seen


async def measure(args: argparse.Namespace) -> None:
    """Print all tables."""
    clips = make_clips(FOLDER)
    with server(args.model) as (url, process):
        print(f"| clients | requests | p50 ms | p95 ms | audio s/s | offline s/s | ratio |\n{'|---' * 7}|", flush=True)
        before = offline_rate(args.model, clips)
        for count in (1, 4, 16):
            row, throughput = await load(url, clips, count, args.seconds)
            after = offline_rate(args.model, clips)
            offline, before = (before + after) / 2, after
            print(f"{row} | {offline:.1f} | {throughput / offline:.2f} |", flush=True)
        print(f"\n{resident_mb(process):.0f} MB at the end\n")
        print(f"| streams | clips | first audio p50 ms | p95 ms | audio s/s |\n{'|---' * 5}|", flush=True)
        for count in (1, 4, 16):
            print(await first_audio(url, args.model, count, args.seconds / 3), flush=True)
        if args.soak:
            memory = await soak(url, process, args.soak)
            print("\nsoak: " + ", ".join(f"{count}: {mb:.0f} MB" for count, mb in memory), flush=True)
    with server(args.model, "--max-requests", "8") as (url, _):
        statuses = await overload(url, clips, 64)
        again = await overload(url, clips, 8)
        print(f"\noverload (64 at once, 8 taken): {dict(statuses)}, then 8 at once: {dict(again)}")
        assert set(statuses) <= {200, 429, 503}
        assert set(again) == {200}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="xy-mini")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--soak", type=int, default=0)
    args = parser.parse_args()
    print(f"{args.model}, {available_cores()} cores\n")
    asyncio.run(measure(args))


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        FOLDER = Path(folder)
        main()
