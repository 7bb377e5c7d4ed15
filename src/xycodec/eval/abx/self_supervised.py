"""Frames of a self-supervised model for ABX: the row of papers that no codec stands in.

`ssl:SOURCE` names one of Transformers that reads audio at 16 kHz (HuBERT, WavLM, wav2vec 2.0, data2vec, ...), a hub id
or a folder, and the mean of all its states; `ssl:SOURCE:LAYER` one of its states, from 0, the transformer's input.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from xycodec.checkpoints.load import resolve_device
from xycodec.errors import CheckpointError, XycodecError, described, reason_of
from xycodec.eval.abx.frames import Encoded
from xycodec.eval.abx.items import Omissions, PhoneItem
from xycodec.io.audio import ignore, read_audio
from xycodec.io.hub import fetch, is_path
from xycodec.io.libraries import transformers_library
from xycodec.io.progress import Advance
from xycodec.io.rate import SPEECH_RATE
from xycodec.models.xcodec.semantic import HOP, MARGIN

PREFIX = "ssl:"
FRAME_RATE = SPEECH_RATE / HOP


@dataclass(frozen=True)
class SelfSupervisedFrames:
    """A model of Transformers, and which of its states are its frames."""

    name: str
    model: Any
    layer: int | None
    """None: the mean of all states."""
    normalised: bool
    """Whether it reads clips of mean 0 and variance 1, as its preprocessor says."""

    @torch.no_grad()
    def frames(self, audio: NDArray[np.float32]) -> NDArray[np.float32]:
        """Audio (T,) at 16 kHz -> features (D, L) at 50 Hz, with half a frame of silence around the audio."""
        clip = torch.from_numpy(audio).to(self.model.device)
        if self.normalised:
            clip = (clip - clip.mean()) / (clip.var(correction=0) + 1e-7).sqrt()
        states = self.model(F.pad(clip, (MARGIN, MARGIN))[None], output_hidden_states=True).hidden_states
        chosen = torch.stack(states).mean(dim=0) if self.layer is None else states[self.layer]
        features: NDArray[np.float32] = chosen[0].T.cpu().numpy()
        return features


def open_self_supervised(text: str, device: str = "auto") -> SelfSupervisedFrames:
    """The model that `ssl:SOURCE` or `ssl:SOURCE:LAYER` names, in float32.

    Raises CheckpointError, one line, if that gives none, XycodecError if it has no such layer.
    """
    library, place = transformers_library(), resolve_device(device)
    source, _, number = text.removeprefix(PREFIX).rpartition(":")
    if not source or not number.isdecimal():
        source, number = text.removeprefix(PREFIX), ""
    folder = Path(source)
    if not folder.is_dir():
        if is_path(source) or source.count("/") != 1:
            raise CheckpointError(f"{source}: no such folder; give one of Transformers, or facebook/hubert-base-ls960")
        folder = fetch(source, ["*.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*"])
    library.utils.logging.disable_progress_bar()
    try:
        model = library.AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    # Transformers raises its own classes, its readers' and torch's: all mean the same here.
    except Exception as error:
        raise CheckpointError(f"{source}: the model cannot be loaded ({reason_of(error)})") from None
    if not hasattr(model, "feature_extractor") or getattr(model.config, "inputs_to_logits_ratio", None) != HOP:
        raise CheckpointError(
            f"{source}: reads no audio in frames of {HOP} samples: name a HuBERT, WavLM or wav2vec 2.0"
        )
    layer, layers = int(number) if number else None, model.config.num_hidden_layers
    if layer is not None and layer > layers:
        raise XycodecError(f"{text}: the model has states 0 to {layers}")
    return SelfSupervisedFrames(text, model.eval().to(place), layer, _normalised(folder))


def _normalised(folder: Path) -> bool:
    try:
        settings = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True  # what Transformers' preprocessor does that is not told otherwise
    return bool(settings.get("do_normalize", True))


def feature_recordings(
    model: SelfSupervisedFrames,
    recordings: Mapping[str, Path],
    items: Sequence[PhoneItem],
    omissions: Omissions,
    advance: Advance,
) -> dict[str, Encoded]:
    """Features of each recording, by its name. Items of a recording that cannot be read are left out."""
    found = {}
    for name, source in recordings.items():
        try:
            audio = read_audio(source, SPEECH_RATE, tell=ignore)
            if len(audio) < HOP:
                raise XycodecError("shorter than a frame")
            found[name] = Encoded(model.frames(audio), len(audio) / SPEECH_RATE)
        except (XycodecError, OSError) as error:
            count = sum(item.file == name for item in items)
            omissions.add("its recording cannot be encoded", described(error), count)
            continue
        advance(found[name].seconds)
    return found
