"""A corpus through a codec once: what a self-supervised model is to predict, in files beside the audio.

It is hours of work, so it goes on where it was interrupted: a journal has one row of each cut, in order, which is
written once the cut's labels are.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, zip_longest
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from lhotse.cut import Cut
from numpy.typing import NDArray

from xycodec.data.clip import INPUT_RATE, require_sound
from xycodec.data.decode import decode
from xycodec.data.manifest import open_text
from xycodec.data.sources import Cuts
from xycodec.data.targets import can_hold_targets, with_targets
from xycodec.errors import AudioError, ConfigError
from xycodec.eval.coding import fingerprint
from xycodec.io.audio import Samples, atomic_path, os_error_line
from xycodec.io.journal import Journal
from xycodec.io.reader import resampled
from xycodec.models.base import Codec
from xycodec.models.longform import encode_long

MANIFEST, JOURNAL, LABELS = "cuts.jsonl.gz", "progress.jsonl", "labels"
BLOCK_S = 60.0  # s of audio that are decoded at a time


@dataclass(frozen=True)
class TargetsReport:
    """Clips with labels, their seconds, how many are new, and one line for each clip that was left out."""

    clips: int
    seconds: float
    made: int
    left_out: tuple[str, ...]


def extract_targets(
    cuts: Cuts,
    codec: Codec,
    folder: Path,
    *,
    layers: int = 1,
    advance: Callable[[float], None] = lambda seconds: None,
) -> TargetsReport:
    """Write the codes of the first `layers` of `codec` for every cut into `folder`, and cuts that name them.

    `cuts.jsonl.gz` has the same cuts, in order, each with the custom fields that `data.targets` explains. Codes are
    those of the clip alone, at the codec's frame rate; long recordings take bounded memory. A call goes on where
    another was interrupted; the manifest appears when all is done, and names the folder by its absolute path.

    Args:
        cuts: read twice.
        codec: at any rate; audio is resampled to it.
        folder: made if it is not there.
        layers: of the codec.
        advance: told the seconds of each cut.

    Raises:
        ConfigError: `folder` was begun with another codec or other cuts, or cannot be written; or no clip is left.
        XycodecError: the codec has not so many layers, a manifest is not valid.
    """
    codec.check_layers(layers)
    target = folder.resolve()
    try:
        target.mkdir(parents=True, exist_ok=True)
        work = _Work(codec, layers, target)
        work.label_all(cuts, advance)
        work.write_manifest(cuts)
    except OSError as error:
        raise ConfigError(os_error_line(str(folder), "written", error)) from error
    return work.report()


class _Work:
    """Labels and journal of a folder, in step."""

    def __init__(self, codec: Codec, layers: int, folder: Path) -> None:
        self.codec, self.layers, self.folder = codec, layers, folder
        self.kind = np.dtype("<u2" if codec.codebook_size <= 1 << 16 else "<u4")
        self.labels = folder / f"{LABELS}.{self.kind.str[1:]}"
        self.journal = Journal(folder / JOURNAL)
        self.settings = {
            "codec": codec.model_id, "weights": fingerprint(codec), "layers": layers, "size": codec.codebook_size,
            "frame_rate": codec.frame_rate,
        }  # fmt: skip
        before = self.journal.rows()
        if before and before[0] != self.settings:
            was = " ".join(f"{key} {before[0].get(key)}" for key in ("codec", "weights", "layers"))
            raise ConfigError(f"{folder}: was begun with another codec ({was}): choose another folder")
        if not before:
            self.journal.append(self.settings)
        self.rows: list[dict[str, Any]] = before[1:]
        self.made = 0
        self._cut_labels()

    @property
    def written(self) -> int:
        """Labels of all layers in the file, as far as the journal knows."""
        return self.layers * sum(int(row.get("frames", 0)) for row in self.rows)

    def _cut_labels(self) -> None:
        """Take what a kill left without its row off the file."""
        self.labels.touch()
        size = self.written * self.kind.itemsize
        if self.labels.stat().st_size < size:
            raise ConfigError(f"{self.labels}: lacks labels that {JOURNAL} has: remove the folder, and begin again")
        with open(self.labels, "r+b") as file:
            file.truncate(size)

    # ---- labels --------------------------------------------------------------------------------

    def label_all(self, cuts: Cuts, advance: Callable[[float], None]) -> None:
        """Go on after the last row."""
        known = len(self.rows)
        with open(self.labels, "ab") as file:
            for number, cut in enumerate(cuts):
                if number >= known:
                    row, codes = self._labelled(cut)
                    file.write(codes.tobytes())
                    file.flush()
                    self.journal.append(row)
                    self.rows.append(row)
                    self.made += "frames" in row
                elif self.rows[number]["cut"] != cut.id:
                    raise self._other_cuts(self.rows[number]["cut"], cut.id)
                advance(cut.duration)

    def _labelled(self, cut: Cut) -> tuple[dict[str, Any], NDArray[Any]]:
        """The row of a cut, and its labels (frames, layers)."""
        try:
            if not can_hold_targets(cut):
                raise AudioError(f"{cut.id}: a {type(cut).__name__} holds no labels: leave it out, or pack the corpus")
            rate = self.codec.input_sample_rate
            codes = encode_long(self.codec, _blocks(cut, rate), n_q=self.layers).T.numpy().astype(self.kind)
            if not len(codes):
                raise AudioError(f"{cut.id}: holds no samples: leave it out")
        except AudioError as error:
            return {"cut": cut.id, "left_out": str(error)}, np.zeros((0, self.layers), self.kind)
        return {"cut": cut.id, "seconds": cut.duration, "frames": len(codes)}, codes

    def _other_cuts(self, before: str, now: str) -> ConfigError:
        return ConfigError(f"{self.folder}: was begun with other cuts, {before} where now {now}: choose another folder")

    # ---- what is left --------------------------------------------------------------------------

    def write_manifest(self, cuts: Cuts) -> None:
        """Every labelled cut with the place of its labels."""
        with atomic_path(self.folder / MANIFEST, ConfigError) as scratch, open_text(scratch, "wt") as file:
            for cut in self._with_labels(cuts):
                file.write(json.dumps(cut.to_dict(), ensure_ascii=False) + "\n")
            if not self.written:
                first = next((row["left_out"] for row in self.rows), "there are no cuts")
                raise ConfigError(f"{self.folder}: no clip could be labelled, first: {first}")

    def _with_labels(self, cuts: Cuts) -> Iterator[Cut]:
        of = {key: self.settings[key] for key in ("codec", "size")}
        first = 0
        for cut, row in zip_longest(cuts, self.rows):
            if cut is None or row is None:
                raise self._other_cuts(row["cut"] if row else "nothing", cut.id if cut else "nothing")
            if frames := row.get("frames", 0):
                yield with_targets(cut, self.labels, first, (frames, self.layers), self.codec.frame_rate, of)
                first += frames * self.layers

    def report(self) -> TargetsReport:
        """What became of the cuts."""
        seconds = [row["seconds"] for row in self.rows if "frames" in row]
        left_out = tuple(row["left_out"] for row in self.rows if "left_out" in row)
        return TargetsReport(len(seconds), sum(seconds), self.made, left_out)


def _blocks(cut: Cut, rate: int) -> Iterator[Samples]:
    """The cut's audio, mono, at `rate`. Raises AudioError if it cannot be read or holds a NaN."""
    blocks = _decoded(cut)
    first, found = next(blocks)
    whole = chain([first], (samples for samples, _ in blocks))
    yield from whole if found == rate else resampled(whole, found, rate)


def _decoded(cut: Cut) -> Iterator[tuple[Samples, int]]:
    for number in range(max(1, ceil(cut.duration / BLOCK_S))):
        start = number * BLOCK_S
        samples, rate = decode(cut, start, min(BLOCK_S, cut.duration - start))
        # A lossy file may end a little before its manifest says.
        if number == 0 or len(samples):
            require_sound(cut, samples, rate, INPUT_RATE)
            yield samples, rate
