"""The arithmetic of benchmarks/train_step.py, and that it runs."""

import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from xycodec.cli import bench
from xycodec.nn.deterministic.linear import product
from xycodec.train.config import EngineConfig
from xycodec.train.engine import Engine

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def train_step(benchmark_named):
    return benchmark_named("train_step")


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves only when it is told to."""
    now = [0.0]
    monkeypatch.setattr(bench, "clock", lambda: now[0])

    def pass_time(seconds):
        now[0] += seconds

    return pass_time


class Slow(nn.Module):
    def __init__(self, work, *parts):
        super().__init__()
        self.work, self.parts = work, nn.ModuleList(parts)

    def forward(self, x):
        self.work()
        for part in self.parts:
            x = part(x)
        return x


def test_a_part_within_a_part_counts_once(train_step, clock):
    inner, outer = Slow(lambda: clock(2.0)), Slow(lambda: clock(1.0))
    outer.parts.append(inner)
    watch = train_step.Stopwatch(torch.device("cpu"))
    watch.watch(inner, "inner")
    watch.watch(outer, "outer")
    outer(torch.zeros(1))
    assert watch.parts() == {"outer": 3.0}
    inner(torch.zeros(1))
    inner(torch.zeros(1))
    assert watch.parts() == {"outer": 3.0, "inner": 4.0}
    watch.forget()
    assert watch.parts() == {}


def test_calls_are_timed_under_their_names_in_turn(train_step, clock):
    watch = train_step.Stopwatch(torch.device("cpu"))
    work = watch.timed(clock, cycle(["first", "second"]))
    for seconds in (1.0, 10.0, 2.0, 20.0):
        work(seconds)
    assert watch.parts() == {"first": 3.0, "second": 30.0}


def test_shares_sum_to_one_with_the_rest(train_step):
    shares = train_step.shares({"a": 1.0, "b": 2.0}, 4.0)
    assert shares == {"a": 0.25, "b": 0.5, "other": 0.25}


def test_a_result_s_rates(train_step):
    result = train_step.Result(
        "pretrain", 10, 5, audio_s=120.0, step_s=0.5, slowest_s=1.0, memory_mib=1.0, parts={"backward": 1.0},
        gflop=50.0, peak_gflops=400.0, waits={"file.py:3": 2},
    )  # fmt: skip
    assert (result.speed, result.gflops, result.peak_share) == (240.0, 100.0, 0.25)
    printed = train_step.report(result, 136.7)
    assert "240.0 (target 136.7)" in printed
    assert "2 (wanted 0, MISSED: file.py:3 x 2)" in printed
    assert "MISSED)" in train_step.report(result, 300.0)


def test_a_product_in_pieces_is_counted_whole():
    x, weight = torch.randn(20, 1300), torch.randn(48, 1300)
    with bench.flop_counter() as counted:
        product(x, weight)
    assert counted.get_total_flops() == 2 * 20 * 1300 * 48


def test_attention_is_counted_in_both_directions():
    q, k, v = (torch.randn(2, 3, 16, 8, requires_grad=True) for _ in range(3))
    product = 2 * (2 * 3) * 16 * 16 * 8
    with bench.flop_counter() as forward:
        out = F.scaled_dot_product_attention(q, k, v)
    assert forward.get_total_flops() == 2 * product
    with bench.flop_counter() as backward:
        out.sum().backward()
    # The scores once more, then four gradients.
    assert backward.get_total_flops() == 5 * product


def test_batches_are_full_and_have_texts(train_step):
    batch = train_step.synthetic_batch(2, 1.5, 24_000)
    assert batch.audio.shape == (2, 24_000)
    assert batch.target.shape == (2, 36_000)
    assert batch.seconds == 3.0
    assert all(batch.texts)
    assert not torch.equal(batch.audio[0], batch.audio[1])


@pytest.mark.long
def test_it_measures_both_stages_at_tiny_size(tmp_path):
    place = tmp_path / "out.json"
    command = [sys.executable, "train_step.py", "--size", "tiny", "--clips", "1", "--seconds", "1", "--steps", "1"]
    command += ["--device", "cpu", "--threads", "1", "--json", str(place)]
    began = time.monotonic()
    ran = subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    pretrain, posttrain = json.loads(place.read_text())["stages"]
    for stage, wanted in (
        (pretrain, {"semantic tower, frozen", "acoustic tower", "language model", "backward"}),
        (posttrain, {"acoustic tower, frozen", "discriminators, forward", "discriminators, backward", "backward"}),
    ):
        parts = stage["parts"]
        common = {"front-end", "adapters, down and up", "quantizer", "decoder", "Vocos", "mel loss", "optimizer"}
        assert wanted | common <= parts.keys(), stage["stage"]
        assert sum(parts.values()) == pytest.approx(1)
        assert min(parts.values()) >= 0
        assert stage["audio_s_per_s"] == pytest.approx(1 / stage["step_s"])
        assert stage["gflop"] > 0.01
        assert stage["step_s"] < time.monotonic() - began
    assert "semantic tower" not in pretrain["parts"]
    assert posttrain["gflop"] > pretrain["gflop"]
    # Targets are a GPU's.
    assert "target" not in ran.stdout


def test_a_setting_that_does_not_fit_is_one_line(train_step, monkeypatch, capsys):
    arguments = ["train_step.py", "--size", "tiny", "--device", "cpu", "--stage", "pretrain", "--seconds", "31"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert train_step.main() == 1
    assert capsys.readouterr().err.startswith("train_step.py: data.clip_seconds: 31 s is longer than")


# ---- what the benchmark counts on a GPU, seen without one ------------------------------------------


class Looks(TorchDispatchMode):
    """Lists where the host would wait for what the device computes: all that follows from `known` tensors."""

    waiting = ("_local_scalar_dense", "nonzero", "masked_select", "equal.default", "unique")

    def __init__(self, known):
        super().__init__()
        # By storage, and held: views share it, and another could get the same address.
        self.known = {t.untyped_storage()._cdata: t for t in known}
        self.found = []

    def knows(self, value):
        return isinstance(value, torch.Tensor) and value.untyped_storage()._cdata in self.known

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if any(map(self.knows, tree_leaves((args, kwargs)))):
            name = str(func)
            masks = args[1] if name.startswith(("aten.index.", "aten.index_put")) else ()
            masked = any(self.knows(mask) and mask.dtype == torch.bool for mask in masks)
            if masked or any(part in name for part in self.waiting):
                self.found.append(name)
            self.known |= {t.untyped_storage()._cdata: t for t in tree_leaves(result) if isinstance(t, torch.Tensor)}
        return result


@pytest.fixture(params=["pretrain", pytest.param("posttrain", marks=pytest.mark.long)])
def started(request, train_step, tmp_path):
    """A stage whose codebooks are started, and a batch of clips of unlike lengths."""
    engine = Engine(EngineConfig(kind="single", device="cpu", precision="float32"))
    stage = train_step.open_stage(request.param, train_step.SIZES["tiny"], engine, tmp_path, 3, 1.0)
    full = train_step.synthetic_batch(3, 1.0, 16_000)
    lengths = (16_000, 9_000, 12_345)
    batch = replace(full, lengths=lengths, target_lengths=lengths, texts=("one", None, "two and three"))
    stage.step([batch], 0)
    return stage, batch


def test_a_step_never_looks_at_what_the_device_computes(started):
    stage, batch = started
    networks = stage.networks.values()
    tensors = [t for network in networks for t in (*network.parameters(), *network.buffers())]
    with Looks([*tensors, batch.audio]) as looks:
        report = stage.step([batch, batch], 1)
    assert not looks.found
    # All numbers that a step reports were followed to their end.
    assert all(map(looks.knows, [*report.values.values(), *report.norms.values()]))
    with looks:
        assert math.isfinite(report.values["loss"].item())
    assert looks.found == ["aten._local_scalar_dense.default"]


def test_frozen_parts_are_computed_once_and_keep_nothing(started):
    stage, batch = started
    codec = stage.networks["model"].codec
    made = []
    for name in ("mel", "semantic_encoder", "acoustic_encoder"):
        getattr(codec, name).register_forward_hook(lambda module, args, out, name=name: made.append((name, out)))
    stage.step([batch], 1)
    assert sorted(name for name, _ in made) == ["acoustic_encoder", "mel", "semantic_encoder"]
    learning = {name for name, out in made if out.requires_grad}
    assert learning == ({"acoustic_encoder"} if stage.name == "pretrain" else set())
