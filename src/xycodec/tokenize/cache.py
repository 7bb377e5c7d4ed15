"""Codes of whole clips with all layers, kept for whatever needs them next: a folder for each codec."""

from pathlib import Path

from xycodec.io.codes import CodeStore
from xycodec.models.base import Codec, fingerprint


def open_cache(parent: Path, codec: Codec) -> CodeStore:
    """The codes that `parent` keeps of a codec; one of other weights has another folder. Raises XycodecError."""
    weights = fingerprint(codec)
    about = {"codec": codec.model_id, "weights": weights, "size": codec.codebook_size}
    return CodeStore(parent / f"{codec.model_id.replace('/', '_')}-{weights}", about)
