"""A corpus decoded once: large WAV files, and cuts that point into them, so that training seeks where it decoded."""

import json
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import soundfile as sf
import soxr
from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment
from lhotse.cut import Cut

from xycodec.data.clip import require_sound
from xycodec.data.decode import decode
from xycodec.data.manifest import open_text
from xycodec.data.shards import MEMBER
from xycodec.data.sources import Cuts
from xycodec.data.targets import moved
from xycodec.errors import AudioError, ConfigError
from xycodec.io.audio import Samples, write_audio
from xycodec.io.files import new_folder
from xycodec.io.progress import Advance, unwatched
from xycodec.io.rate import SPEECH_RATE

MANIFEST = "cuts.jsonl.gz"
PART_SECONDS = 30_000  # of a WAV file: 0.96 GB at 16 kHz
_OPUS_RATES = (16_000, 24_000, 48_000)
_AHEAD = 4  # clips per process that are decoded before they are asked for


@dataclass(frozen=True)
class PackReport:
    """Report on a packed corpus: clips, their seconds, WAV files, and one line for each clip that was left out."""

    clips: int
    seconds: float
    files: int
    left_out: tuple[str, ...]


class _Placed(NamedTuple):
    """A cut and the range of samples in the packed file that hold its audio."""

    cut: Cut
    first: int
    length: int


def pack(
    cuts: Cuts,
    folder: Path,
    *,
    rate: int = SPEECH_RATE,
    processes: int = 1,
    part_seconds: float = PART_SECONDS,
    opus_kbps: float | None = None,
    advance: Advance = unwatched,
) -> PackReport:
    """Decode every cut into a few mono files, 16-bit WAV or Opus, in a new `folder`, beside cuts that point into them.

    `cuts.jsonl.gz` has one MonoCut per cut, in order, with its id, supervisions and custom fields. Channels are
    averaged. What cannot be decoded, holds a NaN or was recorded below `rate` is left out and reported. The folder
    appears only when it is complete, and its cuts name it by its absolute path.

    Args:
        cuts: what to decode, read once.
        folder: to make.
        rate: of all clips, Hz.
        processes: that decode, beside this one; 1 decodes in this one.
        part_seconds: of audio after which the next file begins.
        opus_kbps: kbit/s of Opus, from 6 to 256, about which the rate varies; None: WAV.
        advance: called after each cut with its seconds.

    Raises:
        ConfigError: `folder` exists or cannot be written, `rate` is below 16 kHz, Opus does not take
            `rate` or `opus_kbps`, a manifest is not valid, or no clip is left.
    """
    if rate < SPEECH_RATE:
        raise ConfigError(f"{rate} Hz is below the {SPEECH_RATE} Hz that codecs read: choose a higher rate")
    if opus_kbps is not None and not (6 <= opus_kbps <= 256 and rate in _OPUS_RATES):
        raise ConfigError(f"Opus takes 6 to 256 kbit/s at 16, 24 or 48 kHz, not {opus_kbps:g} at {rate} Hz")
    target = folder.resolve()
    try:
        with new_folder(target, ConfigError) as made:
            write = write_audio if opus_kbps is None else partial(_write_opus, kbps=opus_kbps)
            suffix = ".wav" if opus_kbps is None else ".opus"
            return _write(cuts, made, target, rate, processes, round(part_seconds * rate), advance, write, suffix)
    except BrokenProcessPool:
        raise ConfigError(f"{folder}: a process that decodes died (out of memory?): use fewer") from None


