"""A delay-pattern language model that speaks, as MOSS-TTSD does with the codes of XY-Tokenizer.

Rows of one channel a codebook: first the text, in channel 0 alone, then speech, whose codebook q is q rows late. A row
is the sum of its channels' embeddings; each channel has a head, which is its embedding. Channel 0 has ids of text and
of the first codebook. After its last code it gives `</speech>`, while the others end.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from xycodec.io.config import Config
from xycodec.lm.alignment import Alignment
from xycodec.lm.backbone import CausalBackbone, HuggingFaceConfig
from xycodec.lm.config import CodecIdentity, SamplingConfig, TransformerConfig
from xycodec.lm.measures import NO_LABEL, cross_entropy, labelled, rows_at, top_ten
from xycodec.lm.patterns import one_after_another
from xycodec.lm.sampling import sample
from xycodec.lm.speech import Speaker
from xycodec.lm.text import PAD, SPEECH, STOP, TextConfig, TextFrontEnd
from xycodec.lm.transformer import Cache, Positions, Stack, initialise_gpt, prefix_mask
from xycodec.nn.mean import Mean


class DelayModelConfig(Config):
    """Size and kind of a delay-pattern model."""

    text: TextConfig = TextConfig()
    transformer: TransformerConfig | HuggingFaceConfig = TransformerConfig(d_model=256, layers=6, heads=4, ffn_dim=1024)
    """A transformer of ours, or a causal language model of Transformers (`source`)."""
    attention: Literal["causal", "prefix"] = "causal"
    """Whether the text's rows see only what is before them, or each other. Ours alone."""
    aligned: bool = False
    """Learn how long each symbol of text is spoken, and attend to text where speech has come to. Ours alone."""
    sampling: SamplingConfig = SamplingConfig(temperature=0.8, top_k=50, top_p=0.95)
    """Sampling of the first codebook."""
    sampling_others: SamplingConfig = SamplingConfig(temperature=0.8, top_k=50, top_p=0.95)
    """Sampling of the other codebooks."""

    @model_validator(mode="after")
    def _of_ours(self) -> "DelayModelConfig":
        if isinstance(self.transformer, HuggingFaceConfig) and (self.aligned or self.attention == "prefix"):
            raise ValueError("aligned and attention: prefix are for a transformer of ours: leave them out")
        return self


class DelayConfig(DelayModelConfig):
    """A delay-pattern model: all that it needs to speak, but for its weights."""

    kind: Literal["delay"] = "delay"
    codec: CodecIdentity


# ---- rows ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DelayTask:
    """Items of a batch as rows, padded to the longest.

    Attributes:
        rows: (B, S, n_q) int64, ids of each channel.
        labels: (B, S, n_q) int64, what the row is to predict of the next one: codes, STOP as the number K of codes in
            channel 0; NO_LABEL where nothing is.
        text: (B,) rows of text of each item; speech begins with the row after them.
        lengths: (B,) rows of each item.
        frames: (B,) frames of speech.
        places: (N,) rows of all items that have a label (`measures.labelled`).
        aligned: whether the model learns durations too.
    """

    rows: Tensor
    labels: Tensor
    text: Tensor
    lengths: Tensor
    frames: Tensor
    places: Tensor
    aligned: bool

    def to(self, device: torch.device) -> "DelayTask":
        """Copy the task to a device."""
        tensors = {name: one for name, one in vars(self).items() if isinstance(one, Tensor)}
        moved: dict[str, Any] = {name: one.to(device, non_blocking=True) for name, one in tensors.items()}
        return replace(self, **moved)

    def counts(self) -> dict[str, Tensor]:
        """Elements (1,) of each mean that the model measures."""
        per_channel = (self.labels != NO_LABEL).sum(dim=(0, 1)).float()
        found = {f"book_{q + 1}": count[None] for q, count in enumerate(per_channel)}
        found["top10"] = per_channel[:1]
        return found | ({"duration": (self.frames > 0).sum()[None].float()} if self.aligned else {})


def delay_task(texts: Sequence[Sequence[int]], codes: Sequence[Tensor], config: DelayConfig) -> DelayTask:
    """Rows and labels of texts (ids) and their codes (n_q, L). A clip without text counts nothing."""
    made = [_item(text, one, config) for text, one in zip(texts, codes, strict=True)]
    labels = pad_sequence([labels for _, labels in made], batch_first=True, padding_value=NO_LABEL)
    return DelayTask(
        pad_sequence([rows for rows, _ in made], batch_first=True),
        labels,
        torch.tensor([len(text) for text in texts]),
        torch.tensor([len(rows) for rows, _ in made]),
        torch.tensor([one.shape[1] if text else 0 for text, one in zip(texts, codes, strict=True)]),
        labelled(labels),
        config.aligned,
    )


