"""Who may import whom (docs: design, layout), read from the source; and what stays unimported until it is needed."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import xycodec

PACKAGE = Path(xycodec.__file__).parent
LEVELS = [
    {"errors"},
    {"config", "recipe", "recipe_run", "recipe_file", "weights", "checkpoint_file", "registry"}
    | {"audio", "bitstream", "distributed", "hub", "folders"},
    {"nn", "data"},
    {"models", "losses", "losses_stft", "convert", "convert_xcodec"},
    {"pretrained"},
    {"baselines"},
    {"train", "eval", "tokenization", "serve", "transcode", "picture", "bench", "jobs", "terminal"},
    {"cli_options", "cli_data", "cli_eval"},
    {"cli"},
    {"__main__"},
]
LEVEL = {part: level for level, parts in enumerate(LEVELS) for part in parts}
# Below the applications the table is stricter than its levels.
MAY_IMPORT = {
    "errors": set(),
    "config": {"errors"},
    "recipe": {"recipe_run", "config", "errors"},
    "recipe_run": {"config", "errors"},
    "recipe_file": {"recipe", "config", "errors"},
    "audio": {"errors"},
    "bitstream": {"audio", "errors"},
    "distributed": set(),
    "hub": {"errors"},
    "folders": {"errors"},
    "weights": {"errors"},
    "checkpoint_file": {"weights", "errors"},
    "registry": set(),
    "nn": {"nn", "distributed", "errors"},
    "data": {"data", "audio", "folders", "config", "recipe_run", "errors"},
    "losses": {"nn", "errors"},
    "losses_stft": {"nn"},
    "convert": {"config", "nn", "errors"},
    "convert_xcodec": {"convert", "config", "errors"},
    "models": {"models", "nn", "config", "recipe", "convert", "hub", "errors"},
    "pretrained": {"models", "convert", "convert_xcodec", "config", "hub", "folders", "weights", "registry", "errors"}
    | {"checkpoint_file"},
    "baselines": {"pretrained", "registry", "models", "errors"},
}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def part_of(name):
    """`xycodec.nn.mel` -> `nn`; None for what is not ours."""
    pieces = name.split(".")
    return pieces[1] if pieces[0] == "xycodec" and len(pieces) > 1 else None


def imports(path, top_level=False):
    """Every part of ours that a file imports; at the top level only what runs when it is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {part_of(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "xycodec":
                found |= {alias.name for alias in node.names}
            else:
                found.add(part_of(node.module))
    return found - {None}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_import_goes_up(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert part in LEVEL, f"{part} has no place in the table of layers"
    for imported in imports(path):
        assert imported in LEVEL, f"{path} imports {imported}, which has no place in the table of layers"
        assert LEVEL[imported] <= LEVEL[part], f"{path} imports {imported}"
        assert imported in MAY_IMPORT.get(part, LEVEL), f"{path} imports {imported}"


def test_the_reader_of_imports_sees_them(tmp_path):
    source = tmp_path / "sample.py"
    source.write_text(
        "import xycodec.nn.mel\nfrom xycodec import jobs\nfrom os import path\n"
        "def f():\n    from xycodec.models.base import Codec\n"
    )
    assert imports(source) == {"nn", "jobs", "models"}
    assert imports(source, top_level=True) == {"nn", "jobs"}


def test_the_command_line_imports_the_rest_when_it_needs_it():
    assert imports(PACKAGE / "cli.py", top_level=True) <= {
        "errors", "registry", "terminal", "cli_data", "cli_eval", "cli_options",
    }  # fmt: skip
    assert imports(PACKAGE / "cli_eval.py", top_level=True) <= {"registry", "terminal", "cli_options"}
    assert imports(PACKAGE / "cli_data.py", top_level=True) <= {"terminal", "cli_options"}
    assert imports(PACKAGE / "terminal.py", top_level=True) <= {"errors"}


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
    program = "from xycodec.cli import app\napp(['--help'], standalone_mode=False)"
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