def _write(
    cuts: Cuts,
    made: Path,
    target: Path,
    rate: int,
    processes: int,
    most: int,
    advance: Advance,
    write: Callable[[Path, Iterable[Samples], int], None],
    suffix: str,
) -> PackReport:
    left_out: list[str] = []
    clips = _readable(_decoded(cuts, rate, processes), left_out, advance)
    count, seconds, files = 0, 0.0, 0
    with open_text(made / MANIFEST, "wt") as file:
        for first in clips:
            name, placed = f"audio-{files:05}{suffix}", list[_Placed]()
            write(made / name, _part(chain([first], clips), placed, most), rate)
            length = placed[-1].first + placed[-1].length
            source = AudioSource(type="file", channels=[0], source=str(target / name))
            recording = Recording(f"{target.name}/{name}", [source], rate, length, length / rate)
            file.writelines(json.dumps(_cut(place, recording).to_dict(), ensure_ascii=False) + "\n" for place in placed)
            count, seconds, files = count + len(placed), seconds + recording.duration, files + 1
    if not count:
        why = f"none of {len(left_out)} clips can be packed, first: {left_out[0]}" if left_out else "there are no cuts"
        raise ConfigError(f"{target}: {why}")
    return PackReport(count, seconds, files, tuple(left_out))


def _write_opus(path: Path, blocks: Iterable[Samples], rate: int, *, kbps: float) -> None:
    # libsndfile's compression levels lie between 6 and 256 kbit/s for one channel, linearly.
    level = 1 - (kbps - 6) / 250
    with sf.SoundFile(path, "w", rate, 1, "OPUS", format="OGG", compression_level=level) as file:
        for block in blocks:
            file.write(block)


def _part(clips: Iterable[tuple[Cut, Samples]], placed: list[_Placed], most: int) -> Iterator[Samples]:
    """Samples of clips until there are `most`; `placed` is told where each lies."""
    done = 0
    for cut, samples in clips:
        placed.append(_Placed(cut, done, len(samples)))
        done += len(samples)
        yield samples
        if done >= most:
            return


def _cut(place: _Placed, recording: Recording) -> MonoCut:
    rate = recording.sampling_rate
    cut, seconds = place.cut, place.length / rate
    # The place in a tar where its audio was.
    custom = {key: value for key, value in (getattr(cut, "custom", None) or {}).items() if key != MEMBER}
    words = [_words(segment, cut, recording, seconds) for segment in cut.supervisions]
    start = place.first / rate
    custom = moved(custom, start - cut.start)
    return MonoCut(cut.id, start, seconds, 0, words, recording=recording, custom=custom or None)


def _words(segment: SupervisionSegment, cut: Cut, recording: Recording, seconds: float) -> SupervisionSegment:
    # A lossy file may end a little before its manifest says: what is said goes to its end all the same.
    short = segment.start < seconds < segment.end <= cut.duration
    duration = seconds - segment.start if short else segment.duration
    return replace(segment, recording_id=recording.id, channel=0, duration=duration)


# ---- decoding ----------------------------------------------------------------------------------


def _readable(
    decoded: Iterable[tuple[Cut, Samples | str]], left_out: list[str], advance: Advance
) -> Iterator[tuple[Cut, Samples]]:
    for cut, samples in decoded:
        if isinstance(samples, str):
            left_out.append(samples)
        else:
            yield cut, samples
        advance(cut.duration)


def _decoded(cuts: Cuts, rate: int, processes: int) -> Iterator[tuple[Cut, Samples | str]]:
    """Every cut, in order, with its samples or the reason why there are none."""
    if processes == 1:
        yield from ((cut, _attempt(cut, rate)) for cut in cuts)
        return
    # Forking a process that has used torch's threads can hang, so fresh ones are started.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        waiting: deque[tuple[Cut, Any]] = deque()
        for cut in cuts:
            waiting.append((cut, pool.submit(_attempt, cut, rate)))
            if len(waiting) > _AHEAD * processes:
                done, future = waiting.popleft()
                yield done, future.result()
        yield from ((done, future.result()) for done, future in waiting)


def _attempt(cut: Cut, rate: int) -> Samples | str:
    try:
        samples, found = decode(cut, 0.0, cut.duration)
        require_sound(cut, samples, found, rate)
        return samples if found == rate else soxr.resample(samples, found, rate)
    except AudioError as error:
        return str(error)
