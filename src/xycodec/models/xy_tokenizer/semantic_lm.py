"""The semantic branch of pre-training: a causal language model that reads the codec's features and transcribes them.

A sequence is [speech][prompt][transcript][end of text], and the loss is on the transcript and its end alone (see
Language model in docs/models/xy_tokenizer.md). Padding stands at the end of a
sequence, where a causal model never looks: no attention mask is needed, and any causal model of Transformers will do.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xycodec.errors import CheckpointError, ConfigError, reason_of
from xycodec.io.hub import is_path
from xycodec.models.xy_tokenizer.config import LanguageModelConfig
from xycodec.nn.mean import Mean
from xycodec.nn.transformer import Adapter, frame_mask

_IGNORED = -100


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


@dataclass(frozen=True)
class _Layout:
    """Integers on the CPU that place R items of a batch in sequences of S rows, with N targets each."""

    items: Tensor
    """(R,) which items of the batch."""
    mask: Tensor | None
    """(R, L) valid speech frames, or None where all are."""
    words: Tensor
    """(R, W) ids of the prompt and the transcript."""
    order: Tensor
    """(R, S) for each row of a sequence, which of its item's L + W rows of speech and words it is."""
    readers: Tensor
    """(R, N) the row that has to foretell each target."""
    targets: Tensor
    """(R, N) ids, `_IGNORED` past an item's end."""
    count: int
    """Targets in all."""


