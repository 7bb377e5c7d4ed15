import io
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import soundfile as sf
import torch
from tests.serve.servers import RATE, audio_file, metric, running, speech, tiny_codec

from xycodec.io.xyc import CodecFile
from xycodec.serve.client import Client
from xycodec.serve.exchange import accepted
from xycodec.serve.problems import MEDIA_TYPE, Problem
from xycodec.serve.settings import Limits


def post(url, path, data=b"", field="audio", accept="*/*", fields=None, **options):
    return httpx.post(
        url + path,
        files={field: ("x", data)},
        data=fields or {},
        headers={"Accept": accept},
        trust_env=False,
        **options,
    )


def refused(response, status, part=""):
    """Whether a response is a problem of this status that says `part` in one line."""
    assert response.headers["content-type"] == MEDIA_TYPE
    body = response.json()
    assert set(body) == {"type", "title", "status", "detail"}
    assert (response.status_code, body["status"]) == (status, status), body
    assert part in body["detail"]
    assert "\n" not in body["detail"]
    return True


# what it does


@pytest.mark.parametrize("container", ["WAV", "FLAC", "OGG", "MP3"])
def test_codes_are_those_of_the_file(url, codec, container):
    data = audio_file(speech(50_001), container=container)
    assert post(url, "/v1/encode", data).content == codec.encode_file(io.BytesIO(data)).to_bytes()


def test_another_rate_and_two_channels(url, codec):
    data = audio_file(np.stack([speech(30_000), speech(30_000, seed=1)], 1), 44_100)
    assert post(url, "/v1/encode", data).content == codec.encode_file(io.BytesIO(data)).to_bytes()


def test_codes_as_json_and_npz(url, codec):
    data = audio_file(speech(20_000))
    file = codec.encode_file(io.BytesIO(data))
    answer = post(url, "/v1/encode", data, accept="application/json").json()
    assert np.array_equal(answer["codes"], file.codes)
    assert (answer["model"], answer["num_samples"]) == ("tiny", 20_000)
    packed = np.load(io.BytesIO(post(url, "/v1/encode", data, accept="application/x-npz").content))
    assert np.array_equal(packed["codes"], file.codes)
    assert packed["num_samples"] == 20_000
    # What one route says another takes.
    heard = httpx.post(f"{url}/v1/decode", json=answer, trust_env=False)
    assert heard.content == post(url, "/v1/decode", file.to_bytes(), field="codes").content


@pytest.mark.parametrize("accept", ["audio/wav", "audio/flac"])
def test_decoded_audio_is_that_of_the_library(url, codec, tmp_path, accept):
    file = codec.encode_file(io.BytesIO(audio_file(speech(70_001))))
    target = tmp_path / f"x.{accept[6:]}"
    codec.decode_file(file, target)
    response = post(url, "/v1/decode", file.to_bytes(), field="codes", accept=accept)
    assert response.headers["content-type"] == accept
    assert response.content == target.read_bytes()


def test_opus_and_a_round_trip_of_fewer_codebooks(url, codec):
    data = audio_file(speech(40_000))
    response = post(url, "/v1/roundtrip", data, accept="audio/ogg", fields={"n_q": "2", "model": "tiny"})
    assert sf.info(io.BytesIO(response.content)).duration == pytest.approx(2.5, abs=0.02)
    assert response.headers["x-xycodec-bitrate"] == f"{2 * 5 * 12.5:.1f}"
    heard = sf.read(io.BytesIO(post(url, "/v1/roundtrip", data, fields={"n_q": "2"}).content), dtype="int16")[0]
    expected = codec.decode_file(codec.encode_file(io.BytesIO(data), n_q=2)).numpy()
    assert np.abs(heard / 32768 - expected.clip(-1, 1)).max() <= 1 / 32768


@pytest.mark.exact
def test_what_a_client_gets_does_not_depend_on_who_else_asks(url, codec):
    clips = [audio_file(speech(3000 + 9000 * i, seed=i)) for i in range(16)]
    with Client(url) as client, ThreadPoolExecutor(16) as pool:
        files = list(pool.map(client.encode, clips))
        heard = list(pool.map(client.decode, files))
    for clip, file, audio in zip(clips, files, heard, strict=True):
        assert file == codec.encode_file(io.BytesIO(clip))
        expected = codec.decode_file(file)
        assert np.abs(sf.read(io.BytesIO(audio))[0] - expected.clip(-1, 1).numpy()).max() <= 1 / 32768
    assert metric(url, "xycodec_batch_windows_bucket", direction="encode", le="1.0") < metric(
        url, "xycodec_batch_windows_count", direction="encode"
    )


