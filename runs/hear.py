"""What the language model of a pre-training run hears in the codes of clips with text, and what it would guess without.

python runs/hear.py RUN CUTS [--lm FOLDER] [--context CUTS] > heard.json

For each text the loss in nats a token, its end included, given
own      the clip's own codes
other    the codes of another clip with another text: what the adapter has made the model expect of any clip
alone    nothing: the language model by itself
context  20 texts of --context, one after the other: the language model by itself, told what texts are like

Clips and texts are drawn by a fixed seed.
"""

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from xycodec.data.clip import Clip, load_clip
from xycodec.data.config import DataConfig, SourceConfig
from xycodec.data.facts import has_text
from xycodec.data.sources import open_once
from xycodec.eval.metrics.wer import word_error_rate
from xycodec.io.rate import SPEECH_RATE
from xycodec.train.listener import Listener, load_listener

CONTEXT = 20

Item = TypeVar("Item")


def main() -> None:
    """Parse, hear every clip, and print totals and texts as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("cuts")
    parser.add_argument("--lm", help="the language model's folder, where it is another than in the recipe")
    parser.add_argument("--context", help="cuts of the same kind, of which some texts are told beforehand")
    parser.add_argument("--clips", type=int, help="so many of them")
    args = parser.parse_args()
    listener = load_listener(args.run, lm=args.lm)
    told = [] if args.context is None else drawn(texts_of(args.context), CONTEXT)
    print(json.dumps(hear(listener, args.cuts, told, args.clips), indent=1, ensure_ascii=False))


def texts_of(cuts: str) -> list[str]:
    """The texts of cuts, in their order."""
    return [cut.supervisions[0].text for cut in open_once([SourceConfig(path=cuts)]) if has_text(cut)]


def drawn(items: Sequence[Item], most: int | None) -> list[Item]:
    """So many of `items` at most, in an order by chance that is always the same."""
    return random.Random(0).sample(items, len(items) if most is None else min(most, len(items)))


def hear(listener: Listener, cuts: str, told: Sequence[str] = (), most: int | None = None) -> dict[str, object]:
    """Losses, word errors and transcripts of the clips of `cuts` that have a text and fit into a window."""
    codec = listener.codec
    source = SourceConfig(path=cuts)
    config = DataConfig(train=(source,), clip_seconds=codec.window_samples / codec.input_sample_rate)
    chosen = drawn([cut for cut in open_once([source]) if has_text(cut)], most)
    clips = [load_clip(cut, config, output_sample_rate=SPEECH_RATE, seed=0, epoch=0) for cut in chosen]
    with_text = [clip for clip in clips if clip.text]
    codes = [codec.encode(clip.audio).codes[0] for clip in with_text]
    totals: dict[str, list[Tensor]] = {"own": [], "other": [], "alone": [], "context": []}
    others = [another(with_text, index) for index in range(len(with_text))]
    rows = []
    for index, clip in enumerate(with_text):
        assert clip.text is not None
        own, other = (listener.score(codes[place], clip.text) for place in (index, others[index]))
        losses = {"own": own.loss.total, "other": other.loss.total, "alone": loss_alone(listener, clip.text)}
        if told:
            losses["context"] = loss_alone(listener, clip.text, told)
        for name, loss in losses.items():
            totals[name].append(torch.stack([loss.sum(), own.loss.count.sum()]))
        rows.append({"clip": clip.id, "said": clip.text, "heard": listener.transcribe(codes[index])})
    sums = {name: torch.stack(losses).sum(dim=0).tolist() for name, losses in totals.items() if losses}
    said, heard = ([row[name] for row in rows] for name in ("said", "heard"))
    # What a model that knows texts and hears nothing would get.
    elsewhere = [heard[place] for place in others]
    return {
        "clips": len(rows),
        "nats_per_token": {name: total / count for name, (total, count) in sums.items()},
        "words": asdict(word_error_rate(said, heard)) | {"wer": word_error_rate(said, heard).rate},
        "wer_of_another_clip": word_error_rate(said, elsewhere).rate,
        "exact": sum(word_error_rate([a], [b]).errors == 0 for a, b in zip(said, heard, strict=True)),
        "transcripts": rows,
    }


def another(clips: Sequence[Clip], index: int) -> int:
    """The place of the next clip with another text than that at `index`; the next one, where all have the same."""
    turn = [(index + step) % len(clips) for step in range(1, len(clips))]
    return next((place for place in turn if clips[place].text != clips[index].text), (index + 1) % len(clips))


@torch.no_grad()
def loss_alone(listener: Listener, text: str, before: Sequence[str] = ()) -> Tensor:
    """Sum of the losses of a text's tokens and its end, after the texts of `before`, each with its end."""
    branch = listener.semantic_lm
    encoded = [branch.tokenize([one]).ids[0] for one in (*before, text)]
    begin = branch.tokenizer.bos_token_id
    ids = torch.cat([torch.tensor([branch.tokenizer.eos_token_id if begin is None else begin]), *encoded])
    wanted = len(encoded[-1])
    logits = branch.lm(input_ids=ids[None, :-1].to(listener.codec.device), logits_to_keep=wanted).logits[0]
    return F.cross_entropy(logits.float(), ids[-wanted:].to(logits.device), reduction="sum")


if __name__ == "__main__":
    main()
