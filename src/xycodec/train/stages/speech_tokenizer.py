"""Stage `speech_tokenizer`: SpeechTokenizer against discriminators, its first codebook taught by a HuBERT.

See docs/reproduce.md, SpeechTokenizer.
"""

from collections.abc import Mapping
from math import ceil
from typing import Any, ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from xycodec.data.batch import Batch
from xycodec.io.config import Config, Decay, Probability
from xycodec.io.rate import SPEECH_RATE
from xycodec.losses.adversarial import plain_feature_matching
from xycodec.losses.speech_tokenizer import HOP, FineLogMelDistance, SampleDistance, distillation_loss
from xycodec.losses.stft import LogMelDistance
from xycodec.models.speech_tokenizer.config import SPEECH_TOKENIZER_CONFIGS, SpeechTokenizerConfig
from xycodec.models.speech_tokenizer.model import SpeechTokenizer
from xycodec.models.xcodec.config import SelfSupervisedConfig
from xycodec.models.xcodec.semantic import SelfSupervisedModel
from xycodec.nn.discriminators import Discriminators
from xycodec.nn.mean import Mean
from xycodec.nn.transformer import frame_mask
from xycodec.train.config import OptimizerConfig
from xycodec.train.engine import Engine
from xycodec.train.excerpt import Heard
from xycodec.train.init.xcodec import fill_self_supervised
from xycodec.train.stage import Measured, Networks, register, weighted
from xycodec.train.stages.adversarial import AdversarialRecipe, AdversarialStage
from xycodec.train.stages.posttrain import DiscriminatorsConfig

# ---- the recipe ----------------------------------------------------------------------------------


class SpeechTokenizerLoss(Config):
    """Weights of the generator's losses; 0 leaves one out.

    The published code sums over 13 discriminators, and over their 79 maps twice, where ours take means: hence the first
    two.
    """

    adversarial: NonNegativeFloat = 13.0
    feature: NonNegativeFloat = 158.0
    waveform: NonNegativeFloat = 500.0
    """Weight of the L1 distance of samples."""
    mel: NonNegativeFloat = 45.0
    """Weight of the log-mel distance under a window of 1024 samples."""
    fine_mel: NonNegativeFloat = 1.0
    """Weight of the same under 512, 256 and 128 samples, summed."""
    commitment: NonNegativeFloat = 10.0
    distillation: NonNegativeFloat = 120.0

    @model_validator(mode="after")
    def _heard(self) -> "SpeechTokenizerLoss":
        if not any(weight for name, weight in self if name not in ("commitment", "distillation")):
            raise ValueError("the decoder has none: give waveform, mel or another one a weight")
        return self


class SpeechTokenizerOptimizerConfig(OptimizerConfig):
    """Adam as published: no decay of weights, half a cosine to nothing, no clipping."""

    lr: PositiveFloat = 1e-4
    betas: tuple[Decay, Decay] = (0.9, 0.99)
    weight_decay: NonNegativeFloat = 0.0
    warmup_steps: NonNegativeInt = 0
    final_lr: Probability = 0.0
    clip: PositiveFloat | None = None


class SpeechTokenizerRecipe(AdversarialRecipe):
    """SpeechTokenizer against discriminators from the first step, its first codebook taught by a frozen HuBERT."""

    stage: Literal["speech_tokenizer"]
    model: SpeechTokenizerConfig
    teacher: str | None = "facebook/hubert-base-ls960"
    """Source of the teacher's weights, a hub id or a folder of Transformers; null: at random, to try things. Its
    features are the mean of all its states, as of the checkpoint that papers compare with."""
    teacher_model: SelfSupervisedConfig = SelfSupervisedConfig()
    weights: None = None
    discriminators: DiscriminatorsConfig = DiscriminatorsConfig()
    loss: SpeechTokenizerLoss = SpeechTokenizerLoss()
    optimizer: SpeechTokenizerOptimizerConfig = SpeechTokenizerOptimizerConfig()
    discriminator_optimizer: SpeechTokenizerOptimizerConfig = SpeechTokenizerOptimizerConfig()

    @model_validator(mode="after")
    def _one_rate(self) -> "SpeechTokenizerRecipe":
        if self.loss.distillation and self.model.semantic_dim != self.teacher_model.d_model:
            given, taught = self.model.semantic_dim, self.teacher_model.d_model
            raise ValueError(f"model.semantic_dim: {given}, teacher_model.d_model is {taught}: make them equal")
        if self.loss.distillation and self.model.hop_length != 320:
            raise ValueError(f"model.strides: they multiply to {self.model.hop_length}, the teacher's frame has 320")
        return self


# ---- the networks --------------------------------------------------------------------------------


