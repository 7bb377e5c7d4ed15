"""Text to audio: a trained text-to-speech model, together with the codec whose codes it speaks."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xycodec.checkpoints.load import load_codec
from xycodec.errors import CheckpointError, XycodecError
from xycodec.lm.loading import load_model
from xycodec.lm.speech import Speaker
from xycodec.models.base import Codec, codes_fingerprint

_PAUSE = 0.15  # s between sentences
_LONGEST = 120  # characters that are spoken in one go, where there is a place to cut
_SENTENCE = re.compile(r"(?<=[.?!;:])\s+|\n+")
_CLAUSE = re.compile(r"(?<=,)\s+")


@dataclass(frozen=True)
class Said:
    """Audio (T,) float32 at `sample_rate` (Hz), and whether a sentence of it was cut off."""

    samples: NDArray[np.float32]
    sample_rate: int
    hit_cap: bool


class Voice:
    """A text-to-speech model with its codec.

    Args:
        model: a run, a checkpoint or an exported folder of a model that speaks.
        codec: name or place of the codec; None: the name that the model knows.
        device: for both.

    Raises:
        CheckpointError: there is no such model or codec, or the codec has other weights than the model's codes are of.
    """

    def __init__(self, model: str | Path, codec: str | None = None, *, device: str = "auto") -> None:
        speaker = load_model(Path(model), device=device)
        if not isinstance(speaker, Speaker):
            raise CheckpointError(f"{model}: a model of music or sound, which has no words: name one that speaks")
        self.speaker = speaker
        self.codec: Codec = load_codec(codec or speaker.codec_name, device=device)
        require_codec(speaker, self.codec)

    def say(self, text: str, *, seed: int = 0) -> Said:
        """Speak a text, sentence by sentence, its numbers as words. Raises XycodecError where `Speaker.speak` does."""
        rate = self.codec.output_sample_rate
        pause = np.zeros(round(_PAUSE * rate), np.float32)
        parts: list[NDArray[np.float32]] = []
        capped = False
        for number, sentence in enumerate(sentences(self.speaker.text.spelled(text))):
            spoken = self.speaker.speak(sentence, seed=seed + number)
            capped |= spoken.hit_cap
            audio = self.codec.decode(spoken.codes[None].to(self.codec.device)).audio[0]
            parts += [pause] * bool(parts) + [audio.float().cpu().numpy()]
        return Said(np.concatenate(parts), rate, capped)


def require_codec(speaker: Speaker, codec: Codec) -> None:
    """Raise CheckpointError unless `codec` is the one whose codes a model speaks."""
    found = codes_fingerprint(codec)
    if found != speaker.codec_hash:
        raise CheckpointError(
            f"the model speaks codes of {speaker.codec_name} with the weights {speaker.codec_hash}, {codec.model_id} "
            f"has {found}: name the codec it was trained with"
        )


def sentences(text: str) -> list[str]:
    """Cut a text into sentences, and long ones into clauses. Raises XycodecError if it is empty."""
    found = [part for part in _SENTENCE.split(text.strip()) if any(map(str.isalnum, part))]
    if not found:
        raise XycodecError("the text is empty: give some words to say")
    return [piece for part in found for piece in _clauses(part)]


def _clauses(sentence: str) -> list[str]:
    made = [""]
    for clause in _CLAUSE.split(sentence):
        if made[-1] and len(made[-1]) + len(clause) > _LONGEST:
            made.append(clause)
        else:
            made[-1] = f"{made[-1]} {clause}".strip()
    return made
