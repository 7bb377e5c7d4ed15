"""benchmarks/gpu.py runs at tiny size on a CPU, so that it will where a GPU is lent for minutes."""

import sys

import pytest
import torch


@pytest.fixture
def gpu(benchmark_named):
    return benchmark_named("gpu")


@pytest.fixture
def page(gpu, tmp_path, monkeypatch):
    """Run the command; what it has written."""

    def run(*arguments):
        path = tmp_path / "gpu.md"
        monkeypatch.setattr(sys, "argv", ["gpu.py", "--size", "tiny", "--output", str(path), *arguments])
        assert gpu.main() == 0
        return path.read_text(encoding="utf-8")

    return run


def test_codes_of_the_same_device_are_equal(gpu):
    lines = "".join(gpu.codes_against_cpu("tiny", torch.device("cpu"))).splitlines()
    rows = [line.split("|")[2:7] for line in lines if line.startswith(("| xy-mini", "| random"))]
    assert len(rows) == 2
    for codes, *others in rows:
        assert int(codes) > 100
        assert [int(count) for count in others] == [0, 0, 0, 0]


def test_parts_that_would_begin_too_late_are_named(page):
    text = page("--device", "cpu", "--minutes", "-1")
    assert "No GPU was at hand" in text
    assert text.count("Left out") == 4


def test_a_device_that_is_not_there_is_one_line(gpu, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cuda:99", "--output", str(tmp_path / "gpu.md")])
    assert gpu.main() == 1
    assert not (tmp_path / "gpu.md").exists()
    assert capsys.readouterr().err.startswith("gpu.py: ")


@pytest.mark.long
def test_the_whole_runs_on_a_cpu(page):
    text = page("--device", "cpu")
    for heading in ("## Codes in float32", "## Peak", "## Encode and decode", "### pretrain", "### posttrain"):
        assert heading in text
    assert "Left out" not in text
