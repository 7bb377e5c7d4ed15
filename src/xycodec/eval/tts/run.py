"""Text-to-speech models evaluated on a test list: words, voice and opinion, over several seeds.

A folder holds all of it, and whatever is there already is not done again:

    evaluation.json                   the list, the setting, the judges
    test.jsonl                        the list
    original/                         true speech
    MODEL-roundtrip/, -roundtrip-1/   true speech through the model's codec, with its codebooks and with the first alone
    MODEL/seed-N/, MODEL-ar/seed-N/   speech of the model, with all codebooks and with the first alone
    NAME/                             speech that was made elsewhere
      audio/ID.flac, speech.jsonl     what was said, 16 kHz
      scores.jsonl                    scores, as they come
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from xycodec.errors import AudioError, ConfigError, XycodecError
from xycodec.eval.judges.base import Judge, Pair
from xycodec.eval.judges.recognition import Recognition
from xycodec.eval.record import (
    SCORES,
    Stage,
    claim_judges,
    judge_clips,
    known_scores,
    machine_of,
    no_stage,
    package_versions,
    read_record,
    settled,
    write_record,
)
from xycodec.eval.results import ORIGINAL, Evaluation, Scores, pooled
from xycodec.eval.tts.calibration import calibration, calibration_warnings
from xycodec.eval.tts.gather import gathered, protocol_of, seeds_section, speech_section
from xycodec.eval.tts.sources import Load, Source, SpeechRow, open_sources
from xycodec.eval.tts.speech import AUDIO, Setting, prompt_of, say_all, takes
from xycodec.eval.tts.utterances import Utterance, write_utterances
from xycodec.io.audio import ignore, read_audio
from xycodec.io.digests import digest_of
from xycodec.io.journal import Journal
from xycodec.io.rate import SPEECH_RATE

SETTINGS, TEST_LIST = "evaluation.json", "test.jsonl"
SEEDS = (0, 1, 2)
"""VALL-E's paper averages three runs."""


def evaluate_tts(
    utterances: Sequence[Utterance],
    folder: Path,
    *,
    models: Mapping[str, Path] | None = None,
    generated: Mapping[str, Path] | None = None,
    codecs: Sequence[str] = (),
    load: Load | None = None,
    setting: Setting = Setting.continual,
    seeds: Sequence[int] = SEEDS,
    first_codebook_only: bool = False,
    judges: Sequence[Judge] = (),
    device: str = "auto",
    title: str = "text to speech",
    stage: Stage = no_stage,
) -> Evaluation:
    """Let models speak the texts, and score what they say; go on where an earlier call was interrupted.

    A report has true speech first, then each model with all its codebooks (AR+NAR in VALL-E's terms) and with the first
    alone (AR stage), both of the same draws, then what its codec makes of true speech. A row's value is the mean over
    seeds; a section has every seed's. Speech that is empty counts as every word missed, and has no voice or opinion.

    Args:
        utterances: the test list.
        folder: made if it is not there. A later call may add models, seeds and judges, but not utterances.
        models: by name, folders that `load` takes.
        generated: by name, folders of files that were made elsewhere, each under its utterance's id; in the setting
            `continual` they begin with the prompt.
        codecs: specs for `open_codec`, where a model's codec is not to be had by the name in its checkpoint.
        load: loads a model, such as `xycodec.lm.load`; needed where there are models.
        setting: what models are prompted with.
        seeds: of sampling.
        first_codebook_only: leaves out the other codebooks, for a model that has no second stage yet.
        judges: models that score. Words are heard in prompt and speech together in the setting `continual`; voice is
            compared with the original prompt's, and opinion asked, of what follows it.
        device: of the codecs.
        title: of the report.
        stage: for progress.

    Raises:
        XycodecError: nothing or no judge was given; names are taken twice; a model's codec cannot be had; an utterance
            lacks what the setting needs; the folder holds another evaluation; no recording can be read.
    """
    if not judges:
        raise XycodecError("nothing to judge by: name a recogniser, a speaker model or an opinion")
    clips = _checked(utterances, setting)
    sources = open_sources(
        models or {},
        generated or {},
        codecs=codecs,
        load=load,
        setting=setting,
        seeds=tuple(seeds),
        first_only=first_codebook_only,
        device=device,
    )
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, utterances, setting, judges, sources)
    digests, unread = _identities(clips)
    readable = {clip: clips[clip] for clip in digests}
    if not readable:
        raise XycodecError(f"none of the {len(clips)} recordings can be read, the first: {next(iter(unread.values()))}")
    for source in sources:
        for number, speak in enumerate(source.speakers):
            name = next(iter(source.rows.values())).title
            with stage(f"{name}: speaking", len(readable)) as done:
                places = {way: row.folders(folder)[number] for way, row in source.rows.items()}
                say_all(speak, places, readable, digests, done)
    rows = [row for source in sources for row in source.rows.values()]
    for judge in judges:
        for row in rows:
            for place in row.folders(folder):
                _judge(judge, row, place, folder, readable, digests, setting, stage)
    names = tuple(name for judge in judges for name in judge.names)
    results = tuple(gathered(row, folder, clips, digests, unread, names) for row in rows)
    truth = {name: pooled(results[0].clips, name) for name in names}
    published = setting is Setting.continual  # no paper has values of the other that compare
    return Evaluation(
        title=title,
        protocol=protocol_of(setting, tuple(seeds), judges),
        versions=package_versions(),
        machine=machine_of(device),
        metrics=names,
        codecs=results,
        sections=(
            speech_section(rows, folder, digests),
            *seeds_section(rows, folder, clips, digests, names),
            *([calibration(truth)] if published else []),
        ),
        warnings=tuple(calibration_warnings(truth)) if published else (),
    )


