"""Drawing a code from logits: temperature, top-k, top-p, and a guard against repetition."""

from collections.abc import Sequence

import torch
from torch import Tensor

from xycodec.lm.config import SamplingConfig


def generator_of(seed: int) -> torch.Generator:
    """The generator of all that one generation draws; on the CPU, so that a seed is the same draw on every device."""
    return torch.Generator().manual_seed(seed)


def sample(logits: Tensor, config: SamplingConfig, generator: torch.Generator, past: Sequence[int] = ()) -> int:
    """Draw an id from `logits` (K,), whose forbidden entries are minus infinity. `past`: ids before, oldest first.

    The repetition guard is CTRL's (Keskar 2019): positive logits of recent ids are divided by it, negative multiplied.
    """
    scores = logits.detach().to("cpu", torch.float32, copy=True)
    recent = sorted(set(past[-config.repetition_window :])) if config.repetition_window else []
    if config.repetition_penalty != 1 and recent:
        chosen = scores[recent]
        penalty = config.repetition_penalty
        scores[recent] = torch.where(chosen > 0, chosen / penalty, chosen * penalty)
    if config.temperature == 0:
        return int(scores.argmax())
    scores = scores / config.temperature
    if 0 < config.top_k < len(scores):
        scores = scores.masked_fill(scores < scores.topk(config.top_k).values[-1], -torch.inf)
    if config.top_p < 1:
        ordered, places = scores.sort(descending=True)
        before = ordered.softmax(dim=-1).cumsum(dim=-1).roll(1)
        before[0] = 0  # the likeliest one stays
        scores = scores.index_fill(0, places[before >= config.top_p], -torch.inf)
    return int(torch.multinomial(scores.softmax(dim=-1), 1, generator=generator))
