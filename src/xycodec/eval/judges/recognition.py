"""Word and character error rates of a speech recogniser on decoded audio."""

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Protocol

import numpy as np
import torch

from xycodec.errors import CheckpointError, XycodecError, reason_of
from xycodec.eval.judges.base import PIECE_S, Judge, Pair, pieces
from xycodec.eval.judges.sources import Source, load_model, load_part, locate, need, samples_for
from xycodec.eval.metrics.wer import Normaliser, character_errors, normalise, whisper_normaliser, word_error_rate
from xycodec.eval.results import Scores
from xycodec.io.audio import Samples
from xycodec.io.rate import SPEECH_RATE

NORMALISERS = {
    "plain": "lower case, without punctuation, apostrophes left out",
    "whisper": "Whisper's English normaliser",
}
REPEATED_TOKENS = 3  # so many in a row may not come twice once a Whisper has looped
MOST_COMPRESSION = 2.4  # Whisper's paper, section 4.5
MOST_TOKENS = 20
"""A Whisper may write so many of any clip, and as many more of each second: German needs up to 8 a second, and scripts
of which each letter is a token some 15."""


@dataclass(frozen=True)
class Transcript:
    """Transcript of one clip by a recogniser."""

    text: str
    looped: bool = False
    """Whether it repeated itself at first, and this is its second attempt."""


class Transcriber(Protocol):
    """Interface of a speech recogniser."""

    about: str
    """Model, revision and settings, for the protocol."""
    shortest: int
    """Samples that it needs."""
    batch_size: int
    """Clips that it takes at once."""
    normaliser: str
    """The one of `NORMALISERS` that its spelling goes with."""
    spellings: Mapping[str, str]
    """Spelling variants for Whisper's normaliser."""
    languages: frozenset[str] | None
    """Codes of the languages that it writes; None: nobody knows, and it is not told which one to write."""

    def __call__(self, clips: Sequence[Samples], languages: Sequence[str]) -> list[Transcript]:
        """Transcribe at most `batch_size` clips (n,) at 16 kHz, of any length, in the language whose code each has.

        No transcript depends on the other clips.
        """


class Recognition(Judge):
    """`wer`, `wer_capped` and `cer` of what `transcriber` hears; they pool by the length of the references.

    A clip's reference is its text, or else what `transcriber` heard in the original (`Pair.heard`). Without either it
    is transcribed and has no rate.

    `normaliser`: of `NORMALISERS`, or None for the transcriber's own; `language`: of clips that name none. Raises
    XycodecError if there is no such.
    """

    names = ("wer", "wer_capped", "cer")

    def __init__(self, transcriber: Transcriber, normaliser: str | None = None, language: str = "en") -> None:
        need("jiwer")
        self._transcriber = transcriber
        self._name = normaliser or transcriber.normaliser
        if self._name not in NORMALISERS:
            raise XycodecError(f"no normaliser is called {self._name!r}: there are {' and '.join(NORMALISERS)}")
        self._english: Normaliser = normalise if self._name == "plain" else whisper_normaliser(transcriber.spellings)
        self._language = language_code(language)
        if not self._knows(self._language):
            raise XycodecError(f"the recogniser knows no language {language!r}: give a code such as en, or its name")
        self.shortest = transcriber.shortest
        self.batch_size = transcriber.batch_size

    def describe(self) -> str:
        """Model, revision, how it listens, and how texts are compared."""
        spelt = NORMALISERS[self._name]
        if self._name == "whisper":
            spelt += "" if self._transcriber.spellings else " without its list of spellings"
            spelt += f", other languages {NORMALISERS['plain']}"
        told = ""
        if self._transcriber.languages is not None:
            told = f", each clip in its own language ({self._language} where none is named)"
        return (
            f"{self._transcriber.about}{told}; texts compared: {spelt}; spaces are characters; reference of clips "
            "without text: what the same model hears in the original; capped: a clip has at most as many errors as its "
            "reference has words"
        )

    def refusal(self, pair: Pair) -> str | None:
        """Tell why a pair cannot be judged. A reference without words has no rate: it could count insertions only."""
        language = self._language_of(pair)
        if not self._knows(language):
            return f"the recogniser knows no language {language!r}"
        reference = pair.heard if pair.text is None else pair.text
        silent = reference is not None and not self._normaliser(language)(reference)
        return super().refusal(pair) or ("no words in the transcript" if silent else None)

    def judge(self, pairs: Sequence[Pair]) -> list[Scores]:
        """Errors per word, and per character, of the reference: 0 is none, insertions may take it beyond 1."""
        languages = [self._language_of(pair) for pair in pairs]
        heard = self._transcriber([pair.decoded for pair in pairs], languages)
        return list(map(self._compare, pairs, languages, heard))

    def unheard(self, pair: Pair) -> Scores:
        """The scores of a clip in which nothing is said at all: every word of its text is missed."""
        return self._compare(pair, self._language_of(pair), Transcript(""))

    def _compare(self, pair: Pair, language: str, heard: Transcript) -> Scores:
        reference = pair.heard if pair.text is None else pair.text
        if reference is None:
            original = np.array_equal(pair.decoded, pair.original)
            why = "no text: it is the reference itself" if original else "not computed: no text, no original heard"
            return Scores(missing=dict.fromkeys(self.names, why), transcript=heard.text, looped=heard.looped)
        normaliser = self._normaliser(language)
        words = word_error_rate([reference], [heard.text], normaliser)
        characters = character_errors([reference], [heard.text], normaliser)
        length = float(words.words)
        return Scores(
            {"wer": words.rate, "wer_capped": words.capped.rate, "cer": characters.errors / characters.characters},
            weights={"wer": length, "wer_capped": length, "cer": float(characters.characters)},
            transcript=heard.text,
            reference=reference if pair.text is None else None,
            looped=heard.looped,
        )

    def _language_of(self, pair: Pair) -> str:
        return language_code(pair.language) if pair.language else self._language

    def _knows(self, language: str) -> bool:
        return self._transcriber.languages is None or language in self._transcriber.languages

    def _normaliser(self, language: str) -> Normaliser:
        return self._english if language == "en" else normalise


