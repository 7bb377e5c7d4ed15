"""Files from the model hub, or from its cache where there is no network."""

from collections.abc import Sequence
from pathlib import Path

from xycodec.errors import CheckpointError, reason_of


def is_path(name: str) -> bool:
    """Whether a model's name is that of a file or folder, there or not; such a name is never asked for on the hub."""
    return name.startswith((".", "/", "~")) or Path(name).exists()


def fetch(repo: str, patterns: Sequence[str]) -> Path:
    """The folder of a hub repository's snapshot with the files that match `patterns`: cached, or fetched now.

    Raises CheckpointError, one line, if it cannot be had.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, allow_patterns=list(patterns)))
    # The hub's client raises its own classes, its HTTP library's, and OSError: all mean the same here.
    except Exception as error:
        reason = reason_of(error)
        raise CheckpointError(f"{repo}: cannot be had from the hub or its cache ({reason})") from None
