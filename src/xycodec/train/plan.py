"""The plan of a run, before anything starts: sizes, memory, steps per epoch."""

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from xycodec.data.batch import Batch, Position
from xycodec.data.stream import BatchStream
from xycodec.io.rate import SPEECH_RATE
from xycodec.train.config import RunConfig
from xycodec.train.engine import Engine, prepare_blocks
from xycodec.train.run import open_cuts, remarks
from xycodec.train.stage import Networks
from xycodec.train.stages import stage_of

GIB = 1 << 30


@dataclass(frozen=True)
class Part:
    """A part of the networks."""

    name: str
    parameters: int
    trainable: int


@dataclass(frozen=True)
class RunPlan:
    """The report of `xycodec train --dry-run`."""

    stage: str
    parts: tuple[Part, ...]
    memory_gib: dict[str, float]
    """Per process: weights, gradients, optimizer, activations of one micro-batch at its longest."""
    processes: int
    clips_per_step: int
    steps: int
    steps_per_epoch: int | None
    """None where the data have no end."""
    remarks: tuple[str, ...]


def plan_run(recipe: RunConfig) -> RunPlan:
    """Measure a run without weights or steps. Raises what `train` would raise before them, but for weights."""
    engine = Engine(recipe.engine)
    try:
        networks = stage_of(recipe).build(recipe, meta=True)
        rate = networks.output_sample_rate
        corpus = open_cuts(recipe, recipe.data.train)
        if recipe.data.valid:
            open_cuts(recipe, recipe.data.valid)
        stream = BatchStream(
            corpus, recipe.data, output_sample_rate=rate, seed=recipe.seed,
            rank=engine.rank, world_size=engine.world_size,
        )  # fmt: skip
        batches = stream.batches_per_epoch()
        return RunPlan(
            stage=recipe.stage,
            parts=parts_of(networks),
            memory_gib=_memory(recipe, networks, engine),
            processes=engine.world_size,
            clips_per_step=recipe.data.batch_clips * recipe.engine.accumulate * engine.world_size,
            steps=recipe.steps,
            steps_per_epoch=None if batches is None else ceil(batches / recipe.engine.accumulate),
            remarks=tuple(remarks(recipe, corpus, rate)),
        )
    finally:
        engine.close()


def parts_of(networks: Networks) -> tuple[Part, ...]:
    """The parts of networks with their sizes."""
    return tuple(part for network in _modules(networks) for part in _parts(network))


def _modules(networks: Networks) -> list[nn.Module]:
    return [networks.model, *([] if networks.discriminators is None else [networks.discriminators])]


def _parts(network: nn.Module) -> list[Part]:
    """Parts of the codec, recogniser or autoencoder, the language model's two, the families of discriminators."""
    parts: list[Part] = []
    for name, child in network.named_children():
        inner = (
            child.named_children() if name in ("codec", "recogniser", "autoencoder", "semantic_lm") else [(name, child)]
        )
        for label, part in inner:
            count = sum(p.numel() for p in part.parameters())
            trained = sum(p.numel() for p in part.parameters() if p.requires_grad)
            prefix = "semantic_lm." if name == "semantic_lm" else ""
            if count:
                parts.append(Part(prefix + label, count, trained))
    return parts


def _memory(recipe: RunConfig, networks: Networks, engine: Engine) -> dict[str, float]:
    parameters = [p for network in _modules(networks) for p in network.parameters()]
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    shards = engine.world_size if engine.kind == "fsdp2" else 1
    sizes = {
        "weights": 4 * sum(p.numel() for p in parameters),
        "gradients": 4 * trained / shards,
        "optimizer": 8 * trained / shards,
        "activations": _activations(recipe, networks),
    }
    return {name: size / GIB for name, size in sizes.items()} | {"in all": sum(sizes.values()) / GIB}


def _activations(recipe: RunConfig, networks: Networks) -> float:
    """Bytes that the longest micro-batch keeps for its backward pass."""
    prepare_blocks(networks.model, checkpointing=recipe.engine.checkpoint_activations, compiling=False)
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # or another storage could get the same address

    def keep(tensor: Tensor) -> Tensor:
        kept[_storage(tensor)] = tensor.untyped_storage().nbytes()
        alive.append(tensor)
        return tensor

    low = recipe.engine.precision == "bf16"
    # Its tensors have all but their values: nothing is computed, and nothing is held.
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        torch.autocast("cpu", torch.bfloat16, enabled=low),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        batch = _longest_batch(recipe, networks.output_sample_rate)
        parameters = [p for network in _modules(networks) for p in network.to_empty(device="cpu").parameters()]
        stage_of(recipe).rehearse(networks, batch)
        own = {_storage(p) for p in parameters}
    return float(sum(size for storage, size in kept.items() if storage not in own))


def _storage(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address


def _clips(recipe: RunConfig) -> int:
    """Clips in a micro-batch of the longest ones."""
    data = recipe.data
    fitting = data.batch_clips if data.batch_seconds is None else int(data.batch_seconds / data.clip_seconds)
    return min(data.batch_clips, fitting)


def _longest_batch(recipe: RunConfig, output_sample_rate: int) -> Batch:
    clips, samples = _clips(recipe), int(recipe.data.clip_seconds * SPEECH_RATE)
    audio = torch.zeros(clips, samples)
    target = torch.zeros(clips, samples * output_sample_rate // SPEECH_RATE)
    return Batch(
        ids=("",) * clips,
        audio=audio,
        lengths=(samples,) * clips,
        target=target,
        target_lengths=(target.shape[1],) * clips,
        texts=("",) * clips,
        languages=(None,) * clips,
        skipped=(),
        position=Position(0, 0),
    )
