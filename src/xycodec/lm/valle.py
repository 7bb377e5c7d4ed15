"""VALL-E (Wang et al. 2023) for any codec: one model says the first codebook, another one fills in the others.

Sizes and rules are those of the implementation that X-Codec's paper trained (docs/language_models.md); what it has as
numbers for one codec follows from the codec here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from xycodec.errors import XycodecError
from xycodec.io.config import Config
from xycodec.lm.config import CodecIdentity, SamplingConfig, TransformerConfig
from xycodec.lm.measures import NO_LABEL, cross_entropy, labelled, rows_at, top_ten
from xycodec.lm.sampling import sample
from xycodec.lm.speech import Speaker
from xycodec.lm.text import TextConfig, TextFrontEnd
from xycodec.lm.transformer import Cache, Positions, Stack
from xycodec.nn.mean import Mean

PAPER = TransformerConfig(d_model=1024, layers=12, heads=16, ffn_dim=4096, dropout=0.1, activation="relu")


class ValleArModelConfig(Config):
    """Size and kind of the model of the first codebook."""

    text: TextConfig = TextConfig()
    transformer: TransformerConfig = PAPER
    attention: Literal["prefix", "causal"] = "prefix"
    """Whether the text's rows see each other, as in the source, or only what is before them, as in the paper."""
    begin: bool = True
    """Begin with a symbol, so that the first frame is predicted; without it speech needs a prompt, as in the source."""
    tied: bool = False
    """Use the embedding as head: the paper does, the source does not."""
    sampling: SamplingConfig = SamplingConfig()


class ValleArConfig(ValleArModelConfig):
    """The first stage, but for its weights."""

    kind: Literal["valle_ar"] = "valle_ar"
    codec: CodecIdentity


class ValleNarModelConfig(Config):
    """Size and kind of the model of the other codebooks."""

    text: TextConfig = TextConfig()
    transformer: TransformerConfig = PAPER
    prefix_mode: Literal[0, 1, 2, 4] = 1
    """Prompt that it learns with: 0 none; 1 the beginning of the utterance; 2 a piece of it; 4 of another utterance."""


class ValleNarConfig(ValleNarModelConfig):
    """The second stage, but for its weights."""

    kind: Literal["valle_nar"] = "valle_nar"
    codec: CodecIdentity


class ValleConfig(Config):
    """Both stages; without the second one only the first codebook is spoken."""

    kind: Literal["valle"] = "valle"
    ar: ValleArConfig
    nar: ValleNarConfig | None = None


# ---- the first codebook --------------------------------------------------------------------------


@dataclass(frozen=True)
class ArTask:
    """Texts (B, N), codes (B, L) of the first codebook, their lengths (B,), labels (B, L) and their places."""

    text: Tensor
    text_lengths: Tensor
    rows: Tensor
    row_lengths: Tensor
    labels: Tensor
    places: Tensor

    def to(self, device: torch.device) -> "ArTask":
        """Copy the task to a device."""
        return ArTask(*(part.to(device, non_blocking=True) for part in vars(self).values()))

    def counts(self) -> dict[str, Tensor]:
        """Elements (1,) of each mean that the model measures."""
        count = (self.labels != NO_LABEL).sum()[None].float()
        return {"ar": count, "top10": count}


def ar_task(
    texts: Sequence[Sequence[int]], codes: Sequence[Tensor], config: ValleArConfig, *, legacy_loss: bool = False
) -> ArTask:
    """Rows and labels of texts (ids) and codes (n_q, L), each with its end.

    A clip without text counts nothing. `legacy_loss` lets padding count, whose label is the end, as the source does.
    """
    size = config.codec.codebook_size
    first = torch.tensor([size + 1] if config.begin else [], dtype=torch.int64)
    rows, labels = [], []
    for text, one in zip(texts, codes, strict=True):
        spoken = torch.cat([first, one[0], torch.tensor([size])])
        rows.append(spoken[:-1])
        labels.append(spoken[1:] if text else torch.full_like(spoken[1:], NO_LABEL))
    padded = pad_sequence(labels, batch_first=True, padding_value=size if legacy_loss else NO_LABEL)
    return ArTask(
        pad_sequence([torch.tensor(text, dtype=torch.int64) for text in texts], batch_first=True),
        torch.tensor([len(text) for text in texts]),
        pad_sequence(rows, batch_first=True, padding_value=size),
        torch.tensor([len(one) for one in rows]),
        padded,
        labelled(padded),
    )


