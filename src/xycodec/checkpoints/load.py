"""From a name, folder, file or hub id to a codec that is ready to use, and back to a folder."""

import json
import zipfile
import zlib
from difflib import get_close_matches
from pathlib import Path
from typing import Any, overload

import torch
import yaml
from torch import Tensor
from torch.nn.utils import parametrize

from xycodec.checkpoints.training import (
    CHECKPOINTS,
    EXPORT_FILE,
    is_checkpoint,
    read_codec_checkpoint,
    read_mapping,
    read_state,
    trained_weights,
)
from xycodec.checkpoints.weights import load_tensors, save_tensors, stored
from xycodec.errors import CheckpointError
from xycodec.io.config import parse_config
from xycodec.io.files import new_folder
from xycodec.io.hub import fetch
from xycodec.models.presets import NAMED_CONFIGS, CodecConfig
from xycodec.models.registry import MODELS, RANDOM, SEVERAL, of_file, of_repository
from xycodec.models.xcodec import convert as convert_xcodec
from xycodec.models.xcodec.config import XCodecConfig
from xycodec.models.xcodec.model import XCodec
from xycodec.models.xy_tokenizer import convert
from xycodec.models.xy_tokenizer.config import XYTokenizerConfig
from xycodec.models.xy_tokenizer.model import XYTokenizer
from xycodec.nn.quantize import smoothed_counts

FORMAT_VERSION = 1
CONFIG_FILE, WEIGHTS_STEM = "config.json", "model"
WEIGHTS_FILE = f"{WEIGHTS_STEM}.safetensors"
BUNDLED = Path(__file__).parents[1] / "assets"  # folders of the models that come with the package
_CODEBOOK, _COUNTS, _SUMS = (f"quantizer.{name}" for name in ("codebook", "cluster_size", "embed_avg"))
_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors", ".yaml", ".json")

OwnCodec = XYTokenizer | XCodec


def load_codec(
    name_or_path: str | Path,
    *,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    reference: bool = False,
) -> OwnCodec:
    """Load a codec in eval mode.

    `name_or_path`: a name of `xycodec models`; a folder (ours: config.json and model.safetensors; published:
    config.yaml and one checkpoint, or of X-Codec either layout); one published checkpoint file; a training run's folder
    (its newest checkpoint) or one checkpoint of it; or a hub id such as `fdugyt/XY_Tokenizer`, with its file where it
    holds several models, `ZhenYe234/xcodec:xcodec_speech_wavlm_mls.pth`.
    `device`: a torch device, or `auto` for CUDA, then MPS, then CPU. `dtype` float32 (None) or bfloat16: the
    towers' matrices only, and none of X-Codec's; worth it on a GPU, or a CPU with bfloat16 units, where codes of deep
    layers may differ.
    `reference`: the published rules for lengths and long audio, for parity.

    Raises CheckpointError, one line, on anything that does not give a codec. Pickled code is never run.
    """
    if dtype not in (None, torch.float32, torch.bfloat16):
        raise CheckpointError(f"dtype must be float32 or bfloat16, got {dtype}")
    place = resolve_device(device)
    name = str(name_or_path)
    if name == RANDOM:
        codec: OwnCodec = random_codec(NAMED_CONFIGS[RANDOM])
    elif name in MODELS and MODELS[name].source == "bundled":
        codec = _load_path(BUNDLED / name)
    elif name not in MODELS and _exists(name):
        codec = _load_path(Path(name))
    else:
        named, _, file = name.partition(":")
        repo = _hub_id(named)
        path = _download_file(repo, file) if file else _download(repo)
        codec = _load_path(path, of_repository(repo))
    if dtype is torch.bfloat16:
        codec.to_compute_dtype(dtype)
    codec.reference = reference
    return codec.to(place).eval()


def resolve_device(device: str) -> torch.device:
    """`auto` -> CUDA, then MPS, then CPU; anything else as torch understands it, if it is there."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise CheckpointError(f"device {device!r} is not available here: try auto or cpu") from None
    return place


def load_xy_tokenizer(name_or_path: str | Path) -> XYTokenizer:
    """`load_codec` on the CPU where only an XY-Tokenizer will do. Raises CheckpointError on anything else."""
    codec = load_codec(name_or_path, device="cpu")
    if not isinstance(codec, XYTokenizer):
        raise CheckpointError(f"{name_or_path}: holds an X-Codec, this takes an XY-Tokenizer")
    return codec


@overload
def random_codec(config: XYTokenizerConfig, seed: int = 0) -> XYTokenizer: ...
@overload
def random_codec(config: XCodecConfig, seed: int = 0) -> XCodec: ...
def random_codec(config: CodecConfig, seed: int = 0) -> OwnCodec:
    """An untrained codec, the same for the same seed, folded for inference and in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        codec = _build(config)
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


