"""The page for people: upload or record speech, hear it after the codec, see it, and take the codes home (Gradio)."""

import asyncio
import base64
import os
import shutil
import tempfile
from functools import partial
from html import escape
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from fastapi import FastAPI
from matplotlib import rc_context
from numpy.typing import NDArray

from xycodec.eval.metrics.quality import measure_quality
from xycodec.eval.results import METRICS, Scores
from xycodec.io.audio import write_audio
from xycodec.io.pictures import SHOWN_S, draw_roundtrip
from xycodec.io.rate import SPEECH_RATE
from xycodec.io.reader import resampled
from xycodec.io.xyc import CodecFile
from xycodec.serve.problems import Problem
from xycodec.serve.service import Service

PATH = "/page"
LONGEST_S = 120.0
"""Seconds of a recording that the page takes; the API takes more."""
_EXAMPLES = ("fox.flac", "harbour.flac", "numbers.flac")
_METRICS = ("stoi", "mel_distance")
_ASSETS = Path(__file__).parents[1] / "assets"
_drawing = Lock()
_INK = "#768390"  # readable on white and on black
_DRAWN: dict[Any, Any] = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
    "font.size": 12,
}
_STYLE = """
.gradio-container { max-width: 76rem !important; margin: auto; }
.players { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: 1rem; }
.players figure { margin: 0; padding: 0.7rem; border: 2px solid var(--border-color-primary); border-radius: 0.6rem; }
.players figure.now { border-color: var(--primary-500); }
.players figcaption { font-weight: 600; margin-bottom: 0.4rem; color: var(--body-text-color); }
.players audio { width: 100%; }
.switch { margin: 0.8rem 0; padding: 0.6rem 1.2rem; border-radius: 0.5rem; font-weight: 600; cursor: pointer;
  color: var(--button-secondary-text-color); background: var(--button-secondary-background-fill);
  border: 1px solid var(--border-color-primary); }
.switch:focus-visible { outline: 3px solid var(--primary-500); outline-offset: 2px; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: 0.6rem;
  margin: 0.4rem 0 1rem; }
.facts div { padding: 0.5rem 0.8rem; border-radius: 0.5rem; background: var(--background-fill-secondary); }
.facts dt { font-size: 0.85rem; color: var(--body-text-color); opacity: 0.75; }
.facts dd { margin: 0; font-size: 1.1rem; font-weight: 600; color: var(--body-text-color); }
.dark .players audio { color-scheme: dark; }
.picture { overflow-x: auto; contain: inline-size; } .picture img { width: 100%; min-width: 40rem; }
.picture:focus-visible { outline: 3px solid var(--primary-500); }
"""
_SWITCH = """
element.addEventListener('click', (event) => {
  if (!event.target.closest('.switch')) return;
  const [one, other] = element.querySelectorAll('audio');
  const decodedPlays = other.closest('figure').classList.contains('now');
  const [from, to] = decodedPlays ? [other, one] : [one, other];
  const playing = !from.paused;
  from.pause();
  to.currentTime = Math.min(from.currentTime, to.duration || from.currentTime);
  if (playing) to.play();
  from.closest('figure').classList.remove('now');
  to.closest('figure').classList.add('now');
});
element.addEventListener('play', (event) => {
  element.querySelectorAll('audio').forEach((audio) => {
    audio.closest('figure').classList.toggle('now', audio === event.target);
    if (audio !== event.target) audio.pause();
  });
}, true);
"""


def add_page(app: FastAPI, service: Service) -> None:
    """Mount the page at `PATH`. Not to be called where an event loop runs."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import gradio as gr

    system = ["system-ui", "sans-serif"]
    theme = gr.themes.Default(font=system, font_mono=["ui-monospace", "monospace"])

    async def mount() -> None:
        gr.mount_gradio_app(
            app, _blocks(gr, service), PATH, theme=theme, css=_STYLE, footer_links=[], show_error=True,
            max_file_size=service.settings.limits.upload_mb * 1_000_000, ssr_mode=False, enable_monitoring=False,
            pwa=False,
        )  # fmt: skip

    # Where no event loop runs, Gradio makes some for its locks and never closes them.
    asyncio.run(mount())


def _blocks(gr: Any, service: Service) -> Any:
    """The page's components, and what its button does."""
    with gr.Blocks(analytics_enabled=False, title="xycodec", delete_cache=(3600, 3600)) as page:
        gr.Markdown("# xycodec\nSpeech as a few discrete codes, and what is heard of them.")
        with gr.Row():
            with gr.Column(scale=3):
                audio = gr.Audio(
                    sources=["upload", "microphone"], type="filepath", label="Speech", buttons=[], elem_id="speech"
                )
                gr.Examples([str(_ASSETS / name) for name in _EXAMPLES], inputs=audio, label="Examples")
            with gr.Column(scale=2):
                model = gr.Dropdown(label="Model", choices=[], elem_id="model")
                n_q = gr.Slider(1, 8, value=8, step=1, label="Codebooks", elem_id="codebooks")
                button = gr.Button("Encode and decode", variant="primary", elem_id="run")
                download = gr.DownloadButton("Download .xyc", interactive=False, elem_id="download")
        facts = gr.HTML(elem_id="facts")
        players = gr.HTML(elem_id="players", js_on_load=_SWITCH)
        picture = gr.HTML(elem_id="picture")

        def offer() -> Any:
            names = list(service.engines)
            return gr.Dropdown(choices=names, value=names[0], visible=len(names) > 1), layers_of(names[0])

        def layers_of(name: str) -> Any:
            most = service.engine(name).codec.n_q
            return gr.Slider(1, most, value=most, step=1)

        async def run(path: str | None, name: str, layers: int) -> Any:
            if path is None:
                raise gr.Error("Upload or record speech first, or choose an example.", duration=8)
            try:
                heard = await _hear(service, Path(path), name, int(layers))
            except Problem as problem:
                raise gr.Error(escape(problem.detail), duration=8) from None
            return heard.facts, heard.players, heard.picture, gr.DownloadButton(value=heard.codes, interactive=True)

        page.load(offer, outputs=[model, n_q], api_visibility="private")
        model.change(layers_of, model, n_q, api_visibility="private")
        button.click(
            run, [audio, model, n_q], [facts, players, picture, download],
            concurrency_limit=4, api_visibility="private",
        )  # fmt: skip
    return page


