"""The audio of a listed clip, in blocks."""

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain
from math import ceil
from typing import TYPE_CHECKING, Any, BinaryIO

from xycodec.io.audio import Samples, Tell, stream_audio
from xycodec.io.reader import resampled
from xycodec.tokenize.inputs.item import Item, open_binary

if TYPE_CHECKING:
    from lhotse.cut import Cut

BLOCK_S = 60.0  # s of audio of a cut that are decoded at a time


def blocks_of(item: Item, rate: int, tell: Tell) -> Iterator[Samples]:
    """Yield the audio of an item as consecutive mono float32 blocks at `rate` (Hz), as `stream_audio` does.

    `tell` hears of what is odd about it. Raises AudioError if it cannot be read.
    """
    place = item.place
    if place["kind"] == "cut":
        from lhotse.serialization import deserialize_item

        yield from cut_blocks(deserialize_item(dict(place["cut"])), rate, place.get("lowest", 1))
        return
    with ExitStack() as stack:
        source = place["path"] if _is_local(place) else stack.enter_context(_opened(place))
        yield from stream_audio(source, rate, tell=lambda remark: tell(remark.partition(": ")[2]))


def _is_local(place: Any) -> bool:
    return place["kind"] == "file" and "://" not in place["path"]


def _opened(place: Any) -> BinaryIO:
    kind = place["kind"]
    if kind == "tar":
        from xycodec.data.tars import MemberFile

        return MemberFile(open_binary(place["path"]), place["offset"], place["size"])  # type: ignore[return-value]
    if kind == "parquet":
        from xycodec.tokenize.inputs.tables import open_parquet

        return open_parquet(place["path"], place["column"], place["group"], place["row"])
    if kind == "dataset":
        from xycodec.tokenize.inputs.tables import open_row

        return open_row(place["path"], place["row"])
    return open_binary(place["path"])


def cut_blocks(cut: "Cut", rate: int, lowest: int = 1) -> Iterator[Samples]:
    """Yield a cut's audio, mono, at `rate` (Hz).

    Raises AudioError if it cannot be read, holds a NaN or was recorded below the `lowest` rate (Hz).
    """
    blocks = _decoded(cut, lowest)
    first, found = next(blocks)
    whole = chain([first], (samples for samples, _ in blocks))
    yield from whole if found == rate else resampled(whole, found, rate)


def _decoded(cut: "Cut", lowest: int) -> Iterator[tuple[Samples, int]]:
    from xycodec.data.clip import require_sound
    from xycodec.data.decode import decode

    for number in range(max(1, ceil(cut.duration / BLOCK_S))):
        start = number * BLOCK_S
        samples, rate = decode(cut, start, min(BLOCK_S, cut.duration - start))
        # A lossy file may end a little before its manifest says.
        if number == 0 or len(samples):
            require_sound(cut, samples, rate, lowest)
            yield samples, rate
