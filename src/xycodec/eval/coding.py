"""The coding step of an evaluation: every clip is encoded and decoded once, into files."""

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
from numpy.typing import NDArray

from xycodec.errors import described
from xycodec.eval.foreign import is_foreign
from xycodec.eval.results import CodebookUse
from xycodec.io.audio import Samples, ignore, read_audio, write_audio
from xycodec.io.journal import Journal
from xycodec.io.rate import SPEECH_RATE
from xycodec.io.tokens.grow import GrowingStore
from xycodec.models.base import Codec
from xycodec.models.longform import decode_long, encode_long
from xycodec.nn.quantize import codebook_perplexity, codebook_usage
from xycodec.tokenize.shard import Encoding

AUDIO, CODES, DECODED = "audio", "codes", "decoded.jsonl"


@dataclass(frozen=True)
class CodecSpec:
    """A codec to evaluate: its name for `open_codec`, after an @ the number of codebooks, after a + the search's width.

    `xy-mini@4+16` are the first four codebooks of xy-mini, found by a search of width 16.
    """

    text: str

    @property
    def model(self) -> str:
        """The name alone."""
        return self._split()[0]

    @property
    def n_q(self) -> int | None:
        """Codebooks to use; None: all."""
        return self._split()[1]

    @property
    def search(self) -> int:
        """Width of the search over codes; 1 is greedy."""
        return self._split()[2]

    @property
    def folder(self) -> str:
        """Name of the codec's folder: its own where that is short and plain, else with a digest."""
        plain = "".join(letter if letter.isalnum() or letter in "-_.@+" else "-" for letter in self.text).strip("-.")
        if plain == self.text and len(plain) <= 64:
            return plain
        return f"{plain[-48:].strip('-.')}-{hashlib.blake2b(self.text.encode(), digest_size=3).hexdigest()}"

    def _split(self) -> tuple[str, int | None, int]:
        if is_foreign(self.text):
            return self.text, None, 1
        model, search = _counted(self.text, "+")
        model, n_q = _counted(model, "@")
        return model, n_q, 1 if search is None else search


def _counted(text: str, mark: str) -> tuple[str, int | None]:
    """`name@4` -> `name` and 4; without a number after the mark, the text and None."""
    stem, found, count = text.rpartition(mark)
    return (stem, int(count)) if found and count.isdecimal() else (text, None)


def coded_clips(clips: Mapping[str, str], folder: Path) -> dict[str, dict[str, Any]]:
    """Rows of the clips coded in a folder so far: bits and seconds, or the error.

    `clips` are names and digests of audio; a row of other audio does not count.
    """
    decoded = folder / DECODED  # of a codec whose codes are its own business
    newest = {row["clip"]: row for row in Journal(decoded).rows()} if decoded.exists() else None
    rows = GrowingStore(folder / CODES).newest if newest is None else newest
    return {clip: rows[clip] for clip, audio in clips.items() if clip in rows and rows[clip].get("of") == audio}


def uncoded(clips: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The clips without codes in a folder; one that failed is tried once more."""
    coded = coded_clips(clips, folder)
    return {clip: audio for clip, audio in clips.items() if "bits" not in coded.get(clip, {})}


def code_clips(
    codec: Codec,
    n_q: int | None,
    clips: Mapping[str, str],
    originals: Path,
    folder: Path,
    done: Callable[[], None],
    *,
    search: int = 1,
    overlap_s: float | None = None,
) -> None:
    """Encode and decode each `originals/CLIP.flac` into `folder`: its audio as a file, its codes in a `GrowingStore`.

    `clips` are names and digests of audio, which rows hold as `of`. Each is computed and timed alone. A clip that the
    codec fails on has a row that says why. Rows are written last, so that what a kill interrupts is done again.
    `overlap_s` is how much windows of longer clips share (None: a third of one).
    """
    encoding = Encoding(codec, n_q, overlap_s=overlap_s, search=search)
    with GrowingStore(folder / CODES, encoding.describe()) as store:
        for clip, audio in clips.items():
            made = _coded(encoding, clip, originals, folder)
            if isinstance(made, str):
                store.fail(clip, "", made, of=audio)
            else:
                codes, samples, about = made
                store.add(clip, codes, samples, {"of": audio, **about})
            done()


def _coded(
    encoding: Encoding, clip: str, originals: Path, folder: Path
) -> tuple[NDArray[np.int64], int, dict[str, Any]] | str:
    """Codes of a clip, its samples, and what they cost; or why there are none."""
    codec, overlap_s = encoding.codec, encoding.overlap_s
    audio = read_audio(originals / f"{clip}.flac", codec.input_sample_rate, tell=ignore)
    try:
        start = time.perf_counter()
        codes = encode_long(codec, audio, overlap_s, n_q=encoding.n_q, search=encoding.search)
        middle = time.perf_counter()
        decoded = decode_long(codec, codes, overlap_s, len(audio)).numpy()
        end = time.perf_counter()
    except Exception as error:  # whatever somebody's codec raises: the other clips are still worth having
        return described(error)
    if not np.isfinite(decoded).all():
        return "its audio holds a NaN or an infinity"
    target = folder / AUDIO / f"{clip}.flac"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_audio(target, _at_rate(decoded, codec.output_sample_rate), SPEECH_RATE)
    times = {"encode_s": middle - start, "decode_s": end - middle}
    return codes.numpy(), len(audio), {"bits": codec.payload_bits(codes), **times}


def _at_rate(audio: Samples, rate: int) -> Samples:
    return audio if rate == SPEECH_RATE else np.ascontiguousarray(soxr.resample(audio, rate, SPEECH_RATE))


# ---- what the codes say ------------------------------------------------------------------------


def codebook_counts(folder: Path, clips: Sequence[str], codebook_size: int) -> NDArray[np.int64]:
    """(n_q, codebook_size): how often each code occurs in the clips. (0, codebook_size) without clips."""
    counts = None
    store = GrowingStore(folder / CODES)
    for clip in clips:
        codes = store.codes(clip)
        of_clip = np.stack([np.bincount(layer, minlength=codebook_size) for layer in codes])
        counts = of_clip if counts is None else counts + of_clip
    return np.zeros((0, codebook_size), np.int64) if counts is None else counts


def codebook_use(counts: NDArray[np.int64]) -> tuple[CodebookUse, ...]:
    """Share of codes that occur and entropy of each codebook."""
    if not counts.size or not counts.sum():
        return ()
    table = torch.from_numpy(counts)
    entropy = codebook_perplexity(table).log2()
    return tuple(CodebookUse(*pair) for pair in zip(codebook_usage(table).tolist(), entropy.tolist(), strict=True))


def adaptive_bits(counts: NDArray[np.int64]) -> float:
    """Bits that an adaptive entropy coder spends on codes of these counts, each codebook by itself.

    It knows nothing beforehand and learns how often each code comes while it codes (Krichevsky and Trofimov 1981:
    half a count of each to begin with), so that what learning costs is in the number. The order of the codes does
    not matter to it.
    """
    size = counts.shape[1]
    lgamma = torch.lgamma(torch.from_numpy(counts).double() + 0.5).sum(dim=1)
    totals = counts.sum(axis=1)
    nats = 0.0
    for total, layer in zip(totals.tolist(), lgamma.tolist(), strict=True):
        nats -= math.lgamma(size / 2) - math.lgamma(total + size / 2) + layer - size * math.lgamma(0.5)
    return nats / math.log(2)
