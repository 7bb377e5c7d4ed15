"""The semantic branch with Whisper's decoder: it attends to the codec's features in place of its encoder's states.

The decoder reads [its own prompt][transcript] and looks across at the speech, so that a frozen one knows from the first
step what a transcript is, and has only to find in the adapter's output what it knows from its encoder. The
paper has a causal model in its place.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from xycodec.errors import CheckpointError, ConfigError
from xycodec.models.xy_tokenizer.semantic_branch import IGNORED, LMOutput, SemanticBranch, Tokens, counted_items, scored
from xycodec.nn.transformer import Adapter, frame_mask

STATES_PER_FRAME = 4  # 50 Hz, as Whisper's encoder gives them


class WhisperLM(SemanticBranch):
    """`lm` is Transformers' WhisperForCausalLM, a Whisper's decoder with its head.

    The adapter gives STATES_PER_FRAME states side by side for each frame (see `states_width`). `settings` is the
    checkpoint's generation configuration, which tells languages; `language` the one of the texts, a code such as
    "en", None for a model of English alone. A transcript is cut where the decoder's positions end, if not before.

    Raises CheckpointError if tokenizer and decoder do not fit each other, ConfigError if the language is not the
    model's, or a window has more states than it knows.
    """

    def __init__(
        self,
        lm: nn.Module,
        tokenizer: Any,
        adapter: Adapter,
        *,
        settings: Any,
        language: str | None,
        max_tokens: int,
        trainable: bool,
    ) -> None:
        config: Any = lm.config
        name = config.name_or_path or type(lm).__name__
        prompt = _prompt(name, tokenizer, getattr(settings, "lang_to_id", {}), language)
        states, most = STATES_PER_FRAME * len(adapter.positional_embedding), config.max_source_positions
        if states > most:
            raise ConfigError(f"{name}: knows {most} states of speech, a window has {states}: lower window_frames")
        self.language = language or "en"
        # What is foretold last is never read.
        self.room = config.max_target_positions - len(prompt) + 1
        super().__init__(
            lm, tokenizer, adapter, prompt=prompt, max_tokens=min(max_tokens, self.room), trainable=trainable
        )
        self._speech_mask: Tensor | None = None
        for layer in self.lm.model.decoder.layers:
            layer.encoder_attn.register_forward_pre_hook(self._mask_speech, with_kwargs=True)

    def writes(self, language: str | None) -> bool:
        """Whether texts of the language are used: a frozen decoder, told to write one, learns nothing from others."""
        if language is None:
            return True
        from transformers.models.whisper import tokenization_whisper

        names: dict[str, str] = tokenization_whisper.TO_LANGUAGE_CODE
        lower = language.strip().lower()
        return names.get(lower, re.split("[-_]", lower)[0]) == self.language

    def forward(self, features: Tensor, frames: Sequence[int], tokens: Tokens) -> LMOutput:
        """Compute loss and accuracy (see `SemanticBranch`)."""
        items, kept = counted_items(frames, tokens)
        device = features.device
        index = torch.tensor(items)
        ids = tokens.ids[index]
        length = torch.tensor([text for _, text in kept])[:, None]
        targets = ids.where(torch.arange(ids.shape[1]) < length, IGNORED).to(device, non_blocking=True)
        prompt = torch.tensor(self.prompt, dtype=torch.int64).expand(len(items), -1)
        words = torch.cat([prompt, ids[:, :-1]], dim=1).to(device, non_blocking=True)
        features = features.index_select(0, index.to(device, non_blocking=True))
        with self._hearing(features, [count for count, _ in kept]) as states:
            # Transformers would look at positions on the host if there were no cache.
            logits = self.lm(input_ids=words, encoder_outputs=(states,), use_cache=True).logits
        return scored(logits[:, len(self.prompt) - 1 :], targets, sum(text for _, text in kept))

    @torch.no_grad()
    def transcribe(self, features: Tensor, frames: Sequence[int], max_new_tokens: int) -> list[str]:
        """Transcribe greedily (see `SemanticBranch`)."""
        heard = [index for index, count in enumerate(frames) if count]
        texts = [""] * len(frames)
        if not heard:
            return texts
        prompt = torch.tensor(self.prompt, device=features.device).expand(len(heard), -1)
        with self._hearing(features[heard], [frames[index] for index in heard]) as states:
            # Each process listens by itself: Transformers would have all of a sharded run take as many steps.
            made = self.lm.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                encoder_outputs=(states,),
                max_new_tokens=min(max_new_tokens, self.room),
                synced_gpus=False,
            )
        for index, ids in zip(heard, made[:, len(self.prompt) :].tolist(), strict=True):
            texts[index] = self._decode(ids)
        return texts

    def _encode(self, text: str) -> list[int]:
        # Whisper's transcripts begin with a space.
        return super()._encode(f" {text.strip()}")

    # ---- across --------------------------------------------------------------------------------

    @contextmanager
    def _hearing(self, features: Tensor, frames: Sequence[int]) -> Iterator[Tensor]:
        """States (R, STATES_PER_FRAME x L, width) of features (R, L, input_dim), whose padding nothing attends to."""
        mask = frame_mask(frames, features.shape[1])
        states = self._adapted(features, mask).reshape(len(features), -1, self.lm.config.d_model)
        self._speech_mask = None if mask is None else _across(mask).to(features.device, non_blocking=True)
        try:
            yield states
        finally:
            self._speech_mask = None

    def _mask_speech(self, _: nn.Module, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Transformers' decoder takes no mask of what it attends to across, though its layers do."""
        return args, given | {"attention_mask": self._speech_mask}


def _across(mask: Tensor) -> Tensor:
    """(R, 1, 1, STATES_PER_FRAME x L), True where the decoder may look, of valid frames (R, L)."""
    # Softmax over no state at all is NaN: an item without valid frames hears its first.
    first = torch.arange(mask.shape[1]) == 0
    heard = mask | (first & ~mask.any(dim=1, keepdim=True))
    return heard.repeat_interleave(STATES_PER_FRAME, dim=1)[:, None, None]


def states_width(lm: Any) -> int:
    """Width of a frame that the adapter of a WhisperLM gives."""
    return STATES_PER_FRAME * int(lm.config.d_model)


def _prompt(name: str, tokenizer: Any, languages: Any, language: str | None) -> list[int]:
    """Ids of the tokens that Whisper begins a transcript without timestamps with."""
    spoken: list[str] = []
    if languages:
        if language is None:
            raise ConfigError(f"{name}: writes {len(languages)} languages, give lm.language, a code such as en")
        if f"<|{language}|>" not in languages:
            raise ConfigError(f"{name}: knows no language {language!r}, give lm.language a code such as en")
        spoken = [f"<|{language}|>", "<|transcribe|>"]
    elif language not in (None, "en"):
        raise ConfigError(f"{name}: writes English alone, not {language!r}: leave lm.language out, or choose another")
    known = tokenizer.get_vocab()
    marks = ["<|startoftranscript|>", *spoken, "<|notimestamps|>"]
    lacking = [mark for mark in marks if mark not in known]
    if lacking:
        raise CheckpointError(f"{name}: its tokenizer has no {lacking[0]}, put Whisper's own beside the model")
    return [known[mark] for mark in marks]
