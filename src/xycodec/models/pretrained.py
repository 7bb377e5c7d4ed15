"""Loading, saving and sharing a codec by its own methods, as Hugging Face's libraries have them."""

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any, Self, TypeVar

from xycodec.errors import CheckpointError

_functions: dict[str, Callable[..., Any]] = {}
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def register(name: str) -> Callable[[FunctionT], FunctionT]:
    """Decorator: register what the method `name` calls. It lives in `checkpoints`, which models may not import."""

    def keep(function: FunctionT) -> FunctionT:
        _functions[name] = function
        return function

    return keep


class Pretrained:
    """Methods that read a model from a folder or the hub, and write it there."""

    @classmethod
    def from_pretrained(cls, name_or_path: str | PathLike[str], **options: Any) -> Self:
        """Load a codec of this class, as `xycodec.load_codec` does; `options` are its own.

        Raises CheckpointError if nothing is found there, or a codec of another class.
        """
        codec = _registered("from_pretrained")(name_or_path, **options)
        if not isinstance(codec, cls):
            raise CheckpointError(f"{name_or_path}: holds a codec of class {type(codec).__name__}, not {cls.__name__}")
        return codec

    def save_pretrained(self, folder: str | PathLike[str]) -> Path:
        """Write `config.json`, `model.safetensors` and a model card, README.md, and return the folder.

        `load_codec` and `from_pretrained` take the folder. It may exist: a codec in it is replaced, and a card and
        other files stay. Raises CheckpointError if it cannot be written, or the codec is none of ours.
        """
        written: Path = _registered("save_pretrained")(self, folder)
        return written

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str = "Upload codec with xycodec",
    ) -> str:
        """Upload what `save_pretrained` writes to a repository of the Hugging Face hub, and return its address.

        `repo_id` is `OWNER/NAME`, made where it does not exist; a card that it has stays. `private` is for a new one,
        `token` by default the one of `hf auth login`. Raises CheckpointError, in one line, if that fails.
        """
        push = _registered("push_to_hub")
        address: str = push(self, repo_id, private=private, token=token, message=commit_message)
        return address


def _registered(name: str) -> Callable[..., Any]:
    if name not in _functions:
        raise CheckpointError("nothing reads or writes checkpoints: import Codec from xycodec, or load_codec")
    return _functions[name]
