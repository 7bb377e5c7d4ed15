"""Codes among a text tokenizer's ids, and the rows that a model gets for them."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from xycodec.errors import XycodecError
from xycodec.lm.vocabulary import add_speech, resize_embeddings


@pytest.fixture
def tokenizer():
    words = Tokenizer(models.WordLevel({"hello": 0, "world": 1, "[UNK]": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")


def test_codes_follow_text_and_come_back(tokenizer):
    vocabulary = add_speech(tokenizer, 2, 5)
    assert (vocabulary.size, vocabulary.first) == (15, 5)
    codes = torch.tensor([[0, 4], [1, 2]])
    ids = vocabulary.encode(codes)
    assert tokenizer.convert_ids_to_tokens(ids.tolist()) == ["<|s0_0|>", "<|s1_1|>", "<|s0_4|>", "<|s1_2|>"]
    assert torch.equal(vocabulary.decode(ids), codes)
    assert tokenizer("hello world")["input_ids"] == [0, 1]
    written = "hello <|speech_start|><|s0_3|><|speech_end|>"
    start, end = (vocabulary.specials[name] for name in ("<|speech_start|>", "<|speech_end|>"))
    assert tokenizer(written)["input_ids"] == [0, start, vocabulary.first + 3, end]
    with pytest.raises(XycodecError, match="row 0 holds -5"):
        vocabulary.decode(torch.tensor([0, 6]))
    with pytest.raises(XycodecError, match=r"has '<\|speech_start\|>' already"):
        add_speech(tokenizer, 2, 5)


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_are_near_the_mean_of_the_old(tokenizer, tied):
    config = Qwen2Config(
        vocab_size=3, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    before = model.get_input_embeddings().weight.detach().clone()
    vocabulary = add_speech(tokenizer, 2, 5)
    resize_embeddings(model, vocabulary, 3)
    for table in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
        assert table.shape == (15, 16)
        assert torch.allclose(table[3:], table[:3].mean(dim=0).expand(12, 16), atol=0.01)
        assert len(torch.unique(table[3:], dim=0)) == 12
    assert torch.equal(model.get_input_embeddings().weight[:3], before)
    assert model(input_ids=vocabulary.encode(torch.tensor([[1], [2]]))[None]).logits.shape == (1, 2, 15)
