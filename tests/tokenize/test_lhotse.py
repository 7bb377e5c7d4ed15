"""Lhotse extracts and stores codes as it does features."""

import json

import numpy as np
import pytest
from lhotse import CutSet, NumpyFilesWriter
from lhotse.features.base import FeatureExtractor
from tests.data.corpus import noise, save
from tests.tokenize.corpora import cuts_of, save_model

from xycodec.checkpoints.load import load_codec
from xycodec.errors import XycodecError
from xycodec.io.audio import read_audio
from xycodec.tokenize.lhotse import CodecFeatures, CodecFeaturesConfig


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_model(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture
def extractor(model):
    return CodecFeatures(CodecFeaturesConfig(model, device="cpu"))


def alone(model, path, rate=16_000):
    codec = load_codec(model, device="cpu")
    return codec.encode(read_audio(path, rate)).codes[0].numpy().T


def test_a_cut_set_computes_and_stores_codes(extractor, model, tmp_path):
    paths = [save(tmp_path / f"{i}.wav", noise(seconds, seed=i)) for i, seconds in enumerate((0.5, 1.3, 0.96))]
    cuts = cuts_of(paths).compute_and_store_features(extractor, str(tmp_path / "codes"), storage_type=NumpyFilesWriter)
    cuts.to_file(tmp_path / "cuts.jsonl")
    for cut, path in zip(CutSet.from_file(tmp_path / "cuts.jsonl"), paths, strict=True):
        expected = alone(model, path)
        assert cut.features.type == "xycodec"
        assert cut.features.load().dtype == np.uint16
        # Less than half a frame at the end does not count here.
        assert len(cut.load_features()) == round(cut.duration / 0.08)
        np.testing.assert_array_equal(cut.load_features(), expected[: len(cut.load_features())])


def test_batches_give_the_codes_of_each_clip_alone(extractor, model, tmp_path):
    paths = [save(tmp_path / f"{i}.wav", noise(seconds, seed=i)) for i, seconds in enumerate((0.5, 0.9))]
    cuts_of(paths).compute_and_store_features_batch(
        extractor, str(tmp_path / "codes"), tmp_path / "cuts.jsonl", storage_type=NumpyFilesWriter, num_workers=0
    )
    for cut, path in zip(CutSet.from_file(tmp_path / "cuts.jsonl"), paths, strict=True):
        np.testing.assert_array_equal(cut.features.load(), alone(model, path)[: round(cut.duration / 0.08)])


def test_its_settings_are_plain(extractor, model):
    about = json.loads(json.dumps(extractor.to_dict()))
    again = FeatureExtractor.from_dict(about)
    assert again.config == CodecFeaturesConfig(model, None, "cpu")
    assert (again.frame_shift, again.feature_dim(16_000)) == (0.08, 2)
    assert CodecFeatures(CodecFeaturesConfig(model, 1, "cpu")).feature_dim(8_000) == 1


def test_other_rates_are_resampled_and_channels_refused(extractor):
    assert extractor.extract(noise(1.0, 24_000)[None], 24_000).shape == (13, 2)
    with pytest.raises(XycodecError, match="2 channels: codes are of one"):
        extractor.extract(np.zeros((2, 9000), np.float32), 16_000)
