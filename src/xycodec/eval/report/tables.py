"""The tables of a report: an evaluation with its statistics, in plain fields that every writer shows."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from xycodec.errors import XycodecError
from xycodec.eval.report.published import PublishedPoint, published_points
from xycodec.eval.report.statistics import Difference, Estimate, Intervals
from xycodec.eval.results import (
    METRICS,
    ORIGINAL,
    ClipResult,
    CodebookUse,
    CodecResult,
    Evaluation,
    Metric,
    Section,
    pooled,
)

Results = Mapping[str, Mapping[str, ClipResult]]
"""Results of clips by codec and clip."""

SHOWN_CLIPS = 3  # names that stand for all clips with one defect


@dataclass(frozen=True)
class CodecRow:
    """Name, size and speed of a codec, without its clips."""

    name: str
    title: str
    model: str
    bitrate: float | None
    """Bits a second, as is `entropy_bitrate`."""
    frame_rate: float | None
    entropy_bitrate: float | None
    parameters: int | None
    encode_speed: float | None
    """Seconds of audio per second, as is `decode_speed`."""
    decode_speed: float | None
    codebooks: tuple[CodebookUse, ...]


@dataclass(frozen=True)
class Group:
    """Some of the clips: all, those of a source, those of a speaker."""

    name: str
    clips: int
    seconds: float
    unit: str
    """Unit that intervals are over: `clip` or `speaker`."""
    units: int
    scores: dict[str, dict[str, Estimate]]
    """Estimates by codec and metric."""


@dataclass(frozen=True)
class Gap:
    """Clips of a codec that lack a metric, or all of them where `metric` is None."""

    codec: str
    metric: str | None
    reason: str
    clips: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Words:
    """Word errors of a codec's clips that have one kind of reference."""

    codec: str
    reference: str
    """`text`, or `original`: what the same recogniser heard in the original."""
    clips: int
    """Number of clips that were heard."""
    wer: float | None
    """None where nothing was compared, as is `wer_capped`."""
    wer_capped: float | None
    looped: int
    """Clips of which the recogniser repeated itself, and was asked again."""


@dataclass(frozen=True)
class Expected:
    """A value that was expected, and the one found; None where there is none."""

    codec: str
    metric: str
    expected: float
    measured: float | None
    difference: float | None


