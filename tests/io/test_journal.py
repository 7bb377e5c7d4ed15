import pytest

from xycodec.errors import XycodecError
from xycodec.io.journal import Journal


def test_rows_come_back_in_order(tmp_path):
    journal = Journal(tmp_path / "rows.jsonl")
    assert journal.rows() == []
    rows = [{"clip": "ä\n", "value": 0.1}, {"clip": "b", "value": None}]
    for row in rows:
        journal.append(row)
    assert journal.rows() == Journal(tmp_path / "rows.jsonl").rows() == rows


def test_a_kill_at_any_byte_loses_the_last_row_only(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"clip": "ä"}, {"clip": "ö"}]
    for row in rows:
        Journal(path).append(row)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for size in range(first, len(whole)):
        path.write_bytes(whole[:size])
        assert Journal(path).rows() == rows[:1]
        Journal(path).append(rows[1])
        assert Journal(path).rows() == rows


def test_what_is_no_row_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"clip": "a"}\nhello\n{"clip": "b"}\n')
    with pytest.raises(XycodecError, match=r"rows\.jsonl:2: not a row"):
        Journal(path).rows()
    with pytest.raises(XycodecError, match="cannot be written"):
        Journal(tmp_path / "nowhere" / "rows.jsonl").append({})
    with pytest.raises(ValueError, match="not JSON compliant"):
        Journal(path).append({"value": float("nan")})
