"""Orders in which a language model sees the codes of a clip, each with its exact inverse and the mask of its codes.

Codes are (n_q, L) int64, as everywhere. A pattern turns them into rows (S, channels), one row a step of the model; what
of a row holds no code is `pad`, and `mask` (S, channels) tells where codes are, which is also where a loss counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from xycodec.errors import XycodecError


class Pattern(Protocol):
    """An order of codes."""

    def apply(self, codes: Tensor) -> Tensor:
        """Rows (S, channels) int64 of codes (n_q, L)."""

    def mask(self, frames: int) -> Tensor:
        """Mask (S, channels) bool of the codes in the rows of so many frames."""

    def revert(self, rows: Tensor) -> Tensor:
        """Codes (n_q, L) of rows, exactly those of `apply`. Raises XycodecError if a pad lies where a code has to."""


@dataclass(frozen=True)
class Delayed:
    """Codebook q is `delays[q]` rows late: row t holds frame t - delays[q] of codebook q (Copet et al. 2023, 2.2).

    Delays 0, 1, ..., n_q - 1 are those of MusicGen and MOSS-TTSD; 0, 1, 1, ... those of Moshi; zeros are parallel
    codes. L frames take L + max(delays) rows.

    Attributes:
        delays: rows, one for each codebook, from 0.
        pad: fills rows before a codebook's first frame and after its last; no code.
    """

    delays: tuple[int, ...]
    pad: int

    def __post_init__(self) -> None:
        if not self.delays or min(self.delays) < 0:
            raise XycodecError(f"delays {self.delays}: give one of at least 0 for each codebook")

    def apply(self, codes: Tensor) -> Tensor:
        """(n_q, L) -> (L + max(delays), n_q)."""
        _require_books(codes, len(self.delays))
        frames = codes.shape[1]
        rows = torch.full((frames + max(self.delays), len(self.delays)), self.pad, dtype=torch.int64)
        for book, delay in enumerate(self.delays):
            rows[delay : delay + frames, book] = codes[book]
        return rows

    def mask(self, frames: int) -> Tensor:
        """(L + max(delays), n_q), true where a code is."""
        step = torch.arange(frames + max(self.delays))[:, None] - torch.tensor(self.delays)
        return (step >= 0) & (step < frames)

    def revert(self, rows: Tensor) -> Tensor:
        """(S, n_q) -> (n_q, S - max(delays)); what lies outside the codes is ignored."""
        if rows.ndim != 2 or rows.shape[1] != len(self.delays) or len(rows) < max(self.delays):
            raise XycodecError(f"rows of shape {tuple(rows.shape)} are not of delays {self.delays}")
        frames = len(rows) - max(self.delays)
        codes = torch.stack([rows[delay : delay + frames, book] for book, delay in enumerate(self.delays)])
        _require_no_pad(codes, self.pad)
        return codes


def parallel(n_q: int, pad: int) -> Delayed:
    """All codebooks of a frame in one row."""
    return Delayed((0,) * n_q, pad)


def one_after_another(n_q: int, pad: int) -> Delayed:
    """Codebook q is q rows late."""
    return Delayed(tuple(range(n_q)), pad)


@dataclass(frozen=True)
class Flattened:
    """One code a row, frame after frame, its codebooks in order (Copet et al. 2023, 2.2: flattening).

    Attributes:
        n_q, codebook_size: of the codes.
        shared: whether codebooks share the ids 0 to codebook_size - 1; else code c of codebook q is the id
            q * codebook_size + c.
    """

    n_q: int
    codebook_size: int
    shared: bool = False

    @property
    def pad(self) -> int:
        """The first id that is no code."""
        return self.codebook_size if self.shared else self.n_q * self.codebook_size

    def apply(self, codes: Tensor) -> Tensor:
        """(n_q, L) -> (n_q * L, 1)."""
        _require_books(codes, self.n_q)
        return (codes.to(torch.int64) + self._offsets()).T.reshape(-1, 1)

    def mask(self, frames: int) -> Tensor:
        """(n_q * L, 1), all true."""
        return torch.ones(self.n_q * frames, 1, dtype=torch.bool)

    def revert(self, rows: Tensor) -> Tensor:
        """(n_q * L, 1) -> (n_q, L). Raises XycodecError at an id of another codebook too."""
        if rows.ndim != 2 or rows.shape[1] != 1 or len(rows) % self.n_q:
            raise XycodecError(f"rows of shape {tuple(rows.shape)} are not whole frames of {self.n_q} flattened codes")
        _require_no_pad(rows.T, self.pad)
        codes = rows.reshape(-1, self.n_q).T - self._offsets()
        outside = ((codes < 0) | (codes >= self.codebook_size)).T.reshape(-1)
        if outside.any():
            row = int(outside.nonzero()[0, 0])
            raise XycodecError(f"row {row} holds {int(rows[row, 0])}, which is no code of codebook {row % self.n_q}")
        return codes

    def _offsets(self) -> Tensor:
        return torch.arange(self.n_q)[:, None] * (0 if self.shared else self.codebook_size)


@dataclass(frozen=True)
class FirstBook:
    """The first codebook alone, as in the first stage of VALL-E (Wang et al. 2023, 4.2.1)."""

    pad: int

    def apply(self, codes: Tensor) -> Tensor:
        """(n_q, L) -> (L, 1)."""
        _require_books(codes, None)
        return codes[:1].to(torch.int64).T.contiguous()

    def mask(self, frames: int) -> Tensor:
        """(L, 1), all true."""
        return torch.ones(frames, 1, dtype=torch.bool)

    def revert(self, rows: Tensor) -> Tensor:
        """(L, 1) -> (1, L)."""
        if rows.ndim != 2 or rows.shape[1] != 1:
            raise XycodecError(f"rows of shape {tuple(rows.shape)} are not of one codebook")
        _require_no_pad(rows.T, self.pad)
        return rows.T.contiguous()


# ---- VALL-E ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NonAutoregressive:
    """A step of VALL-E's second stage: codebook `stage` of every frame, given those before (Wang et al. 2023, 4.2.2).

    Attributes:
        prompt: (n_q, P) codes that are given whole.
        known: (stage, L) codes before `stage`, of the frames after the prompt.
        target: (L,) codes of codebook `stage`.
    """

    stage: int
    prompt: Tensor
    known: Tensor
    target: Tensor


def split_autoregressive(codes: Tensor, end: int) -> Tensor:
    """The first codebook and then `end`, (L + 1,) int64: what VALL-E's first stage predicts one by one."""
    _require_books(codes, None)
    return torch.cat([codes[0].to(torch.int64), torch.tensor([end])])


