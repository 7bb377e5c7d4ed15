"""Strangers: malformed audio, requests made of the API's own description, slow and vanishing clients, too many at once.

All traffic goes to this machine, and every loop has an end.
"""

import gc
import io
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import schemathesis
import schemathesis.specs.openapi.coverage._schema  # while no other thread parses: CPython 3.11 counts them together
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tests.serve.servers import RATE, audio_file, metric, running, speech, tiny_codec, wait_until

from xycodec.serve.client import Client, ServerError
from xycodec.serve.settings import Limits

REFUSALS = {413, 415, 422}
CONTAINERS = ["WAV", "FLAC", "OGG", "MP3", "AIFF", "CAF", "AU", "W64"]
OPUS = ("OGG", "OPUS")


def ask(url, data, path="/v1/encode", field="audio", **options):
    return httpx.post(url + path, files={field: ("x", data)}, trust_env=False, **options)


# its own description

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.mark.parametrize(
    "route",
    [
        *("POST /v1/encode", "POST /v1/decode", "POST /v1/roundtrip"),
        *("GET /v1/models", "GET /healthz", "GET /readyz", "GET /metrics"),
    ],
)
def test_every_answer_is_one_that_the_description_has(url, route):
    method, path = route.split()
    operation = schemathesis.openapi.from_url(f"{url}/openapi.json")[path][method]
    asked = []

    @given(case=operation.as_strategy())
    @settings(
        max_examples=10 if method == "POST" else 2, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    def ask_it(case):
        asked.append(case.call_and_validate(checks=CHECKS).status_code)

    ask_it()
    assert asked
    assert max(asked) < 500


def test_all_routes_are_described(url):
    described = httpx.get(f"{url}/openapi.json", trust_env=False).json()["paths"]
    assert sorted(described) == [
        *("/healthz", "/metrics", "/readyz", "/v1/decode", "/v1/encode", "/v1/models", "/v1/roundtrip"),
    ]


# malformed audio


def mutations(data, count, seed):
    """Copies of a file that were cut, had bits flipped, bytes doubled, left out or zeroed, mostly in the beginning."""
    chance = random.Random(seed)
    for _ in range(count):
        mutated = bytearray(data)
        for _ in range(chance.choice([1, 1, 3, 10])):
            place = chance.randrange(min(len(mutated), chance.choice([64, 64, 512, 1 << 20])))
            size = chance.choice([1, 1, 4, 100])
            match chance.randrange(5):
                case 0:
                    mutated[place] ^= 1 << chance.randrange(8)
                case 1:
                    mutated[place : place + size] = bytes(len(mutated[place : place + size]))
                case 2:
                    mutated[place : place + size] = b"\xff" * len(mutated[place : place + size])
                case 3:
                    del mutated[place : place + size]
                case _:
                    mutated[place:place] = mutated[place : place + size]
            mutated = mutated or bytearray(b"x")
        if chance.random() < 0.2:
            del mutated[chance.randrange(len(mutated)) :]
        yield bytes(mutated)


@pytest.mark.parametrize("container", [*CONTAINERS, "OPUS"])
def test_malformed_audio_is_read_or_refused(url, container):
    kind, subtype = OPUS if container == "OPUS" else (container, None)
    data = audio_file(speech(3000), container=kind, subtype=subtype)
    lost = metric(url, "xycodec_audio_workers_lost_total")
    for mutated in mutations(data, 12, seed=container):
        response = ask(url, mutated, headers={"Accept": "application/json"})
        assert response.status_code in {200, *REFUSALS}, response.text
    assert metric(url, "xycodec_audio_workers_lost_total") == lost


def test_malformed_codes_are_read_or_refused(url, codec):
    data = codec.encode_file(io.BytesIO(audio_file(speech()))).to_bytes()
    for mutated in mutations(data, 40, seed=0):
        assert ask(url, mutated, "/v1/decode", "codes").status_code in {200, *REFUSALS}


def test_no_file_of_the_server_is_opened(url, tmp_path):
    """Playlists and the like name other files; a recording must not choose what is read."""
    secret = tmp_path / "secret.wav"
    secret.write_bytes(audio_file(speech()))
    for lie in (f"#EXTM3U\n{secret}\n", f"ffconcat version 1.0\nfile {secret}\n", f"file://{secret}", str(secret)):
        assert ask(url, lie.encode()).status_code == 415


# slow clients, and those that vanish


def talk(url, data):
    """An open connection that has sent `data`."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=10)
    connection.sendall(data)
    return connection


PART = b'--x\r\nContent-Disposition: form-data; name="audio"; filename="a"\r\n\r\n'
HEAD = b"POST /v1/encode HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"


def test_slow_clients_are_given_up():
    with running(tiny_codec(), limits=Limits(header_s=2, upload_time_s=2)) as (url, _):
        starts = [b"", b"GET /v1/mod", HEAD, HEAD + b"Content-Length: 1000\r\n\r\n" + PART]
        slow = [talk(url, start) for start in starts]
        begun = time.monotonic()
        while time.monotonic() < begun + 3:  # a byte now and then does not help
            for connection in slow:
                try:
                    connection.sendall(b"x")
                except OSError:
                    continue
            time.sleep(0.1)
        answers = []
        for connection in slow:
            try:
                answers.append(connection.recv(4096))
            except ConnectionError:
                answers.append(b"")
            connection.close()
        assert answers[:3] == [b"", b"", b""]
        assert answers[3].startswith(b"HTTP/1.1 408")
        assert ask(url, audio_file(speech())).status_code == 200
        assert metric(url, "xycodec_requests_in_progress") == 0


def test_clients_that_vanish_leave_nothing():
    codec = tiny_codec()
    with running(codec) as (url, service):
        whole = httpx.Request("POST", f"{url}/v1/roundtrip", files={"audio": ("x", audio_file(speech(60 * RATE)))})
        body = whole.read()
        head = "".join(f"{name}: {value}\r\n" for name, value in whole.headers.items())
        message = f"POST /v1/roundtrip HTTP/1.1\r\n{head}\r\n".encode() + body
        for part in (len(message) // 2, len(message)):
            for _ in range(5):
                talk(url, message[:part]).close()
        wait_until(lambda: metric(url, "xycodec_requests_in_progress") == 0, 30)
        wait_until(lambda: metric(url, "xycodec_queue_windows", direction="encode") == 0, 30)
        assert ask(url, audio_file(speech())).status_code == 200
        assert service.workers._idle.qsize() == 1


# too many


class Gate:
    """Lets a codec compute only when it is open."""

    def __init__(self, codec):
        self.open, self.entered, compute = threading.Event(), threading.Event(), codec.encode_windows

        def wait_and_compute(items, *settings):
            self.entered.set()
            assert self.open.wait(30)
            return compute(items, *settings)

        codec.encode_windows = wait_and_compute


@pytest.mark.parametrize(("limits", "status"), [(Limits(requests=3), 503), (Limits(per_client=3), 429)])
def test_too_many_requests_are_refused_at_once_and_the_others_done(limits, status):
    codec = tiny_codec()
    gate = Gate(codec)
    data = audio_file(speech())
    with running(codec, limits=limits) as (url, _), ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(ask, url, data, timeout=60) for _ in range(3)]
        wait_until(lambda: metric(url, "xycodec_requests_in_progress") == 3)
        for _ in range(20):
            response = ask(url, data)
            assert (response.status_code, response.headers["retry-after"]) == (status, "1")
        with Client(url, retries=0) as client, pytest.raises(ServerError) as error:
            client.encode(data)
        assert error.value.status == status
        if status == 503:  # which a client asks again
            with Client(url, retries=8) as client:
                later = pool.submit(client.encode, data)
                time.sleep(0.3)
                gate.open.set()
                assert later.result().num_samples == RATE
        gate.open.set()
        assert [answer.result().status_code for answer in waiting] == [200, 200, 200]
        assert ask(url, data).status_code == 200


def test_what_takes_too_long_is_given_up():
    codec = tiny_codec()
    gate = Gate(codec)
    with running(codec, limits=Limits(request_s=4)) as (url, _):
        response = ask(url, audio_file(speech()))
        assert response.status_code == 503
        assert "4 s" in response.json()["detail"]
        gate.open.set()
        assert ask(url, audio_file(speech())).status_code == 200


def test_a_failure_is_a_problem_and_told_in_the_log(caplog):
    codec = tiny_codec()

    def fail(items, *settings):
        raise RuntimeError("out of luck")

    codec.encode_windows, compute = fail, codec.encode_windows
    with running(codec) as (url, _):
        response = ask(url, audio_file(speech()))
        assert (response.status_code, response.json()["title"]) == (500, "Internal Server Error")
        assert "out of luck" not in response.text
        assert "out of luck" in caplog.text
        codec.encode_windows = compute
        assert ask(url, audio_file(speech())).status_code == 200


# memory


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.long
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is read from /proc")
def test_memory_stays_flat(url):
    """The short form of the soak in benchmarks/serve.py: sound, broken and refused requests in turn."""
    good, bad = audio_file(speech(2000)), b"no audio"

    def rounds(count):
        with httpx.Client(base_url=url, trust_env=False) as client:
            for i in range(count):
                client.post("/v1/roundtrip", files={"audio": ("x", good if i % 3 else bad)})
                client.post("/v1/encode", content=good)
        gc.collect()
        return resident()

    before = rounds(30)
    # A leak of a window's activations would be more; the allocator keeps some.
    assert rounds(30) - before < 10_000_000


# stopping


def test_sigterm_lets_what_is_begun_end(tmp_path):
    from xycodec.checkpoints.save import save_codec

    folder = save_codec(tiny_codec(), tmp_path / "tiny")
    command = [
        sys.executable,
        "-m",
        "xycodec",
        "serve",
        "-m",
        str(folder),
        "--port",
        "0",
        "--no-page",
        "--workers",
        "1",
    ]
    with subprocess.Popen([*command, "--threads", "1"], stderr=subprocess.PIPE, text=True) as process:
        url = process.stderr.readline().split()[0]
        try:
            wait_until(lambda: _ready(url), 60)
            data = audio_file(speech(300 * RATE))
            with ThreadPoolExecutor(1) as pool:
                answer = pool.submit(ask, url, data, timeout=60)
                wait_until(lambda: metric(url, "xycodec_requests_in_progress") == 1)
                process.send_signal(signal.SIGTERM)
                assert answer.result().status_code == 200
            assert process.wait(30) in (0, -signal.SIGTERM)
        finally:
            process.kill()
        assert "Traceback" not in process.stderr.read()


def _ready(url):
    try:
        return httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
