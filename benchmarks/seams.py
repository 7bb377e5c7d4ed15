"""Whether windows of a long clip can be heard where they meet: decoded audio at the seams against chance.

    python benchmarks/seams.py MANIFEST [--model xy-mini] [--minutes 14] [--fades 0 1 2]

Forty steady tones of 20 s, and so many minutes of a manifest's clips (JSON lines, as `xycodec evaluate` takes them)
joined to recordings of two minutes, are encoded and decoded in windows that fade into each other over a number of code
frames; 0 cuts one window off where the next begins. At each seam:

* click: the largest second difference at either end of the fade, over the root mean square within 20 ms of that end;
* roughness: the largest second difference in the whole fade, over the largest in the frames around it;
* dip, rise: the level of the fade against that of the frames around it, low or high.

The same statistics at all other boundaries of code frames in the same recording tell what is chance. A seam counts
where it lies beyond 99 % of them, so that at chance 1 % of seams do. Prints Markdown.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from numpy.typing import NDArray

from xycodec.checkpoints.load import load_codec
from xycodec.eval.corpus import open_corpora
from xycodec.models import longform, windows
from xycodec.models.base import Codec

RATE = 16000
TONES, LOWEST, HIGHEST, TONE_SECONDS = 40, 80.0, 3000.0, 20  # Hz, on a logarithmic scale
RECORDING_SECONDS = 120
RARE = 0.01
QUIET = 0.05  # of the recording's level: frames below it are left out
STATISTICS = ("click", "roughness", "dip", "rise")
Signal = NDArray[np.float64]


def tones() -> list[torch.Tensor]:
    """Steady tones (T,)."""
    time = torch.arange(TONE_SECONDS * RATE, dtype=torch.float64) / RATE
    return [(0.3 * torch.sin(2 * torch.pi * hertz * time)).float() for hertz in np.geomspace(LOWEST, HIGHEST, TONES)]


def recordings(manifest: str, minutes: float) -> list[torch.Tensor]:
    """Clips of a manifest, joined to recordings (T,)."""
    clips = [torch.from_numpy(item.load()) for item in open_corpora([manifest])]
    return list(torch.cat(clips)[: round(minutes * 60 * RATE)].split(RECORDING_SECONDS * RATE))


def level(values: Signal) -> float:
    """Root mean square of `values` (n,)."""
    return float(np.sqrt(np.mean(values**2)))


@dataclass
class Joined:
    """A decoded recording, whose windows fade into each other over `fade` code frames of `hop` samples."""

    audio: Signal
    seams: list[int]
    fade: int
    hop: int

    def measured(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The statistics at the seams (n, 4), and at all other boundaries of code frames (m, 4)."""
        bend, quiet = np.abs(np.diff(self.audio, 2)), QUIET * level(self.audio)
        at, elsewhere = [], []
        for frame in range(2, len(self.audio) // self.hop - 4 - self.fade):
            place = frame * self.hop
            if level(self.audio[place - self.hop : place + 2 * self.hop]) < quiet:
                continue
            if frame in self.seams:
                at.append(self._at(place, bend))
            elif all(abs(frame - seam) > self.fade + 2 for seam in self.seams):
                elsewhere.append(self._at(place, bend))
        return np.array(at), np.array(elsewhere)

    def _at(self, place: int, bend: Signal) -> list[float]:
        """The statistics of a seam, true or not, at sample `place`; all are larger where it is more noticeable."""
        near, hop, audio = RATE // 50, self.hop, self.audio
        end = place + self.fade * hop
        clicks = [bend[p - 2 : p + 1].max() / level(bend[p - near : p + near]) for p in (place, end)]
        after = max(end, place + hop)
        around = max(bend[place - hop - 2 : place - 2].max(), bend[after + 1 : after + hop + 1].max())
        beside = np.concatenate([audio[place - hop : place], audio[after : after + hop]])
        ratio = level(audio[place:after]) / level(beside)
        return [max(clicks), bend[place - 2 : after + 1].max() / around, 1 / ratio, ratio]


def decoded(codec: Codec, clip: torch.Tensor, fades: list[int]) -> list[Joined]:
    """A clip with its windows, computed once, joined with each of the fades."""
    codes = longform.encode_long(codec, clip)
    overlap = windows.overlap_frames(codec, None)
    step = codec.window_frames - overlap
    seams = [start + overlap // 2 for start in range(step, max(1, codes.shape[1] - overlap), step)]
    compute, known = codec.decode_windows, dict[bytes, torch.Tensor]()

    def remembered(windows: list[torch.Tensor]) -> list[torch.Tensor]:
        for window in windows:
            if window.numpy().tobytes() not in known:
                known[window.numpy().tobytes()] = compute([window])[0]
        return [known[window.numpy().tobytes()] for window in windows]

    joined = []
    codec.decode_windows = remembered  # type: ignore[method-assign]
    for fade in fades:
        windows.FADE = fade
        audio = longform.decode_long(codec, codes).double().numpy()
        joined.append(Joined(audio, seams, fade, codec.num_output_samples(codec.hop_length)))
    codec.decode_windows = compute  # type: ignore[method-assign]
    return joined


def rows(codec: Codec, clips: list[torch.Tensor], what: str, fades: list[int]) -> Iterator[str]:
    """Lines of the table for one kind of clips."""
    pairs = [[one.measured() for one in decoded(codec, clip, fades)] for clip in clips]
    for i, fade in enumerate(fades):
        beyond, count = np.zeros(len(STATISTICS)), 0
        for at, elsewhere in (pair[i] for pair in pairs):
            beyond += (at > np.quantile(elsewhere, 1 - RARE, axis=0)).sum(axis=0)
            count += len(at)
        # Seams of one tone are alike: it counts as one draw.
        draws = len(clips) if what == "tones" else count
        most = RARE + 2 * sqrt(RARE * (1 - RARE) / draws)
        cells = [f"{100 * share:.1f} %" for share in beyond / count]
        yield f"| {what} | {fade} | {count} | " + " | ".join(cells) + f" | {100 * most:.1f} % |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest")
    parser.add_argument("--model", default="xy-mini")
    parser.add_argument("--minutes", type=float, default=14.0)
    parser.add_argument("--fades", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    codec = load_codec(args.model, device="cpu")
    speech = recordings(args.manifest, args.minutes)
    print(f"{codec.model_id}: {TONES} tones, {sum(map(len, speech)) / RATE / 60:.1f} minutes of recordings.\n")
    heads = ("audio", "fade, code frames", "seams", *STATISTICS, "chance, at most")
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for what, clips in (("tones", tones()), ("recordings", speech)):
        for line in rows(codec, clips, what, args.fades):
            print(line, flush=True)


if __name__ == "__main__":
    main()
