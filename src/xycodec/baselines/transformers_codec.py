"""Codecs of Transformers behind our interface, for comparison: EnCodec, DAC, Mimi, X-Codec and X-Codec 2."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xycodec.errors import CheckpointError, reason_of
from xycodec.io.hub import fetch, is_path
from xycodec.io.libraries import transformers_library
from xycodec.models.base import Codec

WINDOW_S = 60.0
"""The longest clip computed in one pass."""


class TransformersCodec(Codec):
    """A codec of Transformers with the first `n_q` of its codebooks (None: all).

    Codes and audio are those of the class itself for one clip at a time. Audio is zero past what the class decodes,
    which for a DAC of odd strides is a few samples short of whole frames.

    Raises CheckpointError if the model is not mono or has fewer codebooks.
    """

    def __init__(self, model: nn.Module, name: str, n_q: int | None = None) -> None:
        config: Any = model.config
        family = FAMILIES[config.model_type]
        if getattr(config, "audio_channels", 1) != 1 or getattr(config, "chunk_length_s", None) is not None:
            raise CheckpointError(f"{name}: a stereo model or one that codes in chunks; speech takes a mono one")
        most = family.codebooks(config)
        if n_q is not None and not 1 <= n_q <= most:
            raise CheckpointError(f"{name}: {n_q} codebooks asked of a model of {most}: ask for 1 to {most}")
        n_q = n_q or most
        rate, hop = family.sample_rate(config), family.hop_length(config)
        super().__init__(
            model_id=f"{name}:{n_q}",
            input_sample_rate=rate,
            output_sample_rate=rate,
            n_q=n_q,
            codebook_size=family.codebook_size(config),
            hop_length=hop,
            window_frames=ceil(WINDOW_S * rate / hop),
        )
        self.model = model
        self.family = family

    def _encode(self, clips: Sequence[Tensor], n_q: int, search: int) -> list[Tensor]:
        return [self._encode_one(clip, n_q) for clip in clips]

    def _encode_one(self, clip: Tensor, n_q: int) -> Tensor:
        frames = self.num_frames(len(clip))
        if frames == 0:
            return torch.zeros(n_q, 0, dtype=torch.int64, device=self.device)
        if self.family.whole_frames:
            clip = F.pad(clip, (0, frames * self.hop_length - len(clip)))
        return self.family.encode(self.model, clip[None, None].float(), n_q)[0, :n_q, :frames].long()

    def _decode(self, codes: Sequence[Tensor]) -> list[Tensor]:
        return [self._decode_one(item) for item in codes]

    def _decode_one(self, codes: Tensor) -> Tensor:
        samples = codes.shape[1] * self.hop_length
        if samples == 0:
            return torch.zeros(0, device=self.device)
        audio = self.family.decode(self.model, codes[None]).reshape(-1).float()
        return F.pad(audio, (0, samples - len(audio)))  # or cut, where the class gives more

    def _embed(self, codes: Tensor) -> Tensor:
        # A frame more, since not every class takes none.
        return self.family.embed(self.model, F.pad(codes, (0, 1)))[..., :-1]


def load_transformers_codec(source: str, n_q: int | None = None) -> TransformersCodec:
    """A codec of Transformers from a hub id or a local folder, with the first `n_q` codebooks (None: all), on the CPU.

    Raises CheckpointError, one line, on anything that gives no such codec.
    """
    library = transformers_library()
    folder = Path(source)
    if not folder.is_dir():
        # A path is never asked for on the hub.
        if is_path(source) or source.count("/") != 1:
            raise CheckpointError(
                f"{source}: no such folder; give one of Transformers, or a hub id such as kyutai/mimi"
            )
        folder = fetch(source, ["config.json", "*.safetensors", "*.safetensors.index.json"])
    kind = _model_type(folder, source)
    if kind not in FAMILIES:
        raise CheckpointError(f"{source}: holds no codec that is known here ({kind}); known are {', '.join(FAMILIES)}")
    library.utils.logging.disable_progress_bar()
    try:
        model, report = getattr(library, FAMILIES[kind].model_class).from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    # Transformers raises its own classes, its readers' and torch's: all mean the same here.
    except Exception as error:
        reason = reason_of(error)
        raise CheckpointError(f"{source}: the codec cannot be loaded ({reason})") from None
    if lacking := sorted(report["missing_keys"]):
        raise CheckpointError(f"{source}: lacks the weights of {lacking[0]}: get a whole copy")
    name = source if folder != Path(source) else folder.resolve().name
    return TransformersCodec(model, name, n_q).requires_grad_(False).eval()


def _model_type(folder: Path, source: str) -> str:
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise CheckpointError(f"{source}: has no config.json that can be read: give a model of Transformers") from None
    kind = settings.get("model_type") if isinstance(settings, dict) else None
    return str(kind or "no model type")


# ---- in what the classes differ ----------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """Calls of one codec class of Transformers. Models take audio (1, 1, T) and codes (B, k, L)."""

    model_class: str
    sample_rate: Callable[[Any], int]
    """Input sample rate in Hz, from the model's configuration; the functions below take it too."""
    hop_length: Callable[[Any], int]
    codebooks: Callable[[Any], int]
    whole_frames: bool
    """Whether the feature extractor pads audio to whole frames; otherwise the model itself does."""
    encode: Callable[[Any, Tensor, int], Tensor]
    """(model, audio, n_q) -> codes (1, n_q or more, L or more)."""
    decode: Callable[[Any, Tensor], Tensor]
    """(model, codes of one clip) -> audio, in any shape."""
    embed: Callable[[Any, Tensor], Tensor]
    """(model, codes) -> what its quantizer passes to the decoder, (B, D, L)."""
    codebook_size: Callable[[Any], int] = lambda config: int(config.codebook_size)


