"""Speed of a codec on this machine: seconds, times real time, and share of the peak.

Machines are shared and noisy, so every time is the least of several, and what is compared is timed in turns.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from xycodec.errors import XycodecError
from xycodec.io.rate import SPEECH_RATE
from xycodec.models.base import Codec
from xycodec.nn.deterministic.kernels import has_onednn, multiply

Device = torch.device | str

PEAK_SECONDS = 0.5  # the matrix product is repeated for at least this long

# On a busy machine, `time.process_time` and one thread count this process's work alone.
clock: Callable[[], float] = time.perf_counter


LONGEST_MIXED_S = 15.0


@dataclass(frozen=True)
class Flops:
    """Arithmetic of one clip in GFLOP: matrix products, convolutions and attention."""

    encode: float
    decode: float


@dataclass(frozen=True)
class SpeedRow:
    """Speed at one clip length. Times are for the whole batch."""

    seconds: float
    """Length of each clip in seconds."""
    batch: int
    """Clips in one call."""
    encode_s: float
    decode_s: float
    encode_speed: float
    """Seconds of audio per second, as is `decode_speed`."""
    decode_speed: float
    encode_gflops: float
    """GFLOP/s, as is `decode_gflops`."""
    decode_gflops: float
    encode_share: float
    """Share of the measured matrix-product peak, about 0 to 1, as is `decode_share`."""
    decode_share: float


@dataclass(frozen=True)
class BatchResult:
    """Encoding a batch of clips of mixed length against 10 s clips one by one."""

    clips: int
    batch_audio_s: float
    """Seconds of audio in the batch."""
    batch_speed: float
    """Seconds of audio per second, as is `single_speed`."""
    single_speed: float
    ratio: float
    """`batch_speed` over `single_speed`: 1 or more means that batches cost nothing."""


@dataclass(frozen=True)
class Agreement:
    """Codes of a lower precision compared with float32's, and its speed."""

    seconds: float
    """Length of each clip in seconds."""
    clips: int
    equal_codes: tuple[float, ...]
    """Share of equal codes per layer, 0 to 1."""
    encode_ratio: float
    """Time of the float32 codec over the other's, as is `decode_ratio`."""
    decode_ratio: float


def speech_like(seconds: float, *, sample_rate: int = SPEECH_RATE, seed: int = 0) -> Tensor:
    """Test audio (T,) float32 in [-1, 1]: gliding harmonics and hiss in syllables, with pauses."""
    generator = torch.Generator().manual_seed(seed)
    samples = round(seconds * sample_rate)
    t = torch.arange(samples, dtype=torch.float64) / sample_rate
    draw = torch.rand(4, generator=generator, dtype=torch.float64)
    pitch = (100 + 120 * draw[0]) * (1 + 0.2 * torch.sin(2 * torch.pi * (0.4 + 0.4 * draw[1]) * t))
    phase = 2 * torch.pi * torch.cumsum(pitch, 0) / sample_rate
    formant = 500 + 300 * torch.sin(2 * torch.pi * (1.3 + draw[2]) * t)
    voice = sum(torch.sin(k * phase) / (1 + ((k * pitch - formant) / 200).square()) for k in range(1, 16))
    syllables = (torch.sin(2 * torch.pi * (3 + draw[3]) * t) + torch.sin(2 * torch.pi * 0.7 * t)).clamp_min(0)
    hiss = torch.randn(samples, generator=generator, dtype=torch.float64)
    audio = 0.1 * (voice * syllables + 0.1 * hiss * (syllables < 0.3)) + 0.002 * hiss
    return audio.clamp(-1, 1).float()


def matmul_peak(
    dtype: torch.dtype = torch.float32, size: int = 4096, *, device: Device = "cpu", repeats: int = 5
) -> float:
    """GFLOP/s of the best of at least `repeats` products of two (size, size) matrices by any library that is here."""
    return max(library_peaks(dtype, size, device=device, repeats=repeats).values())


