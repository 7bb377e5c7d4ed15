"""The store of codes: what is kept, for whom, and what a kill may not do to it."""

import multiprocessing

import numpy as np
import pytest

from xycodec.errors import ConfigError, XycodecError
from xycodec.io.codes import JOURNAL, CodeStore, digest_of, file_stamp

ABOUT = {"codec": "tiny", "weights": "0f", "size": 1024}


def codes(seed, frames=5, layers=3, size=1024):
    return np.random.default_rng(seed).integers(size, size=(layers, frames))


@pytest.fixture
def store(tmp_path):
    made = CodeStore(tmp_path / "codes", ABOUT)
    for name, frames in (("a", 5), ("b", 1), ("c", 9)):
        made.add(name, codes(frames, frames), seconds=frames / 50)
    return made


def test_what_was_added_is_there_now_and_later(store):
    store.add("broken", error="not audio")
    for held in (store, CodeStore(store.folder, ABOUT), CodeStore(store.folder)):
        assert [row["key"] for row in held.log] == ["a", "b", "c", "broken"]
        for name, frames in (("a", 5), ("b", 1), ("c", 9)):
            assert name in held
            assert np.array_equal(held.codes(name), codes(frames, frames))
            assert held.newest[name]["seconds"] == frames / 50
        assert "broken" not in held
        assert held.newest["broken"] == {"key": "broken", "error": "not audio"}
        assert held.about == ABOUT
        with pytest.raises(KeyError):
            held.codes("d")
    assert (store.folder / "codes.u2").stat().st_size == 2 * 3 * 15


def test_a_later_row_of_a_key_counts(store):
    store.add("a", codes(99, 7))
    again = CodeStore(store.folder)
    assert np.array_equal(again.codes("a"), codes(99, 7))
    assert np.array_equal(again.codes("c"), codes(9, 9))
    assert len(again.log) == 4


def test_codes_of_large_codebooks_and_of_no_frame(tmp_path):
    store = CodeStore(tmp_path, ABOUT | {"size": 1 << 17})
    large = np.array([[70_000, 131_071], [0, 1]])
    store.add("large", large)
    store.add("nothing", np.zeros((2, 0), np.int64))
    assert np.array_equal(CodeStore(tmp_path).codes("large"), large)
    assert "nothing" in store
    assert store.codes("nothing").shape == (2, 0)
    assert store.path.name == "codes.u4"


def test_a_folder_without_codes_stays_as_it_is(tmp_path):
    store = CodeStore(tmp_path)
    assert store.log == []
    assert store.newest == {}
    assert "a" not in store
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rows", range(5))
@pytest.mark.parametrize("torn", [b"", b"\x01\x02\x03"])
def test_a_kill_takes_back_one_clip_at_most(store, rows, torn):
    whole = {path.name: path.read_bytes() for path in store.folder.iterdir()}
    lines = whole[JOURNAL].splitlines(keepends=True)
    half = lines[rows][:9] if rows < len(lines) and torn else b""
    (store.folder / JOURNAL).write_bytes(b"".join(lines[:rows]) + half)
    kept = sum(row["frames"] for row in store.log[: max(0, rows - 1)])
    (store.folder / "codes.u2").write_bytes(whole["codes.u2"][: 2 * 3 * kept] + torn)
    again = CodeStore(store.folder, ABOUT)
    assert len(again.log) == max(0, rows - 1)
    for name, frames in (("a", 5), ("b", 1), ("c", 9)):
        if name not in again:
            again.add(name, codes(frames, frames), seconds=frames / 50)
    assert {path.name: path.read_bytes() for path in store.folder.iterdir()} == whole


def test_a_writer_that_died_in_the_middle_does_not_shift_the_others(store):
    with open(store.path, "ab") as file:
        file.write(b"\x01\x02\x03")
    store.add("d", codes(4))
    assert np.array_equal(CodeStore(store.folder).codes("d"), codes(4))


def add_many(folder, first):
    store = CodeStore(folder, ABOUT)
    for number in range(first, first + 40):
        store.add(str(number), codes(number, 1 + number % 7))


def test_processes_may_share_a_folder(tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=add_many, args=(tmp_path, first)) for first in (0, 100)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    store = CodeStore(tmp_path)
    assert len(store.log) == 80
    for number in (*range(40), *range(100, 140)):
        assert np.array_equal(store.codes(str(number)), codes(number, 1 + number % 7))


def test_a_folder_of_other_codes_is_refused_in_a_line(store):
    with pytest.raises(ConfigError, match=r"was begun with other codes \(weights 0f\): choose another folder"):
        CodeStore(store.folder, ABOUT | {"weights": "10"}, error=ConfigError)
    store.path.write_bytes(store.path.read_bytes()[:-1])
    with pytest.raises(XycodecError, match=r"codes\.u2: lacks codes that codes\.jsonl has: remove the folder"):
        CodeStore(store.folder)
    with pytest.raises(ConfigError, match="cannot be written") as error:
        CodeStore(store.path, ABOUT, error=ConfigError)
    assert len(str(error.value).splitlines()) == 1


def test_a_file_is_told_from_all_others(tmp_path):
    path = tmp_path / "a"
    path.write_text("one")
    before = file_stamp(path)
    assert digest_of(before) == digest_of(file_stamp(path))
    path.write_text("other")
    (tmp_path / "b").write_text("one")
    assert len({digest_of(stamp) for stamp in (before, file_stamp(path), file_stamp(tmp_path / "b"))}) == 3
