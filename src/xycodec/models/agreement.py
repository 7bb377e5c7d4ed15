"""Comparison of codes that two computations of the same codec gave: which differences are near-ties.

Float32 sums round differently in another library, on another processor or in an exported graph, by some 1e-7. Codes are
then equal, except where two codebook vectors lie almost equally near. From such a frame on, the deeper layers quantize
another residual and differ too, so that only a frame's first difference tells.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xycodec.models.base import Codec
from xycodec.nn.nearest import distances

TIE = 1e-5
"""Two squared distances are nearly equal if they differ by no more than this share of the larger."""


@dataclass(frozen=True)
class CodeAgreement:
    """Differences between two sets of codes of the same clips."""

    codes: int
    different: int
    """Codes that differ."""
    near_ties: int
    """Frames whose first difference is between two vectors that are nearly as near."""
    mistakes: int
    """Frames whose first difference is larger than that: 0 if both computed the same."""

    def __add__(self, other: "CodeAgreement") -> "CodeAgreement":
        return CodeAgreement(
            self.codes + other.codes,
            self.different + other.different,
            self.near_ties + other.near_ties,
            self.mistakes + other.mistakes,
        )

    def __str__(self) -> str:
        first = f"{self.near_ties} frames begin to differ at a near-tie, {self.mistakes} elsewhere"
        return f"{self.different} of {self.codes} codes differ; {first}"


@torch.no_grad()
def compare_codes(codec: Codec, audio: Tensor, other: Tensor) -> CodeAgreement:
    """Compare the codes of audio (T,), at most a window, with those (k, L) that another computation gave for it.

    Distances are taken in float64 between the latents of `codec` and its codebooks. Raises ValueError if the
    shapes of the codes differ.
    """
    quantizer: Any = codec.quantizer
    vectors: list[Tensor] = []
    hook = quantizer.input_proj.register_forward_hook(lambda *call: vectors.append(call[-1]))
    try:
        own = codec.encode(audio[None], n_q=len(other)).codes[0]
    finally:
        hook.remove()
    if own.shape != other.shape:
        raise ValueError(f"codes to compare must have the shape {tuple(own.shape)}, got {tuple(other.shape)}")
    other = other.to(own.device)
    residual = vectors[0].flatten(0, 1)[: own.shape[1]].double()
    equal_so_far = torch.ones(own.shape[1], dtype=torch.bool, device=own.device)
    near_ties = mistakes = 0
    for codes, others, codebook in zip(own, other, quantizer.codebook.double(), strict=False):
        first = equal_so_far & (codes != others)
        d = distances(residual, codebook)
        chosen, instead = d.gather(1, codes[:, None])[first, 0], d.gather(1, others[:, None])[first, 0]
        tie = (chosen - instead).abs() <= TIE * torch.maximum(chosen, instead)
        near_ties += int(tie.sum())
        mistakes += int((~tie).sum())
        equal_so_far &= codes == others
        residual = residual - codebook[codes]
    return CodeAgreement(own.numel(), int((own != other).sum()), near_ties, mistakes)
