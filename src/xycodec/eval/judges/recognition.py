"""Whether the words survive: errors of a speech recogniser on decoded audio."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from xycodec.errors import CheckpointError, XycodecError, reason_of
from xycodec.eval.judges.base import PIECE_S, Judge, Pair, pieces
from xycodec.eval.judges.sources import Source, load_model, load_part, locate, need, samples_for
from xycodec.eval.metrics.quality import RATE
from xycodec.eval.metrics.wer import Normaliser, character_errors, normalise, whisper_normaliser, word_error_rate
from xycodec.eval.results import Scores
from xycodec.io.audio import Samples

NORMALISERS = {
    "plain": "lower case, without punctuation, apostrophes left out",
    "whisper": "Whisper's English normaliser",
}


class Transcriber(Protocol):
    """A model that writes what it hears."""

    about: str
    """Model, revision and settings, for the protocol."""
    shortest: int
    """Samples that it needs."""
    rows: int
    """Clips that it takes at once."""
    normaliser: str
    """The one of `NORMALISERS` that its spelling goes with."""
    spellings: Mapping[str, str]
    """Spelling variants for Whisper's normaliser."""

    def __call__(self, clips: Sequence[Samples]) -> list[str]:
        """Transcribe at most `rows` clips (n,) at 16 kHz, of any length; no text depends on the other clips."""


class Recognition(Judge):
    """`wer` and `cer` of what `transcriber` hears in the decoded audio; they pool by the length of the transcripts.

    `normaliser`: of `NORMALISERS`, or None for the transcriber's own. Raises XycodecError if there is no such.
    """

    names = ("wer", "cer")

    def __init__(self, transcriber: Transcriber, normaliser: str | None = None) -> None:
        need("jiwer")
        self._transcriber = transcriber
        self._name = normaliser or transcriber.normaliser
        if self._name not in NORMALISERS:
            raise XycodecError(f"no normaliser is called {self._name!r}: there are {' and '.join(NORMALISERS)}")
        self._normaliser: Normaliser = normalise if self._name == "plain" else whisper_normaliser(transcriber.spellings)
        self.shortest = transcriber.shortest
        self.rows = transcriber.rows

    def describe(self) -> str:
        """Model, revision, how it listens, and how texts are compared."""
        spelt = NORMALISERS[self._name]
        if self._name == "whisper" and not self._transcriber.spellings:
            spelt += " without its list of spellings"
        return f"{self._transcriber.about}; texts compared: {spelt}; spaces are characters"

    def refusal(self, pair: Pair) -> str | None:
        """Tell why a pair cannot be judged: a transcript without words has no rate: it could count insertions only."""
        if pair.text is None:
            return "no transcript"
        return super().refusal(pair) or (None if self._normaliser(pair.text) else "no words in the transcript")

    def judge(self, pairs: Sequence[Pair]) -> list[Scores]:
        """Errors per word, and per character, of the transcript: 0 is none, insertions may take it beyond 1."""
        heard = self._transcriber([pair.decoded for pair in pairs])
        return [self._compare(pair.text or "", text) for pair, text in zip(pairs, heard, strict=True)]

    def _compare(self, text: str, heard: str) -> Scores:
        words = word_error_rate([text], [heard], self._normaliser)
        characters = character_errors([text], [heard], self._normaliser)
        return Scores(
            {"wer": words.rate, "cer": characters.errors / characters.characters},
            weights={"wer": float(words.words), "cer": float(characters.characters)},
            transcript=heard,
        )


# ---- models ------------------------------------------------------------------------------------


def load_transcriber(name: str, device: str, language: str) -> Transcriber:
    """The recogniser of a hub id or folder (see `make_judges`). Raises CheckpointError."""
    source = locate(name)
    config = load_part(source, "AutoConfig", "configuration")
    if not config.is_encoder_decoder:
        return Ctc(source, device)
    if config.model_type != "whisper":
        raise CheckpointError(f"{name}: is a {config.model_type}, choose a CTC model or a Whisper")
    return Whisper(source, device, language)


