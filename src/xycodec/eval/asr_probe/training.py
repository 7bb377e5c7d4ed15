"""Training of the ASR probe: steps, evaluations, and a saved state from which a run resumes exactly."""

import json
import math
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence

from xycodec.errors import XycodecError, reason_of
from xycodec.eval.asr_probe.data import Features, Spoken
from xycodec.eval.asr_probe.model import Probe, alphabet_of, augmented
from xycodec.eval.metrics.wer import character_errors, word_error_rate
from xycodec.io.config import Config, Probability
from xycodec.io.files import os_error_line, write_whole
from xycodec.models.xy_tokenizer.ctc import BLANK, frames_needed

STATE, BEST, LOG = "state.pt", "best.safetensors", "log.jsonl"
SAVE_S = 300.0  # at most so much is computed again after a kill
READ_AT_ONCE = 16  # clips
SHOWN = 20  # clips whose transcripts are kept
MOST_NORM = 1.0  # of the gradients
OTHER = "choose another folder"


class ProbeConfig(Config):
    """Settings of a probe's training; defaults are the protocol's."""

    n_q: PositiveInt | None = None
    """Layers of the codec that it reads, from the first on; None: all."""
    branch: str | None = None
    """Branch of `Codec.embed` to read; None: the quantizer's output."""
    steps: PositiveInt = 400_000
    batch: PositiveInt = 4
    lr: PositiveFloat = 1e-4
    projection: PositiveInt = 1024
    hidden: PositiveInt = 1024
    """Width of each direction of each LSTM."""
    layers: PositiveInt = 2
    dropout: Probability = 0.2
    augment: bool = True
    """SpecAugment."""
    bfloat16: bool = False
    """Products in bfloat16; needs a GPU."""
    evaluate_every: PositiveInt = 2000
    log_every: PositiveInt = 100
    seed: NonNegativeInt = 0


@dataclass(frozen=True)
class Point:
    """An evaluation on the dev clips."""

    step: int
    loss: float
    """Mean loss of the training steps since the last line of the log."""
    wer: float
    cer: float


@dataclass(frozen=True)
class Transcript:
    """Reference text of a dev clip, and the probe's."""

    clip: str
    said: str
    heard: str