class ValleAr(nn.Module):
    """Text, then the first codebook, one code after another."""

    def __init__(self, config: ValleArConfig) -> None:
        super().__init__()
        self.config = config
        size, own = config.codec.codebook_size, config.transformer
        self.text = nn.Embedding(config.text.size, own.d_model)
        self.codes = nn.Embedding(size + 1 + config.begin, own.d_model)
        self.text_positions = Positions(own.d_model, dropout=own.dropout)
        self.code_positions = Positions(own.d_model, dropout=own.dropout)
        self.stack = Stack(own)
        self.head = None if config.tied else nn.Linear(own.d_model, size + 1, bias=False)

    def forward(self, task: ArTask) -> dict[str, Mean]:
        """Cross-entropy `ar` and top-10 accuracy."""
        letters, frames = task.text.shape[1], task.rows.shape[1]
        x = torch.cat([self._text(task.text), self._codes(task.rows)], dim=1)
        hidden = self.stack(x, self._mask(letters, frames, task.text_lengths, task.row_lengths))[:, letters:]
        logits = self.logits(rows_at(hidden, task.places))
        labels = rows_at(task.labels, task.places)
        return {"ar": cross_entropy(logits, labels), "top10": top_ten(logits, labels)}

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., K + 1) of codes, then of the end."""
        if self.head is not None:
            made: Tensor = self.head(hidden)
            return made
        return F.linear(hidden, self.codes.weight[: self.config.codec.codebook_size + 1])

    def begin(self, text: Tensor, rows: Tensor) -> tuple[Tensor, Cache]:
        """Logits (K + 1,) after a text (N,) and its first rows (S,), and the cache to go on with."""
        cache = Cache()
        x = torch.cat([self._text(text[None]), self._codes(rows[None])], dim=1)
        mask = self._mask(len(text), len(rows))
        return self.logits(self.stack(x, mask, cache=cache)[0, -1]), cache

    def step(self, code: int, place: int, cache: Cache) -> Tensor:
        """Logits (K + 1,) after one more code, the row `place` of the codes."""
        row = torch.tensor([[code]], device=self.codes.weight.device)
        return self.logits(self.stack(self._codes(row, place), None, cache=cache)[0, -1])

    def _text(self, text: Tensor) -> Tensor:
        out: Tensor = self.text_positions(
            self.text(text), torch.arange(text.shape[1], device=text.device), text.shape[1]
        )
        return out

    def _codes(self, rows: Tensor, first: int = 0) -> Tensor:
        places = torch.arange(first, first + rows.shape[1], device=rows.device)
        out: Tensor = self.code_positions(self.codes(rows), places, first + rows.shape[1])
        return out

    def _mask(
        self, letters: int, frames: int, text_lengths: Tensor | None = None, row_lengths: Tensor | None = None
    ) -> Tensor:
        """(B or 1, 1, S, S) bool over letters and then frames; what lies behind an item's end is not seen."""
        device = self.codes.weight.device
        place = torch.arange(letters + frames, device=device)
        mask = (place[:, None] >= place)[None]
        if self.config.attention == "prefix":
            mask = mask | (place < letters)
            mask = mask & ~((place[:, None] < letters) & (place >= letters))
        if text_lengths is not None and row_lengths is not None:
            inside = torch.where(place < letters, place < text_lengths[:, None], place - letters < row_lengths[:, None])
            # A row always sees itself: softmax over nothing is NaN.
            mask = (mask & inside[:, None]) | torch.eye(len(place), dtype=torch.bool, device=device)
        return mask[:, None]


# ---- the other codebooks -------------------------------------------------------------------------


@dataclass(frozen=True)
class NarTask:
    """A stage of a batch: texts (B, N), codes (B, n_q, S) of prompt and frames, and labels (B, S) of codebook `stage`.

    Attributes:
        given: (B, S) bool, frames that are known with all codebooks.
        stage: codebook that is predicted, from 1; (1,).
        places: (N,) rows of all items that have a label (`measures.labelled`).
    """

    text: Tensor
    text_lengths: Tensor
    codes: Tensor
    lengths: Tensor
    given: Tensor
    labels: Tensor
    stage: Tensor
    places: Tensor

    def to(self, device: torch.device) -> "NarTask":
        """Copy the task to a device."""
        return NarTask(*(part.to(device, non_blocking=True) for part in vars(self).values()))

    def counts(self) -> dict[str, Tensor]:
        """Elements (1,) of each mean that the model measures."""
        count = (self.labels != NO_LABEL).sum()[None].float()
        return {"nar": count, "top10": count}


