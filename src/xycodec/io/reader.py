"""One reader of audio for everything here: any file as mono blocks at any rate, in memory that does not grow with it.

A file is a chain of recordings. Most hold one; joined files hold several, whose rates, channels and encoder delays may
differ, and tags or junk may lie before, between and after them.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import groupby
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from xycodec.errors import AudioError
from xycodec.io.decoders import Damaged, Decoder, Samples, Unreadable, Window
from xycodec.io.parts import first_part, split

_CHUNK = 1 << 16  # samples resampled at a time, whatever the decoder's frames
_CONVERT = "convert it to wav or flac first, e.g. ffmpeg -i INPUT out.wav"

Mix = Callable[[Samples], Samples]
"""A block (samples, channels) to mono (samples,)."""


class AudioFile:
    """An open recording, or several joined.

    Attributes:
        name: what messages call it.
        sample_rate: of its beginning, Hz.
        channels: of its beginning.
        container, coding: names, as the library that decodes it gives them.
        is_float: whether samples are stored as floats.
        remarks: one line on each thing that was left out; complete once all was read.

    Raises:
        AudioError: the bytes are no audio that can be read.
    """

    def __init__(self, window: Window, name: str, whole: bool = True) -> None:
        self.name = name
        self.remarks: list[str] = []
        self._parts, self._goes_on = split(window) if whole else ([first_part(window)], False)
        self._open = self._first_decoder()
        self.sample_rate, self.channels = self._open.rate, self._open.channels
        self.container, self.coding, self.is_float = self._open.container, self._open.coding, self._open.is_float
        self._used = False

    def close(self) -> None:
        """Close the decoder's handles; the file stays open."""
        self._open.close()

    def length(self) -> int:
        """Samples per channel at `sample_rate`; decodes where no header tells reliably. Raises as `blocks` does."""
        if len(self._parts) == 1 and not self._goes_on and (known := self._decoder(0).length()) is not None:
            return known
        return sum(map(len, self.blocks(self.sample_rate)))

    def blocks(self, sample_rate: int, mix: Mix | None = None) -> Iterator[Samples]:
        """Yield all of it at `sample_rate` (Hz) as 1-D float32 blocks.

        Args:
            sample_rate: of the result; stretches of another rate are resampled.
            mix: makes mono of a block; the mean over channels by default.

        Raises:
            AudioError: it is damaged, breaks off before the length in its header, goes on after it, or holds a NaN
                or an infinity.
        """
        for (_, rate), pieces in groupby(self._mono(mix or mean), key=lambda piece: piece[0]):
            # Ten seconds at most: resampling makes 160 samples of each one of a file that claims 100 Hz.
            blocks = regrouped((block for _, block in pieces), min(_CHUNK, 10 * rate))
            yield from blocks if rate == sample_rate else resampled(blocks, rate, sample_rate)

    def excerpt(self, first: int, count: int, mix: Mix | None = None) -> Samples:
        """Samples `first` to `first + count` at `sample_rate`, fewer at the end; the same as `blocks` has there.

        Raises:
            AudioError: as `blocks`, for what had to be decoded.
        """
        if len(self._parts) == 1 and (found := self._sought(first, count, mix or mean)) is not None:
            return found
        place, kept = 0, [np.zeros(0, np.float32)]
        for block in self.blocks(self.sample_rate, mix):
            kept.append(_overlap(block, place, first, count))
            place += len(block)
            if place >= first + count:
                break
        return np.concatenate(kept)

    def _sought(self, first: int, count: int, mix: Mix) -> Samples | None:
        """`excerpt` by seeking; None if the rate changes inside or the place was not found."""
        decoder, end, kept = self._decoder(0), 0, [np.zeros(0, np.float32)]
        try:
            for place, rate, block in decoder.blocks(first):
                if rate != self.sample_rate or not 0 <= place <= max(first, end):
                    return None
                end = place + len(block)
                kept.append(mix(_overlap(block, place, first, count)))
                if end >= first + count:
                    break
        except Damaged as error:
            raise AudioError(f"{self.name} is {error}: get a whole copy") from error
        if first and not end:
            return None
        self.remarks += decoder.remarks()
        return np.concatenate(kept)

    def _first_decoder(self) -> Decoder:
        """Drop what lies before the first part that holds audio."""
        junk, reason = 0, ""
        while self._parts:
            try:
                decoder = self._parts[0].decoder()
            except Unreadable as error:
                reason = reason or str(error)
                junk += len(self._parts.pop(0).window)
            else:
                if junk:
                    self.remarks.append(f"its first {junk:,} bytes are no audio and were left out")
                return decoder
        raise AudioError(f"{self.name} is not audio that can be read ({reason}): if it is raw or damaged, {_CONVERT}")

    def _decoder(self, number: int) -> Decoder:
        """A decoder of a part from its beginning."""
        if number == 0 and not self._used:
            self._used = True
            return self._open
        if number == 0:
            self._open.close()
        made = self._parts[number].decoder()
        if number == 0:
            self._open = made
        return made

    def _mono(self, mix: Mix) -> Iterator[tuple[tuple[int, int], Samples]]:
        """Yield ((part, rate), block) of every part in turn."""
        done = 0.0
        for number, part in enumerate(self._parts):
            try:
                decoder = self._decoder(number)
            except Unreadable:
                self.remarks.append(f"{len(part.window):,} bytes after {done:.2f} s are no audio and were left out")
                continue
            with closing(decoder):
                try:
                    for _, rate, block in decoder.blocks():
                        require_finite(block, done, rate, self.name)
                        yield (number, rate), mix(block)
                        done += len(block) / rate
                except Damaged as error:
                    raise AudioError(f"{self.name} is {error}: get a whole copy") from error
                self.remarks += decoder.remarks()
            if failure := part.window.failure:
                raise AudioError(f"{self.name} cannot be read ({failure.strerror}): check the disk") from failure
        if self._goes_on:
            raise AudioError(f"{self.name} goes on after its first {done:.2f} s: {_CONVERT}")