@dataclass(frozen=True)
class Tables:
    """Everything that a report shows but the clips."""

    title: str
    metrics: tuple[Metric, ...]
    codecs: tuple[CodecRow, ...]
    baseline: str | None
    """The codec that the others are compared with: the first that is not the original."""
    overall: Group
    sources: tuple[Group, ...]
    speakers: tuple[Group, ...]
    speaker_count: int
    differences: dict[str, dict[str, Difference]]
    """Differences to the baseline, by codec and metric."""
    gaps: tuple[Gap, ...]
    words: tuple[Words, ...]
    """Empty where no recogniser heard the clips."""
    expected: tuple[Expected, ...]
    expected_source: str
    published: tuple[PublishedPoint, ...]
    """Published points that have one of the metrics."""
    protocol: dict[str, str]
    versions: dict[str, str]
    machine: str
    sections: tuple[Section, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything in plain types."""
        return asdict(self)


def make_tables(
    evaluation: Evaluation, expected: Mapping[str, Mapping[str, float]] | None = None, expected_source: str = ""
) -> Tables:
    """Summarise an evaluation.

    Args:
        evaluation: what was found.
        expected: by codec and metric, the values that a table is said to have.
        expected_source: where they are from.

    Raises:
        XycodecError: there is no clip or no metric, or `expected` names a codec or a metric that the evaluation lacks.
    """
    results = {codec.name: {clip.clip: clip for clip in codec.clips} for codec in evaluation.codecs}
    clips = {name: clip for codec in results.values() for name, clip in codec.items()}
    if not clips:
        raise XycodecError(f"{evaluation.title}: there is no clip to report on, evaluate at least one")
    if not evaluation.metrics:
        raise XycodecError(f"{evaluation.title}: there is no metric to report on, ask for at least one")
    compared = [codec.name for codec in evaluation.codecs if codec.name != ORIGINAL]
    overall = _with_sets(_group("all", list(clips.values()), results, evaluation.metrics), evaluation)
    sources = _groups({name: clip.source for name, clip in clips.items()}, clips, results, evaluation.metrics)
    speakers = _groups(_speakers(clips), clips, results, evaluation.metrics)
    return Tables(
        title=evaluation.title,
        metrics=tuple(METRICS[name] for name in evaluation.metrics),
        codecs=tuple(map(_codec_row, evaluation.codecs)),
        baseline=compared[0] if compared else None,
        overall=overall,
        sources=sources,
        speakers=speakers,
        speaker_count=len(speakers),
        differences=_differences(compared, results, list(clips.values()), evaluation.metrics),
        gaps=tuple(gap for codec in results for gap in _gaps(codec, results[codec], clips, evaluation.metrics)),
        words=tuple(_words(results) if "wer" in evaluation.metrics else ()),
        expected=tuple(_expectations(overall, evaluation.metrics, expected or {})),
        expected_source=expected_source,
        published=tuple(point for point in published_points() if set(point.values) & set(evaluation.metrics)),
        protocol=evaluation.protocol,
        versions=evaluation.versions,
        machine=evaluation.machine,
        sections=evaluation.sections,
        warnings=evaluation.warnings,
    )


def _codec_row(codec: CodecResult) -> CodecRow:
    return CodecRow(
        name=codec.name,
        title=codec.title,
        model=codec.model,
        bitrate=codec.bitrate,
        frame_rate=codec.frame_rate,
        entropy_bitrate=codec.entropy_bitrate,
        parameters=codec.parameters,
        encode_speed=codec.encode_speed,
        decode_speed=codec.decode_speed,
        codebooks=codec.codebooks,
    )


def _speakers(clips: Mapping[str, ClipResult]) -> dict[str, str]:
    """Clip to speaker, where one is named; two sources may number theirs alike."""
    several = len({clip.source for clip in clips.values()}) > 1
    return {
        name: f"{clip.source}: {clip.speaker}" if several else clip.speaker
        for name, clip in clips.items()
        if clip.speaker is not None
    }


def _groups(
    label_of: Mapping[str, str], clips: Mapping[str, ClipResult], results: Results, metrics: Sequence[str]
) -> tuple[Group, ...]:
    """A group for each label, by name."""
    members: dict[str, list[ClipResult]] = defaultdict(list)
    for name, label in label_of.items():
        members[label].append(clips[name])
    return tuple(_group(label, members[label], results, metrics) for label in sorted(members))


def _group(name: str, clips: Sequence[ClipResult], results: Results, metrics: Sequence[str]) -> Group:
    intervals = Intervals(clips)
    found = {codec: [of[clip.clip] for clip in clips if clip.clip in of] for codec, of in results.items()}
    return Group(
        name=name,
        clips=len(clips),
        seconds=sum(clip.seconds for clip in clips),
        unit=intervals.unit,
        units=intervals.units,
        scores=intervals.estimates(found, metrics),
    )


def _with_sets(group: Group, evaluation: Evaluation) -> Group:
    """Add what only whole sets of clips have."""
    scores = {
        codec.name: group.scores[codec.name]
        | {name: Estimate(value, None, None, len(codec.clips)) for name, value in codec.of_set.items()}
        for codec in evaluation.codecs
    }
    return replace(group, scores=scores)


def _differences(
    compared: Sequence[str], results: Results, clips: Sequence[ClipResult], metrics: Sequence[str]
) -> dict[str, dict[str, Difference]]:
    if len(compared) < 2:
        return {}
    base, *others = compared
    rivals = {name: list(results[name].values()) for name in others}
    return Intervals(clips).differences(rivals, list(results[base].values()), metrics)


def _gaps(codec: str, results: Mapping[str, ClipResult], names: Iterable[str], metrics: Sequence[str]) -> Iterator[Gap]:
    """Every clip that does not count somewhere, by reason."""
    lacking: dict[tuple[str | None, str], list[str]] = defaultdict(list)
    metrics = [metric for metric in metrics if METRICS[metric].pooling != "set"]
    for name in names:
        clip = results.get(name)
        if clip is None:
            lacking[None, "not evaluated"].append(name)
        elif clip.error is not None:
            lacking[None, clip.error].append(name)
        else:
            for metric in metrics:
                if metric not in clip.scores.values:
                    lacking[metric, clip.scores.missing.get(metric, "not measured")].append(name)
    for (missing, reason), clips in lacking.items():
        yield Gap(codec, missing, reason, len(clips), tuple(clips[:SHOWN_CLIPS]))


def _words(results: Results) -> Iterator[Words]:
    """Word errors of every codec, by the kinds of reference that there are."""
    for codec, clips in results.items():
        heard = [clip for clip in clips.values() if clip.scores.transcript is not None]
        for reference in ("text", "original"):
            ones = [clip for clip in heard if (clip.text is not None) == (reference == "text")]
            if ones:
                rates = pooled(ones, "wer"), pooled(ones, "wer_capped")
                yield Words(codec, reference, len(ones), *rates, sum(clip.scores.looped for clip in ones))


def _expectations(
    overall: Group, metrics: Sequence[str], expected: Mapping[str, Mapping[str, float]]
) -> Iterator[Expected]:
    for codec, values in expected.items():
        if codec not in overall.scores:
            known = ", ".join(overall.scores)
            raise XycodecError(f"a value is expected of {codec!r}, which was not evaluated: name one of {known}")
        for metric, value in values.items():
            if metric not in metrics:
                known = ", ".join(metrics)
                raise XycodecError(f"{codec}: {metric!r} is expected, which was not measured: name one of {known}")
            found = overall.scores[codec].get(metric)
            measured = found.value if found else None
            yield Expected(codec, metric, value, measured, None if measured is None else measured - value)
