"""What linear probes read from codecs: words, speaker and language, on speech that is here, as one table.

    python benchmarks/probes.py --speech DATA/speech --digits free-spoken-digit-dataset/recordings -o exp/probes \
        --model xy-mini:pre_quant --model xy-mini --model random:xy-mini --model log-mel \
        --model exp/x-mini/second:semantic --model exp/x-mini/second --model exp/x-mini/baseline-second

A model is what `xycodec classify` takes, with its tap after a colon (default post_quant). Features are kept in the
output folder, so that a later call with another model computes that one alone. Prints Markdown: accuracy in percent,
mean over folds, and half its interval of 95 %. Features are standardised, because those of unlike models are of unlike
size. Each word is of unseen speakers, each speaker and language of unseen words; the speech of --speech is also what
small models here have heard in training, without these labels; the digits are not.

    python benchmarks/probes.py --speed

times the probes alone: 1,000 clips, five folds, 200 epochs, 1,024 features, 50 labels.
"""

import argparse
import json
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from shared import table
from xycodec.eval.classify.features import LOG_MEL, RANDOM
from xycodec.eval.classify.probe import ClassifierConfig, Pooled, fit_probes
from xycodec.eval.classify.run import ClassifyResult, run_classify
from xycodec.eval.classify.splits import Run

FOLDS = 5
TAKES, COMMANDS, SPEAKERS, WAKES = 6, 10, 17, 30
"""What is drawn of the data, to take minutes: takes of a digit, commands, speakers of words, clips of a wake word."""
TAPS = ("pre_quant", "post_quant", "semantic")
Row = dict[str, Any]


def digits(folder: Path) -> list[Row]:
    """Spoken digits, a fold for each of six speakers: the first `TAKES` of 50 takes of each."""
    found = [(path, *path.stem.split("_")) for path in sorted(folder.glob("[0-9]_*_*.wav"))]
    speakers = sorted({speaker for _, _, speaker, _ in found})
    return [
        {"audio": str(path.resolve()), "label": digit, "fold": speakers.index(speaker), "speaker": speaker}
        for path, digit, speaker, take in found
        if int(take) < TAKES
    ]


