"""PANNs Cnn14 (Kong et al. 2020, arXiv 1912.10211): one vector and 527 AudioSet classes of a clip.

The weights are the authors' `Cnn14_16k_mAP=0.438.pth` or `Cnn14_mAP=0.431.pth` (32 kHz); the file tells which it is.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xycodec.checkpoints.load import resolve_device
from xycodec.errors import CheckpointError
from xycodec.eval.generation.embedders.base import (
    EMBEDDING,
    LOGITS,
    Embedder,
    State,
    Vectors,
    load_strictly,
    read_weights,
)
from xycodec.io.audio import Samples
from xycodec.io.digests import file_digest

BLOCKS = 6
SHORTEST = 32_000
"""Samples to which shorter clips are filled with silence, as AudioLDM's evaluation does."""
_RATES = {512: 16_000, 1024: 32_000}  # by the length of the window; the hop is a hundredth of a second
_FRONT_END = "spectrogram_extractor.stft.conv_real.weight", "spectrogram_extractor.stft.conv_imag.weight"
_FLOOR = 1e-10


class Cnn14(nn.Module):
    """Log-mel spectrogram, six blocks of two convolutions, mean and maximum over time, two linear layers.

    Its names are those of the published state dict. `widths` are the channels of the blocks.
    """

    def __init__(self, n_fft: int, n_mels: int, widths: tuple[int, ...], embedding: int, classes: int) -> None:
        super().__init__()
        self.n_fft = n_fft
        self.sample_rate = _RATES[n_fft]
        self.logmel_extractor = _MelBands(n_fft, n_mels)
        self.bn0 = nn.BatchNorm2d(n_mels)
        for number, (inputs, outputs) in enumerate(zip((1, *widths), widths, strict=False), 1):
            self.add_module(f"conv_block{number}", _Block(inputs, outputs))
        self.fc1 = nn.Linear(widths[-1], embedding)
        self.fc_audioset = nn.Linear(embedding, classes)

    def forward(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) -> embeddings (B, E) and logits of the classes (B, C)."""
        x = self.logmel_extractor(self._power(audio))[:, None]
        x = self.bn0(x.transpose(1, 3)).transpose(1, 3)
        for number in range(1, BLOCKS + 1):
            x = self.get_submodule(f"conv_block{number}")(x)
            x = F.avg_pool2d(x, 2) if number < BLOCKS else x
        x = x.mean(dim=3)
        embedding = self.fc1(x.amax(dim=2) + x.mean(dim=2)).relu()
        return embedding, self.fc_audioset(embedding)

    def _power(self, audio: Tensor) -> Tensor:
        """(B, T) -> (B, L, n_fft // 2 + 1)."""
        window = torch.hann_window(self.n_fft, device=audio.device)
        hop = self.sample_rate // 100
        spectrum = torch.stft(audio, self.n_fft, hop, window=window, pad_mode="reflect", return_complex=True)
        return spectrum.abs().square().transpose(1, 2)


class _MelBands(nn.Module):
    """Power in mel bands, in decibels; the filters are part of the checkpoint."""

    def __init__(self, n_fft: int, n_mels: int) -> None:
        super().__init__()
        self.melW = nn.Parameter(torch.zeros(n_fft // 2 + 1, n_mels), requires_grad=False)

    def forward(self, power: Tensor) -> Tensor:
        return 10 * (power @ self.melW).clamp_min(_FLOOR).log10()


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        return normed


class Panns(Embedder):
    """Cnn14 with the weights of a file. Raises CheckpointError if they are not Cnn14's for 16 or 32 kHz."""

    name = "panns"
    metrics = ("fd_panns", "kad", "inception_score")

    def __init__(self, path: Path, device: str) -> None:
        self._model = _loaded(read_weights(path), path).to(resolve_device(device))
        self.sample_rate = self._model.sample_rate
        self.weights = file_digest(path)
        self.about = (
            f"PANNs Cnn14 ({path.name}), {self.sample_rate} Hz, embedding before the classifier; clips under "
            f"{SHORTEST / self.sample_rate:g} s are filled with silence"
        )

    @torch.inference_mode()
    def __call__(self, audio: Samples) -> Mapping[str, Vectors]:
        """(n,) -> embedding (1, 2048) and logits (1, 527)."""
        clip = torch.from_numpy(audio)
        clip = F.pad(clip, (0, max(0, SHORTEST - len(clip)))).to(self._model.fc1.weight.device)
        embedding, logits = self._model(clip[None])
        return {EMBEDDING: embedding.cpu().numpy(), LOGITS: logits.cpu().numpy()}


def _loaded(state: State, path: Path) -> Cnn14:
    what = "PANNs Cnn14 for 16 or 32 kHz"
    try:
        n_fft = state[_FRONT_END[0]].shape[-1]
        bands = state["logmel_extractor.melW"].shape[1]
        widths = tuple(len(state[f"conv_block{number}.conv1.weight"]) for number in range(1, BLOCKS + 1))
        classes, embedding = state["fc_audioset.weight"].shape
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(f"{path}: not {what} (it lacks {error})") from None
    kernels = [tuple(state[key].shape) if key in state else None for key in _FRONT_END]
    if n_fft not in _RATES or kernels != [(n_fft // 2 + 1, 1, n_fft)] * 2:
        raise CheckpointError(f"{path}: not {what} (its window has {n_fft} samples)")
    with torch.device("meta"):
        model = Cnn14(n_fft, bands, widths, embedding, classes)
    # The checkpoint has the Fourier transform as a convolution; torch computes the same faster.
    load_strictly(model, {key: value for key, value in state.items() if key not in _FRONT_END}, path, what)
    return model
