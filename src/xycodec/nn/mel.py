"""Spectrograms, mel filter banks and Whisper's log-mel front-end."""

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xycodec.nn.deterministic.linear import product


def _hz_to_mel(hz: np.ndarray, htk: bool) -> np.ndarray:
    if htk:
        return 2595 * np.log10(1 + hz / 700)
    # Slaney: linear below 1 kHz (3 mel per 200 Hz), logarithmic above (27 mel per factor 6.4).
    return np.where(hz < 1000, hz * 3 / 200, 15 + np.log(np.maximum(hz, 1000) / 1000) * 27 / np.log(6.4))


def _mel_to_hz(mel: np.ndarray, htk: bool) -> np.ndarray:
    if htk:
        return 700 * (10 ** (mel / 2595) - 1)
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((np.maximum(mel, 15) - 15) * np.log(6.4) / 27))


@cache
def mel_filterbank(n_fft: int, n_mels: int, sample_rate: int, *, htk: bool = False) -> Tensor:
    """Triangular filters on the Slaney scale with Slaney area normalisation, 0 Hz to Nyquist.

    With `htk` they are on HTK's scale, and every one's peak is 1 whatever its width.
    Returns (n_fft // 2 + 1, n_mels) float32, computed in float64 and shared: do not write to it.
    """
    nyquist = np.array(sample_rate / 2)
    bins = np.arange(n_fft // 2 + 1)[:, None] * sample_rate / n_fft  # an odd n_fft has none at Nyquist
    edges = _mel_to_hz(np.linspace(0, _hz_to_mel(nyquist, htk), n_mels + 2), htk)
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre))
    heights = 1.0 if htk else 2 / (high - low)
    return torch.from_numpy((np.maximum(triangles, 0) * heights).astype(np.float32))


def magnitudes(
    audio: Tensor, window: Tensor, *, n_fft: int | None = None, hop: int | None = None, normalized: bool = False
) -> Tensor:
    """Spectrogram of (B, T), T over half of `n_fft`, under `window` (W,): (B, T // hop + 1, n_fft // 2 + 1).

    `n_fft` is W and `hop` a quarter of W unless they are given; a shorter window stands in the middle. Frames are
    centred on their hop, the audio is reflected at its ends; `normalized` divides by the root of `n_fft`.
    """
    size = len(window)
    spectrum = torch.stft(
        audio,
        n_fft or size,
        hop or size // 4,
        win_length=size,
        window=window,
        normalized=normalized,
        return_complex=True,
    )
    return spectrum.abs().transpose(1, 2)


class LogMel(nn.Module):
    """Whisper's log-mel spectrogram at 16 kHz, on the device of its input.

    See docs/models/xy_tokenizer.md, Log-mel front-end.

    The zeros that the caller puts after a clip are part of the computation: see `XYTokenizer`.
    """

    n_fft = 400
    hop_length = 160
    window: Tensor
    filters: Tensor

    def __init__(self, n_mels: int, sample_rate: int) -> None:
        super().__init__()
        # Derived, so not in checkpoints; an explicit device because models are also built on `meta`.
        window = torch.hann_window(self.n_fft, dtype=torch.float32, device="cpu")
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("filters", mel_filterbank(self.n_fft, n_mels, sample_rate), persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        """(B, T) float32 in [-1, 1] with T > 200 -> (B, n_mels, T // 160), float32 under autocast too.

        Each item's floor is 8 below its own maximum (log10), taken over all T // 160 frames.
        """
        with torch.autocast(audio.device.type, enabled=False):
            return self._log_mel(audio)

    def _log_mel(self, audio: Tensor) -> Tensor:
        padded = F.pad(audio, (self.n_fft // 2, self.n_fft // 2), mode="reflect")
        spectrum = torch.stft(
            padded, self.n_fft, self.hop_length, window=self.window, center=False, return_complex=True
        )
        power = spectrum[..., :-1].abs().square()
        mel = product(power.transpose(1, 2), self.filters.t()).clamp_min(1e-10).log10()
        mel = mel.maximum(mel.amax(dim=(1, 2), keepdim=True) - 8.0)
        return (mel + 4.0).div(4.0).transpose(1, 2)
