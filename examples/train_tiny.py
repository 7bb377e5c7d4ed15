"""Train a tiny codec on a folder of recordings, then use it: all that `xycodec train` does, in Python.

    python examples/train_tiny.py recordings exp/tiny --steps 200

It needs `pip install 'xycodec[train]'` and some minutes on a CPU, and shows the way: such a codec mumbles.
"""

import argparse
import json
from pathlib import Path

from xycodec import Codec
from xycodec.data.manifest import import_manifest
from xycodec.io.audio import audio_files, audio_info
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

    codec = Codec.from_pretrained(run)  # a run is a model
    file = codec.encode_file(audio_files(folder)[0])
    codec.decode_file(file, run / "decoded.wav")
    print(f"{run / 'decoded.wav'}: {file.frames} frames, {len(set(file.codes.flat))} different codes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="recordings, such as src/xycodec/assets")
    parser.add_argument("run", type=Path, help="a new folder")
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    main(args.folder, args.run, args.steps)
