"""Search for the recordings in a file: joined files hold several, with tags or junk before, between and after them.

A container is believed about what it holds, but not that nothing follows: what does is searched for another beginning.
"""

import re
from collections.abc import Hashable
from contextlib import closing
from typing import NamedTuple

from xycodec.io.decoders import CodedDecoder, Decoder, SndfileDecoder, Unreadable, Window

_SCAN = 1 << 20  # bytes searched at a time
_REACH = 64  # bytes that tell a beginning, at most
_LARGEST_FRAME = 1441  # bytes of MP3
_TAGS = (b"ID3", b"TAG", b"APETAGEX")  # what programs hang on to files of any kind


class _Beginning(NamedTuple):
    """Signature of a recording's beginning: bytes that are quick to find, and what must surround them."""

    anchor: bytes
    pattern: re.Pattern[bytes]


def _beginnings(*patterns: tuple[bytes, bytes]) -> tuple[_Beginning, ...]:
    return tuple(_Beginning(anchor, re.compile(pattern, re.DOTALL)) for anchor, pattern in patterns)


# The frame of an MP3 that says how long it is and how many samples are the encoder's: its side information is zeros.
_INFO = rb"\xff[\xe2-\xff]..(?:..)?\0{9}(?:\0{8})?(?:\0{15})?"
_ID3 = rb"ID3[\x02-\x04]\0.[\0-\x7f]{4}"
_PCM_KINDS = {
    "wav": _beginnings((b"WAVE", rb"(?:RIFF|RIFX|RF64|BW64)....WAVE")),
    "aiff": _beginnings((b"FORM", rb"FORM....AIF[FC]")),
    "au": _beginnings((b".snd", rb"\.snd\0\0......\0\0\0[\x01-\x1b]"), (b"dns.", rb"dns\...\0\0....[\x01-\x1b]\0\0\0")),
    "caf": _beginnings((b"caff", rb"caff\0\x01\0\0desc")),
    "w64": _beginnings((b"riff\x2e\x91\xcf\x11", rb"riff\x2e\x91\xcf\x11")),
}
_CODED_KINDS = {
    "flac": _beginnings((b"fLaC", rb"fLaC[\0\x80]\0\0\x22")),
    "ogg": _beginnings((b"OggS\0\x02", rb"OggS\0\x02")),
    "mov": _beginnings((b"ftyp", rb"\0\0[\0-\x02].ftyp")),
    "matroska": _beginnings((b"\x1aE\xdf\xa3", rb"\x1aE\xdf\xa3.{1,12}?\x42\x86")),
    "mp3": _beginnings((b"Info", _INFO + b"Info"), (b"Xing", _INFO + b"Xing"), (b"ID3", _ID3)),
}
_CODED_KINDS["aac"] = _CODED_KINDS["mp3"]
_ID3_TAG = re.compile(_ID3, re.DOTALL)
_SYNC = re.compile(rb"\Z|\xff[\xe0-\xff]|fLaC|ID3|APETAGEX|TAG|\0\0")  # what follows a tag
_FRAMES = re.compile(_INFO + rb"(?:Info|Xing)\0\0\0[\x01\x03\x05\x07\x09\x0b\x0d\x0f](....)", re.DOTALL)


class Part(NamedTuple):
    """A stretch of a file that holds one recording, or junk."""

    window: Window
    sndfile_first: bool = False

    def decoder(self) -> Decoder:
        """Open it from its beginning. Raises Unreadable."""
        openers = (self._by_sndfile, self._by_ffmpeg) if self.sndfile_first else (self._by_ffmpeg, self._by_sndfile)
        try:
            return openers[0]()
        except Unreadable as error:
            try:
                return openers[1]()
            except Unreadable:
                raise error from None

    def _by_sndfile(self) -> Decoder:
        return SndfileDecoder(self.window)

    def _by_ffmpeg(self) -> Decoder:
        head = _FRAMES.match(self.window.bytes_at(0, _REACH))
        return CodedDecoder(self.window, int.from_bytes(head[1], "big") if head else None)


def first_part(window: Window) -> Part:
    """The file as if it held one recording and no junk before it, without looking further than its beginning."""
    is_pcm = _kind_of(window, _PCM_KINDS) is not None
    return Part(window, is_pcm or _kind_of(window, _CODED_KINDS) == "ogg")


def split(window: Window) -> tuple[list[Part], bool]:
    """The parts of a file, in order, and whether bytes follow them that should be samples by the look of it."""
    start, parts = 0, list[Part]()
    while start < len(window):
        rest = window.part(start, len(window))
        kind = _kind_of(rest, _PCM_KINDS)
        if kind is None:
            return [*parts, *_coded_parts(rest)], False
        frames, end, frame_bytes = (None, None, 0) if kind == "w64" else _pcm_extent(rest)
        # libsndfile takes W64's samples to go to the end of the file, and refuses WAV and AIFF that are joined.
        following = _cuts(rest, 1 if end is None else end, _PCM_KINDS[kind])
        if not following:
            # FFmpeg reads to the end of a WAV whose writer never came to write its size.
            unfinished = frames == 0 and kind == "wav"
            # Less than a sample of all channels is left where the file was cut off.
            more = end is not None and len(rest) - end >= frame_bytes and not _holds_no_samples(rest, end, kind)
            goes_on = more and not unfinished
            return [*parts, Part(rest, not unfinished or end == len(rest))], goes_on
        start += following[0][0]
        parts.append(Part(rest.part(0, following[0][0]), True))
    return parts, False


