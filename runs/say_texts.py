"""Texts for a synthetic voice to say, one a line, so that it says more words than the grammar of sentences has.

    python runs/say_texts.py [train.jsonl] > texts.txt

Short pieces of the manifest's English transcripts, if one is given; then words of the Python standard library's own
documentation in random order, which is on every machine.
"""

import ast
import json
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from random import Random

ROUNDS = 12  # times that every word is said, each time among others
_WORD = re.compile(r"(?<![\w.`'\"_(])[a-z]{2,}(?![\w.(_`'\"=])")
_DEFINITIONS = (ast.Module, ast.ClassDef, ast.FunctionDef)


def documentation() -> Iterator[str]:
    """Yield the texts of the library's manual and docstrings."""
    yield from topics.values()
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted([*root.glob("*.py"), *root.glob("*/*.py")]):
        if "site-packages" not in path.parts:
            tree = ast.parse(path.read_bytes())
            yield from (ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, _DEFINITIONS))


def words(texts: Iterator[str]) -> list[str]:
    """English words of texts, sorted: those said more than twice that have a vowel."""
    counts = Counter(word for text in texts for word in _WORD.findall(text))
    return sorted(word for word, count in counts.items() if count > 2 and re.search("[aeiouy]", word))


def pieces(said: list[str], draw: Random, shortest: int = 4, longest: int = 10) -> Iterator[str]:
    """Yield consecutive words, so many at a time."""
    while said:
        count = shortest + int((longest - shortest + 1) * draw.random())
        yield " ".join(said[:count])
        said = said[count:]


def main(manifests: list[str]) -> None:
    """Print the texts."""
    draw = Random(0)
    made: list[str] = []
    for manifest in manifests:
        rows = map(json.loads, Path(manifest).read_text(encoding="utf-8").splitlines())
        spoken = dict.fromkeys(row["text"] for row in rows if row.get("language") == "en" and row.get("text"))
        # Wake words are said by thousands.
        made += [piece for text in spoken for piece in pieces(text.split(), draw)]
    known = words(documentation())
    for _ in range(ROUNDS):
        made += pieces(draw.sample(known, len(known)), draw)
    draw.shuffle(made)
    print("\n".join(text for text in dict.fromkeys(made) if text.isascii() and not re.search(r"\d", text)))


if __name__ == "__main__":
    main(sys.argv[1:])
