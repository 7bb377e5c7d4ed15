"""A GPT over codes for music and sound, in nanoGPT's form: the first codebooks flattened into one stream of ids.

A model of sounds begins with a row that is a linear map of a condition: the CLAP embedding of a caption.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from xycodec.errors import XycodecError
from xycodec.io.config import Config
from xycodec.lm.config import CodecIdentity, OfCodec, SamplingConfig, TransformerConfig
from xycodec.lm.measures import NO_LABEL, cross_entropy, labelled, rows_at, top_ten
from xycodec.lm.patterns import Flattened
from xycodec.lm.sampling import generator_of, sample
from xycodec.lm.transformer import Cache, Stack, initialise_gpt, prefix_mask
from xycodec.nn.mean import Mean

MEDIUM = TransformerConfig(d_model=1024, layers=24, heads=16, ffn_dim=4096, bias=False)
"""GPT-2 medium, as nanoGPT trains it."""


class GPTModelConfig(Config):
    """Size and kind of a GPT over codes."""

    transformer: TransformerConfig = MEDIUM
    context: PositiveInt = 4096
    """Rows at most."""
    books: PositiveInt = 1
    """First codebooks, flattened frame after frame."""
    shared: bool = False
    """Whether codebooks share ids; else code c of codebook q is q * codebook_size + c."""
    condition_dim: NonNegativeInt = 0
    """Numbers of a condition, 512 of CLAP; 0: there is none."""
    condition_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of clips whose condition is a learned one of nothing in training, for guidance."""
    end: bool = False
    """Whether an id says that a clip is over."""
    sampling: SamplingConfig = SamplingConfig(top_k=250)


class GPTConfig(GPTModelConfig):
    """A GPT over codes, but for its weights."""

    kind: Literal["gpt"] = "gpt"
    codec: CodecIdentity

    @model_validator(mode="after")
    def _enough_books(self) -> "GPTConfig":
        if self.books > self.codec.n_q:
            raise ValueError(f"books: {self.books}, the codes have {self.codec.n_q}: lower it")
        return self

    @property
    def pattern(self) -> Flattened:
        """The order of ids."""
        return Flattened(self.books, self.codec.codebook_size, self.shared)

    @property
    def vocabulary(self) -> int:
        """Ids in all."""
        return self.pattern.pad + self.end

    @property
    def tokens(self) -> int:
        """Ids of a training window: all rows but that of a condition predict one, and without it the first is given."""
        return self.context if self.condition_dim else self.context + 1


@dataclass(frozen=True)
class GPTTask:
    """Ids (B, T) that are read, labels (B, T or T + 1), and conditions (B, D), of which `dropped` (B,) are left out.

    `places` (N,) are the rows of all items that have a label (`measures.labelled`).
    """

    ids: Tensor
    labels: Tensor
    conditions: Tensor
    dropped: Tensor
    places: Tensor

    def to(self, device: torch.device) -> "GPTTask":
        """Copy the task to a device."""
        return GPTTask(*(part.to(device, non_blocking=True) for part in vars(self).values()))

    def counts(self) -> dict[str, Tensor]:
        """Elements (1,) of each mean that the model measures."""
        count = (self.labels != NO_LABEL).sum()[None].float()
        return {"nats": count, "top10": count}


def gpt_task(
    codes: Sequence[Tensor], config: GPTConfig, conditions: Tensor | None = None, draw: torch.Generator | None = None
) -> GPTTask:
    """Ids and labels of codes (n_q, L), cut to the window; `draw` decides which conditions (B, D) are dropped."""
    pad, streams = config.pattern.pad, []
    for one in codes:
        ids = config.pattern.apply(one[: config.books]).flatten()
        if config.end and one.shape[1]:
            ids = torch.cat([ids, torch.tensor([pad])])
        streams.append(ids[: config.tokens])
    stream = nn.utils.rnn.pad_sequence(streams, batch_first=True, padding_value=NO_LABEL)
    labels = stream if config.condition_dim else stream[:, 1:]
    given = torch.zeros(len(codes), config.condition_dim) if conditions is None else conditions
    dropped = torch.full((len(codes),), conditions is None)
    if draw is not None:
        dropped = dropped | (torch.rand(len(codes), generator=draw) < config.condition_dropout)
    return GPTTask(stream[:, :-1].clamp_min(0), labels, given, dropped, labelled(labels))


