"""MERT (Li et al. 2023, arXiv 2306.00107), layer 9: 768 numbers of each of 75 frames a second.

MERT comes with Python code for options of its own. Where its settings use none of them, its network is Transformers'
HuBERT, which loads its weights, and none of that code is run; a MERT that uses one is refused.
"""

import json
from collections.abc import Mapping

import numpy as np
import torch

from xycodec.errors import AudioError, CheckpointError, reason_of
from xycodec.eval.generation.embedders.base import EMBEDDING, Embedder, Vectors, source_digest
from xycodec.eval.judges.sources import Source, load_model, load_part, locate, need, samples_for
from xycodec.io.audio import Samples

LAYER = 9
PIECE_S = 60.0
_OF_ITS_CODE = {"feature_extractor_cqt": False, "deepnorm": False, "feat_proj_layer_norm": True}


class Mert(Embedder):
    """A folder or hub id of MERT, or of a HuBERT in its form. Raises CheckpointError if it needs code of its own."""

    name = "mert"
    metrics = ("fd_mert_l9",)

    def __init__(self, name: str, device: str) -> None:
        source = locate(name)
        config = _config(source)
        self._model = load_model(source, "HubertModel", "MERT", device, config=config)
        self._features = load_part(source, "Wav2Vec2FeatureExtractor", "feature extractor")
        self.sample_rate = int(self._features.sampling_rate)
        self._shortest = samples_for(1, config)
        self.weights = source_digest(source)
        self.about = (
            f"MERT ({source}) as HuBERT, {self.sample_rate} Hz, hidden state {LAYER}, every frame; clips over "
            f"{PIECE_S:g} s in equal pieces"
        )

    @torch.inference_mode()
    def __call__(self, audio: Samples) -> Mapping[str, Vectors]:
        """(n,) -> (frames, D). Raises AudioError for less than a frame."""
        parts = np.array_split(audio, max(1, int(np.ceil(len(audio) / (PIECE_S * self.sample_rate)))))
        if len(parts[-1]) < self._shortest:
            raise AudioError(f"is under {self._shortest} samples, the least that MERT hears")
        return {EMBEDDING: np.concatenate([self._frames(part) for part in parts])}

    def _frames(self, audio: Samples) -> Vectors:
        values = self._features(audio, sampling_rate=self.sample_rate, return_tensors="pt").input_values
        states = self._model(values.to(self._model.device), output_hidden_states=True).hidden_states
        frames: Vectors = states[LAYER][0].cpu().numpy()
        return frames


def _config(source: Source) -> object:
    try:
        settings = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
        kind = settings["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{source.name}: has no config.json of Transformers ({reason_of(error)})") from None
    if kind not in ("mert_model", "hubert"):
        raise CheckpointError(f"{source.name}: is a {kind}, choose MERT-v1-95M or a folder of its form")
    own = [key for key, value in _OF_ITS_CODE.items() if settings.get(key, value) != value]
    own += ["attention_relax"] if settings.get("attention_relax", -1) > 0 else []
    if own:
        raise CheckpointError(
            f"{source.name}: {own[0]} needs the model's own code, which is never run: choose a MERT without"
        )
    if settings.get("num_hidden_layers", 0) < LAYER:
        raise CheckpointError(f"{source.name}: has no layer {LAYER}")
    skipped = ("model_type", "architectures", "auto_map")
    return need("transformers").HubertConfig(**{k: value for k, value in settings.items() if k not in skipped})