def mean(block: Samples) -> Samples:
    """The mean over the channels of a block (samples, channels)."""
    if block.shape[1] == 1:
        return block[:, 0]
    # In float64, because the sum of float32 samples near the largest number overflows.
    averaged: Samples = block.mean(axis=1, dtype=np.float64).astype(np.float32)
    return averaged


def resampled(blocks: Iterable[Samples], rate: int, target: int) -> Iterator[Samples]:
    """Consecutive 1-D float32 `blocks` of one clip at `rate` (Hz) as blocks at `target`, the same however they are cut.

    A clip that would round to nothing keeps one sample.
    """
    stream = soxr.ResampleStream(rate, target, 1, dtype="float32", quality="HQ")
    made, last = 0, np.zeros(0, np.float32)
    for last in blocks:
        out = stream.resample_chunk(last)
        made += len(out)
        yield out
    out = stream.resample_chunk(np.zeros(0, np.float32), last=True)
    yield out if made + len(out) else last[:1]


def regrouped(blocks: Iterable[NDArray[Any]], size: int) -> Iterator[NDArray[Any]]:
    """Cut the concatenation of 1-D `blocks` into blocks of `size`, the last one shorter."""
    parts: list[NDArray[Any]] = []
    missing = size
    for block in blocks:
        start = 0
        while start < len(block):
            part = block[start : start + missing].copy()  # the caller may reuse its array
            parts.append(part)
            start += len(part)
            missing -= len(part)
            if missing == 0:
                yield np.concatenate(parts)
                parts, missing = [], size
    if parts:
        yield np.concatenate(parts)


def require_finite(block: NDArray[Any], start: float, rate: int, name: str) -> None:
    """Raise AudioError at the first NaN or infinity in `block`, which is `start` seconds into the audio."""
    finite = np.isfinite(block)
    if not finite.all():
        seconds = start + int(np.argwhere(~finite)[0, 0]) / rate
        raise AudioError(f"{name} holds a NaN or an infinity at {seconds:.4f} s: repair it")


def _overlap(block: Samples, place: int, first: int, count: int) -> Samples:
    """Cut from `block`, which begins at sample `place`, what lies in `first` to `first + count`."""
    return block[max(0, first - place) : max(0, first + count - place)]
