"""CLAP of LAION (Wu et al. 2023), Transformers' `ClapModel`: cosine of a clip and its caption."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from xycodec.errors import CheckpointError
from xycodec.eval.generation.embedders.base import EMBEDDING, Embedder, Vectors, source_digest
from xycodec.eval.judges.sources import load_model, load_part, locate
from xycodec.io.audio import Samples

UNRELATED = "a dog barks in the distance", "an orchestra plays a slow waltz"
MOST_ALIKE = 0.9
"""Cosine of two unrelated captions from which on a checkpoint counts as broken: some give 0.9996."""


class Clap(Embedder):
    """A folder or hub id of CLAP.

    Of clips over the model's 10 s the middle is heard, where its own code would draw a place at random; shorter ones
    are repeated, as it does. Clips have a peak of 1 first, unless `keep_level`.

    Raises CheckpointError if it is no CLAP, or one that finds unrelated captions alike.
    """

    name = "clap"
    metrics = ("clap_laion",)

    def __init__(self, name: str, device: str, *, keep_level: bool = False) -> None:
        source = locate(name)
        self._model = load_model(source, "ClapModel", "CLAP", device)
        self._features = load_part(source, "ClapFeatureExtractor", "feature extractor")
        self._tokenizer = load_part(source, "AutoTokenizer", "tokenizer")
        self._keep_level = keep_level
        self.sample_rate = int(self._features.sampling_rate)
        self.weights = source_digest(source)
        level = "level kept" if keep_level else "peak 1"
        self.about = (
            f"LAION CLAP ({source}), {self.sample_rate} Hz, {level}, the middle {self._features.max_length_s:g} s of "
            "longer clips, one caption a clip; not the CLAP of Make-An-Audio's score"
        )
        one, two = self.captions(UNRELATED)
        if (alike := float(one @ two)) >= MOST_ALIKE:
            raise CheckpointError(
                f"{name}: unrelated captions have a cosine of {alike:.4f}, at least {MOST_ALIKE}: its weights did not "
                "load as they should, choose another CLAP such as laion/clap-htsat-unfused"
            )

    @torch.inference_mode()
    def __call__(self, audio: Samples) -> Mapping[str, Vectors]:
        """(n,) -> (1, 512), of unit length."""
        most = int(self._features.nb_max_samples)
        start = max(0, (len(audio) - most) // 2)
        clip = audio[start : start + most]
        peak = float(np.abs(clip).max())
        clip = clip if self._keep_level or not peak else clip / peak
        made = self._features(clip, sampling_rate=self.sample_rate, return_tensors="pt")
        return {EMBEDDING: _unit(self._model.get_audio_features(**made.to(self._model.device)))}

    @torch.inference_mode()
    def captions(self, texts: Sequence[str]) -> Vectors:
        """Embeddings (N, 512) of texts, of unit length."""
        made = [self._tokenizer(text, truncation=True, return_tensors="pt").to(self._model.device) for text in texts]
        return np.concatenate([_unit(self._model.get_text_features(**one)) for one in made])


def _unit(made: Any) -> Vectors:
    # Transformers 4 gives the vectors, 5 an output that holds them; versions differ in whether they are of unit length.
    vectors: Tensor = made if isinstance(made, Tensor) else made.pooler_output
    unit: Vectors = F.normalize(vectors, dim=-1).cpu().numpy()
    return unit
