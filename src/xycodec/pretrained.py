"""From a name, folder, file or hub id to a codec that is ready to use, and back to a folder."""

import json
import pickle
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from torch.nn.utils import parametrize

from xycodec import convert
from xycodec.config import CONFIGS, XYTokenizerConfig, parse_config
from xycodec.errors import CheckpointError
from xycodec.folders import new_folder
from xycodec.hub import fetch
from xycodec.models.xy_tokenizer import XYTokenizer
from xycodec.weights import damaged, load_tensors, read_safetensors, save_tensors, stored

FORMAT_VERSION = 1
CHECKPOINT_FORMAT = 1  # of training checkpoints
CHECKPOINTS = "checkpoints"  # where a run keeps them
AVERAGE = "ema"  # the average of the codec's weights, beside the network `model`
CONFIG_FILE, WEIGHTS_STEM = "config.json", "model"
WEIGHTS_FILE = f"{WEIGHTS_STEM}.safetensors"
EXPORT_FILE, EXPORT_STEM = "weights.json", "weights"  # of a run's weights without its optimizers
BUNDLED = Path(__file__).parent / "assets"  # folders of the models that come with the package
DEFAULT = "xy-mini"
RANDOM = "xy-random"
_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors", ".yaml", ".json")


@dataclass(frozen=True)
class ModelInfo:
    """A model that `load_codec` knows by name."""

    name: str
    source: str
    """Where its weights come from: `bundled`, `seeded` or a hub id."""
    aliases: tuple[str, ...]
    """Other hub ids that hold the same model."""
    description: str


MODELS = {
    info.name: info
    for info in (
        ModelInfo(
            DEFAULT,
            "bundled",
            (),
            "the default: small, comes with the package; 4.5 h of English and German, 16 kHz output",
        ),
        ModelInfo(
            "xy-tokenizer",
            "fdugyt/XY_Tokenizer",
            (),
            "the paper's model: Emilia, 16 kHz output",
        ),
        ModelInfo(
            "xy-tokenizer-24k",
            "fnlp/XY_Tokenizer_TTSD_V0",
            (),
            "of MOSS-TTSD V0: Emilia and internal data, 24 kHz output",
        ),
        ModelInfo(
            "xy-tokenizer-32k",
            "OpenMOSS-Team/MOSS_TTSD_tokenizer",
            ("OpenMOSS-Team/MOSS_TTSD_tokenizer_hf", "fnlp/XY_Tokenizer_TTSD_V0_32k_hf"),
            "same codes as the 24 kHz one, 32 kHz output",
        ),
        ModelInfo(
            RANDOM,
            "seeded",
            (),
            "untrained random weights, to try the pipeline: its audio is noise",
        ),
    )
}


def load_codec(
    name_or_path: str | Path,
    *,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    reference: bool = False,
) -> XYTokenizer:
    """Load a codec in eval mode.

    `name_or_path`: a name of `xycodec models`; a folder (ours: config.json and model.safetensors; published:
    config.yaml and one checkpoint); one published checkpoint file; a training run's folder (its newest checkpoint)
    or one checkpoint of it; or a hub id such as `fdugyt/XY_Tokenizer`.
    `device`: a torch device, or `auto` for CUDA, then MPS, then CPU. `dtype` float32 (None) or bfloat16: the
    towers' matrices only; worth it on a GPU, or a CPU with bfloat16 units, where codes of deep layers may differ.
    `reference`: the published rules for lengths and long audio, for parity.

    Raises CheckpointError, one line, on anything that does not give a codec. Pickled code is never run.
    """
    if dtype not in (None, torch.float32, torch.bfloat16):
        raise CheckpointError(f"dtype must be float32 or bfloat16, got {dtype}")
    place = resolve_device(device)
    name = str(name_or_path)
    if name == RANDOM:
        codec = random_codec(CONFIGS[RANDOM])
    elif name in MODELS and MODELS[name].source == "bundled":
        codec = _load_path(BUNDLED / name)
    elif name not in MODELS and _exists(name):
        codec = _load_path(Path(name))
    else:
        codec = _load_path(_download(_hub_id(name)))
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


