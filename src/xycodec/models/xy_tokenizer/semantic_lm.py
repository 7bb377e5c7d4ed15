"""The semantic branch of pre-training: a causal language model that reads the codec's features and transcribes them.

A sequence is [speech][prompt][transcript][end of text], and the loss is on the transcript and its end alone (see
Language model in docs/models/xy_tokenizer.md). Padding stands at the end of a sequence, where a causal model never
looks: no attention mask is needed, and any causal model of Transformers will do.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xycodec.errors import CheckpointError, ConfigError, reason_of
from xycodec.io.hub import is_path
from xycodec.io.libraries import transformers_library
from xycodec.models.xy_tokenizer.config import LanguageModelConfig
from xycodec.models.xy_tokenizer.semantic_branch import IGNORED, LMOutput, SemanticBranch, Tokens, counted_items, scored
from xycodec.models.xy_tokenizer.whisper_lm import WhisperLM, states_width
from xycodec.nn.transformer import Adapter, frame_mask


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
    """(R, N) ids, `IGNORED` past an item's end."""
    count: int
    """Targets in all."""


class SemanticLM(SemanticBranch):
    """A causal `lm` that reads features as the beginning of its sequence, `prompt` (ids) after them.

    With `like_tokens` they have the mean and the spread of its token embeddings, channel by channel.

    Raises CheckpointError if `lm` and `tokenizer` do not fit each other or this use, ConfigError if a whole window
    with its text is longer than the model can read.
    """

    token_mean: Tensor
    token_spread: Tensor

    def __init__(
        self,
        lm: nn.Module,
        tokenizer: Any,
        adapter: Adapter,
        *,
        prompt: str,
        max_tokens: int,
        trainable: bool,
        like_tokens: bool = False,
    ) -> None:
        ids: list[int] = tokenizer.encode(prompt, add_special_tokens=False) if prompt else []
        _check_fit(lm, len(adapter.positional_embedding) + len(ids) + max_tokens)
        super().__init__(lm, tokenizer, adapter, prompt=ids, max_tokens=max_tokens, trainable=trainable)
        self.like_tokens = like_tokens
        spread, mean = torch.std_mean(self.lm.get_input_embeddings().weight.detach(), dim=0)
        # They follow from the model, which is no part of a checkpoint either.
        self.register_buffer("token_mean", mean, persistent=False)
        self.register_buffer("token_spread", spread, persistent=False)

    def _adapted(self, features: Tensor, mask: Tensor | None) -> Tensor:
        made = super()._adapted(features, mask)
        if not self.like_tokens:
            return made
        return torch.addcmul(self.token_mean, F.layer_norm(made, made.shape[-1:]), self.token_spread)

    def forward(self, features: Tensor, frames: Sequence[int], tokens: Tokens) -> LMOutput:
        """Compute loss and accuracy (see `SemanticBranch`)."""
        layout = _layout(frames, tokens, self.prompt, features.shape[1])
        device = features.device
        order, readers, targets = (
            value.to(device, non_blocking=True) for value in (layout.order, layout.readers, layout.targets)
        )
        features = features.index_select(0, layout.items.to(device, non_blocking=True))
        rows = torch.cat([self._adapted(features, layout.mask), self._embed(layout.words, device)], dim=1)
        # A mask, or position ids without a cache, Transformers would inspect on the host: the cache is for that only.
        logits = self.lm(
            inputs_embeds=rows.take_along_dim(order[..., None], dim=1), logits_to_keep=readers, use_cache=True
        ).logits
        return scored(logits, targets, layout.count)

    def _embed(self, ids: Tensor, device: torch.device) -> Tensor:
        embedded: Tensor = self.lm.get_input_embeddings()(ids.to(device, non_blocking=True))
        return embedded

    # ---- listening -----------------------------------------------------------------------------

    @torch.no_grad()
    def transcribe(self, features: Tensor, frames: Sequence[int], max_new_tokens: int) -> list[str]:
        """Transcribe greedily (see `SemanticBranch`)."""
        heard = [index for index, count in enumerate(frames) if count]
        texts = [""] * len(frames)
        if not heard:
            return texts
        counts = [frames[index] for index in heard]
        speech = self._adapted(features[heard], frame_mask(counts, features.shape[1]))
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


def _layout(frames: Sequence[int], tokens: Tokens, prompt: list[int], width: int) -> _Layout:
    """Leave out what has no targets, and put the rest side by side; `width` is L, the padded number of frames."""
    items, kept = counted_items(frames, tokens)
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
        targets=ids.where(target < texts, IGNORED),
        count=sum(text for _, text in kept),
    )