class Ctc:
    """A CTC model of Transformers: the likeliest symbol of every frame, one clip at a time."""

    normaliser = "plain"
    spellings: Mapping[str, str] = {}
    # Padding changes what models with group norm hear, and takes time of those that can mask it.
    rows = 1

    def __init__(self, source: Source, device: str) -> None:
        self._model = load_model(source, "AutoModelForCTC", "CTC recogniser", device)
        self._features = _feature_extractor(source)
        self._tokenizer = load_part(source, "AutoTokenizer", "tokenizer")
        self.shortest = samples_for(1, self._model.config)
        self.about = (
            f"{source} ({type(self._model).__name__}), greedy, no language model; clips over {PIECE_S:g} s in equal "
            "pieces"
        )

    def __call__(self, clips: Sequence[Samples]) -> list[str]:
        """Transcribe clips (see `Transcriber`)."""
        return [" ".join(filter(None, map(self._spell, pieces(clip)))) for clip in clips]

    @torch.inference_mode()
    def _spell(self, audio: Samples) -> str:
        values = self._features(audio, sampling_rate=RATE, return_tensors="pt").input_values
        best = self._model(values.to(self._model.device)).logits[0].argmax(dim=-1)
        # It would drop blanks before it joins repetitions if it were told to skip special tokens.
        text: str = self._tokenizer.decode(best.tolist())
        return text.strip()


class Whisper:
    """A Whisper of Transformers, greedy, without timestamps; clips over its window by long-form generation.

    On a GPU eight clips are decoded at once, and always eight, so that each meets the same shapes.
    """

    normaliser = "whisper"
    shortest = 1

    def __init__(self, source: Source, device: str, language: str, rows: int | None = None) -> None:
        self._model = load_model(source, "AutoModelForSpeechSeq2Seq", "Whisper", device)
        self._features = _feature_extractor(source)
        self._tokenizer = load_part(source, "AutoTokenizer", "tokenizer")
        self.spellings = _spellings(source)
        self.rows = rows or (1 if self._model.device.type == "cpu" else 8)
        self._settings: dict[str, Any] = {"do_sample": False, "num_beams": 1}
        spoken = getattr(self._model.generation_config, "lang_to_id", {})  # models of English alone have none
        if spoken:
            if f"<|{language}|>" not in spoken:
                raise CheckpointError(f"{source.name}: knows no language {language!r}, give a code such as en")
            self._settings |= {"language": language, "task": "transcribe"}
        window = self._features.n_samples
        self.about = (
            f"{source} ({type(self._model).__name__}), greedy, no timestamps"
            f"{f', language {language}' if spoken else ''}; clips over {window / RATE:g} s by long-form generation"
        )

    def __call__(self, clips: Sequence[Samples]) -> list[str]:
        """Transcribe clips (see `Transcriber`)."""
        window = self._features.n_samples
        short = [clip for clip in clips if len(clip) <= window]
        heard = iter(self._hear(short) if short else [])
        return [next(heard) if len(clip) <= window else self._hear_long(clip) for clip in clips]

    def _hear(self, clips: Sequence[Samples]) -> list[str]:
        filled = [*clips, *[clips[-1]] * (self.rows - len(clips))]
        return self._generate(filled, return_timestamps=False)[: len(clips)]

    def _hear_long(self, clip: Samples) -> str:
        # Transformers goes from one end of a sentence to the next by its timestamps, which the text leaves out.
        return self._generate([clip], return_timestamps=True, truncation=False, padding="longest")[0]

    @torch.inference_mode()
    def _generate(self, clips: Sequence[Samples], *, return_timestamps: bool, **lengths: Any) -> list[str]:
        made = self._features(
            list(clips), sampling_rate=RATE, return_attention_mask=True, return_tensors="pt", **lengths
        ).to(self._model.device)
        ids = self._model.generate(**made, return_timestamps=return_timestamps, **self._settings)
        texts: list[str] = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in texts]


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
    if features.sampling_rate != RATE:
        raise CheckpointError(f"{source.name}: hears {features.sampling_rate} Hz, choose a model for {RATE} Hz")
    return features
