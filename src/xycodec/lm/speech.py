"""The interface of models that speak: a text, and perhaps a voice to go on with, become codes."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import ceil
from typing import ClassVar

import torch
from torch import Tensor

from xycodec.errors import EmptySpeechError, XycodecError
from xycodec.lm.config import SOURCE_RATE, OfCodec
from xycodec.lm.sampling import generator_of
from xycodec.lm.text import TextFrontEnd

FRAMES_PER_SYMBOL = 16
"""VALL-E's stop rule at 75 frames a second: 0.21 s of speech for each symbol of text, then it is cut off."""
_NEXT_SEED = 1 << 32  # what is added to a seed for another attempt: no user's seed comes as far


@dataclass(frozen=True)
class Spoken:
    """Codes of speech, without those of the prompt.

    Attributes:
        codes: (n_q, L) int64, or (1, L) of the first codebook alone.
        hit_cap: whether speech was cut off by the stop rule, since the model did not end it.
        retries: attempts before this one, which were empty.
    """

    codes: Tensor
    hit_cap: bool
    retries: int


class Speaker(OfCodec, ABC):
    """A trained text-to-speech model. Its codes depend on text, prompt and seed alone.

    Attributes:
        codec: the codec whose codes it speaks.
        text: its text front end.
    """

    attempts: ClassVar[int] = 5
    """Attempts, each with another seed, before empty speech is an error."""
    text: TextFrontEnd

    def most_frames(self, symbols: int) -> int:
        """Frames after which speech of so many symbols is cut off: 16 a symbol at 75 a second, 11 at 50, 3 at 12.5."""
        return ceil(FRAMES_PER_SYMBOL * self.frame_rate / SOURCE_RATE) * symbols

    @torch.no_grad()
    def speak(
        self,
        text: str,
        *,
        prompt_text: str | None = None,
        prompt_codes: Tensor | None = None,
        seed: int = 0,
        first_codebook_only: bool = False,
    ) -> Spoken:
        """Speak `text`, after `prompt_codes` (n_q, P) if there are some: in their voice.

        `prompt_text` is what the prompt says; without it `text` begins with what the prompt says, as where an utterance
        is continued. Raises XycodecError, one line, where a text or prompt is not what the model knows, and
        EmptySpeechError if it says nothing with any of its seeds.
        """
        if prompt_codes is not None:
            prompt_codes = self._require_prompt(prompt_codes)
        elif prompt_text is not None:
            raise XycodecError("a prompt's text without its codes: give both, or neither")
        own = self.text.encode(text)
        symbols = own if prompt_text is None else [*self.text.encode(prompt_text)[:-1], *self._gap(), *own[1:]]
        for retry in range(self.attempts):
            generator = generator_of(seed + retry * _NEXT_SEED)
            codes, capped = self._attempt(symbols, own, prompt_codes, generator, first_codebook_only)
            if codes.shape[1]:
                return Spoken(codes, capped, retry)
        raise EmptySpeechError(f"{text!r}: nothing was spoken with {self.attempts} seeds: train longer, or ask another")

    @abstractmethod
    def _attempt(
        self,
        symbols: list[int],
        own: list[int],
        prompt: Tensor | None,
        generator: torch.Generator,
        first_codebook_only: bool,
    ) -> tuple[Tensor, bool]:
        """Codes (n_q or 1, L) after the prompt, L may be 0; and whether the stop rule cut them off.

        `symbols` are of the prompt's text and the one to speak, `own` of the latter.
        """

    def _gap(self) -> list[int]:
        """Symbols between the prompt's text and the one to speak: a space where the table has one."""
        return self.text.known(" ")[1:-1]

    def _require_prompt(self, codes: Tensor) -> Tensor:
        about = self.codec
        if codes.ndim != 2 or codes.shape[0] != about.n_q or codes.is_floating_point():
            raise XycodecError(
                f"prompt codes of shape {tuple(codes.shape)}: the model speaks {about.n_q} codebooks of {about.name}"
            )
        if not codes.shape[1]:
            raise XycodecError(f"the prompt is shorter than a frame of {1 / self.frame_rate:g} s: give a longer one")
        if int(codes.min()) < 0 or int(codes.max()) >= about.codebook_size:
            raise XycodecError(f"prompt codes outside 0 to {about.codebook_size - 1}: they are of another codec")
        return codes.to(torch.int64)
