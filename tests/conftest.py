import importlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from tests.exactness import not_claimed
from tests.processes import do_not_wait_for_the_disk

from xycodec.cli import app as cli


def pytest_configure(config):
    """Catalogues of test corpora go where they can be removed, those of processes that tests start too.

    Fixtures of modules compute on one thread as tests do: Transformers' convolutions change with it on some processors.
    """
    torch.set_num_threads(1)
    do_not_wait_for_the_disk()
    os.environ["XYCODEC_CACHE"] = cache = tempfile.mkdtemp(prefix="xycodec-tests-")
    config.add_cleanup(lambda: shutil.rmtree(cache, ignore_errors=True))


def pytest_collection_modifyitems(items):
    """The slowest first, training before the rest: what is left for the end should be short."""
    items.sort(
        key=lambda item: (
            not item.get_closest_marker("long"), item.path.name not in SLOWEST, item.path.parent.name != "train",
        )
    )  # fmt: skip


SLOWEST = ("test_learns.py", "test_tokenize.py")


def pytest_runtest_setup(item):
    if item.get_closest_marker("exact") and (reason := not_claimed()):
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def _same_start():
    """Every test starts from the same seed, and on one thread: pytest -n has the other cores."""
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def threads():
    """A function that sets torch's thread count for the test."""
    return torch.set_num_threads


@pytest.fixture
def benchmark_named(monkeypatch):
    """A function that imports a script of benchmarks/, whose folder is no package."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    return importlib.import_module


@pytest.fixture
def xycodec(monkeypatch, capsys):
    """Run the command line in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["xycodec", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return ended.value.code, out, err

    return run