class SemanticLM(nn.Module):
    """`adapter` turns features into embeddings of `lm`, which stays frozen and in eval mode unless `trainable`.

    `lm` and `tokenizer` are a causal language model of Transformers and its tokenizer. A frozen one passes
    gradients on to the adapter. Raises CheckpointError if the two do not fit each other or this use, ConfigError if
    a whole window with its text is longer than the model can read.
    """

    def __init__(
        self, lm: nn.Module, tokenizer: Any, adapter: Adapter, *, prompt: str, max_tokens: int, trainable: bool
    ) -> None:
        super().__init__()
        self.adapter = adapter
        self.lm: Any = lm.requires_grad_(trainable)
        self.tokenizer = tokenizer
        self.prompt: list[int] = tokenizer.encode(prompt, add_special_tokens=False) if prompt else []
        self.max_tokens = max_tokens
        self.trainable = trainable
        _check_fit(lm, tokenizer, len(adapter.positional_embedding) + len(self.prompt) + max_tokens)
        # The checkpoint's own may sample, or punish repetition.
        self.lm.generation_config = _greedy(tokenizer)
        self.train()

    def train(self, mode: bool = True) -> "SemanticLM":
        """Set the training mode, but for a frozen `lm`, which stays in eval mode: it has no use for dropout."""
        super().train(mode)
        self.lm.train(mode and self.trainable)
        return self

    # ---- training ------------------------------------------------------------------------------

    def tokenize(self, texts: Sequence[str | None]) -> Tokens:
        """Raw transcripts -> ids with the end of text, cut to `max_tokens`; None and blank texts have none.

        A transcript that is cut loses its end, so that none is taught where there is none.
        """
        rows = [self._encode(text) if text and text.strip() else [] for text in texts]
        ids = torch.zeros(len(rows), max([1, *map(len, rows)]), dtype=torch.int64)
        for row, tokens in zip(ids, rows, strict=True):
            row[: len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
        return Tokens(ids, tuple(map(len, rows)))

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return [*ids, self.tokenizer.eos_token_id][: self.max_tokens]

    def forward(self, features: Tensor, frames: Sequence[int], tokens: Tokens) -> LMOutput:
        """Cross-entropy (nats) and accuracy of the next token, given features (B, L, input_dim).

        `frames` counts each item's valid features. Items without frames or without text count nothing; if all are
        such, one is computed with weight zero, so that every process of a run has the same gradients to exchange.
        """
        layout = _layout(frames, tokens, self.prompt, features.shape[1])
        device = features.device
        order, readers, targets = (
            value.to(device, non_blocking=True) for value in (layout.order, layout.readers, layout.targets)
        )
        features = features.index_select(0, layout.items.to(device, non_blocking=True))
        rows = torch.cat([self._speech(features, layout.mask), self._embed(layout.words, device)], dim=1)
        # A mask, or position ids without a cache, Transformers would inspect on the host: the cache is for that only.
        logits = self.lm(
            inputs_embeds=rows.take_along_dim(order[..., None], dim=1), logits_to_keep=readers, use_cache=True
        ).logits
        with torch.autocast(device.type, enabled=False):
            loss = F.cross_entropy(
                logits.flatten(0, 1).float(), targets.flatten(), ignore_index=_IGNORED, reduction="sum"
            )
        right = (logits.detach().argmax(dim=-1) == targets).sum()
        count = torch.full((1,), float(layout.count), device=device)
        return LMOutput(Mean(loss[None], count), Mean(right[None].float(), count))

    def _speech(self, features: Tensor, mask: Tensor | None) -> Tensor:
        embedded: Tensor = self.adapter(features, None if mask is None else mask.to(features.device, non_blocking=True))
        return embedded

    def _embed(self, ids: Tensor, device: torch.device) -> Tensor:
        embedded: Tensor = self.lm.get_input_embeddings()(ids.to(device, non_blocking=True))
        return embedded

    # ---- listening -----------------------------------------------------------------------------

    @torch.no_grad()
    def transcribe(self, features: Tensor, frames: Sequence[int], max_new_tokens: int) -> list[str]:
        """Transcribe features (B, L, input_dim) greedily; empty for an item without frames.

        Call it in eval mode: dropout of a trainable model would make it random.
        """
        heard = [index for index, count in enumerate(frames) if count]
        texts = [""] * len(frames)
        if not heard:
            return texts
        counts = [frames[index] for index in heard]
        speech = self._speech(features[heard], frame_mask(counts, features.shape[1]))
        # The speech of every item ends where the prompt begins, so the padding is on the left.
        column = torch.arange(max(counts))[None]
        start = max(counts) - torch.tensor(counts)[:, None]
        order = (column - start).clamp_min(0).to(features.device)
        prompt = torch.tensor(self.prompt, dtype=torch.int64).expand(len(heard), -1)
        rows = torch.cat([speech.take_along_dim(order[..., None], 1), self._embed(prompt, features.device)], dim=1)
        mask = F.pad((column >= start).long(), (0, prompt.shape[1]), value=1).to(features.device)
        # Each process listens by itself: Transformers would have all of a sharded run take as many steps.
        made = self.lm.generate(
            inputs_embeds=rows, attention_mask=mask, max_new_tokens=max_new_tokens, synced_gpus=False
        )
        for index, ids in zip(heard, made.tolist(), strict=True):
            texts[index] = self._decode(ids)
        return texts

    def _decode(self, ids: list[int]) -> str:
        end = self.tokenizer.eos_token_id
        text: str = self.tokenizer.decode(ids[: ids.index(end)] if end in ids else ids, skip_special_tokens=True)
        return text.strip()


def _greedy(tokenizer: Any) -> Any:
    import transformers

    library: Any = transformers
    end = tokenizer.eos_token_id
    return library.GenerationConfig(do_sample=False, eos_token_id=end, pad_token_id=end)


def _layout(frames: Sequence[int], tokens: Tokens, prompt: list[int], width: int) -> _Layout:
    """Leave out what has no targets, and put the rest side by side; `width` is L, the padded number of frames."""
    both = list(zip(frames, tokens.lengths, strict=True))
    items = [index for index, pair in enumerate(both) if all(pair)] or [0]
    # The item that stands for none may have text or frames, but not both.
    kept = [(count, text if count else 0) for count, text in (both[index] for index in items)]
    length = max(1, *(count + len(prompt) + text for count, text in kept))
    speech, texts = torch.tensor(kept)[:, :, None].unbind(1)
    ids = tokens.ids[torch.tensor(items)]
    words = torch.cat([torch.tensor(prompt, dtype=torch.int64).expand(len(items), -1), ids], dim=1)

    # Speech, words, then what is left of the padded speech: all rows once, the valid ones first.
    row, end = torch.arange(length)[None], speech + words.shape[1]
    order = torch.where(row < speech, row, torch.where(row < end, row - speech + width, row - words.shape[1]))
    target = torch.arange(ids.shape[1])[None]
    return _Layout(
        items=torch.tensor(items),
        mask=frame_mask([count for count, _ in kept], width),
        words=words,
        order=order,
        readers=(speech + len(prompt) - 1 + target).clamp(0, length - 1),
        targets=ids.where(target < texts, _IGNORED),
        count=sum(text for _, text in kept),
    )


# ---- loading -----------------------------------------------------------------------------------


def load_semantic_lm(
    config: LanguageModelConfig, *, input_dim: int, window_frames: int, meta: bool = False
) -> SemanticLM:
    """The language model of `config.source`, a hub id or a folder, in float32, behind a new adapter.

    `input_dim` is the width of the features it reads, `window_frames` the most of them in a clip. `meta` builds it
    without weights, on torch's meta device, to count parameters. Raises CheckpointError, one line, if the model or
    its tokenizer cannot be had or is not a causal language model; ConfigError if it cannot read a whole window.
    """
    lm, tokenizer = _pretrained(config.source, meta)
    with torch.device("meta" if meta else "cpu"):
        adapter = Adapter(
            input_dim=input_dim,
            output_dim=lm.get_input_embeddings().embedding_dim,
            max_positions=window_frames,
            **config.adapter.model_dump(),
        )
    return SemanticLM(
        lm,
        tokenizer,
        adapter,
        prompt=config.prompt,
        max_tokens=config.max_tokens,
        trainable=config.trainable,
    )


def _pretrained(source: str, meta: bool) -> tuple[Any, Any]:
    import transformers

    library: Any = transformers
    library.utils.logging.disable_progress_bar()  # a run has its own
    # A path is never asked for on the hub; code that comes with a model is never run.
    local = is_path(source)
    if local and not Path(source).is_dir():
        raise CheckpointError(f"{source}: no such folder; lm.source is a hub id or a folder of Transformers")
    options: dict[str, Any] = {"local_files_only": local, "trust_remote_code": False}
    part = "configuration"
    try:
        settings = library.AutoConfig.from_pretrained(source, **options)
        part = "tokenizer"
        tokenizer = library.AutoTokenizer.from_pretrained(source, **options)
        part = "causal language model"
        if meta:
            with torch.device("meta"):
                return library.AutoModelForCausalLM.from_config(settings, dtype=torch.float32), tokenizer
        lm, report = library.AutoModelForCausalLM.from_pretrained(
            source, dtype=torch.float32, output_loading_info=True, **options
        )
    # Transformers raises its own classes, its hub client's and its tokenizer's: all mean the same here.
    except Exception as error:
        reason = reason_of(error)
        raise CheckpointError(f"{source}: gives no {part} ({reason})") from None
    lacking = [*report["missing_keys"], *report["mismatched_keys"]]
    if lacking:
        raise CheckpointError(f"{source}: not a causal language model, it lacks the weights of {lacking[0]}")
    return lm, tokenizer


def _check_fit(lm: Any, tokenizer: Any, length: int) -> None:
    name = lm.config.name_or_path or type(lm).__name__
    # Models that may be either, such as BERT's, look ahead unless their configuration says otherwise.
    causal = getattr(lm.config, "is_decoder", True)
    if not causal or "logits_to_keep" not in inspect.signature(lm.forward).parameters:
        raise CheckpointError(f"{name}: {type(lm).__name__} is not a plain causal language model, choose another")
    # Without its files, Transformers makes up a tokenizer that knows no letter.
    if not tokenizer.encode("a", add_special_tokens=False):
        raise CheckpointError(f"{name}: gives no tokenizer, put its files beside the model's")
    if tokenizer.eos_token_id is None:
        raise CheckpointError(f"{name}: the tokenizer has no end-of-text token, set its eos_token")
    known = lm.get_input_embeddings().num_embeddings
    if len(tokenizer) > known:
        raise CheckpointError(f"{name}: the tokenizer has {len(tokenizer)} tokens, the model {known}; they must match")
    most = getattr(lm.config, "max_position_embeddings", None)
    if most is not None and length > most:
        raise ConfigError(
            f"{name}: reads {most} positions, a window with prompt and transcript takes {length}: lower lm.max_tokens"
        )
