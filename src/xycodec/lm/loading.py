"""Loading a trained language model, whatever kind it is."""

from pathlib import Path
from typing import Any

import torch

from xycodec.checkpoints.load import resolve_device
from xycodec.checkpoints.training import CHECKPOINTS, EXPORT_FILE, read_checkpoint, trained_weights
from xycodec.errors import CheckpointError
from xycodec.io.config import parse_config
from xycodec.lm.delay import DelayConfig, DelayNetwork, DelaySpeaker


def load_model(path: Path, *, device: str = "auto") -> Any:
    """The model of a run (its newest checkpoint), a checkpoint or an exported folder, in eval mode on `device`.

    Raises CheckpointError, one line, if it is none.
    """
    place = resolve_device(device)
    found = _found(path)
    data = read_checkpoint(found)
    settings = data.get("language_model")
    if not isinstance(settings, dict):
        raise CheckpointError(f"{found}: holds no language model: name a run of a stage that trains one")
    kind = settings.get("kind")
    if kind != "delay":
        raise CheckpointError(f"{found}: a language model of the unknown kind {kind!r}: update xycodec")
    config = parse_config(DelayConfig, settings, str(found), CheckpointError)
    network = DelayNetwork(config)
    _fill(network, trained_weights(data), found)
    return DelaySpeaker(network.to(place))


def _found(path: Path) -> Path:
    if path.is_file() or (path / EXPORT_FILE).is_file():
        return path
    run = sorted((path / CHECKPOINTS).glob("step_*.pt"))
    if not run:
        raise CheckpointError(f"{path}: holds no language model: name a run, a checkpoint or an exported folder")
    return run[-1]


def _fill(network: torch.nn.Module, weights: dict[str, Any], path: Path) -> None:
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{path}: does not fit its own configuration ({reason})") from None
    network.requires_grad_(False).eval()
