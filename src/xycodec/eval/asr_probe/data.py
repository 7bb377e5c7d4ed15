"""Data of a probe: transcribed clips as codes, and features made of them."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import torch
from torch import Tensor

from xycodec.errors import AudioError, XycodecError
from xycodec.eval.asr_probe.codes import cached_codes
from xycodec.eval.corpus import open_corpora
from xycodec.eval.metrics.wer import normalise
from xycodec.models.base import Codec
from xycodec.models.longform import embed_long

FRAME_RATE = 50.0  # frames a second that CTC gets at least, so that it has more of them than characters


@dataclass(frozen=True)
class Spoken:
    """A clip that can be read and has a text."""

    clip: str
    text: str
    """Normalised, with apostrophes; never empty."""
    seconds: float
    codes: Tensor
    """(n_q, L) int32, all layers."""


@dataclass(frozen=True)
class Clips:
    """The clips of a corpus that a probe can use, and the others with the reason."""

    spoken: tuple[Spoken, ...]
    without_text: int
    failed: tuple[tuple[str, str], ...]
    """(clip, reason) of those that cannot be read."""

    @property
    def digest(self) -> str:
        """Digest of the clips, their texts and their codes."""
        digest = hashlib.blake2b(digest_size=8)
        for one in self.spoken:
            digest.update(f"{one.clip}\n{one.text}\n{tuple(one.codes.shape)}".encode())
            digest.update(one.codes.numpy().tobytes())
        return digest.hexdigest()


def open_clips(
    codec: Codec, spec: str, cache: Path, *, advance: Callable[[float, float], None] = lambda done, total: None
) -> Clips:
    """Encode the clips with text of a corpus, named as for `open_corpora`, or find their codes in `cache`.

    `advance` is told the seconds that are done, and those of all clips. Raises XycodecError, one line, if no clip is
    left, and as `open_corpora` and `cached_codes` do.
    """
    items = open_corpora([spec])
    texts = [normalise(item.text or "", apostrophe="'") for item in items]
    pairs = [(item, text) for item, text in zip(items, texts, strict=True) if text]
    if not pairs:
        raise XycodecError(f"{spec}: none of its {len(items)} clips has a text: give a manifest with texts")
    total, done = sum(item.seconds for item, _ in pairs), 0.0

    def heard(seconds: float) -> None:
        nonlocal done
        done += seconds
        advance(done, total)

    found = cached_codes(codec, [item for item, _ in pairs], cache, advance=heard)
    spoken, failed = [], []
    for (item, text), codes in zip(pairs, found, strict=True):
        if isinstance(codes, AudioError):
            failed.append((item.clip, str(codes)))
        else:
            spoken.append(Spoken(item.clip, text, item.seconds, codes))
    if not spoken:
        raise XycodecError(f"{spec}: none of its {len(failed)} clips with text can be read, first: {failed[0][1]}")
    return Clips(tuple(spoken), len(items) - len(pairs), tuple(failed))


class Features:
    """The embeddings of the first `n_q` layers, each frame repeated until there are 50 a second.

    `branch` is that of `Codec.embed`. Raises XycodecError if the codec has not so many layers, or no such branch.
    """

    def __init__(self, codec: Codec, n_q: int | None, branch: str | None = None) -> None:
        self._codec, self.n_q, self._branch = codec, codec.check_layers(n_q), branch
        if branch is not None:
            codec.embed(torch.zeros(1, 1, 1, dtype=torch.int64), branch=branch)  # is there one?
        self._repeat = ceil(FRAME_RATE / codec.frame_rate)

    def frames(self, one: Spoken) -> int:
        """Number of frames of a clip's features."""
        return one.codes.shape[1] * self._repeat

    def width(self, clips: Sequence[Spoken]) -> int:
        """Number of features of a frame."""
        return self(clips[0]).shape[1]

    def __call__(self, one: Spoken) -> Tensor:
        """(frames, width) float32, where the codec is: of this clip alone, whatever else is in its batch."""
        codes = one.codes[: self.n_q].long()
        return embed_long(self._codec, codes, branch=self._branch).T.float().repeat_interleave(self._repeat, dim=0)
