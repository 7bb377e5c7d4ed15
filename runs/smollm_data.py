"""Manifests for smollm.sh: English single words and spoken orders, to learn and held out.

python runs/smollm_data.py SPEECH FOLDER      SPEECH: a folder with train.jsonl, as docs/smollm.md describes

Held out are every tenth order, two speakers of dsp20, and every 60th of the other words; the corpora of the others
name no speakers, so that voices may be in both.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ORDERS, SPEAKERS = "picovoice_s2i_en", "dsp20"
WORDS = ("picovoice_wakeword_en", "mycroft_precise", SPEAKERS)
HELD_OUT_SPEAKERS = ("dsp20-33", "dsp20-34")
LONGEST_ORDER, LONGEST_WORD = 5.5, 2.5  # seconds

Row = dict[str, Any]


def english(speech: Path) -> Iterator[Row]:
    """English clips of `speech` in the manifest's order, with whole paths."""
    for line in (speech / "train.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["language"] == "en":
            yield row | {"audio": str((speech / row["audio"]).resolve())}


def orders_and_words(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Spoken orders by their names, and single words in the order that they have."""
    orders = sorted((row for row in rows if ORDERS in row["audio"]), key=lambda row: str(row["audio"]))
    words = [row for row in rows if any(part in row["audio"] for part in WORDS)]
    return orders, [row for row in words if row["text"] and row["duration"] <= LONGEST_WORD]


def main(speech: Path, folder: Path) -> None:
    """Write words.jsonl, orders.jsonl and dev_words.jsonl, dev_orders.jsonl into `folder`."""
    orders, words = orders_and_words(list(english(speech)))
    parts: dict[str, list[Row]] = {name: [] for name in ("orders", "words", "dev_orders", "dev_words")}
    for number, row in enumerate(orders):
        if row["duration"] <= LONGEST_ORDER:
            parts["orders" if number % 10 else "dev_orders"].append(row)
    for number, row in enumerate(words):
        held_out = row["speaker"] in HELD_OUT_SPEAKERS if SPEAKERS in row["audio"] else number % 60 == 0
        parts["dev_words" if held_out else "words"].append(row)
    for name, clips in parts.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in clips)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        print(f"{name}: {len(clips)} clips, {sum(row['duration'] for row in clips) / 60:.1f} min")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
