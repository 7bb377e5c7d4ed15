"""Headless Chromium, driven over its debugging port."""

import base64
import itertools
import json
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
from websockets.sync.client import connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Tab:
    """One tab. `requested` are the addresses that it has asked for, but for data: and blob:."""

    def __init__(self, connection):
        self._connection, self._numbers = connection, itertools.count(1)
        self.requested, self.problems = set(), []
        for domain in ("Page", "Runtime", "Network", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._connection.recv(timeout=60))
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    def _note(self, message):
        if message.get("method") == "Network.requestWillBeSent":
            url = message["params"]["request"]["url"]
            if not url.startswith(("data:", "blob:")):
                self.requested.add(url)
        elif message.get("method") == "Runtime.exceptionThrown":
            self.problems.append(message["params"]["exceptionDetails"]["text"])

    def js(self, expression):
        """The value of an expression; promises are waited for."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, expression, seconds=40):
        """Wait until an expression is true, and return it; while a page is built, one may also fail."""
        deadline = time.monotonic() + seconds
        while not (value := self.js(f"(() => {{ try {{ return {expression} }} catch {{ return null }} }})()")):
            shown = self.js("document.body?.innerText")
            assert time.monotonic() < deadline, f"never came: {expression}, in {shown}"
            time.sleep(0.1)
        return value

    def look(self, width, height, *, dark=False, mobile=False):
        """Take the size of a screen, and a preference for light or dark."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)

    def open(self, url):
        self.call("Page.navigate", url=url)
        self.wait("document.readyState == 'complete'")

    def upload(self, selector, path):
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def press(self, key, code):
        for kind in ("keyDown", "keyUp"):
            text = {"Enter": "\r", " ": " "}.get(key, "") if kind == "keyDown" else ""
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, text=text)

    def screenshot(self, path):
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 4000), "scale": 1}
        shot = self.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        Path(path).write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def chromium():
    """A tab of a browser that ends with the block, and leaves nothing on the disk."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command = [
            *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--mute-audio", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
            *("--autoplay-policy=no-user-gesture-required", f"--user-data-dir={folder}", "--remote-debugging-port=0"),
            "about:blank",
        ]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                port_file = Path(folder) / "DevToolsActivePort"
                deadline = time.monotonic() + 60
                while not (port_file.exists() and port_file.read_text().strip()):
                    assert process.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
                port = port_file.read_text().split()[0]
                tabs = httpx.get(f"http://127.0.0.1:{port}/json", trust_env=False).json()
                address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
                with connect(address, proxy=None, max_size=None, ping_interval=None) as connection:
                    yield Tab(connection)
            finally:
                process.kill()
