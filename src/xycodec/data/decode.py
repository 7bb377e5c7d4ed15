"""The samples of a part of a Lhotse cut, decoding no more of the file than that part."""

import io
from typing import Any

import numpy as np
import soundfile as sf
from lhotse import MonoCut, MultiCut
from lhotse.cut import Cut

from xycodec.data.shards import member_of
from xycodec.errors import AudioError
from xycodec.io.audio import Samples
from xycodec.io.files import open_input

_SHORTFALL = 0.25  # s: durations in manifests of lossy files are off by a few of their frames


def decode(cut: Cut, start: float, seconds: float) -> tuple[Samples, int]:
    """Decode `seconds` of `cut` from `start` (s): the mean over its channels, 1-D float32, and its rate in Hz.

    Files, memory and members of tars are read with libsndfile, at the rate the file says, whatever the manifest says;
    every other kind of cut (mixed, of several files, from a URL) by Lhotse.

    Raises:
        AudioError: the audio is missing, cannot be decoded, or ends before that part does.
    """
    recording = getattr(cut, "recording", None)
    if not isinstance(cut, (MonoCut, MultiCut)) or (recording and (recording.transforms or len(recording.sources) > 1)):
        return _by_lhotse(cut, start, seconds)
    if recording is None:
        raise AudioError(f"{cut.id}: has no recording: leave it out")
    source = recording.sources[0]
    if member_of(cut) is None and source.type not in ("file", "memory"):
        return _by_lhotse(cut, start, seconds)
    block, rate = _read(cut, start, seconds)
    asked = [cut.channel] if isinstance(cut.channel, int) else cut.channel
    columns = [source.channels.index(channel) for channel in asked if channel in source.channels]
    if not columns or max(columns) >= block.shape[1]:
        raise AudioError(f"{cut.id}: has {block.shape[1]} channels, not those of its cut: write the manifest again")
    return block[:, columns].mean(axis=1, dtype=np.float64).astype(np.float32), rate


def _read(cut: MonoCut | MultiCut, start: float, seconds: float) -> tuple[Samples, int]:
    """Decode all channels of the file, (T, channels)."""
    try:
        with _open(cut) as file, sf.SoundFile(file) as sound:
            rate = int(sound.samplerate)
            first, end = (round((cut.start + place) * rate) for place in (start, start + seconds))
            if first:
                sound.seek(min(first, sound.frames))
            block: Samples = sound.read(end - first, dtype="float32", always_2d=True)
    except sf.LibsndfileError as error:
        why = str(error.error_string).rstrip(" .")
        raise AudioError(f"{cut.id}: cannot be decoded ({why}): convert it to wav or flac, or leave it out") from error
    except OSError as error:
        raise AudioError(f"{cut.id}: cannot be read ({error.strerror or error}): check the file") from error
    missing = end - first - len(block)
    if missing > _SHORTFALL * rate:
        what = f"ends {missing / rate:.2f} s before its cut does, which goes to {end / rate:.2f} s"
        raise AudioError(f"{cut.id}: {what}: get a whole copy")
    return block, rate


def _open(cut: MonoCut | MultiCut) -> Any:
    member, source = member_of(cut), cut.recording.sources[0]
    if member:
        return member.open()
    return io.BytesIO(source.source) if source.type == "memory" else open_input(source.source, AudioError)


def _by_lhotse(cut: Cut, start: float, seconds: float) -> tuple[Samples, int]:
    try:
        samples = cut.truncate(offset=start, duration=seconds).load_audio()
        return np.asarray(samples).mean(axis=0, dtype=np.float64).astype(np.float32), int(cut.sampling_rate)
    except Exception as error:  # whatever its many ways to read audio raise
        why = f"{type(error).__name__}: {error}"
        raise AudioError(f"{cut.id}: cannot be read by Lhotse ({why}): check the recording") from error