class SpeechTokenizerTraining(nn.Module):
    """The codec as a generator, beside its frozen teacher, if it has one.

    Silence completes every clip to `samples`, so that none depends on its neighbours.
    """

    def __init__(self, codec: SpeechTokenizer, teacher: SelfSupervisedModel | None, samples: int) -> None:
        super().__init__()
        self.codec, self.teacher = codec, teacher
        self.samples = ceil(samples / codec.hop_length) * codec.hop_length

    def forward(self, batch: Batch) -> tuple[Heard, Tensor, dict[str, Mean]]:
        """Decoded and true audio (B, samples), counts of the codes, and the losses that need more than the audio."""
        codec = self.codec
        audio = F.pad(batch.audio, (0, self.samples - batch.audio.shape[1]))
        mask = frame_mask([codec.num_frames(n) for n in batch.lengths], self.samples // codec.hop_length)
        quantized = codec.quantizer(codec.encode_latents(audio), mask)
        commitment = quantized.commitment_loss
        losses = {"commitment": Mean(commitment.total / len(commitment.total), commitment.count)}
        lengths = torch.tensor(batch.lengths)
        inside = (torch.arange(self.samples) < lengths[:, None]).to(audio.device, non_blocking=True)
        if self.teacher is not None:
            known = None if mask is None else mask.to(audio.device, non_blocking=True)
            taught = self.teacher(_normalised(audio, inside))
            losses["distillation"] = distillation_loss(codec.semantic_proj(quantized.first), taught, known)
        # Past its end a clip is silent in both, which teaches neither side anything.
        decoded = codec.decode_latents(quantized.quantized) * inside
        return Heard(decoded, audio, lengths), quantized.counts, losses


def _normalised(audio: Tensor, inside: Tensor) -> Tensor:
    """Audio (B, T) of mean 0 and variance 1 over the samples `inside`, as HuBERT's own preprocessor makes it."""
    count = inside.sum(dim=1, keepdim=True).clamp_min(1)
    centred = (audio - (audio * inside).sum(dim=1, keepdim=True) / count) * inside
    return centred * (centred.square().sum(dim=1, keepdim=True) / count + 1e-7).rsqrt()


@register
class SpeechTokenizerStage(AdversarialStage[SpeechTokenizerRecipe, SpeechTokenizer]):
    """The stage that trains a SpeechTokenizer."""

    name = "speech_tokenizer"
    recipe_class = SpeechTokenizerRecipe
    presets: ClassVar[Mapping[str, Config]] = SPEECH_TOKENIZER_CONFIGS

    def __init__(self, recipe: SpeechTokenizerRecipe, engine: Engine) -> None:
        generator, discriminators = build(recipe)
        self.config = recipe.model
        super().__init__(recipe, engine, generator, generator.codec, discriminators, plain_feature_matching)
        distances = {
            "waveform": SampleDistance(),
            "mel": LogMelDistance(SPEECH_RATE, window=1024, hop=HOP),
            "fine_mel": FineLogMelDistance(SPEECH_RATE),
        }
        self.distances = {name: distance.to(engine.device) for name, distance in distances.items()}
        self.measured = self.generator
        if self.average is not None:
            self.measured = SpeechTokenizerTraining(self.average.codec, generator.teacher, generator.samples)

    @classmethod
    def build(cls, recipe: SpeechTokenizerRecipe, *, meta: bool = False) -> Networks:
        """The networks of a recipe, as `build` makes them."""
        generator, discriminators = build(recipe, meta=meta)
        return Networks(generator, generator.codec.output_sample_rate, discriminators)

    @classmethod
    def rehearse(cls, networks: Networks, batch: Batch) -> None:
        """Run generator and discriminators once in eval mode: in training, codebooks would look for a first batch."""
        networks.model.eval()
        super().rehearse(networks, batch)

    def kept(self, network: str, key: str) -> bool:
        """Leave out the teacher, which comes from its source again."""
        return not key.startswith("teacher.")

    def _generate(self, batch: Batch, step: int) -> tuple[Heard, Tensor, dict[str, Mean]]:
        heard, counts, losses = self.generator(batch)
        return heard, counts, {name: mean for name, mean in losses.items() if self.weights[name]}

    def _distances(self, heard: Heard) -> dict[str, Mean]:
        return {name: distance(*heard) for name, distance in self.distances.items() if self.weights[name]}

    @torch.no_grad()
    def measure(self, batch: Batch, *, transcribe: bool) -> Measured:
        """Measure all losses but the discriminators'."""
        self.measured.eval()
        with self.engine.autocast():
            heard, counts, losses = self.measured(batch)
        means = losses | {name: distance(*heard) for name, distance in self.distances.items()}
        return Measured(means, counts, heard.audio.float())

    def loss(self, values: Mapping[str, float]) -> float:
        """The weighted sum of losses that training minimises, without those of discriminators, which keep changing."""
        return float(weighted(values, {name: weight for name, weight in self.weights.items() if name in values}))

    def model_config(self) -> dict[str, Any]:
        """The configuration of the codec that is trained."""
        return self.config.model_dump(mode="json")


def build(recipe: SpeechTokenizerRecipe, *, meta: bool = False) -> tuple[SpeechTokenizerTraining, Discriminators]:
    """Generator and discriminators of a recipe with their starting weights; `meta` builds them without any.

    Raises CheckpointError if `recipe.teacher` gives no model, ConfigError if it is of another size.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta" if meta else "cpu"):
        torch.manual_seed(recipe.seed)
        codec = SpeechTokenizer(recipe.model)
        discriminators = Discriminators(**recipe.discriminators.model_dump())
        teacher = SelfSupervisedModel(**recipe.teacher_model.model_dump()) if recipe.loss.distillation else None
    if teacher is None:
        # Engines wait for the gradient of all that is trained.
        codec.semantic_proj.requires_grad_(False)
    elif recipe.teacher is not None and not meta:
        fill_self_supervised(teacher.model, recipe.teacher, "teacher_model")
    samples = max(round(recipe.data.clip_seconds * SPEECH_RATE), discriminators.min_samples)
    return SpeechTokenizerTraining(codec, teacher, samples), discriminators
