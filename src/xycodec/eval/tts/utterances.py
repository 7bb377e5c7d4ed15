"""Test lists of text to speech: JSON lines with id, text and audio, read, or made of a corpus.

    {"id": "61-70968-0000", "text": "HE BEGAN A CONFUSED COMPLAINT", "audio": "61-70968-0000.flac"}

`speaker`, and for the setting `cross` `prompt_audio` and `prompt_text`, may be there too. Paths are relative to the
list's folder.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from xycodec.errors import AudioError, ConfigError
from xycodec.eval.corpus import Item, open_corpora, safe_name
from xycodec.io.digests import digest_of, file_digest
from xycodec.io.files import lines_of, os_error_line, write_whole

SHORTEST_S, LONGEST_S = 4.0, 10.0
"""Length of test utterances in VALL-E's paper (Wang et al. 2023, section 5.1)."""
PROMPT_S = 3.0
"""Length of prompts there."""
_REQUIRED, _OPTIONAL = ("id", "text", "audio"), ("speaker", "prompt_audio", "prompt_text")


@dataclass(frozen=True)
class Utterance:
    """A text to be spoken, the recording in which it is spoken, and who speaks."""

    id: str
    """A plain relative path, unique in the list; files of generated speech have this name."""
    text: str
    audio: str
    """Path of the recording, relative to the working directory or absolute."""
    speaker: str | None = None
    prompt_audio: str | None = None
    """Another recording of the speaker, for the setting `cross`, and what is said in it."""
    prompt_text: str | None = None

    def identity(self) -> str:
        """Digest of its text, its prompt's and the bytes of both recordings. Raises AudioError if one is not there."""
        try:
            sounds = [file_digest(Path(path)) for path in (self.audio, self.prompt_audio) if path is not None]
        except OSError as error:
            raise AudioError(os_error_line(str(error.filename), "read", error)) from error
        return digest_of([self.text, self.prompt_text, *sounds])


def open_utterances(spec: str) -> list[Utterance]:
    """The utterances of a test list, or those of 4 to 10 s of a corpus as `open_corpora` takes it.

    Raises ConfigError, one line, where it gives none.
    """
    path = Path(spec)
    if path.is_file() and path.suffix == ".jsonl" and _is_list(path):
        return read_utterances(path)
    return select_utterances(open_corpora([spec]), spec)


def read_utterances(path: Path) -> list[Utterance]:
    """Read a test list. Raises ConfigError with `file:line` for a row that is not valid."""
    found: dict[str, Utterance] = {}
    try:
        lines = lines_of(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(os_error_line(str(path), "read", error)) from error
    for number, line in enumerate(lines, 1):
        utterance = _utterance(line, path, number)
        if utterance.id in found:
            raise ConfigError(f"{path}:{number}: a second {utterance.id}: give every utterance an id of its own")
        found[utterance.id] = utterance
    if not found:
        raise ConfigError(f"{path}: holds no utterances: a row has id, text and audio")
    return list(found.values())


def write_utterances(utterances: Iterable[Utterance], path: Path) -> None:
    """Write a test list, its paths absolute. Raises ConfigError if it cannot be written."""
    rows = []
    for one in utterances:
        prompt = None if one.prompt_audio is None else str(Path(one.prompt_audio).resolve())
        row = asdict(replace(one, audio=str(Path(one.audio).resolve()), prompt_audio=prompt))
        rows.append(json.dumps({key: value for key, value in row.items() if value is not None}, ensure_ascii=False))
    write_whole(path, lambda scratch: scratch.write_text("".join(f"{row}\n" for row in rows), "utf-8"), ConfigError)


def select_utterances(
    items: Sequence[Item], called: str, shortest: float = SHORTEST_S, longest: float = LONGEST_S
) -> list[Utterance]:
    """The clips with a text that last from `shortest` to `longest` seconds, by id.

    The prompt of each for the setting `cross` is the speaker's other clip whose length is nearest to 3 s, whole, so
    that its text is all that is said in it; of two equally near ones the first by id.

    Raises ConfigError if no clip is left, or one is a part of its recording.
    """
    of_speaker: dict[str, list[Item]] = defaultdict(list)
    spoken = [item for item in items if item.text is not None]
    for item in spoken:
        if item.speaker is not None:
            of_speaker[item.speaker].append(item)
    found = []
    for item in sorted(spoken, key=lambda item: item.clip):
        if shortest <= item.seconds <= longest:
            assert item.text is not None
            others = [other for other in of_speaker.get(item.speaker or "", ()) if other.clip != item.clip]
            nearest = min(others, key=lambda other: (abs(other.seconds - PROMPT_S), other.clip), default=None)
            prompt = (None, None) if nearest is None else (_file_of(nearest), nearest.text)
            found.append(Utterance(item.clip, item.text, _file_of(item), item.speaker, *prompt))
    if not found:
        raise ConfigError(f"{called}: has no clip with a text that lasts from {shortest:g} to {longest:g} s")
    return found


def _file_of(item: Item) -> str:
    """The file that is the clip, no more. Raises ConfigError if there is none."""
    if isinstance(item.cut, AudioError):
        raise ConfigError(str(item.cut))
    recording = getattr(item.cut, "recording", None)
    sources = list(recording.sources) if recording is not None else []
    whole = recording is not None and abs(recording.duration - item.cut.duration) < 1e-3
    if not whole or len(sources) != 1 or sources[0].type != "file":
        raise ConfigError(
            f"{item.clip}: is no file of its own: cut the corpus into files, or write a list with id, text, audio"
        )
    return str(sources[0].source)


def _is_list(path: Path) -> bool:
    try:
        with open(path, encoding="utf-8") as file:
            row = json.loads(file.readline() or "{}")
    except (OSError, ValueError):
        return False
    return isinstance(row, dict) and "id" in row and "type" not in row  # Lhotse's cuts have both


def _utterance(line: str, path: Path, number: int) -> Utterance:
    try:
        row: dict[str, Any] = json.loads(line)
        texts = {key: row[key] for key in _REQUIRED} | {key: row[key] for key in _OPTIONAL if row.get(key) is not None}
        fits = all(isinstance(value, str) and value.strip() for value in texts.values())
    except (ValueError, KeyError, TypeError):
        fits = False
    if not fits:
        raise ConfigError(f'{path}:{number}: a row is {{"id": "...", "text": "...", "audio": "file"}}')
    if ("prompt_audio" in texts) != ("prompt_text" in texts):
        raise ConfigError(f"{path}:{number}: prompt_audio and prompt_text go together")
    if safe_name(texts["id"]) != texts["id"]:
        raise ConfigError(
            f"{path}:{number}: the id {texts['id']!r} is no plain file name: take {safe_name(texts['id'])!r}"
        )
    places = {key: str(path.parent / texts[key]) for key in ("audio", "prompt_audio") if key in texts}
    return Utterance(**texts | places)