class _Heard:
    """All that the page shows of one recording."""

    def __init__(self, facts: str, players: str, picture: str, codes: str) -> None:
        self.facts, self.players, self.picture, self.codes = facts, players, picture, codes


async def _hear(service: Service, path: Path, name: str, n_q: int) -> _Heard:
    """Encode, decode, measure and draw. Raises Problem."""
    engine = service.engine(name)
    codec, workers = engine.codec, service.workers
    rate, output_rate = codec.input_sample_rate, codec.output_sample_rate
    data = await asyncio.to_thread(path.read_bytes)
    before = await workers.read(data, rate, min(LONGEST_S, service.settings.limits.clip_s))
    file = await service.encode_samples(before, engine, n_q)
    after = await service.decode(file, engine)
    sounds = [await workers.write(one, r, ".flac") for one, r in ((before, rate), (after, output_rate))]
    folder = Path(tempfile.mkdtemp(prefix="xycodec-page-"))
    # The page's library copies the codes when they are returned.
    asyncio.get_running_loop().call_later(60, partial(shutil.rmtree, folder, ignore_errors=True))
    scores, picture = await asyncio.gather(
        asyncio.to_thread(_measured, before, after, output_rate),
        asyncio.to_thread(_drawn, before, after, file, output_rate, folder),
    )
    codes = folder / f"{path.stem}.xyc"
    file.write(codes)
    return _Heard(_facts(file, len(data), scores), _players(sounds), picture, str(codes))


def _measured(original: NDArray[np.float32], decoded: NDArray[np.float32], output_rate: int) -> Scores:
    again = [decoded] if output_rate == SPEECH_RATE else resampled([decoded], output_rate, SPEECH_RATE)
    return measure_quality(again, [original], _METRICS)


def _drawn(
    before: NDArray[np.float32], after: NDArray[np.float32], file: CodecFile, output_rate: int, folder: Path
) -> str:
    """The picture, as HTML."""
    codes, original, decoded, picture = (
        folder / name for name in ("xyc", "original.wav", "decoded.wav", "picture.png")
    )
    file.write(codes)
    write_audio(original, before, file.sample_rate)
    write_audio(decoded, after, output_rate)
    with _drawing, rc_context(_DRAWN):  # which belongs to the process
        draw_roundtrip(str(original), str(codes), str(decoded), picture)
    shown = f", the first {SHOWN_S:g} s" if file.duration > SHOWN_S else ""
    words = f"Spectrograms of the original and of what was decoded, and the map of the codes{shown}"
    image = f'<img src="data:image/png;base64,{_text(picture.read_bytes())}" alt="{words}">'
    return f'<div class="picture" tabindex="0" role="group" aria-label="Picture">{image}</div>'


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _players(sounds: list[bytes]) -> str:
    figures = [
        f'<figure class="{"now" if title == "Original" else ""}"><figcaption>{title}</figcaption>'
        f'<audio controls preload="auto" aria-label="{title}" '
        f'src="data:audio/flac;base64,{_text(sound)}"></audio></figure>'
        for title, sound in zip(("Original", "Decoded"), sounds, strict=True)
    ]
    button = '<button class="switch" type="button">Switch between original and decoded</button>'
    return f'<div class="players">{"".join(figures)}</div>{button}'


def _facts(file: CodecFile, size: int, scores: Scores) -> str:
    measured = [
        (METRICS[name].title, f"{scores.values[name]:.{METRICS[name].digits}f}" if name in scores.values else "none")
        for name in _METRICS
    ]
    rows = [
        ("Duration", f"{file.duration:.2f} s"),
        ("Bitrate", f"{file.bitrate:,.0f} bit/s"),
        ("Upload", f"{size:,} bytes"),
        ("Codes", f"{file.num_bytes:,} bytes"),
        *measured,
    ]
    cells = "".join(f"<div><dt>{escape(title)}</dt><dd>{escape(value)}</dd></div>" for title, value in rows)
    return f'<dl class="facts">{cells}</dl>'
