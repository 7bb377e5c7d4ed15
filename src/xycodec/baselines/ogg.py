"""The packets of an Ogg stream, and an Ogg stream of packets (RFC 3533), in memory."""

import struct
import zlib
from collections.abc import Sequence

_PAGE = struct.Struct("<4sBBqIIIB")  # magic, version, flags, position, serial, number, checksum, segments
_CHECKSUM = 22
_FIRST, _LAST = 2, 4
_FULL = 255  # bytes of a segment that its packet goes on after; also the segments of a page
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def split_packets(stream: bytes) -> list[bytes]:
    """The packets of a whole and valid stream, its headers first."""
    packets: list[bytes] = []
    start, packet = 0, b""
    while start < len(stream):
        segments = _PAGE.unpack_from(stream, start)[-1]
        lengths = stream[start + _PAGE.size : start + _PAGE.size + segments]
        start += _PAGE.size + segments
        for length in lengths:
            packet += stream[start : start + length]
            start += length
            if length < _FULL:
                packets.append(packet)
                packet = b""
    return packets


def join_packets(pages: Sequence[tuple[int, Sequence[bytes]]]) -> bytes:
    """A stream of (granule position, whole packets) a page; a page has room for 255 times 255 bytes at most."""
    stream = bytearray()
    for number, (position, packets) in enumerate(pages):
        lengths = b"".join(_lengths(packet) for packet in packets)
        flags = _FIRST * (number == 0) | _LAST * (number == len(pages) - 1)
        head = _PAGE.pack(b"OggS", 0, flags, position, 1, number, 0, len(lengths))
        page = bytearray(head + lengths + b"".join(packets))
        struct.pack_into("<I", page, _CHECKSUM, _crc(page))
        stream += page
    return bytes(stream)


def _lengths(packet: bytes) -> bytes:
    return bytes([_FULL]) * (len(packet) // _FULL) + bytes([len(packet) % _FULL])


def _crc(page: bytearray) -> int:
    """Ogg's checksum is zlib's with the bits of bytes and result mirrored, and nothing inverted."""
    mirrored = zlib.crc32(page.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)
