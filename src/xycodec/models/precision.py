"""Float32 products in float32, whatever precision the program around a codec has chosen for its own products."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch

_FULL = {"none", "ieee"}  # "none" is what nothing has set, and full precision where it is the default
_backends: Any = torch.backends  # whose types lack the switches
_SWITCHES: dict[str, tuple[Any, ...]] = {
    "cpu": (_backends.mkldnn.matmul, _backends.mkldnn.conv),
    "cuda": (_backends.cuda.matmul, _backends.cudnn.conv),
}
_lock = Lock()
_before: dict[Any, str] = {}
_calls = 0


@contextmanager
def own_precision(device: torch.device) -> Iterator[None]:
    """Compute as the weights' types alone say: without autocast, and float32 without TF32 or bfloat16.

    `torch.set_float32_matmul_precision("medium")`, say, rounds factors to bfloat16, which changes codes. Such switches
    belong to the process: they are put back when the last of the calls that overlap has ended.
    """
    with torch.autocast(device.type, enabled=False):
        _hold(device.type)
        try:
            yield
        finally:
            _release()


def _hold(kind: str) -> None:
    global _calls
    with _lock:
        _calls += 1
        for switch in _SWITCHES.get(kind, ()):
            if switch not in _before and (was := switch.fp32_precision) not in _FULL:
                _before[switch] = was
                switch.fp32_precision = "ieee"


def _release() -> None:
    global _calls
    with _lock:
        _calls -= 1
        if not _calls:
            for switch, was in _before.items():
                switch.fp32_precision = was
            _before.clear()
