"""The semantic branch of pre-training: what all models that read a codec's features and transcribe them share."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xycodec.errors import CheckpointError
from xycodec.io.libraries import transformers_library
from xycodec.nn.mean import Mean
from xycodec.nn.transformer import Adapter

IGNORED = -100
"""Target id that has no loss."""


@dataclass(frozen=True)
class Tokens:
    """Target tokens of a batch; all of it lies on the CPU."""

    ids: Tensor
    """(B, N) int64, N >= 1: transcripts and their ends, each followed by zeros."""
    lengths: tuple[int, ...]
    """Tokens of each item; 0 where it has no text."""


@dataclass(frozen=True)
class LMOutput:
    """Loss and accuracy of a batch, means over target tokens; `accuracy` has no gradient."""

    loss: Mean
    accuracy: Mean


class SemanticBranch(nn.Module, ABC):
    """`adapter` turns features into what `lm` reads, which stays frozen and in eval mode unless `trainable`.

    `lm` and `tokenizer` are Transformers'. A frozen `lm` passes gradients on to the adapter. `prompt` holds the ids
    that stand before every transcript; transcripts are cut to `max_tokens`. Raises CheckpointError if `lm` and
    `tokenizer` do not fit each other.
    """

    def __init__(
        self, lm: nn.Module, tokenizer: Any, adapter: Adapter, *, prompt: list[int], max_tokens: int, trainable: bool
    ) -> None:
        _check_tokenizer(lm, tokenizer)
        super().__init__()
        self.adapter = adapter
        self.lm: Any = lm.requires_grad_(trainable)
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.max_tokens = max_tokens
        self.trainable = trainable
        # The checkpoint's own may sample, or punish repetition.
        self.lm.generation_config = _greedy(tokenizer)
        self.train()

    def train(self, mode: bool = True) -> "SemanticBranch":
        """Set the training mode, but for a frozen `lm`, which stays in eval mode: it has no use for dropout."""
        super().train(mode)
        self.lm.train(mode and self.trainable)
        return self

    def tokenize(self, texts: Sequence[str | None]) -> Tokens:
        """Raw transcripts -> ids with the end of text, cut to `max_tokens`; None and blank texts have none.

        A transcript that is cut loses its end, so that none is taught where there is none.
        """
        rows = [self._encode(text)[: self.max_tokens] if text and text.strip() else [] for text in texts]
        ids = torch.zeros(len(rows), max([1, *map(len, rows)]), dtype=torch.int64)
        for row, tokens in zip(ids, rows, strict=True):
            row[: len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
        return Tokens(ids, tuple(map(len, rows)))

    def writes(self, language: str | None) -> bool:
        """Whether a text of the language (a code or a name, None if unknown) is one to learn: as a rule, any."""
        return True

    @abstractmethod
    def forward(self, features: Tensor, frames: Sequence[int], tokens: Tokens) -> LMOutput:
        """Cross-entropy (nats) and accuracy of the next token, given features (B, L, input_dim).

        `frames` counts each item's valid features. Items without frames or without text count nothing; if all are
        such, one is computed with weight zero, so that every process of a run has the same gradients to exchange.
        """

    @abstractmethod
    def transcribe(self, features: Tensor, frames: Sequence[int], max_new_tokens: int) -> list[str]:
        """Transcribe features (B, L, input_dim) greedily; empty for an item without frames.

        Call it in eval mode: dropout of a trainable model would make it random.
        """

    # ---- for the models ------------------------------------------------------------------------

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return [*ids, self.tokenizer.eos_token_id]

    def _decode(self, ids: list[int]) -> str:
        end = self.tokenizer.eos_token_id
        text: str = self.tokenizer.decode(ids[: ids.index(end)] if end in ids else ids, skip_special_tokens=True)
        return text.strip()

    def _adapted(self, features: Tensor, mask: Tensor | None) -> Tensor:
        made: Tensor = self.adapter(features, None if mask is None else mask.to(features.device, non_blocking=True))
        return made


def counted_items(frames: Sequence[int], tokens: Tokens) -> tuple[list[int], list[tuple[int, int]]]:
    """Items with both frames and text, and how many of each; the first alone, without text, where none has."""
    both = list(zip(frames, tokens.lengths, strict=True))
    items = [index for index, pair in enumerate(both) if all(pair)] or [0]
    # The item that stands for none may have text or frames, but not both.
    return items, [(count, text if count else 0) for count, text in (both[index] for index in items)]


def scored(logits: Tensor, targets: Tensor, count: int) -> LMOutput:
    """Loss and accuracy of logits (R, N, V) for `targets` (R, N), of which `count` are not IGNORED."""
    with torch.autocast(logits.device.type, enabled=False):
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    right = (logits.detach().argmax(dim=-1) == targets).sum()
    counts = torch.full((1,), float(count), device=logits.device)
    return LMOutput(Mean(loss[None], counts), Mean(right[None].float(), counts))


def _greedy(tokenizer: Any) -> Any:
    library = transformers_library()
    end = tokenizer.eos_token_id
    return library.GenerationConfig(do_sample=False, eos_token_id=end, pad_token_id=end)


def _check_tokenizer(lm: Any, tokenizer: Any) -> None:
    name = lm.config.name_or_path or type(lm).__name__
    # Without its files, Transformers makes up a tokenizer that knows no letter.
    if not tokenizer.encode("a", add_special_tokens=False):
        raise CheckpointError(f"{name}: gives no tokenizer, put its files beside the model's")
    if tokenizer.eos_token_id is None:
        raise CheckpointError(f"{name}: the tokenizer has no end-of-text token, set its eos_token")
    known = lm.get_input_embeddings().num_embeddings
    if len(tokenizer) > known:
        raise CheckpointError(f"{name}: the tokenizer has {len(tokenizer)} tokens, the model {known}; they must match")
