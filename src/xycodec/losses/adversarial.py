"""Adversarial losses: least squares for discriminators and generator, and feature matching.

See docs/models/xy_tokenizer.md, Post-training.

Each is a `Mean` that is still open, so that micro-batches and processes of uneven size join exactly.
"""

from collections.abc import Sequence

from torch import Tensor

from xycodec.nn.discriminators import DiscriminatorOutput
from xycodec.nn.mean import Mean, average_of, plain_mean


def discriminator_loss(real: Sequence[DiscriminatorOutput], fake: Sequence[DiscriminatorOutput]) -> Mean:
    """Least squares: (1 - D(x))^2 + D(decoded)^2, mean over logits, then over discriminators; one entry for each.

    `fake` comes from decoded audio that was detached.
    """
    return average_of(
        [plain_mean((1 - r.logits.float()).square() + f.logits.float().square()) for r, f in _pairs(real, fake)]
    )


def adversarial_loss(fake: Sequence[DiscriminatorOutput]) -> Mean:
    """Least-squares loss of the generator, (1 - D(decoded))^2: mean over logits, then over discriminators."""
    return average_of([plain_mean((1 - f.logits.float()).square()) for f in fake])


def feature_matching(real: Sequence[DiscriminatorOutput], fake: Sequence[DiscriminatorOutput]) -> Mean:
    """Mean |real - fake| over mean |real| of every map, mean over a discriminator's maps, then over discriminators.

    One entry per map. No gradient goes to `real`. Of several batches it is the ratio of their sums, map by map.
    """
    return average_of(
        [
            average_of([_relative(x, y) for x, y in zip(r.features, f.features, strict=True)])
            for r, f in _pairs(real, fake)
        ]
    )


def plain_feature_matching(real: Sequence[DiscriminatorOutput], fake: Sequence[DiscriminatorOutput]) -> Mean:
    """Mean |real - fake| of every map, mean over all maps, as X-Codec is trained; one entry per map.

    No gradient goes to `real`.
    """
    maps = [pair for r, f in _pairs(real, fake) for pair in zip(r.features, f.features, strict=True)]
    return average_of([plain_mean((x.detach().float() - y.float()).abs()) for x, y in maps])


def _relative(real: Tensor, fake: Tensor) -> Mean:
    real = real.detach().float()
    return Mean((real - fake.float()).abs().sum()[None], real.abs().sum()[None])


def _pairs(
    real: Sequence[DiscriminatorOutput], fake: Sequence[DiscriminatorOutput]
) -> "zip[tuple[DiscriminatorOutput, DiscriminatorOutput]]":
    return zip(real, fake, strict=True)
