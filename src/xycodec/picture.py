"""The picture of a round trip: what went in, what came out, and the codes between them."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from xycodec.audio import atomic_path, stream_audio
from xycodec.bitstream import CodecFile
from xycodec.nn.mel import mel_filterbank

SHOWN_S = 30.0
_FFT, _HOP, _BINS = 1024, 256, 80

Samples = NDArray[np.float32]


def draw_roundtrip(source: str, code_file: str, decoded: str, target: str | Path) -> None:
    """Write a PNG with both log-mel spectrograms and the code map, of the first 30 s, to `target`."""
    codes = CodecFile.read(code_file)
    rate = codes.sample_rate
    before, after = (next(islice(stream_audio(name, rate, SHOWN_S), 1)) for name in (source, decoded))
    seconds = len(before) / rate
    shown = codes.codes[:, : max(1, round(seconds * rate / codes.hop_length))]

    figure = Figure(figsize=(10, 7.5), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 2])
    _draw_spectrograms(figure, axes[:2], before, after, rate)
    extent = (0.0, shown.shape[1] * codes.hop_length / rate, codes.n_q + 0.5, 0.5)
    image = axes[2].imshow(
        shown,
        aspect="auto",
        extent=extent,
        cmap="viridis",
        interpolation="nearest",
        vmin=0,
        vmax=codes.codebook_size - 1,
    )
    figure.colorbar(image, ax=axes[2], label="code")
    bits = f"{codes.bitrate:,.0f} bit/s" if codes.bitrate < 10_000 else f"{codes.bitrate / 1000:.1f} kbit/s"
    axes[2].set(title=f"codes of {codes.model}: {bits}", ylabel="codebook", xlabel="seconds", xlim=(0, seconds))
    axes[2].set_yticks(range(1, codes.n_q + 1))
    with atomic_path(target) as scratch:
        figure.savefig(scratch, format="png", dpi=110)


def draw_pair(before: Samples, after: Samples, sample_rate: int) -> Figure:
    """Both log-mel spectrograms of two 1-D signals at `sample_rate`, one above the other."""
    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    _draw_spectrograms(figure, axes, before, after, sample_rate)
    axes[1].set(xlabel="seconds")
    return figure


def _draw_spectrograms(figure: Figure, axes: Any, before: Samples, after: Samples, rate: int) -> None:
    pictures = _decibels(before, rate), _decibels(after, rate)
    top = max(picture.max() for picture in pictures)
    for axis, picture, title in zip(axes, pictures, ("original", "decoded"), strict=True):
        extent = (0.0, picture.shape[1] * _HOP / rate, 0.0, float(_BINS))
        image = axis.imshow(
            picture, origin="lower", aspect="auto", extent=extent, vmin=top - 80, vmax=top, cmap="magma"
        )
        axis.set(title=title, ylabel="mel band")
    figure.colorbar(image, ax=list(axes), label="dB")


def _decibels(audio: Samples, rate: int) -> Samples:
    """(T,) -> (bands, frames) mel power in dB."""
    window = torch.hann_window(_FFT)
    spectrum = torch.stft(torch.from_numpy(audio), _FFT, _HOP, window=window, pad_mode="constant", return_complex=True)
    power = spectrum.abs().square().t() @ mel_filterbank(_FFT, _BINS, rate)
    decibels: Samples = (10 * power.clamp_min(1e-10).log10()).t().numpy()
    return decibels
