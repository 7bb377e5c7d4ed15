"""Weight norm for training, and folded into plain weights for inference."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn
from torch.nn.utils import parametrizations, parametrize

_folded = ContextVar("_folded", default=False)


@contextmanager
def built_folded() -> Iterator[None]:
    """Build modules without weight norm in this context, for weights in which it is folded already."""
    before = _folded.set(True)
    try:
        yield
    finally:
        _folded.reset(before)


def weight_norm(module: nn.Module) -> Any:
    """Weight norm on a module's weight, unless modules are `built_folded`."""
    return module if _folded.get() else parametrizations.weight_norm(module)


def fold_weight_norms(module: nn.Module) -> None:
    """Turn every weight-normed map of `module` into a plain one, which can be pickled."""
    for part in list(module.modules()):
        if parametrize.is_parametrized(part, "weight"):
            parametrize.remove_parametrizations(part, "weight")
            # torch leaves its reader of old checkpoints behind, a local function, which cannot be pickled.
            part._load_state_dict_pre_hooks.clear()
