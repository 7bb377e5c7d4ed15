"""Measuring a run on clips it does not learn from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import soxr
import torch
from torch import Tensor

from xycodec.data.batch import Batch
from xycodec.distributed import all_reduce_
from xycodec.eval.judges.base import Pair
from xycodec.eval.metrics.wer import WordErrors
from xycodec.eval.results import Scores
from xycodec.io.rate import SPEECH_RATE
from xycodec.nn.mean import Mean
from xycodec.nn.quantize import codebook_perplexity, codebook_usage
from xycodec.train.config import ValidationConfig
from xycodec.train.engine import Engine
from xycodec.train.stage import Sound, Stage
from xycodec.train.words import WordJudge


@dataclass(frozen=True)
class ValidationResult:
    """Result of a validation over all processes; clips and transcripts are this process's."""

    values: dict[str, float]
    counts: Tensor | None
    clips: list[tuple[str, Tensor, Tensor]]
    """(id, original (T,), decoded (T,)) on the CPU."""
    transcripts: list[tuple[str, str]]
    """(said, heard) of the language model."""
    decoded_transcripts: list[tuple[str, str]]
    """(reference, heard) of the decoded audio."""


def validate(
    stage: Stage[Any],
    engine: Engine,
    batches: Iterator[Batch],
    config: ValidationConfig,
    word_judge: WordJudge | None = None,
) -> ValidationResult | None:
    """Means over all clips of all processes, whatever their batches; None if there are none.

    `word_judge` hears the decoded audio of the first `config.transcribe` clips, whatever the number of processes.

    Processes may have unlike numbers of batches. One that has no more goes on with silence that does not count,
    because a sharded network needs every process in every pass.
    """
    means: dict[str, Mean] = {}
    counts: Tensor | None = None
    words = WordErrors(0, 0)
    clips: list[tuple[str, Tensor, Tensor]] = []
    transcripts: list[tuple[str, str]] = []
    decoded: list[tuple[str, Pair]] = []
    passed = 0  # clips of all processes
    while True:
        batch = next(batches, None)
        sizes = [0.0] * engine.world_size
        sizes[engine.rank] = 0.0 if batch is None else float(sum(n > 0 for n in batch.lengths))
        working, transcribed, *sizes = _sums([float(batch is not None), float(len(transcripts)), *sizes], engine)
        if not working:
            break
        first, passed = passed + int(sum(sizes[: engine.rank])), passed + int(sum(sizes))
        measurable = batch or stage.silence(stage.recipe, stage.output_sample_rate)
        measured = stage.measure(measurable.to(engine.device), transcribe=transcribed < config.transcribe)
        # Silence counts nothing, but a process that has nothing else must name the same means.
        means = {name: means[name] + mean if name in means else mean for name, mean in measured.means.items()}
        if measured.counts is not None:
            counts = measured.counts if counts is None else counts + measured.counts
        if batch is None:
            continue
        words = words + measured.words
        transcripts += [(said, heard) for said, heard in zip(batch.texts, measured.texts, strict=False) if said]
        sounds = measured.sounds
        if sounds is None and measured.audio is not None:
            sounds = Sound(batch.target, batch.target_lengths), Sound(measured.audio, batch.target_lengths)
        if sounds is None:
            continue
        if word_judge is not None:
            decoded += _decoded(batch, sounds, config.transcribe - first, stage.output_sample_rate)
        for index in range(min(len(sounds[1].lengths), config.listen - len(clips))):
            if batch.lengths[index]:
                original, made = (one.samples[index, : one.lengths[index]].float().cpu() for one in sounds)
                clips.append((batch.ids[index], original, made))
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
        values[stage.words_name] = errors / spoken
    heard: list[tuple[str, str]] = []
    if word_judge is not None:
        scores = word_judge(decoded)
        values |= _word_errors(scores, engine)
        heard = [_told(pair, one) for (_, pair), one in zip(decoded, scores, strict=True)]
    return ValidationResult(values, counts, clips, transcripts, heard)


def _decoded(batch: Batch, sounds: tuple[Sound, Sound], most: int, sample_rate: int) -> list[tuple[str, Pair]]:
    """The first clips of the batch, `most` at most, with their ids: what was said, and what was made of it."""
    pairs = []
    for index in range(min(most, len(sounds[1].lengths), sum(n > 0 for n in batch.lengths))):
        original, samples = (one.samples[index, : one.lengths[index]].float().cpu().numpy() for one in sounds)
        if sample_rate != SPEECH_RATE:
            samples = soxr.resample(samples, sample_rate, SPEECH_RATE)
        if batch.codes is None:
            original = batch.audio[index, : batch.lengths[index]].numpy()
        elif sample_rate != SPEECH_RATE:
            original = soxr.resample(original, sample_rate, SPEECH_RATE)
        pairs.append((batch.ids[index], Pair(samples, original, batch.texts[index], batch.languages[index])))
    return pairs


def _word_errors(scores: Sequence[Scores], engine: Engine) -> dict[str, float]:
    """Word error rates over all processes, and counts of clips: compared, without a text, with a loop."""
    compared = [one for one in scores if "wer" in one.values]
    # Counts of words are whole, and their sums the same in every order.
    mine = (
        *(sum(round(one.values[name] * one.weights[name]) for one in compared) for name in ("wer", "wer_capped")),
        sum(one.weights["wer"] for one in compared),
        len(compared),
        sum(one.reference is not None for one in compared),
        sum(one.looped for one in scores),
    )
    errors, capped, words, clips, without_text, loops = _sums(mine, engine)
    rates = {"wer": errors / words, "wer_capped": capped / words} if words else {}
    return rates | {"wer_clips": clips, "wer_clips_without_text": without_text, "wer_loops": loops}


def _told(pair: Pair, scores: Scores) -> tuple[str, str]:
    reference = pair.text if scores.reference is None else f"(heard in the original) {scores.reference}"
    missing = f"({scores.missing['wer']})" if "wer" in scores.missing else ""
    return reference or "", scores.transcript if scores.transcript is not None else missing


def _sums(numbers: Sequence[float], engine: Engine) -> list[float]:
    """The sum of each number over all processes."""
    sums: list[float] = all_reduce_(torch.tensor(numbers, dtype=torch.float64, device=engine.device)).tolist()
    return sums


def _joined(means: dict[str, Mean]) -> dict[str, Mean]:
    """Means over all processes, in one collective."""
    packed = all_reduce_(torch.cat([part for mean in means.values() for part in (mean.total, mean.count)]))
    parts = iter(torch.split(packed, [len(mean.count) for mean in means.values() for _ in range(2)]))
    return {name: Mean(next(parts), next(parts)) for name in means}
