"""Smaller weights for an exported graph, which takes and gives what it did.

Meant for decoders: an encoder's codes change with its weights.
"""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xycodec.errors import CheckpointError
from xycodec.io.libraries import require_library

_LEAST = 1024  # elements of a tensor that is made smaller
_BLOCK = 32  # weights of a column that share a scale in 4 bits


def shrink_graph(source: Path, target: Path, weights: str, *, part: str | None = None) -> None:
    """Write the graph `source` to `target` with its weights as `weights` says.

    float16: stored in 16 bits, computed in float32. int8: matrices in 7 of 8 bits with a scale a column, multiplied
    with inputs that are rounded to 8 bits as they come; other tensors as in float16. int4: matrices in 4 bits with a
    scale and an offset for 32 weights of a column, multiplied in float32; other tensors in 8 bits with a scale for each
    index of their first axis. `part` leaves all alone but the matrices of the module of that name, such as
    semantic_encoder.

    Raises CheckpointError if onnx or onnxruntime is not installed, or `weights` is none of these.
    """
    if weights not in _WAYS:
        raise CheckpointError(f"weights must be one of {', '.join(_WAYS)}, got {weights!r}")
    onnx = require_library("onnx", "export")
    require_library("onnxruntime", "export")
    model = onnx.load(source)
    matrices, rest = _WAYS[weights]
    floats = {one.name for one in model.graph.initializer if one.data_type == onnx.TensorProto.FLOAT}
    products = (node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in floats)
    names = [node.name for node in products if part is None or part in _scopes(node)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = matrices(model, names)
    onnx.save(model if part else _restored(model, rest), target)


def _scopes(node: Any) -> set[str]:
    """Names of the modules that a node was made in."""
    return {
        name
        for entry in node.metadata_props
        if entry.key == "pkg.torch.onnx.name_scopes"
        for path in entry.value.strip("[]").split(", ")
        for name in path.strip("'\"").split(".")
    }


def _as_they_are(model: Any, names: Sequence[str]) -> Any:
    return model


def _matrices_int8(model: Any, names: Sequence[str]) -> Any:
    from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
    from onnxruntime.quantization.quant_utils import QuantizationMode, QuantType

    # Seven bits: processors without VNNI (AVX2) add two products of eight bits in sixteen, which overflow unheard.
    quantizer = ONNXQuantizer(
        model, True, True, QuantizationMode.IntegerOps, False, QuantType.QInt8, QuantType.QUInt8, None, list(names),
        [], ["MatMul"], {"MatMulConstBOnly": True},
    )  # fmt: skip
    quantizer.quantize_model()
    return quantizer.model.model


def _matrices_int4(model: Any, names: Sequence[str]) -> Any:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(
        model,
        bits=4,
        block_size=_BLOCK,
        is_symmetric=False,
        nodes_to_exclude=[node.name for node in model.graph.node if node.name not in names],
        op_types_to_quantize=("MatMul",),
    )
    quantizer.process()
    return quantizer.model.model


Stored = tuple[list[Any], Any]
"""Tensors, and the node that makes a float32 tensor of them."""


def _in_float16(name: str, values: NDArray[np.float32]) -> Stored:
    from onnx import TensorProto, helper, numpy_helper

    stored = numpy_helper.from_array(values.astype(np.float16), f"{name}.float16")
    return [stored], helper.make_node("Cast", [stored.name], [name], to=TensorProto.FLOAT)


def _in_int8(name: str, values: NDArray[np.float32]) -> Stored:
    from onnx import helper, numpy_helper

    if values.ndim == 1:  # scales of matrices
        return _in_float16(name, values)
    scale = np.abs(values).reshape(len(values), -1).max(axis=1) / np.float32(127)
    scale[scale == 0] = 1
    rounded = np.rint(values / scale.reshape(-1, *[1] * (values.ndim - 1))).astype(np.int8)
    stored = [numpy_helper.from_array(rounded, f"{name}.int8"), numpy_helper.from_array(scale, f"{name}.scale")]
    return stored, helper.make_node("DequantizeLinear", [one.name for one in stored], [name], axis=0)


def _restored(model: Any, store: Callable[[str, NDArray[np.float32]], Stored]) -> Any:
    """Keep all large float32 tensors as `store` says, and restore them where the graph begins."""
    from onnx import TensorProto, numpy_helper

    graph = model.graph
    for tensor in list(graph.initializer):
        if tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) >= _LEAST:
            stored, node = store(tensor.name, numpy_helper.to_array(tensor))
            graph.initializer.remove(tensor)
            graph.initializer.extend(stored)
            graph.node.insert(0, node)
    return model


_WAYS: dict[str, tuple[Callable[[Any, Sequence[str]], Any], Callable[[str, NDArray[np.float32]], Stored]]] = {
    "float16": (_as_they_are, _in_float16),
    "int8": (_matrices_int8, _in_float16),
    "int4": (_matrices_int4, _in_int8),
}
