import asyncio
import contextlib
import json
import socket
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from tests.serve.servers import RATE, metric, running, speech, tiny_codec, wait_until
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from xycodec.errors import XycodecError
from xycodec.models.longform import decode_long, encode_long
from xycodec.models.windows import Windows
from xycodec.serve.client import AsyncClient, Client, ServerError
from xycodec.serve.settings import Limits

WINDOWS = Windows(3, 8, 2)


def dial(url):
    return connect(url.replace("http", "ws") + "/v1/stream", proxy=None)


def pcm(samples, seed=0):
    return (speech(samples, seed=seed) * 32767).astype(np.int16)


def error_of(socket):
    """The problem that a stream ends with; what comes before it is passed over."""
    while True:
        message = socket.recv(timeout=10)
        if isinstance(message, str) and (fields := json.loads(message))["type"] == "error":
            with pytest.raises(ConnectionClosed):
                socket.recv(timeout=10)
            return fields


# what it does


@pytest.mark.exact
@pytest.mark.parametrize("windows", [None, WINDOWS], ids=["default", "short"])
@pytest.mark.parametrize("block", [160, 1280, 5 * RATE])
def test_a_stream_gives_what_the_whole_gives(url, codec, windows, block):
    audio = pcm(4 * RATE + 77)
    codes = encode_long(codec, audio, windows=windows)
    with Client(url) as client:
        blocks = np.split(audio, range(block, len(audio), block))
        parts = list(client.stream_encode(blocks, windows=windows))
        assert np.array_equal(np.concatenate(parts, axis=1), codes)
        frames = np.split(codes.numpy(), range(3, codes.shape[1], 3), axis=1)
        heard = np.concatenate(list(client.stream_decode(frames, windows=windows, num_samples=len(audio))))
    expected = decode_long(codec, codes, num_samples=len(audio), windows=windows).numpy()
    assert heard.shape == expected.shape
    assert np.abs(heard / 32768 - expected.clip(-1, 1)).max() <= 1 / 32768


@pytest.mark.exact
def test_many_streams_at_once_each_get_their_own(url, codec):
    clips = [pcm(RATE + 3000 * i, seed=i) for i in range(8)]

    async def blocks(clip):
        for block in np.split(clip, range(1000, len(clip), 1000)):
            yield block / np.float32(32768)
            await asyncio.sleep(0)

    async def encoded(client, clip):
        stream = client.stream_encode(blocks(clip), n_q=2, windows=WINDOWS)
        return np.concatenate([codes async for codes in stream], axis=1)

    async def all_of_them():
        async with AsyncClient(url) as client:
            return await asyncio.gather(*(encoded(client, clip) for clip in clips))

    for clip, codes in zip(clips, asyncio.run(all_of_them()), strict=True):
        assert np.array_equal(codes, encode_long(codec, clip, n_q=2, windows=WINDOWS))


def test_codes_come_as_soon_as_their_context_is_there(url, codec):
    with dial(url) as socket:
        place = {"step": 3, "left": 8, "right": 2}
        socket.send(json.dumps({"type": "start", "direction": "encode", "windows": place}))
        ready = json.loads(socket.recv())
        assert ready == {
            "type": "ready", "model": "tiny", "n_q": 3, "frame_rate": 12.5, "latency_s": 0.4,
            "input_sample_rate": RATE, "output_sample_rate": RATE,
        }  # fmt: skip
        socket.send(bytes(2 * (5 * 1280 - 1)))
        socket.send('{"type": "ping"}')
        assert json.loads(socket.recv()) == {"type": "pong"}
        socket.send(bytes(2))
        assert len(socket.recv(timeout=10)) == 3 * 3 * 2
        socket.send('{"type": "end"}')
        assert len(socket.recv(timeout=10)) == 2 * 3 * 2
        assert json.loads(socket.recv()) == {"type": "end", "seconds": 0.4}
        # Another clip on the same connection begins anew.
        socket.send('{"type": "start", "direction": "decode", "n_q": 2}')
        assert json.loads(socket.recv())["n_q"] == 2
        socket.send(bytes(2 * 2))
        socket.send('{"type": "end", "num_samples": 100}')
        assert len(socket.recv(timeout=10)) == 2 * 100
    assert metric(url, "xycodec_stream_first_result_seconds_count", direction="encode") >= 1


# what it refuses


