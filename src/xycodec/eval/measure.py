"""A codec measured on every clip of a manifest: quality, speed and use of its codebooks."""

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xycodec.bitstream import CodecFile
from xycodec.data.manifest import read_rows
from xycodec.errors import XycodecError
from xycodec.eval.quality import METRICS, Quality
from xycodec.jobs import Advance, Job, Work, run_jobs
from xycodec.nn.quantize import codebook_perplexity, codebook_usage
from xycodec.pretrained import load_codec
from xycodec.transcode import Comparison, roundtrip_file

ALL = "all"


@dataclass(frozen=True)
class Clip:
    """One clip of the manifest and what became of it."""

    audio: str
    """As the manifest names it."""
    group: str
    """The folder of `audio`, which tells sources and their splits apart."""
    speaker: str | None
    text: str | None
    seconds: float
    bytes: int
    encode_s: float
    decode_s: float
    quality: Quality


@dataclass(frozen=True)
class Summary:
    """Some clips as one."""

    clips: int
    seconds: float
    means: dict[str, float | None]
    """Of each metric, over the clips that have it; every clip counts the same."""
    encode_speed: float
    """Seconds of audio per second of one process, as is `decode_speed`."""
    decode_speed: float


@dataclass(frozen=True)
class CodebookUse:
    """How one codebook is used over all clips."""

    used: float
    """Share of its codes that occur, 0 to 1."""
    entropy_bits: float
    """Of the distribution of its codes: at most log2 of their number, 10 for 1024."""


@dataclass(frozen=True)
class Measurement:
    """What `measure` found."""

    model: str
    manifest: str
    processes: int
    threads: int
    """Of each process."""
    groups: dict[str, Summary]
    """By folder, then `all`."""
    codebooks: tuple[CodebookUse, ...]
    clips: tuple[Clip, ...]
    """By STOI, the best first; those without it come last."""
    failed: tuple[tuple[str, str], ...]
    """(audio, reason) of clips that could not be measured at all."""

    @property
    def unmeasured(self) -> dict[tuple[str, str], int]:
        """(metric, reason): number of clips that lack the metric."""
        return dict(Counter(item for clip in self.clips for item in clip.quality.missing.items()))

    def to_dict(self) -> dict[str, Any]:
        """Everything in plain types; a clip's metrics stand beside its other fields."""
        data = asdict(self)
        for clip in data["clips"]:
            clip.update(clip.pop("quality"))
        return data


def measure(
    model: str,
    manifest: Path,
    *,
    processes: int = 1,
    threads: int | None = None,
    limit: int | None = None,
    advance: Callable[[float], None] = lambda seconds: None,
) -> Measurement:
    """Encode, decode and compare every clip of a JSON-lines manifest, as `roundtrip_file` does.

    Args:
        model: what `load_codec` takes: a name, a folder, a run, a checkpoint, a hub id.
        manifest: rows with `audio` (relative to the manifest) and `duration`, as `xycodec data import` reads.
        processes: how many share the clips.
        threads: of each process; None: the cores divided among them.
        limit: this many clips, spread evenly over the manifest; None: all.
        advance: told the seconds of each clip that is done.

    Raises:
        ConfigError: a row that is not valid.
        CheckpointError: `model` gives no codec.
        XycodecError: there is no clip, or not one could be measured.
    """
    rows = _spread(list(read_rows(manifest)), limit)
    if not rows:
        raise XycodecError(f"{manifest}: it is empty, give a manifest with clips")
    threads = threads or max(1, (os.cpu_count() or 1) // processes)
    done: list[tuple[Clip, CodecFile]] = []
    failed: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory(prefix="xycodec.") as scratch:
        jobs = [
            Job(str(manifest.parent / row["audio"]), str(Path(scratch) / f"{number}.xyc"))
            for number, row in enumerate(rows)
        ]
        row_of = dict(zip(jobs, rows, strict=True))
        for outcome in run_jobs(jobs, _measurer, {"model": model, "threads": threads}, processes):
            row = row_of[outcome.job]
            if outcome.error:
                failed.append((row["audio"], outcome.error))
            else:
                comparison, codes = outcome.result
                done.append((_clip(row, comparison), codes))
            advance(row["duration"])
    if not done:
        raise XycodecError(f"{manifest}: no clip could be measured, first: {failed[0][1]}")
    clips = sorted((clip for clip, _ in done), key=_rank)
    return Measurement(
        model=done[0][1].model,
        manifest=str(manifest),
        processes=processes,
        threads=threads,
        groups=dict(_summaries(clips)),
        codebooks=_codebook_use([codes for _, codes in done]),
        clips=tuple(clips),
        failed=tuple(sorted(failed)),
    )


def _spread(rows: list[dict[str, Any]], limit: int | None) -> list[dict[str, Any]]:
    if limit is None or limit >= len(rows):
        return rows
    return [rows[index * len(rows) // limit] for index in range(limit)]


def _measurer(model: str, threads: int) -> Work:
    torch.set_num_threads(threads)
    codec = load_codec(model)

    def work(job: Job, advance: Advance) -> tuple[Comparison, CodecFile]:
        decoded = Path(job.target).with_suffix(".wav")
        comparison = roundtrip_file(codec, job.source, job.target, str(decoded), advance=advance)
        codes = CodecFile.read(job.target)
        for made in (Path(job.target), decoded):
            made.unlink()  # a corpus may be larger than the disk
        return comparison, codes

    return work


def _rank(clip: Clip) -> tuple[bool, float, str]:
    stoi = clip.quality.stoi
    return stoi is None, -(stoi or 0.0), clip.audio


def _clip(row: dict[str, Any], comparison: Comparison) -> Clip:
    return Clip(
        audio=row["audio"],
        group=Path(row["audio"]).parent.as_posix(),
        speaker=row.get("speaker"),
        text=row.get("text"),
        seconds=comparison.encoded.seconds,
        bytes=comparison.encoded.bytes,
        encode_s=comparison.encoded.wall_seconds,
        decode_s=comparison.decoded.wall_seconds,
        quality=comparison.quality,
    )


def _summaries(clips: Sequence[Clip]) -> Iterator[tuple[str, Summary]]:
    for group in sorted({clip.group for clip in clips}):
        yield group, _summary([clip for clip in clips if clip.group == group])
    yield ALL, _summary(clips)


def _summary(clips: Sequence[Clip]) -> Summary:
    seconds = sum(clip.seconds for clip in clips)
    return Summary(
        clips=len(clips),
        seconds=seconds,
        means={name: _mean(getattr(clip.quality, name) for clip in clips) for name in METRICS},
        encode_speed=seconds / sum(clip.encode_s for clip in clips),
        decode_speed=seconds / sum(clip.decode_s for clip in clips),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _codebook_use(files: Sequence[CodecFile]) -> tuple[CodebookUse, ...]:
    codes = torch.from_numpy(np.concatenate([file.codes for file in files], axis=1).astype(np.int64))
    counts = torch.stack([layer.bincount(minlength=files[0].codebook_size) for layer in codes])
    entropy = codebook_perplexity(counts).log2()
    return tuple(CodebookUse(*pair) for pair in zip(codebook_usage(counts).tolist(), entropy.tolist(), strict=True))
