"""A codec measured on a manifest of speech, by source: python runs/measure.py MODEL MANIFEST [--json FILE].

Needs the extras `train` (manifests) and `eval` (PESQ): pip install 'xycodec[train,eval]'.
"""

import argparse
import json
import sys
from pathlib import Path

from xycodec.audio import atomic_path
from xycodec.errors import XycodecError
from xycodec.eval.measure import Measurement, measure
from xycodec.terminal import clip_progress, print_error, print_measurement


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="a name, a folder, a run, a checkpoint or a hub id")
    parser.add_argument("manifest", type=Path, help="JSON lines with audio, duration, speaker, text")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything there, clip by clip")
    parser.add_argument("--jobs", type=int, default=2, help="processes that share the clips")
    parser.add_argument("--threads", type=int, help="of each process (default: the cores divided among them)")
    parser.add_argument("--limit", type=int, metavar="N", help="only N clips, spread evenly over the manifest")
    args = parser.parse_args()
    if any(number is not None and number < 1 for number in (args.jobs, args.threads, args.limit)):
        parser.error("--jobs, --threads and --limit are at least 1")
    try:
        measured = _measure(args)
    except XycodecError as error:
        print_error(str(error))
        return 1
    print_measurement(measured)
    for audio, reason in measured.failed:
        print_error(f"{audio}: {reason}")
    return 1 if measured.failed else 0


def _measure(args: argparse.Namespace) -> Measurement:
    with clip_progress("clips", quiet=False) as advance:
        measured = measure(
            args.model, args.manifest, processes=args.jobs, threads=args.threads, limit=args.limit, advance=advance
        )
    if args.json:
        with atomic_path(args.json) as scratch:
            scratch.write_text(json.dumps(measured.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return measured


if __name__ == "__main__":
    sys.exit(main())
