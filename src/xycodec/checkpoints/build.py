"""Codecs of a configuration: untrained, or with the tensors of a checkpoint."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import overload

import torch
from torch import Tensor

from xycodec.errors import CheckpointError
from xycodec.models.precision import own_precision
from xycodec.models.presets import CodecConfig
from xycodec.models.speech_tokenizer.config import SpeechTokenizerConfig
from xycodec.models.speech_tokenizer.model import SpeechTokenizer
from xycodec.models.xcodec.config import XCodecConfig
from xycodec.models.xcodec.model import XCodec
from xycodec.models.xy_tokenizer.config import XYTokenizerConfig
from xycodec.models.xy_tokenizer.model import XYTokenizer
from xycodec.nn.folding import built_folded
from xycodec.nn.quantize import smoothed_counts

OwnCodec = XYTokenizer | XCodec | SpeechTokenizer
CODEBOOK, COUNTS, SUMS = (f"quantizer.{name}" for name in ("codebook", "cluster_size", "embed_avg"))


def build_codec(config: CodecConfig) -> OwnCodec:
    """A codec of a configuration with torch's random weights, not folded."""
    if isinstance(config, XYTokenizerConfig):
        return XYTokenizer(config)
    return XCodec(config) if isinstance(config, XCodecConfig) else SpeechTokenizer(config)


def empty_codec(config: CodecConfig) -> OwnCodec:
    """A codec of a configuration on torch's meta device, without weights, in float32 whatever torch's default is."""
    with torch.device("meta"):
        return build_codec(config).float()


def assemble(config: CodecConfig, state: dict[str, Tensor], name: str) -> OwnCodec:
    """A codec with the tensors of `state`, not copied, in eval mode.

    Raises CheckpointError, which begins with `name`, unless every key and shape fits.
    """
    with built_folded():
        codec = empty_codec(config)
    codec.fold_weight_norm()  # of a model of Transformers, which is built as it is
    expected = codec.state_dict()
    if SUMS not in state and {CODEBOOK, COUNTS} <= state.keys():
        state[SUMS] = state[CODEBOOK].float() * smoothed_counts(state[COUNTS].float())[..., None]
    missing, surplus = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or surplus:
        key, verb = (missing[0], "lacks") if missing else (surplus[0], "has the unknown")
        raise CheckpointError(
            f"{name}: the checkpoint {verb} {key!r} ({len(missing)} keys missing, {len(surplus)} unknown)"
        )
    for key, wanted in expected.items():
        given = state[key]
        if given.shape != wanted.shape or given.is_floating_point() != wanted.is_floating_point():
            raise CheckpointError(
                f"{name}: {key} is {given.dtype} {tuple(given.shape)}, "
                f"the configuration asks for {wanted.dtype} {tuple(wanted.shape)}"
            )
        state[key] = given.to(wanted.dtype)
    codec.load_state_dict(state, assign=True)
    return codec.requires_grad_(False).eval()


@overload
def random_codec(config: XYTokenizerConfig, seed: int = 0) -> XYTokenizer: ...
@overload
def random_codec(config: XCodecConfig, seed: int = 0) -> XCodec: ...
@overload
def random_codec(config: SpeechTokenizerConfig, seed: int = 0) -> SpeechTokenizer: ...
@torch.inference_mode(False)
def random_codec(config: CodecConfig, seed: int = 0) -> OwnCodec:
    """An untrained codec, the same for the same seed, folded for inference and in eval mode."""
    cpu = torch.device("cpu")
    with torch.random.fork_rng(devices=[]), cpu, own_precision(cpu), _same_anywhere():
        torch.manual_seed(seed)
        codec = build_codec(config)
        codec.fold_weight_norm()
        codec.eval()
        mean, deviation = _latents(codec)
        scale = deviation * 0.9 ** torch.arange(codec.n_q).view(-1, 1, 1)
        quantizer = codec.quantizer
        quantizer.codebook.normal_().mul_(scale)
        quantizer.codebook[0] += mean
        quantizer.embed_avg.copy_(quantizer.codebook)
        quantizer.cluster_size.fill_(1)
        quantizer.inited.fill_(True)
    return codec


_lock = Lock()


@contextmanager
def _same_anywhere() -> Iterator[None]:
    """Draw random weights in float32 on one thread, whatever torch is set to: both are the process's, so one at a time.

    The norms of weight normalisation are sums whose last bit may change with the number of threads.
    """
    with _lock:
        dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            torch.set_num_threads(threads)


def _latents(codec: OwnCodec) -> tuple[Tensor | float, Tensor | float]:
    """Approximate mean and standard deviation of an untrained codec's latents at the codebooks."""
    if isinstance(codec, XYTokenizer):
        # A map of unit-variance latents with torch's default weights has variance 1/3 in every channel.
        return 0.0, (1 / 3) ** 0.5
    with torch.no_grad():
        latents = codec.encode_latents(0.1 * torch.randn(1, 50 * codec.hop_length))[0]
    return latents.mean(dim=0), latents.std(dim=0)