class GPT(nn.Module):
    """Embeddings of ids and of places, pre-norm blocks, and the embedding as head."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.transformer.d_model
        self.ids = nn.Embedding(config.vocabulary, width)
        self.places = nn.Embedding(config.context, width)
        self.dropout = nn.Dropout(config.transformer.dropout)
        self.stack = Stack(config.transformer)
        self.condition = nn.Linear(config.condition_dim, width) if config.condition_dim else None
        self.nothing = nn.Parameter(torch.empty(1, config.condition_dim)) if config.condition_dim else None
        initialise_gpt(self, config.transformer.layers)

    def forward(self, task: GPTTask) -> dict[str, Mean]:
        """Cross-entropy `nats` and top-10 accuracy."""
        hidden = self.encode(task.ids, task.conditions, task.dropped)
        first = 0 if self.condition is not None else 1
        due = (first + torch.arange(hidden.shape[1], device=hidden.device)) % self.config.books
        labels = rows_at(task.labels, task.places)
        logits = self.logits(rows_at(hidden, task.places), rows_at(due.expand(len(hidden), -1), task.places))
        return {"nats": cross_entropy(logits, labels), "top10": top_ten(logits, labels)}

    def encode(self, ids: Tensor, conditions: Tensor, dropped: Tensor, cache: Cache | None = None) -> Tensor:
        """Hidden rows (B, S, D) of ids (B, T): one more, the first, of conditions (B, D) at the beginning."""
        first = cache.rows if cache is not None else 0
        x = self.ids(ids)
        if self.condition is not None and self.nothing is not None and not first:
            given = torch.where(dropped[:, None], self.nothing, conditions)
            x = torch.cat([self.condition(given)[:, None], x], dim=1)
        rows = x.shape[1]
        if first + rows > self.config.context:
            raise XycodecError(
                f"{first + rows} rows are over the model's context of {self.config.context}: ask for less"
            )
        x = self.dropout(x + self.places(torch.arange(first, first + rows, device=x.device)))
        mask = None if rows == 1 else prefix_mask(first + rows, 0).to(x.device)[:, :, first:]
        out: Tensor = self.stack(x, mask, cache=cache)
        return out

    def logits(self, hidden: Tensor, due: Tensor) -> Tensor:
        """Logits (N, V) of hidden rows (N, D), minus infinity for codes of other codebooks than `due` (N,)."""
        logits = F.linear(hidden, self.ids.weight)
        if self.config.shared or self.config.books == 1:
            return logits
        size = self.config.codec.codebook_size
        books = torch.arange(self.config.pattern.pad, device=due.device) // size
        barred = books != due[:, None]
        if self.config.end:  # a clip ends with a whole frame
            barred = F.pad(barred, (0, 1)) | F.pad(due[:, None] != 0, (self.config.pattern.pad, 0))
        return logits.masked_fill(barred, -torch.inf)


class Composer(OfCodec):
    """A trained GPT over codes that continues music, or makes a sound from the embedding of a caption.

    Attributes:
        codec: the codec whose codes it makes, the first `books` of it.
    """

    def __init__(self, network: GPT) -> None:
        self.network, self.config = network.eval(), network.config
        self.codec, self.books = self.config.codec, self.config.books

    @torch.no_grad()
    def generate(
        self,
        *,
        frames: int,
        prompt_codes: Tensor | None = None,
        condition: Tensor | None = None,
        seed: int = 0,
        guidance: float = 1.0,
    ) -> Tensor:
        """Codes (books, L) of `frames` frames, without those of the prompt; fewer where the model ends by itself.

        Args:
            frames: at least 1.
            prompt_codes: (k, P), k at least the model's codebooks: music to go on with.
            condition: (D,) of a model that has one; None: of nothing.
            seed: of all draws.
            guidance: how much a condition counts: 1 as it is, more makes it stronger (Ho 2022).

        Raises:
            XycodecError: in one line, where this does not fit the model, or is over its context.
        """
        prompt = self._require(frames, prompt_codes, condition)
        device = self.network.ids.weight.device
        stream = self.config.pattern.apply(prompt).flatten().tolist()
        wanted = len(stream) + frames * self.books
        guided = guidance != 1 and condition is not None
        dim, count = self.config.condition_dim, 2 if guided else 1
        given = torch.zeros(count, dim) if condition is None else condition.float().expand(count, dim)
        dropped = torch.tensor([condition is None, True][:count], device=device)
        cache, generator = Cache(), generator_of(seed)
        ids = torch.tensor(stream, dtype=torch.int64, device=device).expand(count, -1)
        end = self.config.pattern.pad
        start = len(stream)
        while len(stream) < wanted:
            hidden = self.network.encode(ids, given.to(device), dropped, cache)[:, -1]
            due = torch.full((count,), len(stream) % self.books, device=device)
            logits = self.network.logits(hidden, due)
            scores = logits[0] if not guided else torch.lerp(logits[1], logits[0], guidance)
            # Minus infinity less itself is no number.
            scores = scores.masked_fill(logits[0] == -torch.inf, -torch.inf)
            drawn = sample(scores, self.config.sampling, generator, stream[start:])
            if drawn == end:
                break
            stream.append(drawn)
            ids = torch.full((count, 1), drawn, device=device)
        made = stream[start:]
        whole = len(made) // self.books * self.books
        return self.config.pattern.revert(torch.tensor(made[:whole], dtype=torch.int64)[:, None])

    def _require(self, frames: int, prompt: Tensor | None, condition: Tensor | None) -> Tensor:
        """The prompt (books, P), of no frame where there is none."""
        about, dim = self.codec, self.config.condition_dim
        if frames < 1:
            raise XycodecError(f"{frames} frames: ask for one at least")
        if condition is not None and tuple(condition.shape) != (dim,):
            told = f"of {dim} numbers" if dim else "without a condition"
            raise XycodecError(f"a condition of shape {tuple(condition.shape)} for a model {told}")
        if prompt is None:
            prompt = torch.zeros(self.books, 0, dtype=torch.int64)
            if not dim:
                raise XycodecError("a model without a condition goes on with music: give prompt codes")
        elif prompt.ndim != 2 or len(prompt) < self.books or prompt.is_floating_point():
            raise XycodecError(
                f"prompt codes of shape {tuple(prompt.shape)}: the model reads {self.books} codebooks of {about.name}"
            )
        elif not prompt.shape[1] and not dim:
            raise XycodecError(f"the prompt is shorter than a frame of {1 / self.frame_rate:g} s: give a longer one")
        elif prompt.numel() and (int(prompt.min()) < 0 or int(prompt.max()) >= about.codebook_size):
            raise XycodecError(f"prompt codes outside 0 to {about.codebook_size - 1}: they are of another codec")
        # The last id is drawn and not read.
        rows = (prompt.shape[1] + frames) * self.books - 1 + bool(dim)
        if rows > self.config.context:
            most = (self.config.context + 1 - bool(dim)) // self.books - prompt.shape[1]
            raise XycodecError(
                f"{frames} frames after a prompt of {prompt.shape[1]} are over the context of {self.config.context}: "
                f"ask for {most} at most"
                if most > 0
                else f"a prompt of {prompt.shape[1]} frames fills the context"
            )
        return prompt[: self.books].to(torch.int64)
