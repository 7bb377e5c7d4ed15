"""The result of an evaluation of speech: its rows, averaged over seeds, and the sections of its report."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

from xycodec.errors import AudioError
from xycodec.eval.judges.base import Judge
from xycodec.eval.record import known_scores, only_asked
from xycodec.eval.results import METRICS, ClipResult, CodecResult, Scores, Section, pooled
from xycodec.eval.tts.sources import SpeechRow
from xycodec.eval.tts.speech import Setting, takes
from xycodec.eval.tts.utterances import PROMPT_S, Utterance
from xycodec.io.audio import audio_info


def gathered(
    row: SpeechRow,
    folder: Path,
    clips: Mapping[str, Utterance],
    digests: Mapping[str, str],
    unread: Mapping[str, str],
    names: Sequence[str],
) -> CodecResult:
    """A row of the report: every utterance, its values the means over seeds."""
    by_seed = [_results(place, clips, digests, unread, names) for place in row.folders(folder)]
    together = tuple(_averaged([of_seed[clip] for of_seed in by_seed]) for clip in clips)
    return CodecResult(row.name, row.title, row.model, None, None, None, None, (), together)


def _results(
    place: Path,
    clips: Mapping[str, Utterance],
    digests: Mapping[str, str],
    unread: Mapping[str, str],
    names: Sequence[str],
) -> dict[str, ClipResult]:
    """Every utterance as one folder has it."""
    scores = known_scores({clip: (digest,) for clip, digest in digests.items()}, place)
    spoken = takes(place, digests)
    results = {}
    for clip, utterance in clips.items():
        error = unread.get(clip) or spoken.get(clip, {}).get("error")
        kept = Scores() if error else only_asked(scores.get(clip, Scores()), names)
        results[clip] = ClipResult(
            clip, "test list", utterance.speaker, utterance.text, _seconds(utterance), scores=kept, error=error
        )
    return results


def _seconds(utterance: Utterance) -> float:
    """Length of the recording; 0 where it cannot be read, which its row says."""
    try:
        return audio_info(utterance.audio).duration
    except AudioError:
        return 0.0


def _averaged(results: Sequence[ClipResult]) -> ClipResult:
    """One utterance over seeds: means of the values, over the seeds that have one; what was heard is the first's."""
    first = results[0]
    scored = [one for one in results if one.error is None]
    if not scored:
        return first
    values: dict[str, float] = {}
    for name in sorted({name for one in scored for name in one.scores.values}):
        values[name] = fmean(one.scores.values[name] for one in scored if name in one.scores.values)
    missing: dict[str, str] = {}
    weights: dict[str, float] = {}
    for one in scored:
        missing |= {name: why for name, why in one.scores.missing.items() if name not in values}
        weights |= one.scores.weights
    heard = scored[0].scores
    looped = any(one.scores.looped for one in scored)
    scores = Scores(values, missing, weights, heard.transcript, heard.reference, looped)
    return ClipResult(first.clip, first.source, first.speaker, first.text, first.seconds, scores=scores)


# ---- sections ----------------------------------------------------------------------------------


def speech_section(rows: Sequence[SpeechRow], folder: Path, digests: Mapping[str, str]) -> Section:
    """Counts of empty speech, of retries, of speech that was cut off, and of failures."""
    lines = []
    for row in rows:
        spoken = [one for place in row.folders(folder) for one in takes(place, digests).values()]
        empty, failed = sum("empty" in one for one in spoken), sum("error" in one for one in spoken)
        capped, retries = sum(bool(one.get("hit_cap")) for one in spoken), sum(one.get("retries", 0) for one in spoken)
        seeds = ", ".join(map(str, row.seeds)) or "-"
        lines.append((row.title, seeds, str(len(spoken)), str(empty), str(retries), str(capped), str(failed)))
    heads = ("speech", "seeds", "utterances", "empty (EOS first)", "retries of empty", "length cap hit", "failed")
    note = (
        "Counts are over all seeds. Empty speech ended before its first frame, also when drawn again: every word of it "
        "counts as missed."
    )
    return Section("Speech", heads, tuple(lines), note)


def seeds_section(
    rows: Sequence[SpeechRow],
    folder: Path,
    clips: Mapping[str, Utterance],
    digests: Mapping[str, str],
    names: Sequence[str],
) -> Iterator[Section]:
    """Every seed's values, their mean and spread; nothing where no row has seeds."""
    lines = []
    for row in rows:
        if row.seeds:
            by_seed = [list(_results(place, clips, digests, {}, names).values()) for place in row.folders(folder)]
            for name in names:
                values = [pooled(results, name) for results in by_seed]
                lines.append((row.title, METRICS[name].title, *_spread(values, METRICS[name].digits)))
    if lines:
        heads = ("speech", "metric", "seeds' values", "mean", "spread", "least", "most")
        yield Section(
            "Seeds", heads, tuple(lines), "Spread is the standard deviation over seeds, of their number less one."
        )


def _spread(values: Sequence[float | None], digits: int) -> tuple[str, ...]:
    known = [value for value in values if value is not None]
    shown = ", ".join("-" if value is None else f"{value:.{digits}f}" for value in values)
    if not known:
        return (shown, "-", "-", "-", "-")
    spread = f"{stdev(known):.{digits}f}" if len(known) > 1 else "-"
    return (shown, f"{fmean(known):.{digits}f}", spread, f"{min(known):.{digits}f}", f"{max(known):.{digits}f}")


def protocol_of(setting: Setting, seeds: Sequence[int], judges: Sequence[Judge]) -> dict[str, str]:
    """Every choice of the evaluation, in words."""
    own = setting is Setting.continual
    told = (
        f"continual: the codes of the utterance's first {PROMPT_S:g} s, encoded without the rest, and the whole text; "
        "words are heard in prompt and speech together, both decoded from codes"
        if own
        else "cross: the codes of another utterance of the speaker, and its text before the one to speak; words are "
        "heard in what follows the prompt"
    )
    true = "the recording's rest against its beginning" if own else "the recording against the prompt"
    choices = {
        "setting (our choice where the paper is silent)": told,
        "voice": "what follows the prompt against the original prompt, never its decoding",
        "opinion": "of what follows the prompt, 16 kHz",
        "true speech": f"measured the same way: {true}",
        "empty speech": "counts as every word missed; it has no voice and no opinion",
        "seeds": f"{', '.join(map(str, seeds))}; values are means over them",
    }
    return choices | {", ".join(judge.names): judge.describe() for judge in judges}
