"""Stage `xcodec`: X-Codec against discriminators, with a loss on the frozen model's features.

See docs/models/x_codec.md, Training.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import ceil
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from xycodec.checkpoints.training import read_checkpoint
from xycodec.data.batch import Batch
from xycodec.io.config import Config, Decay, Probability
from xycodec.io.rate import SPEECH_RATE
from xycodec.losses.adversarial import plain_feature_matching
from xycodec.losses.semantic import semantic_distance
from xycodec.losses.stft import FullBandStft, LogMelDistance, SubBandStft, WaveformDistance
from xycodec.models.xcodec.config import X_MINI_CONFIGS, XCODEC_CONFIGS, XCodecConfig
from xycodec.models.xcodec.model import XCodec
from xycodec.nn.frequency_discriminator import MultiFrequencyDiscriminator
from xycodec.nn.mean import Mean
from xycodec.nn.transformer import frame_mask
from xycodec.train.checkpoint import RunState
from xycodec.train.config import OptimizerConfig
from xycodec.train.engine import Engine
from xycodec.train.excerpt import Heard
from xycodec.train.init.scaled import start_scaled
from xycodec.train.init.weights import find_checkpoint
from xycodec.train.init.xcodec import start_codec, start_semantic
from xycodec.train.stage import Measured, Networks, register, weighted
from xycodec.train.stages.adversarial import AdversarialRecipe, AdversarialStage, adopt_discriminators

# ---- the recipe ----------------------------------------------------------------------------------


class XCodecLoss(Config):
    """Weights of the generator's losses; 0 leaves one out. `semantic` has no meaning to a model without that branch."""

    adversarial: NonNegativeFloat = 1.0
    feature: NonNegativeFloat = 20.0
    stft: NonNegativeFloat = 1.0
    subband_stft: NonNegativeFloat = 1.0
    mel: NonNegativeFloat = 45.0
    """Weight of the log-mel distance. The paper lists this loss without a weight; the published code has this one, and
    leaves the loss out (docs/models/differences.md)."""
    waveform: NonNegativeFloat = 0.0
    """Weight of the distance of samples (not in the paper): a short run finds the voice sooner by it."""
    commitment: NonNegativeFloat = 1.0
    semantic: NonNegativeFloat = 100.0

    @model_validator(mode="after")
    def _heard(self) -> "XCodecLoss":
        if not any(weight for name, weight in self if name not in ("commitment", "semantic")):
            raise ValueError("the decoder has none: give stft, subband_stft, mel, waveform or another one a weight")
        return self


class FrequencyDiscriminatorConfig(Config):
    """Width of X-Codec's discriminator (docs/models/x_codec.md, "Discriminators")."""

    channels: Annotated[int, Field(ge=8, multiple_of=8)] = 512
    """A multiple of 8; 512 gives the published size."""


class XCodecOptimizerConfig(OptimizerConfig):
    """AdamW as published, but for the schedule (docs/models/x_codec.md, Training)."""

    lr: PositiveFloat = 2e-4
    betas: tuple[Decay, Decay] = (0.8, 0.99)
    eps: PositiveFloat = 1e-6
    warmup_steps: NonNegativeInt = 0
    final_lr: Probability = 0.9
    """The published rate loses a thousandth an epoch: 400,000 steps of 64 clips of LibriSpeech leave as much."""
    clip: PositiveFloat | None = 2.0


