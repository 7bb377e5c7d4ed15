"""Texts for clips that have none, as a recogniser hears them.

It is hours of work, so it goes on where it was interrupted: a journal beside the manifest has one row of each clip that
was heard.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from lhotse.cut import Cut, MonoCut, MultiCut

from xycodec.data.clip import language_of, require_sound
from xycodec.data.decode import decode
from xycodec.data.facts import has_text
from xycodec.data.manifest import SUFFIXES, open_text
from xycodec.data.sources import Cuts
from xycodec.errors import AudioError, ConfigError
from xycodec.eval.judges.recognition import Transcriber, language_code
from xycodec.io.audio import Samples
from xycodec.io.files import atomic_path, os_error_line
from xycodec.io.journal import Journal
from xycodec.io.progress import Advance, unwatched
from xycodec.io.rate import SPEECH_RATE

TRANSCRIBED_BY = "transcribed_by"  # custom field of a cut: the recogniser whose text it has
FEWEST_BYTES = 6.0  # of a text for each second; English has some 14, and most scripts no fewer
JOURNAL = ".progress.jsonl"  # after the manifest's name


@dataclass(frozen=True)
class TranscribeReport:
    """Clips in all, those with a text of the recogniser and their seconds, how many are new, and why others have none.

    `left_out` has a line for each clip that was to be heard and has no text. Clips of other languages are not in it.
    """

    clips: int
    transcribed: int
    seconds: float
    made: int
    left_out: tuple[str, ...]


def transcribe_cuts(
    cuts: Cuts,
    transcriber: Transcriber,
    target: Path,
    *,
    name: str,
    language: str = "en",
    advance: Advance = unwatched,
) -> TranscribeReport:
    """Write all `cuts` to `target`, with a text where they had none and are of `language`.

    A cut with such a text has `name` in its custom field `transcribed_by`. None is given where the recogniser looped
    or wrote less than FEWEST_BYTES a second: it stopped early there, or nothing is said. A call goes on where another
    was interrupted; the manifest appears when all is done.

    Args:
        cuts: read twice. Only those whose one supervision names the language are heard.
        transcriber: see `eval.recognition`.
        target: file to write, `.jsonl` or `.jsonl.gz`.
        name: of the recogniser.
        language: a code such as en, or a name.
        advance: told the seconds of each cut.

    Raises:
        ConfigError: `target` has another suffix, cannot be written, or was begun with another recogniser or other
            cuts; or the recogniser does not know the language.
        XycodecError: a manifest is not valid.
    """
    if not target.name.endswith(SUFFIXES):
        raise ConfigError(f"{target}: cuts are written to {' or '.join(SUFFIXES)}: choose such a name")
    code = language_code(language)
    if transcriber.languages is not None and code not in transcriber.languages:
        raise ConfigError(f"{name}: knows no language {language!r}, give a code such as en")
    work = _Work(transcriber, target, name, code)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work.hear_all(cuts, advance)
        return work.write_manifest(cuts)
    except OSError as error:
        raise ConfigError(os_error_line(str(target), "written", error)) from error


class _Work:
    """The manifest that is being made, and the journal that an interrupted call resumes from."""

    def __init__(self, transcriber: Transcriber, target: Path, name: str, language: str) -> None:
        self.transcriber, self.target, self.name, self.language = transcriber, target, name, language
        self.journal = Journal(target.with_name(target.name + JOURNAL))
        self.made = 0

    def hear_all(self, cuts: Cuts, advance: Advance) -> None:
        """Transcribe every cut that lacks a text and has no row in the journal yet."""
        settings = {"recogniser": self.transcriber.about, "language": self.language}
        before = self.journal.rows()
        if before and before[0] != settings:
            raise ConfigError(f"{self.target}: was begun with another recogniser or language: choose another name")
        if not before:
            self.journal.append(settings)
        known = {row["cut"] for row in before[1:]}
        todo = (cut for cut in self._told(cuts, advance) if self._wants(cut) and cut.id not in known)
        while group := list(islice(todo, self.transcriber.batch_size)):
            for row in self._heard(group):
                self.journal.append(row)
                self.made += 1

    def _told(self, cuts: Cuts, advance: Advance) -> Iterator[Cut]:
        for cut in cuts:
            yield cut
            advance(cut.duration)

    def _wants(self, cut: Cut) -> bool:
        language = language_of(cut)
        plain = isinstance(cut, (MonoCut, MultiCut)) and len(cut.supervisions) == 1
        return plain and not has_text(cut) and language is not None and language_code(language) == self.language

    def _heard(self, cuts: list[Cut]) -> list[dict[str, Any]]:
        """The journal's rows of at most `batch_size` cuts, heard in one batch."""
        rows: dict[str, dict[str, Any]] = {}
        clips: dict[str, Samples] = {}
        for cut in cuts:
            try:
                clips[cut.id] = _loaded(cut, self.transcriber.shortest)
            except AudioError as error:
                rows[cut.id] = {"cut": cut.id, "left_out": str(error)}
        if clips:
            heard = self.transcriber(list(clips.values()), [self.language] * len(clips))
            for key, one in zip(clips, heard, strict=True):
                rows[key] = {"cut": key, "text": one.text, "looped": one.looped}
        return [rows[cut.id] for cut in cuts]

    def write_manifest(self, cuts: Cuts) -> TranscribeReport:
        """Write every cut, with the text of its row in the journal."""
        rows = {row["cut"]: row for row in self.journal.rows()[1:]}
        clips, transcribed, seconds, left_out = 0, 0, 0.0, []
        with atomic_path(self.target, ConfigError) as scratch, open_text(scratch, "wt") as file:
            for cut in cuts:
                clips += 1
                if self._wants(cut):
                    row = rows.pop(cut.id, None)
                    if row is None:
                        raise ConfigError(f"{self.target}: {cut.id} came since it was begun: call again")
                    if why := row.get("left_out") or _doubt(cut, row["text"], row["looped"]):
                        left_out.append(why)
                    else:
                        cut = self._with_text(cut, row["text"])
                        transcribed, seconds = transcribed + 1, seconds + cut.duration
                file.write(json.dumps(cut.to_dict(), ensure_ascii=False) + "\n")
            if rows:
                raise ConfigError(f"{self.target}: was begun with other cuts, with {min(rows)}: choose another name")
        return TranscribeReport(clips, transcribed, seconds, self.made, tuple(left_out))

    def _with_text(self, cut: Any, text: str) -> Cut:
        words = replace(cut.supervisions[0], text=text)
        changed: Cut = replace(cut, supervisions=[words], custom={**(cut.custom or {}), TRANSCRIBED_BY: self.name})
        return changed


def _doubt(cut: Cut, text: str, looped: bool) -> str | None:
    """The reason not to learn from a transcript; None if there is none."""
    if looped:
        return f"{cut.id}: the recogniser looped"
    if len(text.encode()) < FEWEST_BYTES * cut.duration:
        return f"{cut.id}: too little is heard for its {cut.duration:.1f} s: {text!r}"
    return None


def _loaded(cut: Cut, shortest: int) -> Samples:
    """The whole cut, mono at 16 kHz. Raises AudioError if it cannot be read, is not finite, or too short."""
    samples, rate = decode(cut, 0.0, cut.duration)
    require_sound(cut, samples, rate, 0)
    if rate != SPEECH_RATE:
        samples = np.ascontiguousarray(soxr.resample(samples, rate, SPEECH_RATE))
    if len(samples) < shortest:
        raise AudioError(f"{cut.id}: shorter than the {shortest} samples that the recogniser needs: leave it out")
    return samples
