"""Small codecs of every kind that can be exported, clips for them, and what may differ between two computations."""

import numpy as np
import onnxruntime
import torch
from tests.published_xcodec import tiny_config as tiny_xcodec

from reference import tiny_config
from xycodec.checkpoints.build import random_codec
from xycodec.checkpoints.load import BUNDLED
from xycodec.io.audio import read_audio
from xycodec.models.agreement import compare_codes
from xycodec.models.config import CodebooksConfig, TowerConfig
from xycodec.models.xcodec.config import SelfSupervisedConfig, SemanticTowerConfig

ONE = TowerConfig(d_model=32, layers=1, heads=4, ffn_dim=48)
SELF_SUPERVISED = {"d_model": 20, "layers": 1, "heads": 2, "ffn_dim": 28, "conv_dim": 8, "position_kernel": 16,
                   "position_groups": 4}  # fmt: skip
XY = {"semantic_encoder": ONE, "semantic_encoder_adapter": ONE, "acoustic_encoder": ONE, "pre_rvq_adapter": ONE,
      "post_rvq_adapter": ONE, "acoustic_decoder": ONE}  # fmt: skip
X = {"window_frames": 60, "quantizer": CodebooksConfig(codebook_size=64, n_q=3)}
CODECS = {
    "xy": tiny_config(**XY),
    "xy-24k": tiny_config(output_sample_rate=24000, semantic_encoder=None, semantic_encoder_adapter=None,
                          **{name: ONE for name in XY if not name.startswith("semantic")}, window_frames=60),
    "x-hubert": tiny_xcodec(semantic=SelfSupervisedConfig(**SELF_SUPERVISED), **X),
    "x-wavlm": tiny_xcodec(semantic=SelfSupervisedConfig(kind="wavlm", **SELF_SUPERVISED), **X),
    "x-tower": tiny_xcodec(semantic=SemanticTowerConfig(kind="tower", d_model=20, layers=1, heads=2, ffn_dim=28,
                                                        positions=60), **X),
    "x-baseline": tiny_xcodec(semantic=None, **X),
}  # fmt: skip


def make_codec(name):
    """A random codec of a kind, the same every time."""
    return random_codec(CODECS[name])


def session(path):
    """An ONNX Runtime session on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def speech(samples, seed=0):
    """A clip (T,) of a bundled recording, from another place for another seed."""
    recording = torch.from_numpy(read_audio(BUNDLED / "fox.flac"))
    return recording.roll(-8000 * seed).repeat(-(-samples // len(recording)))[:samples]


def differing(codec, clip, codes):
    """Number of frames of `codes` (n_q, L) that are not the codec's own; an error where that is no near-tie."""
    found = compare_codes(codec, clip, torch.from_numpy(np.array(codes, np.int64)))
    assert found.mistakes == 0, found
    return found.near_ties
