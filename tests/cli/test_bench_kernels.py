import json

import pytest
import torch

from xycodec.cli import bench_kernels as kernels
from xycodec.cli.bench_kernels import KernelRow, measure_kernels, proposed
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


@pytest.mark.parametrize("by", ["threads", "rows", "place"])
def test_bits_that_change_are_noticed(by):
    def work(*, some=False, place=0):
        count = 2 if some else 4
        changed = {"threads": torch.get_num_threads() > 4, "rows": some, "place": place > 0}[by]
        return torch.full((count, 2), float(changed))

    assert not kernels._keeps_bits(work)


def test_bits_that_stay_are_trusted_and_threads_are_put_back():
    before = torch.get_num_threads()
    assert kernels._keeps_bits(lambda *, some=False, place=0: torch.zeros(2 if some else 4, 2))
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("place", [0, 1, 4])
def test_numbers_move_in_memory(place):
    x = torch.arange(6.0).view(2, 3)
    moved = kernels._moved(x, place)
    assert torch.equal(moved, x)
    assert (moved.data_ptr() - 4 * place) % 64 == 0 or place == 0


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
