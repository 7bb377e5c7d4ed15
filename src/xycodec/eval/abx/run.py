"""Phone ABX: how well a codec's frames tell phones apart (Schatz 2013; the protocol of Libri-light, Kahn 2020).

Is X, which is the same phone as A, nearer to A than to B, another phone in the same context? Errors are in percent:
0 is perfect, 50 is chance. Distances are means along the path of dynamic time warping, of angles between quantised
embeddings or of shares of codes that differ. Frames are repeated to at least 50 Hz, as for the probe: a phone of
60 ms would otherwise have one frame of 12.5 Hz, whatever it shares with its neighbours.

It departs from Libri-light in three points: items are drawn once for all their triples, not anew for each cell; the
shortest phones, which Libri-light passes over, have one frame (see `item_frames`); distances that differ by less than
1e-6 are a tie.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from xycodec.baselines.open import open_codec
from xycodec.errors import XycodecError
from xycodec.eval.abx.distances import Features, block_distances
from xycodec.eval.abx.frames import ItemFrames, encode_recordings
from xycodec.eval.abx.items import LeftOut, Omissions, PhoneItem, find_audio, read_items, within_audio
from xycodec.eval.abx.self_supervised import FRAME_RATE, PREFIX, feature_recordings, open_self_supervised
from xycodec.eval.abx.triples import Block, Mode, error_rate, plan_triples
from xycodec.io.progress import Advance, unwatched
from xycodec.models.base import Codec

Kind = Literal["embeddings", "codes"]
LEAST_RATE = 50.0
"""Steps a second that frames are repeated to, at least."""


@dataclass(frozen=True)
class AbxScore:
    """An ABX error: of which frames, with how many codebooks, in which mode."""

    kind: Kind | Literal["features"]
    n_q: int | None
    """Codebooks that were used, the first ones; None of features, which have none."""
    mode: Mode
    error: float | None
    """Percent; None if there is no triple."""


@dataclass(frozen=True)
class AbxCounts:
    """Numbers of triples, distances and items behind the errors of a mode."""

    mode: Mode
    triples: int
    cells: int
    """Context, speakers and pair of phones; triples are averaged in them first."""
    items: int
    """Items that are in a triple; the others have no partner, or were not drawn."""
    lonely: tuple[str, ...]
    """Speakers who are in no triple."""


@dataclass(frozen=True)
class AbxResult:
    """Result of `run_abx`."""

    model: str
    item_file: str
    items: int
    """Items that could be used."""
    left_out: tuple[LeftOut, ...]
    branch: str | None
    """Branch that the `embeddings` are the output of; None: the quantizer."""
    frame_rate: float
    """Steps a second that were compared: the codec's rate times the repetition."""
    seed: int
    max_group: int
    max_x: int
    counts: tuple[AbxCounts, ...]
    scores: tuple[AbxScore, ...]

    @property
    def remarks(self) -> tuple[str, ...]:
        """Remarks on what is missing, a line each."""
        lines = [f"items left out ({one.items:,}): {one.reason}: {_some(one.places)}" for one in self.left_out]
        needs = {
            "within": "a speaker who says a phone twice and another phone in the same context",
            "across": "two speakers who say a phone, one of them also another, in the same context",
        }
        for one in self.counts:
            if not one.triples:
                lines.append(f"{one.mode}: no triple: it takes {needs[one.mode]}")
            elif one.lonely:
                lines.append(f"{one.mode}: speakers without a partner, who do not count: {_some(one.lonely)}")
        return tuple(lines)

    def to_dict(self) -> dict[str, Any]:
        """Everything in plain types."""
        return asdict(self)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def run_abx(
    model: str | Codec,
    items: Path,
    audio: Path,
    *,
    n_q: Sequence[int] | None = None,
    kinds: Sequence[Kind] = get_args(Kind),
    modes: Sequence[Mode] = get_args(Mode),
    seed: int = 0,
    max_group: int = 10,
    max_x: int = 5,
    least_rate: float = LEAST_RATE,
    branch: str | None = None,
    cache: Path | None = None,
    device: str = "auto",
    advance: Advance = unwatched,
    found: Callable[[AbxScore], None] = lambda score: None,
) -> AbxResult:
    """Measure the ABX error of a codec; what cannot be used is left out and reported.

    Every recording is encoded once, on `device`; distances are computed on the CPU, in bounded memory.

    Args:
        model: a codec, or what `open_codec` takes; or a self-supervised model, `ssl:SOURCE` or `ssl:SOURCE:LAYER`,
            which has features only (`xycodec.eval.abx.self_supervised`).
        items: item file, see `xycodec.eval.abx.items`.
        audio: folder with the recordings, at any depth; they are found by their names without suffix.
        n_q: numbers of codebooks, each gives scores of its own; None: the first one, and all.
        kinds: `embeddings` (quantised, as `Codec.embed` gives them), `codes`.
        modes: `within` speakers, `across` speakers.
        seed: of what is drawn.
        max_group: items at most of one phone, context and speaker.
        max_x: other speakers at most that are X for one phone, context and speaker of A.
        least_rate: steps a second that frames are repeated to, at least; 1 compares the codec's own frames.
        branch: of `Codec.embed`: `semantic` for X-Codec, as its paper measures it; None: what the quantizer passes on.
        cache: folder that keeps the codes of these recordings, for any model: a later call goes on from there.
        device: for a `model` that is a name.
        advance: told the seconds of each recording that is encoded.
        found: told each score as soon as it is known.

    Raises:
        ConfigError: the item file cannot be read.
        CheckpointError: `model` gives no codec.
        XycodecError: a setting is out of range, no recording can be used, or there is no triple at all.
    """
    _check_settings(kinds, modes, max_group, max_x, least_rate)
    omissions = Omissions()
    listed = read_items(items, omissions)
    recordings, listed = find_audio(audio, listed, omissions)
    with tempfile.TemporaryDirectory(prefix="xycodec.") as temporary:
        scratch = Path(temporary)
        if isinstance(model, str) and model.startswith(PREFIX):
            if n_q or branch:
                raise XycodecError(f"{model}: has no codebooks and no branch: leave n_q and branch out")
            ssl = open_self_supervised(model, device)
            name, rate, shown = model, FRAME_RATE, _features
            encoded = feature_recordings(ssl, recordings, listed, omissions, advance)
        else:
            codec = open_codec(model, device=device) if isinstance(model, str) else model
            name, rate = codec.model_id, codec.frame_rate
            layers = sorted({codec.check_layers(number) for number in (n_q or (1, codec.n_q))})
            if branch is not None:
                codec.embed(torch.zeros(1, 1, 1, dtype=torch.int64), branch=branch)  # is there one?
            shown = partial(_scores, codec, branch, kinds=kinds, layers=layers, scratch=scratch)
            encoded = encode_recordings(codec, recordings, listed, cache or scratch, omissions, advance)
        repeat = ceil(least_rate / rate)
        lengths = {key: one.seconds if one.codes.size else 0.0 for key, one in encoded.items()}
        used = within_audio(listed, lengths, omissions)
        plans = {mode: plan_triples(used, mode, seed=seed, max_group=max_group, max_x=max_x) for mode in modes}
        if not any(plans.values()):
            raise XycodecError(_no_triple(items, omissions.listed()))
        frames = ItemFrames(used, encoded, rate, repeat)
        scores = []
        for score in shown(frames, plans):
            scores.append(score)
            found(score)
    return AbxResult(
        model=name,
        item_file=str(items),
        items=len(used),
        branch=branch,
        left_out=omissions.listed(),
        frame_rate=rate * repeat,
        seed=seed,
        max_group=max_group,
        max_x=max_x,
        counts=tuple(_counts(mode, blocks, used) for mode, blocks in plans.items()),
        scores=tuple(scores),
    )