class XCodecRecipe(AdversarialRecipe):
    """X-Codec, or its acoustic baseline, against discriminators from the first step.

    See docs/models/x_codec.md, Training.
    """

    stage: Literal["xcodec"]
    model: XCodecConfig
    semantic_weights: str | None = "facebook/hubert-base-ls960"
    """Source of the frozen semantic model's weights: a HuBERT or WavLM of Transformers, a hub id or a folder;
    or an X-Codec, its run or a checkpoint of it. null: at random; a model without a semantic one has to have null."""
    weights: str | None = None
    """A run, checkpoint or codec whose weights to start from, all of them: `semantic_weights` is not read then."""
    n_q: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 2, 3, 4, 8)
    """Each step runs so many of the codebooks, one of these numbers at random, the same on all processes."""
    start: Literal["plain", "scaled"] = "plain"
    """Initialization of the acoustic half: torch's own (published), or convolutions that keep the variance of what they
    read (ours). Biases drown speech in the plain one, which takes a short run too long to undo."""
    quantize_from: NonNegativeInt = 0
    """Before that step latents pass the quantizer by (ours; published: 0), so that codebooks start from latents
    that mean something."""
    discriminators: FrequencyDiscriminatorConfig = FrequencyDiscriminatorConfig()
    loss: XCodecLoss = XCodecLoss()
    optimizer: XCodecOptimizerConfig = XCodecOptimizerConfig()
    discriminator_optimizer: XCodecOptimizerConfig = XCodecOptimizerConfig()

    @model_validator(mode="after")
    def _fitting(self) -> "XCodecRecipe":
        if self.model.semantic is None and self.semantic_weights is not None:
            raise ValueError("semantic_weights: model.semantic is null, so nothing takes them: set them to null")
        if self.weights is not None and self.start != "plain":
            raise ValueError("start: what it makes, weights would replace: set one of the two to plain or null")
        if max(self.n_q) > self.model.quantizer.n_q:
            raise ValueError(f"n_q: {max(self.n_q)} codebooks of {self.model.quantizer.n_q}: ask for no more than that")
        return self


# ---- the networks --------------------------------------------------------------------------------


class Pass(NamedTuple):
    """Result of the generator's forward pass. Audio and losses have gradients."""

    heard: Heard
    counts: Tensor
    """(n_q, codebook_size) uses of every code."""
    losses: dict[str, Mean]
    """Losses that need more than the audio: the quantizer's and, if there is one, the semantic branch's."""


