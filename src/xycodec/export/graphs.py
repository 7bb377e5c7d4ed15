"""A codec as two ONNX graphs, `encoder.onnx` and `decoder.onnx`, with its weights and all it needs to be used."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from xycodec.checkpoints.build import OwnCodec
from xycodec.errors import CheckpointError
from xycodec.export.layout import CONFIG_FILE, DECODER, ENCODER, METADATA_KEY, About
from xycodec.export.programs import export_programs
from xycodec.io.files import new_folder
from xycodec.io.libraries import require_library
from xycodec.models.base import fingerprint

OPSET = 18
LARGEST = 1_900_000_000
"""Most bytes of weights inside a graph: its format, protobuf, ends at 2 GB. More lie in a file beside it."""


def export_onnx(codec: OwnCodec, folder: str | Path, *, overwrite: bool = False) -> About:
    """Write `encoder.onnx`, `decoder.onnx` and `config.json` into a new folder, whole or not at all.

    Encoder: `audio` (batch, samples) float32 at the input rate -> `codes` (batch, n_q, frames) int64. Decoder: `codes`
    (batch, layers, frames) of the first `layers` <= n_q -> `audio` (batch, samples) float32 at the output rate. Clips
    of a batch are of one length, at most a window. `overwrite` replaces a folder that holds an exported codec.

    Raises CheckpointError if the folder exists, the codec is not in float32, or onnx is not installed.
    """
    for name in ("onnx", "onnxscript"):
        require_library(name, "export")
    target = Path(folder)
    about = About(
        model_id=codec.model_id,
        input_sample_rate=codec.input_sample_rate,
        output_sample_rate=codec.output_sample_rate,
        n_q=codec.n_q,
        codebook_size=codec.codebook_size,
        hop_length=codec.hop_length,
        window_frames=codec.window_frames,
        checksum=fingerprint(codec),
    )
    with new_folder(target, CheckpointError, replace=overwrite and (target / ENCODER).is_file()) as made:
        encoder, decoder = export_programs(codec)
        codes = (("batch", codec.n_q, "frames"), ("batch", "layers", "frames"))
        _write(made / ENCODER, encoder, about, {"audio": ("batch", "samples")}, {"codes": codes[0]})
        _write(made / DECODER, decoder, about, {"codes": codes[1]}, {"audio": ("batch", "samples")})
        (made / CONFIG_FILE).write_text(about.to_json(indent=2) + "\n", encoding="utf-8")
    return about


Shapes = dict[str, tuple[str | int, ...]]


def _write(path: Path, program: ExportedProgram, about: About, inputs: Shapes, outputs: Shapes) -> None:
    """Write a program as a graph whose inputs and outputs have these names and shapes."""
    import onnx_ir as ir

    with _quiet():
        made: Any = torch.onnx.export(
            program, (), dynamo=True, opset_version=OPSET, verbose=False,
            input_names=list(inputs), output_names=list(outputs),
        )  # fmt: skip
    model = made.model
    for value, shape in zip(
        (*model.graph.inputs, *model.graph.outputs), (*inputs.values(), *outputs.values()), strict=True
    ):
        value.shape = ir.Shape(shape)
    model.metadata_props[METADATA_KEY] = about.to_json()
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    ir.save(model, path, external_data=f"{path.name}.data" if size > LARGEST else None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remarks on libraries that nothing here uses, and on its own old functions."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
