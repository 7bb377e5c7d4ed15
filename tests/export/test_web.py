"""The web page in a headless browser: codes and files as Python has them, both ways."""

import functools
import http.server
import shutil
import subprocess
import threading

import numpy as np
import pytest
import soundfile as sf
from tests.browser import CHROMIUM, chromium
from tests.exporting import make_codec, speech

from xycodec.errors import CheckpointError
from xycodec.export import web
from xycodec.export.web import export_web
from xycodec.io.xyc import CodecFile

SAVED = "Array.from(saved.bytes)"


@pytest.fixture(scope="module")
def page(exports, tmp_path_factory):
    """(codec, address of its page). Its runtime comes from npm."""
    if CHROMIUM is None:
        pytest.skip("the page is tested in Debian's chromium, which is not installed")
    codec, folder = exports("xy")
    site = tmp_path_factory.mktemp("web") / "site"
    try:
        web._fetch_runtime(site.parent / "runtime")
    except CheckpointError as error:
        pytest.skip(f"the page's runtime is not here: {error}")
    shutil.copytree(web._PAGE, site)
    shutil.copytree(site.parent / "runtime", site / "runtime")
    shutil.copytree(folder, site / "model")
    handler = functools.partial(Quiet, directory=site)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield codec, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server of files that prints nothing."""

    def log_message(self, *_):
        pass


@pytest.mark.long
def test_a_file_becomes_the_codes_of_python_and_back(page, tmp_path):
    codec, address = page
    samples = codec.window_samples + 12_345  # two windows
    sf.write(tmp_path / "talk.wav", speech(samples).numpy(), 16_000, "FLOAT")
    with chromium() as browser:
        browser.open(address)
        browser.wait("document.getElementById('status').textContent.startsWith('ready')", 60)
        browser.upload("#file", tmp_path / "talk.wav")
        browser.wait("typeof saved === 'object'", 60)
        written = CodecFile.from_bytes(bytes(browser.js(SAVED)))
        wanted = codec.encode_file(tmp_path / "talk.wav")
        assert written.to_bytes()[:-4][: 8 + 150].startswith(wanted.to_bytes()[:100])
        assert (written.num_samples, written.model, written.codes.shape) == (
            samples,
            codec.model_id,
            wanted.codes.shape,
        )
        agreement = np.mean(written.codes == wanted.codes)
        assert agreement > 0.999, agreement  # near-ties apart
        assert browser.js("document.getElementById('status').className") == ""
        assert browser.js("document.getElementById('decoded').querySelector('canvas').width") > 100
        # Python's file, one layer less, in the browser
        CodecFile.from_codes(wanted.codes[:2], codec, num_samples=samples).write(tmp_path / "python.xyc")
        browser.js("saved = undefined")
        browser.upload("#file", tmp_path / "python.xyc")
        browser.wait("saved !== undefined", 60)
        assert bytes(browser.js(SAVED)) == (tmp_path / "python.xyc").read_bytes()
        decode = "codec.decode(opened.codes, opened.samples, async () => {}).then((audio) => Array.from(audio))"
        heard = browser.js(f"(() => {{ const opened = codec.unpack(saved.bytes); return {decode}; }})()")
        np.testing.assert_allclose(heard, codec.decode_file(tmp_path / "python.xyc"), atol=1e-4, rtol=0)
        # A damaged one is refused in a line.
        damaged = bytearray((tmp_path / "python.xyc").read_bytes())
        damaged[-6] ^= 1
        (tmp_path / "damaged.xyc").write_bytes(damaged)
        browser.upload("#file", tmp_path / "damaged.xyc")
        assert "checksum" in browser.wait("document.querySelector('#status.bad')?.textContent", 20)


def test_without_npm_it_says_so_and_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(CheckpointError, match="npm is not installed"):
        export_web(make_codec("xy"), tmp_path / "site")
    monkeypatch.setattr(shutil, "which", lambda name: "npm")
    failed = subprocess.CompletedProcess([], 1, "", "no network\nmore")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(CheckpointError, match=r"npm cannot fetch .*\(no network\)"):
        export_web(make_codec("xy"), tmp_path / "site")
    assert list(tmp_path.iterdir()) == []
