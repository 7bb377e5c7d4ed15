"""Text to speech for tests: a list of utterances, a model that speaks at random, and ears."""

import hashlib
from dataclasses import dataclass

import numpy as np
import soundfile as sf
import torch

from xycodec.errors import EmptySpeechError, XycodecError
from xycodec.eval.judges.base import Judge
from xycodec.eval.judges.recognition import Transcript
from xycodec.eval.results import Scores
from xycodec.eval.tts.utterances import Utterance
from xycodec.models.base import codes_fingerprint

RATE = 16_000


def write_speech(path, seconds, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * RATE)) / RATE
    noise = np.random.default_rng(seed).uniform(-0.3, 0.3, len(time))
    sf.write(path, noise * np.abs(np.sin(2 * np.pi * (1 + seed) * time)), RATE)
    return str(path)


def make_utterances(folder, count=2, seconds=3.6):
    """Utterances `u0`, `u1`, ..., of two speakers, each with a prompt of another recording."""
    prompt = write_speech(folder / "prompt.wav", 1.0, 99)
    return [
        Utterance(f"u{n}", f"A WORD {n}", write_speech(folder / f"u{n}.wav", seconds, n), f"s{n % 2}", prompt, "HELLO")
        for n in range(count)
    ]


@dataclass(frozen=True)
class Words:
    """What a model speaks."""

    codes: torch.Tensor
    hit_cap: bool = False
    retries: int = 0


class Babbler:
    """A model that speaks codes that text, seed and the last frame of the prompt draw, ten frames for each word.

    Of a text with NOTHING it says nothing, one with ENDLESS hits the cap, one with # is not known.
    """

    def __init__(self, codec, n_q=None, frames=10):
        self.codec_name, self.codec_hash, self.frame_rate = codec.model_id, codes_fingerprint(codec), codec.frame_rate
        self.n_q, self.size, self.frames = n_q or codec.n_q, codec.codebook_size, frames
        self.told = []

    def speak(self, text, *, prompt_text=None, prompt_codes=None, seed=0, first_codebook_only=False):
        self.told.append((text, prompt_text, tuple(prompt_codes.shape), seed, first_codebook_only))
        if "#" in text:
            raise XycodecError(f"{text!r}: the symbol '#' is not in the model's table")
        if "NOTHING" in text:
            raise EmptySpeechError(f"{text!r}: nothing was spoken with 5 seeds")
        about = f"{text} {seed} {prompt_codes[:, -1].tolist()}"
        draw = torch.Generator().manual_seed(int(hashlib.sha256(about.encode()).hexdigest()[:12], 16))
        codes = torch.randint(self.size, (self.n_q, self.frames * len(text.split())), generator=draw)
        return Words(codes[:1] if first_codebook_only else codes, "ENDLESS" in text, seed)


class Ear:
    """A recogniser that hears how many tenths of a second a clip lasts, and a word more or less by how loud it is."""

    about, shortest, batch_size, normaliser, spellings, languages = "an ear", 1, 2, "plain", {}, None

    def __call__(self, clips, languages):
        return [Transcript(f"a word {len(clip) // 1600}" + " uh" * (int(1e6 * clip.std()) % 5)) for clip in clips]


class Lengths(Judge):
    """A speaker model that says how long decoded and original are, in thousandths of a second."""

    names = ("similarity",)
    shortest = 1

    def __init__(self, scale=1.0):
        self.scale = scale

    def describe(self):
        return f"lengths times {self.scale}"

    def judge(self, pairs):
        return [
            Scores({"similarity": self.scale * (len(pair.decoded) // 16 + len(pair.original) // 16 / 1e6)})
            for pair in pairs
        ]