def _item(text: Sequence[int], codes: Tensor, config: DelayConfig) -> tuple[Tensor, Tensor]:
    about = config.codec
    size, (n_q, frames) = about.codebook_size, codes.shape
    speech = one_after_another(n_q, size).apply(codes)
    if n_q == 1:  # nothing is late, and the end still takes a row
        speech = F.pad(speech, (0, 0, 0, 1), value=size)
    labels = speech.clone()
    labels[labels == size] = NO_LABEL
    labels[frames, 0] = size
    speech[:, 0] += config.text.size
    speech[frames, 0], speech[frames + 1 :, 0] = STOP, PAD
    prefix = torch.full((len(text) + 1, n_q), size)
    prefix[:, 0] = torch.tensor([*text, SPEECH])
    if not text:  # it would learn to say this for nothing
        labels = torch.full_like(labels, NO_LABEL)
    unsaid = torch.full((len(text), n_q), NO_LABEL)
    # The last row predicts nothing.
    return torch.cat([prefix, speech])[:-1], torch.cat([unsaid, labels])


# ---- the network ---------------------------------------------------------------------------------


@dataclass
class DelayState:
    """Memory of a model that speaks: the rows so far, and the frame at which each symbol of text is spoken."""

    text: int
    cache: Any
    rows: int = 0
    centres: Tensor | None = None


class DelayNetwork(nn.Module):
    """Embeddings, transformer and heads of a delay-pattern model."""

    def __init__(self, config: DelayConfig) -> None:
        super().__init__()
        self.config = config
        size, n_q = config.codec.codebook_size, config.codec.n_q
        own = config.transformer
        hidden = own.hidden_size if isinstance(own, HuggingFaceConfig) else own.d_model
        self.first = nn.Embedding(config.text.size + size, hidden)
        self.others = nn.Embedding((n_q - 1) * (size + 1), hidden)
        self.align: Alignment | None = None
        if isinstance(own, HuggingFaceConfig):
            self.backbone: Any = CausalBackbone(own)
            nn.init.normal_(self.first.weight, std=0.02)
            nn.init.normal_(self.others.weight, std=0.02)
            self.backbone.fill_text(self.first, config.text)
        else:
            self.stack = Stack(own)
            self.positions = Positions(hidden, dropout=own.dropout)
            initialise_gpt(self, own.layers)
            if config.aligned:
                self.align = Alignment(hidden, own.layers, own.heads, config.codec.frame_rate)
        # Tied to heads they have to be small; rows are made about as large as positions are.
        self._scale = 1.0 if isinstance(own, HuggingFaceConfig) else math.sqrt(hidden)

    def forward(self, task: DelayTask) -> dict[str, Mean]:
        """Cross-entropy of each codebook, `book_1` ...; top-10 accuracy of the first; error of durations if aligned."""
        hidden, total = self._encode(task)
        chosen, labels = rows_at(hidden, task.places), rows_at(task.labels, task.places)
        means: dict[str, Mean] = {}
        for book, logits in enumerate(self.logits(chosen)):
            means[f"book_{book + 1}"] = cross_entropy(logits, labels[:, book])
            if book == 0:
                means["top10"] = top_ten(logits, labels[:, book])
        if total is not None:
            frames = task.frames.float()
            error = (total / frames.clamp_min(1) - 1).abs() * (frames > 0)
            means["duration"] = Mean(error.sum()[None], (frames > 0).sum()[None].float())
        return means

    def logits(self, hidden: Tensor) -> list[Tensor]:
        """Logits of each channel of hidden rows (..., D): codes, then STOP in the first channel (..., K + 1)."""
        table = self.first.weight
        heads = torch.cat([table[self.config.text.size :], table[STOP : STOP + 1]])
        size, n_q = self.config.codec.codebook_size, self.config.codec.n_q
        others = self.others.weight.view(n_q - 1, size + 1, table.shape[1])[:, :size]
        return [F.linear(hidden, head) for head in (heads, *others)]

    # ---- rows to hidden rows -------------------------------------------------------------------

    def _encode(self, task: DelayTask) -> tuple[Tensor, Tensor | None]:
        """Hidden rows (B, S, D), and frames (B,) as the durations of the texts tell."""
        x = self.embed(task.rows)
        if isinstance(self.config.transformer, HuggingFaceConfig):
            return self.backbone(x, task.lengths), None
        rows = task.rows.shape[1]
        place = torch.arange(rows, device=x.device)
        mask = prefix_mask(rows, self._prefix(task.text), task.lengths)
        late = place - task.text[:, None]
        x = self.positions(x, torch.where(late < 0, place, late), rows)
        if self.align is None:
            return self.stack(x, mask), None
        said = place < task.text[:, None]
        centres, total = self.align.centres(self.first(task.rows[..., 0]), said)
        return self.stack(x, self.align.masks(mask, late, centres, said)), total

    def embed(self, rows: Tensor) -> Tensor:
        """(B, S, n_q) -> (B, S, D): the sum of the channels' embeddings, where a pad adds nothing."""
        size = self.config.codec.codebook_size
        channels = rows.shape[-1]
        x = self.first(rows[..., 0]) * (rows[..., :1] != PAD)
        if channels > 1:
            places = rows[..., 1:] + (size + 1) * torch.arange(channels - 1, device=rows.device)
            x = x + (self.others(places) * (rows[..., 1:] != size)[..., None]).sum(dim=-2)
        out: Tensor = x * self._scale
        return out

    def _prefix(self, text: Tensor) -> Tensor:
        # The row that begins speech is of no text.
        return text if self.config.attention == "prefix" else torch.zeros_like(text)

    # ---- one row after another -----------------------------------------------------------------

    def begin(self, text: int) -> DelayState:
        """The state before the first row; `text` rows of text will come."""
        if isinstance(self.config.transformer, HuggingFaceConfig):
            return DelayState(text, self.backbone.cache())
        return DelayState(text, Cache())

    def step(self, rows: Tensor, state: DelayState) -> Tensor:
        """Hidden row (D,) of the last of `rows` (S, n_q), which follow those that `state` knows.

        The first call has to hold the whole text.
        """
        x = self.embed(rows[None])
        first, state.rows = state.rows, state.rows + len(rows)
        if isinstance(self.config.transformer, HuggingFaceConfig):
            hidden: Tensor = self.backbone.go_on(x, state.cache)
            return hidden[0, -1]
        place = torch.arange(state.rows, device=x.device)
        late = (place - state.text)[None]
        text = torch.tensor([state.text], device=x.device)
        mask: Any = prefix_mask(state.rows, self._prefix(text))[:, :, first:]
        if self.align is not None:
            said = place < text[:, None]
            if state.centres is None:
                state.centres, _ = self.align.centres(self.first(rows[None, :, 0]), said)
            state.centres = F.pad(state.centres, (0, state.rows - state.centres.shape[1]))
            mask = self.align.masks(mask, late, state.centres, said, first)
        x = self.positions(x, torch.where(late < 0, place, late)[:, first:], state.rows)
        out: Tensor = self.stack(x, mask, cache=state.cache)[0, -1]
        return out


