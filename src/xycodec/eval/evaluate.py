"""Codecs compared on the same clips: coded, scored by signal and by models, and gathered into one result.

A folder holds all of it, and whatever is there already is not done again:

    evaluation.json                   the clips, the choices, the versions
    original/audio/CLIP.flac          16 kHz mono, 16 bits
    original/audio.jsonl              digests of the audio that these are of
    CODEC/codec.json                  what was loaded
    CODEC/audio/CLIP.flac
    CODEC/codes/                      a store of tokens that grows; of what is not ours, decoded.jsonl
    CODEC/scores.jsonl                scores of clips, as they come

Scores are of the files, which anyone can score again. Each row says which audio and which words it is of: those of
others do not count.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from xycodec.baselines.classical import ClassicalCodec
from xycodec.baselines.open import open_codec
from xycodec.errors import AudioError, XycodecError
from xycodec.eval.coding import (
    AUDIO,
    DECODED,
    CodecSpec,
    adaptive_bits,
    code_clips,
    codebook_counts,
    codebook_use,
    coded_clips,
    uncoded,
)
from xycodec.eval.corpus import Item
from xycodec.eval.foreign import decode_clips, is_foreign, open_foreign
from xycodec.eval.identity import Identity, identify
from xycodec.eval.judges.base import Judge, Pair
from xycodec.eval.metrics.quality import METERS, PROTOCOL, measure_quality, require_metrics
from xycodec.eval.record import (
    SCORES,
    Stage,
    claim_judges,
    judge_clips,
    known_scores,
    machine_of,
    no_stage,
    only_asked,
    package_versions,
    read_record,
    settled,
    write_record,
)
from xycodec.eval.results import ORIGINAL, ClipResult, CodecResult, Evaluation, Scores
from xycodec.io.audio import ignore, read_audio, write_audio
from xycodec.io.digests import digest_of
from xycodec.io.journal import Journal
from xycodec.io.parallel import Job, Work, run_jobs
from xycodec.io.progress import Advance
from xycodec.io.rate import SPEECH_RATE
from xycodec.models.base import fingerprint

Clips = Mapping[str, Identity]
"""Clips that can be read, by name, and what they are known by."""
SETTINGS = "evaluation.json"


@dataclass(frozen=True)
class _Row:
    """A codec to be evaluated; `spec` is None for the original."""

    name: str
    spec: CodecSpec | None


def evaluate(
    specs: Sequence[str],
    items: Sequence[Item],
    folder: Path,
    *,
    metrics: Sequence[str] = tuple(METERS),
    judges: Sequence[Judge] = (),
    processes: int = 1,
    device: str = "auto",
    overlap_s: float | None = None,
    title: str = "evaluation",
    stage: Stage = no_stage,
) -> Evaluation:
    """Compare codecs on `items`, the originals with themselves first; go on where an earlier call was interrupted.

    Args:
        specs: what `open_codec` takes, with `@N` for N codebooks only, and `+K` for codes searched with width K;
            or what `xycodec.eval.foreign` tells: a folder of decoded files, any Python class.
        items: clips, as `open_corpora` gives them; one that cannot be read is in the result with its error.
        folder: made if it is not there. A later call may add codecs, metrics and judges, but not clips. A clip whose
            audio was replaced, or whose transcript was corrected, is done again.
        metrics: names in `quality.METERS`.
        judges: models that score.
        processes: that share the clips of signal metrics.
        device: of the codecs.
        overlap_s: seconds that windows of clips longer than one share (None: a third of it). 0 is the rule of
            XY-Tokenizer's own evaluation.
        title: of the report.
        stage: for progress.

    Raises:
        XycodecError: no codec or clip was given; a codec cannot be loaded (before anything is computed); the folder
            holds an evaluation of other clips or of a codec of other weights; no clip can be read.
    """
    rows = _rows(specs)
    if not items:
        raise XycodecError("there is no clip to evaluate: give a manifest or folder that holds some")
    require_metrics(metrics)
    # All of them before the first: what cannot be loaded should not show after an hour.
    about = {row.name: _about(row.spec, device, overlap_s) for row in rows if row.spec is not None}
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, items, judges, about)
    clips, unread = _originals(items, folder / ORIGINAL, stage)
    if not clips:
        raise XycodecError(f"none of the {len(items)} clips can be read, the first: {next(iter(unread.values()))}")
    for row in rows:
        if row.spec is not None:
            _code(row.spec, clips, folder / ORIGINAL / AUDIO, folder / row.name, device, overlap_s, stage)
    for row in rows:
        _score_signals(row, clips, folder, tuple(metrics), processes, stage)
    for judge in judges:
        for row in rows:
            _score_by(judge, row, items, clips, folder, stage)
    names = (*metrics, *(name for judge in judges for name in judge.names))
    protocol = PROTOCOL | {", ".join(judge.names): judge.describe() for judge in judges}
    return Evaluation(
        title=title,
        protocol=protocol,
        versions=package_versions(),
        machine=machine_of(device),
        metrics=names,
        codecs=tuple(_gathered(row, items, clips, unread, folder, names) for row in rows),
    )


# ---- before anything is computed ---------------------------------------------------------------


def _rows(specs: Sequence[str]) -> list[_Row]:
    if not specs:
        raise XycodecError("there is no codec to evaluate: name one, such as xy-mini")
    rows = [_Row(ORIGINAL, None), *(_Row(spec.folder, spec) for spec in map(CodecSpec, specs))]
    for index, row in enumerate(rows):
        if row.name in {other.name for other in rows[:index]}:
            raise XycodecError(f"{row.spec.text if row.spec else row.name}: is given twice: name each codec once")
    return rows


def _about(spec: CodecSpec, device: str, overlap_s: float | None) -> dict[str, Any]:
    """Describe a codec. Raises XycodecError if it cannot be loaded."""
    if is_foreign(spec.text):
        return {"spec": spec.text, "codebook_size": None, "parameters": None, **open_foreign(spec.text).about()}
    codec = open_codec(spec.model, device=device)
    codec.check_layers(spec.n_q)
    codec.check_search(spec.search)
    return {
        "spec": spec.text,
        "model": codec.model_id,
        "weights": fingerprint(codec),
        # Bytes of a bit stream are no codebooks.
        "codebook_size": None if isinstance(codec, ClassicalCodec) else codec.codebook_size,
        "frame_rate": codec.frame_rate,
        "parameters": sum(parameter.numel() for parameter in codec.parameters()),
        "search": spec.search,
        "overlap_s": overlap_s,
    }


def _claim(folder: Path, items: Sequence[Item], judges: Sequence[Judge], about: dict[str, dict[str, Any]]) -> None:
    """Record what the folder evaluates, or raise XycodecError if it holds another evaluation."""
    digest = digest_of(sorted(item.clip for item in items))
    wanted: dict[str, Any] = {"clips": digest, "protocol": PROTOCOL, "judges": {}}
    path = folder / SETTINGS
    known = read_record(path) if path.exists() else wanted
    for what in ("clips", "protocol"):
        if known.get(what) != wanted[what]:
            raise XycodecError(f"{folder}: holds an evaluation with other {what}: choose another folder")
    claim_judges(folder, known["judges"], judges)
    for name, found in about.items():
        place = folder / name / "codec.json"
        known_codec = read_record(place) if place.exists() else found
        for what, told in (("weights", "weights"), ("overlap_s", "windows (--overlap)")):
            if known_codec.get(what) != found.get(what):
                raise XycodecError(
                    f"{found['spec']}: {folder / name} holds scores of other {told}: remove it, or choose another "
                    "folder"
                )
    write_record(path, known)
    for name, found in about.items():
        (folder / name).mkdir(exist_ok=True)
        write_record(folder / name / "codec.json", found)


def _originals(items: Sequence[Item], folder: Path, stage: Stage) -> tuple[dict[str, Identity], dict[str, str]]:
    """Write the clips as everything reads them; their identities, and (clip: reason) of those that cannot be read."""
    folder.mkdir(exist_ok=True)
    journal = Journal(folder / "audio.jsonl")
    written = {row["clip"]: row["of"] for row in journal.rows()}
    clips: dict[str, Identity] = {}
    unread: dict[str, str] = {}
    with stage("originals", len(items)) as done:
        for item in items:
            target = folder / AUDIO / f"{item.clip}.flac"
            try:
                identity = identify(item)
                if written.get(item.clip) != identity.audio or not target.exists():
                    samples = item.load()
                    target.parent.mkdir(parents=True, exist_ok=True)
                    write_audio(target, samples, SPEECH_RATE)
                    journal.append({"clip": item.clip, "of": identity.audio})
                clips[item.clip] = identity
            except AudioError as error:
                unread[item.clip] = str(error)
            done()
    return clips, unread


def _audio_of(clips: Clips) -> dict[str, str]:
    return {clip: identity.audio for clip, identity in clips.items()}


def _code(
    spec: CodecSpec, clips: Clips, originals: Path, folder: Path, device: str, overlap_s: float | None, stage: Stage
) -> None:
    if todo := uncoded(_audio_of(clips), folder):  # a codec takes its time to load
        with stage(f"{spec.text}: coding", len(todo)) as done:
            if is_foreign(spec.text):
                journal = Journal(folder / DECODED)
                decode_clips(open_foreign(spec.text), todo, originals, folder / AUDIO, journal, done)
                return
            codec = open_codec(spec.model, device=device)
            code_clips(codec, spec.n_q, todo, originals, folder, done, search=spec.search, overlap_s=overlap_s)


# ---- scores ------------------------------------------------------------------------------------


def _unscored(row: _Row, clips: Clips, folder: Path, names: Sequence[str]) -> list[str]:
    """Clips that have audio, and lack a value of any of `names` without a reason that lasts."""
    known = known_scores(clips, folder / row.name)
    failed = {clip for clip, one in coded_clips(_audio_of(clips), folder / row.name).items() if "error" in one}
    return [clip for clip in clips if clip not in failed and not settled(known.get(clip, Scores()), names)]


def _score_signals(
    row: _Row, clips: Clips, folder: Path, metrics: tuple[str, ...], processes: int, stage: Stage
) -> None:
    if not metrics:
        return
    (folder / row.name).mkdir(exist_ok=True)
    journal = Journal(folder / row.name / SCORES)
    todo = _unscored(row, clips, folder, metrics)
    jobs = {
        Job(str(folder / ORIGINAL / AUDIO / f"{clip}.flac"), str(folder / row.name / AUDIO / f"{clip}.flac")): clip
        for clip in todo
    }
    with stage(f"{row.name}: signal metrics", len(todo)) as done:
        for outcome in run_jobs(list(jobs), _signal_scorer, {"metrics": metrics}, processes):
            # A failure here is of the machine or of a metric's own code, not of the codec.
            scores = outcome.result or Scores(missing=dict.fromkeys(metrics, f"not computed: {outcome.error}"))
            clip = jobs[outcome.job]
            journal.append({"clip": clip, "of": clips[clip].audio, "scores": asdict(scores)})
            done()


def _signal_scorer(metrics: tuple[str, ...]) -> Work:
    torch.set_num_threads(1)

    def work(source: str, target: str, advance: Advance) -> Scores:
        decoded, original = (read_audio(path, SPEECH_RATE, tell=ignore) for path in (target, source))
        return measure_quality([decoded], [original], metrics)

    return work


def _score_by(judge: Judge, row: _Row, items: Sequence[Item], clips: Clips, folder: Path, stage: Stage) -> None:
    todo = _unscored(row, clips, folder, judge.names)
    item_of = {item.clip: item for item in items}
    # The originals come first: where there is no text, what is heard in them is the reference.
    originals = {} if row.spec is None else known_scores(clips, folder / ORIGINAL)
    heard = {clip: one.transcript for clip, one in originals.items()}
    # Of like length together, so that a batch holds little but speech.
    todo.sort(key=lambda clip: item_of[clip].seconds)
    with stage(f"{row.name}: {', '.join(judge.names)}", len(todo)) as done:
        judge_clips(
            judge,
            todo,
            lambda clip: _pair(folder, row.name, item_of[clip], heard.get(clip)),
            lambda clip: clips[clip].whole,
            folder / row.name,
            done,
        )


def _pair(folder: Path, codec: str, item: Item, heard: str | None) -> Pair:
    decoded, original = (
        read_audio(folder / name / AUDIO / f"{item.clip}.flac", SPEECH_RATE, tell=ignore) for name in (codec, ORIGINAL)
    )
    return Pair(decoded, original, item.text, item.language, heard)


# ---- the result --------------------------------------------------------------------------------


def _gathered(
    row: _Row, items: Sequence[Item], clips: Clips, unread: dict[str, str], folder: Path, names: Sequence[str]
) -> CodecResult:
    place = folder / row.name
    coded = coded_clips(_audio_of(clips), place)
    scores = known_scores(clips, place)
    results = []
    for item in items:
        of_clip = coded.get(item.clip, {})
        results.append(
            ClipResult(
                clip=item.clip,
                source=item.source,
                speaker=item.speaker,
                text=item.text,
                seconds=item.seconds,
                bits=of_clip.get("bits"),
                encode_s=of_clip.get("encode_s"),
                decode_s=of_clip.get("decode_s"),
                scores=only_asked(scores.get(item.clip, Scores()), names),
                error=unread.get(item.clip) or of_clip.get("error"),
                language=item.language,
            )
        )
    if row.spec is None:
        return CodecResult(row.name, "original", "", None, None, None, None, (), tuple(results))
    about = read_record(place / "codec.json")
    done = [clip for clip in results if "bits" in coded.get(clip.clip, {})]
    seconds, bits = sum(clip.seconds for clip in done), [clip.bits for clip in done if clip.bits is not None]
    size = about["codebook_size"]
    counts = None if size is None else codebook_counts(place, [clip.clip for clip in done], size)
    return CodecResult(
        name=row.name,
        title=row.spec.text,
        model=about["model"],
        bitrate=sum(bits) / seconds if seconds and len(bits) == len(done) else None,
        frame_rate=about["frame_rate"],
        entropy_bitrate=adaptive_bits(counts) / seconds if counts is not None and seconds else None,
        parameters=about["parameters"],
        codebooks=() if counts is None else codebook_use(counts),
        clips=tuple(results),
        search=row.spec.search,
    )
