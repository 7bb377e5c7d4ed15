"""A docstring begins as a sentence or a noun phrase does, not with a word that points at the name above it."""

import ast
from pathlib import Path

import xycodec

PACKAGE = Path(xycodec.__file__).parent
FRAGMENTS = {
    *("Of", "What", "That", "By", "Which", "Whose", "Whom", "Those", "They", "Their", "It", "Its", "Why", "How"),
    *("Where", "There", "To", "From", "Over", "Around", "In", "As", "With", "Nothing", "Always."),
}


def docstrings(tree):
    """(line, text) of the docstrings of a module, its classes, functions and attributes."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else ():
            value = getattr(statement, "value", None)
            if isinstance(statement, ast.Expr) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield statement.lineno, value.value


def fragments(source):
    """(line, first line) of every docstring that begins as a fragment."""
    return [
        (line, text.splitlines()[0]) for line, text in docstrings(ast.parse(source)) if text.split()[0] in FRAGMENTS
    ]


def test_docstrings_are_sentences_or_noun_phrases():
    found = {path: fragments(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_a_fragment_is_seen():
    source = 'x = 1\n"""Of a clip."""\ndef f():\n    """By which they are divided."""\nclass C:\n    """A clip."""\n'
    assert fragments(source) == [(2, "Of a clip."), (4, "By which they are divided.")]