def audio_file(folder: Path) -> Callable[[str, str], Path]:
    """A function that tells the file of a row's utterance in an evaluation's folder: of its first seed."""

    def file_of(row: str, clip: str) -> Path:
        seeds = sorted((folder / row).glob("seed-*"), key=lambda path: int(path.name.removeprefix("seed-")))
        return (seeds[0] if seeds else folder / row) / AUDIO / f"{clip}.flac"

    return file_of


# ---- before anything is computed ---------------------------------------------------------------


def _checked(utterances: Sequence[Utterance], setting: Setting) -> dict[str, Utterance]:
    if not utterances:
        raise XycodecError("there is no utterance to speak: give a list or a corpus that has some")
    if setting is Setting.cross:
        lacking = [one.id for one in utterances if one.prompt_audio is None]
        if lacking:
            raise ConfigError(f"{lacking[0]}: has no prompt_audio and prompt_text, which the setting cross needs")
    return {one.id: one for one in utterances}


def _claim(
    folder: Path, utterances: Sequence[Utterance], setting: Setting, judges: Sequence[Judge], sources: Sequence[Source]
) -> None:
    """Record what the folder evaluates, or raise XycodecError if it holds another evaluation."""
    wanted: dict[str, Any] = {"utterances": digest_of(sorted(one.id for one in utterances)), "setting": str(setting)}
    path = folder / SETTINGS
    known = read_record(path) if path.exists() else {**wanted, "judges": {}, "weights": {}}
    for what, value in wanted.items():
        if known.get(what) != value:
            raise XycodecError(f"{folder}: holds an evaluation with other {what}: choose another folder")
    claim_judges(folder, known["judges"], judges)
    for source in sources:
        for row in source.rows.values():
            if known["weights"].setdefault(row.name, source.weights) != source.weights:
                raise XycodecError(
                    f"{row.name}: {folder / row.name} holds speech of other weights: remove it and its line in "
                    f"{SETTINGS}, or choose another folder"
                )
    write_record(path, known)
    write_utterances(utterances, folder / TEST_LIST)


def _identities(clips: Mapping[str, Utterance]) -> tuple[dict[str, str], dict[str, str]]:
    digests, unread = {}, {}
    for clip, utterance in clips.items():
        try:
            digests[clip] = utterance.identity()
        except AudioError as error:
            unread[clip] = str(error)
    return digests, unread


# ---- scores ------------------------------------------------------------------------------------


def _judge(
    judge: Judge,
    row: SpeechRow,
    place: Path,
    folder: Path,
    clips: Mapping[str, Utterance],
    digests: Mapping[str, str],
    setting: Setting,
    stage: Stage,
) -> None:
    known = known_scores({clip: (digest,) for clip, digest in digests.items()}, place)
    spoken = takes(place, digests)
    todo = [clip for clip in clips if not settled(known.get(clip, Scores()), judge.names)]
    said = [clip for clip in todo if "begins" in spoken.get(clip, {})]
    originals = takes(folder / ORIGINAL, digests)
    with stage(f"{row.title}: {', '.join(judge.names)}", len(todo)) as done:
        for clip in todo:
            if why := spoken.get(clip, {}).get("empty"):
                scores = _of_nothing(judge, clips[clip], why)
                Journal(place / SCORES).append({"clip": clip, "of": digests[clip], "scores": asdict(scores)})
                done()

        def pair_of(clip: str) -> Pair:
            heard = read_audio(place / AUDIO / f"{clip}.flac", SPEECH_RATE, tell=ignore)
            if isinstance(judge, Recognition):
                original = folder / ORIGINAL / AUDIO / f"{clip}.flac"
                true = read_audio(original, SPEECH_RATE, tell=ignore) if clip in originals else heard
                return Pair(heard, true, clips[clip].text)
            return Pair(heard[spoken[clip]["begins"] :], prompt_of(clips[clip], setting), clips[clip].text)

        judge_clips(judge, said, pair_of, digests.__getitem__, place, done)


def _of_nothing(judge: Judge, utterance: Utterance, why: str) -> Scores:
    """Empty speech misses every word, and has neither voice nor sound."""
    if isinstance(judge, Recognition):
        nothing = np.zeros(0, np.float32)
        return judge.unheard(Pair(nothing, nothing, utterance.text))
    return Scores(missing=dict.fromkeys(judge.names, f"empty speech: {why}"))
