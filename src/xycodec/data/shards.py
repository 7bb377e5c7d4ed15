"""Sharded corpora as light Lhotse cuts: WebDataset tars and Lhotse Shar folders, read shard by shard.

A cut names the archive, and the place and size of its audio there. Whoever decodes the clip reads those bytes; whoever
only passes over it reads headers.
"""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from lhotse import AudioSource, MonoCut, MultiCut, Recording, SupervisionSegment
from lhotse.cut import Cut

from xycodec.data.manifest import read_cuts
from xycodec.data.tars import TarMember, members
from xycodec.errors import AudioError, ConfigError
from xycodec.io.audio import audio_extensions, open_audio

MEMBER = "tar_member"  # custom field of a cut: the TarMember of its audio, as a list
_NO_AUDIO = ".nodata"  # how Shar marks a cut without a recording


class WebDatasetCuts:
    """The clips of WebDataset tars: KEY.json and KEY.mp3 (or .flac, .wav, .ogg, .opus, ...), side by side.

    Of the JSON, `text`, `duration` (seconds), `speaker` and `language` are used (the names of Emilia). A cut's id
    is the tar's name and the key. Iterating goes from tar to tar, in order, and may be repeated.
    """

    def __init__(self, paths: list[Path]) -> None:
        self.files = paths

    @property
    def parts(self) -> "list[WebDatasetCuts]":
        """Tar after tar."""
        return [WebDatasetCuts([path]) for path in self.files]

    def __iter__(self) -> Iterator[Cut]:
        for path in self.files:
            waiting: dict[str, TarMember | dict[str, Any]] = {}
            for name, member in members(path):
                key, suffix = name.rsplit(".", 1) if "." in name else (name, "")
                if PurePosixPath(name).name.startswith("."):
                    continue  # what macOS leaves beside files is none
                if suffix != "json" and f".{suffix.lower()}" not in audio_extensions():
                    continue
                found = _object(path, name, member) if suffix == "json" else member
                other = waiting.pop(key, None)
                if other is None:
                    waiting[key] = found
                elif isinstance(found, TarMember) and isinstance(other, dict):
                    yield _cut(f"{path.stem}/{key}", found, other)
                elif isinstance(found, dict) and isinstance(other, TarMember):
                    yield _cut(f"{path.stem}/{key}", other, found)
                else:
                    raise ConfigError(f"{path}: two members are {name!r}, or have its key: rename one")
            for key, found in waiting.items():
                if isinstance(found, TarMember):
                    yield _cut(f"{path.stem}/{key}", found, {})


class SharCuts:
    """The cuts of a Lhotse Shar folder: `cuts.*.jsonl` (or `.jsonl.gz`) beside `recording.*.tar`, in step.

    Lhotse's own reader hands out every cut with its audio; these say where theirs lies.
    """

    def __init__(self, shards: list[tuple[Path, Path]]) -> None:
        self.shards = shards
        self.files = [path for shard in shards for path in shard]

    @property
    def parts(self) -> "list[SharCuts]":
        """Shard after shard."""
        return [SharCuts([shard]) for shard in self.shards]

    def __iter__(self) -> Iterator[Cut]:
        for manifest, tar in self.shards:
            audio = (found for found in members(tar) if not found[0].endswith((".json", ".nometa")))
            for cut in read_cuts(manifest):
                name, member = next(audio, ("nothing", None))
                if member is None or name.rsplit(".", 1)[0] != cut.id:
                    raise ConfigError(f"{tar}: found {name} where {manifest.name} has {cut.id}: export the shard again")
                if not name.endswith(_NO_AUDIO):
                    yield _with_member(cut, member)


def open_shar(folder: Path) -> SharCuts:
    """The cuts of a Shar folder. Raises ConfigError if manifests and tars are not as many."""
    manifests = sorted(folder.glob("cuts.*.jsonl")) + sorted(folder.glob("cuts.*.jsonl.gz"))
    tars = sorted(folder.glob("recording.*.tar"))
    if not manifests or len(manifests) != len(tars):
        what = f"{len(manifests)} cuts.*.jsonl.gz and {len(tars)} recording.*.tar"
        raise ConfigError(f"{folder}: {what}: a Shar folder has as many of either; name WebDataset tars by a glob")
    return SharCuts(list(zip(manifests, tars, strict=True)))


def member_of(cut: Cut) -> TarMember | None:
    """Place of a cut's audio in its shard; None for a cut that is in none."""
    place = (getattr(cut, "custom", None) or {}).get(MEMBER)
    return TarMember(*place) if place else None


def _object(path: Path, name: str, member: TarMember) -> dict[str, Any]:
    with member.open() as file:
        data = file.read()
    try:
        row = json.loads(data)
    except ValueError as error:
        raise ConfigError(f"{path}: {name} is not JSON ({error}): repair the tar") from error
    if not isinstance(row, dict):
        raise ConfigError(f"{path}: {name} holds no JSON object: repair the tar")
    return row


def _cut(key: str, member: TarMember, row: dict[str, Any]) -> Cut:
    given = row.get("duration")
    known = float(given) if isinstance(given, (int, float)) and 0 < given < math.inf else None
    rate, channels, seconds = _facts(member, known)
    source = AudioSource(type="shar", channels=list(range(channels)), source="")
    samples = max(1, round(seconds * rate))
    cut = Recording(key, [source], rate, samples, samples / rate).to_cut()
    words = {name: row[name] for name in ("text", "speaker", "language") if isinstance(row.get(name), str)}
    cut.supervisions = [SupervisionSegment(key, key, 0.0, cut.duration, **words)]
    return _with_member(cut, member)


def _facts(member: TarMember, seconds: float | None) -> tuple[int, int, float]:
    """Rate in Hz, channels and seconds, which are read from the audio if they are not known."""
    for whole in (False, True) if seconds else (True,):
        try:
            with member.open() as file, open_audio(file, whole=whole) as audio:
                return audio.sample_rate, audio.channels, seconds or audio.length() / audio.sample_rate
        except AudioError:
            continue  # junk may lie before it
    # The clip stays in, so that whoever decodes it can list it as unreadable.
    return 48_000, 1, seconds or 1.0


def _with_member(cut: Cut, member: TarMember) -> Cut:
    if not isinstance(cut, (MonoCut, MultiCut)):
        raise ConfigError(f"{member.path}: {cut.id} is a {type(cut).__name__}: a shard holds plain cuts")
    cut.custom = (cut.custom or {}) | {MEMBER: [os.path.abspath(member.path), member.offset, member.size]}
    return cut
