import importlib.util
import json
import time

import httpx
import pytest
from tests.browser import CHROMIUM, chromium
from tests.serve.servers import running

from xycodec.checkpoints.load import BUNDLED, load_codec

FOX = BUNDLED / "fox.flac"
SECONDS = 7.345

if importlib.util.find_spec("gradio") is None:
    pytest.skip("the page needs gradio: pip install 'xycodec[page]'", allow_module_level=True)


pytestmark = pytest.mark.filterwarnings("ignore")  # those of the page's library


@pytest.fixture(scope="module")
def codec():
    return load_codec("xy-mini", device="cpu")


@pytest.fixture(scope="module")
def page(codec):
    """(address, service) of a server that has the page."""
    with running(codec, page=True) as (url, service):
        yield url, service


@pytest.fixture(scope="module")
def heard(page):
    """A tab in which a file was uploaded and the button pressed, by keyboard."""
    with chromium() as tab:
        tab.look(1400, 900)
        tab.open(f"{page[0]}/")
        tab.wait("!!document.querySelector('#speech input[type=file]')")
        tab.upload("#speech input[type=file]", FOX)
        tab.wait("!document.querySelector('#speech input[type=file]')")
        tab.wait("!document.querySelector('#run').disabled")
        tab.js("document.querySelector('#run').focus()")
        tab.press("Enter", 13)
        tab.wait("document.querySelectorAll('#players audio').length == 2")
        tab.wait("[...document.querySelectorAll('#players audio')].every((audio) => audio.duration > 0)")
        yield tab


def test_the_address_leads_to_the_page_and_the_page_names_no_other(page):
    url, _ = page
    start = httpx.get(url, trust_env=False)
    assert (start.status_code, start.headers["location"]) == (307, "/page/")
    text = httpx.get(f"{url}/page/", trust_env=False).text
    for outside in ("googleapis", "gstatic", "cdnjs", "unpkg", "jsdelivr"):
        assert outside not in text
    assert httpx.get(f"{url}/v1/none", trust_env=False).json()["status"] == 404


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
class TestInABrowser:
    """What a person does with the page: upload, press the button, listen, look, download."""

    def test_both_players_last_as_long_as_the_recording(self, heard):
        assert heard.js("[...document.querySelectorAll('#players audio')].map((audio) => audio.duration)") == (
            pytest.approx([SECONDS, SECONDS], abs=0.001)
        )

    def test_the_picture_is_visible_and_has_words(self, heard):
        heard.wait("document.querySelector('#picture img').complete")
        box = heard.js("document.querySelector('#picture img').getBoundingClientRect().toJSON()")
        assert box["width"] > 600
        assert box["height"] > 400
        assert heard.js("document.querySelector('#picture img').naturalWidth") == 1200
        assert "Spectrograms" in heard.js("document.querySelector('#picture img').alt")

    def test_facts(self, heard):
        facts = heard.js("document.querySelector('#facts').innerText")
        for part in ("7.34 s", "1,000 bit/s", "1,078 bytes", "STOI"):
            assert part in facts

    def test_the_switch_keeps_the_place_in_time(self, heard):
        """By keyboard: Tab reaches it, Space presses it."""
        heard.js("document.querySelector('#players audio').currentTime = 3.25")
        heard.wait("document.querySelector('#players audio').currentTime == 3.25")
        heard.js("document.querySelector('#players audio').play()")
        heard.wait("document.querySelector('#players audio').currentTime > 3.3")
        heard.js("document.querySelector('.switch').focus()")
        heard.press(" ", 32)
        heard.wait("!document.querySelectorAll('#players audio')[1].paused")
        first, second = heard.js("[...document.querySelectorAll('#players audio')].map((audio) => audio.currentTime)")
        assert first <= second < first + 2
        assert heard.js("document.querySelector('#players audio').paused")
        assert heard.js("document.querySelector('figure.now figcaption').innerText") == "Decoded"
        heard.js("document.querySelectorAll('#players audio')[1].pause()")

    def test_the_download_is_what_the_command_line_writes(self, heard, codec, tmp_path):
        heard.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        heard.js("document.querySelector('#download').click()")
        deadline = time.monotonic() + 20
        while not (found := list(tmp_path.glob("*.xyc"))):
            assert time.monotonic() < deadline
            heard.js("1")
            time.sleep(0.1)
        assert found[0].name == "fox.xyc"
        assert found[0].read_bytes() == codec.encode_file(FOX).to_bytes()

    def test_an_example_and_fewer_codebooks(self, heard):
        heard.js("document.querySelector('#players').dataset.old = 1")
        heard.js("[...document.querySelectorAll('button')].find((b) => b.innerText.includes('numbers.flac')).click()")
        heard.wait("document.querySelector('#speech').innerText.includes('0:0')")
        number = "document.querySelector('#codebooks input[type=number]')"
        choose = f"{number}.value = 2; {number}.dispatchEvent(new Event('input', {{bubbles: true}}))"
        deadline = time.monotonic() + 60
        # As a person does: what was pressed while the example was still coming is pressed again.
        while "250 bit/s" not in heard.js("document.querySelector('#facts').innerText"):
            assert time.monotonic() < deadline
            heard.js(f"{choose}; {number}.dispatchEvent(new Event('change', {{bubbles: true}}))")
            heard.wait("!document.querySelector('#run').disabled")
            time.sleep(0.5)
            heard.js("document.querySelector('#run').click()")
            time.sleep(2)

    @pytest.mark.parametrize(("width", "mobile"), [(390, True), (1400, False)])
    @pytest.mark.parametrize("dark", [False, True])
    def test_it_fits_a_phone_and_the_dark(self, heard, width, mobile, dark):
        heard.look(width, 844, dark=dark, mobile=mobile)
        heard.wait(f"window.innerWidth == {width}")
        assert heard.js("document.documentElement.scrollWidth") <= width
        for place in ("#run", "#players audio", ".switch"):
            box = heard.js(f"document.querySelector('{place}').getBoundingClientRect().toJSON()")
            assert 0 <= box["left"] < box["right"] <= width

    def test_dark_is_what_the_system_prefers(self, heard, page):
        heard.look(1400, 900, dark=True)
        heard.open(f"{page[0]}/")
        heard.wait("!!document.querySelector('#speech')")
        heard.wait("document.body.classList.contains('dark')")
        colour = heard.js("getComputedStyle(document.body).backgroundColor")
        assert sum(json.loads(colour.replace("rgb(", "[").replace(")", "]"))) < 200

    def test_an_upload_that_is_no_audio_is_told(self, heard, page, tmp_path):
        (tmp_path / "notes.wav").write_text("no audio at all")
        heard.open(f"{page[0]}/")
        heard.wait("!!document.querySelector('#speech input[type=file]')")
        heard.upload("#speech input[type=file]", tmp_path / "notes.wav")
        heard.wait("!document.querySelector('#speech input[type=file]')")
        heard.wait("!document.querySelector('#run').disabled")
        heard.js("document.querySelector('#run').click()")
        heard.wait("document.body.innerText.includes('not audio that can be read')")

    def test_nothing_was_asked_of_elsewhere(self, heard, page):
        assert {address for address in heard.requested if not address.startswith(page[0])} == set()
        assert heard.problems == []