# ---- loading -----------------------------------------------------------------------------------


def load_semantic_lm(
    config: LanguageModelConfig, *, input_dim: int, window_frames: int, meta: bool = False
) -> SemanticBranch:
    """The language model of `config.source`, a hub id or a folder, in float32, behind a new adapter.

    Of a Whisper it is the decoder, a `WhisperLM`; else a causal model, a `SemanticLM`. `input_dim` is the width of the
    features it reads, `window_frames` the most of them in a clip. `meta` builds it without weights, on torch's meta
    device, to count parameters. Raises CheckpointError, one line, if the model or its tokenizer cannot be had or is
    neither; ConfigError if it cannot read a whole window, or a setting is not for it.
    """
    lm, tokenizer, settings = _pretrained(config.source, meta)
    whisper = settings is not None
    with torch.device("meta" if meta else "cpu"):
        adapter = Adapter(
            input_dim=input_dim,
            output_dim=states_width(lm) if whisper else lm.get_input_embeddings().embedding_dim,
            max_positions=window_frames,
            **config.adapter.model_dump(),
        )
    common: dict[str, Any] = {"max_tokens": config.max_tokens, "trainable": config.trainable}
    if whisper:
        if config.prompt:
            raise ConfigError("lm.prompt: a Whisper's transcripts begin with tokens of its own: leave it out")
        if config.like_tokens:
            raise ConfigError("lm.like_tokens: a Whisper reads speech across, and not as tokens: leave it out")
        return WhisperLM(lm, tokenizer, adapter, settings=settings, language=config.language, **common)
    if config.language is not None:
        raise ConfigError("lm.language: only a Whisper is told the language: leave it out")
    return SemanticLM(lm, tokenizer, adapter, prompt=config.prompt, like_tokens=config.like_tokens, **common)


def _pretrained(source: str, meta: bool) -> tuple[Any, Any, Any]:
    """Model, tokenizer and, of a Whisper alone, its generation configuration."""
    library = transformers_library()
    library.utils.logging.disable_progress_bar()  # a run has its own
    # A path is never asked for on the hub; code that comes with a model is never run.
    local = is_path(source)
    if local and not Path(source).is_dir():
        raise CheckpointError(f"{source}: no such folder; lm.source is a hub id or a folder of Transformers")
    options: dict[str, Any] = {"local_files_only": local, "trust_remote_code": False}
    kind, settings = "causal language model", None
    part = "configuration"
    try:
        config = library.AutoConfig.from_pretrained(source, **options)
        part = "tokenizer"
        tokenizer = library.AutoTokenizer.from_pretrained(source, **options)
        if config.model_type == "whisper":
            part = "generation configuration"
            settings = library.GenerationConfig.from_pretrained(source, **options)
            kind = "Whisper with a decoder"
        part = kind
        if meta:
            with torch.device("meta"):
                return library.AutoModelForCausalLM.from_config(config, dtype=torch.float32), tokenizer, settings
        with _quiet(library.utils.logging):
            lm, report = library.AutoModelForCausalLM.from_pretrained(
                source, dtype=torch.float32, output_loading_info=True, **options
            )
    # Transformers raises its own classes, its hub client's and its tokenizer's: all mean the same here.
    except Exception as error:
        reason = reason_of(error)
        raise CheckpointError(f"{source}: gives no {part} ({reason})") from None
    lacking = [*report["missing_keys"], *report["mismatched_keys"]]
    if lacking:
        raise CheckpointError(f"{source}: not a {kind}, it lacks the weights of {lacking[0]}")
    return lm, tokenizer, settings


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Transformers would list the encoder's weights, which are left out on purpose."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _check_fit(lm: Any, length: int) -> None:
    name = lm.config.name_or_path or type(lm).__name__
    # Models that may be either, such as BERT's, look ahead unless their configuration says otherwise.
    causal = getattr(lm.config, "is_decoder", True)
    if not causal or "logits_to_keep" not in inspect.signature(lm.forward).parameters:
        raise CheckpointError(f"{name}: {type(lm).__name__} is not a plain causal language model, choose another")
    most = getattr(lm.config, "max_position_embeddings", None)
    if most is not None and length > most:
        raise ConfigError(
            f"{name}: reads {most} positions, a window with prompt and transcript takes {length}: lower lm.max_tokens"
        )
