"""ScaledAdam and Eden (Yao 2024, Zipformer), the optimizer and schedule of X-Codec's paper for VALL-E.

Steps are relative to the size of a parameter, its root mean square, and the size itself is learned too.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class ScaledAdam(Optimizer):
    """Adam whose steps are scaled by each parameter's root mean square, with a step along its scale now and then.

    A parameter's step is lr x rms x Adam's direction; its scale's, once every `size_update_period` steps, is lr x
    `scalar_lr_scale` of Adam in the log of the scale. Single numbers make plain steps of lr x `scalar_lr_scale`.
    Gradients are clipped where their norm, weighted by the parameters' sizes, is over `clipping_scale` times its median
    of the last `clipping_update_period` steps. Not for sharded parameters.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 3e-2,
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        clipping_scale: float = 2.0,
        clipping_update_period: int = 1000,
        scalar_lr_scale: float = 0.1,
        param_min_rms: float = 1e-5,
        param_max_rms: float = 3.0,
        scalar_max: float = 10.0,
        size_update_period: int = 4,
    ) -> None:
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "clipping_scale": clipping_scale,
            "clipping_update_period": clipping_update_period, "scalar_lr_scale": scalar_lr_scale,
            "param_min_rms": param_min_rms, "param_max_rms": param_max_rms, "scalar_max": scalar_max,
            "size_update_period": size_update_period,
        }  # fmt: skip
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step along the gradients, which `closure` computes first if there is one; returns its loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            learned = [p for p in group["params"] if p.grad is not None]
            for p in learned:
                self._prepare(p, group)
            if learned:
                clip = self._clip(learned, group)
                for p in learned:
                    self._update(p, p.grad * clip, group)
        return loss

    def _prepare(self, p: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if state:
            return
        state["step"] = torch.zeros(())
        state["delta"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        if p.numel() > 1:
            state["rms"] = _rms(p)
            state["scale_grads"] = torch.zeros(group["size_update_period"], device=p.device)
            state["scale_exp_avg_sq"] = torch.zeros((), device=p.device)

    def _clip(self, learned: list[Tensor], group: dict[str, Any]) -> Tensor:
        """The factor of all gradients."""
        period, first = group["clipping_update_period"], self.state[learned[0]]
        sizes = [self.state[p]["rms"] if p.numel() > 1 else group["scalar_lr_scale"] for p in learned]
        norm = (
            torch.stack([(p.grad * size).square().sum() for p, size in zip(learned, sizes, strict=True)]).sum().sqrt()
        )
        if "norms" not in first:
            first["norms"] = torch.zeros(period, device=norm.device)
            first["threshold"] = torch.full((), math.inf, device=norm.device)
        step = int(first["step"])
        if step and step % period == 0:
            first["threshold"] = group["clipping_scale"] * first["norms"].median()
        first["norms"][step % period] = norm
        factor: Tensor = (first["threshold"] / (norm + 1e-20)).clamp_max(1.0)
        return factor

    def _update(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state, lr, (beta1, beta2) = self.state[p], group["lr"], group["betas"]
        step = int(state["step"])
        state["delta"].mul_(beta1)
        size: Any = group["scalar_lr_scale"]
        if p.numel() > 1:
            self._update_scale(p, grad, group)
            size = state["rms"].clamp_min(group["param_min_rms"])
        state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        mean = state["exp_avg_sq"] / (1 - beta2 ** (step + 1))
        state["delta"] -= (1 - beta1) * lr * size * grad / (mean.sqrt() + group["eps"])
        if p.numel() == 1:
            p.clamp_(-group["scalar_max"], group["scalar_max"])
        p += state["delta"]
        state["step"] += 1

    def _update_scale(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state, lr, (beta1, beta2) = self.state[p], group["lr"], group["betas"]
        period, step = group["size_update_period"], int(state["step"])
        # How the loss changes with the log of the parameter's scale.
        state["scale_grads"][step % period] = (p * grad).sum()
        if step % period != period - 1:
            return
        state["rms"] = _rms(p)
        decay, updates = beta2**period, (step + 1) // period
        state["scale_exp_avg_sq"].mul_(decay).add_(state["scale_grads"].square().mean(), alpha=1 - decay)
        mean = state["scale_exp_avg_sq"] / (1 - decay**updates)
        rate = lr * group["scalar_lr_scale"]
        change = -rate * state["scale_grads"].sum() / (mean.sqrt() + group["eps"])
        change = change.where(state["rms"] >= group["param_min_rms"], change.clamp_min(0.0))
        change = change.where(state["rms"] <= group["param_max_rms"], -rate * period)
        state["delta"] += (1 - beta1) * change * p


def _rms(p: Tensor) -> Tensor:
    return p.square().mean().sqrt()


def eden(lr: float, step: int, epoch: int, *, steps: int = 5000, epochs: float = 4, warmup: int = 200) -> float:
    """Eden's rate at step `step` of epoch `epoch`, both from 0.

    It falls with the square root of both past `steps` and `epochs`, and rises from half in `warmup` steps.
    """
    by_step = math.pow((step**2 + steps**2) / steps**2, -0.25)
    by_epoch = math.pow((epoch**2 + epochs**2) / epochs**2, -0.25)
    rising = 1.0 if step >= warmup else 0.5 + 0.5 * step / warmup
    return lr * by_step * by_epoch * rising
