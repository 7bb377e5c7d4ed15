"""Devices and processes: where a step is computed, and how gradients are reduced."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from xycodec.checkpoints.load import resolve_device
from xycodec.errors import ConfigError
from xycodec.lm.transformer import Block
from xycodec.nn.dac import ResidualUnit
from xycodec.nn.transformer import TransformerLayer
from xycodec.nn.vocos import ConvNeXtBlock
from xycodec.train.config import EngineConfig

BLOCKS = (TransformerLayer, ConvNeXtBlock, ResidualUnit, Block)


class Engine:
    """One process of a run. `torchrun` tells each its place; without it there is one.

    `kind` is `single`, `ddp` or `fsdp2`. The latter shards gradients and optimizer state (ZeRO-2): parameters are
    gathered once a step and kept until the backward pass is over. Frozen parameters are never sharded. Raises
    ConfigError where the configuration does not fit the number of processes or the device.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.rank, self.world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.kind = ("ddp" if self.world_size > 1 else "single") if config.kind == "auto" else config.kind
        if self.kind == "single" and self.world_size > 1:
            raise ConfigError(f"engine.kind: single, but torchrun started {self.world_size} processes: use ddp")
        self.device = self._device(config.device)
        self._started = False
        if self.kind != "single" and not dist.is_initialized():
            self._join()

    def _device(self, name: str) -> torch.device:
        device = resolve_device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            if device.index >= torch.cuda.device_count():
                raise ConfigError(
                    f"engine.device: process {device.index} of this machine has no GPU of its own, there are "
                    f"{torch.cuda.device_count()}: lower torchrun's --nproc-per-node"
                )
            torch.cuda.set_device(device)
        return device

    def _join(self) -> None:
        backend = "nccl" if self.device.type == "cuda" else "gloo"
        # Alone there is no one to meet, but sharding asks for a group.
        store = None if self.world_size > 1 else dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.world_size)
        self._started = True

    def close(self) -> None:
        """Leave the other processes."""
        if self._started:
            dist.destroy_process_group()

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    # ---- networks ------------------------------------------------------------------------------

    def wrap(self, module: nn.Module) -> nn.Module:
        """Put a network on the device, wrapped (DDP, FSDP2) so that its gradients are reduced."""
        module.to(self.device)
        prepare_blocks(module, checkpointing=self.config.checkpoint_activations, compiling=self.config.compile)
        if self.kind == "ddp":
            places = [self.device] if self.device.type == "cuda" else None
            network = DistributedDataParallel(module, device_ids=places, gradient_as_bucket_view=True)
            # The quantizer's buffers follow the data of all processes by themselves. Newer versions of torch know the
            # argument by another name, but all know this.
            network.broadcast_buffers = False
            return network
        if self.kind == "fsdp2":
            self._shard(module)
        return module

    def _shard(self, module: nn.Module) -> None:
        mesh = init_device_mesh(self.device.type, (self.world_size,))
        frozen = {p for p in module.parameters() if not p.requires_grad}
        parts: list[nn.Module] = [part for part in module.modules() if isinstance(part, BLOCKS) and _learns(part)]
        for part in parts:
            fully_shard(part, mesh=mesh, reshard_after_forward=False)
        fully_shard(module, mesh=mesh, reshard_after_forward=False, ignored_params=frozen)
        for part in (*parts, module):
            # All is still gathered in the backward pass. FSDP would foresee its order from the forward passes since
            # the last one, validation's too, of which processes have unlike numbers: they would wait for ever.
            part.set_modules_to_backward_prefetch([part])  # type: ignore[operator]

    def autocast(self) -> AbstractContextManager[object]:
        """Context of the networks' precision. Quantizer, front-end, inverse STFT and losses leave it themselves."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def joining(self, network: nn.Module, last: bool) -> AbstractContextManager[object]:
        """Context of one micro-batch's forward and backward pass: gradients are reduced at the `last` one of a step."""
        if isinstance(network, DistributedDataParallel) and not last:
            return network.no_sync()
        if isinstance(network, FSDPModule):
            network.set_requires_gradient_sync(last)
        return nullcontext()

    @contextmanager
    def whole(self, network: nn.Module) -> Iterator[nn.Module]:
        """The plain module with its parameters whole, to call its parts."""
        sharded = [part for part in network.modules() if isinstance(part, FSDPModule)]
        for part in sharded:
            part.unshard()
        try:
            yield plain(network)
        finally:
            for part in sharded:
                part.reshard()


def plain(network: nn.Module) -> nn.Module:
    """The module that `Engine.wrap` was given."""
    module: nn.Module = network.module if isinstance(network, DistributedDataParallel) else network
    return module


def prepare_blocks(module: nn.Module, *, checkpointing: bool, compiling: bool) -> None:
    """Compile each transformer, ConvNeXt or residual block, or compute it again in the backward pass, in place.

    Block by block, compiling takes seconds instead of minutes. A frozen tower keeps nothing for a backward pass,
    so there is nothing to compute again.
    """
    for part in module.modules():
        if not isinstance(part, BLOCKS):
            continue
        if compiling:
            part.compile(dynamic=True)
        if checkpointing and _learns(part):
            draws = any(isinstance(one, nn.Dropout) and one.p for one in part.modules())
            part.forward = _Checkpointed(part.forward, draws)  # type: ignore[assignment]


class _Checkpointed:
    """A block's forward pass that keeps its input only, and the random numbers' state if it `draws` some."""

    def __init__(self, forward: object, draws: bool) -> None:
        self.forward, self.draws = forward, draws

    def __call__(self, *args: object) -> object:
        return checkpoint(self.forward, *args, use_reentrant=False, preserve_rng_state=self.draws)


def _learns(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())