def listed(speech: Path, source: str) -> list[Row]:
    """The clips of one source in the manifest of the training speech."""
    with open(speech / "train.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [row | {"audio": str((speech / row["audio"]).resolve())} for row in rows if row["source"].endswith(source)]


def folded(rows: Iterable[Row], label: Callable[[Row], Any], group: Callable[[Row], Any]) -> list[Row]:
    """Rows with labels, in folds that no group is divided by: the groups drawn into five of like size."""
    kept = [{"audio": row["audio"], "label": str(label(row)), "group": str(group(row))} for row in rows]
    groups = sorted({row["group"] for row in kept})
    random.Random(0).shuffle(groups)
    folds = {name: place % FOLDS for place, name in enumerate(groups)}
    return [{"audio": row["audio"], "label": row["label"], "fold": folds[row["group"]]} for row in kept]


def one_of_each(rows: Iterable[Row], key: Callable[[Row], Any], count: int = 1) -> list[Row]:
    """The first `count` rows of each key."""
    chosen: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        if len(chosen[key(row)]) < count:
            chosen[key(row)].append(row)
    return [row for found in chosen.values() for row in found]


def drawn(rows: Sequence[Row], key: Callable[[Row], Any], count: int) -> list[Row]:
    """The rows of `count` keys, drawn at random."""
    keys = random.Random(0).sample(sorted({key(row) for row in rows}), count)
    return [row for row in rows if key(row) in keys]


def command(row: Row) -> str:
    """`.../arabic_commands-01-zoom out-07.opus` -> `zoom out`."""
    return Path(row["audio"]).stem.split("-", 2)[2].rpartition("-")[0]


def tasks(speech: Path, digit_folder: Path | None) -> dict[str, list[Row]]:
    """Every task by its title."""
    commands = drawn(listed(speech, "arabic-speech-commands-dataset"), command, COMMANDS)
    commands = one_of_each(commands, lambda row: (row["speaker"], command(row)))
    words = drawn(listed(speech, "DSPSpeech-20"), lambda row: row["speaker"], SPEAKERS)
    words = one_of_each(words, lambda row: (row["speaker"], row["text"]))
    wake = one_of_each(listed(speech, "wake-word-benchmark"), lambda row: row["text"], WAKES)
    found = {} if digit_folder is None else {"10 digits": digits(digit_folder)}
    return found | {
        "10 commands (ar)": folded(commands, command, lambda row: row["speaker"]),
        "20 words (zh, en)": folded(words, lambda row: row["text"], lambda row: row["speaker"]),
        "6 wake words (en)": folded(wake, lambda row: row["text"], lambda row: row["audio"]),
        "17 speakers": folded(words, lambda row: row["speaker"], lambda row: row["text"]),
        "2 languages": folded(words, lambda row: row["language"], lambda row: row["text"]),
    }


def split_model(text: str) -> tuple[str, str]:
    """`exp/run:semantic` -> the model and its tap."""
    model, _, tap = text.rpartition(":")
    return (model, tap) if model and tap in TAPS else (text, "post_quant")


def cell(result: ClassifyResult) -> str:
    """Accuracy, and half its interval."""
    score = result.scores["accuracy"]
    half = 0.0 if score.high is None else score.high - score.value
    return f"{score.value:.1f} ± {half:.1f}"


def time_training() -> None:
    """Print how long the probes of 1,000 clips take."""
    torch.set_num_threads(1)
    vectors, labels = torch.randn(1000, 1024), torch.randint(0, 50, (1000,))
    fold = np.arange(1000) % FOLDS
    parts = [(fold, (place, (place + 1) % FOLDS)) for place in range(FOLDS)]
    runs = [
        Run(str(test), *map(np.flatnonzero, (~np.isin(of, (test, valid)), of == valid, of == test)))
        for of, (test, valid) in parts
    ]
    start, begun = time.process_time(), time.perf_counter()
    fit_probes(Pooled(vectors), F.one_hot(labels, 50).float(), runs, ClassifierConfig(), several=False)
    used, passed = time.process_time() - start, time.perf_counter() - begun
    print(f"{used:.1f} s of processor time on one thread, {passed:.1f} s by the clock")


def main() -> None:
    """Run every task with every model, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--speed", action="store_true", help="time the probes alone")
    parser.add_argument("--speech", type=Path, help="folder with train.jsonl")
    parser.add_argument("--digits", type=Path, help="folder `recordings` of the free spoken digit dataset")
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--only", action="append", help="title of a task, or its beginning (default: all)")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    if arguments.speed:
        time_training()
        return
    if arguments.speech is None or arguments.output is None or not arguments.model:
        parser.error("give --speech, --model and --output, or --speed")
    chosen = {
        title: rows
        for title, rows in tasks(arguments.speech, arguments.digits).items()
        if not arguments.only or title.startswith(tuple(arguments.only))
    }
    rows, start = [], time.process_time()
    chance = {}
    for text in arguments.model:
        model, tap = split_model(text)
        cells = []
        for title, clips in chosen.items():
            folder = arguments.output / title.split(" (")[0].replace(" ", "-")
            folder.mkdir(parents=True, exist_ok=True)
            manifest = folder / "task.jsonl"
            manifest.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in clips), encoding="utf-8")
            result = run_classify(
                f"jsonl:{manifest}", model, folder / text.replace("/", "_").replace(":", "_"),
                ClassifierConfig(standardise=True), tap=tap, cache=arguments.output / "features", device="cpu",
            )  # fmt: skip
            cells.append(cell(result))
            chance[title] = f"{result.chance:.1f}"
        shown = model if model == LOG_MEL else f"{Path(model).name if not model.startswith(RANDOM) else model}, {tap}"
        rows.append([shown, *cells])
        print(f"{shown}: {cells}", flush=True)
    rows.append(["most frequent label", *(chance[title] for title in chosen)])
    print(f"\n{torch.get_num_threads()} threads, {time.process_time() - start:.0f} s of processor time\n")
    print(table(["", *(f"{title}, {len(clips):,} clips" for title, clips in chosen.items())], rows))


if __name__ == "__main__":
    main()
