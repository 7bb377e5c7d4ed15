"""Stage `autoencode`: a decoder learns to turn a frozen encoder's features back into audio (XY-Tokenizer, section 2.1).

No quantizer and no loss but the mel distance: what the decoder cannot give back, the encoder has thrown away.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from xycodec.data.batch import Batch
from xycodec.errors import ConfigError
from xycodec.io.rate import SPEECH_RATE
from xycodec.losses.mel import MultiScaleMel
from xycodec.models.autoencoder.config import AutoencoderConfig
from xycodec.models.autoencoder.model import Autoencoder, FrozenWhisper
from xycodec.models.xcodec.semantic import HOP
from xycodec.train.checkpoint import RunState
from xycodec.train.config import OptimizerConfig, RunConfig
from xycodec.train.engine import Engine
from xycodec.train.init.autoencoder import start_encoder
from xycodec.train.mel_stage import MelStage
from xycodec.train.optimize import Updater
from xycodec.train.stage import Networks, register

SHORTEST = 1280  # samples: half the longest window of the mel distance fits in
TOLERANCE = 0.03
"""Share by which the decoder's parameters may differ from those that the recipe states."""


class AutoencodeRecipe(RunConfig):
    """A frozen encoder and a decoder of stated size, trained on the mel distance alone (docs/probes.md)."""

    stage: Literal["autoencode"]
    model: AutoencoderConfig
    encoder: str | None
    """Source of the frozen encoder's weights: a hub id or a folder of Transformers; for a HuBERT also a run of stage
    `hubert`. null: at random."""
    optimizer: OptimizerConfig = OptimizerConfig()

    @model_validator(mode="after")
    def _fitting(self) -> "AutoencodeRecipe":
        if self.ema is not None:
            raise ValueError("ema: only a codec's weights are averaged: leave it out")
        if self.data.clip_seconds * SPEECH_RATE > self.model.window_frames * HOP:
            raise ValueError(
                f"data.clip_seconds: {self.data.clip_seconds:g} s is longer than the model's window of "
                f"{self.model.window_frames * HOP / SPEECH_RATE:g} s: lower it, or raise model.window_frames"
            )
        return self


class AutoencodeTraining(nn.Module):
    """An autoencoder in training: from a batch to its mel distance."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.mel = MultiScaleMel(SPEECH_RATE)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Total, with its gradient, and count of the distance's `Mean`; the audio (B, T)."""
        audio = self.autoencoder(batch.audio, batch.lengths)
        audio = F.pad(audio, (0, max(0, SHORTEST - audio.shape[1])))
        target = F.pad(batch.audio, (0, audio.shape[1] - batch.audio.shape[1]))
        mean = self.mel(audio, target, torch.tensor(batch.lengths))
        # A copy, because FSDP cannot guard views.
        return mean.total.clone(), mean.count, audio.detach()


@register
class AutoencodeStage(MelStage[AutoencodeRecipe]):
    """The stage that trains a decoder for a frozen encoder."""

    name = "autoencode"
    recipe_class = AutoencodeRecipe
    trains = "autoencoder"

    def __init__(self, recipe: AutoencodeRecipe, engine: Engine) -> None:
        self.recipe, self.engine, self.config = recipe, engine, recipe.model
        self.output_sample_rate = SPEECH_RATE
        model = build(recipe)
        self.autoencoder = model.autoencoder
        self.model = self.measured = engine.wrap(model)
        self.networks = {"model": self.model}
        self.updaters = {"model": Updater(self.model, recipe.optimizer, recipe.steps)}

    @classmethod
    def build(cls, recipe: AutoencodeRecipe, *, meta: bool = False) -> Networks:
        """The networks of a recipe, as `build` makes them."""
        return Networks(build(recipe, meta=meta), SPEECH_RATE)

    @classmethod
    def resumed(cls, recipe: AutoencodeRecipe, checkpoint: Path, state: RunState) -> dict[str, Any]:
        """Settings of a resumed run: its checkpoint holds the encoder too."""
        return {"encoder": None}


def build(recipe: AutoencodeRecipe, *, meta: bool = False) -> AutoencodeTraining:
    """The network of a recipe with its starting weights; `meta` builds it without any, to count them.

    Raises ConfigError if the decoder has not the parameters that the recipe states, or the encoder's size is another,
    CheckpointError if `recipe.encoder` gives no such model.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta" if meta else "cpu"):
        torch.manual_seed(recipe.seed)
        autoencoder = Autoencoder(recipe.model)
    _check_size(autoencoder, recipe.model.decoder_parameters)
    if recipe.encoder is not None and not meta:
        start_encoder(autoencoder, recipe.encoder)
    if isinstance(autoencoder.encoder, FrozenWhisper):
        autoencoder.encoder.drop_positions()
    return AutoencodeTraining(autoencoder)


def _check_size(autoencoder: Autoencoder, stated: int) -> None:
    count = sum(p.numel() for p in autoencoder.parameters() if p.requires_grad)
    if abs(count - stated) > TOLERANCE * stated:
        raise ConfigError(
            f"model.decoder_parameters: adapter, decoder and vocoder have {count:,}, the recipe states {stated:,}: "
            f"decoders that are compared may differ by {TOLERANCE:.0%}; change model.decoder or model.vocos"
        )
