"""The samples of a part of a Lhotse cut, decoding little more of the file than that part."""

import io
import warnings
from contextlib import ExitStack

import numpy as np
from lhotse import MonoCut, MultiCut
from lhotse.cut import Cut

from xycodec.data.shards import member_of
from xycodec.errors import AudioError, AudioWarning
from xycodec.io.audio import Samples, open_audio
from xycodec.io.reader import AudioFile, mean

_SHORTFALL = 0.25  # s: durations in manifests of lossy files are off by a few of their frames


def decode(cut: Cut, start: float, seconds: float) -> tuple[Samples, int]:
    """Decode `seconds` of `cut` from `start` (s): the mean over its channels, 1-D float32, and its rate in Hz.

    Files, memory and members of tars are read as everywhere here, at the rate the file says, whatever the manifest
    says; every other kind of cut (mixed, of several files, from a URL) by Lhotse.

    What had to be left out, such as a packet that cannot be decoded, is a Python warning (AudioWarning).

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
    asked = [cut.channel] if isinstance(cut.channel, int) else cut.channel
    columns = [source.channels.index(channel) for channel in asked if channel in source.channels]
    try:
        with ExitStack() as stack:
            if member := member_of(cut):
                audio = stack.enter_context(open_audio(stack.enter_context(member.open()), "its audio"))
            elif source.type == "memory":
                audio = stack.enter_context(open_audio(io.BytesIO(source.source), "its audio"))
            else:
                audio = stack.enter_context(open_audio(source.source))
            samples = _excerpt(audio, columns, cut.start + start, cut.start + start + seconds)
            for remark in audio.remarks:
                warnings.warn(f"{cut.id}: {remark}", AudioWarning, stacklevel=2)
            return samples, audio.sample_rate
    except AudioError as error:
        raise AudioError(f"{cut.id}: {error}") from error


def _excerpt(audio: AudioFile, columns: list[int], start: float, end: float) -> Samples:
    """The mean of some channels from `start` to `end` (s)."""
    if not columns or max(columns) >= audio.channels:
        raise AudioError(f"has {audio.channels} channels, not those of its cut: write the manifest again")

    def mix(block: Samples) -> Samples:
        # Where a joined file goes on with other channels, those of the cut are not there.
        return mean(block[:, columns] if block.shape[1] == audio.channels else block)

    first, last = round(start * audio.sample_rate), round(end * audio.sample_rate)
    samples = audio.excerpt(first, last - first, mix)
    missing = (last - first - len(samples)) / audio.sample_rate
    if missing > _SHORTFALL:
        raise AudioError(f"ends {missing:.2f} s before its cut does, which goes to {end:.2f} s: get a whole copy")
    return samples


def _by_lhotse(cut: Cut, start: float, seconds: float) -> tuple[Samples, int]:
    try:
        samples = cut.truncate(offset=start, duration=seconds).load_audio()
        return np.asarray(samples).mean(axis=0, dtype=np.float64).astype(np.float32), int(cut.sampling_rate)
    except Exception as error:  # whatever its many ways to read audio raise
        why = f"{type(error).__name__}: {error}"
        raise AudioError(f"{cut.id}: cannot be read by Lhotse ({why}): check the recording") from error
