"""Stages `valle_ar` and `valle_nar`: the two models of VALL-E, trained apart on the same stores."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from xycodec.data.batch import Batch
from xycodec.errors import ConfigError
from xycodec.lm.text import front_end
from xycodec.lm.valle import (
    ArTask,
    NarTask,
    ValleAr,
    ValleArConfig,
    ValleArModelConfig,
    ValleNar,
    ValleNarConfig,
    ValleNarModelConfig,
    ValleSpeaker,
    ar_task,
    nar_task,
)
from xycodec.train.checkpoint import RunState
from xycodec.train.language import NEEDS_TEXT, LanguageRecipe, LanguageStage, codec_of, complete, draws, spoken
from xycodec.train.stage import register


class ValleArRecipe(LanguageRecipe):
    """VALL-E's first stage learns the first codebook of a store's clips from their texts."""

    stage: Literal["valle_ar"]
    model: ValleArModelConfig = ValleArModelConfig()
    legacy_loss: bool = False
    """Let padding count, whose label is the end; with `model.begin: false` it is the source's loss."""


class ValleNarRecipe(LanguageRecipe):
    """VALL-E's second stage learns the other codebooks."""

    stage: Literal["valle_nar"]
    model: ValleNarModelConfig = ValleNarModelConfig()

    @model_validator(mode="after")
    def _nothing_to_hear(self) -> "ValleNarRecipe":
        if self.validation.recogniser is not None:
            raise ValueError("validation.recogniser: the second stage does not speak alone: leave it out")
        return self


@register
class ValleArStage(LanguageStage[ValleArRecipe]):
    """The stage that trains VALL-E's model of the first codebook."""

    name = "valle_ar"
    recipe_class = ValleArRecipe
    needs = NEEDS_TEXT

    @classmethod
    def configure(cls, recipe: ValleArRecipe) -> ValleArConfig:
        """Size, codec and table of symbols of a recipe. Raises ConfigError."""
        _refuse_tokens(recipe.model.text.kind)
        settings = dict(recipe.model) | {"text": complete(recipe.model.text, recipe)}
        return ValleArConfig(codec=codec_of(recipe), **settings)

    @classmethod
    def network(cls, config: ValleArConfig) -> nn.Module:
        """The network with random weights."""
        return ValleAr(config)

    @classmethod
    def resumed(cls, recipe: ValleArRecipe, checkpoint: Path, state: RunState) -> dict[str, Any]:
        """Take the table of symbols from the checkpoint: the texts may have changed."""
        return _known_symbols(recipe.model, ValleArConfig, state)

    @classmethod
    def loss_weights(cls, recipe: ValleArRecipe, config: ValleArConfig) -> dict[str, float]:
        """The cross-entropy alone."""
        return {"ar": 1.0}

    @classmethod
    def task(cls, recipe: ValleArRecipe, config: ValleArConfig, batch: Batch, step: int) -> ArTask:
        """Rows of texts and first codebooks."""
        texts = _texts(config.text, batch)
        return ar_task(texts, spoken(batch, texts), config, legacy_loss=recipe.legacy_loss)

    @classmethod
    def rehearsal(cls, config: ValleArConfig, batch: Batch) -> ArTask:
        """Rows of as many symbols as the texts have characters."""
        texts = _blank(batch)
        return ar_task(texts, spoken(batch, texts), config)

    def generate(self, batch: Batch, item: int) -> Tensor | None:
        """Speak the text of a clip, its first codebook alone; a model without a begin symbol goes on with the clip."""
        text, config = batch.texts[item], self.config
        if text is None or batch.codes is None:
            return None
        prompt = None if config.begin else batch.codes[item, :, : min(config.codec.frames(3), batch.frames[item])].cpu()
        speaker = ValleSpeaker(self.plain)
        return speaker.speak(text, prompt_codes=prompt, first_codebook_only=True).codes


@register
class ValleNarStage(LanguageStage[ValleNarRecipe]):
    """The stage that trains VALL-E's model of the other codebooks."""

    name = "valle_nar"
    recipe_class = ValleNarRecipe
    needs = NEEDS_TEXT

    @classmethod
    def configure(cls, recipe: ValleNarRecipe) -> ValleNarConfig:
        """Size, codec and table of symbols of a recipe. Raises ConfigError."""
        _refuse_tokens(recipe.model.text.kind)
        codec = codec_of(recipe)
        if codec.n_q < 2:
            raise ConfigError("data.train: codes of one codebook have no second stage: train the first one alone")
        settings = dict(recipe.model) | {"text": complete(recipe.model.text, recipe)}
        return ValleNarConfig(codec=codec, **settings)

    @classmethod
    def network(cls, config: ValleNarConfig) -> nn.Module:
        """The network with random weights."""
        return ValleNar(config)

    @classmethod
    def resumed(cls, recipe: ValleNarRecipe, checkpoint: Path, state: RunState) -> dict[str, Any]:
        """Take the table of symbols from the checkpoint: the texts may have changed."""
        return _known_symbols(recipe.model, ValleNarConfig, state)

    @classmethod
    def wants_companions(cls, recipe: ValleNarRecipe) -> bool:
        """Another utterance of the speaker is the prompt of prefix mode 4."""
        return recipe.model.prefix_mode == 4

    @classmethod
    def loss_weights(cls, recipe: ValleNarRecipe, config: ValleNarConfig) -> dict[str, float]:
        """The cross-entropy alone: a mean over the frames that are predicted needs no correction for the prompt."""
        return {"nar": 1.0}

    @classmethod
    def task(cls, recipe: ValleNarRecipe, config: ValleNarConfig, batch: Batch, step: int) -> NarTask:
        """One codebook, the same on all processes, and prompts, which the seed and the step decide."""
        texts = _texts(config.text, batch)
        return nar_task(texts, spoken(batch, texts), batch.companions, config, draws(recipe, batch, step, alike=True))

    @classmethod
    def rehearsal(cls, config: ValleNarConfig, batch: Batch) -> NarTask:
        """Rows of as many symbols as the texts have characters."""
        texts = _blank(batch)
        return nar_task(texts, spoken(batch, texts), batch.companions, config, torch.Generator().manual_seed(0))

    def generate(self, batch: Batch, item: int) -> Tensor | None:
        """Fill in the other codebooks of a clip's first one, after its own beginning where the model has a prompt."""
        text, config = batch.texts[item], self.config
        if text is None or batch.codes is None:
            return None
        frames = batch.frames[item]
        codes = batch.codes[item, :, :frames]
        prompt = min(config.codec.frames(3), frames // 2) if config.prefix_mode == 1 else 0
        given = torch.arange(frames, device=codes.device) < prompt
        symbols = torch.tensor(front_end(config.text).known(text), device=codes.device)
        filled = self.plain.fill(symbols, codes, given, frames - prompt)
        return torch.cat([codes[:, :prompt], filled], dim=1)


def _texts(config: Any, batch: Batch) -> list[list[int]]:
    front = front_end(config)
    return [front.known(text) for text in batch.texts]


def _blank(batch: Batch) -> Sequence[list[int]]:
    return [[0] * len(text or "") for text in batch.texts]


def _refuse_tokens(kind: str) -> None:
    if kind == "tokenizer":
        raise ConfigError("model.text.kind: tokenizer is for a language model of Transformers: use characters")


def _known_symbols(model: Any, cls: Any, state: RunState) -> dict[str, Any]:
    if state.language_model is None:
        return {}
    return {"model": model.model_copy(update={"text": cls.model_validate(state.language_model).text})}
