"""Speed of a training step, with random weights and synthetic clips that lie on the device already.

    python benchmarks/train_step.py [--stage pretrain|posttrain|both] [--size full|small|tiny] [--clips N]
        [--seconds S] [--steps N] [--device auto] [--precision bf16|float32] [--threads N] [--json OUT]

Prints Markdown: seconds of audio per second, memory, the share of time per part, arithmetic against the device's
matrix-product peak, and how often the host waited for the device. The paper's speeds are targets for the full size on
a GPU; a missed one is only marked. Writes a codec and a language model to a temporary folder (3 GB at full size).
"""

import argparse
import gc
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import cycle, pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from shared import against, cpu_name, peak_memory, say, table
from xycodec.checkpoints.build import random_codec
from xycodec.checkpoints.load import resolve_device
from xycodec.checkpoints.save import save_codec
from xycodec.cli import bench
from xycodec.data.batch import BEGINNING, Batch
from xycodec.data.config import DataConfig
from xycodec.errors import XycodecError
from xycodec.models.config import TowerConfig
from xycodec.models.xy_tokenizer.config import (
    CONFIGS,
    LanguageModelConfig,
    QuantizerConfig,
    VocosConfig,
    XYTokenizerConfig,
)
from xycodec.train.config import EngineConfig
from xycodec.train.engine import Engine
from xycodec.train.stages.posttrain import DiscriminatorsConfig, PosttrainRecipe, PosttrainStage
from xycodec.train.stages.pretrain import PretrainRecipe, PretrainStage

# Seconds of audio per GPU second that the paper reports.
TARGETS = {"pretrain": 136.7, "posttrain": 46.6}
LETTERS_PER_SECOND = 10 / 3  # one token each, as many as a larger vocabulary needs for what is said
END = "<end>"
MIB = 1 << 20


@dataclass(frozen=True)
class Size:
    """A model and the batches it is measured with."""

    codec: XYTokenizerConfig
    lm: Mapping[str, int]
    """Of Qwen2's configuration."""
    lm_adapter: TowerConfig
    discriminator_channels: int
    clips: Mapping[str, int]
    """Clips in a batch of each stage; `seconds` is how long each lasts."""
    seconds: Mapping[str, float]
    peak: int
    """Rows of the square matrices whose product gives the peak."""


def _qwen(hidden: int, layers: int, heads: int, wide: int, vocabulary: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 2,
        "intermediate_size": wide,
        "vocab_size": vocabulary,
    }


def _tiny() -> XYTokenizerConfig:
    tower = TowerConfig(d_model=32, layers=2, heads=4, ffn_dim=48)
    towers = ("semantic_encoder", "acoustic_encoder", "acoustic_decoder")
    adapters = ("semantic_encoder_adapter", "pre_rvq_adapter", "post_rvq_adapter")
    return XYTokenizerConfig(
        model_id="tiny",
        quantizer=QuantizerConfig(n_q=4, codebook_size=64, codebook_dim=16),
        vocos=VocosConfig(dim=32, intermediate_dim=48, layers=2),
        **dict.fromkeys(towers + adapters, tower),
    )


SIZES = {
    # The paper's batch per GPU, and Qwen2.5-0.5B.
    "full": Size(
        CONFIGS["xy-tokenizer"], _qwen(896, 24, 14, 4864, 151_936), LanguageModelConfig().adapter, 32,
        clips={"pretrain": 4, "posttrain": 16}, seconds={"pretrain": 30, "posttrain": 5}, peak=8192,
    ),
    # The codec of src/xycodec/configs/xy_tokenizer/debug.yaml.
    "small": Size(
        CONFIGS["xy-random"], _qwen(128, 4, 4, 512, 1000), TowerConfig(d_model=128, layers=2, heads=4, ffn_dim=256), 8,
        clips={"pretrain": 4, "posttrain": 4}, seconds={"pretrain": 5, "posttrain": 2}, peak=2048,
    ),
    "tiny": Size(
        _tiny(), _qwen(32, 2, 4, 64, 300), TowerConfig(d_model=32, layers=1, heads=4, ffn_dim=48), 4,
        clips={"pretrain": 2, "posttrain": 2}, seconds={"pretrain": 2, "posttrain": 1}, peak=1024,
    ),
}  # fmt: skip

# ---- a stage and its batch ---------------------------------------------------------------------


