"""The callback of work that takes long."""

from collections.abc import Callable

Advance = Callable[[float], None]
"""Callback for progress, called with the seconds of audio just done."""


def unwatched(seconds: float) -> None:
    """The `Advance` of callers who watch no progress."""
