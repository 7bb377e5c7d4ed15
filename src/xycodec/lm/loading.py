"""Loading a trained language model, whatever kind it is, and joining the two stages of a VALL-E."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from xycodec.checkpoints.load import resolve_device
from xycodec.checkpoints.training import EXPORT_FILE, checkpoints, read_checkpoint, trained_weights
from xycodec.errors import CheckpointError, last_reason_of
from xycodec.io.config import Config, parse_config
from xycodec.lm.delay import DelayConfig, DelayNetwork, DelaySpeaker
from xycodec.lm.gpt import GPT, Composer, GPTConfig
from xycodec.lm.valle import ValleAr, ValleArConfig, ValleConfig, ValleNar, ValleSpeaker

_AR, _NAR = "ar.", "nar."
NetworkT = TypeVar("NetworkT", bound=nn.Module)
ConfigT = TypeVar("ConfigT", bound=Config)


def load_model(path: Path, *, device: str = "auto") -> Any:
    """The model of a run (its newest checkpoint), a checkpoint or an exported folder, in eval mode on `device`.

    Raises CheckpointError, one line, if it is none.
    """
    place = resolve_device(device)
    found, settings, weights = read_model(path)
    kind = settings.get("kind")
    if kind == "delay":
        config = _parsed(DelayConfig, settings, found)
        return DelaySpeaker(_filled(DelayNetwork(config), weights, found).to(place))
    if kind == "gpt":
        return Composer(_filled(GPT(_parsed(GPTConfig, settings, found)), weights, found).to(place))
    if kind == "valle_ar":
        return ValleSpeaker(_filled(ValleAr(_parsed(ValleArConfig, settings, found)), weights, found).to(place))
    if kind == "valle":
        both = _parsed(ValleConfig, settings, found)
        ar = _filled(ValleAr(both.ar), _part(weights, _AR), found).to(place)
        nar = None if both.nar is None else _filled(ValleNar(both.nar), _part(weights, _NAR), found).to(place)
        return ValleSpeaker(ar, nar)
    if kind == "valle_nar":
        raise CheckpointError(
            f"{found}: VALL-E's second stage alone does not speak: xycodec export AR_RUN FOLDER --nar"
        )
    raise CheckpointError(f"{found}: a language model of the unknown kind {kind!r}: update xycodec")


def read_model(path: Path) -> tuple[Path, dict[str, Any], dict[str, Tensor]]:
    """The checkpoint that `path` is or holds, its model's settings, and its weights. Raises CheckpointError."""
    found = _found(path)
    data = read_checkpoint(found)
    settings = data.get("language_model")
    if not isinstance(settings, dict):
        raise CheckpointError(f"{found}: holds no language model: name a run of a stage that trains one")
    return found, settings, trained_weights(data)


def join_valle(ar: Path, nar: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and weights of a VALL-E of both stages, from a run or checkpoint of each.

    Raises CheckpointError if one is of another kind, or they are of other codecs or tables of symbols.
    """
    parts = [read_model(path) for path in (ar, nar)]
    for (place, settings, _), kind in zip(parts, ("valle_ar", "valle_nar"), strict=True):
        if settings.get("kind") != kind:
            raise CheckpointError(f"{place}: of kind {settings.get('kind')!r}, not {kind}: name the other stage's run")
    for name in ("codec", "text"):
        one, other = (settings[name] for _, settings, _ in parts)
        if one != other:
            raise CheckpointError(f"{ar} and {nar}: their {name} differs: train both stages on one store")
    settings = {"kind": "valle", "ar": parts[0][1], "nar": parts[1][1]}
    weights = {
        prefix + key: value
        for prefix, (_, _, own) in zip((_AR, _NAR), parts, strict=True)
        for key, value in own.items()
    }
    return settings, weights


def _found(path: Path) -> Path:
    if path.is_file() or (path / EXPORT_FILE).is_file():
        return path
    run = checkpoints(path)
    if not run:
        raise CheckpointError(f"{path}: holds no language model: name a run, a checkpoint or an exported folder")
    return run[-1]


def _parsed(cls: type[ConfigT], settings: dict[str, Any], place: Path) -> ConfigT:
    return parse_config(cls, settings, str(place), CheckpointError)


def _part(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def _filled(network: NetworkT, weights: Mapping[str, Tensor], path: Path) -> NetworkT:
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = last_reason_of(error)
        raise CheckpointError(f"{path}: does not fit its own configuration ({reason})") from None
    return network.requires_grad_(False).eval()
