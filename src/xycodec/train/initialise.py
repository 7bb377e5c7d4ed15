"""Weights to start from: a run, one of its checkpoints, or a codec."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from xycodec.errors import CheckpointError
from xycodec.models.xy_tokenizer import XYTokenizer
from xycodec.pretrained import is_checkpoint, load_codec, read_checkpoint
from xycodec.train.checkpoint import checkpoints


def find_checkpoint(source: Path) -> Path | None:
    """The training checkpoint that `source` is or, newest first, holds; None if it is something else."""
    if source.is_file():
        return source if is_checkpoint(source) else None
    found = checkpoints(source)
    return found[-1] if found else None


def load_weights(model: nn.Module, source: Path) -> None:
    """Start `model`, which has a `codec`, from `source`.

    A checkpoint of the same stage gives all it has, any other one and a codec only the codec. Raises CheckpointError
    if there is nothing, or it is of another architecture.
    """
    codec: XYTokenizer = model.codec  # type: ignore[assignment]
    checkpoint = find_checkpoint(source)
    if checkpoint is None:
        adopt_codec(codec, load_codec(source, device="cpu"), str(source))
        return
    state: dict[str, Tensor] = read_checkpoint(checkpoint)["networks"]["model"]
    own = model.state_dict()
    for key, value in state.items():
        if (key in own and own[key].shape != value.shape) or (key not in own and key.startswith("codec.")):
            raise CheckpointError(f"{checkpoint}: of another architecture, its {key} does not fit the recipe")
    lacking = [key for key in own if key.startswith("codec.") and key not in state]
    if lacking:
        raise CheckpointError(f"{checkpoint}: of another architecture, it lacks {lacking[0]}")
    model.load_state_dict({key: value for key, value in state.items() if key in own}, strict=False)


def adopt_codec(codec: XYTokenizer, loaded: XYTokenizer, source: str, *, except_vocos: bool = False) -> None:
    """Give `codec`, built for training, the weights of a folded one.

    `except_vocos` lets the vocoder's tensors that differ in shape keep their start: another output rate has another
    head. Raises CheckpointError where anything else differs.
    """
    state = loaded.state_dict()
    for name in ("input_proj", "output_proj"):
        _unfold(state, f"quantizer.{name}", getattr(codec.quantizer, name))
    own = codec.state_dict()
    for key, value in own.items():
        fits = key in state and state[key].shape == value.shape
        if not fits and except_vocos and key.startswith("vocos."):
            state[key] = value
        elif not fits:
            raise CheckpointError(f"{source}: of another architecture, its {key} does not fit the recipe")
    surplus = sorted(state.keys() - own.keys())
    for key in surplus:
        if not (except_vocos and key.startswith("vocos.")):
            raise CheckpointError(f"{source}: of another architecture, the recipe has no {key}")
        del state[key]
    codec.load_state_dict(state)


def _unfold(state: dict[str, Tensor], name: str, training: nn.Module) -> None:
    """Turn a plain weight back into the direction and the length that weight norm trains."""
    if f"{name}.weight" not in state or not parametrize.is_parametrized(training, "weight"):
        return
    weight = state.pop(f"{name}.weight")
    # The same two tensors that assigning to a weight-normed module would compute.
    state[f"{name}.parametrizations.weight.original0"] = torch.linalg.vector_norm(weight, dim=1, keepdim=True)
    state[f"{name}.parametrizations.weight.original1"] = weight
