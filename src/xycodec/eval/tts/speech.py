"""Speech of an utterance's text: by a language model, by a codec's round trip, or read from a folder.

Every kind of source writes 16 kHz FLAC files and a row for each in `speech.jsonl`:

    {"clip": ..., "of": digest, "begins": 48000, "hit_cap": false, "retries": 0}    or "empty": why, or "error": why

`begins` is the sample at which the file is the source's own, and no longer its prompt.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soxr
import torch
from torch import Tensor

from xycodec.errors import AudioError, EmptySpeechError, XycodecError, described
from xycodec.eval.tts.utterances import PROMPT_S, Utterance
from xycodec.io.audio import Samples, ignore, read_audio, write_audio
from xycodec.io.journal import Journal
from xycodec.io.rate import SPEECH_RATE
from xycodec.models.base import Codec
from xycodec.models.longform import decode_long, encode_long

SPEECH, AUDIO = "speech.jsonl", "audio"


class Setting(StrEnum):
    """Speech that a model is prompted with."""

    continual = "continual"
    """The utterance's own first 3 s: the text is all that is said, and the model goes on."""
    cross = "cross"
    """Another utterance of the speaker, and what is said in it."""


class SpokenCodes(Protocol):
    """Interface of what a model speaks."""

    @property
    def codes(self) -> Tensor:
        """Codes (n_q or 1, L) int64, without the prompt's."""

    @property
    def hit_cap(self) -> bool:
        """Whether speech was cut off, since the model did not end it."""

    @property
    def retries(self) -> int:
        """Empty attempts before this one."""


class SpeechModel(Protocol):
    """Interface of a text-to-speech language model, as `xycodec.lm.load` gives it."""

    @property
    def codec_name(self) -> str:
        """Name of the codec whose codes it speaks."""

    @property
    def codec_hash(self) -> str:
        """`codes_fingerprint` of that codec."""

    @property
    def frame_rate(self) -> float:
        """Frames a second."""

    def speak(
        self,
        text: str,
        *,
        prompt_text: str | None = None,
        prompt_codes: Tensor | None = None,
        seed: int = 0,
        first_codebook_only: bool = False,
    ) -> SpokenCodes:
        """Speak `text` after the prompt's codes (n_q, P); without `prompt_text`, `text` begins with the prompt's words.

        Raises EmptySpeechError if nothing is said, XycodecError where text or prompt are not what it knows.
        """


@dataclass(frozen=True)
class Take:
    """An utterance as a source speaks it.

    Attributes:
        audio: (n,) at 16 kHz, with the prompt before it in the setting `continual`.
        begins: first sample after the prompt.
    """

    audio: Samples
    begins: int = 0
    hit_cap: bool = False
    retries: int = 0


Speak = Callable[[Utterance], Mapping[str, Take]]
"""A source: speaks an utterance, in one way or several, by the names of the folders they go to."""


def say_all(
    speak: Speak,
    folders: Mapping[str, Path],
    utterances: Mapping[str, Utterance],
    digests: Mapping[str, str],
    done: Callable[[], None],
) -> None:
    """Let a source speak every utterance that one of its folders lacks, and write audio and rows there.

    Empty speech and other failures have a row that says why. What failed is tried again by the next call; empty speech
    is a result, and stays.
    """
    spoken = {name: takes(folder, digests) for name, folder in folders.items()}
    for clip, utterance in utterances.items():
        if not all(_is_result(rows.get(clip)) for rows in spoken.values()):
            made = _spoken(speak, utterance)
            for name, folder in folders.items():
                folder.mkdir(parents=True, exist_ok=True)
                row = {
                    "clip": clip,
                    "of": digests[clip],
                    **_kept(made.get(name), folder / AUDIO / f"{clip}.flac", made),
                }
                Journal(folder / SPEECH).append(row)
        done()