def open_stage(
    name: str, size: Size, engine: Engine, folder: Path, clips: int, seconds: float
) -> PretrainStage | PosttrainStage:
    """The real stage of a recipe, with random weights that are written to `folder` first."""
    shared: dict[str, Any] = {
        "stage": name,
        "output": str(folder / "run"),
        "steps": 1_000_000,
        "engine": engine.config,
        "data": DataConfig(train=("none",), batch_clips=clips, clip_seconds=seconds),
    }
    if name == "pretrain":
        lm = LanguageModelConfig(source=str(save_lm(folder / "lm", size.lm)), adapter=size.lm_adapter)
        return PretrainStage(PretrainRecipe(model=size.codec, towers=None, lm=lm, **shared), engine)
    weights = save_codec(random_codec(size.codec), folder / "codec")
    judges = DiscriminatorsConfig(channels=size.discriminator_channels)
    return PosttrainStage(PosttrainRecipe(weights=str(weights), discriminators=judges, **shared), engine)


def save_lm(folder: Path, size: Mapping[str, int]) -> Path:
    """A Qwen2 with random weights, and a tokenizer that takes letter by letter."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    library: Any = transformers
    library.utils.logging.disable_progress_bar()
    config = library.Qwen2Config(tie_word_embeddings=True, max_position_embeddings=32_768, **size)
    library.Qwen2ForCausalLM(config).save_pretrained(folder)
    letters = {letter: number for number, letter in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), END])}
    tokenizer = Tokenizer(models.BPE(letters, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    library.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END).save_pretrained(folder)
    return folder


def synthetic_batch(clips: int, seconds: float, output_sample_rate: int) -> Batch:
    """Full clips, all of one length, each with a text."""
    audio, target = (
        torch.stack([bench.speech_like(seconds, sample_rate=rate, seed=seed) for seed in range(clips)])
        for rate in (16_000, output_sample_rate)
    )
    return Batch(
        ids=tuple(map(str, range(clips))),
        audio=audio,
        lengths=(audio.shape[1],) * clips,
        target=target,
        target_lengths=(target.shape[1],) * clips,
        texts=("e" * max(1, round(LETTERS_PER_SECOND * seconds)),) * clips,
        languages=(None,) * clips,
        skipped=(),
        position=BEGINNING,
    )


# ---- time per part -----------------------------------------------------------------------------

ADAPTERS, OTHER = "adapters, down and up", "other"
PARTS = {
    "mel": "front-end",
    "semantic_encoder": "semantic tower",
    "acoustic_encoder": "acoustic tower",
    "semantic_encoder_adapter": ADAPTERS,
    "pre_rvq_adapter": ADAPTERS,
    "downsample": ADAPTERS,
    "quantizer": "quantizer",
    "post_rvq_adapter": ADAPTERS,
    "upsample": ADAPTERS,
    "acoustic_decoder": "decoder",
    "vocos": "Vocos",
}
BACKWARDS = {"pretrain": ("backward",), "posttrain": ("discriminators, backward", "backward")}


class Stopwatch:
    """Time per part, without waiting for the device: what lies within another part counts as that part's.

    On a GPU it is the device's time between the part's first and last kernel, pauses included.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._spans: list[tuple[str, Any, Any]] = []
        self._begun: list[Any] = []

    def mark(self) -> Any:
        """A moment in the device's work."""
        if not self._on_cuda:
            return bench.clock()
        event: Any = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: Any, end: Any) -> float:
        """Seconds between two moments that have passed."""
        return float(start.elapsed_time(end)) / 1000 if self._on_cuda else float(end - start)

    def begin(self) -> None:
        """A part begins."""
        self._begun.append(self.mark())

    def end(self, name: str) -> None:
        """The part that began last ends."""
        start = self._begun.pop()
        if not self._begun:
            self._spans.append((name, start, self.mark()))

    def watch(self, module: nn.Module, name: str) -> None:
        """Time the forward passes of a module."""
        module.register_forward_pre_hook(lambda *_: self.begin())
        module.register_forward_hook(lambda *_: self.end(name))

    def timed(self, work: Callable[..., Any], names: Iterator[str]) -> Callable[..., Any]:
        """`work`, each call timed under the next name."""

        def run(*args: Any, **options: Any) -> Any:
            self.begin()
            try:
                return work(*args, **options)
            finally:
                self.end(next(names))

        return run

    def parts(self) -> dict[str, float]:
        """Seconds of each part so far, in the order in which they first came. The device must have finished."""
        totals: dict[str, float] = {}
        for name, start, end in self._spans:
            totals[name] = totals.get(name, 0.0) + self.between(start, end)
        return totals

    def forget(self) -> None:
        """Start anew."""
        self._spans.clear()


