"""Y-shaped post-training: encoder and quantizer frozen, the decoder against discriminators.

See docs/models/xy_tokenizer.md, Post-training.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from xycodec.checkpoints.load import load_xy_tokenizer
from xycodec.checkpoints.training import read_checkpoint
from xycodec.data.batch import Batch
from xycodec.errors import ConfigError
from xycodec.io.config import Config, parse_config
from xycodec.losses.adversarial import feature_matching
from xycodec.losses.mel import MultiScaleMel
from xycodec.models.xy_tokenizer.config import VocosConfig, XYTokenizerConfig
from xycodec.models.xy_tokenizer.model import XYTokenizer
from xycodec.nn.discriminators import Discriminators
from xycodec.nn.mean import Mean
from xycodec.nn.transformer import frame_mask
from xycodec.train.checkpoint import RunState
from xycodec.train.config import OptimizerConfig, require_a_loss
from xycodec.train.distances import feature_distance, state_distance, states_of_audio
from xycodec.train.engine import Engine
from xycodec.train.excerpt import Heard, random_first_frame, synthesise_excerpts
from xycodec.train.init.weights import adopt_codec, find_checkpoint
from xycodec.train.stage import Measured, Networks, register
from xycodec.train.stages.adversarial import AdversarialRecipe, AdversarialStage, adopt_discriminators

FROZEN = (
    "semantic_encoder", "semantic_encoder_adapter", "acoustic_encoder", "pre_rvq_adapter", "downsample", "quantizer",
)  # fmt: skip


# ---- the recipe ----------------------------------------------------------------------------------


class PosttrainingLoss(Config):
    """Weights of the generator's losses; 0 leaves one out."""

    mel: NonNegativeFloat = 15.0
    feature: NonNegativeFloat = 1.0
    """Feature matching: of what discriminators make of decoded and of true audio."""
    adversarial: NonNegativeFloat = 1.0
    log_mel: NonNegativeFloat = 0.0
    """Distance of what the vocoder reads from the clip's log-mel, as `features` of pre-training (not the paper's)."""
    states: NonNegativeFloat = 0.0
    """Relative distance of what the frozen semantic tower hears in the decoded audio from what it hears in the true
    audio (not the paper's)."""


class DiscriminatorsConfig(Config):
    """Families of discriminators, and their width (docs/models/xy_tokenizer.md, "Discriminators")."""

    period: bool = True
    scale: bool = True
    spectrogram: bool = True
    channels: PositiveInt = 32
    """A multiple of 4; 32 gives the published sizes."""


class PosttrainRecipe(AdversarialRecipe):
    """Y-shaped post-training: encoder and quantizer frozen, the decoder against discriminators."""

    stage: Literal["posttrain"]
    weights: str
    """A run, checkpoint or codec to start from: a name, folder, file or hub id."""
    output_sample_rate: Literal[16000, 24000, 32000, 48000] | None = None
    """Rate of the decoded audio (default: as in `weights`). A new rate gets a new vocoder head."""
    vocos: VocosConfig | None = None
    """Another vocoder than that of `weights`; it starts at random where shapes differ."""
    model_id: str | None = None
    freeze_adapter: bool = True
    """Whether the adapter after the quantizer stays as it is: in the paper only the decoder learns, and the adapter
    belongs to the quantizer's section. A run that goes on keeps to what it began with."""
    discriminators: DiscriminatorsConfig = DiscriminatorsConfig()
    segment_seconds: PositiveFloat | None = None
    """Discriminators and mel loss hear so much of each clip, from a random place; null: all of it."""
    positions: Literal["first", "random"] = "first"
    """Positions of a batch's clips in the window, as in pre-training."""
    loss: PosttrainingLoss = PosttrainingLoss()
    optimizer: OptimizerConfig = OptimizerConfig(lr=1e-5)
    discriminator_optimizer: OptimizerConfig = OptimizerConfig(lr=1e-4)

    @model_validator(mode="after")
    def _has_a_loss(self) -> "PosttrainRecipe":
        require_a_loss(self.loss)
        return self


# ---- the networks --------------------------------------------------------------------------------


