"""Clips of an evaluation: of manifests, folders and public corpora, and samples of them."""

import io
import random
import re
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import soxr
from lhotse import CutSet
from lhotse.cut import Cut

from xycodec.data.clip import language_of, require_sound
from xycodec.data.config import SourceConfig
from xycodec.data.decode import decode
from xycodec.data.manifest import SUFFIXES, is_ours, read_cuts, read_rows, row_cut
from xycodec.data.sources import open_source
from xycodec.errors import AudioError, ConfigError, XycodecError
from xycodec.io.audio import Samples, audio_extensions, audio_files
from xycodec.io.rate import SPEECH_RATE


@dataclass(frozen=True)
class Item:
    """One clip of a corpus."""

    clip: str
    """Name of the clip: a relative path without suffix, unique in the evaluation."""
    source: str
    """The corpus, or the folder in it, that it belongs to."""
    speaker: str | None
    text: str | None
    seconds: float
    cut: Cut | AudioError
    """The clip in its corpus, or why it cannot be had."""
    language: str | None = None
    """Language as the corpus names it: a code or a name."""

    def load(self) -> Samples:
        """The whole clip, mono at 16 kHz (n,). Raises AudioError if it cannot be read or is not finite."""
        if isinstance(self.cut, AudioError):
            raise self.cut
        samples, rate = decode(self.cut, 0.0, self.cut.duration)
        require_sound(self.cut, samples, rate, 0)
        return samples if rate == SPEECH_RATE else np.ascontiguousarray(soxr.resample(samples, rate, SPEECH_RATE))


def open_corpora(specs: Sequence[str], *, limit: int | None = None, seed: int = 0) -> list[Item]:
    """The clips that `specs` name, in their order; or `limit` of them, drawn by `seed` alone.

    A spec is a manifest (JSON lines with audio, duration, speaker, text, or Lhotse cuts), a Lhotse Shar folder, tars
    of WebDataset, a folder or file of audio, or a public corpus as it was unpacked, `NAME:PART:FOLDER`:
    `librispeech:test-clean:FOLDER`, `libritts:test-clean:FOLDER`, `commonvoice:en/test:FOLDER`,
    `voxpopuli:en/test:FOLDER`.

    Raises ConfigError, one line, where a spec gives no clip or a clip is there twice.
    """
    items: list[Item] = []
    for spec in specs:
        found = list(_items(spec))
        if not found:
            raise ConfigError(f"{spec}: holds no clips: check the path")
        items += found
    names = set()
    for item in items:
        if item.clip in names:
            raise ConfigError(f"{item.clip}: two clips have this name: leave one out, or give them other ids")
        names.add(item.clip)
    if limit is None or limit >= len(items):
        return items
    # Drawn from sorted names, so that the order of manifests and folders does not matter.
    drawn = set(random.Random(seed).sample(sorted(names), limit))
    return [item for item in items if item.clip in drawn]


# ---- specs -------------------------------------------------------------------------------------


def _items(spec: str) -> Iterator[Item]:
    name, _, rest = spec.partition(":")
    part, colon, folder = rest.partition(":")
    path = Path(spec)
    if colon and name in CORPORA:
        yield from (_item(cut, f"{name} {part}") for cut in _prepared(name, part, Path(folder)))
    elif path.is_file() and spec.endswith(SUFFIXES):
        if is_ours(path):
            yield from (_row_item(row, path) for row in read_rows(path))
        else:
            yield from (_item(cut, _bare(path.name)) for cut in read_cuts(path))
    elif files := _audio_files(path):
        folder_of = path if path.is_dir() else path.parent
        sharing = Counter(file.with_suffix("") for file in files)
        for file in files:
            item = _row_item({"audio": file.relative_to(folder_of).as_posix()}, folder_of / path.stem)
            # a.wav beside a.mp3
            yield replace(item, clip=item.clip + file.suffix) if sharing[file.with_suffix("")] > 1 else item
    elif not path.exists() and not spec.endswith(".tar"):
        known = ", ".join(f"{known}:PART:FOLDER" for known in CORPORA)
        raise ConfigError(f"{spec}: there is no such file or folder: give a manifest, a folder of audio, or {known}")
    else:
        yield from (_item(cut, path.stem) for cut in open_source(SourceConfig(path=spec)))


def _audio_files(path: Path) -> list[Path]:
    """A file of audio, or those below a folder that is not one of Lhotse's."""
    if path.is_dir() and any(path.glob("cuts.*")):
        return []
    if path.is_dir():
        return audio_files(path)
    return [path] if path.suffix.lower() in audio_extensions() and path.is_file() else []


