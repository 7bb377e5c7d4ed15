"""Errors whose message is one line a person can act on: what is wrong, where, what to do."""


class XycodecError(ValueError):
    """Base of every error raised on bad input. The command line prints its message and exits with 1."""

    def __init__(self, message: str) -> None:
        # File names may hold line breaks; the message does not.
        super().__init__(" ".join(message.splitlines()))


def reason_of(error: BaseException) -> str:
    """The first line of what a library's error says, or what it is."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def last_reason_of(error: BaseException) -> str:
    """The last line of what a library's error says, where torch and safetensors tell the cause, or what it is."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1].strip()


def described(error: BaseException) -> str:
    """One line on an error of any kind: the message of one of ours, the type and the message of another."""
    return str(error) if isinstance(error, XycodecError) else " ".join(f"{type(error).__name__}: {error}".split())


class AudioError(XycodecError):
    """An audio file or array that cannot be read, written or encoded."""


class BitstreamError(XycodecError):
    """A `.xyc` file that is not valid, or codes that cannot be stored in one."""


class StoreError(XycodecError):
    """A store of tokens that is damaged, not finished or of other codes, or a clip that it cannot hold."""


class CheckpointError(XycodecError):
    """A model name, folder, file or hub repository that does not give a codec."""


class ConfigError(XycodecError):
    """A model or training configuration that is not valid."""


class EmptySpeechError(XycodecError):
    """A text-to-speech model said nothing, also when asked again with other seeds."""


class AudioWarning(UserWarning):
    """A recording was read, but something about it is odd: its level, or bytes that had to be left out."""