class XCodecTraining(nn.Module):
    """The codec as a generator. Silence completes every clip to `samples`, so that none depends on its neighbours."""

    def __init__(self, codec: XCodec, samples: int, *, semantic: bool) -> None:
        super().__init__()
        self.codec = codec
        self.samples = ceil(samples / codec.hop_length) * codec.hop_length
        self.semantic = semantic and codec.config.semantic is not None

    def forward(self, batch: Batch, n_q: int | None = None, *, quantize: bool = True) -> Pass:
        """Decoded and true audio (B, samples), through the first `n_q` codebooks (None: all), or past them."""
        codec = self.codec
        audio = F.pad(batch.audio, (0, self.samples - batch.audio.shape[1]))
        mask = frame_mask([codec.num_frames(n) for n in batch.lengths], self.samples // codec.hop_length)
        features = codec.semantic_features(audio) if codec.config.semantic else None
        latents = codec.encode_latents(audio, features)
        counts = torch.zeros_like(codec.quantizer.cluster_size)
        losses: dict[str, Mean] = {}
        if quantize:
            quantized = codec.quantizer(latents, mask, n_q)
            latents, counts = quantized.quantized, quantized.counts
            # Over layers it is the mean, unlike XY-Tokenizer's.
            commitment = quantized.commitment_loss
            losses["commitment"] = Mean(commitment.total / len(commitment.total), commitment.count)
        if features is not None and self.semantic:
            known = None if mask is None else mask.to(audio.device, non_blocking=True)
            losses["semantic"] = semantic_distance(codec.decode_semantic(latents), features, known)
        decoded = codec.decode_latents(latents)
        lengths = torch.tensor(batch.lengths)
        # Past its end a clip is silent in both, which teaches neither side anything.
        inside = torch.arange(self.samples) < lengths[:, None]
        decoded = decoded * inside.to(audio.device, non_blocking=True)
        return Pass(Heard(decoded, audio, lengths), counts, losses)


@register
class XCodecStage(AdversarialStage[XCodecRecipe, XCodec]):
    """The stage that trains an X-Codec."""

    name = "xcodec"
    recipe_class = XCodecRecipe
    presets: ClassVar[Mapping[str, Config]] = XCODEC_CONFIGS | X_MINI_CONFIGS

    def __init__(self, recipe: XCodecRecipe, engine: Engine) -> None:
        generator, discriminators = build(recipe)
        self.config, self.seed, self.n_q = recipe.model, recipe.seed, recipe.n_q
        self.quantize_from = recipe.quantize_from
        super().__init__(recipe, engine, generator, generator.codec, discriminators, plain_feature_matching)
        distances = {
            "stft": FullBandStft(),
            "subband_stft": SubBandStft(),
            "mel": LogMelDistance(SPEECH_RATE),
            "waveform": WaveformDistance(),
        }
        self.distances = {name: distance.to(engine.device) for name, distance in distances.items()}
        self.measured = self.generator
        if self.average is not None:
            self.measured = XCodecTraining(self.average.codec, generator.samples, semantic=generator.semantic)

    @classmethod
    def build(cls, recipe: XCodecRecipe, *, meta: bool = False) -> Networks:
        """The networks of a recipe, as `build` makes them."""
        generator, discriminators = build(recipe, meta=meta)
        return Networks(generator, generator.codec.output_sample_rate, discriminators)

    @classmethod
    def rehearse(cls, networks: Networks, batch: Batch) -> None:
        """Run generator and discriminators once in eval mode: in training, codebooks would look for a first batch."""
        networks.model.eval()
        super().rehearse(networks, batch)

    @classmethod
    def resumed(cls, recipe: XCodecRecipe, checkpoint: Path, state: RunState) -> dict[str, Any]:
        """Settings of a resumed run: no other sources of weights."""
        return {"weights": None, "semantic_weights": None}

    def codebooks_of(self, step: int) -> int:
        """Number of codebooks that run in a step, drawn from the run's seed and the step alone."""
        return int(np.random.default_rng([self.seed, step]).choice(self.n_q))

    def _generate(self, batch: Batch, step: int) -> tuple[Heard, Tensor, dict[str, Mean]]:
        heard, counts, losses = self.generator(batch, self.codebooks_of(step), quantize=step >= self.quantize_from)
        return heard, counts, {name: mean for name, mean in losses.items() if self.weights[name]}

    def _codebooks_of(self, batches: Sequence[Batch], step: int) -> AbstractContextManager[None]:
        return super()._codebooks_of(batches, step) if step >= self.quantize_from else nullcontext()

    def _distances(self, heard: Heard) -> dict[str, Mean]:
        return {name: distance(*heard) for name, distance in self.distances.items() if self.weights[name]}

    @torch.no_grad()
    def measure(self, batch: Batch, *, transcribe: bool) -> Measured:
        """Measure all losses but the discriminators', with all codebooks, or with none as long as they hold nothing."""
        self.measured.eval()
        quantize = bool(self.codec.quantizer.inited.all())
        with self.engine.autocast():
            heard, counts, losses = self.measured(batch, quantize=quantize)
        means = losses | {name: distance(*heard) for name, distance in self.distances.items()}
        return Measured(means, counts, heard.audio.float())

    def loss(self, values: Mapping[str, float]) -> float:
        """The weighted sum of losses that training minimises, without those of discriminators, which keep changing."""
        return float(weighted(values, {name: weight for name, weight in self.weights.items() if name in values}))

    def model_config(self) -> dict[str, Any]:
        """The configuration of the codec that is trained."""
        return self.config.model_dump(mode="json")


def build(recipe: XCodecRecipe, *, meta: bool = False) -> tuple[XCodecTraining, MultiFrequencyDiscriminator]:
    """Generator and discriminators of a recipe with their starting weights; `meta` builds them without any.

    Raises CheckpointError if `recipe.weights` or `recipe.semantic_weights` gives no such model, ConfigError if it is of
    another size.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta" if meta else "cpu"):
        torch.manual_seed(recipe.seed)
        codec = XCodec(recipe.model)
        discriminators = MultiFrequencyDiscriminator(SPEECH_RATE, channels=recipe.discriminators.channels)
        if recipe.start == "scaled" and not meta:
            start_scaled(codec)
    if recipe.weights is not None and not meta:
        start_codec(codec, recipe.weights)
        checkpoint = find_checkpoint(Path(recipe.weights)) if recipe.keep_discriminators else None
        if checkpoint and (state := read_checkpoint(checkpoint)["networks"].get("discriminators")):
            adopt_discriminators(discriminators, state, str(checkpoint))
    elif recipe.semantic_weights is not None and not meta:
        start_semantic(codec, recipe.semantic_weights)
    semantic = recipe.loss.semantic > 0
    if recipe.model.semantic and not semantic:
        # Engines wait for the gradient of all that is trained.
        for part in (codec.semantic_proj, codec.semantic_decoder):
            part.requires_grad_(False)
    samples = max(round(recipe.data.clip_seconds * SPEECH_RATE), discriminators.min_samples)
    return XCodecTraining(codec, samples, semantic=semantic), discriminators
