"""The whole state of a run in one file, whatever engine wrote it and whatever engine reads it."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from xycodec.checkpoints.training import CHECKPOINT_FORMAT, CHECKPOINTS, checkpoints, read_checkpoint
from xycodec.errors import CheckpointError, reason_of
from xycodec.io.files import atomic_path

BEST = "best.pt"


@dataclass
class RunState:
    """State of a run after `step` steps. It holds all that decides how the run goes on.

    Random numbers need no state: every step draws from the run's seed, its own number and the process's.
    """

    stage: str
    step: int
    epoch: int
    batch: int
    """Batches that each process took in `epoch`."""
    best: float | None
    """Lowest validation loss so far."""
    codec: dict[str, Any] | None
    """The codec's configuration; None if the run trains something else."""
    recipe: dict[str, Any]
    networks: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    optimizers: dict[str, dict[str, Any]] = field(default_factory=dict)
    recogniser: dict[str, Any] | None = None
    """The recogniser's configuration, if the run trains one."""
    self_supervised: dict[str, Any] | None = None
    """The self-supervised model's configuration, if the run trains one."""
    autoencoder: dict[str, Any] | None = None
    """The autoencoder's configuration, if the run trains one."""
    language_model: dict[str, Any] | None = None
    """The language model's configuration, if the run trains one."""
    taken: tuple[int, ...] = ()
    """Clips that all processes took of each cell of the data in `epoch`; not known to earlier versions."""
    order: str = ""
    """Name of the orders in which they were taken; empty in earlier versions."""
    processes: int | None = None
    """Number of processes of the run."""


_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)
GO_ON = "resume with the recipe of its run, or choose another output"


def network_state(network: nn.Module, keep: Callable[[str], bool]) -> dict[str, Tensor]:
    """Tensors of a network under their plain names, whole, on the CPU; on process 0 only if sharded."""
    state: dict[str, Any] = get_model_state_dict(network, options=_FULL)
    return {key: value for key, value in state.items() if keep(key)}


def load_network(network: nn.Module, state: dict[str, Tensor], keep: Callable[[str], bool]) -> None:
    """Put `network_state`'s tensors back; what it left out stays. Raises CheckpointError if names or shapes differ."""
    whole: dict[str, Any] = get_model_state_dict(network)
    own = {key: value for key, value in whole.items() if keep(key)}
    for key in sorted(own.keys() ^ state.keys()):
        verb = "lacks" if key in own else "has the unknown"
        raise CheckpointError(f"of another architecture, it {verb} {key!r}: {GO_ON}")
    for key, value in own.items():
        if value.shape != state[key].shape:
            raise CheckpointError(
                f"of another architecture, {key} is {tuple(state[key].shape)}, "
                f"the recipe asks for {tuple(value.shape)}: {GO_ON}"
            )
    set_model_state_dict(network, dict(state), options=StateDictOptions(full_state_dict=True, strict=False))


def optimizer_state(network: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """State of an optimizer by the plain names of its parameters, whole, on the CPU."""
    return dict(get_optimizer_state_dict(network, optimizer, options=_FULL))


def load_optimizer(network: nn.Module, optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Put `optimizer_state`'s averages and counts back; rates, betas, decay and eps stay the optimizer's own.

    Raises CheckpointError if other parameters are trained.
    """
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    plain = {name.removeprefix("module.") for name in trained}
    known = {name for group in state["param_groups"] for name in group["params"]}
    for name in sorted(plain ^ known):
        verb = "does not train" if name in plain else "trains"
        raise CheckpointError(f"of a run that {verb} {name}, unlike the recipe: {GO_ON}")
    # Which parameters decay, and how, is the recipe's and this version's to say.
    own = get_optimizer_state_dict(network, optimizer)["param_groups"]
    state = {**state, "param_groups": own}
    set_optimizer_state_dict(network, optimizer, state, options=StateDictOptions(full_state_dict=True))


# ---- files -------------------------------------------------------------------------------------


def save_state(run: Path, state: RunState, keep: int, best: bool) -> Path:
    """Write `state` beside the others, whole or not at all, and drop all but the last `keep`.

    `best` also makes it `best.pt`. Raises CheckpointError, one line; the earlier checkpoints are untouched then.
    """
    folder = run / CHECKPOINTS
    target = folder / f"step_{state.step:08d}.pt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A run that was killed while it wrote leaves as much as a checkpoint takes.
        for stray in folder.glob(".*.tmp.pt"):
            stray.unlink()
        with atomic_path(target, CheckpointError) as scratch:
            with open(scratch, "wb") as file:
                torch.save({"format": CHECKPOINT_FORMAT, **vars(state)}, file)
                file.flush()
                os.fsync(file.fileno())
            if best:
                # Before the other name: a run that is killed between the two finds the same best again.
                _replace(folder / BEST, scratch)
    # torch reports a full disk as a RuntimeError of its archive writer.
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or reason_of(error)
        last = checkpoints(run)
        kept = f"; the run can resume from {last[-1]}" if last else ""
        raise CheckpointError(f"{target} cannot be written ({reason}): free some space{kept}") from None
    for old in checkpoints(run)[:-keep]:
        old.unlink()
    return target


def load_state(path: Path) -> RunState:
    """Read a checkpoint. Raises CheckpointError if it is none, or of another format."""
    data = read_checkpoint(path)
    data.pop("format")
    try:
        return RunState(**data)
    except TypeError:
        raise CheckpointError(f"{path}: not a whole checkpoint of a training run: resume from another") from None


def _replace(target: Path, source: Path) -> None:
    """Make `target` a second name of `source`'s content, or a copy where the disk has no such names."""
    with atomic_path(target, CheckpointError) as scratch:
        try:
            scratch.unlink()
            os.link(source, scratch)
        except OSError:
            shutil.copyfile(source, scratch)
