"""Speaker embeddings of the GE2E network (Wan et al. 2018), with the weights that the package resemblyzer carries.

The package itself is not imported: it needs librosa, numba and a voice detector that setuptools of today cannot load.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xycodec.checkpoints.load import resolve_device
from xycodec.errors import AudioError, CheckpointError, XycodecError, reason_of
from xycodec.io.audio import Samples
from xycodec.io.digests import file_digest
from xycodec.io.rate import SPEECH_RATE
from xycodec.nn.mel import mel_filterbank

N_FFT, HOP, N_MELS = 400, 160, 40
SIZE, LAYERS = 256, 3
WINDOW, STEP = 160, 77  # frames: 1.6 s, some 1.3 times a second
MIN_COVERAGE = 0.75
"""A last window that audio fills less is left out."""
LEVEL_DB = -25
"""Root mean square that every clip is set to, of full scale. The package raises those below -30 and leaves the others
as they are, but its features are no logarithms: half the volume alone then costs 0.04 to 0.08."""


def resemblyzer_weights() -> Path:
    """The file of weights in the installed package. Raises XycodecError where it is not installed."""
    found = find_spec("resemblyzer")
    if found is None or found.origin is None:
        raise XycodecError("resemblyzer is not installed: pip install --no-deps resemblyzer")
    return Path(found.origin).with_name("pretrained.pt")


class Ge2e:
    """A `Voice`: the mean of the unit embeddings of windows of 1.6 s, which keep their pauses."""

    shortest = SPEECH_RATE // 10

    def __init__(self, weights: Path, device: str) -> None:
        self._place = resolve_device(device)
        self._encoder = _load(weights).to(self._place).eval()
        self._window = torch.hann_window(N_FFT)
        self._filters = mel_filterbank(N_FFT, N_MELS, SPEECH_RATE)
        self.about = f"GE2E with resemblyzer's weights ({file_digest(weights)[:10]}), at {LEVEL_DB} dB, pauses left in"

    @torch.inference_mode()
    def __call__(self, audio: Samples) -> NDArray[np.float32]:
        """(n,) at 16 kHz -> (256,). Raises AudioError if it is silent."""
        rms = float(np.sqrt(np.mean(np.square(audio, dtype=np.float64))))
        if rms == 0:
            raise AudioError("the speaker model finds no voice")
        spectrogram = self._mel(audio * np.float32(10 ** (LEVEL_DB / 20) / rms))
        windows = torch.stack([spectrogram[start : start + WINDOW] for start in window_starts(len(audio))])
        embedding: NDArray[np.float32] = self._encoder(windows.to(self._place)).mean(dim=0).cpu().numpy()
        return embedding

    def _mel(self, audio: Samples) -> Tensor:
        """Mel energies, not their logarithms, (frames, 40); silence follows up to the last window's end."""
        missing = HOP * (window_starts(len(audio))[-1] + WINDOW) - len(audio)
        padded = torch.from_numpy(np.pad(audio, (0, max(0, missing))))
        spectrum = torch.stft(padded, N_FFT, HOP, window=self._window, pad_mode="constant", return_complex=True)
        return spectrum.abs().square().T @ self._filters


def window_starts(samples: int) -> list[int]:
    """First frames of the windows of a clip of so many samples; there is always one."""
    frames = samples // HOP + 1
    starts = list(range(0, max(1, frames - WINDOW + STEP + 1), STEP))
    covered = (samples / HOP - starts[-1]) / WINDOW
    return starts[:-1] if covered < MIN_COVERAGE and len(starts) > 1 else starts


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(N_MELS, SIZE, LAYERS, batch_first=True)
        self.linear = nn.Linear(SIZE, SIZE)

    def forward(self, mels: Tensor) -> Tensor:
        """(B, L, 40) -> (B, 256) of unit length."""
        _, (hidden, _) = self.lstm(mels)
        embedding: Tensor = nn.functional.normalize(self.linear(hidden[-1]).relu(), dim=1)
        return embedding


def _load(path: Path) -> _Encoder:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
        # What its training alone used stays behind.
        state = {name: value for name, value in state.items() if not name.startswith("similarity_")}
        # On `meta`: what the constructors would draw at random is replaced in whole.
        with torch.device("meta"):
            encoder = _Encoder()
        encoder.load_state_dict(state, assign=True)
    # Damaged files make torch raise almost anything.
    except Exception as error:
        raise CheckpointError(f"{path}: no weights of resemblyzer ({reason_of(error)})") from None
    return encoder
