"""Features of clips that a probe reads: a codec's, at a tap of it, or as a floor those of the log-mel."""

from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from xycodec.baselines.open import open_codec
from xycodec.checkpoints.build import random_codec
from xycodec.checkpoints.load import resolve_device
from xycodec.errors import CheckpointError, XycodecError
from xycodec.io.rate import SPEECH_RATE
from xycodec.models.base import Codec, fingerprint
from xycodec.models.longform import TENSORS, embed_long, encode_long
from xycodec.models.precision import own_precision
from xycodec.models.windows import Cutter, Joiner, choose_windows
from xycodec.models.xcodec.model import SEMANTIC, XCodec
from xycodec.models.xy_tokenizer.model import XYTokenizer
from xycodec.nn.mel import LogMel

Tap = Literal["pre_quant", "post_quant", "semantic"]
LOG_MEL = "log-mel"
RANDOM = "random:"


class Features(ABC):
    """Frames of a clip, and the one vector that a linear probe reads of it."""

    name: str
    identity: str
    """Digits that change with whatever the features depend on."""
    sample_rate: int
    tap: Tap | None = None
    """None where there is only one."""

    @abstractmethod
    def frames(self, audio: Tensor) -> Tensor:
        """Audio (T,) at `sample_rate` -> (L, D) float32 on the CPU."""

    def pooled(self, frames: Tensor) -> Tensor:
        """Frames (L, D) -> the vector of the clip, (D,): their mean."""
        return frames.mean(dim=0)


class LogMelFeatures(Features):
    """Whisper's log-mel with 80 bins; a clip's vector is mean and standard deviation of each."""

    name, identity, sample_rate = LOG_MEL, "log-mel-80", SPEECH_RATE

    def __init__(self) -> None:
        self._mel = LogMel(80, SPEECH_RATE)

    def frames(self, audio: Tensor) -> Tensor:
        """Audio (T,) -> (L, 80), 100 frames a second."""
        short = max(0, self._mel.n_fft - len(audio))
        mel: Tensor = self._mel(F.pad(audio, (0, short))[None])
        return mel[0].T

    def pooled(self, frames: Tensor) -> Tensor:
        """Frames (L, 80) -> (160,)."""
        return torch.cat([frames.mean(dim=0), frames.std(dim=0, correction=0)])


class CodecFeatures(Features):
    """A codec's frames of a clip, at one of its taps.

    `post_quant`: what its first `n_q` codebooks pass on, which is what a language model has of the clip. `semantic`: of
    an X-Codec the output of the semantic decoder, which reads that; of an XY-Tokenizer the frozen semantic tower, which
    is before the quantizer. `pre_quant`: what the quantizer reads. The last two know nothing of `n_q`, but for
    X-Codec's. Raises XycodecError where the codec has no such tap.
    """

    def __init__(self, codec: Codec, tap: Tap, n_q: int | None = None) -> None:
        if tap not in get_args(Tap):
            raise XycodecError(f"tap is {tap!r}, must be one of {', '.join(get_args(Tap))}")
        self._codec, self.tap, self._n_q = codec, tap, codec.check_layers(n_q)
        own = isinstance(codec, XYTokenizer | XCodec)
        semantic = (
            codec.config.semantic is not None
            if isinstance(codec, XCodec)
            else (isinstance(codec, XYTokenizer) and codec.semantic_encoder is not None)
        )
        if (tap == "pre_quant" and not own) or (tap == SEMANTIC and not semantic):
            known = "post_quant or pre_quant" if own else "post_quant"
            raise XycodecError(f"{codec.model_id} has no tap {tap}: take {known}")
        self.name, self.sample_rate = codec.model_id, codec.input_sample_rate
        self.identity = f"{fingerprint(codec)}-{tap}-{self._n_q}"

    @torch.no_grad()
    def frames(self, audio: Tensor) -> Tensor:
        """Audio (T,) -> (L, D)."""
        codec = self._codec
        if self.tap == "pre_quant" or (self.tap == SEMANTIC and isinstance(codec, XYTokenizer)):
            return self._windowed(audio).T.contiguous()
        branch = SEMANTIC if self.tap == SEMANTIC else None
        codes = encode_long(codec, audio, n_q=self._n_q)
        return embed_long(codec, codes, branch=branch).T.float().cpu().contiguous()

    def _windowed(self, audio: Tensor) -> Tensor:
        """Audio (T,) -> features (D, L) before the quantizer, from the windows that codes have."""
        codec = self._codec
        windows = choose_windows(codec)
        rate = codec.downsample.factor if self.tap == SEMANTIC and isinstance(codec, XYTokenizer) else 1
        pieces = Cutter(windows, codec.hop_length, TENSORS).pieces([audio])
        joined = Joiner(windows, rate, TENSORS).computed(pieces, lambda clips: [self._window(clip) for clip in clips])
        return torch.cat(list(joined), dim=1)

    def _window(self, audio: Tensor) -> Tensor:
        codec = self._codec
        whole = F.pad(audio, (0, codec.num_frames(len(audio)) * codec.hop_length - len(audio)))[None].to(codec.device)
        with own_precision(codec.device):
            if isinstance(codec, XCodec):
                features = codec.encode_latents(whole)
            else:
                assert isinstance(codec, XYTokenizer)
                encoded = codec.encode_latents(whole, [len(audio)])
                features = encoded.latents
                if self.tap == SEMANTIC:
                    assert encoded.semantic is not None
                    features = encoded.semantic
        return features[0].T.float().cpu()


def open_features(
    model: str | Codec, tap: Tap = "post_quant", n_q: int | None = None, device: str = "auto"
) -> Features:
    """The features of a model.

    `model`: a codec or what `open_codec` takes; `log-mel`; or `random:NAME`, an X-Codec or XY-Tokenizer of that size
    with random weights. Raises CheckpointError if that is no model, XycodecError if it has no such tap.
    """
    if model == LOG_MEL:
        return LogMelFeatures()
    if isinstance(model, str) and model.startswith(RANDOM):
        trained = open_codec(model.removeprefix(RANDOM), device="cpu")
        if not isinstance(trained, XYTokenizer | XCodec):
            raise CheckpointError(f"{model}: only an X-Codec or an XY-Tokenizer can be had at random")
        codec: Codec = random_codec(trained.config).to(resolve_device(device))
        features = CodecFeatures(codec, tap, n_q)
        features.name = f"{RANDOM}{features.name}"
        return features
    return CodecFeatures(open_codec(model, device=device) if isinstance(model, str) else model, tap, n_q)
