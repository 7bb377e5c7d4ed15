"""Predicted opinion of listeners on decoded audio, on the scale from 1 to 5."""

import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from xycodec.checkpoints.load import resolve_device
from xycodec.errors import CheckpointError, reason_of
from xycodec.eval.judges.base import PIECE_S, Judge, Pair, pieces
from xycodec.eval.judges.sources import need
from xycodec.eval.results import Scores
from xycodec.io.audio import Samples
from xycodec.io.hub import fetch
from xycodec.io.rate import SPEECH_RATE
from xycodec.nn.mel import mel_filterbank


class Opinion(Judge):
    """One metric that hears the decoded audio only, a clip at a time."""

    shortest = SPEECH_RATE // 4

    def refusal(self, pair: Pair) -> str | None:
        """Tell why a pair cannot be judged; silence gets no opinion."""
        return super().refusal(pair) or (None if pair.decoded.any() else "decoded to silence")

    def judge(self, pairs: Sequence[Pair]) -> list[Scores]:
        """Score each pair from about 1 to 5; the models do not bound it."""
        return [Scores({self.names[0]: self.rate(pair.decoded)}) for pair in pairs]

    @abstractmethod
    def rate(self, audio: Samples) -> float:
        """(n,) at 16 kHz."""


class Dnsmos(Opinion):
    """P.808 opinion of DNSMOS (Reddy et al. 2021), with the model that the package speechmos has."""

    names = ("dnsmos",)
    _WINDOW = 144_160  # 9.01 s
    _N_FFT, _HOP, _N_MELS = 321, 160, 120

    def __init__(self, device: str) -> None:
        del device  # the model is small, and onnxruntime as it is installed has the CPU only
        runtime = need("onnxruntime")
        # Its other files need librosa: the model alone is taken.
        model = Path(need("speechmos").__path__[0]) / "dnsmos_models" / "model_v8.onnx"
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._window = torch.hann_window(self._N_FFT)
        self._filters = mel_filterbank(self._N_FFT, self._N_MELS, SPEECH_RATE)

    def describe(self) -> str:
        """Model, and what becomes of short and long clips."""
        return (
            f"DNSMOS P.808 (model_v8 of speechmos {version('speechmos')}); clips under 9.01 s are doubled until they "
            "are not; mean of windows of 9.01 s, one a second"
        )

    def rate(self, audio: Samples) -> float:
        """Compute the score as its authors do."""
        while len(audio) < self._WINDOW:
            audio = np.concatenate([audio, audio])
        # Their count of windows, which leaves the last one out where it would fit by less than a second.
        starts = range(0, SPEECH_RATE * max(1, len(audio) // SPEECH_RATE - 9), SPEECH_RATE)
        return float(np.mean([self._rate_window(audio[start:][: self._WINDOW]) for start in starts]))

    def _rate_window(self, audio: Samples) -> float:
        # They leave out the last hop, for 900 frames of the centred transform.
        kept = torch.from_numpy(np.ascontiguousarray(audio[: -self._HOP]))
        spectrum = torch.stft(
            kept, self._N_FFT, self._HOP, window=self._window, pad_mode="constant", return_complex=True
        )
        power = self._filters.T @ spectrum.abs().square()
        decibels = 10 * power.clamp_min(1e-10).log10()
        decibels = (decibels - decibels.max()).clamp_min(-80)
        features: NDArray[np.float32] = ((decibels + 40) / 40).T[None].numpy()
        return float(self._session.run(None, {"input_1": features})[0].item())


class Utmos(Opinion):
    """UTMOS (Saeki et al. 2022), the strong learner, as the package utmos-pytorch has it; its weights from the hub.

    `weights`: a file with them, or None for those of `HUB`.
    """

    names = ("utmos",)
    HUB, FILE = "Blinorot/UTMOS-PyTorch", "utmos_state_dict.pt"

    def __init__(self, device: str, weights: Path | None = None) -> None:
        library = need("utmos_pytorch.utmos_torch")
        self._place = resolve_device(device)
        self._source = str(weights)
        if weights is None:
            folder = fetch(self.HUB, [self.FILE])
            weights, self._source = folder / self.FILE, f"{self.HUB} at {folder.name[:10]}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # it norms weights in torch's old way
            _require_whole(library, weights)
            self._model = library.UTMOSScoreTorch(str(weights), device=self._place)

    def describe(self) -> str:
        """Model and revision, and what becomes of long clips."""
        return (
            f"UTMOS22 strong ({self._source}, utmos-pytorch {version('utmos-pytorch')}); whole clips; of one over "
            f"{PIECE_S:g} s the mean of equal pieces"
        )

    def rate(self, audio: Samples) -> float:
        """Rate a whole clip at its own level."""
        scores = [self._model.score(torch.from_numpy(piece).to(self._place)).item() for piece in pieces(audio)]
        return float(np.mean(scores))


def _require_whole(library: Any, weights: Path) -> None:
    """Raise CheckpointError unless the file has the model's weights, all of them: the package would not say so."""
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True, mmap=True)
        with torch.device("meta"):
            expected = library.UTMOSModel().state_dict()
        whole = {key: value.shape for key, value in state.items()} == {k: v.shape for k, v in expected.items()}
    # Damaged files make torch raise almost anything.
    except Exception as error:
        raise CheckpointError(f"{weights}: no weights of UTMOS ({reason_of(error)})") from None
    if not whole:
        raise CheckpointError(f"{weights}: not the weights of UTMOS that utmos-pytorch knows")


OPINIONS: dict[str, Callable[[str], Opinion]] = {"dnsmos": Dnsmos, "utmos": Utmos}
"""Classes of judges by the metric they score; each takes a device."""
