"""Generated audio compared with a reference set: distances of whole sets, and scores of clips with captions.

A folder holds all of it, and whatever is there already is not done again:

    evaluation.json               the embedders
    SET/EMBEDDER/CLIP.npz         vectors of a clip; SET is generated or original
    SET/EMBEDDER/vectors.jsonl    digests of the audio that these are of
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xycodec.errors import XycodecError
from xycodec.eval.generation.distances import frechet_distance, inception_score, kernel_distance, moments
from xycodec.eval.generation.embedders.base import EMBEDDING, LOGITS, Embedder
from xycodec.eval.generation.embedders.clap import Clap
from xycodec.eval.generation.sets import RESAMPLER, AudioSet, Embedded, embed_set
from xycodec.eval.record import Stage, machine_of, no_stage, package_versions, read_record, write_record
from xycodec.eval.results import METRICS, ORIGINAL, ClipResult, CodecResult, Evaluation, Scores, Section

GENERATED = "generated"
SETTINGS = "evaluation.json"
CLAP_SCORE = "clap_laion"


@dataclass(frozen=True)
class _Heard:
    """An embedder, and the vectors that it made of both sets."""

    embedder: Embedder
    generated: Embedded
    reference: Embedded

    @property
    def sets(self) -> dict[str, Embedded]:
        return {ORIGINAL: self.reference, GENERATED: self.generated}


def evaluate_generation(
    generated: AudioSet,
    reference: AudioSet,
    folder: Path,
    embedders: Sequence[Embedder],
    *,
    captions: Mapping[str, str] | None = None,
    device: str = "auto",
    title: str = "generation",
    stage: Stage = no_stage,
) -> Evaluation:
    """Compare a generated set with a reference; go on where an earlier call was interrupted.

    Args:
        generated: files that were generated.
        reference: true files; the two sets need not have the same names, but then no clips stand side by side.
        folder: made if it is not there. Vectors of MERT take some 14 MB a minute of audio.
        embedders: that give the metrics.
        captions: by clip, for the CLAP score, which the reference has too.
        device: named in the report.
        title: of the report.
        stage: for progress.

    Raises:
        XycodecError: no embedder was given, CLAP has no captions, a set has fewer than two clips that an embedder
            hears, or the folder holds vectors of other weights.
    """
    if not embedders:
        raise XycodecError("nothing to measure by: name an embedder, such as --panns FILE")
    if captions is None and any(isinstance(embedder, Clap) for embedder in embedders):
        raise XycodecError("a CLAP score takes captions: give --captions FILE of JSON lines with id and caption")
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, embedders)
    sets = {ORIGINAL: reference, GENERATED: generated}
    heard = []
    for embedder in embedders:
        made = {}
        for name, audio in sets.items():
            with stage(f"{name}: {embedder.name}", len(audio.files)) as done:
                made[name] = embed_set(embedder, audio, folder / name / embedder.name, done)
        heard.append(_Heard(embedder, made[GENERATED], made[ORIGINAL]))
    values = _values(heard)
    scores = _clap_scores(heard, captions or {})
    return Evaluation(
        title=title,
        protocol=_protocol(embedders),
        versions=package_versions(),
        machine=machine_of(device),
        metrics=tuple(metric for embedder in embedders for metric in embedder.metrics),
        codecs=tuple(
            _row(name, audio, heard, values[name], scores[name], captions or {}) for name, audio in sets.items()
        ),
        sections=(_sets_section(sets), _vectors_section(heard), *_left_out_section(heard)),
        warnings=tuple(_warnings(sets, heard)),
    )


def _claim(folder: Path, embedders: Sequence[Embedder]) -> None:
    path = folder / SETTINGS
    known = read_record(path) if path.exists() else {"embedders": {}}
    if "embedders" not in known:
        raise XycodecError(f"{folder}: holds an evaluation of another kind: choose another folder")
    for embedder in embedders:
        told = [embedder.weights, embedder.about]
        if known["embedders"].setdefault(embedder.name, told) != told:
            raise XycodecError(
                f"{folder}: holds vectors of another {embedder.name}: choose another folder for other weights"
            )
    write_record(path, known)


# ---- numbers -----------------------------------------------------------------------------------


def _values(heard: Sequence[_Heard]) -> dict[str, dict[str, float]]:
    """Metrics of whole sets; of the reference only those that compare it with nothing."""
    found: dict[str, dict[str, float]] = {ORIGINAL: {}, GENERATED: {}}
    for one in heard:
        for metric in one.embedder.metrics:
            if metric == "inception_score":
                for name, embedded in one.sets.items():
                    _require(one.embedder, embedded, name)
                    found[name][metric] = inception_score(embedded.joined(LOGITS))
            elif METRICS[metric].pooling == "set":
                for name, embedded in one.sets.items():
                    _require(one.embedder, embedded, name)
                found[GENERATED][metric] = _COMPARISONS.get(metric, _frechet)(one.generated, one.reference)
    return found


def _require(embedder: Embedder, embedded: Embedded, name: str) -> None:
    if len(embedded.clips) < 2:
        first = next(iter(embedded.left_out.items()), None)
        why = f", {first[0]}: {first[1]}" if first else ""
        raise XycodecError(f"{embedder.name}: hears {len(embedded.clips)} {name} clips, two are the least{why}")


def _frechet(generated: Embedded, reference: Embedded) -> float:
    return frechet_distance(*(moments(one.parts(EMBEDDING)) for one in (generated, reference)))


def _kernel(generated: Embedded, reference: Embedded) -> float:
    return kernel_distance(generated.joined(EMBEDDING), reference.joined(EMBEDDING))


_COMPARISONS: dict[str, Callable[[Embedded, Embedded], float]] = {"kad": _kernel}
"""Metrics that are no Fréchet distance."""


def _clap_scores(heard: Sequence[_Heard], captions: Mapping[str, str]) -> dict[str, dict[str, Scores]]:
    found: dict[str, dict[str, Scores]] = {ORIGINAL: {}, GENERATED: {}}
    for one in heard:
        if isinstance(one.embedder, Clap):
            used = sorted(
                {captions[clip] for embedded in one.sets.values() for clip in embedded.clips if clip in captions}
            )
            vectors = dict(zip(used, one.embedder.captions(used), strict=True)) if used else {}
            for name, embedded in one.sets.items():
                for clip, vector in zip(embedded.clips, embedded.parts(EMBEDDING), strict=True):
                    if clip in captions:
                        found[name][clip] = Scores({CLAP_SCORE: float(vector[0] @ vectors[captions[clip]])})
                    else:
                        found[name][clip] = Scores(missing={CLAP_SCORE: "no caption"})
    return found


# ---- the report --------------------------------------------------------------------------------


def _row(
    name: str,
    audio: AudioSet,
    heard: Sequence[_Heard],
    values: dict[str, float],
    scores: Mapping[str, Scores],
    captions: Mapping[str, str],
) -> CodecResult:
    reasons = [one.sets[name].left_out for one in heard]
    clips = (
        ClipResult(
            clip=clip,
            source="clips",
            speaker=None,
            text=captions.get(clip),
            seconds=audio.seconds.get(clip, 0.0),
            scores=scores.get(clip, Scores()),
            # What one embedder cannot hear another may.
            error=reasons[0][clip] if all(clip in reason for reason in reasons) else None,
        )
        for clip in audio.files
    )
    title = "reference" if name == ORIGINAL else GENERATED
    return CodecResult(name, title, str(audio.folder), None, None, None, None, (), tuple(clips), of_set=values)


def _protocol(embedders: Sequence[Embedder]) -> dict[str, str]:
    choices = {", ".join(one.metrics): one.about for one in embedders}
    return choices | {
        "resampler": RESAMPLER,
        "covariances": "divided by N - 1, float64; the root's trace by eigenvalues of a symmetric product",
    }


def _sets_section(sets: Mapping[str, AudioSet]) -> Section:
    rows = (
        (name, str(audio.folder), str(len(audio.files)), f"{sum(audio.seconds.values()):.1f}", audio.list_hash)
        for name, audio in sets.items()
    )
    return Section("Sets", ("set", "folder", "files", "seconds", "hash of the file list"), tuple(rows))


def _vectors_section(heard: Sequence[_Heard]) -> Section:
    rows = tuple(
        (
            one.embedder.name,
            f"{one.embedder.sample_rate} Hz",
            RESAMPLER,
            str(one.reference.size),
            str(one.generated.count),
            str(one.reference.count),
            one.embedder.weights,
        )
        for one in heard
    )
    heads = ("embedder", "rate", "resampler", "dimensions", "N generated", "N reference", "hash of the weights")
    note = (
        "Fréchet distances depend on N, above all where it is below the dimensions, and on resampler and weights: only "
        "values of equal N, resampler and weights compare."
    )
    return Section("Embeddings", heads, rows, note)


def _left_out_section(heard: Sequence[_Heard]) -> Iterator[Section]:
    rows = [
        (one.embedder.name, name, clip, reason)
        for one in heard
        for name, embedded in one.sets.items()
        for clip, reason in embedded.left_out.items()
    ]
    if rows:
        yield Section("Left out", ("embedder", "set", "clip", "why"), tuple(rows))


def _warnings(sets: Mapping[str, AudioSet], heard: Sequence[_Heard]) -> Iterator[str]:
    for one in heard:
        left_out = {name: len(embedded.left_out) for name, embedded in one.sets.items() if embedded.left_out}
        for name, count in left_out.items():
            yield f"{one.embedder.name} left out {count} {name} clips: see Left out"
    counts = {name: len(audio.files) for name, audio in sets.items()}
    if counts[GENERATED] != counts[ORIGINAL]:
        yield f"{counts[GENERATED]} generated and {counts[ORIGINAL]} reference clips: sets of equal size compare best"
