import pytest
from hypothesis import given
from hypothesis import strategies as st

from xycodec.eval.wer import WordErrors, normalise, word_error_rate

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
