"""Codecs without a network, for comparison: what they share, and Codec 2."""

import shutil
import subprocess
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xycodec.errors import XycodecError
from xycodec.models.base import Codec

WINDOW_S = 600.0
"""The longest clip computed in one pass."""


class ClassicalCodec(Codec):
    """Base of codecs without a network: they run on the CPU, use all layers or none, and have no embeddings."""

    @property
    def device(self) -> torch.device:
        """The CPU, wherever the codec was moved."""
        return torch.device("cpu")

    def check_layers(self, n_q: int | None) -> int:
        """Return the number of layers. Raises XycodecError if fewer are asked for: they are parts of one frame."""
        if n_q not in (None, self.n_q):
            raise XycodecError(f"{self.model_id} cannot leave out layers, got n_q {n_q!r}: choose a lower bitrate")
        return self.n_q

    def _encode(self, clips: Sequence[Tensor], n_q: int, search: int) -> list[Tensor]:
        nothing = np.zeros((n_q, 0), np.int64)
        coded = [self._encode_one(clip.double().numpy()) if len(clip) else nothing for clip in clips]
        return [torch.from_numpy(codes) for codes in coded]

    def _decode(self, codes: Sequence[Tensor]) -> list[Tensor]:
        for item in codes:
            self.check_layers(item.shape[0])
        nothing = np.zeros(0, np.float32)
        audio = [self._decode_one(item.numpy()) if item.shape[1] else nothing for item in codes]
        return [torch.from_numpy(samples) for samples in audio]

    def _embed(self, codes: Tensor) -> Tensor:
        raise XycodecError(f"{self.model_id} has no embeddings: choose a neural codec")

    @abstractmethod
    def _encode_one(self, audio: NDArray[np.float64]) -> NDArray[np.int64]:
        """Audio (T,), not empty -> codes (n_q, ceil(T / hop_length))."""

    @abstractmethod
    def _decode_one(self, codes: NDArray[np.int64]) -> NDArray[np.float32]:
        """Codes (n_q, L), not empty -> audio (L * hop_length,)."""


# ---- Codec 2 -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Codec2Mode:
    """One mode of Codec 2 at 8 kHz."""

    name: str
    """Name of the mode on its programs' command line."""
    bits: int
    """Bits of a frame, without the padding of its last byte."""
    hop_length: int
    """Samples of a frame."""
    delay: int = 160
    """Samples by which decoded speech is late, at most `hop_length`: where its STOI is highest over clips of
    LibriSpeech. (Measured: a vocoder keeps no waveform that would tell.)"""


CODEC2_MODES = {
    mode.name.lower(): mode
    for mode in (
        Codec2Mode("3200", bits=64, hop_length=160),
        Codec2Mode("2400", bits=48, hop_length=160),
        Codec2Mode("1600", bits=64, hop_length=320),
        Codec2Mode("1400", bits=56, hop_length=320),
        Codec2Mode("1300", bits=52, hop_length=320),
        Codec2Mode("1200", bits=48, hop_length=320),
        Codec2Mode("700C", bits=28, hop_length=320, delay=240),
    )
}


class Codec2(ClassicalCodec):
    """Codec 2 by its own programs, delay compensated: codes are the half bytes of a frame, the highest first.

    Raises XycodecError if the programs are not installed.
    """

    RATE = 8000

    def __init__(self, mode: Codec2Mode) -> None:
        super().__init__(
            model_id=f"codec2-{mode.name.lower()}",
            input_sample_rate=self.RATE,
            output_sample_rate=self.RATE,
            n_q=mode.bits // 4,
            codebook_size=16,
            hop_length=mode.hop_length,
            window_frames=round(WINDOW_S * self.RATE / mode.hop_length),
        )
        self.mode = mode
        self.programs = {name: _program(name) for name in ("c2enc", "c2dec")}

    def _encode_one(self, audio: NDArray[np.float64]) -> NDArray[np.int64]:
        frames, hop = self.num_frames(len(audio)), self.hop_length
        # The first frame is not kept, and takes the delay with it.
        padded = np.zeros((1 + frames) * hop)
        lead = hop - self.mode.delay
        padded[lead : lead + len(audio)] = audio
        pcm = np.rint(padded * 32768).clip(-32768, 32767).astype("<i2")
        coded = np.frombuffer(self._run("c2enc", pcm.tobytes()), np.uint8).reshape(1 + frames, -1)[1:]
        halves = np.stack([coded >> 4, coded & 15], axis=-1).reshape(frames, -1)
        return halves[:, : self.n_q].T.astype(np.int64)

    def _decode_one(self, codes: NDArray[np.int64]) -> NDArray[np.float32]:
        halves = np.pad(codes, ((0, self.n_q % 2), (0, 0))).T.astype(np.uint8)
        coded = halves[:, ::2] << 4 | halves[:, 1::2]
        pcm = np.frombuffer(self._run("c2dec", coded.tobytes()), "<i2")
        return pcm.astype(np.float32) / np.float32(32768)

    def _run(self, program: str, data: bytes) -> bytes:
        command = [self.programs[program], self.mode.name, "-", "-"]
        done = subprocess.run(command, input=data, capture_output=True, check=False)
        if done.returncode:
            raise XycodecError(f"{program} {self.mode.name} ended with status {done.returncode}: check its version")
        return done.stdout


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise XycodecError(f"{name} is not installed: install Debian's package codec2")
    return path