def _kind_of(window: Window, kinds: dict[str, tuple[_Beginning, ...]]) -> str | None:
    head = window.bytes_at(0, _REACH)
    return next((kind for kind, known in kinds.items() if any(one.pattern.match(head) for one in known)), None)


def _pcm_extent(window: Window) -> tuple[int | None, int | None, int]:
    """Samples by the header, the byte after the last of them, and bytes a sample; None if libsndfile cannot read it."""
    try:
        with closing(SndfileDecoder(window)) as decoder:
            return decoder.length(), decoder.end, decoder.frame_bytes
    except Unreadable:
        return None, None, 0


def _holds_no_samples(window: Window, end: int, kind: str) -> bool:
    """Whether what follows the samples of PCM is chunks, tags or padding."""
    rest = window.bytes_at(end, _SCAN)
    if not any(rest) or rest.startswith(_TAGS):
        return True
    chunk = rest[end % 2 :] if kind in ("wav", "aiff") else rest
    if kind == "au" or not re.match(rb"[ -~]{4}", chunk):
        return False
    size = int.from_bytes(chunk[4:8], "big" if kind == "aiff" or window.bytes_at(0, 4) == b"RIFX" else "little")
    return kind not in ("wav", "aiff") or size <= len(window) - end


def _coded_parts(window: Window) -> list[Part]:
    start = 0
    while tag := _ID3_TAG.match(window.bytes_at(start, _REACH)):
        start = min(_tag_end(start, tag[0]), len(window))
    kind = _kind_of(window.part(start, len(window)), _CODED_KINDS)
    if kind is None:
        try:
            with closing(CodedDecoder(window)) as decoder:
                kind = decoder.container
        except Unreadable:
            return [Part(window)]
    if _CODED_KINDS.get(kind) is _CODED_KINDS["mp3"]:
        window = window.part(0, _without_padding(window))
    parts, sndfile_first = list[Part](), kind == "ogg"
    for end, following in _cuts(window, start, _CODED_KINDS.get(kind, ())):
        if end > start:
            parts.append(Part(window.part(start, end), sndfile_first))
        start = max(start, following) if end >= start else start
    return [*parts, Part(window.part(start, len(window)), sndfile_first)] if start < len(window) else parts


def _cuts(window: Window, begin: int, beginnings: tuple[_Beginning, ...]) -> list[tuple[int, int]]:
    """(end of what was before, beginning) of each recording from byte `begin`, in order; a tag lies between both."""
    key = (window.identity, window.start, window.end, begin, beginnings)
    if window.identity is not None and key in _known:
        return _known[key]
    cuts = _searched(window, begin, beginnings)
    if window.identity is not None:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[key] = cuts
    return cuts


# What was found in files before: training takes excerpt after excerpt of them.
_known: dict[Hashable, list[tuple[int, int]]] = {}
_MOST_KNOWN = 10_000


def _searched(window: Window, begin: int, beginnings: tuple[_Beginning, ...]) -> list[tuple[int, int]]:
    found = set[tuple[int, int]]()
    for place in range(begin, len(window), _SCAN) if beginnings else ():
        base = max(begin, place - 2 * _REACH)
        data = window.bytes_at(base, place + _SCAN - base)
        for one in beginnings:
            at = data.find(one.anchor)
            while at >= 0:
                match = one.pattern.search(data, max(0, at - _REACH), at + _REACH)
                if match and match.start() <= at < match.end():
                    found.add((base + match.start(), base + match.start()))
                at = data.find(one.anchor, at + 1)
    cuts = sorted(found)
    if beginnings is _CODED_KINDS["ogg"]:
        return _without_siblings(window, cuts)
    if beginnings is _CODED_KINDS["mp3"]:
        return [cut for end, _ in cuts if (cut := _after_tag(window, end))]
    return cuts


def _after_tag(window: Window, place: int) -> tuple[int, int] | None:
    """Skip an ID3v2 tag; None if what looks like one is something else."""
    head = window.bytes_at(place, 10)
    if not head.startswith(b"ID3"):
        return place, place
    end = _tag_end(place, head)
    return (place, end) if _SYNC.match(window.bytes_at(end, 8)) else None


def _without_padding(window: Window) -> int:
    """The end of an MP3 without the zeros after it, but for a frame: FFmpeg judges its header by the file's size."""
    end = len(window)
    while end and not (tail := window.bytes_at(max(0, end - _SCAN), min(end, _SCAN)).rstrip(b"\0")):
        end = max(0, end - _SCAN)
    return min(len(window), max(0, end - _SCAN) + len(tail) + _LARGEST_FRAME) if end else len(window)


def _tag_end(place: int, head: bytes) -> int:
    size = sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
    return place + 10 + size + (10 if head[5] & 0x10 else 0)  # a footer


def _without_siblings(window: Window, cuts: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Drop Ogg streams that begin right after another has: they play at the same time."""
    kept, sibling = list[tuple[int, int]](), -1
    for place, _ in cuts:
        head = window.bytes_at(place, 27 + 255)
        if place != sibling:
            kept.append((place, place))
        lacing = head[27 : 27 + head[26]] if len(head) > 26 else b""
        sibling = place + 27 + len(lacing) + sum(lacing)
    return kept
