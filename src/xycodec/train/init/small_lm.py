"""A small language model to train along, where no pretrained one is at hand."""

from collections.abc import Iterable
from pathlib import Path

import torch

from xycodec.errors import ConfigError
from xycodec.io.files import new_folder
from xycodec.io.libraries import transformers_library

END = "<|endoftext|>"


def make_small_lm(
    folder: Path,
    texts: Iterable[str],
    *,
    vocabulary: int = 1000,
    hidden: int = 256,
    layers: int = 4,
    heads: int = 4,
    positions: int = 2048,
    seed: int = 0,
) -> int:
    """Write a Qwen2 with random weights and a byte-level BPE of `texts` into `folder`, as Transformers does.

    `vocabulary` counts tokens at most, 257 at least: all bytes and the end of text. Returns the number of
    parameters. Raises ConfigError if there is no text, or if `folder` exists.
    """
    library = transformers_library()
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    with new_folder(folder, ConfigError) as made:
        kept = [text for text in texts if text.strip()]
        if not kept:
            raise ConfigError("no clip has a text: a language model needs some to learn its tokens from")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        tokenizer.train_from_iterator(
            kept,
            trainers.BpeTrainer(
                vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
            ),
        )
        library.utils.logging.disable_progress_bar()
        config = library.Qwen2Config(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=positions,
            tie_word_embeddings=True,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = library.Qwen2ForCausalLM(config)
        model.save_pretrained(made)
        library.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END).save_pretrained(made)
    return sum(p.numel() for p in model.parameters())
