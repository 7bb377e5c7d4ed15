"""Text that a training run hears in audio, which makes the semantic side of a codec visible.

A run of stage `pretrain` hears codes: its codec encodes the audio, and its language model transcribes what the
quantizer kept. A run of stage `ctc` hears the log-mel: its tower spells.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from xycodec.checkpoints.load import resolve_device
from xycodec.checkpoints.training import read_checkpoint
from xycodec.errors import AudioError, CheckpointError, ConfigError
from xycodec.eval.corpus import Item
from xycodec.eval.metrics.wer import WordErrors, word_error_rate
from xycodec.io.audio import Samples
from xycodec.io.config import parse_config
from xycodec.models.longform import encode_long
from xycodec.models.precision import own_precision
from xycodec.models.xy_tokenizer.config import RecogniserConfig
from xycodec.models.xy_tokenizer.ctc import Recogniser
from xycodec.train.init.weights import find_checkpoint
from xycodec.train.listener import Listener, load_listener

Ear = Callable[[Samples], str]
"""Text of audio (T,) float32 at 16 kHz."""


@dataclass(frozen=True)
class Heard:
    """One clip's text."""

    clip: str
    said: str | None
    """Text that the corpus gives."""
    heard: str = ""
    errors: WordErrors | None = None
    """Word errors, where the text is known."""
    problem: str | None = None
    """Reason, where the clip could not be read."""


def load_ear(run: str | Path, *, lm: str | None = None, device: str = "auto", n_q: int | None = None) -> Ear:
    """Load what transcribes with a run's newest checkpoint, or with one checkpoint, of stage `pretrain` or `ctc`.

    `lm` names another place of the run's language model; `n_q` lets it hear the first codebooks only. Raises
    CheckpointError, one line, if `run` is neither, ConfigError for an option that a tower has no use for.
    """
    checkpoint = find_checkpoint(Path(run))
    if checkpoint is None:
        raise CheckpointError(f"{run}: no run and no checkpoint of one: name a run of stage pretrain or ctc")
    data = read_checkpoint(checkpoint)
    if data.get("recogniser") is None:
        return _listening(load_listener(checkpoint, lm=lm, device=device), n_q)
    if lm is not None or n_q is not None:
        raise ConfigError(f"{checkpoint}: a recogniser has neither language model nor codebooks: leave lm and n_q out")
    recogniser = Recogniser(parse_config(RecogniserConfig, data["recogniser"], str(checkpoint), CheckpointError))
    prefix = "recogniser."
    state: dict[str, Tensor] = data["networks"]["model"]
    recogniser.load_state_dict({key.removeprefix(prefix): value for key, value in state.items()})
    return _spelling(recogniser.eval().to(resolve_device(device)))


def transcribe(items: Iterable[Item], ear: Ear) -> Iterator[Heard]:
    """Texts of clips, one by one; a clip that cannot be read has a problem, and the others go on."""
    for item in items:
        try:
            heard = ear(item.load())
        except AudioError as error:
            yield Heard(item.clip, item.text, problem=str(error))
            continue
        errors = word_error_rate([item.text], [heard]) if item.text else None
        yield Heard(item.clip, item.text, heard, errors)


def _listening(listener: Listener, n_q: int | None) -> Ear:
    listener.codec.check_layers(n_q)
    return lambda audio: listener.transcribe(encode_long(listener.codec, audio, n_q=n_q))


def _spelling(recogniser: Recogniser) -> Ear:
    place = recogniser.head.weight.device

    @torch.no_grad()
    def spell(audio: Samples) -> str:
        # A word that lies across two windows may be lost.
        texts = []
        for part in torch.split(torch.from_numpy(audio).to(place), recogniser.window_samples):
            with own_precision(place):
                mel = recogniser.log_mel(part[None], [len(part)])
                texts += recogniser.read(recogniser(mel, [len(part)]), [len(part)])
        return " ".join(filter(None, texts))

    return spell
