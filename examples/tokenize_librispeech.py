"""LibriSpeech, or any corpus with a manifest, as a store of tokens with texts and speakers.

    python examples/tokenize_librispeech.py LibriSpeech/dev-clean tokens
    python examples/tokenize_librispeech.py corpus/train.jsonl tokens --limit 100

A folder of LibriSpeech holds SPEAKER/CHAPTER/ID.flac and SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt; a manifest holds a
line `{"audio": ..., "text": ..., "speaker": ...}` for each clip. Run it again to go on after a kill.
"""

import argparse
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from xycodec import Codec
from xycodec.io.tokens.read import TokenStore
from xycodec.tokenize.corpus import tokenize_corpus
from xycodec.tokenize.inputs.item import Item
from xycodec.tokenize.local import LocalEngine
from xycodec.tokenize.shard import Encoding
from xycodec.tokenize.stats import token_stats


def librispeech(folder: Path) -> Iterator[Item]:
    """The clips of a part of LibriSpeech, with speaker, chapter and text."""
    for transcript in sorted(folder.rglob("*.trans.txt")):
        for line in transcript.read_text(encoding="utf-8").splitlines():
            name, _, text = line.partition(" ")
            speaker, chapter, _ = name.split("-")
            audio = str(transcript.with_name(f"{name}.flac"))
            about = {"audio": audio, "text": text, "speaker": speaker, "chapter": chapter, "language": "en"}
            yield Item(name, {"kind": "file", "path": audio}, about)


def manifest(path: Path) -> Iterator[Item]:
    """The clips of a manifest, called as their files."""
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield Item(row["audio"], {"kind": "file", "path": str(path.parent / row["audio"])}, row)


def main() -> None:
    """Tokenize, then look."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("--model", default="xy-mini")
    parser.add_argument("--limit", type=int, help="clips")
    args = parser.parse_args()
    encoding = Encoding(Codec.from_pretrained(args.model))
    found = librispeech(args.corpus) if args.corpus.is_dir() else manifest(args.corpus)
    report = tokenize_corpus(
        [str(args.corpus)],
        args.store,
        encoding.describe(),
        LocalEngine(lambda: encoding, {}),
        items=islice(found, args.limit),
    )
    print(f"{report.clips} clips ({report.made} new), {report.seconds / 3600:.2f} h, {report.failed} failed")
    store = TokenStore(args.store)
    print(f"{store[0].id}: {store[0].codes.shape[1]} frames, {store[0].meta.get('text')!r}")
    stats = token_stats(store)
    print(f"{stats.bitrate:.0f} bit/s, {stats.entropy_bitrate:.0f} at the codebooks' entropies")


if __name__ == "__main__":
    main()
