"""CLAP's text vectors: of length one, alone as together, kept in a store; a collapsed model is refused."""

import numpy as np
import pytest
import torch
import transformers
from tests.lm.speaking import TEXTS, write_speech
from tokenizers import Tokenizer, models, pre_tokenizers

from xycodec.errors import CheckpointError, StoreError
from xycodec.io.tokens.read import TokenStore
from xycodec.io.tokens.vectors import read_about, read_vectors, write_vectors
from xycodec.lm.clap import ClapText, describe_store


@pytest.fixture(scope="module")
def clap(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clap")
    names = (
        "<s> <pad> </s> <unk> a dog barks in the distance an orchestra plays slow waltz red up and down bird , green"
    )
    words = {word: number for number, word in enumerate(names.split())}
    made = Tokenizer(models.WordLevel(words, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>").save_pretrained(folder)
    text = {
        "vocab_size": len(words), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "max_position_embeddings": 40, "projection_dim": 8, "pad_token_id": 1,
        "initializer_factor": 1.0, "initializer_range": 1.0,
    }  # fmt: skip
    audio = {
        "hidden_size": 16, "patch_embeds_hidden_size": 4, "depths": [1, 1], "num_attention_heads": [1, 1],
        "spec_size": 64, "num_mel_bins": 16, "window_size": 4, "projection_dim": 8,
    }  # fmt: skip
    config = transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=8)
    torch.manual_seed(0)
    model = transformers.ClapModel(config)
    with torch.no_grad():
        for parameter in model.text_model.parameters():
            parameter.normal_()
    model.save_pretrained(folder)
    return folder


def test_vectors_have_length_one_and_are_a_captions_alone(clap):
    embedder = ClapText(str(clap), device="cpu")
    together = embedder.embed(TEXTS)
    assert together.shape == (3, 8)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(3))
    for number, text in enumerate(TEXTS):
        assert torch.equal(embedder.embed([text])[0], together[number])
    assert abs(float(together[0] @ together[1])) < 0.999


def test_what_another_version_gives_is_unwrapped(clap, monkeypatch):
    embedder = ClapText(str(clap), device="cpu")
    found = embedder.embed(TEXTS)
    whole = embedder.model.get_text_features

    def bare(**ids):
        output = whole(**ids)
        return 3 * (output if isinstance(output, torch.Tensor) else output.pooler_output)

    def wrapped(**ids):
        return transformers.modeling_outputs.BaseModelOutputWithPooling(pooler_output=bare(**ids))

    for version in (bare, wrapped):
        monkeypatch.setattr(embedder.model, "get_text_features", version)
        torch.testing.assert_close(embedder.embed(TEXTS), found)


def test_a_model_that_tells_no_captions_apart_is_refused(clap, monkeypatch):
    same = torch.ones(1, 8)
    monkeypatch.setattr(transformers.ClapModel, "get_text_features", lambda self, **ids: same)
    with pytest.raises(CheckpointError, match=r"alike \(cosine 1.000\)"):
        ClapText(str(clap), device="cpu")
    with pytest.raises(CheckpointError, match="no CLAP model of Transformers"):
        ClapText(str(clap / "nothing"), device="cpu")


def test_a_store_keeps_them(clap, tmp_path):
    store = write_speech(tmp_path / "store")
    embedder = ClapText(str(clap), device="cpu")
    assert describe_store(store, embedder) == 3
    again = TokenStore(tmp_path / "store")
    np.testing.assert_array_equal(read_vectors(again), embedder.embed(TEXTS).numpy().astype(np.float16))
    assert read_about(again) == {"model": str(clap), "of": "text", "dim": 8}


def test_vectors_that_do_not_fit_are_refused(tmp_path):
    store = write_speech(tmp_path / "store")
    with pytest.raises(StoreError, match="has no vectors"):
        read_vectors(store)
    with pytest.raises(StoreError, match="give one for each"):
        write_vectors(store, np.zeros((2, 4)), {})
    with pytest.raises(StoreError, match="not finite"):
        write_vectors(store, np.full((3, 4), 1e6), {})
    np.save(store.folder / "vectors.npy", np.zeros((3, 4)))
    with pytest.raises(StoreError, match="make them again"):
        read_vectors(store)
