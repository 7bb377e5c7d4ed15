"""The Dockerfile and its companions: no image can be built here, so that what they name is checked one by one."""

import json
import shlex
from fnmatch import fnmatch
from pathlib import Path

import typer.main
import yaml

from xycodec.cli.app import app

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def instructions():
    """(word, rest) of the Dockerfile."""
    lines = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").splitlines()
    return [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]


def test_everything_that_is_copied_is_there_and_not_ignored():
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {name for word, rest in instructions() if word == "COPY" for name in rest.split()[:-1]}
    assert copied == allowed
    for name in copied:
        assert (ROOT / name).exists(), name


def test_the_command_is_one_that_the_program_takes():
    (command,) = [json.loads(rest) for word, rest in instructions() if word == "CMD"]
    assert command[:2] == ["xycodec", "serve"]
    serve = typer.main.get_command(app).commands["serve"]
    serve.make_context("serve", command[2:])
    (port,) = [rest for word, rest in instructions() if word == "EXPOSE"]
    assert command[command.index("--port") + 1] == port


def test_torch_is_pinned_by_a_line_of_its_own():
    (first, *_) = [rest for word, rest in instructions() if word == "RUN"]
    assert shlex.split(first)[:2] == ["pip", "install"]
    pinned = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if fnmatch(line, "torch==*")]
    assert len(pinned) == 1


def test_compose_names_what_there_is():
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]
    build = services["xycodec"]["build"]
    assert (DEPLOY / build["context"]).resolve() == ROOT.resolve()
    assert (ROOT / build["dockerfile"]).is_file()
    (volume,) = services["prometheus"]["volumes"]
    assert (DEPLOY / volume.split(":")[0]).is_file()
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    scrape = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    assert scrape[0]["static_configs"][0]["targets"] == ["xycodec:8765"]
