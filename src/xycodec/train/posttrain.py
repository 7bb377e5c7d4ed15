"""Y-shaped post-training: encoder and quantizer frozen, the decoder against discriminators (spec section 9)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xycodec.config import XYTokenizerConfig, parse_config
from xycodec.data.batch import Batch
from xycodec.errors import ConfigError
from xycodec.losses import MultiScaleMel, adversarial_loss, discriminator_loss, feature_matching
from xycodec.models.xy_tokenizer import XYTokenizer
from xycodec.nn.discriminators import DiscriminatorOutput, Discriminators
from xycodec.nn.mean import Mean
from xycodec.nn.transformer import frame_mask
from xycodec.pretrained import AVERAGE, load_xy_tokenizer, read_checkpoint
from xycodec.recipe import PosttrainRecipe
from xycodec.train.average import WeightAverage
from xycodec.train.engine import Engine, plain
from xycodec.train.excerpt import Heard, synthesise_excerpts
from xycodec.train.initialise import adopt_codec, find_checkpoint
from xycodec.train.optimize import Updater
from xycodec.train.stage import Measured, Stage, StepReport, joint_values, weighted

FROZEN = (
    "semantic_encoder", "semantic_encoder_adapter", "acoustic_encoder", "pre_rvq_adapter", "downsample", "quantizer",
)  # fmt: skip


class PostTraining(nn.Module):
    """The codec as a generator: from a batch to decoded and true audio of one length."""

    def __init__(self, codec: XYTokenizer, min_samples: int, hear_seconds: float | None = None) -> None:
        super().__init__()
        self.codec = codec
        self.min_samples, self.hear_seconds = min_samples, hear_seconds
        for part in self._frozen():
            part.requires_grad_(False)

    def _frozen(self) -> list[nn.Module]:
        return [part for name in FROZEN if (part := getattr(self.codec, name)) is not None]

    def train(self, mode: bool = True) -> "PostTraining":
        """As of any module, but what is frozen stays in eval mode: the codebooks must not move."""
        super().train(mode)
        for part in self._frozen():
            part.eval()
        return self

    def forward(self, batch: Batch) -> tuple[Heard, Tensor]:
        """Decoded and true audio, in training of `hear_seconds` of each clip; counts of the codes (n_q, K)."""
        codec = self.codec
        frames = [codec.num_frames(n) for n in batch.lengths]
        with torch.no_grad():
            latents, _ = codec.encode_latents(batch.audio, [max(n, 1) for n in batch.lengths])
            mask = frame_mask(frames, latents.shape[1])
            quantized = codec.quantizer(latents, mask)
        device_mask = None if mask is None else mask.to(latents.device, non_blocking=True)
        hidden = codec.post_rvq_adapter(quantized.quantized, device_mask)
        features = codec.acoustic_features(hidden, device_mask)
        seconds = self.hear_seconds if self.training else None
        audio, target, lengths = synthesise_excerpts(codec, features, frames, batch, seconds)
        missing = max(self.min_samples - audio.shape[1], 0)
        audio, target = F.pad(audio, (0, missing)), F.pad(target, (0, missing))
        # Past its end a clip is silent in both, which teaches neither side anything.
        inside = torch.arange(audio.shape[1]) < lengths[:, None]
        return Heard(audio * inside.to(audio.device, non_blocking=True), target, lengths), quantized.counts


class PosttrainStage(Stage):
    """Post-training as the trainer sees it."""

    name = "posttrain"

    def __init__(self, recipe: PosttrainRecipe, engine: Engine) -> None:
        self.recipe, self.engine = recipe, engine
        self.weights: dict[str, float] = recipe.loss.model_dump()
        generator, discriminators = build(recipe)
        self.config = generator.codec.config
        self.output_sample_rate = self.config.output_sample_rate
        self.mel = MultiScaleMel(self.output_sample_rate).to(engine.device)
        self.codec = generator.codec
        self.average = None if recipe.ema is None else WeightAverage(self.codec, recipe.ema).to(engine.device)
        self.generator, self.discriminators = engine.wrap(generator), engine.wrap(discriminators)
        self.networks = {"model": self.generator, "discriminators": self.discriminators}
        self.measured = self.generator
        if self.average is not None:
            self.networks[AVERAGE] = self.average
            self.measured = PostTraining(self.average.codec, generator.min_samples)
        self.updaters = {
            "model": Updater(self.generator, recipe.optimizer, recipe.steps),
            "discriminators": Updater(self.discriminators, recipe.discriminator_optimizer, recipe.steps),
        }

    def step(self, batches: Sequence[Batch], step: int) -> StepReport:
        """The discriminators learn first. Of several micro-batches, the last one meets them after that."""
        self.generator.train()
        values: dict[str, Tensor] = {}
        norms: dict[str, Tensor] = {}
        counts = None
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            with self.engine.joining(self.generator, last), self.engine.joining(self.discriminators, last):
                with self.engine.autocast():
                    (fake, real, lengths), used = self.generator(batch)
                # A batch of which nothing could be read is silence: it goes all the way, and counts nowhere.
                share = float(any(batch.target_lengths))
                joined = self._teach_discriminators(real, fake.detach(), share, len(batches))
                if last:
                    norms["discriminator_grad_norm"] = self.updaters["discriminators"].update(step)
                joined |= self._teach_generator(real, fake, lengths, share, len(batches))
            for name, value in joined.items():
                values[name] = values.get(name, 0.0) + value.detach() / len(batches)
            counts = used if counts is None else counts + used
        norms["grad_norm"] = self.updaters["model"].update(step)
        if self.average is not None:
            self.average.update(self.codec, step)
        values["loss"] = weighted(values, self._active(values))
        return StepReport(values, norms, counts)

    def _teach_discriminators(self, real: Tensor, fake: Tensor, share: float, parts: int) -> dict[str, Tensor]:
        self.discriminators.train()
        with self.engine.autocast():
            # In one batch: spectral norm moves at every pass, and both sides must meet the same weights.
            outputs = self.discriminators(torch.cat([real, fake]))
        values = joint_values({"discriminator": _scaled(discriminator_loss(*_halves(outputs)), share)})
        torch.autograd.backward(values["discriminator"] / parts)
        return values

    def _teach_generator(
        self, real: Tensor, fake: Tensor, lengths: Tensor, share: float, parts: int
    ) -> dict[str, Tensor]:
        means: dict[str, Mean] = {}
        if self.weights["mel"]:
            means["mel"] = self.mel(fake, real, lengths)
        adversarial, feature = self.weights["adversarial"], self.weights["feature"]
        if adversarial or feature:
            # Past the wrapper: no gradient of theirs is to be made, let alone joined.
            judges = plain(self.discriminators).eval().requires_grad_(False)
            with self.engine.autocast():
                with torch.no_grad():
                    known = judges(real) if feature else []
                judged = judges(fake)
            judges.requires_grad_(True)
            if adversarial:
                means["adversarial"] = _scaled(adversarial_loss(judged), share)
            if feature:
                means["feature"] = _scaled(feature_matching(known, judged), share)
        values = joint_values(means)
        (weighted(values, self._active(values)) / parts).backward()
        return values

    @torch.no_grad()
    def measure(self, batch: Batch, *, transcribe: bool) -> Measured:
        """The mel distance; what discriminators say of unheard clips says little."""
        self.measured.eval()
        with self.engine.autocast():
            (audio, target, lengths), counts = self.measured(batch)
        return Measured({"mel": self.mel(audio, target, lengths)}, counts, audio)

    def loss(self, values: Mapping[str, float]) -> float:
        """The mel distance."""
        return values["mel"]

    def codec_config(self) -> dict[str, Any]:
        """The configuration of the codec that is trained."""
        return self.config.model_dump(mode="json")

    def _active(self, values: Mapping[str, Any]) -> dict[str, float]:
        return {name: weight for name, weight in self.weights.items() if name in values}


def _scaled(mean: Mean, share: float) -> Mean:
    """As if `share` of everything had been there."""
    return Mean(mean.total * share, mean.count * share)


def _halves(outputs: Sequence[DiscriminatorOutput]) -> tuple[list[DiscriminatorOutput], list[DiscriminatorOutput]]:
    """Undo `torch.cat([real, fake])`."""
    halves = [
        [
            DiscriminatorOutput(o.logits.chunk(2)[side], [feature.chunk(2)[side] for feature in o.features])
            for o in outputs
        ]
        for side in (0, 1)
    ]
    return halves[0], halves[1]


def build(recipe: PosttrainRecipe, *, meta: bool = False) -> tuple[PostTraining, Discriminators]:
    """Generator and discriminators of a recipe with their starting weights; `meta` builds them without any.

    Raises CheckpointError if `recipe.weights` gives no codec, ConfigError if the recipe cannot go with it.
    """
    source = Path(recipe.weights)
    checkpoint = find_checkpoint(source)
    data = None if checkpoint is None else read_checkpoint(checkpoint)
    loaded = load_xy_tokenizer(checkpoint or recipe.weights)
    config = _adapted(loaded.config, recipe)
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
            _adopt_discriminators(discriminators, data["networks"]["discriminators"], str(checkpoint))
    return PostTraining(codec, discriminators.min_samples, recipe.hear_seconds), discriminators


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


def _adopt_discriminators(discriminators: Discriminators, state: dict[str, Tensor], source: str) -> None:
    own = discriminators.state_dict()
    if {key: value.shape for key, value in own.items()} != {key: value.shape for key, value in state.items()}:
        raise ConfigError(
            f"{source}: its discriminators differ from the recipe's: make them equal, or keep_discriminators false"
        )
    discriminators.load_state_dict(state)
