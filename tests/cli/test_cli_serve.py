import importlib.util
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from published_layout import tiny_config
from xycodec.checkpoints.build import random_codec
from xycodec.checkpoints.save import save_codec


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(save_codec(random_codec(tiny_config()), tmp_path_factory.mktemp("codec") / "tiny"))


def error_line(result):
    code, out, err = result
    assert (code, out) == (1, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    return line


def test_a_port_that_is_taken(xycodec, tiny):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = error_line(xycodec("serve", "-m", tiny, "--port", port))
    assert f"127.0.0.1:{port}" in line
    assert "--port" in line


def test_a_host_that_is_not_here(xycodec, tiny):
    assert "--host" in error_line(xycodec("serve", "-m", tiny, "--port", 0, "--host", "192.0.2.1"))


def test_a_model_that_is_not_known(xycodec):
    assert "did you mean 'xy-mini'" in error_line(xycodec("serve", "-m", "xy-min", "--port", 0))


def test_an_extra_that_is_missing(xycodec, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("xycodec.cli.options.find_spec", lambda name: None if name == "fastapi" else find(name))
    assert "pip install 'xycodec[serve]'" in error_line(xycodec("serve"))


@pytest.mark.parametrize("arguments", [("--port", "70000"), ("--workers", "0"), ("--max-clip-s", "x")])
def test_usage(xycodec, arguments):
    assert xycodec("serve", *arguments)[0] == 2


def started(tiny, *arguments):
    command = [sys.executable, "-m", "xycodec", "serve", "-m", tiny, "--port", "0", "--no-page", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_it_serves_and_ends_with_ctrl_c(tiny):
    with started(tiny, "--workers", "1") as process:
        try:
            line = process.stderr.readline()
            assert "Ctrl-C stops it" in line
            models = httpx.get(f"{line.split()[0]}/v1/models", trust_env=False, timeout=60).json()
            assert models[0]["name"] == "tiny"
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
            assert process.stderr.read() == ""
        finally:
            process.kill()


@pytest.mark.parametrize(("token", "part"), [((), "anyone"), (("--token", "x"), "token is needed")])
def test_an_open_door_is_told(tiny, monkeypatch, token, part):
    """The application is not run: nothing here listens beyond this machine for longer than it takes to say so."""
    from xycodec.serve.app import build_app
    from xycodec.serve.server import announce
    from xycodec.serve.settings import Settings

    lines = []
    monkeypatch.setattr("builtins.print", lambda *words, **options: lines.append(" ".join(words)))
    app = build_app(Settings(page=False, token=token[1] if token else None))
    announce(app, "http://0.0.0.0:1", local=False, quiet=True)
    (line,) = lines
    assert line.startswith("warning: ")
    assert part in line