def random_codec(config: XYTokenizerConfig, seed: int = 0) -> XYTokenizer:
    """An untrained codec, the same for the same seed, folded for inference and in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        codec = XYTokenizer(config)
        codec.fold_weight_norm()
        # A map of unit-variance latents with torch's default weights has variance 1/3 in every channel.
        scale = (1 / 3) ** 0.5 * 0.9 ** torch.arange(codec.n_q).view(-1, 1, 1)
        quantizer = codec.quantizer
        quantizer.codebook.normal_().mul_(scale)
        quantizer.embed_avg.copy_(quantizer.codebook)
        quantizer.cluster_size.fill_(1)
        quantizer.inited.fill_(True)
    return codec.eval()


def save_codec(
    codec: XYTokenizer,
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
    part_bytes: int | None = None,
) -> Path:
    """Write `config.json` and `model.safetensors` into a new folder, whole or not at all.

    `dtype` is what floating-point weights are stored in; they run in float32 again once loaded. The codec must
    be folded (as `load_codec` returns it). `overwrite` replaces a folder that holds a codec. `part_bytes` makes
    files of at most so many bytes of the weights, model-00001-of-0000N.safetensors. Raises CheckpointError if the
    folder exists or cannot be made.
    """
    target = Path(folder)
    if parametrize.is_parametrized(codec.quantizer.input_proj):
        raise CheckpointError(f"{target}: fold the codec's weight norm before saving it (fold_weight_norm)")
    state = {key: stored(key, tensor, dtype) for key, tensor in codec.state_dict().items()}
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
    # Only what a codec is made of; one published repository names its checkpoint like itself, without suffix.
    return fetch(repo, ["*.json", "*.yaml", "*.yml", "*.safetensors", "*.ckpt", "*.pt", "*.pth", repo.split("/")[1]])


def _load_path(path: Path) -> XYTokenizer:
    if path.is_file():
        if path.name == WEIGHTS_FILE and (path.parent / CONFIG_FILE).is_file():
            return _load_path(path.parent)
        if is_checkpoint(path):
            return _load_trained(path)
        return _load_published([path], path.parent / "config.yaml")
    if (path / EXPORT_FILE).is_file():
        return _load_trained(path)
    if run := sorted((path / CHECKPOINTS).glob("step_*.pt")):
        return _load_trained(run[-1])
    settings = _read_mapping(path / CONFIG_FILE, json.loads) if (path / CONFIG_FILE).is_file() else {}
    if "format_version" in settings:
        return _load_ours(path, settings)
    weights = _weight_files(path)
    yamls = sorted([*path.glob("*.yaml"), *path.glob("*.yml")])
    return _load_published(weights, yamls[0] if len(yamls) == 1 else path / "config.yaml")


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


def _read_mapping(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    try:
        data = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a mapping of settings")
    return data


# ---- reading them ------------------------------------------------------------------------------


def _load_ours(folder: Path, settings: dict[str, Any]) -> XYTokenizer:
    version = settings.pop("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{folder}: format {version!r} is not one this xycodec reads, upgrade it")
    config = parse_config(XYTokenizerConfig, settings, str(folder / CONFIG_FILE), CheckpointError)
    return _assemble(config, load_tensors(folder, WEIGHTS_STEM), str(folder))


def _load_trained(path: Path) -> XYTokenizer:
    """The codec of a training checkpoint, folded for inference."""
    data = read_codec_checkpoint(path)
    config = parse_config(XYTokenizerConfig, data["codec"], str(path), CheckpointError)
    prefix = "codec."
    state = {key.removeprefix(prefix): value for key, value in trained_weights(data).items() if key.startswith(prefix)}
    codec = XYTokenizer(config)
    try:
        codec.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: does not fit its own configuration ({str(error).splitlines()[-1]})") from None
    codec.fold_weight_norm()
    return codec.requires_grad_(False).eval()


def _load_published(files: list[Path], config_file: Path) -> XYTokenizer:
    name = str(files[0])
    state: dict[str, Tensor] = {}
    for file in files:
        state.update(read_state(file))
    if not convert.is_published(state):
        raise CheckpointError(f"{name}: holds no XY-Tokenizer that is known here")
    if config_file.is_file():
        data = _read_mapping(config_file, yaml.safe_load)
        config = convert.config_from_published_yaml(data, str(config_file))
    else:
        config = convert.config_from_state(state, name)
    ours = convert.to_ours(state, name)
    if config.model_id == convert.CUSTOM:
        # Code files name their model: two models of one's own must not share a name.
        fingerprint = zlib.crc32(ours["quantizer.codebook"].float().contiguous().numpy().tobytes())
        config = config.model_copy(update={"model_id": f"{convert.CUSTOM}-{fingerprint:08x}"})
    return _assemble(config, ours, name)


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a `.safetensors` file (mapped, not copied) or of a torch checkpoint, on the CPU.

    A checkpoint's `generator` entry is taken where there is one. Nothing but tensors and plain containers is
    unpickled. Raises CheckpointError.
    """
    data = read_safetensors(path) if path.suffix == ".safetensors" else _unpickle(path)
    if isinstance(data, dict) and isinstance(data.get("generator"), dict):
        data = data["generator"]
    if not isinstance(data, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in data.items()):
        raise CheckpointError(f"{path}: holds something other than named tensors")
    return dict(data)


