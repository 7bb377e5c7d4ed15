"""Imports run downward only, read from the source, lazy ones too; and what stays unimported until it is needed."""

import ast
import json
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import xycodec

PACKAGE = Path(xycodec.__file__).parent
# From the ground up. A file imports from its own folder, from its own floor and from those below.
FLOORS = [
    {"errors", "distributed"},
    {"io", "nn"},
    {"losses", "models", "data"},
    {"checkpoints"},
    {"baselines", "tokenize"},
    {"lm"},
    {"eval"},
    {"train", "serve", "export"},
    {"cli"},
    {"__main__"},
]
FLOOR = {part: floor for floor, parts in enumerate(FLOORS) for part in parts}


def module_of(path):
    """`PACKAGE/nn/mel.py` -> `xycodec.nn.mel`; a folder's `__init__.py` is the folder."""
    parts = ("xycodec", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# The face of the package only hands names on.
MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"}


def imports(path, top_level=False):
    """Every module of ours that a file imports; at the top level only what runs when it is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return {name for name in found if name.startswith("xycodec.")}


ARROWS = {(module, target) for module, path in MODULES.items() for target in imports(path)}


def part_of(module):
    """`xycodec.nn.mel` -> `nn`."""
    return module.split(".")[1]


def test_every_file_has_its_floor():
    assert {part_of(module) for module in MODULES} == set(FLOOR)


def test_no_import_goes_up():
    assert {arrow for arrow in ARROWS if FLOOR[part_of(arrow[0])] < FLOOR[part_of(arrow[1])]} == set()


def circle(arrows, package):
    """The children of a package, files or folders, that import each other in a circle; [] where there is none."""
    depth = package.count(".") + 1
    graph = {}
    for ends in arrows:
        inside = [end.split(".") for end in ends if end.startswith(f"{package}.")]
        if len(inside) == 2 and inside[0][depth] != inside[1][depth]:
            graph.setdefault(inside[0][depth], set()).add(inside[1][depth])
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


@pytest.mark.parametrize("package", sorted({"xycodec", *(name.rpartition(".")[0] for name in MODULES)}))
def test_no_folder_has_a_circle(package):
    assert circle(ARROWS, package) == []


def test_a_circle_is_found():
    there, back = ("xycodec.a.x", "xycodec.b.y"), ("xycodec.b.z", "xycodec.a.w")
    assert set(circle({there, back}, "xycodec")) == {"a", "b"}
    assert circle({there}, "xycodec") == []
    assert set(circle({("xycodec.a.x", "xycodec.a.y"), ("xycodec.a.y", "xycodec.a.x")}, "xycodec.a")) == {"x", "y"}


def test_the_reader_of_imports_sees_them(tmp_path):
    source = tmp_path / "sample.py"
    source.write_text(
        "import xycodec.nn.mel\nfrom xycodec.io import parallel\nfrom os import path\n"
        "def f():\n    from xycodec.models.base import Codec\n"
    )
    assert imports(source) == {"xycodec.nn.mel", "xycodec.io.parallel", "xycodec.models.base"}
    assert imports(source, top_level=True) == {"xycodec.nn.mel", "xycodec.io.parallel"}


def test_the_command_line_imports_the_rest_when_it_needs_it():
    for path in (PACKAGE / "cli").glob("*.py"):
        if not path.name.startswith("bench"):  # measures, and is imported by its command
            outside = {name for name in imports(path, top_level=True) if part_of(name) != "cli"}
            assert outside <= {"xycodec.errors", "xycodec.io.rate", "xycodec.models.registry"}, path


def modules_after(program):
    """The modules that a fresh Python has imported when `program` ends."""
    report = "\nimport sys, json; sys.stderr.write(json.dumps(sorted(sys.modules)))"
    command = [sys.executable, "-c", program + report]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(json.loads(ran.stderr)), ran.stdout


HEAVY = {"torch", "numpy", "matplotlib", "soundfile", "soxr", "safetensors", "huggingface_hub", "pydantic", "yaml"}
EXTRAS = {"ray", "fastapi", "gradio", "lhotse", "pesq", "transformers", "tensorboard"}


def test_importing_the_package_imports_nothing_heavy():
    modules, _ = modules_after("import xycodec")
    assert "xycodec" in modules
    assert not modules & (HEAVY | EXTRAS)


def test_help_imports_nothing_heavy():
    program = "from xycodec.cli.app import app\napp(['--help'], standalone_mode=False)"
    modules, printed = modules_after(program)
    for command in ("encode", "decode", "roundtrip", "info", "models", "convert"):
        assert command in printed
    assert not modules & (HEAVY | EXTRAS)


def test_every_public_name_arrives_when_it_is_asked_for():
    program = "import xycodec\nfor name in xycodec.__all__: assert name in dir(xycodec) and getattr(xycodec, name)"
    modules, _ = modules_after(program)
    assert "torch" in modules
    assert not modules & EXTRAS
    with pytest.raises(AttributeError, match="no attribute 'load_codek'"):
        _ = xycodec.load_codek