class PostTraining(nn.Module):
    """The codec as a generator: from a batch to decoded and true audio of one length.

    `weights` are those of the losses, of which `log_mel` and `states` are computed here: they need more than audio.
    """

    def __init__(
        self,
        codec: XYTokenizer,
        min_samples: int,
        weights: PosttrainingLoss,
        segment_seconds: float | None = None,
        random_positions: bool = False,
        freeze_adapter: bool = True,
    ) -> None:
        super().__init__()
        self.codec, self.weights = codec, weights
        self.frozen = (*FROZEN, "post_rvq_adapter") if freeze_adapter else FROZEN
        self.min_samples, self.segment_seconds, self.random_positions = min_samples, segment_seconds, random_positions
        for part in self._frozen():
            part.requires_grad_(False)

    def _frozen(self) -> list[nn.Module]:
        return [part for name in self.frozen if (part := getattr(self.codec, name)) is not None]

    def train(self, mode: bool = True) -> "PostTraining":
        """Set the training mode, but for frozen parts, which stay in eval mode: the codebooks must not move."""
        super().train(mode)
        for part in self._frozen():
            part.eval()
        return self

    def forward(self, batch: Batch) -> tuple[Heard, Tensor, dict[str, tuple[Tensor, Tensor]]]:
        """Decoded and true audio, in training of `segment_seconds` of each clip; counts of the codes (n_q, K).

        Last, total and count of each loss that is computed here.
        """
        codec = self.codec
        frames = [codec.num_frames(n) for n in batch.lengths]
        first = 0
        if self.training and self.random_positions:
            first = random_first_frame(codec, frames)
        with torch.no_grad():
            latents = codec.encode_latents(batch.audio, [max(n, 1) for n in batch.lengths], first).latents
            mask = frame_mask(frames, latents.shape[1])
            quantized = codec.quantizer(latents, mask)
        device_mask = None if mask is None else mask.to(latents.device, non_blocking=True)
        hidden = codec.post_rvq_adapter(quantized.quantized, device_mask, first)
        features = codec.acoustic_features(hidden, device_mask, first)
        seconds = self.segment_seconds if self.training else None
        audio, target, lengths = synthesise_excerpts(codec, features, frames, batch, seconds)
        # Past its end a clip is silent in both, which teaches neither side anything.
        inside = torch.arange(audio.shape[1]) < lengths[:, None]
        audio = audio * inside.to(audio.device, non_blocking=True)
        losses = {}
        if self.weights.log_mel:
            losses["log_mel"] = feature_distance(codec, features, batch)
        if self.weights.states:
            losses["states"] = self._state_distance(audio, target, lengths, first)
        missing = max(self.min_samples - audio.shape[1], 0)
        heard = Heard(F.pad(audio, (0, missing)), F.pad(target, (0, missing)), lengths)
        # Copies, because FSDP cannot guard views.
        return heard, quantized.counts, {name: (mean.total.clone(), mean.count) for name, mean in losses.items()}

    def _state_distance(self, audio: Tensor, target: Tensor, lengths: Tensor, first: int) -> Mean:
        """Distance of the semantic tower's states for decoded and for true audio."""
        row = 2 * self.codec.mel.hop_length
        counts = (-(-lengths // row)).tolist()
        mask = frame_mask(counts, audio.shape[1] // row)
        mask = None if mask is None else mask.to(audio.device, non_blocking=True)
        with torch.no_grad():
            true = states_of_audio(self.codec, target, mask, first)
        return state_distance(states_of_audio(self.codec, audio, mask, first), true)


@register
class PosttrainStage(AdversarialStage[PosttrainRecipe, XYTokenizer]):
    """The stage of post-training."""

    name = "posttrain"
    recipe_class = PosttrainRecipe

    def __init__(self, recipe: PosttrainRecipe, engine: Engine) -> None:
        generator, discriminators = build(recipe)
        self.config = generator.codec.config
        super().__init__(recipe, engine, generator, generator.codec, discriminators, feature_matching)
        self.mel = MultiScaleMel(self.output_sample_rate).to(engine.device)
        self.measured = self.generator
        if self.average is not None:
            self.measured = PostTraining(self.average.codec, generator.min_samples, recipe.loss)

    @classmethod
    def build(cls, recipe: PosttrainRecipe, *, meta: bool = False) -> Networks:
        """The networks of a recipe, as `build` makes them."""
        generator, discriminators = build(recipe, meta=meta)
        return Networks(generator, generator.codec.output_sample_rate, discriminators)

    @classmethod
    def rehearse(cls, networks: Networks, batch: Batch) -> None:
        """Run generator and discriminators once."""
        networks.model.train()
        super().rehearse(networks, batch)

    @classmethod
    def resumed(cls, recipe: PosttrainRecipe, checkpoint: Path, state: RunState) -> dict[str, Any]:
        """Take the codec's sizes and what is trained from the checkpoint, and weights from nowhere else."""
        groups = state.optimizers["model"]["param_groups"]
        trains_adapter = any("post_rvq_adapter" in name for group in groups for name in group["params"])
        return {"weights": str(checkpoint), "freeze_adapter": not trains_adapter}

    def _generate(self, batch: Batch, step: int) -> tuple[Heard, Tensor, dict[str, Mean]]:
        heard, counts, losses = self.generator(batch)
        return heard, counts, {name: Mean(*pair) for name, pair in losses.items()}

    def _distances(self, heard: Heard) -> dict[str, Mean]:
        return {"mel": self.mel(*heard)} if self.weights["mel"] else {}

    @torch.no_grad()
    def measure(self, batch: Batch, *, transcribe: bool) -> Measured:
        """Measure all losses but those of discriminators, which say little of clips that they have not learned from."""
        self.measured.eval()
        with self.engine.autocast():
            (audio, target, lengths), counts, losses = self.measured(batch)
        means = {name: Mean(*pair) for name, pair in losses.items()}
        return Measured({"mel": self.mel(audio, target, lengths), **means}, counts, audio)

    def loss(self, values: Mapping[str, float]) -> float:
        """The mel distance of a validation."""
        return values["mel"]

    def model_config(self) -> dict[str, Any]:
        """The configuration of the codec that is trained."""
        return self.config.model_dump(mode="json")


def build(recipe: PosttrainRecipe, *, meta: bool = False) -> tuple[PostTraining, Discriminators]:
    """Generator and discriminators of a recipe with their starting weights; `meta` builds them without any.

    Raises CheckpointError if `recipe.weights` gives no codec, ConfigError if the recipe cannot go with it.
    """
    source = Path(recipe.weights)
    checkpoint = find_checkpoint(source)
    data = None if checkpoint is None else read_checkpoint(checkpoint)
    loaded = load_xy_tokenizer(checkpoint or recipe.weights)
    config = _adapted(loaded.config, recipe)
    hears = config.semantic_encoder is not None and config.output_sample_rate == config.input_sample_rate
    if recipe.loss.states and not hears:
        raise ConfigError("loss.states: needs a codec with a semantic tower that decodes at 16 kHz: set it to 0")
    longest = loaded.window_samples / loaded.input_sample_rate
    if recipe.data.clip_seconds > longest:
        raise ConfigError(f"data.clip_seconds: the codec's window is {longest:g} s: lower it")
    with torch.random.fork_rng(devices=[]), torch.device("meta" if meta else "cpu"):
        torch.manual_seed(recipe.seed)
        codec = XYTokenizer(config)
        discriminators = Discriminators(**recipe.discriminators.model_dump())
    if not meta:
        adopt_codec(codec, loaded, str(source), except_vocos=config != loaded.config)
        if data is not None and "discriminators" in data["networks"] and recipe.keep_discriminators:
            adopt_discriminators(discriminators, data["networks"]["discriminators"], str(checkpoint))
    random_positions = recipe.positions == "random"
    generator = PostTraining(
        codec,
        discriminators.min_samples,
        recipe.loss,
        recipe.segment_seconds,
        random_positions,
        recipe.freeze_adapter,
    )
    return generator, discriminators


def _adapted(config: XYTokenizerConfig, recipe: PosttrainRecipe) -> XYTokenizerConfig:
    changes: dict[str, Any] = {}
    rate = recipe.output_sample_rate
    if rate is not None and rate != config.output_sample_rate:
        # A file of codes finds its model by this name, and the rate of its audio with it.
        changes |= {"output_sample_rate": rate, "model_id": f"{config.model_id}-{rate // 1000}k"}
    if recipe.vocos is not None:
        changes["vocos"] = recipe.vocos.model_dump()
    if recipe.model_id is not None:
        changes["model_id"] = recipe.model_id
    return parse_config(XYTokenizerConfig, config.model_dump() | changes, "the recipe's codec")