def language_code(name: str) -> str:
    """Whisper's code of a language: `de` for de, de-DE, German and german."""
    from transformers.models.whisper import tokenization_whisper

    library: Any = tokenization_whisper
    lower = name.strip().lower()
    return str(library.TO_LANGUAGE_CODE.get(lower, re.split("[-_]", lower)[0]))


# ---- models ------------------------------------------------------------------------------------


def load_transcriber(name: str, device: str) -> Transcriber:
    """The recogniser of a hub id or folder (see `make_judges`). Raises CheckpointError."""
    source = locate(name)
    config = load_part(source, "AutoConfig", "configuration")
    if not config.is_encoder_decoder:
        return Ctc(source, device)
    if config.model_type != "whisper":
        raise CheckpointError(f"{name}: is a {config.model_type}, choose a CTC model or a Whisper")
    return Whisper(source, device)


class Ctc:
    """A CTC model of Transformers: the likeliest symbol of every frame, one clip at a time."""

    normaliser = "plain"
    spellings: Mapping[str, str] = {}
    languages: frozenset[str] | None = None
    # Padding changes what models with group norm hear, and takes time of those that can mask it.
    batch_size = 1

    def __init__(self, source: Source, device: str) -> None:
        self._model = load_model(source, "AutoModelForCTC", "CTC recogniser", device)
        self._features = _feature_extractor(source)
        self._tokenizer = load_part(source, "AutoTokenizer", "tokenizer")
        self.shortest = samples_for(1, self._model.config)
        self.about = (
            f"{source} ({type(self._model).__name__}), greedy, no language model; clips over {PIECE_S:g} s in equal "
            "pieces"
        )

    def __call__(self, clips: Sequence[Samples], languages: Sequence[str]) -> list[Transcript]:
        """Transcribe clips (see `Transcriber`)."""
        return [Transcript(" ".join(filter(None, map(self._spell, pieces(clip))))) for clip in clips]

    @torch.inference_mode()
    def _spell(self, audio: Samples) -> str:
        values = self._features(audio, sampling_rate=SPEECH_RATE, return_tensors="pt").input_values
        best = self._model(values.to(self._model.device)).logits[0].argmax(dim=-1)
        # It would drop blanks before it joins repetitions if it were told to skip special tokens.
        text: str = self._tokenizer.decode(best.tolist())
        return text.strip()


