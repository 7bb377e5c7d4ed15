"""Stage `vocoder`: the vocoder alone learns to turn a clip's log-mel into the clip.

Not in the paper, which lets decoder and vocoder find their own features. Where compute is short it pays to let each
learn its part at once, the vocoder from true features and the decoder to give them, and then both together.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xycodec.checkpoints.training import AVERAGE
from xycodec.data.batch import Batch
from xycodec.io.config import Config
from xycodec.losses.mel import MultiScaleMel
from xycodec.models.xy_tokenizer.config import CONFIGS, XYTokenizerConfig
from xycodec.models.xy_tokenizer.model import XYTokenizer
from xycodec.nn.transformer import frame_mask
from xycodec.train.average import WeightAverage
from xycodec.train.checkpoint import RunState
from xycodec.train.config import OptimizerConfig, RunConfig
from xycodec.train.engine import Engine
from xycodec.train.init.weights import adopt_vocoder, centre_vocoder
from xycodec.train.mel_stage import MelStage
from xycodec.train.optimize import Updater
from xycodec.train.stage import Networks, StepReport, register


class VocoderRecipe(RunConfig):
    """The vocoder alone, from log-mels of the data: a start for `vocos` of pre-training (not in the paper)."""

    stage: Literal["vocoder"]
    model: XYTokenizerConfig
    weights: str | None = None
    """A run, checkpoint or codec whose vocoder to start from; null: at random."""
    optimizer: OptimizerConfig = OptimizerConfig()


class VocoderTraining(nn.Module):
    """A codec's vocoder in training: from a batch to its mel distance."""

    def __init__(self, codec: XYTokenizer) -> None:
        super().__init__()
        self.codec = codec.requires_grad_(False)
        codec.vocos.requires_grad_(True)
        self.mel = MultiScaleMel(codec.output_sample_rate)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Total, with its gradient, and count of the distance's `Mean`; the audio (B, T)."""
        codec, lengths = self.codec, [max(n, 1) for n in batch.lengths]
        with torch.no_grad():
            features = codec.ideal_features(batch.audio, lengths)
        frames = [codec.num_frames(n) for n in lengths]
        mask = frame_mask(frames, max(frames))
        audio = codec.synthesise(features, None if mask is None else mask.to(features.device, non_blocking=True))
        target = F.pad(batch.target, (0, audio.shape[1] - batch.target.shape[1]))
        mean = self.mel(audio, target, torch.tensor(batch.target_lengths))
        # A copy, because FSDP cannot guard views.
        return mean.total.clone(), mean.count, audio.detach()


@register
class VocoderStage(MelStage[VocoderRecipe]):
    """The stage that trains a vocoder."""

    name = "vocoder"
    recipe_class = VocoderRecipe
    presets: ClassVar[Mapping[str, Config]] = CONFIGS

    def __init__(self, recipe: VocoderRecipe, engine: Engine) -> None:
        self.recipe, self.engine, self.config = recipe, engine, recipe.model
        self.output_sample_rate = recipe.model.output_sample_rate
        model = build(recipe)
        self.codec = model.codec
        self.average = None if recipe.ema is None else WeightAverage(self.codec, recipe.ema).to(engine.device)
        self.model = self.measured = engine.wrap(model)
        self.networks = {"model": self.model}
        if self.average is not None:
            self.networks[AVERAGE] = self.average
            self.measured = VocoderTraining(self.average.codec).to(engine.device)
        self.updaters = {"model": Updater(self.model, recipe.optimizer, recipe.steps)}

    @classmethod
    def build(cls, recipe: VocoderRecipe, *, meta: bool = False) -> Networks:
        """The networks of a recipe, as `build` makes them."""
        return Networks(build(recipe, meta=meta), recipe.model.output_sample_rate)

    @classmethod
    def resumed(cls, recipe: VocoderRecipe, checkpoint: Path, state: RunState) -> dict[str, Any]:
        """Settings of a resumed run: no other source of the vocoder's weights."""
        return {"weights": None}

    def step(self, batches: Sequence[Batch], step: int) -> StepReport:
        """One update of the vocoder from all micro-batches, and of its average."""
        report = super().step(batches, step)
        if self.average is not None:
            self.average.update(self.codec, step)
        return report


def build(recipe: VocoderRecipe, *, meta: bool = False) -> VocoderTraining:
    """The network of a recipe with its starting weights; `meta` builds it without any, to count them."""
    with torch.random.fork_rng(devices=[]), torch.device("meta" if meta else "cpu"):
        torch.manual_seed(recipe.seed)
        codec = XYTokenizer(recipe.model)
    centre_vocoder(codec)
    if recipe.weights is not None and not meta:
        adopt_vocoder(codec, recipe.weights)
    return VocoderTraining(codec)