def takes(folder: Path, digests: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The newest row of each utterance in a folder; those of other texts or recordings do not count."""
    return {row["clip"]: row for row in Journal(folder / SPEECH).rows() if row["of"] == digests.get(row["clip"])}


def _spoken(speak: Speak, utterance: Utterance) -> Mapping[str, Any]:
    """The takes of a source by way, or why there are none."""
    try:
        made = speak(utterance)
    except EmptySpeechError as error:
        return {"empty": str(error)}
    except Exception as error:  # whatever a model raises: the other utterances are still worth having
        return {"error": described(error)}
    broken = [way for way, take in made.items() if not np.isfinite(take.audio).all()]
    return {"error": "its audio holds a NaN or an infinity"} if broken else made


def _kept(take: Take | None, target: Path, reasons: Mapping[str, Any]) -> Mapping[str, Any]:
    """Write a take's audio; its part of a row."""
    if take is None:
        return reasons
    target.parent.mkdir(parents=True, exist_ok=True)
    write_audio(target, take.audio, SPEECH_RATE)
    return {"begins": take.begins, "hit_cap": take.hit_cap, "retries": take.retries}


def _is_result(row: Mapping[str, Any] | None) -> bool:
    return row is not None and "error" not in row


# ---- sources -----------------------------------------------------------------------------------


def true_speech(setting: Setting) -> Speak:
    """The recordings themselves; what follows the prompt counts."""

    def speak(utterance: Utterance) -> dict[str, Take]:
        return {"": _after_prompt(read_audio(utterance.audio, SPEECH_RATE, tell=ignore), setting)}

    return speak


def decoded_speech(codec: Codec, setting: Setting, ways: Mapping[str, int]) -> Speak:
    """The recordings through a codec, with as many codebooks as each of `ways` has."""

    def speak(utterance: Utterance) -> dict[str, Take]:
        audio = read_audio(utterance.audio, codec.input_sample_rate, tell=ignore)
        codes = encode_long(codec, audio)
        return {
            way: _after_prompt(_at_speech_rate(codec, decode_long(codec, codes[:n_q], num_samples=len(audio))), setting)
            for way, n_q in ways.items()
        }

    return speak


def model_speech(model: SpeechModel, codec: Codec, setting: Setting, seed: int, ways: Mapping[str, int]) -> Speak:
    """Speech of a language model, decoded with as many codebooks as each of `ways` has.

    The prompt's codes are decoded before it, so that the codec hears what came before; in the setting `cross` their
    part is cut off again. One way with one codebook asks the model for the first codebook alone.
    """
    layers = codebooks_of(model, codec)
    first_only = set(ways.values()) == {1}

    def speak(utterance: Utterance) -> dict[str, Take]:
        prompt = _prompt_codes(codec, utterance, setting)[:layers]
        told = {"prompt_text": utterance.prompt_text} if setting is Setting.cross else {}
        spoken = model.speak(utterance.text, **told, prompt_codes=prompt, seed=seed, first_codebook_only=first_only)
        if not spoken.codes.shape[1]:
            raise EmptySpeechError(f"{utterance.id}: nothing was spoken")
        begins = round(prompt.shape[1] * codec.hop_length * SPEECH_RATE / codec.input_sample_rate)
        made = {}
        for way, n_q in ways.items():
            layers_used = min(n_q, len(spoken.codes))
            codes = torch.cat([prompt[:layers_used], spoken.codes[:layers_used].cpu()], dim=1)
            audio = _at_speech_rate(codec, decode_long(codec, codes))
            kept = (audio, begins) if setting is Setting.continual else (audio[begins:], 0)
            made[way] = Take(*kept, spoken.hit_cap, spoken.retries)
        return made

    return speak


def file_speech(files: Mapping[str, Path], setting: Setting) -> Speak:
    """Speech that was made elsewhere; in the setting `continual` every file begins with the prompt's 3 s."""

    def speak(utterance: Utterance) -> dict[str, Take]:
        if utterance.id not in files:
            raise AudioError(f"{utterance.id}.*: there is no generated file of this name")
        return {"": _after_prompt(read_audio(files[utterance.id], SPEECH_RATE, tell=ignore), setting)}

    return speak


def prompt_of(utterance: Utterance, setting: Setting) -> Samples:
    """The original prompt (n,) at 16 kHz. Raises AudioError if it cannot be read."""
    if setting is Setting.cross:
        assert utterance.prompt_audio is not None
        return read_audio(utterance.prompt_audio, SPEECH_RATE, tell=ignore)
    return read_audio(utterance.audio, SPEECH_RATE, tell=ignore)[: round(PROMPT_S * SPEECH_RATE)]


def codebooks_of(model: SpeechModel, codec: Codec) -> int:
    """Codebooks of a model: fewer than the codec's where it was trained on fewer."""
    n_q: int = getattr(getattr(model, "codec", None), "n_q", codec.n_q)
    return n_q


def _prompt_codes(codec: Codec, utterance: Utterance, setting: Setting) -> Tensor:
    """(n_q, P): all of the other utterance, or the whole frames of this one's first 3 s, which hear no more of it."""
    if setting is Setting.cross:
        assert utterance.prompt_audio is not None
        return encode_long(codec, read_audio(utterance.prompt_audio, codec.input_sample_rate, tell=ignore))
    frames = int(PROMPT_S * codec.frame_rate)
    audio = read_audio(utterance.audio, codec.input_sample_rate, tell=ignore)[: frames * codec.hop_length]
    if len(audio) < frames * codec.hop_length:
        raise XycodecError(f"{utterance.id}: is shorter than the prompt of {PROMPT_S:g} s: leave it out of the list")
    return encode_long(codec, audio)


def _after_prompt(audio: Samples, setting: Setting) -> Take:
    begins = round(PROMPT_S * SPEECH_RATE) if setting is Setting.continual else 0
    if len(audio) <= begins:
        raise AudioError(f"lasts {len(audio) / SPEECH_RATE:.2f} s, no longer than the prompt of {PROMPT_S:g} s")
    return Take(audio, begins)


def _at_speech_rate(codec: Codec, audio: Tensor) -> Samples:
    samples: Samples = audio.numpy()
    if codec.output_sample_rate == SPEECH_RATE:
        return samples
    return np.ascontiguousarray(soxr.resample(samples, codec.output_sample_rate, SPEECH_RATE))
