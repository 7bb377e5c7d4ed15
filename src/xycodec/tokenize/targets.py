"""Labels for a self-supervised model: the codes of a corpus, computed once and kept in files.

It is hours of work, so it goes on where it was interrupted: the store of codes has one row of each cut, in order.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from lhotse.cut import Cut
from numpy.typing import NDArray

from xycodec.data.manifest import open_text
from xycodec.data.sources import Cuts
from xycodec.data.targets import can_hold_targets, with_targets
from xycodec.errors import AudioError, ConfigError
from xycodec.io.codes import CodeStore
from xycodec.io.files import atomic_path, os_error_line
from xycodec.io.progress import Advance, unwatched
from xycodec.io.rate import SPEECH_RATE
from xycodec.models.base import Codec, fingerprint
from xycodec.models.longform import encode_long
from xycodec.tokenize.inputs.audio import cut_blocks

MANIFEST = "cuts.jsonl.gz"


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
    advance: Advance = unwatched,
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
        work = _Work(codec, layers, target)
        work.label_all(cuts, advance)
        work.write_manifest(cuts)
    except OSError as error:
        raise ConfigError(os_error_line(str(folder), "written", error)) from error
    return work.report()


class _Work:
    """The labels that a folder holds so far, and how the rest is made."""

    def __init__(self, codec: Codec, layers: int, folder: Path) -> None:
        self.codec, self.layers, self.folder = codec, layers, folder
        about = {
            "codec": codec.model_id, "weights": fingerprint(codec), "layers": layers, "size": codec.codebook_size,
            "frame_rate": codec.frame_rate,
        }  # fmt: skip
        self.store = CodeStore(folder, about, error=ConfigError)
        self.made = 0

    def label_all(self, cuts: Cuts, advance: Advance) -> None:
        """Label every cut that has no row yet."""
        known = list(self.store.log)
        for number, cut in enumerate(cuts):
            if number >= len(known):
                codes, more = self._labelled(cut)
                self.store.add(cut.id, codes, **more)
                self.made += codes is not None
            elif known[number]["key"] != cut.id:
                raise self._other_cuts(known[number]["key"], cut.id)
            advance(cut.duration)

    def _labelled(self, cut: Cut) -> tuple[NDArray[np.int64] | None, dict[str, Any]]:
        """The labels (layers, frames) of a cut and its seconds, or why it has none."""
        try:
            if not can_hold_targets(cut):
                raise AudioError(f"{cut.id}: a {type(cut).__name__} holds no labels: leave it out, or pack the corpus")
            codes = encode_long(
                self.codec, cut_blocks(cut, self.codec.input_sample_rate, SPEECH_RATE), n_q=self.layers
            ).numpy()
            if not codes.shape[1]:
                raise AudioError(f"{cut.id}: holds no samples: leave it out")
        except AudioError as error:
            return None, {"left_out": str(error)}
        return codes, {"seconds": cut.duration}

    def _other_cuts(self, before: str, now: str) -> ConfigError:
        return ConfigError(f"{self.folder}: was begun with other cuts, {before} where now {now}: choose another folder")

    # ---- what is left --------------------------------------------------------------------------

    def write_manifest(self, cuts: Cuts) -> None:
        """Write every labelled cut, with the place of its labels."""
        with atomic_path(self.folder / MANIFEST, ConfigError) as scratch, open_text(scratch, "wt") as file:
            for cut in self._with_labels(cuts):
                file.write(json.dumps(cut.to_dict(), ensure_ascii=False) + "\n")
            if not any("frames" in row for row in self.store.log):
                first = next((row["left_out"] for row in self.store.log), "there are no cuts")
                raise ConfigError(f"{self.folder}: no clip could be labelled, first: {first}")

    def _with_labels(self, cuts: Cuts) -> Iterator[Cut]:
        of = {key: self.store.about[key] for key in ("codec", "size")}
        for cut, row in zip_longest(cuts, self.store.log):
            if cut is None or row is None:
                raise self._other_cuts(row["key"] if row else "nothing", cut.id if cut else "nothing")
            if "frames" in row:
                shape = (row["frames"], row["layers"])
                yield with_targets(cut, self.store.path, row["first"], shape, self.codec.frame_rate, of)

    def report(self) -> TargetsReport:
        """Report on the cuts: with labels, and left out."""
        seconds = [row["seconds"] for row in self.store.log if "frames" in row]
        left_out = tuple(row["left_out"] for row in self.store.log if "left_out" in row)
        return TargetsReport(len(seconds), sum(seconds), self.made, left_out)
