"""Smaller weights for a decoder's graph. The encoder keeps float32, since codes would change with it."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xycodec.errors import CheckpointError
from xycodec.io.libraries import require_library

_LEAST = 1024  # elements of a tensor that is made smaller
_BLOCK = 32  # weights of a column that share a scale in 4 bits


def shrink_graph(source: Path, target: Path, weights: str) -> None:
    """Write the graph `source` to `target` with its weights as `weights` says; it takes and gives float32 all the same.

    float16: stored in 16 bits, computed in float32. int8: matrices in 8 bits, a scale a column, multiplied with inputs
    that are rounded to 8 bits as they come; the rest as in float16. int4: matrices in 4 bits, a scale for 32 weights of
    a column, multiplied in float32; all other tensors in 8 bits, a scale for each index of their first axis.

    Raises CheckpointError if onnx or onnxruntime is not installed, or `weights` is none of these.
    """
    if weights not in _WAYS:
        raise CheckpointError(f"weights must be one of {', '.join(_WAYS)}, got {weights!r}")
    onnx = require_library("onnx", "export")
    require_library("onnxruntime", "export")
    model = onnx.load(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = _WAYS[weights](model)
    onnx.save(model, target)


def _to_float16(model: Any) -> Any:
    from onnx import TensorProto, helper

    def cast(name: str, values: NDArray[np.float32]) -> tuple[list[Any], Any]:
        stored = [_tensor(f"{name}.float16", values.astype(np.float16))]
        return stored, helper.make_node("Cast", [stored[0].name], [name], to=TensorProto.FLOAT)

    return _stored(model, cast)


def _to_int8(model: Any) -> Any:
    from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
    from onnxruntime.quantization.quant_utils import QuantizationMode, QuantType
    from onnxruntime.quantization.registry import IntegerOpsRegistry

    quantizer = ONNXQuantizer(
        model, True, False, QuantizationMode.IntegerOps, False, QuantType.QInt8, QuantType.QUInt8, None, [], [],
        ["MatMul"], {"MatMulConstBOnly": True},
    )  # fmt: skip
    assert "MatMul" in IntegerOpsRegistry
    quantizer.quantize_model()
    return _to_float16(quantizer.model.model)
