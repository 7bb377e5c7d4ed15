"""Phone ABX on synthetic speech: the bundled model, the same network untrained, and log-mels; and how fast that is.

    python benchmarks/abx.py [--sentences N] [--least-rate HZ] [--threads N] [--json OUT]

flite tells when each phone ends that it speaks, so its voices give an item file without an aligner. Synthetic voices
are far more regular than people: errors are lower than on LibriSpeech and compare with each other only. Of flite's
voices, kal16 is left out: the times that it tells drift by a tenth of a second in three. Prints Markdown.
"""

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import torch

from xycodec.checkpoints.build import random_codec
from xycodec.checkpoints.load import load_codec
from xycodec.data.synthetic.utterances import grammar
from xycodec.eval.abx.distances import Features, item_frames
from xycodec.eval.abx.items import COLUMNS, Omissions, PhoneItem, read_items
from xycodec.eval.abx.run import LEAST_RATE, AbxResult, abx_error, run_abx
from xycodec.eval.abx.triples import Block, plan_triples
from xycodec.io.audio import read_audio
from xycodec.nn.mel import LogMel

VOICES = ("slt", "rms", "awb")
MODES = ("within", "across")
PAUSE = "pau"
SHORTEST_S = 0.03  # as aligners give


# ---- an item file without an aligner -----------------------------------------------------------


def speak(folder: Path, sentences: int, seed: int = 0) -> Path:
    """Let every voice speak the same sentences into `folder`; returns the item file."""
    draw = Random(seed)
    texts = [grammar("en").sentence(draw) for _ in range(sentences)]
    lines = [COLUMNS]
    for voice in VOICES:
        for number, text in enumerate(texts):
            name = f"{voice}-{number:04}"
            command = ["flite", "-voice", voice, "-psdur", "-t", text, "-o", str(folder / f"{name}.wav")]
            spoken = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            lines += phones(name, voice, spoken)
    items = folder / "phones.item"
    items.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return items


def phones(name: str, voice: str, spoken: str) -> Iterator[str]:
    """Lines of an item file from what flite prints: `pau:0.184 dh:0.236 ...`, phones and when they end."""
    timed = [(phone, float(end)) for phone, end in (part.split(":") for part in spoken.split())]
    for (before, onset), (phone, offset), (after, _) in zip(timed, timed[1:], timed[2:], strict=False):
        if phone != PAUSE and offset - onset >= SHORTEST_S:
            yield f"{name} {onset:.3f} {offset:.3f} {phone} {before} {after} {voice}"


# ---- features that are no codec ----------------------------------------------------------------


def log_mels(items: list[PhoneItem], folder: Path) -> Features:
    """Whisper's 80 log-mels, 100 frames a second."""
    mel = LogMel(80, 16_000)
    rows: dict[str, torch.Tensor] = {}
    frames, total = [], 0
    starts: dict[str, int] = {}
    for item in items:
        if item.file not in rows:
            audio = torch.from_numpy(read_audio(folder / f"{item.file}.wav"))
            rows[item.file] = mel(audio[None])[0].T
            starts[item.file], total = total, total + len(rows[item.file])
        frames.append(starts[item.file] + item_frames(item.onset, item.offset, 100.0, len(rows[item.file])))
    return Features(torch.cat(list(rows.values())).numpy(), frames, "angle")


# ---- the whole ---------------------------------------------------------------------------------


def timed(features: Features, blocks: list[Block]) -> tuple[float | None, float]:
    """The error, and triples a second."""
    start = time.perf_counter()
    error = abx_error(features, blocks)
    return error, sum(block.triples for block in blocks) / (time.perf_counter() - start)


def rows_of(title: str, result: AbxResult) -> Iterator[tuple[str, str, float | None, float | None]]:
    """Title, features, within, across."""
    scores = {(score.kind, score.n_q, score.mode): score.error for score in result.scores}
    for kind, n_q in dict.fromkeys((score.kind, score.n_q) for score in result.scores):
        yield title, f"{kind}, {n_q} codebooks", scores[kind, n_q, "within"], scores[kind, n_q, "across"]


def measure(folder: Path, sentences: int, least_rate: float) -> dict[str, Any]:
    """Errors of everything, and the speed on log-mels."""
    path = speak(folder, sentences)
    trained = load_codec("xy-mini")
    found: list[tuple[str, str, float | None, float | None]] = []
    for title, codec in (("xy-mini", trained), ("the same, untrained", random_codec(trained.config))):
        result = run_abx(codec, path, folder, n_q=(1, codec.n_q), least_rate=least_rate)
        found += rows_of(title, result)
    items = read_items(path, Omissions())
    mels = log_mels(items, folder)
    plans = {mode: plan_triples(items, mode, seed=0, max_group=10, max_x=5) for mode in MODES}
    timings = {mode: timed(mels, blocks) for mode, blocks in plans.items()}
    found.append(("log-mel", "80 at 100 Hz", timings["within"][0], timings["across"][0]))
    return {
        "rows": found,
        "counts": [asdict(one) for one in result.counts],
        "remarks": result.remarks,
        "frame_rate": result.frame_rate,
        "triples_per_s": {mode: speed for mode, (_, speed) in timings.items()},
        "threads": torch.get_num_threads(),
    }


def report(found: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| features | | within, % | across, % |", "|---|---|---|---|"]
    lines += [f"| {title} | {what} | {within:.2f} | {across:.2f} |" for title, what, within, across in found["rows"]]
    lines.append("")
    for one in found["counts"]:
        speed = found["triples_per_s"][one["mode"]]
        lines.append(
            f"{one['mode']}: {one['triples']:,} triples in {one['cells']:,} cells, "
            f"{speed:,.0f} triples a second on log-mels with {found['threads']} threads"
        )
    lines.append(f"codec frames repeated to {found['frame_rate']:g} Hz")
    return "\n".join([*lines, *found["remarks"]])


def main() -> None:
    """Speak, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sentences", type=int, default=100)
    parser.add_argument("--least-rate", type=float, default=LEAST_RATE, metavar="HZ")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the numbers to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), args.sentences, args.least_rate)
    print(report(found))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