def _bandwidth(model: Any, n_q: int) -> float:
    """The smallest of the model's bandwidths, kbit/s, that has `n_q` codebooks."""
    enough = (b for b in model.config.target_bandwidths if model.quantizer.get_num_quantizers_for_bandwidth(b) >= n_q)
    return float(min(enough))


def _encode_mimi(model: Any, audio: Tensor, n_q: int) -> Tensor:
    codes: Tensor = model.encode(audio, num_quantizers=max(n_q, model.config.num_semantic_quantizers)).audio_codes
    return codes


def _encode_xcodec2(model: Any, audio: Tensor, n_q: int) -> Tensor:
    """Codes of audio and the silence that the published class adds: up to a whole frame, or one more.

    Its semantic half reads w2v-BERT's features with half a frame of silence at both ends. Transformers' extractor of
    this codec takes them from torchaudio; the one of w2v-BERT, which the authors use, computes the same by NumPy.
    """
    hop = model.config.hop_length
    audio = F.pad(audio, (0, hop - audio.shape[-1] % hop))
    bins = model.config.semantic_model_config.feature_projection_input_dim // 2
    extractor = transformers_library().SeamlessM4TFeatureExtractor(
        feature_size=bins, num_mel_bins=bins, padding_value=1.0
    )
    padded = F.pad(audio[0, 0], (hop // 2, hop // 2)).cpu().numpy()
    features = extractor(padded, sampling_rate=model.config.sampling_rate, return_tensors="pt").input_features
    codes: Tensor = model.encode(audio, features.to(audio.device)).audio_codes
    return codes


FAMILIES = {
    "encodec": Family(
        "EncodecModel",
        sample_rate=lambda config: config.sampling_rate,
        hop_length=lambda config: config.hop_length,
        codebooks=lambda config: config.num_quantizers,
        whole_frames=False,
        encode=lambda model, audio, n_q: model.encode(audio, bandwidth=_bandwidth(model, n_q)).audio_codes[0],
        decode=lambda model, codes: model.decode(codes[None], [None]).audio_values,
        embed=lambda model, codes: model.quantizer.decode(codes.transpose(0, 1)),
    ),
    "dac": Family(
        "DacModel",
        sample_rate=lambda config: config.sampling_rate,
        hop_length=lambda config: config.hop_length,
        codebooks=lambda config: config.n_codebooks,
        whole_frames=True,
        encode=lambda model, audio, n_q: model.encode(audio, n_quantizers=n_q).audio_codes,
        decode=lambda model, codes: model.decode(audio_codes=codes).audio_values,
        embed=lambda model, codes: model.quantizer.from_codes(codes)[0],
    ),
    "mimi": Family(
        "MimiModel",
        sample_rate=lambda config: config.sampling_rate,
        hop_length=lambda config: round(config.sampling_rate / config.frame_rate),
        codebooks=lambda config: config.num_quantizers,
        whole_frames=False,
        encode=_encode_mimi,
        decode=lambda model, codes: model.decode(codes).audio_values,
        embed=lambda model, codes: model.quantizer.decode(codes),
    ),
    "xcodec": Family(
        "XcodecModel",
        sample_rate=lambda config: config.sample_rate,
        hop_length=lambda config: config.hop_length,
        codebooks=lambda config: config.num_quantizers,
        whole_frames=True,
        encode=lambda model, audio, n_q: model.encode(audio, bandwidth=_bandwidth(model, n_q)).audio_codes,
        decode=lambda model, codes: model.decode(codes).audio_values,
        embed=lambda model, codes: model.quantizer.decode(codes.transpose(0, 1)),
    ),
    "xcodec2": Family(
        "Xcodec2Model",
        sample_rate=lambda config: config.sampling_rate,
        hop_length=lambda config: config.hop_length,
        codebooks=lambda config: 1,
        whole_frames=False,
        encode=_encode_xcodec2,
        decode=lambda model, codes: model.decode(codes).audio_values,
        embed=lambda model, codes: model.quantizer.from_codes(codes.transpose(1, 2)).transpose(1, 2),
        codebook_size=lambda config: prod(config.quantization_levels),
    ),
}
"""Families of codecs by the `model_type` of their configuration."""
