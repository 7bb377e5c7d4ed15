"""Measuring a run on clips it does not learn from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xycodec.data.batch import Batch, Position, collate
from xycodec.distributed import all_reduce_
from xycodec.eval.metrics.wer import WordErrors
from xycodec.nn.mean import Mean
from xycodec.nn.quantize import codebook_perplexity, codebook_usage
from xycodec.train.config import ValidationConfig
from xycodec.train.engine import Engine
from xycodec.train.stage import Stage


@dataclass(frozen=True)
class ValidationResult:
    """Result of a validation over all processes; clips and transcripts are this process's."""

    values: dict[str, float]
    counts: Tensor | None
    clips: list[tuple[str, Tensor, Tensor]]
    """(id, original (T,), decoded (T,)) on the CPU."""
    transcripts: list[tuple[str, str]]
    """(said, heard)."""


def validate(
    stage: Stage[Any], engine: Engine, batches: Iterator[Batch], config: ValidationConfig
) -> ValidationResult | None:
    """Means over all clips of all processes, whatever their batches; None if there are none.

    Processes may have unlike numbers of batches. One that has no more goes on with silence that does not count,
    because a sharded network needs every process in every pass.
    """
    means: dict[str, Mean] = {}
    counts: Tensor | None = None
    words = WordErrors(0, 0)
    clips: list[tuple[str, Tensor, Tensor]] = []
    transcripts: list[tuple[str, str]] = []
    silence = collate((), (), Position(0, 0), output_sample_rate=stage.output_sample_rate)
    while True:
        batch = next(batches, None)
        working, transcribed = _sums([float(batch is not None), float(len(transcripts))], engine)
        if not working:
            break
        measured = stage.measure((batch or silence).to(engine.device), transcribe=transcribed < config.transcribe)
        # Silence counts nothing, but a process that has nothing else must name the same means.
        means = {name: means[name] + mean if name in means else mean for name, mean in measured.means.items()}
        if measured.counts is not None:
            counts = measured.counts if counts is None else counts + measured.counts
        if batch is None:
            continue
        words = words + measured.words
        transcripts += [(said, heard) for said, heard in zip(batch.texts, measured.texts, strict=False) if said]
        if measured.audio is None:
            continue
        for index in range(min(len(batch.ids), config.listen - len(clips))):
            length = batch.target_lengths[index]
            if length:
                pair = batch.target[index, :length], measured.audio[index, :length].float().cpu()
                clips.append((batch.ids[index], *pair))
    if not means:
        return None
    values = {name: float(mean.value()) for name, mean in _joined(means).items()}
    values["loss"] = stage.loss(values)
    if counts is not None:
        counts = all_reduce_(counts.clone())
        values["codes_used"] = float(codebook_usage(counts).mean())
        values["perplexity"] = float(codebook_perplexity(counts).mean())
    errors, spoken = _sums([words.errors, words.words], engine)
    if spoken:
        values["wer"] = errors / spoken
    return ValidationResult(values, counts, clips, transcripts)


def _sums(numbers: Sequence[float], engine: Engine) -> list[float]:
    """The sum of each number over all processes."""
    sums: list[float] = all_reduce_(torch.tensor(numbers, dtype=torch.float64, device=engine.device)).tolist()
    return sums


def _joined(means: dict[str, Mean]) -> dict[str, Mean]:
    """Means over all processes, in one collective."""
    packed = all_reduce_(torch.cat([part for mean in means.values() for part in (mean.total, mean.count)]))
    parts = iter(torch.split(packed, [len(mean.count) for mean in means.values() for _ in range(2)]))
    return {name: Mean(next(parts), next(parts)) for name in means}
