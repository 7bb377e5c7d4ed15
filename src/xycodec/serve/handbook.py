"""The server's documentation page, made of its OpenAPI description: no scripts, fonts or styles from elsewhere."""

from html import escape
from typing import Any

from xycodec.serve.settings import PORT

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 50rem; margin: 2rem auto; padding: 0 1rem; }
code, pre { font: 0.9rem ui-monospace, monospace; }
pre { overflow-x: auto; padding: 0.7rem; border: 1px solid #8885; border-radius: 0.4rem; }
h2 { margin-top: 2.2rem; font-size: 1.15rem; }
table { border-collapse: collapse; } td { padding: 0.1rem 1rem 0.1rem 0; vertical-align: top; }
"""
_EXAMPLES = {
    "/v1/encode": "curl -F audio=@talk.mp3 {url}/v1/encode -o talk.xyc",
    "/v1/decode": "curl -F codes=@talk.xyc -H 'Accept: audio/flac' {url}/v1/decode -o talk.flac",
    "/v1/roundtrip": "curl -F audio=@talk.mp3 -F n_q=4 {url}/v1/roundtrip -o heard.wav",
}
_STREAM = """
<h2><code>WebSocket /v1/stream</code> Streams</h2>
<p>Text messages are JSON, binary ones data. Send <code>{"type": "start", "direction": "encode"}</code> (or
<code>decode</code>; also <code>model</code>, <code>n_q</code>, <code>windows</code>); the answer
<code>{"type": "ready", ...}</code> states rates and latency. Then PCM goes in (16-bit, little-endian, mono) and codes
come out (uint16, little-endian, frame by frame), or the reverse. <code>{"type": "end"}</code> asks for the rest, and is
answered when all of it was sent; <code>{"type": "ping"}</code> is answered by <code>pong</code>.</p>
"""


def handbook(openapi: dict[str, Any]) -> str:
    """Return the page, HTML."""
    parts = []
    for path, methods in openapi["paths"].items():
        for method, route in methods.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code> {escape(route['summary'])}</h2>")
            if path in _EXAMPLES:
                parts.append(f"<pre>{escape(_EXAMPLES[path].format(url=f'http://127.0.0.1:{PORT}'))}</pre>")
            parts.append(_fields(route.get("requestBody", {})) + _answers(route["responses"]))
    head = f"<title>xycodec API</title><style>{_STYLE}</style>"
    intro = "<p>As a description for programs: <a href='openapi.json'>openapi.json</a>.</p>"
    viewport = "<meta name=viewport content='width=device-width'>"
    body = f"<h1>xycodec API {escape(openapi['info']['version'])}</h1>{intro}{''.join(parts)}{_STREAM}"
    return f"<!doctype html><html lang=en><meta charset=utf-8>{viewport}{head}<body>{body}</body></html>"


def _fields(body: dict[str, Any]) -> str:
    rows = []
    for kind, content in body.get("content", {}).items():
        for name, about in content["schema"].get("properties", {}).items():
            what = about.get("description") or ("a file" if about.get("format") == "binary" else about.get("type", ""))
            rows.append(f"<tr><td>{escape(kind)}<td><code>{escape(name)}</code><td>{escape(what)}")
    return f"<table>{''.join(rows)}</table>" if rows else ""


def _answers(responses: dict[str, Any]) -> str:
    rows = [
        f"<tr><td>{status}<td>{escape(about['description'])}<td>{escape(', '.join(about.get('content', {})))}"
        for status, about in responses.items()
    ]
    return f"<details><summary>Responses</summary><table>{''.join(rows)}</table></details>"