class ProbeTraining:
    """A probe on its way to `config.steps`.

    What is random in a step follows from the seed and the step's number, so the number is all that is to be kept of
    it. `advance` of `train` is called after each step.
    """

    def __init__(
        self,
        config: ProbeConfig,
        features: Features,
        train: Sequence[Spoken],
        dev: Sequence[Spoken],
        device: torch.device,
        folder: Path,
    ) -> None:
        self.config, self.device, self.folder = config, device, folder
        self._features, self._dev = features, dev
        self.alphabet = alphabet_of(one.text for one in train)
        self._train = sorted((one for one in train if self.fits(one)), key=features.frames)
        if not self._train:
            raise XycodecError(f"none of {len(train)} clips has as many frames as its text needs: give longer clips")
        torch.manual_seed(config.seed)
        self.probe = Probe(
            features.width(self._train),
            len(self.alphabet.characters),
            projection=config.projection,
            hidden=config.hidden,
            layers=config.layers,
            dropout=config.dropout,
        ).to(device)
        self._optimizer = torch.optim.Adam(self.probe.parameters(), lr=config.lr)
        self.step = 0
        self.best: Point | None = None
        """The evaluation with the lowest WER, among equals with the lowest CER, and what was read then."""
        self.transcripts: tuple[Transcript, ...] = ()
        self._log: list[dict[str, float]] = []

    def fits(self, one: Spoken) -> bool:
        """Whether CTC can spell a clip's text in its frames."""
        return frames_needed(self.alphabet.spell(one.text)) <= self._features.frames(one)

    @property
    def curve(self) -> tuple[Point, ...]:
        """All evaluations so far."""
        return tuple(Point(int(row["step"]), row["loss"], row["wer"], row["cer"]) for row in self._log if "wer" in row)

    # ---- the loop ------------------------------------------------------------------------------

    def train(self, settings: dict[str, Any], advance: Callable[[], None]) -> None:
        """Train up to the last step; `settings` are saved with the state.

        Raises XycodecError if the loss is not finite, or a file cannot be written.
        """
        self.probe.train()
        saved = time.monotonic()
        losses: list[Tensor] = []
        while self.step < self.config.steps:
            losses.append(self._one_step())
            self.step += 1
            evaluated = self.step == self.config.steps or self.step % self.config.evaluate_every == 0
            if evaluated or self.step % self.config.log_every == 0:
                row = {"step": self.step, "loss": self._mean(losses)}
                losses = []
                self._record(row | (self._evaluate(row["loss"]) if evaluated else {}))
                # Only here, because a state does not hold the losses since the last line of the log.
                if evaluated or time.monotonic() - saved > SAVE_S:
                    self._save(settings)
                    saved = time.monotonic()
            advance()

    def _one_step(self) -> Tensor:
        """One update; returns the loss, detached, on the device."""
        torch.manual_seed(int(_generator(self.config.seed, 1, self.step).integers(2**63)))
        batch = self._batch(self.step)
        features = [self._features(one).to(self.device) for one in batch]
        if self.config.augment:
            features = [augmented(clip) for clip in features]
        spelt = [torch.tensor(self.alphabet.spell(one.text)) for one in batch]
        # The mean over clips of the loss a character.
        loss = F.ctc_loss(
            self._log_probs(features).transpose(0, 1),
            pad_sequence(spelt, batch_first=True, padding_value=BLANK).to(self.device),
            torch.tensor([len(clip) for clip in features]),
            torch.tensor([len(text) for text in spelt]),
            blank=BLANK,
        )
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        clip_grad_norm_(self.probe.parameters(), MOST_NORM)
        self._optimizer.step()
        return loss.detach()

    def _batch(self, step: int) -> list[Spoken]:
        """Clips of like length; an epoch takes all batches, in an order of its own."""
        size = self.config.batch
        count = math.ceil(len(self._train) / size)
        epoch, place = divmod(step, count)
        first = size * int(_generator(self.config.seed, 0, epoch).permutation(count)[place])
        return self._train[first : first + size]

    def _log_probs(self, features: Sequence[Tensor]) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bfloat16):
            log_probs: Tensor = self.probe(features)
        return log_probs

    def _mean(self, losses: Sequence[Tensor]) -> float:
        loss = float(torch.stack(list(losses)).mean())
        if not math.isfinite(loss):
            raise XycodecError(
                f"{self.folder}: the loss is not finite at step {self.step}: lower lr, in another folder"
            )
        return loss

    # ---- evaluation ----------------------------------------------------------------------------

    def _evaluate(self, loss: float) -> dict[str, float]:
        """WER and CER on the dev clips; weights and transcripts are kept if none was better."""
        heard = self.read(self._dev)
        said = [one.text for one in self._dev]
        spelling = character_errors(said, heard)
        wer, cer = word_error_rate(said, heard).rate, spelling.errors / max(1, spelling.characters)
        point = Point(self.step, loss, wer, cer)
        if self.best is None or _errors(point) < _errors(self.best):
            self.best = point
            shown = np.linspace(0, len(said) - 1, min(SHOWN, len(said))).round().astype(int).tolist()
            self.transcripts = tuple(Transcript(self._dev[i].clip, said[i], heard[i]) for i in shown)
            weights = {name: value.contiguous() for name, value in self.probe.state_dict().items()}
            # Before the state: a run that is killed between the two finds the same best again.
            write_whole(self.folder / BEST, lambda path: path.write_bytes(save(weights)))
        return {"wer": wer, "cer": cer}

    @torch.no_grad()
    def read(self, clips: Sequence[Spoken]) -> list[str]:
        """Transcribe clips greedily, in their order: the most likely column of each frame."""
        self.probe.eval()
        heard = [""] * len(clips)
        frames = [self._features.frames(one) for one in clips]
        order = sorted((index for index in range(len(clips)) if frames[index]), key=frames.__getitem__)
        for start in range(0, len(order), READ_AT_ONCE):
            group = order[start : start + READ_AT_ONCE]
            best = self._log_probs([self._features(clips[index]).to(self.device) for index in group]).argmax(dim=-1)
            for index, columns in zip(group, best.tolist(), strict=True):
                heard[index] = self.alphabet.read(columns[: frames[index]])
        self.probe.train()
        return heard

    # ---- files ---------------------------------------------------------------------------------

    def restore(self, settings: dict[str, Any]) -> None:
        """Restore the run that the folder holds, if any. Raises XycodecError if its settings differ."""
        if state := read_state(self.folder, settings):
            self.probe.load_state_dict(state["probe"])
            self._optimizer.load_state_dict(state["optimizer"])
            self.step, self._log = state["step"], state["log"]
            self.transcripts = tuple(Transcript(*texts) for texts in state["transcripts"])
            self.best = min(self.curve, key=_errors, default=None)
            if self.step > self.config.steps:
                raise XycodecError(f"{self.folder}: holds a probe of {self.step} steps: ask for more, or {OTHER}")
        # What a run recorded beyond its state will be recorded again.
        lines = "".join(json.dumps(row) + "\n" for row in self._log)
        write_whole(self.folder / LOG, lambda path: path.write_text(lines, encoding="utf-8"))

    def _record(self, row: dict[str, float]) -> None:
        self._log.append(row)
        path = self.folder / LOG
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise XycodecError(os_error_line(str(path), "written", error)) from error

    def _save(self, settings: dict[str, Any]) -> None:
        state = {
            "settings": settings,
            "step": self.step,
            "log": self._log,
            "transcripts": [(one.clip, one.said, one.heard) for one in self.transcripts],
            "probe": self.probe.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }
        write_whole(self.folder / STATE, lambda path: torch.save(state, path))


def read_state(folder: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """State of the run in a folder, or None. Raises XycodecError if it has not all of `settings`, or is damaged."""
    path = folder / STATE
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise XycodecError(f"{path}: damaged ({reason_of(error)}): {OTHER}") from error
    for name, value in settings.items():
        if state["settings"].get(name) != value:
            what = _NAMES.get(name, name)
            raise XycodecError(f"{folder}: holds a probe with another {what}: use its own, or {OTHER}")
    return state


def _errors(point: Point) -> tuple[float, float]:
    return point.wer, point.cer


_NAMES = {"train": "list of training clips", "dev": "list of dev clips"}


def _generator(seed: int, purpose: int, number: int) -> np.random.Generator:
    return np.random.default_rng([seed, purpose, number])
