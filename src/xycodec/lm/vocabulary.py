"""A text tokenizer's vocabulary with codes in it: one row of a language model's embedding for each code."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xycodec.errors import XycodecError
from xycodec.lm.patterns import Flattened

SPECIALS = ("<|speech_start|>", "<|speech_end|>")


@dataclass(frozen=True)
class SpeechVocabulary:
    """Ids of codes among those of text: code c of codebook q is `first + q * codebook_size + c`.

    Attributes:
        first: id of the first code.
        specials: ids of the special tokens, by name.
        n_q, codebook_size: of the codes.
        size: ids in all, text included.
    """

    first: int
    specials: dict[str, int]
    n_q: int
    codebook_size: int
    size: int

    def encode(self, codes: Tensor) -> Tensor:
        """Ids (n_q * L,) of codes (n_q, L), frame after frame."""
        return Flattened(self.n_q, self.codebook_size).apply(codes).flatten() + self.first

    def decode(self, ids: Tensor) -> Tensor:
        """Codes (n_q, L) of ids. Raises XycodecError where one is no code, or of another codebook."""
        return Flattened(self.n_q, self.codebook_size).revert((ids - self.first)[:, None])


def add_speech(
    tokenizer: Any, n_q: int, codebook_size: int, specials: Sequence[str] = SPECIALS, name: str = "<|s{q}_{c}|>"
) -> SpeechVocabulary:
    """Add special tokens and one token for each code to a tokenizer of Transformers, which is changed.

    `name` makes a code's token of its codebook `q` and its number `c`. Raises XycodecError if it has one of them.
    """
    names = [name.format(q=q, c=c) for q in range(n_q) for c in range(codebook_size)]
    known = tokenizer.get_vocab()
    if taken := [one for one in (*specials, *names) if one in known]:
        raise XycodecError(f"the tokenizer has {taken[0]!r} already: give other names")
    tokenizer.add_special_tokens({"additional_special_tokens": list(specials)})
    tokenizer.add_tokens(names)
    ids = tokenizer.convert_tokens_to_ids(names)
    if ids != list(range(ids[0], ids[0] + len(ids))):
        raise XycodecError("the tokenizer gave the codes ids that do not follow each other: give other names")
    found = {one: int(tokenizer.convert_tokens_to_ids(one)) for one in specials}
    return SpeechVocabulary(int(ids[0]), found, n_q, codebook_size, len(tokenizer))


@torch.no_grad()
def resize_embeddings(model: Any, vocabulary: SpeechVocabulary, text_size: int, seed: int = 0) -> None:
    """Give a causal model of Transformers rows for a vocabulary; the first `text_size` stay as they are.

    New rows, of the output too if it has its own, are the mean of the text's rows and a thousandth of their spread of
    noise, so that no new token is likelier than another at the start.
    """
    model.resize_token_embeddings(vocabulary.size, mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    tables = {model.get_input_embeddings().weight, model.get_output_embeddings().weight}
    for table in sorted(tables, key=id) if len(tables) > 1 else tables:
        text = table[:text_size]
        noise = torch.randn(len(table) - text_size, table.shape[1], generator=generator).to(table)
        table[text_size:] = text.mean(dim=0) + 1e-3 * text.std(dim=0) * noise
