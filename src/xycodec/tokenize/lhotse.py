"""Codes as features of Lhotse: `CutSet.compute_and_store_features` with a codec."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import soxr
import torch
from lhotse.features.base import FeatureExtractor, register_extractor
from lhotse.utils import compute_num_frames_from_samples
from numpy.typing import NDArray
from torch import Tensor

from xycodec.baselines.open import open_codec
from xycodec.errors import XycodecError
from xycodec.models.base import Codec


@dataclass
class CodecFeaturesConfig:
    """Name of the codec for `open_codec`, its first codebooks (None: all), and its device."""

    model: str = "xy-mini"
    n_q: int | None = None
    device: str = "auto"

    def to_dict(self) -> dict[str, Any]:
        """The settings in plain types."""
        return asdict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> "CodecFeaturesConfig":
        """The settings that `to_dict` gave."""
        return CodecFeaturesConfig(**data)


@register_extractor
class CodecFeatures(FeatureExtractor):  # type: ignore[misc]  # Lhotse ships no types
    """Extracts codes (frames, n_q), those of the clip alone, as features: uint16, or uint32 for large codebooks.

    Store them with a writer that keeps numbers as they are (`NumpyFilesWriter`, `NumpyHdf5Writer`): lilcom's are lossy.
    Audio at other rates is resampled. Lhotse wants the duration's frames, rounded, where codecs count one that has
    begun: a last frame of which less than half is audio is left out. A token store has it.
    """

    name = "xycodec"
    config_type = CodecFeaturesConfig

    @cached_property
    def codec(self) -> Codec:
        """The codec, loaded at its first use. Raises XycodecError if there is none of that name."""
        return open_codec(self.config.model, device=self.config.device)

    @property
    def frame_shift(self) -> float:
        """Seconds of a frame."""
        return 1 / self.codec.frame_rate

    def feature_dim(self, sampling_rate: int) -> int:
        """Codebooks."""
        return self.codec.check_layers(self.config.n_q)

    def extract(self, samples: NDArray[np.float32], sampling_rate: int) -> NDArray[Any]:
        """Codes (frames, n_q) of one clip: (n,) or (1, n) at any rate. Raises XycodecError at several channels."""
        return self.extract_batch([samples], sampling_rate)[0]

    def extract_batch(
        self, samples: Sequence[Any] | NDArray[np.float32] | Tensor, sampling_rate: int, lengths: Any = None
    ) -> list[NDArray[Any]]:
        """Codes of several clips in one call; `lengths` counts each one's samples in a padded batch."""
        clips = [self._mono(np.asarray(clip), sampling_rate) for clip in self._clips(samples, lengths)]
        made = self.codec.encode(clips, n_q=self.config.n_q)
        kind = np.uint16 if self.codec.codebook_size <= 1 << 16 else np.uint32
        codes = made.codes.cpu().numpy().astype(kind)
        return [codes[place, :, : self._frames(len(clip))].T for place, clip in enumerate(clips)]

    def _frames(self, samples: int) -> int:
        return int(compute_num_frames_from_samples(samples, self.frame_shift, self.codec.input_sample_rate))

    def _clips(self, samples: Any, lengths: Any) -> list[Any]:
        clips = list(samples) if not isinstance(samples, np.ndarray | Tensor) or samples.ndim > 1 else [samples]
        return clips if lengths is None else [clip[..., : int(n)] for clip, n in zip(clips, lengths, strict=True)]

    def _mono(self, clip: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
        if clip.ndim > 1 and len(clip) != 1:
            raise XycodecError(f"{len(clip)} channels: codes are of one, take one with cut.channel or to_mono()")
        flat, target = clip.reshape(-1), self.codec.input_sample_rate
        return flat if rate == target else np.asarray(soxr.resample(flat, rate, target), np.float32)

    @property
    def device(self) -> str | torch.device:
        """Device of the codec."""
        return self.codec.device
