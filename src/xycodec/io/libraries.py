"""Optional packages, imported when something needs them."""

from importlib import import_module
from typing import Any

from xycodec.errors import CheckpointError


def transformers_library() -> Any:
    """Import the package `transformers`. Raises CheckpointError, which names the extra, where it is not installed."""
    try:
        import transformers
    except ImportError:
        raise CheckpointError("transformers is not installed: pip install 'xycodec[eval]'") from None
    return transformers


def require_library(name: str, extra: str) -> Any:
    """Import the package `name`. Raises CheckpointError, which names the `extra`, where it is not installed."""
    try:
        return import_module(name)
    except ImportError:
        raise CheckpointError(f"{name} is not installed: pip install 'xycodec[{extra}]'") from None
