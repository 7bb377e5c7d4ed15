"""A batch of clips as tensors, and where in the stream it stands."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from xycodec.data.clip import FRAME, Clip
from xycodec.data.targets import NO_LABEL
from xycodec.io.rate import SPEECH_RATE


@dataclass(frozen=True, order=True)
class Position:
    """Position of a stream: each process has taken `batch` batches of epoch `epoch`."""

    epoch: int
    batch: int
    taken: tuple[int, ...] = ()
    """Clips that all processes together have taken of each cell (`data.sampling`) in the epoch."""
    order: str = ""
    """Name of the orders in which they were taken."""


BEGINNING = Position(0, 0)


@dataclass(frozen=True)
class Batch:
    """Clips padded to the longest of them.

    ids: one per clip.
    audio: (B, T) float32 at 16 kHz, in [-1, 1], zero past each clip's end.
    lengths: samples of `audio` that belong to each clip.
    target: (B, T_out), the same at the output rate; the same tensor where the rates are equal.
    target_lengths: samples of `target` that belong to each clip.
    texts: transcript of each clip, None where there is none that fits its audio.
    languages: that of each clip as its corpus names it, None where it does not.
    skipped: (id, reason) of each clip that was drawn but could not be used.
    position: where the stream stands after this batch.
    labels: (B, L, layers) int64, those of each clip, NO_LABEL past them; None if no clip has any.
    codes: (B, n_q, L) int64, of clips of a store of tokens, zero past their ends: such a batch has no audio, (B, 0).
    frames: of `codes` that belong to each clip.
    companions: codes (n_q, L) of another clip of each one's speaker; None where there is none, or none is asked for.
    conditions: (B, D) float32, the vector of each clip (`io.tokens.vectors`); None where the store has none.

    If no clip could be used, the batch is one silent clip of length 0, id "" and without text, because every process
    must take part in every step.
    """

    ids: tuple[str, ...]
    audio: Tensor
    lengths: tuple[int, ...]
    target: Tensor
    target_lengths: tuple[int, ...]
    texts: tuple[str | None, ...]
    languages: tuple[str | None, ...]
    skipped: tuple[tuple[str, str], ...]
    position: Position
    labels: Tensor | None = None
    codes: Tensor | None = None
    frames: tuple[int, ...] = ()
    companions: tuple[Tensor | None, ...] = ()
    conditions: Tensor | None = None

    @property
    def seconds(self) -> float:
        """Audio in the batch, without padding."""
        return sum(self.lengths) / SPEECH_RATE

    def pin_memory(self) -> "Batch":
        """Copy the batch to page-locked memory; DataLoader calls it."""
        return self._moved(Tensor.pin_memory)

    def to(self, device: torch.device | str) -> "Batch":
        """Copy the batch to `device`; from page-locked memory the copy runs beside other work of the device."""
        return self._moved(lambda tensor: tensor.to(device, non_blocking=True))

    def _moved(self, move: Callable[[Tensor], Tensor]) -> "Batch":
        audio = move(self.audio)
        target = audio if self.target is self.audio else move(self.target)
        others = {name: getattr(self, name) for name in ("labels", "codes", "conditions")}
        moved: dict[str, Any] = {name: None if one is None else move(one) for name, one in others.items()}
        return replace(self, audio=audio, target=target, **moved)


def collate(
    clips: Sequence[Clip], skipped: Sequence[tuple[str, str]], position: Position, *, output_sample_rate: int
) -> Batch:
    """Join `clips`, whose targets are at `output_sample_rate` (Hz), into a batch."""
    if not clips:
        return _silence(skipped, position, output_sample_rate)
    audio = _padded([clip.audio for clip in clips])
    same = output_sample_rate == SPEECH_RATE
    return Batch(
        ids=tuple(clip.id for clip in clips),
        audio=audio,
        lengths=tuple(len(clip.audio) for clip in clips),
        target=audio if same else _padded([clip.target for clip in clips]),
        target_lengths=tuple(len(clip.target) for clip in clips),
        texts=tuple(clip.text for clip in clips),
        languages=tuple(clip.language for clip in clips),
        skipped=tuple(skipped),
        position=position,
        labels=_labels([clip.labels for clip in clips]),
    )


def _silence(skipped: Sequence[tuple[str, str]], position: Position, output_sample_rate: int) -> Batch:
    audio = torch.zeros(1, FRAME)
    same = output_sample_rate == SPEECH_RATE
    target = audio if same else torch.zeros(1, FRAME * output_sample_rate // SPEECH_RATE)
    return Batch(("",), audio, (0,), target, (0,), (None,), (None,), tuple(skipped), position)


def _labels(labels: Sequence[Tensor | None]) -> Tensor | None:
    layers = min((one.shape[1] for one in labels if one is not None), default=0)
    if not layers:
        return None
    # A clip without labels among others has none of so many layers.
    none = torch.full((0, layers), NO_LABEL)
    return _padded([none if one is None else one[:, :layers] for one in labels], NO_LABEL)


def _padded(tensors: Sequence[Tensor], value: float = 0.0) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(tensors), batch_first=True, padding_value=value)
