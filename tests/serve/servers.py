"""Servers on a free port of this machine, with a codec that computes in milliseconds."""

import io
import time
from contextlib import contextmanager
from threading import Thread

import httpx
import numpy as np
import soundfile as sf

from published_layout import tiny_config
from xycodec.checkpoints.build import random_codec
from xycodec.serve.app import build_app
from xycodec.serve.server import bind, make_server
from xycodec.serve.settings import Limits, Settings

RATE = 16_000


def tiny_codec(**changes):
    return random_codec(tiny_config(**changes)).eval()


@contextmanager
def running(codec, *, limits=None, **settings):
    """(URL, service) of a server that runs in a thread until the block ends."""
    limits = limits or Limits()
    settings = {"workers": 1, "page": False, **settings}
    app = build_app(Settings(limits=limits, **settings), {codec.model_id: codec})
    listening = bind("127.0.0.1", 0)
    server = make_server(app, limits)
    thread = Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert thread.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", app.state.service
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def speech(samples=RATE, rate=RATE, seed=0):
    return np.random.default_rng(seed).uniform(-0.3, 0.3, samples).astype(np.float32)


def audio_file(samples, rate=RATE, container="WAV", subtype=None):
    file = io.BytesIO()
    sf.write(file, samples, rate, format=container, subtype=subtype)
    return file.getvalue()


def metric(url, name, **labels):
    """The value of a metric; 0 where it has not been counted."""
    wanted = "{" + ",".join(f'{key}="{value}"' for key, value in labels.items()) + "}" if labels else ""
    for line in httpx.get(f"{url}/metrics", trust_env=False).text.splitlines():
        key, _, value = line.rpartition(" ")
        if key == name + wanted:
            return float(value)
    return 0.0


def wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
