"""The picture of a round trip: what went in, what came out, and the codes between them."""

from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from xycodec.errors import AudioError
from xycodec.io.audio import ignore, stream_audio
from xycodec.io.files import atomic_path
from xycodec.io.xyc import CodecFile
from xycodec.nn.mel import mel_filterbank

SHOWN_S = 30.0
_FFT, _HOP, _BINS = 1024, 256, 80
_RANGE_DB = 80
_MARKS_KHZ = (0.25, 0.5, 1, 2, 4, 8, 16)

Samples = NDArray[np.float32]


def draw_roundtrip(source: str, code_file: str, decoded: str, target: str | Path, *, title: str | None = None) -> None:
    """Write a PNG of 1200 x 800 with both log-mel spectrograms and the code map, of the first 30 s, to `target`."""
    codes = CodecFile.read(code_file)
    rate = codes.sample_rate
    before, after = (next(islice(stream_audio(name, rate, SHOWN_S, tell=ignore), 1)) for name in (source, decoded))
    seconds = len(before) / rate

    figure = Figure(figsize=(12, 8), layout="constrained")
    if title is not None:
        figure.suptitle(title, fontsize=13)
    axes = figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 2])
    _draw_spectrograms(figure, axes[:2], before, after, rate)
    _draw_codes(figure, axes[2], codes, seconds)
    axes[2].set(xlabel="seconds", xlim=(0, seconds))
    with atomic_path(target, AudioError) as scratch:
        figure.savefig(scratch, format="png", dpi=100)


def draw_pair(before: Samples, after: Samples, sample_rate: int) -> Figure:
    """Log-mel spectrograms of two 1-D signals at `sample_rate`, one above the other."""
    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    _draw_spectrograms(figure, axes, before, after, sample_rate)
    axes[1].set(xlabel="seconds")
    return figure


def _draw_spectrograms(figure: Figure, axes: Any, before: Samples, after: Samples, rate: int) -> None:
    """Two spectrograms on one scale: decibels below the loudest place of the two."""
    pictures = mel_decibels(before, rate), mel_decibels(after, rate)
    top = max(picture.max() for picture in pictures)
    marks = [khz for khz in _MARKS_KHZ if khz * 2000 <= rate]
    places = np.interp([1000 * khz for khz in marks], _band_centres(rate), np.arange(_BINS) + 0.5)
    for axis, picture, title in zip(axes, pictures, ("original", "decoded"), strict=True):
        # A column is centred on the time of its window.
        extent = (-_HOP / 2 / rate, (picture.shape[1] - 0.5) * _HOP / rate, 0.0, float(_BINS))
        image = axis.imshow(
            picture - top, origin="lower", aspect="auto", extent=extent, vmin=-_RANGE_DB, vmax=0, cmap="magma"
        )
        axis.set_title(title, loc="left")
        axis.set(ylabel="kHz", xlim=(0, len(before) / rate))
        axis.set_yticks(places, [f"{khz:g}" for khz in marks])
    _draw_scale(figure, image, list(axes), "dB")


def _draw_codes(figure: Figure, axis: Any, codes: CodecFile, seconds: float) -> None:
    """The codes of the first `seconds`, a row for each codebook."""
    shown = codes.codes[:, : ceil(seconds * codes.sample_rate / codes.hop_length)]
    extent = (0.0, shown.shape[1] * codes.hop_length / codes.sample_rate, codes.n_q + 0.5, 0.5)
    image = axis.imshow(
        shown,
        aspect="auto",
        extent=extent,
        cmap="viridis",
        interpolation="nearest",
        vmin=0,
        vmax=codes.codebook_size - 1,
    )
    bits = f"{codes.bitrate:,.0f} bit/s" if codes.bitrate < 10_000 else f"{codes.bitrate / 1000:.1f} kbit/s"
    axis.set_title(f"codes of {codes.model}: {bits}", loc="left")
    axis.set(ylabel="codebook")
    axis.set_yticks(range(1, codes.n_q + 1))
    _draw_scale(figure, image, axis, "code")


def _draw_scale(figure: Figure, image: Any, axes: Any, label: str) -> None:
    figure.colorbar(image, ax=axes, label=label, fraction=0.04, pad=0.01, aspect=30)


def mel_decibels(audio: Samples, rate: int) -> Samples:
    """(T,) -> (bands, frames) mel power in dB."""
    window = torch.hann_window(_FFT)
    spectrum = torch.stft(torch.from_numpy(audio), _FFT, _HOP, window=window, pad_mode="constant", return_complex=True)
    power = spectrum.abs().square().t() @ mel_filterbank(_FFT, _BINS, rate)
    decibels: Samples = (10 * power.clamp_min(1e-10).log10()).t().numpy()
    return decibels


def _band_centres(rate: int) -> Samples:
    """(bands,) Hz: each filter's centre of gravity."""
    filters = mel_filterbank(_FFT, _BINS, rate).numpy()
    hertz = np.linspace(0, rate / 2, len(filters), dtype=np.float32)
    centres: Samples = hertz @ filters / filters.sum(axis=0)
    return centres
