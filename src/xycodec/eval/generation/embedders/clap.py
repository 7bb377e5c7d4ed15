"""CLAP of LAION (Wu et al. 2023), Transformers' `ClapModel`: cosine of a clip and its caption."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from xycodec.eval.generation.embedders.base import EMBEDDING, Embedder, Vectors, source_digest
from xycodec.eval.judges.sources import load_part, locate
from xycodec.io.audio import Samples
from xycodec.lm.clap import ClapText, unit_vectors


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
        self._text = ClapText(str(source.folder), device=device)
        self._features = load_part(source, "ClapFeatureExtractor", "feature extractor")
        self._keep_level = keep_level
        self.sample_rate = int(self._features.sampling_rate)
        self.weights = source_digest(source)
        level = "level kept" if keep_level else "peak 1"
        self.about = (
            f"LAION CLAP ({source}), {self.sample_rate} Hz, {level}, the middle {self._features.max_length_s:g} s of "
            "longer clips, one caption a clip; not the CLAP of Make-An-Audio's score"
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
        found = self._text.model.get_audio_features(**made.to(self._text.model.device))
        return {EMBEDDING: unit_vectors(found).numpy()}

    def captions(self, texts: Sequence[str]) -> Vectors:
        """Embeddings (N, 512) of texts, of unit length."""
        vectors: Vectors = self._text.embed(texts).numpy()
        return vectors
