"""One published table again: every row by its commands, measured values beside published ones.

    python runs/reproduce.py TABLE [NAME=VALUE]... [--output FOLDER] [--row NAME]... [--family NAME]...
    python runs/reproduce.py TABLE --debug FOLDER [--steps N]

TABLE is a file of runs/tables/ without its suffix. NAME=VALUE is what the table needs: corpora, a verifier's weights. A
command that lacks one, or a GPU (--cpu does without), is skipped, and the table says so. Run it again and it goes on.
--list prints what would be run. --debug runs the same commands at a size for minutes of a CPU, on a FOLDER that has
train.jsonl and dev.jsonl: recipes are shrunk with what they differ in, published codecs are replaced by --stand-in.
"""

import argparse
import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

OPTIONS = ("{options}", "{debug_options}")
"""Words of a command that stand for a row's list of them, which may be empty."""
TABLES = Path(__file__).parent / "tables"
Run = Callable[[list[str]], str]
"""Runs `xycodec ARGUMENTS` and returns its standard output; raises RuntimeError, one line, if it fails."""


@dataclass
class Cell:
    """What one row's measure gave, or why there is nothing."""

    values: dict[str, float] = field(default_factory=dict)
    skipped: str | None = None


class Reproduction:
    """A table, the values that it needs, and how commands are run."""

    def __init__(self, table: str, given: dict[str, str], output: Path, run: Run, *, gpu: bool, debug: "Debug | None"):
        self.table = yaml.safe_load((TABLES / f"{table}.yaml").read_text(encoding="utf-8"))
        known = self.table.get("needs", {})
        if unknown := sorted(set(given) - set(known)):
            raise SystemExit(f"error: {unknown[0]}: the table needs {', '.join(known) or 'nothing'}")
        self.given, self.output, self.run, self.gpu, self.debug = given, output, run, gpu, debug

    def rows(self, names: list[str], families: list[str]) -> list[dict[str, Any]]:
        """The rows of these names and families; all without either."""
        rows = self.table["rows"]
        return [
            row for row in rows
            if (not names or row["name"] in names) and (not families or row.get("family") in families)
        ]  # fmt: skip

    def commands(self, row: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], list[str] | str]]:
        """Each measure of a row, with its command, or why there is none."""
        for name, measure in self.table["measures"].items():
            if name not in row.get("measures", self.table["measures"]) or (
                measure.get("trains") and "recipe" not in row
            ):
                continue
            yield name, measure, self._command(row, measure)

    def _command(self, row: dict[str, Any], measure: dict[str, Any]) -> list[str] | str:
        if "missing" in row:
            return str(row["missing"])
        template = measure["command"] if self.debug is None else measure.get("debug")
        if template is None:
            return "has no form at debug size"
        if self.debug is None and measure.get("gpu") and not self.gpu:
            return "needs a GPU (--cpu: without)"
        values = self._values(row)
        words: list[str] = []
        for word in template:
            for part in row.get(word[1:-1], []) if word in OPTIONS else [word]:
                for general, own in {"training": row.get("data", ""), **row.get("folders", {})}.items():
                    part = part.replace(f"{{{general}}}", f"{{{own}}}")
                if lacking := [key for key in re.findall(r"\{(\w+)\}", part) if key not in values]:
                    what = self.table.get("needs", {}).get(lacking[0], "another row")
                    return f"needs {lacking[0]}: {what}"
                words.append(re.sub(r"\{(\w+)\}", lambda match: values[match[1]], part))
        return words

    def _values(self, row: dict[str, Any]) -> dict[str, str]:
        slug = _slug(row)
        values = {**self.given, "output": str(self.output), "row": slug}
        values["decoder"] = f"{Path(__file__).parent / 'autoencoder.py'}:Autoencoded"
        if "recipe" in row:
            values |= {"recipe": row["recipe"], "run": str(self.output / "runs" / row.get("run", slug))}
            values["model"] = values["run"] + row.get("suffix", "")
        if "model" in row:
            values["model"] = row["model"]
        if self.debug is not None:
            values |= self.debug.values(row, values, self.output)
        return values

    def cells(self, row: dict[str, Any]) -> dict[str, Cell]:
        """Run a row. What fails is told in its place: other rows are still worth having."""
        if "missing" in row:
            return {"all": Cell(skipped=row["missing"])}
        cells = {}
        trained = self.output / "runs" / row.get("run", _slug(row))
        for name, measure, command in self.commands(row):
            if isinstance(command, str):
                cells[name] = Cell(skipped=command)
                if measure.get("trains") and not trained.exists():
                    break
                continue
            os.environ |= {"AUTOENCODER": str(trained)}  # what runs/autoencoder.py reads
            try:
                said = self.run(command)
                cells[name] = Cell(read_values(measure.get("reads"), command, said))
            except RuntimeError as error:
                cells[name] = Cell(skipped=f"failed: {error}")
                if measure.get("trains"):
                    break
        return cells


