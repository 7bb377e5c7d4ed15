"""VGGish (Hershey et al. 2017): 128 numbers of each 0.96 s, without PCA and without the last activation.

The weights are torchvggish's `vggish-10086976.pth`, or any file in its layout.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xycodec.checkpoints.load import resolve_device
from xycodec.errors import AudioError, CheckpointError
from xycodec.eval.generation.embedders.base import EMBEDDING, Embedder, State, Vectors, load_strictly, read_weights
from xycodec.io.audio import Samples
from xycodec.io.digests import file_digest
from xycodec.io.rate import SPEECH_RATE

WINDOW, HOP, N_FFT = 400, 160, 512
FRAMES, BANDS = 96, 64
LOW_HZ, HIGH_HZ = 125.0, 7500.0
_OFFSET = 0.01
_AT_ONCE = 64  # windows
_CONVOLUTIONS = (0, 3, 6, 8, 11, 13)
_POOLED_AFTER = (0, 3, 8, 13)


class VggishNetwork(nn.Module):
    """Six convolutions with four poolings, then three linear layers; the names are torchvggish's.

    `widths` are the channels of the convolutions, `hidden` those of the first two linear layers.
    """

    def __init__(self, widths: tuple[int, ...], hidden: int, out: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for place, inputs, outputs in zip(_CONVOLUTIONS, (1, *widths), widths, strict=False):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if place in _POOLED_AFTER else []
        self.features = nn.Sequential(*layers)
        flat = widths[-1] * (FRAMES // 16) * (BANDS // 16)
        # The published layout ends in an activation, which Fréchet distances leave out.
        self.embeddings = nn.Sequential(
            nn.Linear(flat, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, out)
        )

    def forward(self, windows: Tensor) -> Tensor:
        """Log mels (B, 96, 64) -> (B, 128)."""
        x = self.features(windows[:, None])
        # Channels last, as TensorFlow has them.
        embedding: Tensor = self.embeddings(x.permute(0, 2, 3, 1).flatten(1))
        return embedding


class Vggish(Embedder):
    """VGGish with the weights of a file. Raises CheckpointError if they are not in torchvggish's layout."""

    name = "vggish"
    metrics = ("fad_vggish",)
    sample_rate = SPEECH_RATE

    def __init__(self, path: Path, device: str) -> None:
        self._place = resolve_device(device)
        self._model = _loaded(read_weights(path), path).to(self._place)
        self.weights = file_digest(path)
        self.about = (
            f"VGGish ({path.name}), {SPEECH_RATE} Hz, windows of 0.96 s one after the other, no PCA, no last activation"
        )

    @torch.inference_mode()
    def __call__(self, audio: Samples) -> Mapping[str, Vectors]:
        """(n,) -> (windows, 128); what is left at the end is left out. Raises AudioError under 0.975 s."""
        windows = torch.from_numpy(log_mel_windows(audio))
        if not len(windows):
            raise AudioError("is under 0.975 s, the least that VGGish hears")
        made = [self._model(part.to(self._place)).cpu().numpy() for part in torch.split(windows, _AT_ONCE)]
        return {EMBEDDING: np.concatenate(made)}


def log_mel_windows(audio: Samples) -> NDArray[np.float32]:
    """(n,) at 16 kHz -> (windows, 96, 64): logarithms of mel magnitudes, frames that do not reach beyond the clip."""
    if len(audio) < WINDOW:
        return np.zeros((0, FRAMES, BANDS), np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(audio.astype(np.float64), WINDOW)[::HOP]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    mels = np.log(np.abs(np.fft.rfft(frames * hann, N_FFT)) @ _filters() + _OFFSET)
    count = len(mels) // FRAMES
    return mels[: count * FRAMES].reshape(count, FRAMES, BANDS).astype(np.float32)


@cache
def _filters() -> NDArray[np.float64]:
    """(257, 64): triangles on HTK's scale whose sides are straight in mel, not in Hz; the constant is left out."""

    def mel(hz: NDArray[np.float64]) -> NDArray[np.float64]:
        return 1127.0 * np.log1p(hz / 700.0)

    bins = mel(np.linspace(0, SPEECH_RATE / 2, N_FFT // 2 + 1))[:, None]
    edges = np.linspace(mel(np.array(LOW_HZ)), mel(np.array(HIGH_HZ)), BANDS + 2)
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.maximum(0, np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)))
    triangles[0] = 0
    return triangles


def _loaded(state: State, path: Path) -> VggishNetwork:
    what = "VGGish in torchvggish's layout"
    # The same project's file of PCA, which this does not use, may have been merged in.
    state = {key: value for key, value in state.items() if not key.startswith("pproc.")}
    try:
        widths = tuple(len(state[f"features.{place}.weight"]) for place in _CONVOLUTIONS)
        hidden, out = len(state["embeddings.0.weight"]), len(state["embeddings.4.weight"])
    except KeyError as error:
        raise CheckpointError(f"{path}: not {what} (it lacks {error})") from None
    with torch.device("meta"):
        model = VggishNetwork(widths, hidden, out)
    load_strictly(model, state, path, what)
    return model