def _latents(codec: OwnCodec) -> tuple[Tensor | float, Tensor | float]:
    """About where an untrained codec's latents lie at the codebooks: mean and standard deviation."""
    if isinstance(codec, XYTokenizer):
        # A map of unit-variance latents with torch's default weights has variance 1/3 in every channel.
        return 0.0, (1 / 3) ** 0.5
    with torch.no_grad():
        latents = codec.encode_latents(0.1 * torch.randn(1, 50 * codec.hop_length))[0]
    return latents.mean(dim=0), latents.std(dim=0)


def _build(config: CodecConfig) -> OwnCodec:
    return XCodec(config) if isinstance(config, XCodecConfig) else XYTokenizer(config)


def save_codec(
    codec: OwnCodec,
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
    part_bytes: int | None = None,
) -> Path:
    """Write `config.json` and `model.safetensors` into a new folder, whole or not at all.

    `dtype` is what floating-point weights are stored in; they run in float32 again once loaded. In a lower precision
    the codebooks' running sums, which only training reads, are left out and follow from counts again. The codec must be
    folded (as `load_codec` returns it). `overwrite` replaces a folder that holds a codec. `part_bytes` makes
    files of at most so many bytes of the weights, model-00001-of-0000N.safetensors. Raises CheckpointError if the
    folder exists or cannot be made.
    """
    target = Path(folder)
    if any(parametrize.is_parametrized(module) for module in codec.modules()):
        raise CheckpointError(f"{target}: fold the codec's weight norm before saving it (fold_weight_norm)")
    state = {key: stored(key, tensor, dtype) for key, tensor in codec.state_dict().items()}
    if dtype != torch.float32:
        del state[_SUMS]
    settings = {"format_version": FORMAT_VERSION, **codec.config.model_dump(mode="json")}
    with new_folder(target, CheckpointError, replace=overwrite and (target / CONFIG_FILE).is_file()) as made:
        (made / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        save_tensors(state, made, WEIGHTS_STEM, part_bytes)
    return target


# ---- finding the files -------------------------------------------------------------------------


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except (OSError, ValueError):  # too long, or a null byte
        return False


def _hub_id(name: str) -> str:
    if name in MODELS:
        return MODELS[name].source
    if name.count("/") == 1 and not name.startswith((".", "/")) and not name.endswith(_SUFFIXES):
        return name
    near = get_close_matches(name, MODELS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known names are {', '.join(MODELS)}"
    raise CheckpointError(f"{name}: no such file, folder or model; {hint}")


def _download(repo: str) -> Path:
    """The folder of a hub repository's snapshot: from the cache, or fetched into it."""
    if repo in SEVERAL:
        files = ", ".join(SEVERAL[repo])
        raise CheckpointError(f"{repo}: holds several models: name a file, {repo}:FILE, of {files}")
    # Only what a codec is made of; one published repository names its checkpoint like itself, without suffix.
    return fetch(repo, ["*.json", "*.yaml", "*.yml", "*.safetensors", "*.ckpt", "*.pt", "*.pth", repo.split("/")[1]])


def _download_file(repo: str, file: str) -> Path:
    folder = fetch(repo, [file])
    if not (folder / file).is_file():
        raise CheckpointError(f"{repo}: has no file {file}")
    return folder / file


def _load_path(path: Path, known: str | None = None) -> OwnCodec:
    """The codec of a file or folder; `known` is the name of the published model that it holds, where that is sure."""
    if path.is_file():
        if path.name == WEIGHTS_FILE and (path.parent / CONFIG_FILE).is_file():
            return _load_path(path.parent)
        if is_checkpoint(path):
            return _load_trained(path)
        return _load_published([path], path.parent / "config.yaml", of_file(path.name))
    if (path / EXPORT_FILE).is_file():
        return _load_trained(path)
    if run := sorted((path / CHECKPOINTS).glob("step_*.pt")):
        return _load_trained(run[-1])
    settings = read_mapping(path / CONFIG_FILE, json.loads) if (path / CONFIG_FILE).is_file() else {}
    if "format_version" in settings:
        return _load_ours(path, settings)
    weights = _weight_files(path)
    yamls = sorted([*path.glob("*.yaml"), *path.glob("*.yml")])
    return _load_published(weights, yamls[0] if len(yamls) == 1 else path / "config.yaml", known, settings)


def _weight_files(folder: Path) -> list[Path]:
    """The one checkpoint in a folder: a file, or the parts of a sharded safetensors file."""
    files = [file for file in sorted(folder.iterdir()) if file.is_file()]
    # In order of preference; a published repository may hold its checkpoint without suffix.
    for kind in (
        lambda file: file.suffix == ".ckpt",
        lambda file: file.match("model*.safetensors"),
        lambda file: file.suffix in {".pt", ".pth", ".bin", ".safetensors"},
        lambda file: not file.suffix and zipfile.is_zipfile(file),
    ):
        found = [file for file in files if kind(file)]
        if len(found) == 1 or (found and all(file.match("model-*-of-*.safetensors") for file in found)):
            return found
        if found:
            raise CheckpointError(f"{folder}: holds {len(found)} checkpoints; name the file to load")
    raise CheckpointError(f"{folder}: holds no checkpoint ({WEIGHTS_FILE} or a .ckpt)")


# ---- reading them ------------------------------------------------------------------------------


def _load_ours(folder: Path, settings: dict[str, Any]) -> OwnCodec:
    version = settings.pop("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{folder}: format {version!r} is not one this xycodec reads, upgrade it")
    config = _parse_codec_config(settings, str(folder / CONFIG_FILE))
    return _assemble(config, load_tensors(folder, WEIGHTS_STEM), str(folder))


def _parse_codec_config(settings: Any, where: str) -> CodecConfig:
    """The configuration of the class that its `model_type` names."""
    if isinstance(settings, dict) and settings.get("model_type") == XCodecConfig.model_fields["model_type"].default:
        return parse_config(XCodecConfig, settings, where, CheckpointError)
    return parse_config(XYTokenizerConfig, settings, where, CheckpointError)


def _load_trained(path: Path) -> OwnCodec:
    """The codec of a training checkpoint, folded for inference."""
    data = read_codec_checkpoint(path)
    config = _parse_codec_config(data["codec"], str(path))
    prefix = "codec."
    state = {key.removeprefix(prefix): value for key, value in trained_weights(data).items() if key.startswith(prefix)}
    codec = _build(config)
    try:
        codec.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: does not fit its own configuration ({str(error).splitlines()[-1]})") from None
    codec.fold_weight_norm()
    return codec.requires_grad_(False).eval()


def _load_published(
    files: list[Path], config_file: Path, known: str | None = None, settings: dict[str, Any] | None = None
) -> OwnCodec:
    name = str(files[0])
    state: dict[str, Tensor] = {}
    for file in files:
        state.update(read_state(file))
    if convert_xcodec.is_published(state):
        ours = convert_xcodec.to_ours(state, name)
        config: CodecConfig = convert_xcodec.config_from_ours(ours, name, known or convert.CUSTOM, settings or {})
    elif convert.is_published(state):
        config = _published_config(state, config_file, name)
        ours = convert.to_ours(state, name)
    else:
        raise CheckpointError(f"{name}: holds no XY-Tokenizer and no X-Codec that is known here")
    if config.model_id == convert.CUSTOM:
        # Code files name their model: two models of one's own must not share a name.
        fingerprint = zlib.crc32(ours["quantizer.codebook"].float().contiguous().numpy().tobytes())
        config = config.model_copy(update={"model_id": f"{convert.CUSTOM}-{fingerprint:08x}"})
    return _assemble(config, ours, name)


def _published_config(state: dict[str, Tensor], config_file: Path, name: str) -> XYTokenizerConfig:
    if config_file.is_file():
        data = read_mapping(config_file, yaml.safe_load)
        return convert.config_from_published_yaml(data, str(config_file))
    return convert.config_from_state(state, name)


def _assemble(config: CodecConfig, state: dict[str, Tensor], name: str) -> OwnCodec:
    """Put the tensors into a model without copying them; every key and shape must fit."""
    with torch.device("meta"):
        codec = _build(config)
    codec.fold_weight_norm()
    expected = codec.state_dict()
    if _SUMS not in state and {_CODEBOOK, _COUNTS} <= state.keys():
        state[_SUMS] = state[_CODEBOOK].float() * smoothed_counts(state[_COUNTS].float())[..., None]
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


def bfloat16_advice() -> str:
    """Whether `dtype=bfloat16` is worth it on this machine, in a sentence."""
    trade = "codes of deep layers may differ from float32's, so keep to one dtype for a corpus"
    if torch.cuda.is_available():
        return f"bfloat16: worth it on this GPU; {trade}."
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    if "amx_bf16" in flags:
        return f"bfloat16: worth it on this CPU, whose AMX units are several times faster in it; {trade}."
    if "avx512_bf16" in flags:
        # Measured: 1.7 to 2.0 x as fast on an AMD EPYC, 0.6 x on a virtual Xeon whose AMX units are hidden.
        return (
            f"bfloat16: a gain or a loss on this CPU (AVX-512 BF16 without AMX), ask `xycodec bench --bf16`; {trade}."
        )
    return "bfloat16: not worth it on this CPU, which has no units for it; use float32."