def _slug(row: dict[str, Any]) -> str:
    return re.sub(r"\W+", "-", row["name"]).strip("-").lower()


def read_values(reads: str | None, command: list[str], said: str) -> dict[str, float]:
    """Values that a command found, by the metric's name in the table."""
    if reads is None:
        return {}
    if reads == "abx":
        scores = [one for one in json.loads(said)["scores"] if one["kind"] != "codes" and one["error"] is not None]
        return {f"abx_{one['mode']}": one["error"] for one in scores}
    folder = Path(command[1 + max(at for at, word in enumerate(command[:-1]) if word in ("-o", "--output"))])
    if reads == "evaluation":
        with (folder / "summary.csv").open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["grouped_by"] == "all" and row["codec"] != "original"]
        return {row["metric"]: float(row["value"]) for row in rows if row["value"]}
    if reads == "probe":
        return {"probe_wer": json.loads((folder / "result.json").read_text(encoding="utf-8"))["wer"]}
    if reads == "classification":
        result = json.loads(said)
        return {result["dataset"]: result["scores"][result["metric"]]["value"]}
    raise ValueError(reads)


# ---- at debug size -------------------------------------------------------------------------------

WIDTHS = {512: 32, 768: 48, 1024: 64, 1280: 80}


class Debug:
    """The same commands on a folder of speech, with recipes shrunk and published codecs replaced."""

    def __init__(self, speech: Path, stand_in: str, steps: int) -> None:
        self.speech, self.stand_in, self.steps = speech, stand_in, steps

    def values(self, row: dict[str, Any], values: dict[str, str], output: Path) -> dict[str, str]:
        """What placeholders stand for at this size."""
        found = {"debug": str(self.speech), "steps": str(self.steps), "lm": str(output / "lm")}
        if "recipe" in row:
            found["recipe"] = str(self._shrunk(row, values["run"], output))
        elif "model" in row:
            found["model"] = self.stand_in
        return found

    def _shrunk(self, row: dict[str, Any], run: str, output: Path) -> Path:
        """The row's recipe with parts a sixteenth as wide and a twelfth as deep, written into `output`.

        A row may name a small recipe of its own, `debug_recipe`, whose model is left as it is.
        """
        from xycodec.train.recipe_file import load_recipe

        name = row.get("debug_recipe", row["recipe"])
        recipe = load_recipe(name).model_dump(mode="json")
        recipe |= {"output": run, "steps": self.steps, "minutes": None}
        if "debug_recipe" not in row and "model" in recipe:
            recipe["model"] = _small(recipe["model"])
        recipe["data"] |= {
            "train": [str(output / "train.jsonl")], "valid": [str(output / "dev.jsonl")], "clip_seconds": 0.96,
            "batch_clips": 4, "batch_seconds": None, "workers": 0, "buckets": 0,
        }  # fmt: skip
        if recipe["stage"] == "pretrain":
            recipe["data"]["clip_seconds"] = 2.0  # the window: clips that are shorter keep their words
        warmup = min(20, self.steps // 5)
        for key in ("optimizer", "discriminator_optimizer"):
            if key in recipe:
                recipe[key] |= {"lr": 5e-4, "warmup_steps": warmup}
        recipe["engine"] |= {"kind": "single", "device": "cpu", "precision": "float32"}
        recipe["validation"] |= {"every": self.steps, "clips": 16, "transcribe": 8, "listen": 0}
        recipe["checkpoint"] |= {"every": self.steps}
        for key, value in {"towers": None, "semantic_weights": None, "teacher": None, "encoder": None}.items():
            if key in recipe:
                recipe[key] = value
        if recipe.get("teacher_model"):
            recipe["teacher_model"] = _small(recipe["teacher_model"])
        if recipe.get("lm"):
            # It has learned nothing yet, so a frozen one listens no worse: parts and losses are what is tried.
            recipe["lm"] |= {"source": str(output / "lm"), "adapter": _small(recipe["lm"]["adapter"])}
        if "discriminators" in recipe:
            recipe["discriminators"] |= {"channels": 8}
        if recipe["stage"] == "posttrain":
            recipe["weights"] = str(output / "runs" / row["after"])
        path = output / "recipes" / f"{name.replace('/', '-')}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        return path

    def prepare(self, output: Path, run: Run, *, lm: bool) -> None:
        """Make what recipes read: cuts, and a small language model."""
        output.mkdir(parents=True, exist_ok=True)
        for part in ("train", "dev"):
            if not (output / f"{part}.jsonl").exists():
                run(["data", "import", str(self.speech / f"{part}.jsonl"), str(output / f"{part}.jsonl")])
        if lm and not (output / "lm").exists():
            run(["data", "lm", str(output / "train.jsonl"), str(output / "lm"), "--hidden", "32", "--layers", "1"])


SMALLER: dict[str, Callable[[Any], Any]] = {
    "d_model": lambda n: WIDTHS.get(n, 48),
    "dim": lambda n: 48,
    "layers": lambda n: max(1, n // 12),
    "heads": lambda n: 2 if n % 16 else 4,
    "ffn_dim": lambda n: 96,
    "intermediate_dim": lambda n: max(32, n // 32),
    "codebook_size": lambda n: 64,
    "codebook_dim": lambda n: 16,
    "kmeans_iterations": lambda n: 3,
    "conv_dim": lambda n: 16,
    "position_kernel": lambda n: 16,
    "position_groups": lambda n: 4,
    "encoder_width": lambda n: 4,
    "decoder_width": lambda n: 48,
    "acoustic_dim": lambda n: 16,
    "width": lambda n: 4,
    "lstm_layers": lambda n: 1,
    "semantic_dim": lambda n: 48,
    "window_frames": lambda n: n if n > 400 else 25,
}


def _small(tree: Any) -> Any:
    """A model's settings with every size made small, each by its own rule, so that ratios of ablations stay."""
    if not isinstance(tree, dict):
        return tree
    return {
        key: _small(value) if isinstance(value, dict) or key not in SMALLER or value is None else SMALLER[key](value)
        for key, value in tree.items()
    }


# ---- the table as it is printed ------------------------------------------------------------------


def lines(table: dict[str, Any], results: dict[str, dict[str, Cell]]) -> Iterator[str]:
    """Markdown: a line for each row and metric with every published value, and what could not be run."""
    yield f"# {table['title']}\n"
    yield f"Protocol: {' '.join(table['protocol'].split())}\n"
    yield "| row | metric | measured | published | difference | source |"
    yield "|---|---|---|---|---|---|"
    skipped = []
    for row in table["rows"]:
        if row["name"] not in results:
            continue
        measured = {name: value for cell in results[row["name"]].values() for name, value in cell.values.items()}
        told = set()
        for source, values in row.get("published", {}).items():
            for metric, value in values.items():
                told.add(metric)
                found = measured.get(metric)
                shown = ("", "") if found is None else (f"{found:.3g}", f"{found - value:+.3g}")
                yield f"| {row['name']} | {metric} | {shown[0]} | {value:g} | {shown[1]} | {source} |"
        for metric in sorted(set(measured) - told):
            yield f"| {row['name']} | {metric} | {measured[metric]:.3g} | | | |"
        skipped += [(row["name"], name, cell.skipped) for name, cell in results[row["name"]].items() if cell.skipped]
    for row in table["rows"]:
        if row["name"] in results and "direction" in row:
            yield f"\n{row['name']}: published direction: {row['direction']}"
    if skipped:
        yield "\nNot run:\n"
        yield from (f"* {row}, {measure}: {why}" for row, measure, why in skipped)


def xycodec(arguments: list[str]) -> str:
    """Run the command in a process of its own; its progress goes to the terminal."""
    done = subprocess.run([sys.executable, "-m", "xycodec", *arguments], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"`xycodec {' '.join(arguments)}` ended with status {done.returncode}, see above")
    return done.stdout


def has_gpu() -> bool:
    """Whether torch sees one."""
    import torch

    return torch.cuda.is_available()


def main(arguments: list[str] | None = None, run: Run = xycodec) -> str:
    """Run a table and return it as Markdown; it is written to `OUTPUT/table.md` too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=sorted(path.stem for path in TABLES.glob("*.yaml")))
    parser.add_argument("given", nargs="*", metavar="NAME=VALUE")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--row", action="append", default=[])
    parser.add_argument("--family", action="append", default=[])
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--debug", type=Path)
    parser.add_argument("--stand-in", default="xy-mini")
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args(arguments)
    given = dict(text.partition("=")[::2] for text in args.given)
    output = args.output or Path("exp") / "reproduce" / (args.table + ("-debug" if args.debug else ""))
    debug = Debug(args.debug, args.stand_in, args.steps) if args.debug else None
    gpu = args.cpu or (not args.list and not debug and has_gpu())
    whole = Reproduction(args.table, given, output, run, gpu=gpu, debug=debug)
    rows = whole.rows(args.row, args.family)
    if not rows:
        raise SystemExit(f"error: the table has no such row: {', '.join(row['name'] for row in whole.table['rows'])}")
    if args.list:
        return "\n".join(
            f"{row['name']}, {name}: {command if isinstance(command, str) else 'xycodec ' + ' '.join(command)}"
            for row in rows
            for name, _, command in whole.commands(row)
        )
    if debug is not None:
        debug.prepare(output, run, lm=any("xy_tokenizer" in row.get("recipe", "") for row in rows))
    results = {row["name"]: whole.cells(row) for row in rows}
    text = "\n".join(lines(whole.table, results)) + "\n"
    output.mkdir(parents=True, exist_ok=True)
    (output / "table.md").write_text(text, encoding="utf-8")
    return text


if __name__ == "__main__":
    try:
        print(main())
    except RuntimeError as error:
        sys.exit(f"error: {error}")
