"""Choice of the library that multiplies matrices: by the processor, never by timing, so that two processes agree.

Codes may depend on neither the number of rows (the batch, the padding) nor the number of threads. oneDNN's product
keeps that on every processor that was tried, from two rows on (`xycodec.nn.deterministic.linear`). MKL's keeps it, in
the shapes of `xycodec.nn.deterministic.rows`, with its code for Intel's AVX-512 and for AMD's AVX2; with that for
Intel's AVX2 bits change with the place of a matrix in memory. There it is the faster one for the narrow products of
convolutions and for attention over few frames, and stays; wide linear layers are as fast by either.
"""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from xycodec.errors import ConfigError

Part = Literal["linear", "attention", "taps"]
Library = Literal["onednn", "mkl"]

TABLE: dict[str, dict[Part, Library]] = {
    "intel-avx512": {"linear": "onednn", "attention": "mkl", "taps": "mkl"},
    "amd-avx2": {"linear": "onednn", "attention": "mkl", "taps": "mkl"},
    "other": {"linear": "onednn", "attention": "onednn", "taps": "onednn"},
}
SETTING = "XYCODEC_KERNELS"
"""Environment variable that puts another row of the table in force, by its name."""


def uses_onednn(part: Part) -> bool:
    """Whether oneDNN computes this part of a model on this machine's CPU; else torch's own choice does (MKL)."""
    if torch.compiler.is_exporting():  # a program for elsewhere holds torch's own operators only
        return False
    return has_onednn() and (_measured.get() or TABLE[processor()][part]) == "onednn"


@contextmanager
def by_library(library: Library) -> Iterator[None]:
    """All parts are computed by one library, whatever the table says, in this thread: to measure it."""
    before = _measured.set(library)
    try:
        yield
    finally:
        _measured.reset(before)


_measured = ContextVar[Library | None]("_measured", default=None)


@cache
def has_onednn() -> bool:
    """Whether this torch can call oneDNN's product, as its wheels for x86 can."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    built_in: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return x86 and built_in and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@cache
def processor() -> str:
    """The row of the table in force. Raises ConfigError where the setting names none."""
    if chosen := os.environ.get(SETTING):
        if chosen not in TABLE:
            raise ConfigError(f"{SETTING}={chosen}: no such processor: choose one of {', '.join(TABLE)}")
        return chosen
    if "MKL_CBWR" in os.environ:  # MKL runs the code of another processor
        return "other"
    measured = {("intel", "AVX512"): "intel-avx512", ("amd", "AVX2"): "amd-avx2"}
    return measured.get((maker(), torch.backends.cpu.get_cpu_capability()), "other")


def maker() -> str:
    """The maker of this machine's processor: intel, amd or other."""
    about = Path("/proc/cpuinfo")
    name = about.read_text() if about.exists() else platform.processor()
    return "intel" if "GenuineIntel" in name else "amd" if "AuthenticAMD" in name else "other"


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, onto: Tensor | None = None) -> Tensor:
    """(rows, in) by (out, in) -> (rows, out) by oneDNN, float32, plus `bias` (out) and `onto` (rows, out)."""
    if len(x) == 1:  # a product of a matrix and a vector, which has a kernel of its own
        twice = None if onto is None else torch.cat([onto, onto])
        return multiply(torch.cat([x, x]), weight, bias, onto=twice)[:1]
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        weight = weight.contiguous()  # oneDNN takes a thousand times as long for gaps between rows
    linear = torch.ops.mkldnn._linear_pointwise
    plain = onto is None
    out: Tensor = linear(x, weight, bias, "none", [], "") if plain else linear.binary(x, onto, weight, bias, "add")
    return out
