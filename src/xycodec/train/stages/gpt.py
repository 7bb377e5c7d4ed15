"""Stage `gpt`: a GPT over codes learns to continue music, or to make the sound of a caption's embedding."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from xycodec.data.batch import Batch
from xycodec.data.catalogue import Tell
from xycodec.data.codes import StoreCatalogue
from xycodec.data.config import SourceConfig
from xycodec.data.corpus import Corpus
from xycodec.errors import ConfigError
from xycodec.io.tokens.vectors import ABOUT
from xycodec.lm.gpt import GPT, Composer, GPTConfig, GPTModelConfig, GPTTask, gpt_task
from xycodec.train.language import LanguageRecipe, LanguageStage, codec_of, draws
from xycodec.train.stage import register


class GPTRecipe(LanguageRecipe):
    """A GPT learns the codes of a store; with `model.condition_dim`, from its vectors (`xycodec tokens describe`)."""

    stage: Literal["gpt"]
    model: GPTModelConfig = GPTModelConfig()
    guidance: float = 1.0
    """Weight of the condition in the sounds of a validation."""


@register
class GPTStage(LanguageStage[GPTRecipe]):
    """The stage that trains a GPT over codes."""

    name = "gpt"
    recipe_class = GPTRecipe

    @classmethod
    def open(cls, recipe: GPTRecipe, sources: Sequence[SourceConfig], tell: Tell) -> Corpus:
        """Open stores. Raises ConfigError if they lack the vectors that a condition needs, or have others."""
        corpus = super().open(recipe, sources, tell)
        dim = recipe.model.condition_dim
        for part in corpus.catalogues if dim else ():
            assert isinstance(part, StoreCatalogue)
            place = Path(part.store.folder)
            if part.vectors is None:
                raise ConfigError(f"{place}: has no {ABOUT}: make vectors with xycodec tokens describe {place}")
            if part.vectors.shape[1] != dim:
                raise ConfigError(f"{place}: vectors of {part.vectors.shape[1]} numbers: set model.condition_dim to it")
        return corpus

    @classmethod
    def configure(cls, recipe: GPTRecipe) -> GPTConfig:
        """Size and codec of a recipe. Raises ConfigError if the codes have fewer codebooks than it reads."""
        codec = codec_of(recipe)
        if recipe.model.books > codec.n_q:
            raise ConfigError(f"model.books: {recipe.model.books}, the codes have {codec.n_q}: lower it")
        return GPTConfig(codec=codec, **dict(recipe.model))

    @classmethod
    def network(cls, config: GPTConfig) -> nn.Module:
        """The network with random weights."""
        return GPT(config)

    @classmethod
    def loss_weights(cls, recipe: GPTRecipe, config: GPTConfig) -> dict[str, float]:
        """The cross-entropy alone."""
        return {"nats": 1.0}

    @classmethod
    def task(cls, recipe: GPTRecipe, config: GPTConfig, batch: Batch, step: int) -> GPTTask:
        """Flattened codes; conditions are dropped in training alone."""
        codes = _codes(batch)
        draw = None if step < 0 else draws(recipe, batch, step)
        conditions = None if batch.conditions is None else batch.conditions.cpu()
        return gpt_task(codes, config, conditions if config.condition_dim else None, draw)

    @classmethod
    def rehearsal(cls, config: GPTConfig, batch: Batch) -> GPTTask:
        """Flattened codes."""
        return gpt_task(_codes(batch), config)

    def generate(self, batch: Batch, item: int) -> Tensor | None:
        """Go on with a quarter of a clip for another half; or make a sound of its condition, as long as it is."""
        assert batch.codes is not None
        config: GPTConfig = self.config
        frames = min(batch.frames[item], config.tokens // config.books)
        composer = Composer(self.plain)
        if config.condition_dim:
            condition = None if batch.conditions is None else batch.conditions[item].cpu()
            return composer.generate(frames=frames, condition=condition, guidance=self.recipe.guidance)
        prompt = batch.codes[item, :, : max(1, frames // 4)].cpu()
        return composer.generate(frames=max(1, frames // 2), prompt_codes=prompt)


def _codes(batch: Batch) -> list[Tensor]:
    assert batch.codes is not None
    return [one[:, :count].cpu() for one, count in zip(batch.codes, batch.frames, strict=True)]
