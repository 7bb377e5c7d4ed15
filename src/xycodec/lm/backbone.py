"""Causal language models of Transformers as the transformer of a delay-pattern model."""

from typing import Any

import torch
from pydantic import NonNegativeInt, model_validator
from torch import Tensor, nn

from xycodec.errors import CheckpointError, XycodecError, reason_of
from xycodec.io.config import Config
from xycodec.io.libraries import transformers_library
from xycodec.lm.text import SPECIALS, TextConfig


class HuggingFaceConfig(Config):
    """A causal language model of Transformers: its settings, and where its weights come from at the start."""

    source: str | None = None
    """Hub id or folder; null in a checkpoint, which has the weights."""
    pretrained: bool = True
    """Start from the weights at `source`, or from random ones."""
    settings: dict[str, Any] | None = None
    """Contents of its `config.json`; null: that of `source`."""
    hidden_size: NonNegativeInt = 0
    """Width of a row; 0: that of `source`."""

    @model_validator(mode="after")
    def _found(self) -> "HuggingFaceConfig":
        if self.source is None and self.settings is None:
            raise ValueError("source: name a language model of Transformers, a hub id or a folder")
        return self

    def described(self) -> "HuggingFaceConfig":
        """The same with its settings. Raises CheckpointError, one line, if there is no such model."""
        if self.settings is not None:
            return self
        library = transformers_library()
        try:
            found = library.AutoConfig.from_pretrained(self.source)
            library.AutoModelForCausalLM._model_mapping[type(found)]
        except (OSError, ValueError, KeyError) as error:
            reason = reason_of(error)
            raise CheckpointError(f"{self.source}: no causal language model of Transformers ({reason})") from None
        return self.model_copy(update={"settings": found.to_dict(), "hidden_size": found.hidden_size})

    def tokenizer(self) -> str:
        """The `tokenizer.json` of the source. Raises CheckpointError if it has none."""
        try:
            found = transformers_library().AutoTokenizer.from_pretrained(self.source)
            made: str = found.backend_tokenizer.to_str()
        except (OSError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{self.source}: has no tokenizer.json ({reason_of(error)})") from None
        return made

    def require_room(self, rows: int) -> None:
        """Raise XycodecError if the model has not so many positions."""
        most = (self.settings or {}).get("max_position_embeddings")
        if isinstance(most, int) and rows > most:
            raise XycodecError(f"{rows} rows of text and speech are over the model's context of {most}: say less")


class CausalBackbone(nn.Module):
    """The body of a causal language model: rows of embeddings in, hidden rows out. Its own embeddings are let go."""

    def __init__(self, config: HuggingFaceConfig) -> None:
        super().__init__()
        library = transformers_library()
        assert config.settings is not None
        settings = library.AutoConfig.for_model(**config.settings)
        if config.source is None or not config.pretrained or torch.get_default_device().type == "meta":
            model = library.AutoModelForCausalLM.from_config(settings)
        else:
            model = library.AutoModelForCausalLM.from_pretrained(config.source, dtype=torch.float32)
        self.body: Any = model.base_model
        self._text: Tensor | None = self.body.get_input_embeddings().weight.detach()
        self.body.set_input_embeddings(nn.Identity())  # or they would be trained, and saved, for nothing

    @torch.no_grad()
    def fill_text(self, table: nn.Embedding, text: TextConfig) -> None:
        """Give a table of embeddings the model's own for the ids of its tokenizer, all others their mean."""
        own, self._text = self._text, None
        if text.kind == "tokenizer" and own is not None and own.device.type != "meta":
            known = min(len(own), text.size - len(SPECIALS))
            noise = 1e-3 * own.std(dim=0) * torch.randn_like(table.weight)
            table.weight.copy_(own.mean(dim=0) + noise)
            table.weight[len(SPECIALS) : len(SPECIALS) + known] = own[:known]

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Hidden rows (B, S, D) of rows (B, S, D), whose items have so many."""
        mask = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        hidden: Tensor = self.body(inputs_embeds=x, attention_mask=mask, use_cache=False).last_hidden_state
        return hidden

    def cache(self) -> Any:
        """A cache that has seen no row."""
        return transformers_library().DynamicCache()

    def go_on(self, x: Tensor, cache: Any) -> Tensor:
        """Hidden rows of rows (1, S, D) that follow those in the cache."""
        hidden: Tensor = self.body(inputs_embeds=x, past_key_values=cache, use_cache=True).last_hidden_state
        return hidden
