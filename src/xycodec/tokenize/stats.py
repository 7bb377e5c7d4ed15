"""Statistics of a store's codes: how often each is used, and how predictable the next one is."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xycodec.errors import StoreError, reason_of
from xycodec.io.files import atomic_path
from xycodec.io.tokens.read import TokenStore

_BPE_TOKENS, _BPE_MERGES = 1_000_000, 4096


@dataclass(frozen=True)
class BookStats:
    """One codebook: share of codes that occur, and bits a code.

    Attributes:
        usage: share of the codebook's codes that occur.
        entropy: bits, of codes by themselves.
        given_previous: bits, given the same codebook's code of the frame before.
        given_lower: bits, given the code of the codebook below in the same frame; None for the first.
        repeats: share of codes that are those of the frame before.
    """

    usage: float
    entropy: float
    given_previous: float
    given_lower: float | None
    repeats: float


@dataclass(frozen=True)
class TokenStats:
    """Statistics of the clips that were looked at.

    Entropies are those of the counts themselves, which a small corpus makes too low; `ngram_bitrate` does not: its
    counts are of every other clip, and it is measured on the others.

    Attributes:
        clips, frames: that were looked at.
        books: one for each codebook.
        bitrate: bits a second of plain codes.
        entropy_bitrate: bits a second at the codebooks' entropies.
        ngram_bitrate: bits a second that a bigram of each codebook costs on clips that it was not counted on.
        bpe_ratio: flattened codes for each token that byte-pair encoding makes of them; None without `tokenizers`.
        counts: (n_q, codebook_size) how often each code occurs.
    """

    clips: int
    frames: int
    books: tuple[BookStats, ...]
    bitrate: float
    entropy_bitrate: float
    ngram_bitrate: float
    bpe_ratio: float | None
    counts: NDArray[np.int64]


def token_stats(store: TokenStore, clips: int = 10_000) -> TokenStats:
    """Look at random clips of a store, the same each time, or at all if it has no more. Raises StoreError without."""
    numbers = np.sort(np.random.default_rng(0).choice(len(store), min(clips, len(store)), replace=False)).tolist()
    codes = [store.codes(number).astype(np.int64) for number in numbers]
    if not sum(one.shape[1] for one in codes):
        raise StoreError(f"{store.folder}: holds no frames to look at")
    about = store.description
    size, whole = about.codebook_size, np.concatenate(codes, axis=1)
    first = np.zeros(whole.shape[1], bool)
    first[np.cumsum([0, *(one.shape[1] for one in codes[:-1])]) % whole.shape[1]] = True
    counts = np.stack([np.bincount(book, minlength=size) for book in whole])
    books = tuple(_book(whole, book, first, counts[book]) for book in range(about.n_q))
    odd = np.repeat(np.arange(len(codes)) % 2 == 1, [one.shape[1] for one in codes])
    ngram = sum(_bigram_bits(book, first, odd, size) for book in whole)
    return TokenStats(
        clips=len(codes),
        frames=whole.shape[1],
        books=books,
        bitrate=about.frame_rate * about.n_q * float(np.log2(size)),
        entropy_bitrate=about.frame_rate * sum(book.entropy for book in books),
        ngram_bitrate=about.frame_rate * ngram,
        bpe_ratio=_bpe_ratio(codes, size),
        counts=counts,
    )


def _book(codes: NDArray[np.int64], book: int, first: NDArray[np.bool_], counts: NDArray[np.int64]) -> BookStats:
    own = codes[book]
    follows = np.flatnonzero(~first)
    return BookStats(
        usage=float((counts > 0).mean()),
        entropy=entropy(own),
        given_previous=_conditional(own[follows - 1], own[follows]),
        given_lower=_conditional(codes[book - 1], own) if book else None,
        repeats=float((own[follows - 1] == own[follows]).mean()) if len(follows) else 0.0,
    )


def entropy(values: NDArray[np.int64]) -> float:
    """Bits of a value, by how often each occurs."""
    if not len(values):
        return 0.0
    shares = np.unique(values, return_counts=True)[1] / len(values)
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def _conditional(known: NDArray[np.int64], values: NDArray[np.int64]) -> float:
    """Bits of a value whose partner is known."""
    return entropy(_pairs(known, values)) - entropy(known)


def _pairs(one: NDArray[np.int64], two: NDArray[np.int64]) -> NDArray[np.int64]:
    return one * (int(two.max(initial=0)) + 1) + two


def _bigram_bits(codes: NDArray[np.int64], first: NDArray[np.bool_], odd: NDArray[np.bool_], size: int) -> float:
    """Bits a code of the odd clips, by a bigram of the even ones (Witten and Bell's interpolation, 1991).

    The first code of a clip is given the code before it in the store, which tells nothing.
    """
    if not odd.any():
        return float(np.log2(size))
    before = np.concatenate([codes[:1], codes[:-1]])
    even = ~odd & ~first
    single = (np.bincount(codes[~odd], minlength=size) + 1) / ((~odd).sum() + size)
    keys, counts = np.unique(before[even] * size + codes[even], return_counts=True)
    kinds = np.bincount(keys // size, minlength=size)
    totals = np.bincount(before[even], minlength=size)
    asked = before[odd] * size + codes[odd]
    place = np.searchsorted(keys, asked).clip(max=max(0, len(keys) - 1))
    found = np.where(keys[place] == asked, counts[place], 0) if len(keys) else np.zeros(len(asked))
    own, types, total = single[codes[odd]], kinds[before[odd]], totals[before[odd]]
    likely = np.where(total > 0, (found + types * own) / np.maximum(1, total + types), own)
    return float(-np.log2(likely).mean())


def _bpe_ratio(codes: Sequence[NDArray[np.int64]], size: int) -> float | None:
    """Codes for each token, of clips that byte-pair encoding did not learn from."""
    if find_spec("tokenizers") is None or len(codes) < 2 or len(codes[0]) * size > 100_000:
        return None
    from tokenizers import Tokenizer, models, trainers

    def text(one: NDArray[np.int64]) -> str:
        ids = (one + np.arange(len(one))[:, None] * size).T.ravel()
        return "".join(map(chr, (ids + 0x10000).tolist()))  # letters beyond those with a meaning of their own

    held, learned = 0, list[str]()
    for one in codes[::2]:
        learned.append(text(one))
        held += one.size
        if held > _BPE_TOKENS:
            break
    tokenizer = Tokenizer(models.BPE())
    alphabet = [chr(0x10000 + number) for number in range(len(codes[0]) * size)]
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + _BPE_MERGES, initial_alphabet=alphabet, show_progress=False, max_token_length=32
    )
    tokenizer.train_from_iterator(learned, trainer)
    tested = [text(one) for one in codes[1::2][: len(learned)]]
    tokens = sum(len(one.ids) for one in tokenizer.encode_batch(tested))
    return sum(map(len, tested)) / max(1, tokens)


def draw_stats(stats: TokenStats, path: Path) -> None:
    """Draw how often codes are used, most used first, and each codebook's bits, as a picture. Raises StoreError."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for book, counts in enumerate(stats.counts):
        left.plot(np.sort(counts)[::-1] / max(1, counts.sum()), label=f"codebook {book + 1}")
    left.set(xlabel="codes, most used first", ylabel="share", yscale="log")
    left.legend(fontsize="small")
    places = np.arange(len(stats.books))
    right.bar(places - 0.3, [book.entropy for book in stats.books], 0.3, label="entropy")
    right.bar(places, [book.given_previous for book in stats.books], 0.3, label="given the frame before")
    lower = [book.given_lower if book.given_lower is not None else 0.0 for book in stats.books]
    right.bar(places + 0.3, lower, 0.3, label="given the codebook below")
    right.set(xlabel="codebook", ylabel="bits a code", xticks=places, xticklabels=[str(place + 1) for place in places])
    right.legend(fontsize="small")
    with atomic_path(path, StoreError) as scratch:
        try:
            figure.savefig(scratch)
        except ValueError as error:
            raise StoreError(f"{path}: no picture ({reason_of(error)}): name a .png, .svg or .pdf") from None
