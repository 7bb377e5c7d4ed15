"""Identity of a clip: digests of its audio and of its text, so that a change of either is noticed."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from lhotse import MonoCut, MultiCut
from lhotse.audio import AudioSource

from xycodec.data.shards import member_of
from xycodec.errors import AudioError
from xycodec.eval.corpus import Item
from xycodec.io.digests import digest_of, file_digest
from xycodec.io.files import os_error_line


class Identity(NamedTuple):
    """Digests of a clip's content, 32 hexadecimal digits each."""

    audio: str
    """Digest of its audio: codes and signal metrics depend on that alone."""
    whole: str
    """Digest of its audio, transcript and language: what models score may depend on all three."""


def identify(item: Item) -> Identity:
    """The identity of a clip. Raises AudioError if its audio cannot be read."""
    audio = audio_digest(item)
    return Identity(audio, digest_of([audio, item.text, item.language]))


def audio_digest(item: Item) -> str:
    """Digest of the bytes that a clip is decoded from, and of the part of them that it is.

    Of its samples, where no single file or member of a tar holds it. Raises AudioError if it cannot be read.
    """
    cut = item.cut
    if isinstance(cut, AudioError):
        raise cut
    recording = getattr(cut, "recording", None)
    if isinstance(cut, MonoCut | MultiCut) and recording and not recording.transforms and len(recording.sources) == 1:
        source = recording.sources[0]
        if digest := _bytes_digest(cut, source):
            return digest_of([digest, cut.start, cut.duration, cut.channel, source.channels])
    return hashlib.blake2b(item.load().tobytes(), digest_size=16).hexdigest()


def _bytes_digest(cut: Any, source: AudioSource) -> str | None:
    """Digest of the encoded audio; None if it lies neither in a file, nor in a tar, nor in memory."""
    try:
        if member := member_of(cut):
            with member.open() as file:
                return hashlib.blake2b(file.read(), digest_size=16).hexdigest()
        if source.type == "file":
            return file_digest(Path(source.source))
    except OSError as error:
        raise AudioError(os_error_line(repr(source.source), "read", error)) from error
    return hashlib.blake2b(source.source, digest_size=16).hexdigest() if source.type == "memory" else None