# ---- speaking ------------------------------------------------------------------------------------


class DelaySpeaker(Speaker):
    """A trained delay-pattern model that speaks."""

    def __init__(self, network: DelayNetwork) -> None:
        self.network = network.eval()
        self.config = network.config
        self.codec, self.text = self.config.codec, TextFrontEnd(self.config.text)

    def _attempt(
        self,
        symbols: list[int],
        own: list[int],
        prompt: Tensor | None,
        generator: torch.Generator,
        first_codebook_only: bool,
    ) -> tuple[Tensor, bool]:
        about, device = self.codec, self.network.first.weight.device
        n_q, size, offset = about.n_q, about.codebook_size, self.config.text.size
        given = 0 if prompt is None else prompt.shape[1]
        most = given + self.most_frames(len(symbols))
        if isinstance(self.config.transformer, HuggingFaceConfig):
            self.config.transformer.require_room(len(symbols) + 1 + most + n_q)
        # Rows of speech: codes by frame and book, of the prompt and of what is drawn.
        codes = torch.full((n_q, most + 1), size)
        if prompt is not None:
            codes[:, :given] = prompt
        begin = torch.full((len(symbols) + 1, n_q), size)
        begin[:, 0] = torch.tensor([*symbols, SPEECH])
        known = [self._row(codes, row, offset) for row in range(given)]
        state = self.network.begin(len(symbols))
        hidden = self.network.step(torch.cat([begin, *known]).to(device), state)
        end, capped, row = None, False, given
        while True:
            logits = self.network.logits(hidden)
            if end is None:
                # The prompt's later books are still being given: it cannot end among them.
                scores = logits[0].clone()
                if given and row < given + n_q - 1:
                    scores[size] = -torch.inf
                drawn = sample(scores, self.config.sampling, generator, codes[0, :row].tolist())
                capped = drawn != size and row == most
                if drawn == size or capped:
                    end = row
                else:
                    codes[0, row] = drawn
            for book in range(1, n_q):
                frame = row - book
                if given <= frame < (row if end is None else end):
                    past = codes[book, :frame].tolist()
                    codes[book, frame] = sample(logits[book], self.config.sampling_others, generator, past)
            if end is not None and (first_codebook_only or row >= end + n_q - 2):
                break
            hidden = self.network.step(self._row(codes, row, offset, end).to(device), state)
            row += 1
        made = codes[:, given:end]
        return made[:1] if first_codebook_only else made, capped

    def _row(self, codes: Tensor, row: int, offset: int, end: int | None = None) -> Tensor:
        """(1, n_q) row of speech `row`, as `delay_task` makes it."""
        books = torch.arange(len(codes))
        frames = row - books
        inside = (frames >= 0) & (frames < (codes.shape[1] if end is None else end))
        made = torch.where(inside, codes[books, frames.clamp(0, codes.shape[1] - 1)], self.codec.codebook_size)
        made[0] = made[0] + offset if inside[0] else (STOP if row == end else PAD)
        return made[None]
