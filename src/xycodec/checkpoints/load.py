"""Loading a codec from a name, folder, file or hub id."""

import json
import zipfile
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

from xycodec.checkpoints.build import OwnCodec, assemble, empty_codec, random_codec
from xycodec.checkpoints.published import load_published
from xycodec.checkpoints.save import CONFIG_FILE, FORMAT_VERSION, WEIGHTS_FILE, WEIGHTS_STEM
from xycodec.checkpoints.training import (
    EXPORT_FILE,
    checkpoints,
    is_checkpoint,
    read_codec_checkpoint,
    read_mapping,
    trained_weights,
)
from xycodec.checkpoints.weights import load_tensors
from xycodec.errors import CheckpointError, last_reason_of
from xycodec.io.config import parse_config
from xycodec.io.hub import fetch
from xycodec.models.presets import NAMED_CONFIGS, CodecConfig
from xycodec.models.pretrained import register
from xycodec.models.registry import MODELS, RANDOM, SEVERAL, of_file, of_repository
from xycodec.models.speech_tokenizer.config import SpeechTokenizerConfig
from xycodec.models.xcodec.config import XCodecConfig
from xycodec.models.xy_tokenizer.config import XYTokenizerConfig
from xycodec.models.xy_tokenizer.model import XYTokenizer

BUNDLED = Path(__file__).parents[1] / "assets"  # folders of the models that come with the package
_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors", ".yaml", ".json")


@register("from_pretrained")
@torch.inference_mode(False)  # the weights are to serve outside of it too
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
    return XYTokenizer.from_pretrained(name_or_path, device="cpu")


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
        return load_published([path], path.parent / "config.yaml", of_file(path.name))
    if (path / EXPORT_FILE).is_file():
        return _load_trained(path)
    if run := checkpoints(path):
        return _load_trained(run[-1])
    settings = read_mapping(path / CONFIG_FILE, json.loads) if (path / CONFIG_FILE).is_file() else {}
    if "format_version" in settings:
        return _load_ours(path, settings)
    weights = _weight_files(path)
    yamls = sorted([*path.glob("*.yaml"), *path.glob("*.yml")])
    return load_published(weights, yamls[0] if len(yamls) == 1 else path / "config.yaml", known, settings)


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
    return assemble(config, load_tensors(folder, WEIGHTS_STEM), str(folder))


def _parse_codec_config(settings: Any, where: str) -> CodecConfig:
    """The configuration of the class that its `model_type` names: an XY-Tokenizer's where there is none."""
    kind = settings.get("model_type") if isinstance(settings, dict) else None
    others: tuple[type[CodecConfig], ...] = (XCodecConfig, SpeechTokenizerConfig)
    named = next((one for one in others if one.model_fields["model_type"].default == kind), XYTokenizerConfig)
    return parse_config(named, settings, where, CheckpointError)


def _load_trained(path: Path) -> OwnCodec:
    """The codec of a training checkpoint, folded for inference."""
    data = read_codec_checkpoint(path)
    config = _parse_codec_config(data["codec"], str(path))
    prefix = "codec."
    state = {key.removeprefix(prefix): value for key, value in trained_weights(data).items() if key.startswith(prefix)}
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    codec = empty_codec(config)
    try:
        codec.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: does not fit its own configuration ({last_reason_of(error)})") from None
    codec.fold_weight_norm()
    return codec.requires_grad_(False).eval()
