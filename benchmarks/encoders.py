"""How much of the voice autoencoders of stage `autoencode` give back: runs of several encoders on the same clips.

    python benchmarks/encoders.py exp/encoders/small_whisper exp/encoders/small_hubert --data dev.jsonl [--clips 40]

Each run's newest checkpoint decodes the beginning of each clip, as long as the shortest window of the runs. Prints
Markdown: signal metrics and, with --similarity, that of voices, beside XY-Tokenizer's published comparison.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from shared import table
from xycodec.checkpoints.training import read_checkpoint
from xycodec.errors import CheckpointError
from xycodec.eval.corpus import open_corpora
from xycodec.eval.judges.base import Pair
from xycodec.eval.judges.choose import make_judges
from xycodec.eval.metrics.quality import measure_quality
from xycodec.eval.results import METRICS
from xycodec.io.config import parse_config
from xycodec.io.rate import SPEECH_RATE
from xycodec.models.autoencoder.config import AutoencoderConfig
from xycodec.models.autoencoder.model import Autoencoder
from xycodec.models.xcodec.semantic import HOP
from xycodec.train.init.weights import find_checkpoint

SIGNAL = ("stoi", "pesq_nb", "pesq_wb", "mel_distance")
PUBLISHED = (
    ("published: Whisper small", "0.68", "0.88", "2.03", "1.65"),
    ("published: WavLM large", "0.53", "0.83", "1.53", "1.26"),
    ("published: HuBERT large", "0.42", "0.80", "1.46", "1.20"),
)
"""XY-Tokenizer's project page: SIM, STOI, PESQ narrow and wide, after 200,000 steps on Emilia."""


def load_autoencoder(run: Path) -> tuple[Autoencoder, int]:
    """The autoencoder of a run's newest checkpoint, and its step. Raises CheckpointError."""
    checkpoint = find_checkpoint(run)
    data = None if checkpoint is None else read_checkpoint(checkpoint)
    if data is None or data.get("autoencoder") is None:
        raise CheckpointError(f"{run}: no run of stage autoencode")
    config = parse_config(AutoencoderConfig, data["autoencoder"], str(run), CheckpointError)
    model = Autoencoder(config).eval()
    prefix = "autoencoder."
    state = data["networks"]["model"]
    model.load_state_dict({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})
    return model, data["step"]


@torch.no_grad()
def main() -> None:
    """Measure every run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--similarity")
    arguments = parser.parse_args()
    models = {run.name: load_autoencoder(run) for run in arguments.runs}
    window = min(model.config.window_frames for model, _ in models.values()) * HOP
    judges = make_judges(arguments.similarity, device="cpu")
    clips = [item.load()[:window] for item in open_corpora([arguments.data], limit=arguments.clips)]
    rows = []
    for name, (model, step) in models.items():
        decoded = []
        for clip in clips:
            audio = model(torch.from_numpy(np.ascontiguousarray(clip))[None], [len(clip)])[0]
            decoded.append(audio[: len(clip)].numpy())
        scores = [measure_quality([made], [clip], SIGNAL).values for made, clip in zip(decoded, clips, strict=True)]
        voices = "--"
        for judge in judges:
            pairs = [Pair(made, clip, None, None) for made, clip in zip(decoded, clips, strict=True)]
            found = [one.values["similarity"] for one in judge(pairs) if "similarity" in one.values]
            voices = f"{np.mean(found):.2f}"
        means = (np.mean([one[metric] for one in scores if metric in one]) for metric in SIGNAL)
        rows.append([f"{name}, step {step:,}", voices, *(f"{mean:.2f}" for mean in means)])
    rows += [[*row, "--"] for row in PUBLISHED]
    print(f"{len(clips)} clips of at most {window / SPEECH_RATE:g} s\n")
    print(table(["", "SIM", *(METRICS[metric].title for metric in SIGNAL)], rows))


if __name__ == "__main__":
    main()
