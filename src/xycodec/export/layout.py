"""The folder of an exported codec: two graphs, and a file that says what they are."""

import json
from pathlib import Path

from pydantic import PositiveInt

from xycodec.errors import CheckpointError
from xycodec.io.config import Config, parse_config

ENCODER, DECODER, CONFIG_FILE = "encoder.onnx", "decoder.onnx", "config.json"
METADATA_KEY = "xycodec"
"""Key of a graph's metadata under which `About` stands as JSON."""
FORMAT_VERSION = 1


class About(Config):
    """Facts on an exported codec; they stand in `config.json` and in the metadata of either graph."""

    model_id: str
    input_sample_rate: PositiveInt
    """Hz; of the encoder's audio."""
    output_sample_rate: PositiveInt
    """Hz; of the decoder's audio."""
    n_q: PositiveInt
    """Layers of codes."""
    codebook_size: PositiveInt
    """Codes of a layer."""
    hop_length: PositiveInt
    """Input samples of a code frame."""
    window_frames: PositiveInt
    """Most code frames that a graph takes."""
    checksum: str
    """Fingerprint of the weights that the graphs were made from."""
    format_version: int = FORMAT_VERSION

    def to_json(self, indent: int | None = None) -> str:
        """The facts as a JSON object."""
        return json.dumps(self.model_dump(), indent=indent)


def read_about(text: str | bytes, where: str) -> About:
    """Parse what `About.to_json` wrote. Raises CheckpointError, which begins with `where`."""
    try:
        data = json.loads(text)
    except ValueError:
        raise CheckpointError(f"{where}: is not JSON: export the codec again") from None
    if isinstance(data, dict) and data.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(f"{where}: is no codec exported for this version: run xycodec export-onnx")
    return parse_config(About, data, where, CheckpointError)


def read_folder(folder: Path) -> About:
    """Facts on the codec in an exported folder. Raises CheckpointError where it holds none."""
    for name in (CONFIG_FILE, ENCODER, DECODER):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: has no {name}: name a folder that xycodec export-onnx wrote")
    return read_about((folder / CONFIG_FILE).read_bytes(), str(folder / CONFIG_FILE))