def _row_item(row: dict[str, Any], manifest: Path) -> Item:
    """The item of a row; its source is the folder of its audio."""
    try:
        return _item(row_cut(manifest.parent, row), _bare(manifest.name))
    except AudioError as error:
        folder = PurePosixPath(row["audio"]).parent
        source = folder.as_posix() if folder.name else _bare(manifest.name)
        return Item(
            clip=safe_name(row["audio"]),
            source=source,
            speaker=row.get("speaker"),
            text=row.get("text"),
            seconds=row.get("duration", 0.0),
            cut=error,
            language=row.get("language"),
        )


def _item(cut: Cut, corpus: str) -> Item:
    said = [words for words in cut.supervisions if (words.text or "").strip()]
    speakers = {words.speaker for words in cut.supervisions if words.speaker}
    folder = PurePosixPath(cut.id).parent
    return Item(
        clip=safe_name(cut.id),
        source=folder.as_posix() if folder.name else corpus,
        speaker=speakers.pop() if len(speakers) == 1 else None,
        text=" ".join((words.text or "").strip() for words in said) or None,
        seconds=cut.duration,
        cut=cut,
        language=language_of(cut),
    )


def clip_files(folder: Path) -> dict[str, Path]:
    """The audio files below a folder by the name that their clip has in a corpus: the path without suffix, made safe.

    Raises ConfigError if there are none, or two of one clip.
    """
    files: dict[str, Path] = {}
    for file in audio_files(folder) if folder.is_dir() else ():
        name = safe_name(file.relative_to(folder).as_posix())
        if name in files:
            raise ConfigError(f"{folder}: {files[name].name} and {file.name} are of one clip: leave one out")
        files[name] = file
    if not files:
        raise ConfigError(f"{folder}: there is no folder with files of audio: check the path")
    return files


def safe_name(name: str) -> str:
    """Turn a clip's name into a plain relative path that cannot lead out of its folder."""
    path = PurePosixPath(name)
    if path.suffix.lower() in audio_extensions():
        path = path.with_suffix("")
    parts = [re.sub(r"[^\w.+@=,-]", "_", part) for part in path.parts if part not in ("/", "..", ".")]
    return "/".join(parts) or "_"


def _bare(name: str) -> str:
    for suffix in reversed(SUFFIXES):
        name = name.removesuffix(suffix)
    return name


# ---- public corpora, by Lhotse's recipes -------------------------------------------------------


def _librispeech(folder: Path, part: str, scratch: str) -> Any:
    from lhotse.recipes import prepare_librispeech

    return prepare_librispeech(folder, dataset_parts=part)[part]


def _libritts(folder: Path, part: str, scratch: str) -> Any:
    from lhotse.recipes import prepare_libritts

    return prepare_libritts(folder, dataset_parts=part)[part]


def _commonvoice(folder: Path, part: str, scratch: str) -> Any:
    from lhotse.recipes import prepare_commonvoice

    language, split = part.split("/")
    return prepare_commonvoice(folder, scratch, languages=language, splits=(split,))[language][split]


def _voxpopuli(folder: Path, part: str, scratch: str) -> Any:
    from lhotse.recipes import prepare_voxpopuli

    language, split = part.split("/")
    annotations = folder / f"asr_{language}.tsv.gz"
    if annotations.is_file():
        shutil.copy(annotations, scratch)  # where the recipe looks before it downloads them
    return prepare_voxpopuli(folder, scratch, lang=language)[split]


CORPORA: dict[str, Callable[[Path, str, str], Any]] = {
    "librispeech": _librispeech,
    "libritts": _libritts,
    "commonvoice": _commonvoice,
    "voxpopuli": _voxpopuli,
}


def _prepared(name: str, part: str, folder: Path) -> Iterable[Cut]:
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder: give the one that {name} was unpacked to")
    with (
        tempfile.TemporaryDirectory(prefix="xycodec.") as scratch,
        warnings.catch_warnings(),
        redirect_stderr(io.StringIO()),  # the recipes' own progress
    ):
        warnings.simplefilter("ignore")
        try:
            parts = CORPORA[name](folder, part, scratch)
            cuts = CutSet.from_manifests(recordings=parts["recordings"], supervisions=parts["supervisions"])
            # The id of what is said, which is what the corpus itself calls the clip.
            return [cut.with_id(cut.supervisions[0].id) for cut in cuts.trim_to_supervisions(keep_overlapping=False)]
        except XycodecError:
            raise
        except Exception as error:  # whatever Lhotse's recipes raise at a folder of another form
            why = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConfigError(f"{folder}: no {part!r} of {name} found there ({why}): check both") from error