def nar_task(
    texts: Sequence[Sequence[int]],
    codes: Sequence[Tensor],
    companions: Sequence[Tensor | None],
    config: ValleNarConfig,
    draw: torch.Generator,
) -> NarTask:
    """A stage and prompts that `draw` decides, of texts (ids) and codes (n_q, L). A clip without text counts nothing.

    `companions`: codes of another utterance of each speaker, for prefix mode 4.
    """
    about, mode = config.codec, config.prefix_mode
    stage = 1 + int(torch.randint(about.n_q - 1, (), generator=draw))
    shortest = min(one.shape[1] for one in codes)
    most = about.frames(3)
    prompt = 0
    if mode == 1:  # in [L / 4, L / 2) of the shortest clip
        low, high = int(0.25 * shortest), int(0.5 * shortest)
        prompt = min(most, low + int(torch.randint(max(1, high - low), (), generator=draw)))
    if mode == 2:
        prompt = min(most, int(0.25 * shortest))
    rows, given, labels = [], [], []
    for text, one, other in zip(texts, codes, companions, strict=True):
        before = torch.zeros(about.n_q, 0, dtype=torch.int64)
        own = one[stage].clone()
        known = torch.zeros(one.shape[1], dtype=torch.bool)
        if mode == 1:
            own[:prompt], known[:prompt] = NO_LABEL, True
        elif mode == 2:
            start = int(torch.randint(one.shape[1] - prompt + 1, (), generator=draw))
            before = one[:, start : start + prompt]
            own[start : start + prompt] = NO_LABEL
        elif mode == 4 and other is not None:
            before = other[:, :most]
        ahead = before.shape[1]
        rows.append(torch.cat([before, one], dim=1).T)
        given.append(torch.cat([torch.ones(ahead, dtype=torch.bool), known]))
        own = own if text else torch.full_like(own, NO_LABEL)
        labels.append(torch.cat([torch.full((ahead,), NO_LABEL), own]))
    padded = pad_sequence(labels, batch_first=True, padding_value=NO_LABEL)
    return NarTask(
        pad_sequence([torch.tensor(text, dtype=torch.int64) for text in texts], batch_first=True),
        torch.tensor([len(text) for text in texts]),
        pad_sequence(rows, batch_first=True).transpose(1, 2),
        torch.tensor([len(one) for one in rows]),
        pad_sequence(given, batch_first=True),
        padded,
        torch.tensor([stage]),
        labelled(padded),
    )


