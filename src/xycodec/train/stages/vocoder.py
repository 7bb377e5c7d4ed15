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
from xycodec.nn.mean import Mean
from xycodec.nn.transformer import frame_mask
from xycodec.train.average import WeightAverage
from xycodec.train.checkpoint import RunState
from xycodec.train.config import OptimizerConfig, RunConfig
from xycodec.train.engine import Engine
from xycodec.train.init.weights import adopt_vocoder, centre_vocoder
from xycodec.train.optimize import Updater
from xycodec.train.stage import Measured, Networks, Stage, StepReport, joint_values, register


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
class VocoderStage(Stage[VocoderRecipe]):
    """The stage that trains a vocoder."""

    name = "vocoder"
    recipe_class = VocoderRecipe
    presets: ClassVar[Mapping[str, Config]] = CONFIGS

    def __init__(self, recipe: VocoderRecipe, engine: Engine) -> None:
        self.engine, self.config = engine, recipe.model
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
        """One update of the vocoder from all micro-batches."""
        self.model.train()
        mel = torch.zeros((), device=self.engine.device)
        for index, batch in enumerate(batches):
            with self.engine.joining(self.model, last=index == len(batches) - 1):
                with self.engine.autocast():
                    total, count, _ = self.model(batch)
                value = joint_values({"mel": Mean(total, count)})["mel"] / len(batches)
                torch.autograd.backward(value)
            mel = mel + value.detach()
        norm = self.updaters["model"].update(step)
        if self.average is not None:
            self.average.update(self.codec, step)
        return StepReport({"mel": mel, "loss": mel}, {"grad_norm": norm})

    @torch.no_grad()
    def measure(self, batch: Batch, *, transcribe: bool) -> Measured:
        """Measure the mel distance; there are no codes to count."""
        self.measured.eval()
        with self.engine.autocast():
            total, count, audio = self.measured(batch)
        return Measured({"mel": Mean(total, count)}, audio=audio)

    def loss(self, values: Mapping[str, float]) -> float:
        """The mel distance of a validation."""
        return values["mel"]

    def model_config(self) -> dict[str, Any]:
        """The configuration of the codec whose vocoder is trained."""
        return self.config.model_dump(mode="json")


def build(recipe: VocoderRecipe, *, meta: bool = False) -> VocoderTraining:
    """The network of a recipe with its starting weights; `meta` builds it without any, to count them."""
    with torch.random.fork_rng(devices=[]), torch.device("meta" if meta else "cpu"):
        torch.manual_seed(recipe.seed)
        codec = XYTokenizer(recipe.model)
    centre_vocoder(codec)
    if recipe.weights is not None and not meta:
        adopt_vocoder(codec, recipe.weights)
    return VocoderTraining(codec)
