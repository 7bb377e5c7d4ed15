"""One training clip from a Lhotse cut: cropped, checked, changed, and resampled to the model's two rates."""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import soxr
import torch
from lhotse.cut import Cut
from numpy.random import Generator
from torch import Tensor

from xycodec.data.augment import Change, apply_change, draw_change
from xycodec.data.config import DataConfig
from xycodec.data.decode import decode
from xycodec.data.targets import load_labels
from xycodec.errors import AudioError
from xycodec.io.audio import Samples
from xycodec.io.rate import SPEECH_RATE

FRAME = 1280  # samples at the input rate in a code frame
_SLACK = 0.02  # s: times in manifests are rounded
_MARGIN = 0.01  # s of source beyond a crop's end, for what resampling rounds away


@dataclass(frozen=True)
class Clip:
    """A clip: `audio` (T,) at 16 kHz and `target` (T x output rate / 16000,), float32, its transcript and its language.

    `labels` (frames, layers) int64 are what `data.targets.load_labels` says; None where there are none that fit.
    """

    id: str
    audio: Tensor
    target: Tensor
    text: str | None
    labels: Tensor | None = None
    language: str | None = None


@dataclass(frozen=True)
class Excerpt:
    """The part of a cut that is trained on: from `start`, `seconds` of the recording, which `change` then changes."""

    start: float
    seconds: float
    end: float
    """End of the excerpt for its text, in seconds of the cut; `seconds` has a margin."""
    change: Change


def draw_excerpt(cut: Cut, config: DataConfig, *, seed: int, epoch: int) -> Excerpt:
    """Draw what `load_clip` decodes; it depends on `seed`, `epoch` and the cut's id alone."""
    generator = generator_of(seed, epoch, cut.id)
    change = draw_change(config.augment, generator)
    span = longest_clip(config) / SPEECH_RATE * change.speed
    spare = max(0.0, cut.duration - span - _MARGIN)
    start = float(generator.uniform(0, spare)) if config.crop == "random" else 0.0
    return Excerpt(start, min(span + _MARGIN, cut.duration - start), min(start + span, cut.duration), change)


def lowest_rate(output_sample_rate: int) -> int:
    """Lowest sample rate (Hz) of recordings to train on: others lack frequencies that the codec is to learn."""
    return max(SPEECH_RATE, output_sample_rate)


def load_clip(cut: Cut, config: DataConfig, *, output_sample_rate: int, seed: int, epoch: int) -> Clip:
    """Decode the part of `cut` that is trained on.

    Of a cut longer than `config.clip_seconds` it is the beginning or, if `config.crop` is "random", a part of whole
    code frames (1280 samples at 16 kHz). What is random depends on `seed`, `epoch` and the cut's id alone: it is the
    same in whatever worker, process and order. Channels are averaged.

    Raises:
        AudioError: audio or labels cannot be read; the audio ends early, is empty, silent (below `config.silence_db`),
            holds a NaN or an infinity, or was recorded below the output rate.
    """
    excerpt = draw_excerpt(cut, config, seed=seed, epoch=epoch)
    samples, rate = decode(cut, excerpt.start, excerpt.seconds)
    require_sound(cut, samples, rate, lowest_rate(output_sample_rate))
    require_loudness(cut, float(np.abs(samples).max()), config)
    samples = apply_change(samples, rate, excerpt.change)
    audio, target = _at_both_rates(samples, rate, output_sample_rate, longest_clip(config))
    if not len(audio):
        raise AudioError(f"{cut.id}: too short for a sample at {SPEECH_RATE} Hz: leave it out")
    labels = load_labels(cut, excerpt.start, len(audio)) if excerpt.change.speed == 1 else None
    return Clip(cut.id, audio, target, text_of(cut, excerpt.start, excerpt.end), labels, language_of(cut))


def language_of(cut: Cut) -> str | None:
    """The language that all supervisions of the cut which name one agree on, else None."""
    named = {words.language for words in cut.supervisions if words.language}
    return named.pop() if len(named) == 1 else None


def generator_of(*facts: int | str) -> Generator:
    """Random numbers that depend on `facts` alone, such as a seed and a clip's id."""
    digest = hashlib.blake2b(" ".join(map(str, facts)).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def longest_clip(config: DataConfig) -> int:
    """Samples of the longest clip, at the input rate."""
    samples = round(config.clip_seconds * SPEECH_RATE)
    return max(FRAME, samples - samples % FRAME) if config.crop == "random" else samples


def require_sound(cut: Cut, samples: Samples, rate: int, lowest: int) -> None:
    """Raise AudioError if `samples` of `cut` are none, not finite, or at a `rate` below `lowest` (Hz)."""
    if rate < lowest:
        raise AudioError(f"{cut.id}: recorded at {rate} Hz, needs {lowest} Hz: leave it out")
    if not len(samples):
        raise AudioError(f"{cut.id}: holds no samples: leave it out")
    if not np.isfinite(samples).all():
        raise AudioError(f"{cut.id}: holds a NaN or an infinity: repair it or leave it out")


def require_loudness(cut: Cut, loudest: float, config: DataConfig) -> None:
    """Raise AudioError if the `loudest` sample of a clip, of full scale, lies below `config.silence_db`."""
    level = 20 * math.log10(loudest) if loudest else -math.inf
    if level < config.silence_db:
        raise AudioError(f"{cut.id}: silent (loudest sample {level:.0f} dB): leave it out or lower data.silence_db")


def _at_both_rates(samples: Samples, rate: int, output_sample_rate: int, longest: int) -> tuple[Tensor, Tensor]:
    """`samples` at 16 kHz, at most `longest`, and at the output rate, whose lengths have exactly the rates' ratio."""
    target = samples if rate == output_sample_rate else soxr.resample(samples, rate, output_sample_rate)
    # Both lengths are whole numbers.
    step = SPEECH_RATE // math.gcd(SPEECH_RATE, output_sample_rate)
    length = min(longest, len(target) * SPEECH_RATE // output_sample_rate) // step * step
    target = torch.from_numpy(np.ascontiguousarray(target[: length * output_sample_rate // SPEECH_RATE]))
    if output_sample_rate == SPEECH_RATE:
        return target, target
    audio = soxr.resample(target.numpy(), output_sample_rate, SPEECH_RATE)
    return torch.from_numpy(audio), target


def text_of(cut: Cut, start: float, end: float) -> str | None:
    """Text said from `start` to `end` (seconds in the cut), or None if that is not known exactly."""
    texts = []
    for words in cut.supervisions:
        if words.end <= start + _SLACK or words.start >= end - _SLACK:
            continue
        text = (words.text or "").strip()
        if words.start < start - _SLACK or words.end > end + _SLACK or not text:
            return None
        texts.append(text)
    return " ".join(texts) or None
