import pytest
from hypothesis import given
from hypothesis import strategies as st

from xycodec.eval.metrics.wer import (
    CharacterErrors,
    WordErrors,
    character_errors,
    normalise,
    whisper_normaliser,
    word_error_rate,
)

WORDS = st.lists(st.sampled_from("abcd"), max_size=7)


def edits(reference, hypothesis):
    """Fewest edits between two lists, by the table of all their beginnings."""
    table = [[i + j for j in range(len(hypothesis) + 1)] for i in range(len(reference) + 1)]
    for i, left in enumerate(reference, 1):
        for j, right in enumerate(hypothesis, 1):
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, table[i - 1][j - 1] + (left != right))
    return table[-1][-1]


@given(st.lists(st.tuples(WORDS, WORDS), max_size=4))
def test_counts_are_the_sums_of_the_clips(pairs):
    measured = word_error_rate([" ".join(left) for left, _ in pairs], [" ".join(right) for _, right in pairs])
    assert measured == WordErrors(sum(edits(*pair) for pair in pairs), sum(len(left) for left, _ in pairs))


def test_known_counts():
    measured = word_error_rate(["the cat sat on the mat", "yes"], ["The cat, sat at mat!", "yes indeed"])
    assert measured == WordErrors(errors=3, words=7)
    assert measured.rate == pytest.approx(3 / 7)


def test_counts_of_two_processes_add_up():
    references, hypotheses = ["a b c", "d e", "f"], ["a c", "d e", "g h"]
    parts = [word_error_rate([left], [right]) for left, right in zip(references, hypotheses, strict=True)]
    assert parts[0] + parts[1] + parts[2] == word_error_rate(references, hypotheses) == WordErrors(3, 6)


def test_nothing_said():
    assert word_error_rate([], []).rate == 0
    assert word_error_rate(["", "..."], ["a b", ""]) == WordErrors(errors=2, words=0)
    assert word_error_rate(["a b"], [""]).rate == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello,  World!", "hello world"),
        ("  \tDON'T don\N{RIGHT SINGLE QUOTATION MARK}t\n", "dont dont"),
        ("well-known—and so on…", "well known and so on"),
        ("¿Qué? «Straße»", "qué straße"),
        ("cafe\u0301", "café"),
        ("a+b 3.5 €", "a+b 3 5 €"),
        ("?!", ""),
    ],
)
def test_normalised_text(text, expected):
    assert normalise(text) == expected
    assert normalise(expected) == expected


@given(st.text("ab", max_size=7), st.text("ab", max_size=7))
def test_character_errors_are_the_fewest_edits(reference, hypothesis):
    expected = CharacterErrors(edits(reference, hypothesis), len(reference))
    assert character_errors([reference], [hypothesis]) == expected


def test_spaces_are_characters():
    assert character_errors(["To day!", "no"], ["today", "on"]) == CharacterErrors(errors=3, characters=8)


def test_another_normaliser():
    heard, said = ["B A"], ["a b"]
    assert word_error_rate(said, heard, lambda text: "".join(sorted(text.lower()))).errors == 0
    assert character_errors(said, heard, lambda text: "x").characters == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Um, Dr. Grey didn't pay twenty-one dollars", "doctor gray did not pay $21"),
        ("[noise] it's colour", "it is color"),
        ("(laughs)", ""),
    ],
)
def test_whispers_normaliser(text, expected):
    assert whisper_normaliser({"colour": "color", "grey": "gray"})(text) == expected
