"""The Markdown pages of the repository: their blocks of code, commands, links and what they name in passing."""

import importlib
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOME = "https://github.com/xycodec/xycodec"
HISTORY = {"CHANGELOG.md", "docs/decisions.md"}
"""Pages that may name what no longer exists."""
PAGES = sorted(
    str(path.relative_to(ROOT))
    for place in ("*.md", "docs/**/*.md", "benchmarks/**/*.md", "examples/**/*.md", "src/**/*.md")
    for path in ROOT.glob(place)
)

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_INLINE = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self):
        return f"{self.page}:{self.line}"


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(*languages):
    """All fenced blocks of all pages in these languages (of all, without any)."""
    found = [block for page in PAGES for block in _blocks_of(page)]
    return [block for block in found if not languages or block.language in languages]


def _blocks_of(page):
    text = read(page)
    return [Block(page, text.count("\n", 0, match.start()) + 1, match[1], match[2]) for match in _FENCE.finditer(text)]


def commands(text):
    """The commands of a shell block as lists of words: comments gone, continued lines joined."""
    lines = (shlex.split(line, comments=True) for line in text.replace("\\\n", " ").splitlines())
    return [words for words in lines if words]


def prose(page):
    """A page without its fenced blocks."""
    return _FENCE.sub("", read(page))


def links(page):
    return _LINK.findall(prose(page))


def inline_code(page):
    return _INLINE.findall(prose(page))


def anchors(page):
    """Anchors `#...` of this page, as GitHub and MkDocs make them of headings."""
    headings = re.findall(r"^#+ +(.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def is_there(dotted):
    """Whether a module, or a name in one, is there."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for name in parts[count:]:
            found = getattr(found, name, None)
        return found is not None
    return False
