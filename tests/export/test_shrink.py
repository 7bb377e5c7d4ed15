"""Smaller weights: how small, and how little changes."""

import numpy as np
import onnx
import pytest
from tests.exporting import session

from xycodec.errors import CheckpointError
from xycodec.export.layout import METADATA_KEY
from xycodec.export.shrink import shrink_graph


@pytest.mark.parametrize(("weights", "noise"), [("float16", 1e-5), ("int8", 0.02), ("int4", 0.2)])
def test_a_smaller_decoder_sounds_alike(exports, tmp_path, weights, noise):
    codec, folder = exports("xy")
    graph = folder / "decoder.onnx"
    target = tmp_path / "decoder.onnx"
    shrink_graph(graph, target, weights)
    assert target.stat().st_size < 0.8 * graph.stat().st_size
    codes = np.random.default_rng(0).integers(0, codec.codebook_size, (2, codec.n_q, 30))
    one, two = (session(path).run(None, {"codes": codes})[0] for path in (graph, target))
    error = np.square(one - two).mean() / np.square(one).mean()
    assert 0 < error < noise
    about = [one.get_modelmeta().custom_metadata_map[METADATA_KEY] for one in (session(graph), session(target))]
    assert about[0] == about[1]


@pytest.mark.parametrize(("weights", "product"), [("int8", "MatMulInteger"), ("int4", "MatMulNBits")])
def test_one_part_alone(exports, tmp_path, weights, product):
    _, folder = exports("xy")
    shrink_graph(folder / "encoder.onnx", tmp_path / "encoder.onnx", weights, part="semantic_encoder")
    kinds = [node.op_type for node in onnx.load(tmp_path / "encoder.onnx").graph.node]
    before = [node.op_type for node in onnx.load(folder / "encoder.onnx").graph.node]
    assert kinds.count(product) == 4  # of its one layer
    assert kinds.count("MatMul") == before.count("MatMul") - 4
    session(tmp_path / "encoder.onnx").run(None, {"audio": np.zeros((1, 3000), np.float32)})


def test_unknown_weights_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="weights must be one of float16, int8, int4, got 'int3'"):
        shrink_graph(tmp_path / "a.onnx", tmp_path / "b.onnx", "int3")