def is_checkpoint(path: Path) -> bool:
    """Whether a file is a checkpoint of a training run: by its place in one, or its contents; tensors stay unread."""
    if path.suffix != ".pt" or path.parent.name == CHECKPOINTS:
        return path.suffix == ".pt"
    try:
        with zipfile.ZipFile(path) as archive:
            contents = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            return b"optimizers" in archive.read(contents)
    except (OSError, zipfile.BadZipFile, StopIteration):
        return False


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A training checkpoint as it was saved, or the folder of what was exported of one, without its optimizers.

    Tensors of a checkpoint are mapped, not copied. Raises CheckpointError.
    """
    data = _read_export(path) if path.is_dir() else _unpickle(path, mmap=True)
    parts = {"format", "codec", "networks"}
    if not isinstance(data, dict) or not parts <= data.keys() or "model" not in data["networks"]:
        raise CheckpointError(f"{path}: not a checkpoint of a training run")
    if data["format"] != CHECKPOINT_FORMAT:
        raise CheckpointError(f"{path}: format {data['format']!r} is not one this xycodec reads, upgrade it")
    return data


def read_codec_checkpoint(path: Path) -> dict[str, Any]:
    """A training checkpoint that holds a codec. Raises CheckpointError."""
    data = read_checkpoint(path)
    if data["codec"] is None:
        raise CheckpointError(
            f"{path}: holds a recogniser and no codec: name it in towers, and pre-training starts from it"
        )
    return data


def trained_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The model's tensors in a training checkpoint; where there is an average, the codec's are the average's."""
    networks: dict[str, dict[str, Tensor]] = checkpoint["networks"]
    return networks["model"] | networks.get(AVERAGE, {})


def _read_export(folder: Path) -> dict[str, Any]:
    networks: dict[str, dict[str, Tensor]] = {}
    about = _read_mapping(folder / EXPORT_FILE, json.loads)
    for key, tensor in load_tensors(folder, EXPORT_STEM).items():
        network, _, name = key.partition("/")
        # What half precision is stored for is trained in float32.
        networks.setdefault(network, {})[name] = tensor.float() if tensor.dtype is torch.float16 else tensor
    return about | {"networks": networks}


def _unpickle(path: Path, mmap: bool = False) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on old pickles; what matters is raised
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError:
        raise CheckpointError(f"{path}: not a plain tensor checkpoint; code in it was not run") from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(damaged(path, error)) from None


def _assemble(config: XYTokenizerConfig, state: dict[str, Tensor], name: str) -> XYTokenizer:
    """Put the tensors into a model without copying them; every key and shape must fit."""
    with torch.device("meta"):
        codec = XYTokenizer(config)
    codec.fold_weight_norm()
    expected = codec.state_dict()
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
