"""Scripts of the published tables: rows are the papers', commands are the program's, and they run at tiny size."""

import contextlib
import importlib.util
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import typer
import yaml
from tests.training_runs import smallest_config

from xycodec.checkpoints.build import random_codec
from xycodec.checkpoints.save import save_codec
from xycodec.cli import app as cli
from xycodec.eval.report.published import published_points
from xycodec.train.recipe_file import BUNDLED, load_recipe

RUNS = Path(__file__).parents[2] / "runs"
SCRIPTS = sorted(path for path in RUNS.glob("*.sh") if "reproduce.py" in path.read_text())
COMMANDS = typer.main.get_command(cli.app).commands


@pytest.fixture(scope="module")
def reproduce():
    spec = importlib.util.spec_from_file_location("reproduce", RUNS / "reproduce.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["reproduce"] = module  # where dataclasses look
    spec.loader.exec_module(module)
    return module


TABLES = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((RUNS / "tables").glob("*.yaml"))}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_name_a_table_and_say_what_they_need(script):
    text = script.read_text()
    tables = re.findall(r"^table=(\w+)|table=(\w+)$|reproduce\.py\" (\w+)", text, flags=re.MULTILINE)
    named = {name for found in tables for name in found if name}
    assert named
    assert named <= set(TABLES)
    for name in re.findall(r"\"(\w+)=\$\d\"", text):
        assert all(name in TABLES[table]["needs"] for table in named)
    subprocess.run(["bash", "-n", script], check=True)
    assert script.stat().st_mode & 0o111


def test_every_table_has_a_script():
    assert {name for name in TABLES if any(name in path.read_text() for path in SCRIPTS)} == set(TABLES)


def test_rows_of_the_main_table_and_of_abx_have_the_published_values():
    known = {point.codec: point.values for point in published_points()}
    for row in TABLES["xy_main"]["rows"]:
        for source, values in row["published"].items():
            version = source.replace(" 2506.23325", "")
            name = f"XY-Tokenizer ({version})" if row["name"] == "XY-Tokenizer" else row["name"]
            assert values == known[name], name
    for row in TABLES["xcodec_abx"]["rows"]:
        name = row["name"].replace("Acoustic", "X-Codec's acoustic")
        assert next(iter(row["published"].values())) == {k: v for k, v in known[name].items() if k.startswith("abx")}
    assert {"ACL 2026", "arXiv 2506.23325"} == set(TABLES["xy_main"]["rows"][0]["published"])


@pytest.mark.parametrize("name", TABLES)
def test_every_row_can_be_run_or_says_why_not_and_its_commands_are_understood(name, reproduce, tmp_path):
    table = TABLES[name]
    given = {need: f"/{need}" for need in table["needs"]}
    whole = reproduce.Reproduction(name, given, tmp_path, None, gpu=True, debug=None)
    lacking = set()
    for row in table["rows"]:
        commands = list(whole.commands(row))
        assert commands
        for _, _, command in commands:
            if "missing" in row:
                assert command == row["missing"]
                continue
            assert isinstance(command, list), (row["name"], command)
            if command[0] not in COMMANDS:
                lacking.add(command[0])
                continue
            COMMANDS[command[0]].make_context(command[0], command[1:])
        if "recipe" in row and "debug_recipe" not in row:
            assert (BUNDLED / row["recipe"]).is_file()
            assert row["data"] in table["needs"]
    assert lacking <= {"classify", "evaluate-generation"}
    # Without anything given, and without a GPU, every row says what it lacks.
    nothing = reproduce.Reproduction(name, {}, tmp_path, None, gpu=False, debug=None)
    for row in table["rows"]:
        for _, _, command in nothing.commands(row):
            assert isinstance(command, str)
            assert command == row.get("missing") or command.startswith("needs ")


def test_shrunk_recipes_are_recipes_and_keep_what_they_differ_in(reproduce, tmp_path):
    debug = reproduce.Debug(tmp_path, "xy-mini", 10)
    shrunk = {}
    for table in TABLES.values():
        for row in table["rows"]:
            if "recipe" in row and "debug_recipe" not in row:
                made = load_recipe(debug._shrunk(row, str(tmp_path / "run"), tmp_path))
                shrunk[row["recipe"].rpartition("/")[2].removesuffix(".yaml")] = made
    assert shrunk["no_semantic_small"].model.semantic_encoder is None
    assert shrunk["no_semantic_medium"].model.acoustic_encoder.d_model > shrunk["base"].model.acoustic_encoder.d_model
    assert shrunk["towers_large"].model.acoustic_encoder.layers > shrunk["towers_base"].model.acoustic_encoder.layers
    assert shrunk["lm_trainable"].lm.trainable
    assert shrunk["no_asr"].lm is None
    assert [shrunk[name].loss.distillation for name in ("x1", "x2", "x3")] == [24, 120, 600]
    assert shrunk["baseline"].model.semantic is None
    for one in shrunk.values():
        assert one.steps == 10


