"""Sources of speech in an evaluation: recordings, models, files that were made elsewhere, codecs; each has its rows."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xycodec.baselines.open import open_codec
from xycodec.errors import CheckpointError, XycodecError
from xycodec.eval.coding import CodecSpec
from xycodec.eval.generation.sets import AudioSet
from xycodec.eval.results import ORIGINAL
from xycodec.eval.tts.speech import (
    Setting,
    Speak,
    SpeechModel,
    codebooks_of,
    decoded_speech,
    file_speech,
    model_speech,
    true_speech,
)
from xycodec.io.digests import digest_of, file_digest
from xycodec.io.files import os_error_line
from xycodec.models.base import Codec, codes_fingerprint, fingerprint

Load = Callable[[Path], SpeechModel]


@dataclass(frozen=True)
class SpeechRow:
    """A row of the report: one source of speech in one way, as often as it has seeds."""

    name: str
    title: str
    model: str
    seeds: tuple[int, ...] = ()
    """Seeds of a language model; empty of what has none."""

    def folders(self, folder: Path) -> tuple[Path, ...]:
        """The folder of each seed, or the one."""
        return tuple(folder / self.name / f"seed-{seed}" for seed in self.seeds) or (folder / self.name,)


@dataclass(frozen=True)
class Source:
    """A source of speech, and the row of the report that each of its ways fills."""

    rows: Mapping[str, SpeechRow]
    speakers: Sequence[Speak]
    """One of each seed."""
    weights: str
    """Digest of what its audio depends on."""


def open_sources(
    models: Mapping[str, Path],
    generated: Mapping[str, Path],
    *,
    codecs: Sequence[str],
    load: Load | None,
    setting: Setting,
    seeds: tuple[int, ...],
    first_only: bool,
    device: str,
) -> list[Source]:
    """True speech first, then models, generated files, and what the models' codecs make of true speech.

    `evaluate_tts` explains the arguments. Raises XycodecError, one line, if one cannot be had.
    """
    if not models and not generated:
        raise XycodecError("nothing to evaluate: give --model or --generated")
    if not seeds or len(set(seeds)) < len(seeds):
        raise XycodecError("seeds must be given, each once")
    made = [Source({"": SpeechRow(ORIGINAL, "true speech", "recordings")}, [true_speech(setting)], "")]
    given = [(spec, open_codec(spec, device=device)) for spec in codecs]
    decoded = []
    for name, path in models.items():
        assert load is not None
        model = load(path)
        codec = _codec_of(model, path, given, device)
        ways = {"ar": 1} if first_only else {"": codebooks_of(model, codec), "ar": 1}
        rows = {way: SpeechRow(*_named(name, way), str(path), seeds) for way in ways}
        speakers = [model_speech(model, codec, setting, seed, ways) for seed in seeds]
        made.append(Source(rows, speakers, f"{_digest_of_folder(path)} {fingerprint(codec)}"))
        ways = {"roundtrip": codebooks_of(model, codec), "roundtrip-1": 1}
        rows = {way: SpeechRow(*_named(name, way), codec.model_id) for way in ways}
        decoded.append(Source(rows, [decoded_speech(codec, setting, ways)], fingerprint(codec)))
    for name, path in generated.items():
        files = AudioSet(path)
        row = SpeechRow(name, name, str(path))
        made.append(Source({"": row}, [file_speech(files.files, setting)], files.list_hash))
    sources = [*made, *decoded]
    named = [row.name for source in sources for row in source.rows.values()]
    for name in named:
        if named.count(name) > 1 or CodecSpec(name).folder != name:
            raise XycodecError(
                f"{name}: name each model once, in letters, digits and -_.@+, such as --model NAME=FOLDER"
            )
    return sources


def row_names(models: Iterable[str], generated: Iterable[str], first_only: bool) -> list[str]:
    """Names of the rows that `open_sources` will give."""
    ways = ("ar", "roundtrip", "roundtrip-1") if first_only else ("", "ar", "roundtrip", "roundtrip-1")
    return [ORIGINAL, *(_named(name, way)[0] for name in models for way in ways), *generated]


def _named(name: str, way: str) -> tuple[str, str]:
    """Name and title of a way's row."""
    titles = {"": "AR+NAR", "ar": "AR stage", "roundtrip": "codec alone", "roundtrip-1": "codec alone, first codebook"}
    return (f"{name}-{way}" if way else name), f"{name}: {titles[way]}"


def _codec_of(model: SpeechModel, path: Path, given: Sequence[tuple[str, Codec]], device: str) -> Codec:
    """The codec whose codes a model speaks. Raises CheckpointError if none is."""
    for _, codec in given:
        if codes_fingerprint(codec) == model.codec_hash:
            return codec
    try:
        codec = open_codec(model.codec_name, device=device)
    except XycodecError as error:
        raise CheckpointError(f"{path}: its codec cannot be had ({error}): give it by --codec") from None
    if codes_fingerprint(codec) != model.codec_hash:
        raise CheckpointError(
            f"{path}: speaks codes of another {model.codec_name} than the one here, whose hash is "
            f"{codes_fingerprint(codec)} and not {model.codec_hash}: give the right one by --codec"
        )
    return codec


def _digest_of_folder(path: Path) -> str:
    """Digest of all files of a model, or of its one."""
    try:
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        return digest_of([[file.name, file_digest(file)] for file in files])
    except OSError as error:
        raise CheckpointError(os_error_line(str(path), "read", error)) from error
