"""One step of adversarial training, for any generator with a codec in it."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

import torch
from pydantic import model_validator
from torch import Tensor, nn

from xycodec.checkpoints.training import AVERAGE
from xycodec.data.batch import Batch
from xycodec.errors import ConfigError
from xycodec.io.config import Config
from xycodec.losses.adversarial import adversarial_loss, discriminator_loss
from xycodec.nn.discriminators import DiscriminatorOutput
from xycodec.nn.mean import Mean
from xycodec.train.average import CodecT, WeightAverage
from xycodec.train.config import OptimizerConfig, RunConfig
from xycodec.train.engine import Engine, plain
from xycodec.train.excerpt import Heard
from xycodec.train.optimize import Updater
from xycodec.train.stage import Networks, Stage, StepReport, joint_values, weighted

Matching = Callable[[Sequence[DiscriminatorOutput], Sequence[DiscriminatorOutput]], Mean]


class AdversarialRecipe(RunConfig):
    """Settings that recipes of a generator against discriminators share."""

    weights: str | None
    keep_discriminators: bool = True
    """Whether to go on with the discriminators of `weights`, if it has any."""
    loss: Config
    optimizer: OptimizerConfig
    discriminator_optimizer: OptimizerConfig

    @model_validator(mode="after")
    def _whole(self) -> "AdversarialRecipe":
        if self.engine.kind == "fsdp2":
            raise ValueError("engine.kind: a stage with discriminators has two optimizers and runs on ddp or single")
        return self


AdversarialRecipeT = TypeVar("AdversarialRecipeT", bound=AdversarialRecipe)


class AdversarialStage(Stage[AdversarialRecipeT], Generic[AdversarialRecipeT, CodecT]):
    """A stage with a generator, which holds `codec`, and discriminators, each with an updater.

    `matching` compares what discriminators make of decoded and of true audio. Losses are weighted by `recipe.loss`.
    """

    def __init__(
        self,
        recipe: AdversarialRecipeT,
        engine: Engine,
        generator: nn.Module,
        codec: CodecT,
        discriminators: nn.Module,
        matching: Matching,
    ) -> None:
        self.recipe, self.engine, self.matching = recipe, engine, matching
        self.weights: dict[str, float] = recipe.loss.model_dump()
        self.codec = codec
        self.output_sample_rate = self.codec.output_sample_rate
        self.average = None if recipe.ema is None else WeightAverage(self.codec, recipe.ema).to(engine.device)
        self.generator, self.discriminators = engine.wrap(generator), engine.wrap(discriminators)
        self.networks = {"model": self.generator, "discriminators": self.discriminators}
        if self.average is not None:
            self.networks[AVERAGE] = self.average
        # Discriminators that nobody asks learn nothing, which saves half of a step.
        self.judged = bool(self.weights["adversarial"] or self.weights["feature"])
        self.updaters = {
            "model": Updater(self.generator, recipe.optimizer, recipe.steps),
            "discriminators": Updater(self.discriminators, recipe.discriminator_optimizer, recipe.steps),
        }

    @abstractmethod
    def _generate(self, batch: Batch, step: int) -> tuple[Heard, Tensor, dict[str, Mean]]:
        """One pass of the generator: audio, counts of the codes (n_q, K), and losses that it knows itself."""

    @abstractmethod
    def _distances(self, heard: Heard) -> dict[str, Mean]:
        """Losses that need the audio alone, but for those of weight 0."""

    @classmethod
    def rehearse(cls, networks: Networks, batch: Batch) -> None:
        """Run generator and discriminators once."""
        fake, real, _ = networks.model(batch)[0]
        assert networks.discriminators is not None
        networks.discriminators(torch.cat([real, fake]))

    def step(self, batches: Sequence[Batch], step: int) -> StepReport:
        """Update discriminators, then the generator. Of several micro-batches, the last one meets the new ones."""
        self.generator.train()
        with self._codebooks_of(batches, step):
            values, norms, counts = self._learn(batches, step)
        norms["grad_norm"] = self.updaters["model"].update(step)
        if self.average is not None:
            self.average.update(self.codec, step)
        values["loss"] = self._weighted(values)
        return StepReport(values, norms, counts)

    def _codebooks_of(self, batches: Sequence[Batch], step: int) -> AbstractContextManager[None]:
        """Context in which the codebooks take the micro-batches of a step as one."""
        return self.codec.quantizer.one_step(batches, lambda batch: self._generate(batch, step))

    def _learn(self, batches: Sequence[Batch], step: int) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor | None]:
        """Losses, norms and counts of a step, whose gradients the generator then holds."""
        values: dict[str, Tensor] = {}
        norms: dict[str, Tensor] = {}
        counts = None
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            with self.engine.joining(self.generator, last), self.engine.joining(self.discriminators, last):
                with self.engine.autocast():
                    heard, used, means = self._generate(batch, step)
                # A batch of which nothing could be read is silence: it goes all the way, and counts nowhere.
                share = float(any(batch.target_lengths))
                joined = {}
                if self.judged:
                    joined = self._teach_discriminators(heard.target, heard.audio.detach(), share, len(batches))
                if self.judged and last:
                    norms["discriminator_grad_norm"] = self.updaters["discriminators"].update(step)
                joined |= self._teach_generator(heard, means, share, len(batches))
            for name, value in joined.items():
                values[name] = values.get(name, 0.0) + value.detach() / len(batches)
            counts = used if counts is None else counts + used
        return values, norms, counts

    def _teach_discriminators(self, real: Tensor, fake: Tensor, share: float, parts: int) -> dict[str, Tensor]:
        self.discriminators.train()
        with self.engine.autocast():
            # In one batch: spectral norm moves at every pass, and both sides must meet the same weights.
            outputs = self.discriminators(torch.cat([real, fake]))
        values = joint_values({"discriminator": _scaled(discriminator_loss(*_halves(outputs)), share)})
        torch.autograd.backward(values["discriminator"] / parts)
        return values

    def _teach_generator(self, heard: Heard, means: dict[str, Mean], share: float, parts: int) -> dict[str, Tensor]:
        means = means | self._distances(heard)
        if self.judged:
            adversarial, feature = self.weights["adversarial"], self.weights["feature"]
            # Past the wrapper: no gradient of theirs is to be made, let alone joined.
            judges = plain(self.discriminators).eval().requires_grad_(False)
            with self.engine.autocast():
                with torch.no_grad():
                    known = judges(heard.target) if feature else []
                judged = judges(heard.audio)
            judges.requires_grad_(True)
            if adversarial:
                means["adversarial"] = _scaled(adversarial_loss(judged), share)
            if feature:
                means["feature"] = _scaled(self.matching(known, judged), share)
        values = joint_values(means)
        torch.autograd.backward(self._weighted(values) / parts)
        return values

    def _weighted(self, values: dict[str, Tensor]) -> Tensor:
        total: Tensor = weighted(values, {name: weight for name, weight in self.weights.items() if name in values})
        return total


def adopt_discriminators(discriminators: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load the discriminators of a checkpoint. Raises ConfigError if their size differs."""
    own = discriminators.state_dict()
    if {key: value.shape for key, value in own.items()} != {key: value.shape for key, value in state.items()}:
        raise ConfigError(
            f"{source}: its discriminators differ from the recipe's: make them equal, or keep_discriminators false"
        )
    discriminators.load_state_dict(state)


def _scaled(mean: Mean, share: float) -> Mean:
    """Scale a mean's total and count by `share`."""
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
