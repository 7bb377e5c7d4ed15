"""The picture of a round trip: what went in, what came out, and the codes between them."""

from itertools import islice
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from xycodec.audio import atomic_path, stream_audio
from xycodec.bitstream import CodecFile
from xycodec.nn.mel import mel_filterbank

SHOWN_S = 30.0
_FFT, _HOP, _BINS = 1024, 256, 80


def draw_roundtrip(source: str, code_file: str, decoded: str, target: str | Path) -> None:
    """Write a PNG with both log-mel spectrograms and the code map, of the first 30 s, to `target`."""
    codes = CodecFile.read(code_file)
    rate = codes.sample_rate
    before, after = (next(islice(stream_audio(name, rate, SHOWN_S), 1)) for name in (source, decoded))
    seconds = len(before) / rate
    shown = codes.codes[:, : max(1, round(seconds * rate / codes.hop_length))]

    figure = Figure(figsize=(10, 7.5), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 2])
    pictures = _decibels(before, rate), _decibels(after, rate)
    top = max(picture.max() for picture in pictures)
    for axis, picture, title in zip(axes, pictures, ("original", "decoded"), strict=False):
        extent = (0.0, picture.shape[1] * _HOP / rate, 0.0, float(_BINS))
        image = axis.imshow(
            picture, origin="lower", aspect="auto", extent=extent, vmin=top - 80, vmax=top, cmap="magma"
        )
        axis.set(title=title, ylabel="mel band")
    figure.colorbar(image, ax=list(axes[:2]), label="dB")
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


def _decibels(audio: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    """(T,) -> (bands, frames) mel power in dB."""
    window = torch.hann_window(_FFT)
    spectrum = torch.stft(torch.from_numpy(audio), _FFT, _HOP, window=window, pad_mode="constant", return_complex=True)
    power = spectrum.abs().square().t() @ mel_filterbank(_FFT, _BINS, rate)
    decibels: NDArray[np.float32] = (10 * power.clamp_min(1e-10).log10()).t().numpy()
    return decibels
