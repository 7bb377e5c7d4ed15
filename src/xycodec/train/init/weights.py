"""Weights to start from: a run, one of its checkpoints, or a codec."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from xycodec.checkpoints.load import load_xy_tokenizer
from xycodec.checkpoints.training import (
    EXPORT_FILE,
    checkpoints,
    is_checkpoint,
    read_checkpoint,
    read_codec_checkpoint,
    trained_weights,
)
from xycodec.checkpoints.whisper import FoundTower, find_whisper
from xycodec.errors import CheckpointError
from xycodec.io.config import parse_config
from xycodec.models.xcodec.config import SelfSupervisedConfig
from xycodec.models.xy_tokenizer.config import RecogniserConfig
from xycodec.models.xy_tokenizer.model import RAISE, XYTokenizer


def find_checkpoint(source: Path) -> Path | None:
    """The training checkpoint that `source` is or, newest first, holds; None if it is something else.

    A folder with the exported weights of one is as good as the checkpoint itself.
    """
    if (source / EXPORT_FILE).is_file():
        return source
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
        adopt_codec(codec, load_xy_tokenizer(source), str(source))
        return
    state = trained_weights(read_codec_checkpoint(checkpoint))
    own = model.state_dict()
    for key, value in state.items():
        if (key in own and own[key].shape != value.shape) or (key not in own and key.startswith("codec.")):
            raise CheckpointError(f"{checkpoint}: of another architecture, its {key} does not fit the recipe")
    lacking = [key for key in own if key.startswith("codec.") and key not in state]
    if lacking:
        raise CheckpointError(f"{checkpoint}: of another architecture, it lacks {lacking[0]}")
    model.load_state_dict({key: value for key, value in state.items() if key in own}, strict=False)


def start_towers(codec: XYTokenizer, source: str, *, semantic_only: bool = False) -> None:
    """Start the towers from `source`: a Whisper, or a run of stage `ctc` or one of its checkpoints.

    Whisper's encoder becomes both. A recogniser's tower becomes the semantic one, and the acoustic one too where that
    is of the same size or the only one. `semantic_only` leaves the acoustic one as it is, if there are two. Raises
    CheckpointError if `source` gives no such thing, ConfigError if its size is not that of the tower.
    """
    checkpoint = find_checkpoint(Path(source))
    recogniser = checkpoint and find_recogniser(checkpoint)
    if checkpoint and not recogniser:
        held, use = ("HuBERT", "semantic_weights of stage xcodec") if find_hubert(checkpoint) else ("codec", "weights")
        raise CheckpointError(f"{checkpoint}: holds a {held} and no recogniser: name it in {use}, and not in towers")
    found = recogniser or find_whisper(source)
    ours = codec.config
    sizes = {"semantic_encoder": ours.semantic_encoder, "acoustic_encoder": ours.acoustic_encoder}
    if ours.semantic_encoder and (semantic_only or (recogniser and ours.acoustic_encoder != found.size)):
        del sizes["acoustic_encoder"]
    wanted = {name: size for name, size in sizes.items() if size is not None}
    for name, size in wanted.items():
        found.require(name, size, n_mels=ours.n_mels, positions=ours.tower_positions, setting="model.window_frames")
    for name in wanted:
        found.fill(getattr(codec, name))


def find_recogniser(checkpoint: Path) -> FoundTower | None:
    """The tower of a checkpoint of stage `ctc`; None of any other stage's."""
    data = read_checkpoint(checkpoint)
    if data.get("recogniser") is None:
        return None
    config = parse_config(RecogniserConfig, data["recogniser"], str(checkpoint), CheckpointError)
    prefix = "recogniser.tower."
    state = {
        key.removeprefix(prefix): value for key, value in data["networks"]["model"].items() if key.startswith(prefix)
    }
    return FoundTower(str(checkpoint), config.tower, config.n_mels, config.tower_positions, lambda: state)


def find_hubert(checkpoint: Path) -> tuple[SelfSupervisedConfig, dict[str, Tensor]] | None:
    """Size and weights of the HuBERT of a checkpoint of stage `hubert`; None of any other stage's."""
    data = read_checkpoint(checkpoint)
    if data.get("self_supervised") is None:
        return None
    config = parse_config(SelfSupervisedConfig, data["self_supervised"], str(checkpoint), CheckpointError)
    prefix = "hubert."
    state = data["networks"]["model"]
    return config, {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


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


@torch.no_grad()
def centre_vocoder(codec: XYTokenizer) -> None:
    """Centre an untrained vocoder's input on `ideal_features`, whose mean would outweigh their variation.

    A step of Adam moves all weights of the first convolution alike, and so its output by the height. They are made
    ten times as large, which the norm behind them undoes: now a step changes little of them.
    """
    embed = codec.vocos.backbone.embed
    embed.weight.mul_(10)
    if embed.bias is not None:
        embed.bias.sub_(RAISE * embed.weight.sum(dim=(1, 2)))


def adopt_vocoder(codec: XYTokenizer, source: str) -> None:
    """Give `codec` the vocoder of `source`: a run, a checkpoint or a codec. Raises CheckpointError if it differs."""
    loaded = load_xy_tokenizer(find_checkpoint(Path(source)) or source).vocos.state_dict()
    own = codec.vocos.state_dict()
    if {key: value.shape for key, value in own.items()} != {key: value.shape for key, value in loaded.items()}:
        raise CheckpointError(f"{source}: its vocoder is of another size than the recipe's model.vocos")
    codec.vocos.load_state_dict(loaded)


def _unfold(state: dict[str, Tensor], name: str, training: nn.Module) -> None:
    """Split a plain weight into the direction and the length that weight norm trains."""
    if f"{name}.weight" not in state or not parametrize.is_parametrized(training, "weight"):
        return
    weight = state.pop(f"{name}.weight")
    # The length as folding computes it, which then gives back every bit: codes must not change where nothing learns.
    _, length = torch._weight_norm_interface(weight, weight.new_ones(len(weight), 1))
    state[f"{name}.parametrizations.weight.original0"] = length
    state[f"{name}.parametrizations.weight.original1"] = weight
