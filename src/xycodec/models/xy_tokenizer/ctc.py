"""A Whisper-style tower that spells what it hears: log-mel -> encoder -> characters (CTC, Graves et al. 2006)."""

from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise
from math import ceil

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xycodec.io.rate import SPEECH_RATE
from xycodec.models.xy_tokenizer.config import TOWER_RATE, RecogniserConfig
from xycodec.models.xy_tokenizer.model import MARGIN
from xycodec.nn.deterministic.linear import Linear
from xycodec.nn.mel import LogMel
from xycodec.nn.transformer import frame_mask
from xycodec.nn.whisper import WhisperEncoder

HOP = SPEECH_RATE // TOWER_RATE  # samples of a frame
BLANK = 0  # column of the output; characters follow it


class Alphabet:
    """Characters as columns of a CTC model's output, which follow the blank."""

    def __init__(self, characters: str) -> None:
        self.characters = characters
        self._columns = {character: column for column, character in enumerate(characters, BLANK + 1)}

    def spell(self, text: str) -> list[int]:
        """Columns of a text's characters; those that are not known are left out."""
        return [self._columns[character] for character in text if character in self._columns]

    def read(self, columns: Iterable[int]) -> str:
        """Collapse the best column of each frame into text: repetitions are one, blanks none, white space joined."""
        spelt = (self.characters[column - 1] for column, _ in groupby(columns) if column != BLANK)
        return " ".join("".join(spelt).split())


class Recogniser(nn.Module):
    """Log-mel and tower are those of a codec; a linear map reads each row of the tower."""

    def __init__(self, config: RecogniserConfig) -> None:
        super().__init__()
        self.config = config
        self.mel = LogMel(config.n_mels, SPEECH_RATE)
        self.tower = WhisperEncoder(
            n_mels=config.n_mels, max_positions=config.tower_positions, **config.tower.model_dump()
        )
        self.head = Linear(config.tower.d_model, 1 + len(config.characters))
        self.alphabet = Alphabet(config.characters)

    @property
    def window_samples(self) -> int:
        """Samples of the longest clip."""
        return HOP * self.config.tower_positions

    def log_mel(self, audio: Tensor, lengths: Sequence[int]) -> Tensor:
        """(B, T) at 16 kHz, silent past each item's `lengths` samples -> (B, n_mels, L) at 100 Hz."""
        padded = min(2 * max(tower_frames(lengths)) + MARGIN, 2 * self.config.tower_positions) * self.mel.hop_length
        mel: Tensor = self.mel(F.pad(audio, (0, padded - audio.shape[1])))
        return mel

    def forward(self, mel: Tensor, lengths: Sequence[int]) -> Tensor:
        """Log-mel of clips of `lengths` samples -> log-probabilities (B, frames, 1 + characters) at 50 Hz, float32.

        Frames past an item's end mean nothing.
        """
        frames = tower_frames(lengths)
        mask = frame_mask(frames, max(frames))
        mask = None if mask is None else mask.to(mel.device, non_blocking=True)
        logits: Tensor = self.head(self.tower(mel, max(frames), mask))
        with torch.autocast(mel.device.type, enabled=False):
            return logits.float().log_softmax(dim=-1)

    # ---- characters ----------------------------------------------------------------------------

    def read(self, log_probs: Tensor, lengths: Sequence[int]) -> list[str]:
        """Greedy CTC decoding: the text of the most likely column of every frame."""
        best = log_probs.argmax(dim=-1).tolist()
        return [self.alphabet.read(columns[:count]) for columns, count in zip(best, tower_frames(lengths), strict=True)]


def tower_frames(lengths: Sequence[int]) -> list[int]:
    """Frames at 50 Hz of clips of `lengths` samples: the last partial one counts, and an empty clip has one."""
    return [max(1, ceil(count / HOP)) for count in lengths]


def frames_needed(columns: Sequence[int]) -> int:
    """The fewest frames in which CTC can output these columns: equal neighbours need a blank between them."""
    return len(columns) + sum(left == right for left, right in pairwise(columns))