@pytest.mark.parametrize(
    ("messages", "status", "part"),
    [
        ([b"\0\0"], 422, "begin with"),
        (["hello"], 422, "the message"),
        (["[1]"], 422, "the message"),
        (['{"type": "start"}'], 422, "direction"),
        (['{"type": "start", "direction": "encode", "path": "/etc/passwd"}'], 422, "path"),
        (['{"type": "start", "direction": "encode", "model": "other"}'], 422, "not loaded"),
        (['{"type": "start", "direction": "encode", "n_q": 99}'], 422, "n_q"),
        (['{"type": "start", "direction": "decode", "n_q": 0}'], 422, "n_q"),
        (['{"type": "start", "direction": "encode", "windows": {"step": 0}}'], 422, "windows.step"),
        (['{"type": "start", "direction": "encode", "windows": {"step": 999}}'], 422, "at most 25"),
        (['{"type": "start", "direction": "encode"}', b"\0"], 422, "16-bit"),
        (['{"type": "start", "direction": "encode"}', '{"type": "start", "direction": "encode"}'], 422, "'end'"),
        (['{"type": "start", "direction": "decode"}', b"\0\0"], 422, "whole frames"),
        (['{"type": "start", "direction": "decode"}', b"\xff\xff" * 3], 422, "0..31"),
        (
            ['{"type": "start", "direction": "decode"}', b"\0\0" * 3, '{"type": "end", "num_samples": 9999}'],
            422,
            "9999",
        ),
        (["[" * 5000], 422, "the message"),
    ],
)
def test_what_is_no_stream_ends_in_a_problem(url, messages, status, part):
    with dial(url) as socket:
        for message in messages:
            socket.send(message)
        problem = error_of(socket)
        assert (problem["status"], part in problem["detail"]) == (status, True), problem
    wait_until(lambda: metric(url, "xycodec_streams_open") == 0)


def test_pages_of_other_sites_get_no_stream(url):
    with pytest.raises(Exception, match="403"):
        connect(url.replace("http", "ws") + "/v1/stream", proxy=None, origin="http://evil.example")


def test_streams_end_that_are_too_many_too_long_or_silent():
    with running(tiny_codec(), limits=Limits(streams=1, stream_s=2, idle_s=1)) as (url, service):
        with dial(url) as first:
            with dial(url) as second:
                assert error_of(second)["status"] == 503
            first.send('{"type": "start", "direction": "encode"}')
            for _ in range(3):
                first.send(bytes(2 * RATE))
            assert error_of(first)["status"] == 413
        wait_until(lambda: metric(url, "xycodec_streams_open") == 0)
        with dial(url) as silent:
            assert error_of(silent)["status"] == 408
        with Client(url, retries=0) as client, pytest.raises(ServerError, match="not loaded"):
            list(client.stream_encode([pcm(10)], model="other"))
        assert service.metrics.streams._value.get() == 0


def test_a_stream_outlives_the_time_for_headers():
    with running(tiny_codec(), limits=Limits(header_s=0.3)) as (url, _), dial(url) as talk:
        for _ in range(8):
            talk.send('{"type": "ping"}')
            assert talk.recv(timeout=10) == '{"type": "pong"}'
            time.sleep(0.1)


def test_a_failure_is_told_and_logged(caplog):
    codec = tiny_codec()

    def fail(items, *settings):
        raise RuntimeError("out of luck")

    codec.encode_windows = fail
    with running(codec) as (url, _), dial(url) as talk:
        talk.send('{"type": "start", "direction": "encode"}')
        talk.send(bytes(2 * 3 * RATE))
        assert error_of(talk)["status"] == 500
    assert "out of luck" in caplog.text


def test_a_client_that_goes_away_leaves_nothing():
    with running(tiny_codec()) as (url, _):
        for place in range(20):
            with contextlib.suppress(ConnectionClosed), dial(url) as talk:
                if place % 2:
                    talk.send('{"type": "start", "direction": "encode"}')
                    talk.send(bytes(2 * 5 * RATE))
                talk.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                talk.socket.close()
        wait_until(lambda: metric(url, "xycodec_streams_open") == 0)
        wait_until(lambda: metric(url, "xycodec_queue_windows", direction="encode") == 0)
        with Client(url) as client:
            codes = np.concatenate(list(client.stream_encode([pcm(RATE)])), axis=1)
        assert codes.shape == (3, 13)


def test_errors_of_the_callers_own_blocks_arrive(url):
    def broken():
        yield pcm(10)
        raise KeyError("mine")

    async def broken_too():
        yield pcm(10)
        raise KeyError("mine")

    async def run():
        async with AsyncClient(url) as client:
            return [codes async for codes in client.stream_encode(broken_too())]

    with Client(url) as client, pytest.raises(KeyError):
        list(client.stream_encode(broken()))
    with pytest.raises(KeyError):
        asyncio.run(run())


def test_nobody_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    start = time.monotonic()
    with Client(url, retries=2) as client:
        for call in (client.models, lambda: list(client.stream_encode([pcm(10)]))):
            with pytest.raises(ServerError, match="is the server running") as error:
                call()
            assert error.value.status == 0
    assert time.monotonic() - start > 0.1


def test_torch_is_not_needed_to_ask():
    program = "import sys, xycodec.serve.client; assert not {'torch', 'fastapi', 'gradio'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_torch_tensors_are_blocks_too(url, codec):
    audio = torch.from_numpy(speech(RATE))
    with Client(url) as client:
        codes = np.concatenate(list(client.stream_encode(audio.split(1000))), axis=1)
    assert codes.shape == (3, 13)


def test_a_stream_that_is_refused_is_an_error_of_the_server():
    with running(tiny_codec(), token="s3cret") as (url, _), Client(url, token="wrong") as client:
        with pytest.raises(ServerError, match="the stream was refused") as told:
            list(client.stream_encode([np.zeros(1600, np.float32)]))
        assert told.value.status in (401, 403)


def test_a_file_that_is_not_there_is_one_line(url):
    with Client(url) as client, pytest.raises(XycodecError, match=r"missing\.wav"):
        client.encode("missing.wav")