@contextmanager
def watching(stage: PretrainStage | PosttrainStage, watch: Stopwatch) -> Iterator[None]:
    """Time the stage's parts; they are not compiled or wrapped, so that hooks see all of them."""
    model = stage.networks["model"]
    for name, label in PARTS.items():
        part = getattr(model.codec, name)
        if part is not None:
            towers = name.endswith("_encoder") and not any(p.requires_grad for p in part.parameters())
            watch.watch(part, f"{label}, frozen" if towers else label)
    if isinstance(stage, PretrainStage):
        if stage.semantic_lm is not None:
            watch.watch(stage.semantic_lm, "language model")
        watch.watch(stage.model.mel, "mel loss")
    else:
        watch.watch(stage.mel, "mel loss")
        watch.watch(stage.discriminators, "discriminators, forward")
    for updater in stage.updaters.values():
        updater.update = watch.timed(updater.update, cycle(["optimizer"]))
    plain = torch.autograd.backward
    torch.autograd.backward = watch.timed(plain, cycle(BACKWARDS[stage.name]))
    try:
        yield
    finally:
        torch.autograd.backward = plain


# ---- measuring ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """One stage's step."""

    stage: str
    parameters: int
    trained: int
    audio_s: float
    """Seconds of audio in a step."""
    step_s: float
    """Seconds of a step, the median."""
    slowest_s: float
    memory_mib: float | None
    """Peak of a step: on a GPU all that is allocated, on a CPU what comes on top of weights and optimizer."""
    parts: dict[str, float]
    """Share of the steps' time."""
    gflop: float
    """Matrix products, convolutions and attention of a step."""
    peak_gflops: float
    waits: dict[str, int] | None
    """Host synchronisations of a step by the line that asks for them; None on a CPU."""

    @property
    def speed(self) -> float:
        """Seconds of audio per second."""
        return self.audio_s / self.step_s

    @property
    def gflops(self) -> float:
        """GFLOP per second."""
        return self.gflop / self.step_s

    @property
    def peak_share(self) -> float:
        """Share of the device's matrix-product peak."""
        return self.gflops / self.peak_gflops


def shares(parts: Mapping[str, float], total: float) -> dict[str, float]:
    """Seconds of parts -> shares of `total`, and what belongs to none of them."""
    return {name: seconds / total for name, seconds in parts.items()} | {OTHER: 1 - sum(parts.values()) / total}


def measure(stage: PretrainStage | PosttrainStage, batch: Batch, steps: int, peak_gflops: float) -> Result:
    """Warm up, time `steps` steps, then look at one step each for memory, arithmetic and waiting."""
    device = batch.audio.device
    count = 0

    def step() -> None:
        nonlocal count
        stage.step([batch], count)
        count += 1

    for _ in range(2):  # the first one also starts the codebooks
        step()
    memory = step_memory(step, device)
    waits = host_waits(step) if device.type == "cuda" else None
    gflop = step_flops(step)
    watch = Stopwatch(device)
    with watching(stage, watch):
        step()  # so that a GPU has work when the first moment comes, and the host is ahead of it
        watch.forget()
        moments = [watch.mark()]
        for _ in range(steps):
            step()
            moments.append(watch.mark())
        bench.elapsed(lambda: None, device)  # until the device has finished
    times = [watch.between(*pair) for pair in pairwise(moments)]
    parameters = [p for network in stage.networks.values() for p in network.parameters()]
    return Result(
        stage=stage.name,
        parameters=sum(p.numel() for p in parameters),
        trained=sum(p.numel() for p in parameters if p.requires_grad),
        audio_s=batch.seconds,
        step_s=median(times),
        slowest_s=max(times),
        memory_mib=memory,
        parts=shares(watch.parts(), sum(times)),
        gflop=gflop,
        peak_gflops=peak_gflops,
        waits=waits,
    )


def step_memory(step: Callable[[], object], device: torch.device) -> float | None:
    """Peak of one step in MiB, or None where no one tells."""
    if device.type != "cuda":
        return peak_memory(step)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return torch.cuda.max_memory_allocated(device) / MIB


def step_flops(step: Callable[[], object]) -> float:
    """GFLOP of one step, as it is really executed."""
    with bench.flop_counter() as counter:
        step()
    return counter.get_total_flops() / 1e9


