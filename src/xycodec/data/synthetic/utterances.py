"""Texts and voices of synthetic speech: utterance i follows from the seed and i alone.

Sentences come from grammars, `assets/sentences_*.yaml`. Their `symbols` map a name to its alternatives: a list, or
words separated by spaces, where _ is a space within one. `<name>` becomes one of them, each as likely as the others;
`<name?>` is left out half the time. Then each regular expression of `rewrite` is replaced, in order: a apple, an apple.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from random import Random

import yaml

_REFERENCE = re.compile(r"<(\w+)(\??)>")
_RATES = (0.8, 1.2)
_PITCHES = (-4.0, 4.0)
_VARIANTS = ("f1", "f2", "f3", "f4", "f5", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8")  # of every espeak-ng voice


@dataclass(frozen=True)
class Voice:
    """A voice of `program`, flite or espeak-ng, by its name there."""

    program: str
    name: str
    language: str


# Of a hundred utterances, how many a voice speaks; those of espeak-ng each in one of its variants.
_SHARES = {
    Voice("flite", "slt", "en"): 16,
    Voice("flite", "rms", "en"): 16,
    Voice("flite", "awb", "en"): 16,
    Voice("flite", "kal16", "en"): 2,
    Voice("espeak-ng", "en-us", "en"): 8,
    Voice("espeak-ng", "en-gb", "en"): 5,
    Voice("espeak-ng", "en-gb-scotland", "en"): 4,
    Voice("espeak-ng", "en-gb-x-rp", "en"): 4,
    Voice("espeak-ng", "en-gb-x-gbcwmd", "en"): 3,
    Voice("espeak-ng", "en-gb-x-gbclan", "en"): 2,
    Voice("espeak-ng", "en-029", "en"): 2,
    Voice("espeak-ng", "en-us-nyc", "en"): 2,
    Voice("espeak-ng", "de", "de"): 6,
    Voice("espeak-ng", "nl", "nl"): 4,
    Voice("espeak-ng", "fr-fr", "fr"): 3,
    Voice("espeak-ng", "es", "es"): 2,
    Voice("espeak-ng", "es-419", "es"): 1,
    Voice("espeak-ng", "it", "it"): 2,
    Voice("espeak-ng", "pt", "pt"): 1,
    Voice("espeak-ng", "pt-br", "pt"): 1,
}


@dataclass(frozen=True)
class Utterance:
    """One utterance: `rate` is a factor on the voice's own speed, `pitch` semitones from its own.

    `as_written` says that its transcript is the text itself, with capitals and punctuation.
    """

    index: int
    voice: Voice
    text: str
    rate: float
    pitch: float
    as_written: bool = False

    @property
    def id(self) -> str:
        """Id: the utterance's number and a digest of the rest, so that another seed or grammar gives other ids."""
        spoken = f"{self.voice.program} {self.voice.name} {self.rate} {self.pitch} {self.text}"
        return f"{self.index:07}-{hashlib.blake2b(spoken.encode(), digest_size=4).hexdigest()}"

    @property
    def transcript(self) -> str:
        """`text` in lower case: letters, apostrophes and single spaces; or just as it is written."""
        if self.as_written:
            return self.text
        kept = (sign if sign.isalpha() or sign == "'" else " " for sign in self.text.lower())
        return " ".join("".join(kept).split())


def draw_utterance(seed: int, index: int) -> Utterance:
    """Draw utterance number `index` of the corpus of `seed`; the same on every machine, whatever was drawn before."""
    draw = Random(f"{seed} {index}")
    voice = draw.choices(list(_SHARES), list(_SHARES.values()))[0]
    if voice.program == "espeak-ng":
        voice = Voice(voice.program, f"{voice.name}+{_pick(_VARIANTS, draw)}", voice.language)
    rate, pitch = (round(low + (high - low) * draw.random(), 2) for low, high in (_RATES, _PITCHES))
    return Utterance(index, voice, grammar(voice.language).sentence(draw), rate, pitch)


VOICES = ("slt", "rms", "awb", "kal16")
"""Voices of flite that may speak a whole corpus."""


def draw_of_voice(seed: int, index: int, voice: str, texts: Sequence[str] = ()) -> Utterance:
    """Utterance number `index` of the corpus that one voice of flite speaks in its own manner, as it is written.

    Every other one is of `texts`, in order, as long as there are some; the rest are drawn as `draw_utterance` does.
    """
    own = index % 2 == 1 and index // 2 < len(texts)
    text = texts[index // 2] if own else grammar("en").sentence(Random(f"{seed} {index}"))
    return Utterance(index, Voice("flite", voice, "en"), text, 1.0, 0.0, as_written=True)


@dataclass(frozen=True)
class Grammar:
    """Alternatives of every symbol, and (pattern, replacement) of what is rewritten; `sentence` is the start."""

    symbols: Mapping[str, Sequence[str]]
    rewrite: Sequence[tuple[re.Pattern[str], str]]

    def sentence(self, draw: Random) -> str:
        """Draw a sentence, with the punctuation that a voice needs for its melody."""
        text = " ".join(self._expand("sentence", draw).replace("_", " ").split())
        for pattern, replacement in self.rewrite:
            text = pattern.sub(replacement, text)
        return text.replace(" ,", ",").replace(" .", ".").replace(" ?", "?")

    def _expand(self, symbol: str, draw: Random) -> str:
        def expanded(reference: re.Match[str]) -> str:
            name, optional = reference.groups()
            return "" if optional and draw.random() < 0.5 else self._expand(name, draw)

        return _REFERENCE.sub(expanded, _pick(self.symbols[symbol], draw))


@cache
def grammar(language: str) -> Grammar:
    """Read the grammar of a language: en, de, nl, fr, es, it or pt."""
    text = files("xycodec").joinpath("assets", f"sentences_{language}.yaml").read_text(encoding="utf-8")
    # The base loader leaves "no" and "on" the words that they are.
    content = yaml.load(text, yaml.BaseLoader)
    symbols = {name: given.split() if isinstance(given, str) else given for name, given in content["symbols"].items()}
    rewrite = [(re.compile(pattern), replacement) for pattern, replacement in content.get("rewrite", [])]
    return Grammar(symbols, rewrite)


def _pick(alternatives: Sequence[str], draw: Random) -> str:
    # Python promises the same numbers in all its versions for `random` alone.
    return alternatives[int(draw.random() * len(alternatives))]
