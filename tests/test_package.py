"""The package of `pip install`: one version, every file, its notices, and tests that run from the sdist."""

import ast
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import xycodec

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGE = ROOT / "src" / "xycodec"
WHEEL_BYTES = 90_000_000
NOT_BUILT = (".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info", "build", "dist", "out", "exp")


def resources(package=PACKAGE):
    """Files of the package that are no Python, by their path inside it."""
    found = (path.relative_to(package) for path in package.rglob("*") if path.is_file())
    return {str(path) for path in found if path.suffix not in (".py", ".pyc")}


def test_the_version_stands_in_one_place():
    """pyproject.toml reads `__version__` from the source without importing it, so it has to be a literal there."""
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "xycodec.__version__"}
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    values = [ast.literal_eval(node.value) for node in assigned if ast.unparse(node.targets[0]) == "__version__"]
    assert values == [xycodec.__version__]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == xycodec.__version__
    assert f"## {xycodec.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_resource_is_declared():
    """A file that no pattern of package-data names is missing after `pip install`."""
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["xycodec"]
    declared = {str(path.relative_to(PACKAGE)) for pattern in patterns for path in PACKAGE.glob(pattern)}
    assert resources() - declared == set()


def test_every_direct_dependency_is_pinned_for_tests():
    pinned = [line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [name for names in (PROJECT["project"]["dependencies"], *extras.values()) for name in names]
    names = {name.partition(">=")[0].partition("[")[0].lower() for name in wanted} - {"xycodec"}
    assert names - set(pinned) == set()


def test_the_package_fits_the_limit_of_a_wheel():
    """The built one is measured by a long test; weights hardly shrink, so their sum is close."""
    assert sum((PACKAGE / name).stat().st_size for name in resources()) < WHEEL_BYTES


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(sdist unpacked, wheel): the sdist of a copy of this tree, and the wheel of that sdist, built without network."""
    folder = tmp_path_factory.mktemp("build")
    shutil.copytree(ROOT, folder / "tree", ignore=shutil.ignore_patterns(*NOT_BUILT))
    call_backend(folder / "tree", "build_sdist", folder)
    sdist = next(folder.glob("*.tar.gz"))
    assert sdist.name == f"xycodec-{xycodec.__version__}.tar.gz"
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    unpacked = folder / f"xycodec-{xycodec.__version__}"
    call_backend(unpacked, "build_wheel", folder)
    return unpacked, next(folder.glob("*.whl"))


def call_backend(project, hook, target):
    """Call the build backend as a front-end such as `python -m build` does in the build's environment."""
    program = f"from setuptools import build_meta; build_meta.{hook}({str(target)!r})"
    command = [sys.executable, "-W", "error::DeprecationWarning", "-c", program]
    subprocess.run(command, cwd=project, check=True, capture_output=True)


def run_with(path, *arguments, cwd):
    environment = os.environ | {"PYTHONPATH": str(path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.long
def test_the_wheel_holds_everything_and_works(built, tmp_path):
    _, wheel = built
    assert wheel.stat().st_size < WHEEL_BYTES
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    installed = tmp_path / "xycodec"
    assert resources(installed) == resources()
    assert {path.name for path in tmp_path.iterdir()} == {"xycodec", f"xycodec-{xycodec.__version__}.dist-info"}
    notices = next(tmp_path.glob("*.dist-info")) / "licenses"
    for name in ("LICENSE", "THIRD_PARTY.md"):
        assert (notices / name).read_bytes() == (ROOT / name).read_bytes()
    assert "Copyright (c) 2022 OpenAI" in (installed / "assets" / "xy-mini" / "NOTICE").read_text()
    assert "FFmpeg" in (notices / "THIRD_PARTY.md").read_text()
    sample = installed / "assets" / "fox.flac"
    ran = run_with(tmp_path, "-m", "xycodec", "encode", sample, "--output", "fox.xyc", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    recorded = ROOT / "tests" / "models" / "recorded" / "xy-mini.fox.xyc"
    assert (tmp_path / "fox.xyc").read_bytes() == recorded.read_bytes()


@pytest.mark.long
def test_tests_run_from_the_sdist(built):
    """Every test is collected there, and some pass: those of what lies beside the package, and of the package."""
    unpacked, _ = built
    collected = run_with(unpacked / "src", "-m", "pytest", "--collect-only", "-p", "no:xdist", cwd=unpacked)
    assert collected.returncode == 0, collected.stdout
    chosen = ["tests/test_package.py", "tests/docs/test_links.py", "tests/nn/test_mel.py"]
    ran = run_with(unpacked / "src", "-m", "pytest", "-m", "not long", *chosen, cwd=unpacked)
    assert ran.returncode == 0, ran.stdout


@pytest.mark.long
def test_the_sdist_leaves_nothing_out(built):
    """Whatever a folder of the sources holds is in the sdist."""
    unpacked, _ = built
    for folder in ("src/xycodec", "tests", "benchmarks", "runs", "docs", "examples"):
        assert contents(unpacked / folder) == contents(ROOT / folder), folder
    for name in ("LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "Makefile", "constraints.txt", "mkdocs.yml"):
        assert (unpacked / name).is_file(), name


def contents(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}