def library_peaks(
    dtype: torch.dtype = torch.float32, size: int = 4096, *, device: Device = "cpu", repeats: int = 5
) -> dict[str, float]:
    """The same of each library by itself, in turns."""
    place = torch.device(device)
    a, b = (torch.randn(size, size, device=place).to(dtype) for _ in range(2))
    has_mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    own = "MKL" if place.type == "cpu" and has_mkl else "torch"
    ways: dict[str, Callable[[], object]] = {own: lambda: a @ b}
    if has_onednn() and place.type == "cpu" and dtype == torch.float32:
        ways["oneDNN"] = lambda: multiply(a, b)
    times: dict[str, list[float]] = {name: [] for name in ways}
    while len(times[own]) < repeats or sum(map(sum, times.values())) < PEAK_SECONDS:
        for name, way in ways.items():
            times[name].append(elapsed(way, place))
    return {name: 2 * size**3 / min(taken) / 1e9 for name, taken in times.items()}


def count_flops(codec: Codec, seconds: float) -> Flops:
    """Count the arithmetic of encoding and of decoding one clip of `seconds`, as it is really executed."""
    audio = _clip(codec, seconds)[None]
    with flop_counter() as encoding:
        codes = codec.encode(audio).codes
    with flop_counter() as decoding:
        codec.decode(codes)
    return Flops(encoding.get_total_flops() / 1e9, decoding.get_total_flops() / 1e9)


def flop_counter() -> FlopCounterMode:
    """Counts what runs within it, forward and backward: matrix products, convolutions and attention."""
    # Torch's own knows CUDA's attention kernels, not the CPU's, and products that add to nothing else.
    extra = {
        torch.ops.aten.addmm_: _addmm_flops,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    }
    if has_onednn():
        extra[torch.ops.mkldnn._linear_pointwise] = _linear_flops
    return FlopCounterMode(display=False, custom_mapping=extra)


def _addmm_flops(_: Sequence[int], left: Sequence[int], right: Sequence[int], *__: Any, **___: Any) -> int:
    """A product (n, k) by (k, m) that is added in place."""
    return 2 * left[0] * left[1] * right[1]


def _linear_flops(x: Sequence[int], *rest: Any, **_: Any) -> int:
    """A product (n, k) by (m, k), which something may be added to: the matrix before is then another argument."""
    weight: Sequence[int] = rest[0] if rest[1] is None or len(rest[1]) != 2 else rest[1]
    return 2 * x[0] * x[1] * weight[0]


def _attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """Scores, then the weighted sum, of shapes (B, heads, T, size)."""
    b, heads, t, size = query
    return 2 * b * heads * t * key[2] * (size + value[3])


def _attention_backward_flops(
    _: Sequence[int], query: Sequence[int], key: Sequence[int], value: Sequence[int], *__: Any, **___: Any
) -> int:
    """Scores again, and the gradients of scores, queries, keys and values."""
    b, heads, t, size = query
    return 2 * b * heads * t * key[2] * (3 * size + 2 * value[3])


def measure(
    codec: Codec, seconds: Sequence[float], *, batch: int = 1, repeats: int = 3, peak: float | None = None
) -> Iterator[SpeedRow]:
    """Time encode and decode of `batch` clips of each length; rows come as they are ready.

    `repeats`: calls of which the fastest counts, after one to warm up. `peak`: GFLOP/s to compare with
    (default: `matmul_peak` in float32 on the codec's device). Raises XycodecError on a length that is not
    above 0, or infinite.
    """
    limit = peak or matmul_peak(device=codec.device)
    for length in seconds:
        flops = count_flops(codec, length)
        audio = torch.stack([_clip(codec, length, seed) for seed in range(batch)])
        codes = codec.encode(audio).codes
        works: list[Callable[[], object]] = [partial(codec.encode, audio), partial(codec.decode, codes)]
        encode_s, decode_s = best_times(works, repeats, codec.device)
        encode_gflops, decode_gflops = batch * flops.encode / encode_s, batch * flops.decode / decode_s
        yield SpeedRow(
            seconds=length,
            batch=batch,
            encode_s=encode_s,
            decode_s=decode_s,
            encode_speed=batch * length / encode_s,
            decode_speed=batch * length / decode_s,
            encode_gflops=encode_gflops,
            decode_gflops=decode_gflops,
            encode_share=encode_gflops / limit,
            decode_share=decode_gflops / limit,
        )


def mixed_batch(codec: Codec, *, clips: int = 32, shortest: float = 2.0, longest: float = 15.0) -> list[Tensor]:
    """Clips (n,) of seeded lengths between `shortest` and `longest` seconds, in random order."""
    generator = torch.Generator().manual_seed(0)
    lengths = shortest + (longest - shortest) * torch.rand(clips, generator=generator)
    return [_clip(codec, float(length), seed) for seed, length in enumerate(lengths)]


