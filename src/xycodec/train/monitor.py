"""Logs of a run: metrics as JSON lines, TensorBoard, a line of progress."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from xycodec.distributed import rank
from xycodec.errors import XycodecError
from xycodec.io.files import atomic_path

METRICS = "metrics.jsonl"


class Monitor:
    """Files and screen of a run. Only process 0 has one.

    A run that resumes at `step` drops what was recorded from there on: it will be recorded again.
    """

    def __init__(self, run: Path, step: int, steps: int, *, quiet: bool = False) -> None:
        from torch.utils.tensorboard import SummaryWriter

        run.mkdir(parents=True, exist_ok=True)
        forget_from(run / METRICS, step)
        self._run = run
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
        self._console = Console(stderr=True, quiet=quiet)
        self._bar = Progress(
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=steps, completed=step)
        self._bar.start()

    def close(self) -> None:
        """Write everything out."""
        self._bar.stop()
        self._board.close()

    def flush(self) -> None:
        """Write out what TensorBoard holds back, so that a killed run has lost nothing from before its checkpoint."""
        self._board.flush()

    def record(self, step: int, values: Mapping[str, Any], kind: str = "train") -> None:
        """One line of `metrics.jsonl`."""
        line = {"step": step, "kind": kind, **{key: _rounded(value) for key, value in values.items()}}
        _append(self._run / METRICS, [line])

    def say(self, text: str) -> None:
        """Print a line for the person who watches."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def progress(self, step: int, values: Mapping[str, float]) -> None:
        """Report the last steps to TensorBoard, and to the bar or, without a terminal, as a line."""
        for key, value in values.items():
            self._board.add_scalar(f"train/{key}", value, step)
        shown = ", ".join(f"{key} {value:.4g}" for key, value in values.items())
        self._bar.update(self._task, completed=step, description=_brief(values))
        if not self._console.is_terminal:
            self.say(f"step {step}: {shown}")

    def histogram(self, step: int, counts: Tensor) -> None:
        """Write a histogram of the uses (n_q, K) of every code, layer by layer."""
        for layer, uses in enumerate(counts.float().cpu().numpy()):
            # A histogram of code numbers, each as often as it was used.
            edges = np.arange(len(uses) + 1) - 0.5
            self._board.add_histogram_raw(
                f"codes/layer {layer + 1}",
                min=0,
                max=len(uses) - 1,
                num=int(uses.sum()),
                sum=float((uses * np.arange(len(uses))).sum()),
                sum_squares=float((uses * np.arange(len(uses)) ** 2).sum()),
                bucket_limits=edges[1:].tolist(),
                bucket_counts=uses.tolist(),
                global_step=step,
            )

    def validation(self, step: int, values: Mapping[str, float]) -> None:
        """Results of a validation."""
        self.record(step, values, kind="valid")
        for key, value in values.items():
            self._board.add_scalar(f"valid/{key}", value, step)
        self.say(f"step {step}, validation: " + ", ".join(f"{key} {value:.4g}" for key, value in values.items()))

    def listen(self, step: int, name: str, original: Tensor, decoded: Tensor, sample_rate: int) -> None:
        """Write one clip (T,) before and after the codec, as audio and spectrograms."""
        from xycodec.io.pictures import draw_pair

        # The original does not change, but a board that starts in the middle needs it too.
        for kind, audio in (("original", original), ("decoded", decoded)):
            self._board.add_audio(f"{name}/{kind}", audio.clamp(-1, 1), step, sample_rate)
        figure = draw_pair(original.numpy(), decoded.numpy(), sample_rate)
        self._board.add_figure(f"{name}/spectrograms", figure, step, close=False)

    def text(self, step: int, pairs: Sequence[tuple[str, str]], name: str = "transcripts") -> None:
        """Write pairs of transcript and text heard by the language model or a recogniser."""
        table = "\n".join(f"    said:  {said}\n    heard: {heard}\n" for said, heard in pairs)
        self._board.add_text(name, table, step)


def skipped_file(run: Path) -> Path:
    """Path of this process's list of clips that could not be used; other processes have their own."""
    return run / ("skipped.jsonl" if rank() == 0 else f"skipped_rank{rank()}.jsonl")


def record_skipped(run: Path, step: int, clips: Sequence[tuple[str, str]]) -> None:
    """List clips that could not be used, and why."""
    _append(skipped_file(run), [{"step": step, "id": clip, "reason": reason} for clip, reason in clips])


def _append(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    # Opened anew each time, so that a killed run loses nothing.
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def forget_from(metrics: Path, step: int) -> None:
    """Drop lines, as of `metrics.jsonl`, from `step` on, which a resumed run writes again, and a last one cut short."""
    if not metrics.exists():
        return
    lines = metrics.read_text(encoding="utf-8").splitlines()
    with atomic_path(metrics, XycodecError) as scratch:
        scratch.write_text("".join(line + "\n" for line in lines if _step_of(line) <= step), encoding="utf-8")


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # cut off


def _brief(values: Mapping[str, float]) -> str:
    """Losses, times real time and share of codes in use, short enough to stand beside a bar in 80 columns."""
    forms = {
        "loss": "loss {:.3g}",
        "mel": "mel {:.3g}",
        "asr": "asr {:.3g}",
        "audio_s_per_s": "{:.3g} x",
        "codes_used": "codes {:.0%}",
    }
    return ", ".join(form.format(values[name]) for name, form in forms.items() if name in values)


def _rounded(value: Any) -> Any:
    return float(f"{value:.8g}") if isinstance(value, float) else value
