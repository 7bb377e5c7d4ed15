"""The ASR probe: how well a small recogniser can read the words from a frozen codec's embeddings.

The protocol is the paper's (docs/models/xy_tokenizer.md, Evaluation): quantized embeddings, repeated to at least 50
frames a second, go through two bidirectional LSTMs with CTC over characters; batches of 4, learning rate 1e-4, 400,000
steps. Where the paper is silent it is SUPERB's ASR task: a linear map to 1024 before LSTMs of 1024, dropout 0.2, Adam
at a constant rate, gradients clipped at 1, SpecAugment, batches of clips of like length, greedy decoding without a
language model, the best of all evaluations reported.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from xycodec.baselines.open import open_codec
from xycodec.checkpoints.load import resolve_device
from xycodec.errors import XycodecError
from xycodec.eval.asr_probe.data import Clips, Features, open_clips
from xycodec.eval.asr_probe.training import Point, ProbeConfig, ProbeTraining, Transcript, read_state
from xycodec.io.files import write_whole
from xycodec.models.base import Codec, fingerprint

RESULT = "result.json"


@dataclass(frozen=True)
class ProbeProgress:
    """Progress of a probe: seconds of clips that are encoded, or steps."""

    phase: Literal["encoding", "training"]
    done: float
    total: float
    wer: float | None = None
    """The best so far."""


@dataclass(frozen=True)
class ClipCounts:
    """Counts of a corpus's clips: used, and left out."""

    used: int
    seconds: float
    """Duration of the clips that were used."""
    without_text: int
    crowded: int
    """Have more characters than CTC can spell in their frames: left out of training, counted in WER and CER."""
    failed: tuple[tuple[str, str], ...]
    """(clip, reason) of those that cannot be read."""


@dataclass(frozen=True)
class ProbeResult:
    """Error rates of a probe on the dev clips, at the evaluation with the lowest WER."""

    model: str
    n_q: int
    wer: float
    """Word errors per word, greedy decoding, texts as `xycodec.eval.metrics.wer.normalise` makes them."""
    cer: float
    """Character errors per character of the same texts; spaces are characters."""
    best_step: int
    steps: int
    curve: tuple[Point, ...]
    transcripts: tuple[Transcript, ...]
    """Transcripts of dev clips from all over the manifest, at the best step."""
    train: ClipCounts
    dev: ClipCounts
    config: dict[str, Any]
    characters: str

    def to_dict(self) -> dict[str, Any]:
        """Everything in plain types."""
        return asdict(self)


Advance = Callable[[ProbeProgress], None]


def run_probe(
    model: str | Codec,
    train: str,
    dev: str,
    folder: Path,
    config: ProbeConfig | None = None,
    *,
    device: str = "auto",
    cache: Path | None = None,
    advance: Advance = lambda progress: None,
) -> ProbeResult:
    """Train a probe on the clips of `train`, measure it on those of `dev`, or go on where `folder` stands.

    A run that was stopped and goes on gives what one gives that was not: bit for bit on a CPU. One that has ended goes
    on if `config.steps` is larger than it was. Nothing but codes is computed by the codec, once.

    Args:
        model: a codec, or what `open_codec` takes.
        train: a corpus as `open_corpora` takes it; clips without text are left out and counted, as `dev`'s are.
        dev: another; the best evaluation on it is the result, as in SUPERB.
        folder: of the run, made if needed: state.pt, best.safetensors (the probe's weights), log.jsonl, result.json.
        config: None: the protocol's.
        device: of the probe, and of a `model` that is loaded here.
        cache: folder of codes, which several runs may share; None: `folder / "codes"`.
        advance: told after each clip and each step.

    Raises:
        CheckpointError: `model` gives no codec.
        XycodecError: a corpus has no clip with text that can be read, `folder` holds the run of another model, other
            clips or other settings, a file cannot be written, or the loss is not finite.
    """
    config = config or ProbeConfig()
    place = resolve_device(device)
    if config.bfloat16 and place.type != "cuda":
        raise XycodecError(f"bfloat16 on {place.type} is slower than float32: leave it out, or give a GPU")
    codec = open_codec(model, device=device) if isinstance(model, str) else model
    features = Features(codec, config.n_q, config.branch)

    def opened(spec: str) -> Clips:
        def encoded(done: float, total: float) -> None:
            advance(ProbeProgress("encoding", done, total))

        return open_clips(codec, spec, cache or folder / "codes", advance=encoded)

    settings = config.model_dump(mode="json", exclude={"steps"}) | {"model": fingerprint(codec), "n_q": features.n_q}
    read_state(folder, settings)  # a folder of another run is refused before hours of encoding
    clips, heard = opened(train), opened(dev)
    settings |= {"train": clips.digest, "dev": heard.digest}
    # Random numbers of the caller stay as they are.
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        training = ProbeTraining(config, features, clips.spoken, heard.spoken, place, folder)
        training.restore(settings)
        training.train(settings, lambda: advance(_progress(training)))
    result = _result(codec, features, training, clips, heard)
    text = json.dumps(result.to_dict(), indent=2, ensure_ascii=False) + "\n"
    write_whole(folder / RESULT, lambda path: path.write_text(text, encoding="utf-8"))
    return result


def _progress(training: ProbeTraining) -> ProbeProgress:
    best = training.best
    return ProbeProgress("training", training.step, training.config.steps, best.wer if best else None)


def _result(codec: Codec, features: Features, training: ProbeTraining, train: Clips, dev: Clips) -> ProbeResult:
    best = training.best
    assert best is not None  # the last step is evaluated
    return ProbeResult(
        model=codec.model_id,
        n_q=features.n_q,
        wer=best.wer,
        cer=best.cer,
        best_step=best.step,
        steps=training.step,
        curve=training.curve,
        transcripts=training.transcripts,
        train=_counts(training, train, leave_out=True),
        dev=_counts(training, dev, leave_out=False),
        config=training.config.model_dump(mode="json"),
        characters=training.alphabet.characters,
    )


def _counts(training: ProbeTraining, clips: Clips, *, leave_out: bool) -> ClipCounts:
    used = [one for one in clips.spoken if not leave_out or training.fits(one)]
    crowded = sum(not training.fits(one) for one in clips.spoken)
    return ClipCounts(len(used), sum(one.seconds for one in used), clips.without_text, crowded, clips.failed)
