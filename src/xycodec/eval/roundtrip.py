"""A file encoded, decoded, and compared with itself."""

from dataclasses import dataclass

from xycodec.eval.metrics.quality import measure_quality
from xycodec.eval.results import Scores
from xycodec.io.audio import ignore, stream_audio
from xycodec.io.progress import Advance, unwatched
from xycodec.io.rate import SPEECH_RATE
from xycodec.io.xyc import CodecFile
from xycodec.models.base import Codec
from xycodec.models.files import Transcoded, decode_file, encode_file


@dataclass(frozen=True)
class Comparison:
    """Cost of encoding and decoding one file, and the quality that was kept."""

    encoded: Transcoded
    decoded: Transcoded
    quality: Scores
    """Values of the metrics in `xycodec.eval.results.ROUNDTRIP`."""


def roundtrip_file(
    codec: Codec,
    source: str,
    code_file: str,
    target: str,
    *,
    n_q: int | None = None,
    overlap_s: float | None = None,
    search: int = 1,
    advance: Advance = unwatched,
) -> Comparison:
    """Encode `source` into `code_file`, decode that into `target`, and compare source and target."""
    encoded = encode_file(codec, source, code_file, n_q=n_q, overlap_s=overlap_s, search=search, advance=advance)
    file = CodecFile.read(code_file)
    decoded = decode_file(codec, file, target, name=code_file, overlap_s=overlap_s, advance=advance)
    again, original = (stream_audio(path, SPEECH_RATE, tell=ignore) for path in (target, source))
    return Comparison(encoded, decoded, measure_quality(again, original))
