"""Music: FMA-small, MagnaTagATune, IRMAS, Medley-solos-DB."""

import csv
import io
from pathlib import Path

from xycodec.errors import ConfigError
from xycodec.eval.classify.builders.common import divided, named_files, table_rows, text_of
from xycodec.eval.classify.clips import LabelledClip, Split

TOP_TAGS = 50


def fma_small(root: Path) -> list[LabelledClip]:
    """FMA-small: `fma_metadata/tracks.csv`, whose header has three lines, and `fma_small/000/000002.mp3`."""
    path = root / "fma_metadata" / "tracks.csv"
    rows = csv.reader(io.StringIO(text_of(path)))
    groups, names = next(rows, []), next(rows, [])
    heads = list(zip(groups, names, strict=False))
    try:
        subset, genre = heads.index(("set", "subset")), heads.index(("track", "genre_top"))
    except ValueError:
        raise ConfigError(f"{path}: has no columns set/subset and track/genre_top: take the data set's own") from None
    next(rows, None)  # the line that names the index
    clips = []
    for row in rows:
        if row[subset] == "small" and row[genre]:
            name = row[0].zfill(6)
            clips.append(LabelledClip(root / "fma_small" / name[:3] / f"{name}.mp3", (row[genre],)))
    return divided(clips, {"train": 0.8, "valid": 0.1, "test": 0.1})


def magnatagatune(root: Path) -> list[LabelledClip]:
    """MagnaTagATune: `annotations_final.csv`, folders `0` to `f`, musicnn's `train_gt_mtt.tsv`, `val_...`, `test_...`.

    The tags are the 50 that most clips of the table have; a clip without any of them is left out.
    """
    table = root / "annotations_final.csv"
    rows = list(table_rows(table, ("clip_id", "mp3_path"), "\t"))
    tags = [name for name in (rows[0] if rows else ()) if name not in ("clip_id", "mp3_path")]
    counts = {tag: sum(row[tag] == "1" for row in rows) for tag in tags}
    top = set(sorted(tags, key=lambda tag: -counts[tag])[:TOP_TAGS])
    by_id = {row["clip_id"]: row for row in rows}
    clips = []
    names: dict[str, Split] = {"train": "train", "val": "valid", "test": "test"}
    for name, split in names.items():
        path = root / f"{name}_gt_mtt.tsv"
        for number, line in enumerate(text_of(path).splitlines(), 1):
            if (row := by_id.get(line.partition("\t")[0])) is None:
                raise ConfigError(f"{path}:{number}: a clip that {table.name} does not have: take musicnn's lists")
            if labels := tuple(tag for tag in tags if tag in top and row[tag] == "1"):
                clips.append(LabelledClip(root / row["mp3_path"], labels, split))
    return clips


def irmas(root: Path) -> list[LabelledClip]:
    """IRMAS: `IRMAS-TrainingData/cel/` and ten more, `IRMAS-TestingData-Part1/Part1/` to `Part3` with a .txt each."""
    clips = [
        LabelledClip(path, (path.parent.name,))
        for path in named_files(root / "IRMAS-TrainingData", "[a-z][a-z][a-z]/*.wav")
    ]
    clips = divided(clips, {"train": 0.8, "valid": 0.2})
    for path in named_files(root, "IRMAS-TestingData-Part[123]/Part[123]/*.wav"):
        labels = tuple(text_of(path.with_suffix(".txt")).split())
        clips.append(LabelledClip(path, labels, "test"))
    return clips


def medley_solos_db(root: Path) -> list[LabelledClip]:
    """Medley-solos-DB: `Medley-solos-DB_metadata.csv`; audio beside it or in `audio/` or `Medley-solos-DB/`."""
    splits: dict[str, Split] = {"training": "train", "validation": "valid", "test": "test"}
    columns = ("subset", "instrument", "instrument_id", "uuid4")
    folder = next((root / name for name in ("audio", "Medley-solos-DB") if (root / name).is_dir()), root)
    clips = []
    for row in table_rows(root / "Medley-solos-DB_metadata.csv", columns):
        name = f"Medley-solos-DB_{row['subset']}-{row['instrument_id']}_{row['uuid4']}.wav"
        clips.append(LabelledClip(folder / name, (row["instrument"],), splits[row["subset"]]))
    return clips
