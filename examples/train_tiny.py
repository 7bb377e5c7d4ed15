"""Train a tiny codec on a folder of recordings, then use it: all that `xycodec train` does, in Python.

    python examples/train_tiny.py recordings exp/tiny --steps 200

It needs `pip install 'xycodec[train]'` and some minutes on a CPU, and shows the way: such a codec mumbles.
"""

import argparse
import json
from pathlib import Path

import torch

from xycodec import load_codec
from xycodec.data.manifest import import_manifest
from xycodec.io.audio import audio_files, audio_info, read_audio, write_audio
from xycodec.train.recipe_file import load_recipe
from xycodec.train.run import train


def write_manifest(folder: Path, target: Path) -> None:
    """A line of JSON for each recording: training needs its path and its seconds; texts are optional."""
    rows = ({"audio": str(path.resolve()), "duration": audio_info(path).duration} for path in audio_files(folder))
    target.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main(folder: Path, run: Path, steps: int) -> None:
    """Train into the folder `run`, then put its first recording through the codec: `run`/decoded.wav."""
    run.parent.mkdir(parents=True, exist_ok=True)
    manifest, cuts = run.with_name(f"{run.name}.jsonl"), run.with_name(f"{run.name}.jsonl.gz")
    write_manifest(folder, manifest)
    report = import_manifest(manifest, cuts)
    print(f"{report.clips} clips, {report.seconds:.0f} s")
    settings = (
        f"data.train=[{cuts}]",
        f"output={run}",
        f"steps={steps}",
        "data.workers=0",
        "data.batch_clips=2",
        "data.clip_seconds=2",
    )
    ended = train(load_recipe("xy_tokenizer/debug.yaml", settings))
    print(f"{ended.step} steps")

    codec = load_codec(run)  # a run is a model
    audio = torch.from_numpy(read_audio(audio_files(folder)[0], codec.input_sample_rate))[: codec.window_samples]
    out = codec.encode(audio[None])
    decoded = codec.decode(out.codes, out.lengths)
    write_audio(run / "decoded.wav", decoded.audio[0].numpy(), codec.output_sample_rate)
    print(f"{run / 'decoded.wav'}: {out.lengths[0]} frames, {len(out.codes.unique())} different codes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="recordings, such as src/xycodec/assets")
    parser.add_argument("run", type=Path, help="a new folder")
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    main(args.folder, args.run, args.steps)