def measure_batch(
    codec: Codec, *, clips: int = 32, shortest: float = 2.0, longest: float = LONGEST_MIXED_S, repeats: int = 2
) -> BatchResult:
    """Encode `clips` clips of `shortest` to `longest` seconds in one call, and 10 s clips one by one."""
    items = mixed_batch(codec, clips=clips, shortest=shortest, longest=longest)
    audio, lengths = pad_clips(items)
    single = _clip(codec, 10.0)[None]
    codec.encode(single)
    works: list[Callable[[], object]] = [partial(codec.encode, audio, lengths)]
    # A batch lasts long enough to average the noise; several short calls find as calm a moment.
    works += [partial(codec.encode, single)] * 4
    batch_s, *single_s = best_times(works, repeats, codec.device, warm=False)
    total = int(lengths.sum()) / codec.input_sample_rate
    batch_speed, single_speed = total / batch_s, 10.0 * len(single_s) / sum(single_s)
    return BatchResult(clips, total, batch_speed, single_speed, batch_speed / single_speed)


def bf16_agreement(
    codec: Codec, bf16_codec: Codec, *, seconds: float = 10.0, clips: int = 2, repeats: int = 3
) -> Agreement:
    """Compare the codes and the speed of two codecs with the same weights, the second in bfloat16."""
    audio = torch.stack([_clip(codec, seconds, seed) for seed in range(clips)])
    codes = codec.encode(audio).codes
    equal = (codes == bf16_codec.encode(audio).codes.to(codes.device)).float().mean(dim=(0, 2))
    one, one_codes = audio[:1], codes[:1]
    exact_encode, encode, exact_decode, decode = best_times(
        [
            lambda: codec.encode(one),
            lambda: bf16_codec.encode(one),
            lambda: codec.decode(one_codes),
            lambda: bf16_codec.decode(one_codes),
        ],
        repeats,
        codec.device,
    )
    return Agreement(seconds, clips, tuple(equal.tolist()), exact_encode / encode, exact_decode / decode)


def pad_clips(clips: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Clips (n,) -> audio (B, T), zeros on the right, and lengths (B,) in samples."""
    lengths = torch.tensor([clip.shape[0] for clip in clips])
    return torch.nn.utils.rnn.pad_sequence(list(clips), batch_first=True), lengths


def best_times(
    works: Sequence[Callable[[], object]],
    repeats: int,
    device: torch.device | str = "cpu",
    *,
    warm: bool = True,
) -> list[float]:
    """Least seconds of each of `works`, called in turns `repeats` times, so that all meet the same noise."""
    place = torch.device(device)
    if warm:
        for work in works:
            work()
    rounds = [[elapsed(work, place) for work in works] for _ in range(max(1, repeats))]
    return [min(times) for times in zip(*rounds, strict=True)]


def elapsed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that one call takes, until the device has finished it."""
    _wait(device)
    start = clock()
    work()
    _wait(device)
    return clock() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _clip(codec: Codec, seconds: float, seed: int = 0) -> Tensor:
    if not 0 < seconds < math.inf:
        raise XycodecError(f"clips must last more than 0 s, got {seconds:g} s")
    return speech_like(seconds, sample_rate=codec.input_sample_rate, seed=seed)


def bfloat16_advice() -> str:
    """Whether `dtype=bfloat16` is worth it on this machine, in a sentence."""
    trade = "codes of deep layers may differ from float32's, so keep to one dtype for a corpus"
    if torch.cuda.is_available():
        return f"bfloat16: worth it on this GPU; {trade}."
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    if "amx_bf16" in flags:
        return f"bfloat16: worth it on this CPU, whose AMX units are several times faster in it; {trade}."
    if "avx512_bf16" in flags:
        # Measured: 1.7 to 2.0 x as fast on an AMD EPYC, 0.6 x on a virtual Xeon whose AMX units are hidden.
        return (
            f"bfloat16: a gain or a loss on this CPU (AVX-512 BF16 without AMX), ask `xycodec bench --bf16`; {trade}."
        )
    return "bfloat16: not worth it on this CPU, which has no units for it; use float32."
