"""ONNX graphs against the codec that they were made from: codes, audio, and what the files say."""

import json

import numpy as np
import onnx
import pytest
import torch
from tests.exporting import CODECS, differing, make_codec, session, speech

from xycodec.errors import CheckpointError
from xycodec.export import graphs
from xycodec.export.graphs import export_onnx
from xycodec.export.layout import METADATA_KEY
from xycodec.models.base import fingerprint

QUICK = ("xy",)  # tests of programs have an X-Codec
KINDS = [pytest.param(name, marks=() if name in QUICK else pytest.mark.long) for name in CODECS]


@pytest.fixture(scope="module", params=KINDS)
def exported(request, exports):
    """(codec, folder, encoder, decoder) of every kind of codec."""
    codec, folder = exports(request.param)
    return codec, folder, session(folder / "encoder.onnx"), session(folder / "decoder.onnx")


def lengths(codec):
    """Samples of clips of 1, 7, 50 and all frames of a window, whole ones and not."""
    hop = codec.hop_length
    return [1, hop, 7 * hop - 3, 50 * hop + 1, codec.window_samples - 1, codec.window_samples]


def test_graphs_compute_what_the_codec_does(exported):
    """One test, so that two workers need not both export the codec."""
    codec, folder, encoder, decoder = exported
    _the_files_say_what_they_are(codec, folder, encoder, decoder)
    _codes_and_audio_are_the_codecs(codec, encoder, decoder)
    _silence_has_the_codecs_codes(codec, encoder)
    _a_batch_is_its_clips(codec, encoder, decoder)
    _every_number_of_layers_decodes(codec, decoder)


def _codes_and_audio_are_the_codecs(codec, encoder, decoder):
    near_ties = 0
    for samples in lengths(codec):
        clip = speech(samples)
        wanted = codec.encode(clip).codes
        (codes,) = encoder.run(None, {"audio": clip[None].numpy()})
        assert codes.shape == wanted.shape
        near_ties += differing(codec, clip, codes[0])
        audio = codec.decode(wanted).audio
        (heard,) = decoder.run(None, {"codes": wanted.numpy()})
        assert heard.shape == audio.shape
        np.testing.assert_allclose(heard, audio.numpy(), atol=1e-4, rtol=0)
    print(f"{codec.model_id}: {near_ties} frames with another choice between two equally near codes")


def _silence_has_the_codecs_codes(codec, encoder):
    clip = torch.zeros(7 * codec.hop_length)
    (codes,) = encoder.run(None, {"audio": clip[None].numpy()})
    differing(codec, clip, codes[0])


def _a_batch_is_its_clips(codec, encoder, decoder):
    clips = torch.stack([speech(9 * codec.hop_length, seed) for seed in range(3)])
    (codes,) = encoder.run(None, {"audio": clips.numpy()})
    for clip, item in zip(clips, codes, strict=True):
        differing(codec, clip, item)
    (heard,) = decoder.run(None, {"codes": codes})
    for item, audio in zip(codes, heard, strict=True):
        np.testing.assert_allclose(audio, codec.decode(item).audio[0].numpy(), atol=1e-4, rtol=0)


def _every_number_of_layers_decodes(codec, decoder):
    codes = codec.encode(speech(7 * codec.hop_length)).codes
    for layers in range(1, codec.n_q + 1):
        (heard,) = decoder.run(None, {"codes": codes[:, :layers].numpy()})
        np.testing.assert_allclose(heard, codec.decode(codes[:, :layers]).audio.numpy(), atol=1e-4, rtol=0)


def _the_files_say_what_they_are(codec, folder, encoder, decoder):
    about = json.loads((folder / "config.json").read_text())
    assert about["checksum"] == fingerprint(codec)
    assert (about["model_id"], about["n_q"], about["codebook_size"]) == (codec.model_id, codec.n_q, codec.codebook_size)
    assert (about["input_sample_rate"], about["output_sample_rate"]) == (16000, codec.output_sample_rate)
    for graph in (encoder, decoder):
        assert json.loads(graph.get_modelmeta().custom_metadata_map[METADATA_KEY]) == about
    assert encoder.get_inputs()[0].shape == ["batch", "samples"]
    assert encoder.get_outputs()[0].shape == ["batch", codec.n_q, "frames"]
    assert decoder.get_inputs()[0].shape == ["batch", "layers", "frames"]
    for name in ("encoder.onnx", "decoder.onnx"):
        model = onnx.load(folder / name)
        assert {opset.domain: opset.version for opset in model.opset_import} == {"": 18}


@pytest.mark.long
def test_large_weights_lie_beside_the_graph(monkeypatch, tmp_path):
    codec = make_codec("xy")
    monkeypatch.setattr(graphs, "LARGEST", 1000)
    export_onnx(codec, tmp_path / "codec")
    assert (tmp_path / "codec" / "decoder.onnx.data").stat().st_size > (
        tmp_path / "codec" / "decoder.onnx"
    ).stat().st_size
    clip = speech(5000)
    (codes,) = session(tmp_path / "codec" / "encoder.onnx").run(None, {"audio": clip[None].numpy()})
    differing(codec, clip, codes[0])


def test_what_cannot_be_exported_is_refused(tmp_path):
    codec = make_codec("xy")
    (tmp_path / "taken").mkdir()
    with pytest.raises(CheckpointError, match="taken: exists already"):
        export_onnx(codec, tmp_path / "taken")
    codec.reference = True
    with pytest.raises(CheckpointError, match="only a float32 codec"):
        export_onnx(codec, tmp_path / "other")
    assert not (tmp_path / "other").exists()
