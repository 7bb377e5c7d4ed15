"""The clips of a report that people look at and listen to: the best, the median and the worst."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

from xycodec.errors import AudioError
from xycodec.eval.results import METRICS, ORIGINAL, ClipResult, CodecResult, Evaluation
from xycodec.io.audio import ignore, stream_audio
from xycodec.io.rate import SPEECH_RATE

SHOWN_S = 10.0
SAMPLES = 3
_RANGE_DB = 80
_COLOURS = 64  # a picture of few colours is a small file

Samples = NDArray[np.float32]
FileOf = Callable[[str, str], Path]
"""The audio file of a codec's clip, which may not be there."""


@dataclass(frozen=True)
class Player:
    """A clip through one codec."""

    codec: str
    values: dict[str, float]
    heard: str | None
    """Text that the recogniser heard."""
    error: str | None
    """Reason why there is no audio: the codec's error, or its file's."""
    audio: str | None
    """FLAC as a data URI, up to 10 s; lossless, since a second codec would be heard too, and every browser has it."""
    picture: str | None
    """Mel spectrogram in decibels, PNG as a data URI."""


@dataclass(frozen=True)
class ListenClip:
    """A clip, and what every codec made of it, the original first."""

    rank: str
    """`best`, `median` or `worst`; `sample` where no metric tells."""
    metric: str
    """Metric by which the clip was chosen; empty where none has values of clips."""
    by: str
    """The codec whose values chose it."""
    clip: str
    source: str
    speaker: str | None
    text: str | None
    reference: str | None
    """Text that the recogniser heard in the original, where it stands for the transcript."""
    seconds: float
    shown_s: float
    players: tuple[Player, ...]


def choose_clips(evaluation: Evaluation, audio: Path | FileOf | None, metric: str = "stoi") -> tuple[ListenClip, ...]:
    """The best, median and worst clip of the first codec that is not the original.

    Where a report has metrics of whole sets alone, they are the codec's first three clips.

    Args:
        evaluation: what was found, with at least one codec.
        audio: folder with `CODEC/audio/CLIP.flac`, or a function that tells the file of a codec's clip; None: the
            clips come without sound. A file may be absent.
        metric: that ranks them; where the codec lacks it, the first metric that it has.
    """
    first = next((codec for codec in evaluation.codecs if codec.name != ORIGINAL), evaluation.codecs[0])
    metric = next((name for name in (metric, *evaluation.metrics) if _known(first, name)), "")
    if not metric:
        sets = any(METRICS[name].pooling == "set" for name in evaluation.metrics)
        chosen_ones = first.clips[:SAMPLES] if sets else ()
        return tuple(_listen_clip(evaluation, audio, "sample", "", first, clip) for clip in chosen_ones)
    sign = -1 if METRICS[metric].better == "higher" else 1
    best_first = sorted(_known(first, metric), key=lambda clip: sign * clip.scores.values[metric])
    # Of two clips none is the median, and a single one is the best.
    last = len(best_first) - 1
    places = {"best": 0, "median": last // 2, "worst": last}
    chosen = {place: rank for rank, place in reversed(places.items())}
    return tuple(
        _listen_clip(evaluation, audio, chosen[place], metric, first, best_first[place]) for place in sorted(chosen)
    )


def _known(codec: CodecResult, metric: str) -> list[ClipResult]:
    return [clip for clip in codec.clips if metric in clip.scores.values]


def _listen_clip(
    evaluation: Evaluation, audio: Path | FileOf | None, rank: str, metric: str, by: CodecResult, clip: ClipResult
) -> ListenClip:
    results = {codec.name: one for codec in evaluation.codecs for one in codec.clips if one.clip == clip.clip}
    sounds = {name: _read(audio, name, clip.clip) for name in results}
    return ListenClip(
        rank=rank,
        metric=metric,
        by=by.name,
        clip=clip.clip,
        source=clip.source,
        speaker=clip.speaker,
        text=clip.text,
        reference=next((one.scores.reference for one in results.values() if one.scores.reference is not None), None),
        seconds=clip.seconds,
        shown_s=min(clip.seconds, SHOWN_S),
        players=_players(results, sounds),
    )


def _players(results: dict[str, ClipResult], sounds: dict[str, Samples | str | None]) -> tuple[Player, ...]:
    from xycodec.io.pictures import mel_decibels

    pictures = {
        name: mel_decibels(sound, SPEECH_RATE) for name, sound in sounds.items() if isinstance(sound, np.ndarray)
    }
    top = max((float(picture.max()) for picture in pictures.values()), default=0.0)
    players = []
    for name, one in results.items():
        sound = sounds[name]
        players.append(
            Player(
                codec=name,
                values=one.scores.values,
                heard=one.scores.transcript,
                error=one.error or (sound if isinstance(sound, str) else None),
                audio=_flac(sound) if isinstance(sound, np.ndarray) else None,
                picture=_png(pictures[name] - top) if name in pictures else None,
            )
        )
    return tuple(players)


def _read(audio: Path | FileOf | None, codec: str, clip: str) -> Samples | str | None:
    """The clip's first 10 s, why it cannot be read, or None if it was not kept."""
    if audio is None:
        return None
    path = audio / codec / "audio" / f"{clip}.flac" if isinstance(audio, Path) else audio(codec, clip)
    if not path.is_file():
        return None
    try:
        return next(stream_audio(path, SPEECH_RATE, SHOWN_S, tell=ignore))
    except AudioError as error:
        return str(error)


def _flac(audio: Samples) -> str:
    file = io.BytesIO()
    sf.write(file, audio.clip(-1, 1), SPEECH_RATE, format="FLAC", subtype="PCM_16")
    return _data_uri("audio/flac", file)


def _png(decibels: Samples) -> str:
    """(bands, frames) of decibels below the loudest place -> low frequencies at the bottom, one pixel each."""
    from matplotlib import colormaps
    from matplotlib.image import imsave

    file = io.BytesIO()
    colours = colormaps["magma"].resampled(_COLOURS)
    imsave(file, decibels, format="png", origin="lower", cmap=colours, vmin=-_RANGE_DB, vmax=0)
    return _data_uri("image/png", file)


def _data_uri(kind: str, file: io.BytesIO) -> str:
    return f"data:{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
