"""Manifests for smollm.sh: English single words, to learn and held out.

python runs/smollm_data.py SPEECH FOLDER      SPEECH: a folder with train.jsonl and its recordings, see docs/smollm.md

Held out are two speakers of dsp20, and every 60th of the other words, whose corpora name no speakers: their voices may
be in both.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SPEAKERS = "dsp20"
WORDS = ("picovoice_wakeword_en", "mycroft_precise", SPEAKERS)
HELD_OUT_SPEAKERS = ("dsp20-33", "dsp20-34")
LONGEST = 2.5  # seconds

Row = dict[str, Any]


def words(speech: Path) -> Iterator[Row]:
    """Clips of English words in the manifest's order, with whole paths."""
    for line in (speech / "train.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        known = row["language"] == "en" and any(part in row["audio"] for part in WORDS)
        if known and row["text"] and row["duration"] <= LONGEST:
            yield row | {"audio": str((speech / row["audio"]).resolve())}


def main(speech: Path, folder: Path) -> None:
    """Write words.jsonl and dev_words.jsonl into `folder`."""
    parts: dict[str, list[Row]] = {"words": [], "dev_words": []}
    for number, row in enumerate(words(speech)):
        held_out = row["speaker"] in HELD_OUT_SPEAKERS if SPEAKERS in row["audio"] else number % 60 == 0
        parts["dev_words" if held_out else "words"].append(row)
    for name, rows in parts.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        print(f"{name}: {len(rows)} clips, {sum(row['duration'] for row in rows) / 60:.1f} min")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