def host_waits(step: Callable[[], object]) -> dict[str, int]:
    """How often each line makes the host wait for the device in one step."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places: dict[str, int] = {}
    for warning in caught:
        if "called a synchronizing" in str(warning.message):
            place = f"{Path(warning.filename).name}:{warning.lineno}"
            places[place] = places.get(place, 0) + 1
    return places


# ---- printing ----------------------------------------------------------------------------------


def report(result: Result, target: float | None) -> str:
    """Two Markdown tables; `target` is in seconds of audio per second."""
    speed = f"{result.speed:.1f}" if target is None else against(result.speed, target, "{:.1f}")
    memory = "unknown" if result.memory_mib is None else f"{result.memory_mib:,.0f}"
    waits = "not on a CPU" if result.waits is None else str(sum(result.waits.values()))
    if result.waits:
        waits += f" (wanted 0, MISSED: {', '.join(f'{place} x {n}' for place, n in result.waits.items())})"
    head = {
        "parameters, M (trained)": f"{result.parameters / 1e6:.1f} ({result.trained / 1e6:.1f})",
        "audio, s": f"{result.audio_s:g}",
        "step, ms (slowest)": f"{1000 * result.step_s:.1f} ({1000 * result.slowest_s:.1f})",
        "audio s per s": speed,
        "memory, MiB": memory,
        "TFLOP per step": f"{result.gflop / 1000:.3f}",
        "GFLOP/s": f"{result.gflops:,.0f}",
        "share of peak": f"{result.peak_share:.0%}",
        "host waits": waits,
    }
    parts = [[name, f"{share:.1%}", f"{1000 * share * result.step_s:.1f}"] for name, share in result.parts.items()]
    return table(head, [list(head.values())]) + "\n" + table(["part", "share of time", "ms"], parts)


def run(args: argparse.Namespace, device: torch.device, stages: Sequence[str]) -> list[Result]:
    """Measure and print every stage."""
    size = SIZES[args.size]
    low = torch.bfloat16 if args.precision == "bf16" else torch.float32
    peak = bench.matmul_peak(low, size.peak, device=device)
    say(f"Matrix-product peak in {args.precision}: {peak:,.0f} GFLOP/s ({size.peak} rows).\n")
    engine = Engine(EngineConfig(kind="single", device=str(device), precision=args.precision))
    results = []
    for name in stages:
        clips, seconds = args.clips or size.clips[name], args.seconds or size.seconds[name]
        say(f"## {name}: {clips} clips of {seconds:g} s\n")
        with tempfile.TemporaryDirectory() as folder:
            stage = open_stage(name, size, engine, Path(folder), clips, seconds)
        batch = synthetic_batch(clips, seconds, stage.output_sample_rate).to(device)
        results.append(measure(stage, batch, args.steps, peak))
        wanted = TARGETS[name] if args.size == "full" and device.type == "cuda" else None
        say(report(results[-1], wanted))
        # The next stage is to have all the memory.
        del stage, batch
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return results


def device_name(device: torch.device) -> str:
    """What computes."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def measure_and_write(args: argparse.Namespace) -> None:
    """Everything, once the arguments are parsed. Raises XycodecError on a device or a length that cannot be had."""
    if args.threads:
        torch.set_num_threads(args.threads)
    device = resolve_device(args.device)
    args.precision = args.precision or ("bf16" if device.type == "cuda" else "float32")
    settings = {
        "device": device_name(device),
        "threads": str(torch.get_num_threads()),
        "size": args.size,
        "precision": args.precision,
    }
    say(table(settings, [list(settings.values())]))
    results = run(args, device, list(TARGETS) if args.stage == "both" else [args.stage])
    if args.json:
        numbers = [asdict(r) | {"audio_s_per_s": r.speed, "gflops": r.gflops, "peak_share": r.peak_share}
                   for r in results]  # fmt: skip
        args.json.write_text(json.dumps(settings | {"stages": numbers}, indent=2) + "\n", encoding="utf-8")


def main() -> int:
    """Parse, run, write; 1 if a setting does not fit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stage", choices=[*TARGETS, "both"], default="both")
    parser.add_argument("--size", choices=list(SIZES), default="full")
    parser.add_argument("--clips", type=int, metavar="N", help="clips in a step (default: the size's)")
    parser.add_argument("--seconds", type=float, metavar="S", help="length of a clip (default: the size's)")
    parser.add_argument("--steps", type=int, metavar="N", default=10, help="steps that are timed (default: 10)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=["bf16", "float32"], help="default: bf16 on a GPU, else float32")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the numbers to this file")
    args = parser.parse_args()
    try:
        measure_and_write(args)
    except XycodecError as error:
        print(f"train_step.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
