"""Speech tokenizers at 1 kbit/s: load one, turn speech into codes, and codes into speech."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xycodec.checkpoints.load import load_codec as load_codec
    from xycodec.errors import XycodecError as XycodecError
    from xycodec.io.audio import read_audio as read_audio
    from xycodec.io.audio import stream_audio as stream_audio
    from xycodec.io.audio import write_audio as write_audio
    from xycodec.io.xyc import CodecFile as CodecFile
    from xycodec.models.base import Codec as Codec
    from xycodec.models.longform import decode_long as decode_long
    from xycodec.models.longform import encode_long as encode_long
    from xycodec.models.receptive_field import measure_receptive_field as measure_receptive_field
    from xycodec.models.streaming import StreamingDecoder as StreamingDecoder
    from xycodec.models.streaming import StreamingEncoder as StreamingEncoder
    from xycodec.models.windows import Windows as Windows

__version__ = "0.1.0"
__all__ = [
    "Codec", "CodecFile", "StreamingDecoder", "StreamingEncoder", "Windows", "XycodecError", "decode_long",
    "encode_long", "load_codec", "measure_receptive_field", "read_audio", "stream_audio", "write_audio",
]  # fmt: skip

_HOME = {
    "Codec": "xycodec.models.base",
    "CodecFile": "xycodec.io.xyc",
    "StreamingDecoder": "xycodec.models.streaming",
    "StreamingEncoder": "xycodec.models.streaming",
    "Windows": "xycodec.models.windows",
    "XycodecError": "xycodec.errors",
    "decode_long": "xycodec.models.longform",
    "encode_long": "xycodec.models.longform",
    "load_codec": "xycodec.checkpoints.load",
    "measure_receptive_field": "xycodec.models.receptive_field",
    "read_audio": "xycodec.io.audio",
    "stream_audio": "xycodec.io.audio",
    "write_audio": "xycodec.io.audio",
}


def __getattr__(name: str) -> Any:
    # torch takes over a second to import; `xycodec --help` and `import xycodec` must not wait for it.
    if name not in _HOME:
        raise AttributeError(f"module 'xycodec' has no attribute {name!r}")
    from importlib import import_module

    if name == "Codec":
        import_module("xycodec.checkpoints.load")  # what Codec.from_pretrained asks
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