def test_models_health_documents_and_numbers(url):
    (model,) = httpx.get(f"{url}/v1/models", trust_env=False).json()
    assert (model["name"], model["n_q"], model["frame_rate"], model["window_s"]) == ("tiny", 3, 12.5, 2.0)
    for path in ("/healthz", "/readyz"):
        assert httpx.get(url + path, trust_env=False).status_code == 200
    page = httpx.get(f"{url}/docs", trust_env=False).text
    assert "/v1/encode" in page
    for outside in ("<script", "@import", "http://cdn", "https://"):
        assert outside not in page
    seconds = metric(url, "xycodec_audio_seconds_total", direction="encode")
    post(url, "/v1/encode", audio_file(speech(2 * RATE)))
    assert metric(url, "xycodec_audio_seconds_total", direction="encode") == pytest.approx(seconds + 2)
    assert metric(url, "xycodec_requests_total", route="/v1/encode", status="200") >= 1
    assert metric(url, "xycodec_requests_in_progress") == 0
    for made_up in ("/v1/a", "/v1/b"):
        httpx.get(url + made_up, trust_env=False)
        assert metric(url, "xycodec_requests_total", route=made_up, status="404") == 0


# what it refuses


@pytest.mark.parametrize(
    ("data", "status", "part"),
    [
        (b"", 422, "empty"),
        (b"hello, this is no audio at all", 415, "not audio"),
        (b"\x89PNG\r\n\x1a\n" + bytes(500), 415, "not audio"),
        (audio_file(speech(0)), 422, "no samples"),
        (audio_file(np.full(100, np.nan, np.float32), subtype="FLOAT"), 422, "NaN"),
        (audio_file(speech(20_000), container="FLAC")[:9000], 422, ""),
    ],
)
def test_uploads_that_are_no_sound_audio(url, data, status, part):
    assert refused(post(url, "/v1/encode", data), status, part)


def test_requests_that_are_no_requests(url):
    data = audio_file(speech())
    assert refused(post(url, "/v1/encode", data, field="file"), 422, "'audio'")
    assert refused(httpx.post(f"{url}/v1/encode", content=data, trust_env=False), 415, "multipart")
    broken = {"Content-Type": "multipart/form-data; boundary=x"}
    assert refused(httpx.post(f"{url}/v1/encode", content=b"--y", headers=broken, trust_env=False), 400, "form")
    none = {"Content-Type": "multipart/form-data"}
    assert refused(httpx.post(f"{url}/v1/encode", content=b"--y", headers=none, trust_env=False), 400, "form")
    for n_q in ("0", "4", "-1", "x", "1.0", "9" * 5000):
        assert refused(post(url, "/v1/encode", data, fields={"n_q": n_q}), 422, "n_q")
    assert refused(post(url, "/v1/encode", data, fields={"model": "/etc/passwd"}), 422, "not loaded")
    assert refused(post(url, "/v1/encode", data, accept="text/html"), 406, "Accept")
    assert refused(httpx.get(f"{url}/v1/encode", trust_env=False), 405, "Method")
    assert refused(httpx.get(f"{url}/v1/none", trust_env=False), 404, "/docs")


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"{", "the body"),
        (b"[]", "the body"),
        (b'{"model": "tiny", "codes": [[1, 2], [3]], "num_samples": 10}', "equal length"),
        (b'{"model": "tiny", "codes": [[1]], "num_samples": 99999}', "frames"),
        (b'{"model": "tiny", "codes": [[32]], "num_samples": 10}', "0..31"),
        (b'{"model": "tiny", "codes": [[-1]], "num_samples": 10}', "0..31"),
        (b'{"model": "tiny", "codes": [[1e30]], "num_samples": 10}', "codes"),
        (b'{"model": "tiny", "codes": [[99999999999999999999]], "num_samples": 10}', ""),
        (b'{"model": "other", "codes": [[1]], "num_samples": 10}', "not loaded"),
        (b'{"model": "tiny", "codes": [[1],[1],[1],[1]], "num_samples": 10}', "shape"),
        (b'{"model": "tiny", "codes": [[]], "num_samples": 0}', "no codes"),
    ],
)
def test_codes_that_are_none(url, body, part):
    response = httpx.post(
        f"{url}/v1/decode", content=body, headers={"Content-Type": "application/json"}, trust_env=False
    )
    assert refused(response, 422, part)


def test_code_files_that_are_none(url, codec):
    file = codec.encode_file(io.BytesIO(audio_file(speech())))
    for data, part in [
        (b"", "not a .xyc"),
        (file.to_bytes()[:-1], "cut off"),
        (file.to_bytes()[:-1] + b"x", "checksum"),
    ]:
        assert refused(post(url, "/v1/decode", data, field="codes"), 422, part)
    other = tiny_codec(model_id="strange")
    assert refused(
        post(url, "/v1/decode", CodecFile.from_codes(file.codes, other).to_bytes(), field="codes"), 422, "loaded"
    )


