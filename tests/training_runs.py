"""Corpora and recipes as files, and `xycodec` in processes that start at once and can be killed."""

import json
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import set_start_method
from pathlib import Path

import numpy as np
import soundfile as sf
import yaml
from tests.processes import FORKSERVER, do_not_wait_for_the_disk
from tests.reference import tiny_config

from xycodec.cli import app as cli
from xycodec.data.manifest import import_manifest
from xycodec.models.config import TowerConfig
from xycodec.models.xy_tokenizer.config import QuantizerConfig, VocosConfig

SIZE = TowerConfig(d_model=16, layers=1, heads=2, ffn_dim=24)
PARTS = ("semantic_encoder", "semantic_encoder_adapter", "acoustic_encoder", "pre_rvq_adapter", "post_rvq_adapter")
_DEFAULT = "fork" if sys.version_info < (3, 14) else "forkserver"


def smallest_config(**changes):
    """A model of 1 s windows that takes a step in some 20 ms."""
    sizes = dict.fromkeys((*PARTS, "acoustic_decoder"), SIZE)
    quantizer = QuantizerConfig(n_q=2, codebook_size=16, codebook_dim=8)
    vocos = VocosConfig(dim=16, intermediate_dim=24, layers=1)
    return tiny_config(**{**sizes, "window_frames": 13, "quantizer": quantizer, "vocos": vocos, **changes})


def write_corpus(folder, clips=10, text="words", rate=16_000):
    """`clips` wav files of 0.6 to 1 s and `cuts.jsonl` that lists them; `text` is theirs, or None."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(clips):
        samples = rate * (6 + number % 5) // 10
        noise = 0.2 * np.random.default_rng(number).standard_normal(samples)
        sf.write(folder / f"{number}.wav", noise.clip(-1, 1).astype(np.float32), rate)
        row = {"audio": f"{number}.wav", "duration": samples / rate}
        rows.append(row if text is None else row | {"text": f"{text} {number}"})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    import_manifest(folder / "rows.jsonl", folder / "cuts.jsonl")
    return folder / "cuts.jsonl"


def settings(cuts, output, /, **changes):
    """A recipe of pre-training as a mapping: 5 batches an epoch, 12 steps, no language model."""
    data = {"train": [str(cuts)], "valid": [str(cuts)], "clip_seconds": 1, "batch_clips": 2, "workers": 0, "buckets": 2}
    whole = {
        "stage": "pretrain",
        "output": str(output),
        "steps": 12,
        "model": smallest_config().model_dump(mode="json"),
        "towers": None,
        "freeze_semantic": False,
        "lm": None,
        "loss": {"asr": 0},
        "data": data | changes.pop("data", {}),
        "optimizer": {"lr": 1e-3, "warmup_steps": 2},
        "engine": {"device": "cpu", "precision": "float32"},
        "validation": {"every": 6, "clips": 3, "listen": 1},
        "checkpoint": {"every": 3, "keep": 2},
        "log_every": 4,
    }
    return whole | changes


def post_settings(cuts, weights, output, /, **changes):
    """The same of post-training, with narrow discriminators, one family of them."""
    data = {"crop": "random", "clip_seconds": 0.64}
    whole = settings(cuts, output, data=data)
    for name in ("model", "towers", "freeze_semantic", "lm", "loss"):
        del whole[name]
    ours = {
        "stage": "posttrain",
        "weights": str(weights),
        "discriminators": {"channels": 4, "scale": False, "spectrogram": False},
        "discriminator_optimizer": {"lr": 1e-3, "warmup_steps": 2},
    }
    return whole | ours | changes


def write_recipe(path, mapping):
    path.write_text(yaml.safe_dump(mapping), encoding="utf-8")
    return path


# ---- reading what a run left -------------------------------------------------------------------


def lines_of(run, kind="train", name="metrics.jsonl"):
    """Lines of a kind; each must be whole."""
    found = [json.loads(line) for line in (Path(run) / name).read_text().splitlines()]
    return [line for line in found if line.get("kind", kind) == kind]


def assert_same_lines(got, expected, tolerance=1e-6):
    assert [line["step"] for line in got] == [line["step"] for line in expected]
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - {"kind"}:
            assert abs(ours[name] - theirs[name]) <= tolerance * max(1, abs(theirs[name])), (ours, theirs)


def names(run):
    return sorted(path.name for path in (Path(run) / "checkpoints").iterdir())


# ---- processes ---------------------------------------------------------------------------------


@dataclass
class Ended:
    code: int
    out: str
    err: str

    @property
    def error(self):
        """The one line that stderr holds."""
        (line,) = self.err.splitlines()
        assert line.startswith("error: "), self.err
        assert (self.code, self.out) == (1, "")
        return line


class Running:
    """`xycodec ARGUMENTS` in a process of its own."""

    def __init__(self, folder, *arguments, prepare=None):
        self.files = [Path(folder) / f".{name}.{time.monotonic_ns()}" for name in ("out", "err")]
        for file in self.files:
            file.touch()  # the process may be killed before it opens them
        self.process = FORKSERVER.Process(
            target=_command, args=(list(map(str, arguments)), [str(file) for file in self.files], prepare)
        )
        self.process.start()

    def wait_for(self, ready, seconds=200):
        """Until `ready()` is true, which it must become while the process runs."""
        end = time.monotonic() + seconds
        while not ready():
            assert self.process.is_alive(), self.result()
            assert time.monotonic() < end, "nothing happened"
            time.sleep(0.002)

    def signal(self, number):
        os.kill(self.process.pid, number)
        return self.result()

    def kill(self):
        os.kill(self.process.pid, signal.SIGKILL)
        # Workers that lose their parent in the middle of a word may print a traceback of multiprocessing's.
        ended = self.ended()
        assert ended.code == -signal.SIGKILL, ended

    def result(self):
        ended = self.ended()
        assert "Traceback" not in ended.err, ended.err
        return ended

    def ended(self):
        self.process.join(100)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
            raise AssertionError("did not end: " + self.files[1].read_text())
        return Ended(self.process.exitcode, *(file.read_text() for file in self.files))


def xycodec(folder, *arguments, prepare=None):
    """Run a command to its end."""
    return Running(folder, *arguments, prepare=prepare).result()


def _command(arguments, files, prepare):
    import torch

    # As in a process of its own; workers would start from a server too.
    set_start_method(_DEFAULT, force=True)
    for file, number in zip(files, (1, 2), strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    os.environ.update(HF_HUB_OFFLINE="1", COLUMNS="200")
    os.chdir(Path(files[0]).parent)
    torch.set_num_threads(1)
    do_not_wait_for_the_disk()
    if prepare is not None:
        prepare()
    sys.argv = ["xycodec", *arguments]
    with suppress(KeyboardInterrupt):
        cli.main()
