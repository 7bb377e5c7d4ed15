"""Files from the model hub, or from its cache where there is no network, and files to it."""

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


def upload(
    folder: Path, repo: str, *, private: bool | None, token: str | None, message: str, once: Sequence[str] = ()
) -> str:
    """Put the files of `folder` into a hub repository, which is made if it is not there, and return its address.

    Files named in `once` are left as they are where the repository has them. Raises CheckpointError, one line.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi(token=token)
        made = api.create_repo(repo, private=private, exist_ok=True)
        kept = [name for name in once if api.file_exists(made.repo_id, name)]
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message=message, ignore_patterns=kept)
    # As above, one class would not do.
    except Exception as error:
        raise CheckpointError(f"{repo}: cannot be uploaded to the hub ({reason_of(error)})") from None
    return str(made)