# ---- at tiny size ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """A folder with train.jsonl, dev.jsonl, phones.item and labels.jsonl: noise, words and labels."""
    folder = tmp_path_factory.mktemp("speech")
    generator = np.random.default_rng(0)
    for part, clips in (("train", 6), ("dev", 2)):
        rows = []
        for number in range(clips):
            samples = 14_400 + 1600 * (number % 3)
            sf.write(folder / f"{part}{number}.wav", 0.2 * generator.standard_normal(samples).clip(-3, 3), 16_000)
            row = {"audio": f"{part}{number}.wav", "duration": samples / 16_000, "speaker": "mn"[number % 2]}
            rows.append(row | {"text": "up and down"})
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = ["#file onset offset #phone prev-phone next-phone speaker"]
    for number in range(6):
        lines += [
            f"train{number} {0.05 + 0.2 * step:.2f} {0.2 + 0.2 * step:.2f} {'ab'[step % 2]} p t {'mn'[number % 2]}"
            for step in range(4)
        ]
    (folder / "phones.item").write_text("\n".join(lines) + "\n")
    labelled = [{"audio": f"train{n}.wav", "label": "ab"[n % 2], "fold": n // 2} for n in range(6)]
    (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled))
    return folder


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    return save_codec(random_codec(smallest_config()), tmp_path_factory.mktemp("codec") / "mine")


@pytest.fixture
def in_process(monkeypatch):
    """`xycodec` in this process."""
    ran = []

    def run(arguments):
        ran.append(arguments)
        said = io.StringIO()
        monkeypatch.setattr(sys, "argv", ["xycodec", *arguments])
        with contextlib.redirect_stdout(said), pytest.raises(SystemExit) as ended:
            cli.main()
        if ended.value.code not in (0, None):
            raise RuntimeError(f"{arguments[0]} ended with {ended.value.code}")
        return said.getvalue()

    run.ran = ran
    return run


@pytest.mark.parametrize(
    ("table", "rows", "found"),
    [
        ("xy_main", ["DAC-2", "Baichuan Audio Tokenizer"], {"stoi", "probe_wer"}),
        pytest.param("xy_main", ["SpeechTokenizer-x1"], {"stoi", "probe_wer"}, marks=pytest.mark.long),
        ("xy_ablations", ["One tower, Whisper only"], {"stoi", "mel_distance", "probe_wer"}),
        ("xcodec_abx", ["hubert-ls-960"], {"abx_within", "abx_across"}),
        ("xcodec_reconstruction", ["X-Codec-1"], {"dac_mel_distance", "normalised_stft_distance"}),
        pytest.param("xcodec_reconstruction", ["Acoustic baseline-1"], {"dac_mel_distance"}, marks=pytest.mark.long),
        ("xcodec_arch", ["X-Codec"], {"labels"}),
        ("xcodec_music_four", ["X-Codec"], {"fd_log_mel_statistics"}),
    ],
)
def test_a_table_runs_at_tiny_size(table, rows, found, reproduce, in_process, speech, stand_in, tmp_path):
    picked = [word for row in rows for word in ("--row", row)]
    arguments = [table, "--debug", str(speech), "--stand-in", str(stand_in), "--steps", "2", *picked]
    text = reproduce.main([*arguments, "--output", str(tmp_path)], in_process)
    assert (tmp_path / "table.md").read_text() == text
    measured = {}
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith("| row"):
            row, metric, value, *_ = (part.strip() for part in line.strip("|").split("|"))
            measured.setdefault(row, {})[metric] = value
    for row in set(rows) - {"Baichuan Audio Tokenizer"}:
        assert found <= {metric for metric, value in measured[row].items() if value}, text
    assert "failed" not in text, text
    for row in TABLES[table]["rows"]:
        if row["name"] in rows:
            for source, values in row.get("published", {}).items():
                for metric, value in values.items():
                    assert re.search(
                        rf"\| {re.escape(row['name'])} \| {metric} \|.*\| {value:g} \|.*\| {source} \|", text
                    )
    if "Baichuan Audio Tokenizer" in rows:
        assert "* Baichuan Audio Tokenizer, all: nothing here loads it" in text


def test_a_row_whose_training_failed_goes_no_further(reproduce, speech, tmp_path):
    def fails(arguments):
        if arguments[0] == "train":
            raise RuntimeError("no room")
        return ""

    arguments = ["xy_main", "--row", "SpeechTokenizer-x1", "--debug", str(speech), "--output", str(tmp_path)]
    text = reproduce.main(arguments, fails)
    assert "* SpeechTokenizer-x1, training: failed: no room" in text
    assert "probe:" not in text
    with pytest.raises(SystemExit, match="no such row"):
        reproduce.main(["xy_main", "--row", "nobody"], fails)
    with pytest.raises(SystemExit, match="the table needs librispeech"):
        reproduce.main(["xy_main", "librispeach=/x"], fails)
