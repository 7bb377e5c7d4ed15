"""The network of the ASR probe: features of a frozen codec -> two bidirectional LSTMs -> characters (CTC)."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from xycodec.models.xy_tokenizer.ctc import Alphabet

TIME_MASKS, TIME_WIDTH = 2, 40
"""Stretches that are hidden, and the frames of each, which are fewer than this."""
FEATURE_MASKS, FEATURE_WIDTH, FEATURES = 4, 50, 768
"""Number and width of the stretches of features that are hidden, of 768 or more; the same share of fewer."""
WARP = 5  # frames that a point in time is moved, at most


def alphabet_of(texts: Iterable[str]) -> Alphabet:
    """The characters of normalised texts, the space and the apostrophe."""
    return Alphabet("".join(sorted({character for text in texts for character in text} | {" ", "'"})))


class Probe(nn.Module):
    """SUPERB's recogniser (Yang et al. 2021): a linear map, bidirectional LSTMs, each with dropout, a linear map."""

    def __init__(
        self, width: int, characters: int, *, projection: int, hidden: int, layers: int, dropout: float
    ) -> None:
        super().__init__()
        self.projection = nn.Linear(width, projection)
        # The LSTM itself drops between its layers only, and warns of a single one.
        between = dropout if layers > 1 else 0.0
        self.lstm = nn.LSTM(projection, hidden, layers, dropout=between, bidirectional=True, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * hidden, 1 + characters)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features (L, width) of clips -> log-probabilities (B, longest L, 1 + characters) float32.

        Each clip has one frame at least; frames past its end mean nothing, and have no part in the others.
        """
        lengths = torch.tensor([len(clip) for clip in features])
        padded = self.projection(nn.utils.rnn.pad_sequence(list(features), batch_first=True))
        packed = pack_padded_sequence(padded, lengths, batch_first=True, enforce_sorted=False)
        hidden, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        logits: Tensor = self.head(self.dropout(hidden))
        with torch.autocast(logits.device.type, enabled=False):
            return logits.float().log_softmax(dim=-1)


def augmented(features: Tensor) -> Tensor:
    """SpecAugment (Park et al. 2019) of features (L, width) as SUPERB has it: a time warp, then holes of zeros."""
    frames, width = features.shape
    hidden = _stretches(frames, TIME_MASKS, TIME_WIDTH)[:, None]
    widest = max(1, min(FEATURE_WIDTH, width * FEATURE_WIDTH // FEATURES))
    hidden = hidden | _stretches(width, FEATURE_MASKS, widest)
    return _warped(features).masked_fill(hidden.to(features.device, non_blocking=True), 0.0)


def _stretches(size: int, count: int, width: int) -> Tensor:
    """(size,) bool on the CPU: `count` stretches of fewer than `width` places, anywhere."""
    hidden = torch.zeros(size, dtype=torch.bool)
    for _ in range(count):
        length = min(_draw(0, width), size)
        start = _draw(0, size - length + 1)
        hidden[start : start + length] = True
    return hidden


def _warped(features: Tensor) -> Tensor:
    """Stretch what is before a random frame and squeeze what is after it, or the other way round."""
    frames, width = features.shape
    if frames <= 2 * WARP:
        return features
    centre = _draw(WARP, frames - WARP)
    moved = _draw(centre - WARP, centre + WARP) + 1
    sides = (features[:centre], moved), (features[centre:], frames - moved)
    return torch.cat([F.interpolate(side[None, None], (length, width), mode="bicubic")[0, 0] for side, length in sides])


def _draw(low: int, high: int) -> int:
    """A whole number from `low` to below `high`."""
    return int(torch.randint(low, high, ()))