def abx_error(features: Features, blocks: Iterable[Block]) -> float | None:
    """The error in percent of any features, codec or not; None without a triple."""
    return error_rate((block, block.errors(found)) for block, found in block_distances(features, blocks))


def _check_settings(kinds: Sequence[str], modes: Sequence[str], max_group: int, max_x: int, least_rate: float) -> None:
    for given, known in ((kinds, get_args(Kind)), (modes, get_args(Mode))):
        if not given or not set(given) <= set(known):
            raise XycodecError(f"{', '.join(given) or 'nothing'} cannot be compared: choose of {', '.join(known)}")
    for name, value, least in (("max_group", max_group, 2), ("max_x", max_x, 1)):
        if value < least:
            raise XycodecError(f"{name} must be at least {least}, got {value}")
    if not 0 < least_rate <= 1000:
        raise XycodecError(f"least_rate must be over 0 and at most 1000 steps a second, got {least_rate:g}")


def _no_triple(items: Path, left_out: Sequence[LeftOut]) -> str:
    line = f"{items}: no triple: it takes two phones in one context, one of them twice"
    if left_out:
        count = sum(one.items for one in left_out)
        line += f" ({count:,} items are left out, first: {left_out[0].reason}: {left_out[0].places[0]})"
    return line


def _features(frames: ItemFrames, plans: Mapping[Mode, Sequence[Block]]) -> Iterator[AbxScore]:
    features = Features(frames.codes(None), frames.of_items, "angle")
    for mode, blocks in plans.items():
        yield AbxScore("features", None, mode, abx_error(features, blocks))


def _scores(
    codec: Codec,
    branch: str | None,
    frames: ItemFrames,
    plans: Mapping[Mode, Sequence[Block]],
    *,
    kinds: Sequence[Kind],
    layers: Sequence[int],
    scratch: Path,
) -> Iterator[AbxScore]:
    for kind in kinds:
        for n_q in layers:
            rows = frames.codes(n_q) if kind == "codes" else frames.embeddings(codec, n_q, scratch, branch)
            features = Features(rows, frames.of_items, "share" if kind == "codes" else "angle")
            for mode, blocks in plans.items():
                yield AbxScore(kind, n_q, mode, abx_error(features, blocks))


def _counts(mode: Mode, blocks: Sequence[Block], items: Sequence[PhoneItem]) -> AbxCounts:
    used = {int(index) for block in blocks for index in (*block.rows, *block.columns)}
    lonely = {item.speaker for item in items} - {items[index].speaker for index in used}
    triples, cells = (sum(getattr(block, name) for block in blocks) for name in ("triples", "cells"))
    return AbxCounts(mode, triples, cells, len(used), tuple(sorted(lonely)))