def test_large_and_long_uploads_are_refused_early():
    codec = tiny_codec()
    with running(codec, limits=Limits(upload_mb=1, clip_s=3)) as (url, _):
        assert refused(post(url, "/v1/encode", bytes(1_100_000)), 413, "1 MB")
        head = b'--x\r\nContent-Disposition: form-data; name="audio"; filename="a"\r\n\r\n'
        chunks = (head if i == 0 else bytes(100_000) for i in range(20))
        form = {"Content-Type": "multipart/form-data; boundary=x"}
        try:
            answer = httpx.post(f"{url}/v1/encode", content=chunks, headers=form, trust_env=False)
        except httpx.TransportError:
            pass  # the connection is closed on what goes on being sent
        else:
            assert refused(answer, 413, "1 MB")
        # 40 minutes of silence are a few kilobytes.
        bomb = audio_file(np.zeros(40 * 60 * 8000, np.float32), 8000, "FLAC")
        assert len(bomb) < 1_000_000
        assert refused(post(url, "/v1/encode", bomb), 413, "3 s")
        codes = CodecFile.from_codes(torch.zeros(3, 100, dtype=torch.int64), codec)
        assert refused(post(url, "/v1/decode", codes.to_bytes(), field="codes"), 413, "3 s")
        assert post(url, "/v1/encode", audio_file(speech())).status_code == 200


# who may ask


def test_a_token():
    with running(tiny_codec(), token="s3cret") as (url, _):
        for path in ("/v1/models", "/metrics", "/docs", "/openapi.json"):
            assert refused(httpx.get(url + path, trust_env=False), 401, "token")
            for wrong in ("Bearer s3cre", "Bearer x", "Basic ???", "Basic Zm9vOmJhcg==", "s3cret"):
                headers = {"Authorization": wrong}
                assert httpx.get(url + path, headers=headers, trust_env=False).status_code == 401
            assert httpx.get(url + path, headers={"Authorization": "Bearer s3cret"}, trust_env=False).status_code == 200
            assert httpx.get(url + path, auth=("anyone", "s3cret"), trust_env=False).status_code == 200
        assert httpx.get(f"{url}/healthz", trust_env=False).status_code == 200
        with Client(url, token="s3cret") as client:
            assert client.models()[0]["name"] == "tiny"


def test_pages_of_other_sites_are_refused(url):
    assert refused(
        httpx.get(f"{url}/v1/models", headers={"Origin": "http://evil.example"}, trust_env=False), 403, "sites"
    )
    response = httpx.get(f"{url}/v1/models", headers={"Origin": url}, trust_env=False)
    assert response.status_code == 200
    assert not [name for name in response.headers if name.startswith("access-control")]


# workers


def test_a_killed_worker_is_replaced():
    with running(tiny_codec()) as (url, service):
        data = audio_file(speech())
        assert post(url, "/v1/encode", data).status_code == 200
        worker = service.workers._idle.get()
        service.workers._idle.put(worker)
        os.kill(worker.process.pid, signal.SIGSTOP)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(post, url, "/v1/encode", data)
            os.kill(worker.process.pid, signal.SIGKILL)
            first = answer.result()
        # It dies with the request, or before: then the request goes to another.
        assert first.status_code in (200, 503)
        assert post(url, "/v1/encode", data).status_code == 200
        assert metric(url, "xycodec_audio_workers_lost_total") == 1


def test_a_worker_that_hangs_is_killed():
    with running(tiny_codec(), limits=Limits(audio_s=0.5)) as (url, service):
        worker = service.workers._idle.get()
        service.workers._idle.put(worker)
        os.kill(worker.process.pid, signal.SIGSTOP)
        assert refused(post(url, "/v1/encode", audio_file(speech())), 422, "0.5 s")
        assert not worker.process.is_alive()


# what is asked for


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, "a/x"), ("", "a/x"), ("*/*", "a/x"), ("a/*", "a/x"), ("b/y", "b/y"), ("b/*;q=0.5, a/x;q=0.4", "b/y"),
        ("text/html, b/y;q=0.3, */*;q=0.1", "b/y"), ("A/X", "a/x"), ("b/y;q=bad, a/x", "a/x"),
    ],
)  # fmt: skip
def test_what_accept_likes_best(accept, kind):
    assert accepted(accept, ["a/x", "b/y"]) == kind


@pytest.mark.parametrize("accept", ["text/html", "a/x;q=0", ";;", "a"])
def test_accept_that_takes_nothing(accept):
    with pytest.raises(Problem) as error:
        accepted(accept, ["a/x", "b/y"])
    assert error.value.status == 406
