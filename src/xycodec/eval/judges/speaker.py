"""Speaker similarity: the cosine between the embeddings of the decoded and of the original voice."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from xycodec.errors import AudioError, CheckpointError
from xycodec.eval.judges.base import PIECE_S, Judge, Pair, pieces
from xycodec.eval.judges.ge2e import Ge2e, resemblyzer_weights
from xycodec.eval.judges.sources import load_model, load_part, locate, samples_for
from xycodec.eval.judges.wavlm_ecapa import WavlmEcapa
from xycodec.eval.results import Scores
from xycodec.io.audio import Samples
from xycodec.io.hub import is_path
from xycodec.io.rate import SPEECH_RATE

Embedding = NDArray[np.floating[Any]]
RESEMBLYZER = "resemblyzer"


class Voice(Protocol):
    """Interface of a speaker embedding model."""

    about: str
    """Model and revision, for the protocol."""
    shortest: int
    """Samples that it needs."""

    def __call__(self, audio: Samples) -> Embedding:
        """(n,) at 16 kHz -> (D,), of any length. Raises AudioError if it finds no voice."""


class SpeakerSimilarity(Judge):
    """Cosine of the embeddings of decoded and original, one clip at a time, because padding would change them."""

    names = ("similarity",)

    def __init__(self, voice: Voice) -> None:
        self._voice = voice
        self.shortest = voice.shortest
        # An evaluation compares every codec with the same originals.
        self._originals: dict[bytes, Embedding] = {}

    def describe(self) -> str:
        """Model, revision, and what becomes of long clips."""
        return (
            f"cosine of speaker embeddings, {self._voice.about}; whole clips; of one over {PIECE_S:g} s the mean of "
            "the unit embeddings of equal pieces"
        )

    def refusal(self, pair: Pair) -> str | None:
        """Tell why a pair cannot be judged; nobody speaks in a silent original."""
        return super().refusal(pair) or (None if pair.original.any() else "silent")

    def judge(self, pairs: Sequence[Pair]) -> list[Scores]:
        """Score each pair by the cosine of its embeddings, from -1 to 1, which is equality."""
        return [Scores({"similarity": self._similarity(pair)}) for pair in pairs]

    def _similarity(self, pair: Pair) -> float:
        digest = hashlib.blake2b(pair.original.tobytes()).digest()
        if digest not in self._originals:
            self._originals[digest] = self._embed(pair.original)
        return float(self._embed(pair.decoded) @ self._originals[digest])

    def _embed(self, audio: Samples) -> Embedding:
        parts = [_unit(self._voice(piece)) for piece in pieces(audio)]
        return _unit(np.mean(parts, axis=0))


def _unit(embedding: Embedding) -> Embedding:
    exact = embedding.astype(np.float64)
    length = np.linalg.norm(exact)
    if not 0 < length < np.inf:
        raise AudioError("the speaker model finds no voice")
    return exact / length


# ---- models ------------------------------------------------------------------------------------


def load_voice(name: str, device: str) -> Voice:
    """The speaker model of a name (see `make_judges`). Raises XycodecError."""
    if name == RESEMBLYZER:
        return Ge2e(resemblyzer_weights(), device)
    if is_path(name) and not Path(name).is_dir():
        return WavlmEcapa(Path(name), device)
    return XVector(name, device)


class XVector:
    """An x-vector model of Transformers (Snyder et al. 2018, on WavLM or its kin), a folder or a hub id."""

    def __init__(self, name: str, device: str) -> None:
        source = locate(name)
        self._model = load_model(source, "AutoModelForAudioXVector", "speaker model", device)
        self._features = load_part(source, "AutoFeatureExtractor", "feature extractor")
        if self._features.sampling_rate != SPEECH_RATE:
            raise CheckpointError(
                f"{name}: hears {self._features.sampling_rate} Hz, choose a model for {SPEECH_RATE} Hz"
            )
        config = self._model.config
        # The time-delay layers pad nothing, and a deviation takes two frames.
        frames = 2 + sum((k - 1) * d for k, d in zip(config.tdnn_kernel, config.tdnn_dilation, strict=True))
        self.shortest = samples_for(frames, config)
        self.about = f"{source} ({type(self._model).__name__})"

    @torch.inference_mode()
    def __call__(self, audio: Samples) -> Embedding:
        """(n,) at 16 kHz -> (D,)."""
        values = self._features(audio, sampling_rate=SPEECH_RATE, return_tensors="pt").input_values
        # Transformers' mask of a padded batch leaves out the dilation of the time-delay layers: never pad.
        embedding: Embedding = self._model(values.to(self._model.device)).embeddings[0].cpu().numpy()
        return embedding
