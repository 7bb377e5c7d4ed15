"""A HuBERT in ABX: its frames, and scores that follow from them."""

import itertools

import numpy as np
import pytest
import soundfile as sf
import torch
import transformers
from torch.nn import functional as F

from xycodec.errors import CheckpointError, XycodecError
from xycodec.eval.abx.distances import Features, item_frames
from xycodec.eval.abx.items import COLUMNS, Omissions, read_items
from xycodec.eval.abx.run import abx_error, run_abx
from xycodec.eval.abx.self_supervised import open_self_supervised
from xycodec.eval.abx.triples import plan_triples

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
         "conv_dim": (8,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}  # fmt: skip


@pytest.fixture(scope="module")
def hubert(tmp_path_factory):
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("hubert") / "mine"
    transformers.HubertModel(transformers.HubertConfig(**SMALL)).save_pretrained(folder)
    return folder


@pytest.fixture
def corpus(tmp_path):
    """(item file, folder of audio): two speakers, two recordings of noise each."""
    generator = np.random.default_rng(1)
    lines = [COLUMNS]
    for speaker, take in itertools.product("mn", range(2)):
        name = f"{speaker}{take}"
        sf.write(tmp_path / f"{name}.flac", generator.uniform(-0.5, 0.5, 24_000), 16_000)
        for step in range(8):
            phone = generator.choice(["a", "b"])
            lines.append(f"{name} {0.1 + 0.15 * step:.3f} {0.2 + 0.15 * step:.3f} {phone} p t {speaker}")
    (tmp_path / "phones.item").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path / "phones.item", tmp_path


@pytest.mark.parametrize("layer", [None, 0, 2])
def test_frames_are_the_states_of_the_model(hubert, layer):
    mine = open_self_supervised(f"ssl:{hubert}" + ("" if layer is None else f":{layer}"), "cpu")
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, 320 * 30).astype(np.float32)
    frames = mine.frames(audio)
    assert frames.shape == (16, 30)
    model = transformers.HubertModel.from_pretrained(hubert).eval()
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
    normed = extractor(audio, sampling_rate=16_000, return_tensors="pt").input_values
    with torch.no_grad():
        states = model(F.pad(normed, (160, 160)), output_hidden_states=True).hidden_states
    wanted = torch.stack(states).mean(0) if layer is None else states[layer]
    np.testing.assert_allclose(frames, wanted[0].T.numpy(), atol=1e-5)


def test_scores_are_of_its_frames(hubert, corpus):
    items, audio = corpus
    told = []
    result = run_abx(f"ssl:{hubert}", items, audio, device="cpu", advance=told.append)
    assert sum(told) == pytest.approx(6.0)
    assert (result.frame_rate, result.branch, result.items) == (50, None, 32)
    assert [(score.kind, score.n_q) for score in result.scores] == 2 * [("features", None)]
    model, listed = open_self_supervised(f"ssl:{hubert}", "cpu"), read_items(items, Omissions())
    rows, places, count = [], [], 0
    for item in listed:
        samples, _ = sf.read(audio / f"{item.file}.flac", dtype="float32")
        frames = model.frames(samples)
        index = item_frames(item.onset, item.offset, 50, frames.shape[1], 1)
        rows.append(frames.T[index])
        places.append(np.arange(count, count + len(index)))
        count += len(index)
    features = Features(np.concatenate(rows), places, "angle")
    for score in result.scores:
        plan = plan_triples(listed, score.mode, seed=0, max_group=10, max_x=5)
        assert score.error == pytest.approx(abx_error(features, plan), abs=1e-9)


def test_what_it_cannot_be_asked_is_refused_in_a_line(hubert, corpus, tmp_path):
    with pytest.raises(XycodecError, match="no codebooks and no branch"):
        run_abx(f"ssl:{hubert}", *corpus, n_q=[1], device="cpu")
    with pytest.raises(XycodecError, match="the model has states 0 to 2"):
        open_self_supervised(f"ssl:{hubert}:3", "cpu")
    with pytest.raises(CheckpointError, match="no such folder; give one of Transformers"):
        open_self_supervised("ssl:./nothing", "cpu")
    transformers.BertModel(transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=20
    )).save_pretrained(tmp_path / "bert")  # fmt: skip
    with pytest.raises(CheckpointError, match="reads no audio in frames of 320"):
        open_self_supervised(f"ssl:{tmp_path / 'bert'}", "cpu")
