"""Stage `delay`: a delay-pattern language model learns to speak, all codebooks in one pass."""

from pathlib import Path
from typing import Any, Literal

from pydantic import NonNegativeFloat
from torch import Tensor, nn

from xycodec.data.batch import Batch
from xycodec.errors import ConfigError
from xycodec.io.config import Config
from xycodec.lm.backbone import HuggingFaceConfig
from xycodec.lm.delay import DelayConfig, DelayModelConfig, DelayNetwork, DelaySpeaker, DelayTask, delay_task
from xycodec.lm.text import front_end
from xycodec.train.checkpoint import RunState
from xycodec.train.language import NEEDS_TEXT, LanguageRecipe, LanguageStage, codec_of, complete, spoken
from xycodec.train.stage import register


class DelayLoss(Config):
    """Weights of the losses; those of the codebooks count by their share in the sum."""

    books: tuple[NonNegativeFloat, ...] | None = None
    """One for each codebook; null: all alike. MOSS-TTSD fine-tunes with 8, 2, 1, 1, 1, 1, 1, 1."""
    duration: NonNegativeFloat = 0.1
    """Weight of the relative error of the clip's length, of a model that is `aligned`."""


class DelayRecipe(LanguageRecipe):
    """A delay-pattern language model learns to speak the codes of a store from the texts in it."""

    stage: Literal["delay"]
    model: DelayModelConfig = DelayModelConfig()
    loss: DelayLoss = DelayLoss()


@register
class DelayStage(LanguageStage[DelayRecipe]):
    """The stage that trains a delay-pattern language model."""

    name = "delay"
    recipe_class = DelayRecipe
    needs = NEEDS_TEXT

    @classmethod
    def configure(cls, recipe: DelayRecipe) -> DelayConfig:
        """Size, codec and table of symbols of a recipe. Raises ConfigError, CheckpointError."""
        settings = dict(recipe.model)
        own = recipe.model.transformer
        text = recipe.model.text
        if isinstance(own, HuggingFaceConfig):
            settings["transformer"] = own.described()
            if text.kind == "tokenizer" and text.tokenizer is None:
                text = text.model_copy(update={"tokenizer": own.tokenizer()})
        elif text.kind == "tokenizer" and text.tokenizer is None:
            raise ConfigError("model.text.kind: tokenizer is for a language model of Transformers: use characters")
        settings["text"] = complete(text, recipe)
        config = DelayConfig(codec=codec_of(recipe), **settings)
        weights = recipe.loss.books
        if weights is not None and (len(weights) != config.codec.n_q or not weights[0]):
            raise ConfigError(
                f"loss.books: {len(weights)} weights for {config.codec.n_q} codebooks: give one each, the first over 0"
            )
        return config

    @classmethod
    def network(cls, config: DelayConfig) -> nn.Module:
        """The network with random weights, or with those of a language model of Transformers."""
        return DelayNetwork(config)

    @classmethod
    def resumed(cls, recipe: DelayRecipe, checkpoint: Path, state: RunState) -> dict[str, Any]:
        """Take symbols and settings from the checkpoint: the texts, or the hub, may have changed."""
        if state.language_model is None:
            return {}
        known = DelayConfig.model_validate(state.language_model)
        kept = {"text": known.text, "transformer": known.transformer}
        return {"model": recipe.model.model_copy(update=kept)}

    @classmethod
    def loss_weights(cls, recipe: DelayRecipe, config: DelayConfig) -> dict[str, float]:
        """Weights of the codebooks, which are 1 together, and that of durations."""
        books = recipe.loss.books or (1.0,) * config.codec.n_q
        weights = {f"book_{number}": weight / sum(books) for number, weight in enumerate(books, 1)}
        return weights | ({"duration": recipe.loss.duration} if config.aligned else {})

    @classmethod
    def task(cls, recipe: DelayRecipe, config: DelayConfig, batch: Batch, step: int) -> DelayTask:
        """Rows of texts and codes; a clip whose text is not known counts nothing."""
        front = front_end(config.text)
        texts = [front.known(text) for text in batch.texts]
        return delay_task(texts, spoken(batch, texts), config)

    @classmethod
    def rehearsal(cls, config: DelayConfig, batch: Batch) -> DelayTask:
        """Rows of as many symbols as the texts have characters."""
        texts = [[0] * len(text or "") for text in batch.texts]
        return delay_task(texts, spoken(batch, texts), config)

    def generate(self, batch: Batch, item: int) -> Tensor | None:
        """Speak the text of a clip."""
        text = batch.texts[item]
        return None if text is None else DelaySpeaker(self.plain).speak(text).codes

    def model_config(self) -> dict[str, Any]:
        """The model's configuration; weights come from the checkpoint from now on."""
        config: DelayConfig = self.config
        if isinstance(config.transformer, HuggingFaceConfig):
            own = config.transformer.model_copy(update={"source": None})
            config = config.model_copy(update={"transformer": own})
        return config.model_dump(mode="json")