def split_non_autoregressive(codes: Tensor, stage: int, prompt: int) -> NonAutoregressive:
    """The step that predicts codebook `stage` (from 1) of all frames after the first `prompt`.

    Raises XycodecError if there is no such codebook or the prompt is longer than the clip.
    """
    _require_books(codes, None)
    if not 1 <= stage < len(codes) or not 0 <= prompt <= codes.shape[1]:
        raise XycodecError(f"no stage {stage} after {prompt} frames in codes of shape {tuple(codes.shape)}")
    codes = codes.to(torch.int64)
    return NonAutoregressive(stage, codes[:, :prompt], codes[:stage, prompt:], codes[stage, prompt:])


def join_stages(first: Tensor, others: Sequence[Tensor], end: int) -> Tensor:
    """Codes (n_q, L) of what the stages gave: the first codebook up to its `end`, (L + 1,), and the others, (L,) each.

    Raises XycodecError if the first does not end with `end`, has one inside, or the lengths differ.
    """
    ends = (first == end).nonzero().flatten().tolist()
    if ends != [len(first) - 1]:
        raise XycodecError(f"the first codebook has {end} at {ends}: it has to end with one, and hold no other")
    if any(len(book) != len(first) - 1 for book in others):
        raise XycodecError(f"{len(first) - 1} frames of the first codebook, and {[len(book) for book in others]}")
    return torch.stack([first[:-1], *others])


# ---- checks ------------------------------------------------------------------------------------


def _require_books(codes: Tensor, n_q: int | None) -> None:
    if codes.ndim != 2 or n_q not in (None, len(codes)) or not len(codes):
        wanted = "codes (n_q, L)" if n_q is None else f"codes ({n_q}, L)"
        raise XycodecError(f"codes of shape {tuple(codes.shape)}: give {wanted}")


def _require_no_pad(codes: Tensor, pad: int) -> None:
    if (codes == pad).any():
        book, frame = (codes == pad).nonzero()[0].tolist()
        raise XycodecError(
            f"a pad ({pad}) lies inside the codes, at frame {frame} of codebook {book}: cut it off first"
        )
