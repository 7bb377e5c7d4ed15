"""Means and deviations of log mels: deterministic vectors without weights, for tests and trials. They give no FAD."""

from collections.abc import Mapping

import numpy as np
import torch

from xycodec.errors import AudioError
from xycodec.eval.generation.embedders.base import EMBEDDING, Embedder, Vectors
from xycodec.io.audio import Samples
from xycodec.io.digests import digest_of
from xycodec.io.rate import SPEECH_RATE
from xycodec.nn.mel import magnitudes, mel_filterbank

N_FFT, N_MELS = 1024, 16


class LogMelStatistics(Embedder):
    """Mean and standard deviation of 16 log mels over each second of a clip, the last one with what is left."""

    name = "log_mel_statistics"
    metrics = ("fd_log_mel_statistics",)
    sample_rate = SPEECH_RATE
    about = f"means and deviations of {N_MELS} log mels over each second, {SPEECH_RATE} Hz: no network, no FAD"
    weights = digest_of([name, N_FFT, N_MELS])

    def __call__(self, audio: Samples) -> Mapping[str, Vectors]:
        """(n,) -> (seconds, 32). Raises AudioError for less than a window."""
        if len(audio) <= N_FFT:
            raise AudioError(f"is under {N_FFT + 1} samples, the least that a window takes")
        mels = magnitudes(torch.from_numpy(audio)[None], torch.hann_window(N_FFT))[0]
        levels = (mels @ mel_filterbank(N_FFT, N_MELS, SPEECH_RATE)).clamp_min(1e-5).log()
        parts = levels.tensor_split(max(1, len(audio) // SPEECH_RATE))
        return {EMBEDDING: np.stack([torch.cat([part.mean(0), part.std(0, correction=0)]).numpy() for part in parts])}
