import json

import pytest
import torch

from xycodec.cli import kernels
from xycodec.cli.kernels import KernelRow, measure_kernels, proposed
from xycodec.nn.deterministic.kernels import by_library, has_onednn, uses_onednn


@pytest.fixture
def small(monkeypatch):
    """Two shapes of each part, measured by a call or two."""
    shapes = {"linear": ((40, 32, 24), (64, 8, 8)), "attention": ((2, 24, 8),), "taps": ((64, 16, 24),)}
    monkeypatch.setattr(kernels, "SHAPES", shapes)
    monkeypatch.setattr(kernels, "_SECONDS", 0.0)


def test_every_shape_is_measured_by_every_library(small):
    rows = measure_kernels()
    libraries = ["mkl", "onednn"] if has_onednn() else ["mkl"]
    wanted = [
        (part, shape, library) for part in kernels.SHAPES for shape in kernels.SHAPES[part] for library in libraries
    ]
    assert [(row.part, row.shape, row.library) for row in rows] == wanted
    assert all(row.gflops > 0 for row in rows)


@pytest.mark.exact
@pytest.mark.long
def test_what_stands_in_the_table_keeps_its_bits_here():
    """At the sizes that models have."""
    rows = [row for row in measure_kernels() if (row.library == "onednn") == uses_onednn(row.part)]
    assert [row for row in rows if not row.keeps_bits] == []


def test_a_library_whose_bits_change_is_not_proposed():
    def row(part, library, gflops, keeps):
        return KernelRow(part, (1, 1, 1), library, gflops, keeps)

    rows = [
        row("linear", "mkl", 100, True), row("linear", "onednn", 10, True), row("linear", "onednn", 900, True),
        row("attention", "mkl", 300, True), row("attention", "mkl", 300, False), row("attention", "onednn", 2, True),
        row("taps", "mkl", 1, False), row("taps", "onednn", 1, False),
    ]  # fmt: skip
    rows.insert(1, row("linear", "mkl", 70, True))
    assert proposed(rows) == {"linear": "onednn", "attention": "onednn", "taps": None}


def test_bits_that_change_are_noticed():
    calls = iter(range(100))
    assert not kernels._keeps_bits(lambda: torch.full((4, 2), float(next(calls))), lambda: torch.zeros(2, 2))
    assert not kernels._keeps_bits(lambda: torch.zeros(4, 2), lambda: torch.ones(2, 2))
    assert kernels._keeps_bits(lambda: torch.zeros(4, 2), lambda: torch.zeros(2, 2))


def test_a_library_is_chosen_for_a_while():
    before = uses_onednn("taps")
    with by_library("onednn"):
        assert uses_onednn("taps") == has_onednn()
        with by_library("mkl"):
            assert not uses_onednn("taps")
    assert uses_onednn("taps") == before


def test_the_command(small, xycodec):
    code, out, err = xycodec("bench", "--kernels")
    assert (code, err) == (0, "")
    assert "proposed: linear " in out
    assert "40 x 32 x 24" in out
    code, out, _ = xycodec("bench", "--kernels", "--json", "--threads", "1")
    report = json.loads(out)
    assert (code, report["proposed"].keys()) == (0, {"linear", "attention", "taps"})
    assert report["rows"][0]["shape"] == [40, 32, 24]
