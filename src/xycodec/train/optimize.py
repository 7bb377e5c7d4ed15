"""AdamW or ScaledAdam under a schedule with warm-up."""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from xycodec.train.config import OptimizerConfig
from xycodec.train.scaled_adam import ScaledAdam, eden


def learning_rate(config: OptimizerConfig, step: int, steps: int, epoch: int = 0) -> float:
    """The rate of step `step` of `steps`: linear warm-up, then down along the schedule.

    That is half a cosine or a line down to `final_lr` of the peak, or the peak times sqrt(`warmup_steps` / steps done),
    whatever `steps` is (1 stands for no warm-up). `scaled_adam.eden` explains `eden`, the one that asks for the epoch.
    """
    if config.schedule == "eden":
        return eden(
            config.lr, step, epoch, steps=config.eden_steps, epochs=config.eden_epochs, warmup=config.warmup_steps
        )
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "inverse_sqrt":
        return config.lr * math.sqrt(max(1, config.warmup_steps) / (step + 1))
    done = (step + 1 - config.warmup_steps) / max(1, steps - config.warmup_steps)
    left = 1 - min(1.0, done) if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return config.lr * (config.final_lr + (1 - config.final_lr) * left)


class Updater:
    """The optimizer of one network. Weight decay is for matrices alone (`is_matrix`)."""

    def __init__(self, network: nn.Module, config: OptimizerConfig, steps: int) -> None:
        self.network, self.config, self.steps = network, config, steps
        trained = [p for p in network.parameters() if p.requires_grad]
        self._trained = trained
        self.optimizer: torch.optim.Optimizer
        if config.kind == "scaled_adam":
            self.optimizer = ScaledAdam(trained, config.lr, betas=config.betas, eps=config.eps)
            return
        groups = [
            {"params": [p for p in trained if is_matrix(p)], "weight_decay": config.weight_decay},
            {"params": [p for p in trained if not is_matrix(p)], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            fused=True,
        )

    def update(self, step: int, epoch: int = 0) -> Tensor:
        """One step along the gradients, which are cleared; returns their norm before clipping, on the device.

        `epoch` is that of the data, which Eden's schedule asks for.
        """
        limit = math.inf if self.config.clip is None else self.config.clip
        norm = clip_grad_norm_(self._trained, limit)
        rate = learning_rate(self.config, step, self.steps, epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        # Sharded gradients give a sharded norm.
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def is_matrix(parameter: Tensor) -> bool:
    """Whether a parameter decays: weights of linear maps and convolutions, and embeddings, as is usual.

    Those have more than one axis longer than 1. A norm, a bias and a scale has one, even in a shape like (1, C, 1):
    Snake's alpha, the gains of weight norm, the constants of WavLM's positions. So has a map to or from a single
    number, and it does not decay either.
    """
    return sum(size > 1 for size in parameter.shape) > 1