class ValleNar(nn.Module):
    """All frames of a codebook at once, given those before it; the norms know which codebook it is."""

    def __init__(self, config: ValleNarConfig) -> None:
        super().__init__()
        self.config = config
        own, about = config.transformer, config.codec
        if about.n_q < 2:
            raise XycodecError("codes of one codebook have no second stage: train the first one alone")
        self.text = nn.Embedding(config.text.size, own.d_model)
        # Of every codebook, then the head of the last stage. The head of another stage is the embedding of the codebook
        # that follows the one it predicts: of the last codebook there is none.
        self.tables = nn.Parameter(torch.randn(about.n_q + 1, about.codebook_size, own.d_model))
        self.stages = nn.Embedding(about.n_q - 1, own.d_model)
        self.text_positions = Positions(own.d_model, learned=False)
        self.code_positions = Positions(own.d_model, dropout=own.dropout, learned=False)
        self.stack = Stack(own, adaptive=True)
        nn.init.kaiming_uniform_(self.tables.data[-1], a=5**0.5)

    def forward(self, task: NarTask) -> dict[str, Mean]:
        """Cross-entropy `nar` and top-10 accuracy, over the frames that are to be predicted."""
        hidden = self._hidden(task.text, task.codes, task.given, task.stage, task.text_lengths, task.lengths)
        logits = self._logits(rows_at(hidden, task.places), task.stage)
        labels = rows_at(task.labels, task.places)
        return {"nar": cross_entropy(logits, labels), "top10": top_ten(logits, labels)}

    def fill(self, text: Tensor, codes: Tensor, given: Tensor, frames: int) -> Tensor:
        """Codes (n_q, `frames`) of the last frames: the likeliest ones, codebook by codebook.

        `codes` (n_q, S) hold the first codebook of all frames, and the others where `given` (S,) is true.
        """
        codes = codes.clone()
        for book in range(1, len(codes)):
            stage = torch.tensor([book], device=codes.device)
            hidden = self._hidden(text[None], codes[None], given[None], stage)[0, -frames:]
            codes[book, -frames:] = self._logits(hidden, stage).argmax(dim=-1)
        return codes[:, -frames:]

    def _hidden(
        self,
        text: Tensor,
        codes: Tensor,
        given: Tensor,
        stage: Tensor,
        text_lengths: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Hidden rows (B, S, D) of the codes."""
        letters, frames = text.shape[1], codes.shape[2]
        places = [torch.arange(count, device=text.device) for count in (letters, frames)]
        books = torch.arange(codes.shape[1], device=codes.device)
        heard = given[:, None] | (books[:, None] < stage)
        embedded = self.tables[books[:, None], codes] * heard[..., None]
        x = torch.cat(
            [
                self.text_positions(self.text(text), places[0], letters),
                self.code_positions(embedded.sum(dim=1), places[1], frames),
            ],
            dim=1,
        )
        mask = None
        if text_lengths is not None and lengths is not None:
            inside = [place < count[:, None] for place, count in zip(places, (text_lengths, lengths), strict=True)]
            mask = torch.cat(inside, dim=1)[:, None] | torch.eye(letters + frames, dtype=torch.bool, device=x.device)
            mask = mask[:, None]
        out: Tensor = self.stack(x, mask, self.stages(stage - 1)[0])[:, letters:]
        return out

    def _logits(self, hidden: Tensor, stage: Tensor) -> Tensor:
        return F.linear(hidden, self.tables[stage + 1][0])


# ---- speaking ------------------------------------------------------------------------------------


class ValleSpeaker(Speaker):
    """A trained VALL-E that speaks; without its second stage, the first codebook alone."""

    def __init__(self, ar: ValleAr, nar: ValleNar | None = None) -> None:
        self.ar, self.nar = ar.eval(), None if nar is None else nar.eval()
        self.codec, self.text = ar.config.codec, TextFrontEnd(ar.config.text)
        if nar is not None and (nar.config.codec != self.codec or nar.config.text != ar.config.text):
            raise XycodecError("the two stages are of other codecs or tables of symbols: train them on one store")

    def _attempt(
        self,
        symbols: list[int],
        own: list[int],
        prompt: Tensor | None,
        generator: torch.Generator,
        first_codebook_only: bool,
    ) -> tuple[Tensor, bool]:
        if self.nar is None and self.codec.n_q > 1 and not first_codebook_only:
            raise XycodecError(
                "this model has no second stage: join one (xycodec export --nar), or ask for one codebook"
            )
        device = self.ar.codes.weight.device
        size = self.codec.codebook_size
        first = torch.tensor([size + 1] if self.ar.config.begin else [], dtype=torch.int64)
        given = first if prompt is None else torch.cat([first, prompt[0]])
        if not len(given):
            raise XycodecError("this model was trained without a begin symbol: give a prompt to go on with")
        logits, cache = self.ar.begin(torch.tensor(symbols, device=device), given.to(device))
        made: list[int] = []
        most, capped = self.most_frames(len(symbols)), False
        past = [] if prompt is None else prompt[0].tolist()
        while True:
            drawn = sample(logits, self.ar.config.sampling, generator, [*past, *made])
            if drawn == size or int(logits.argmax()) == size:
                break
            if capped := len(made) == most:
                break
            made.append(drawn)
            logits = self.ar.step(drawn, len(given) + len(made) - 1, cache)
        book = torch.tensor([made], dtype=torch.int64)
        if first_codebook_only or not made or self.nar is None:
            return book, capped
        return self._fill(self.nar, symbols, own, prompt, book).cpu(), capped

    def _fill(self, nar: ValleNar, symbols: list[int], own: list[int], prompt: Tensor | None, book: Tensor) -> Tensor:
        frames, n_q = book.shape[1], self.codec.n_q
        ahead = torch.zeros(n_q, 0, dtype=torch.int64) if prompt is None else prompt
        codes = torch.cat([ahead, F.pad(book, (0, 0, 0, n_q - 1))], dim=1)
        given = torch.zeros(codes.shape[1], dtype=torch.bool)
        # Without a prompt in training, frames are never known with all codebooks.
        given[: ahead.shape[1]] = nar.config.prefix_mode != 0
        # A piece or another utterance had no text of its own in training.
        text = own if nar.config.prefix_mode in (2, 4) else symbols
        device = nar.tables.device
        return nar.fill(torch.tensor(text, device=device), codes.to(device), given.to(device), frames)
