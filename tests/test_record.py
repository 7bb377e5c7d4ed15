"""benchmarks/record.py keeps what a benchmark prints, and the page it had where one fails."""

import shlex
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def record(benchmark_named):
    return benchmark_named("record")


@pytest.fixture
def call(record, tmp_path, monkeypatch):
    """Run the command with pages of our own; its exit status."""

    def run(*arguments, **pages):
        monkeypatch.setattr(record, "PAGES", pages)
        monkeypatch.setattr(sys, "argv", ["record.py", *arguments, "--results", str(tmp_path)])
        return record.main()

    return run


def saying(folder, text, status=0):
    script = folder / f"{len(list(folder.iterdir()))}.py"
    script.write_text(f"import os; print({text}); raise SystemExit({status})")
    return str(script)


def test_a_page_holds_command_machine_and_output(record, call, tmp_path):
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    commands = (saying(scripts, "'| a |'"), saying(scripts, "os.environ['OMP_NUM_THREADS']"))
    assert call("one", one=record.Page("A title", commands, threads=3)) == 0
    text = (tmp_path / record.maker() / "one.md").read_text(encoding="utf-8")
    assert text.startswith("# A title\n\n    python benchmarks/record.py one\n\n| date |")
    assert f"`{commands[0]}`\n\n| a |\n\n`{commands[1]}`\n\n3\n" in text
    assert "load before, after" in text


def test_a_page_stays_where_its_benchmark_fails_and_the_others_are_made(record, call, tmp_path, capsys):
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    page = tmp_path / record.maker() / "bad.md"
    page.parent.mkdir()
    page.write_text("before")
    bad, good = (record.Page("", (saying(scripts, "'said'", status),)) for status in (1, 0))
    assert call("bad", "good", bad=bad, good=good) == 1
    assert page.read_text() == "before"
    assert "said" in page.with_name("good.md").read_text()
    assert "record.py: bad: " in capsys.readouterr().err


def test_recordings_are_asked_for_before_anything_runs(record, call, tmp_path, capsys):
    with pytest.raises(SystemExit):
        call("all", one=record.Page("", ("evaluate.py {speech}/dev.jsonl",)))
    assert "one: --speech FOLDER is missing" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_every_command_is_a_script_that_takes_its_arguments(record):
    """The options of each page are options of its script."""
    for page in record.PAGES.values():
        for command in page.commands:
            script, *arguments = shlex.split(command)
            if script == "-m":
                continue
            text = (BENCHMARKS / script).read_text(encoding="utf-8")
            for option in (word for word in arguments if word.startswith("--")):
                assert f'"{option}"' in text, f"{script}: {option}"
