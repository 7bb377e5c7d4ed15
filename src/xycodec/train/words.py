"""Word errors of a run's decoded validation clips, counted by a recogniser as an evaluation counts them."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from xycodec.distributed import rank
from xycodec.eval.judges.base import Pair
from xycodec.eval.judges.recognition import Recognition, load_transcriber
from xycodec.eval.results import Scores
from xycodec.io.journal import Journal


class WordJudge:
    """Recogniser of decoded clips; compares its transcripts with the texts, or with its transcripts of the originals.

    An original is heard once in a run: the transcripts lie in `references*.jsonl` of the run's folder, a file for each
    process, which all read when they start. Raises CheckpointError if `recogniser`, a hub id or folder, cannot be had.
    """

    def __init__(self, recogniser: str, run: Path, device: torch.device) -> None:
        self._judge = Recognition(load_transcriber(recogniser, str(device)))
        self._journal = Journal(run / ("references.jsonl" if rank() == 0 else f"references_rank{rank()}.jsonl"))
        # Now, when no process writes: reading mends what a kill cut short.
        files = sorted(run.glob("references*.jsonl"))
        self._known: dict[str, str] = {row["key"]: row["text"] for file in files for row in Journal(file).rows()}

    def __call__(self, clips: Sequence[tuple[str, Pair]]) -> list[Scores]:
        """Scores of `Recognition` for clips, each with its id; `heard` of the pairs is filled here."""
        keys = [self._key(pair) if pair.text is None else None for _, pair in clips]
        new = [
            (clip, key, pair)
            for (clip, pair), key in zip(clips, keys, strict=True)
            if key is not None and key not in self._known
        ]
        originals = self._judge([replace(pair, decoded=pair.original) for _, _, pair in new])
        for (clip, key, _), scores in zip(new, originals, strict=True):
            if scores.transcript is not None:
                self._known[key] = scores.transcript
                self._journal.append({"clip": clip, "key": key, "text": scores.transcript})
        return self._judge(
            [
                pair if key is None else replace(pair, heard=self._known.get(key))
                for (_, pair), key in zip(clips, keys, strict=True)
            ]
        )

    def _key(self, pair: Pair) -> str:
        """Key of a transcript of the original: all that it depends on."""
        facts = f"{self._judge.describe()} {pair.language}".encode()
        return hashlib.blake2b(facts + pair.original.tobytes(), digest_size=16).hexdigest()