class Whisper:
    """A Whisper of Transformers, greedy, without timestamps; clips over its window by long-form generation.

    What it writes of a clip is limited by the clip's length. Where it repeats itself (see `loops`) the clip is heard
    again, greedily too, and no three tokens may come twice; Whisper's paper draws at random there, which Transformers
    can do, but chance has no place in a metric.

    On a GPU eight clips are decoded at once, and always eight, so that each meets the same shapes.
    """

    normaliser = "whisper"
    shortest = 1

    def __init__(self, source: Source, device: str, batch_size: int | None = None) -> None:
        self._model = load_model(source, "AutoModelForSpeechSeq2Seq", "Whisper", device)
        self._features = _feature_extractor(source)
        self._tokenizer = load_part(source, "AutoTokenizer", "tokenizer")
        self.spellings = _spellings(source)
        self.batch_size = batch_size or (1 if self._model.device.type == "cpu" else 8)
        spoken = getattr(self._model.generation_config, "lang_to_id", {})  # models of English alone have none
        self._told = bool(spoken)
        self.languages: frozenset[str] | None = frozenset(name.strip("<|>") for name in spoken) or frozenset({"en"})
        self._window: int = self._features.n_samples
        self.about = (
            f"{source} ({type(self._model).__name__}), greedy, no timestamps, at most {MOST_TOKENS} tokens and as "
            f"many more for each second; a text that zlib compresses more than {MOST_COMPRESSION:g} times is a "
            f"loop, heard again without repetitions of {REPEATED_TOKENS} tokens; clips over "
            f"{self._window / SPEECH_RATE:g} s by long-form generation"
        )

    def __call__(self, clips: Sequence[Samples], languages: Sequence[str]) -> list[Transcript]:
        """Transcribe clips (see `Transcriber`)."""
        heard = [Transcript(text) for text in self._hear(clips, languages)]
        looped = [n for n, clip in enumerate(clips) if loops(heard[n].text, len(clip) / self._window)]
        if looped:
            told = [clips[n] for n in looped], [languages[n] for n in looped]
            for n, text in zip(looped, self._hear(*told, no_repeat_ngram_size=REPEATED_TOKENS), strict=True):
                heard[n] = Transcript(text, looped=True)
        return heard

    def _hear(self, clips: Sequence[Samples], languages: Sequence[str], **settings: Any) -> list[str]:
        told = list(zip(clips, languages, strict=True))
        short = [one for one in told if len(one[0]) <= self._window]
        heard = iter(self._hear_short(short, **settings) if short else [])
        return [next(heard) if len(one[0]) <= self._window else self._hear_long(one, **settings) for one in told]

    def _hear_short(self, told: Sequence[tuple[Samples, str]], **settings: Any) -> list[str]:
        filled = [*told, *[told[-1]] * (self.batch_size - len(told))]
        own = self._model.generation_config.max_length
        most = [min(own, MOST_TOKENS + ceil(MOST_TOKENS * len(clip) / SPEECH_RATE)) for clip, _ in told]
        # Whisper's `max_length` counts without the prompt.
        generated = self._generate(filled, return_timestamps=False, max_length=max(most), **settings)
        return [self._spell(row[:limit]) for row, limit in zip(generated, most, strict=False)]

    def _hear_long(self, one: tuple[Samples, str], **settings: Any) -> str:
        # Transformers goes from one end of a sentence to the next by its timestamps, which the text leaves out.
        whole = {"truncation": False, "padding": "longest"}
        return self._spell(self._generate([one], whole, return_timestamps=True, **settings)[0])

    def _spell(self, ids: Any) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip()

    @torch.inference_mode()
    def _generate(
        self, told: Sequence[tuple[Samples, str]], lengths: Mapping[str, Any] | None = None, **settings: Any
    ) -> list[Any]:
        """The tokens of each clip, without those of the prompt; shorter ones end in padding."""
        made = self._features(
            [clip for clip, _ in told], sampling_rate=SPEECH_RATE, return_attention_mask=True, return_tensors="pt",
            **(lengths or {}),
        ).to(self._model.device)  # fmt: skip
        if self._told:
            settings |= {"language": [language for _, language in told], "task": "transcribe"}
        return list(self._model.generate(**made, do_sample=False, num_beams=1, **settings))


def loops(text: str, windows: float = 1.0) -> bool:
    """Whether a transcript of so many windows of 30 s is a loop of the recogniser: a part of it compresses too well.

    Source: Whisper's paper (Radford et al. 2022), section 4.5, which looks at windows too: long texts compress better.
    """
    data = text.encode()
    size = max(1, ceil(len(data) / max(1, ceil(windows))))
    parts = (data[start : start + size] for start in range(0, len(data), size))
    return any(len(part) > MOST_COMPRESSION * len(zlib.compress(part)) for part in parts)


def _spellings(source: Source) -> Mapping[str, str]:
    file = source.folder / "normalizer.json"
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{source.name}: its {file.name} cannot be read ({reason_of(error)})") from None


def _feature_extractor(source: Source) -> Any:
    features = load_part(source, "AutoFeatureExtractor", "feature extractor")
    if features.sampling_rate != SPEECH_RATE:
        raise CheckpointError(f"{source.name}: hears {features.sampling_rate} Hz, choose a model for {SPEECH_RATE} Hz")
    return features
