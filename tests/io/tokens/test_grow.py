"""A store that grows: what is kept, for whom, and what a kill may not do to it."""

import multiprocessing

import numpy as np
import pytest
from tests.io.tokens.stores import description

from xycodec.errors import StoreError
from xycodec.io.tokens.grow import GrowingStore
from xycodec.io.tokens.layout import CODES, INDEX, META

ABOUT = description()


def codes(seed, frames=5, about=ABOUT):
    return np.random.default_rng(seed).integers(about.codebook_size, size=(about.n_q, frames))


@pytest.fixture
def folder(tmp_path):
    with GrowingStore(tmp_path / "codes", ABOUT) as store:
        for name, frames in (("a", 5), ("b", 1), ("c", 9)):
            store.add(name, codes(frames, frames), 160 * frames, {"of": name.upper()})
    return tmp_path / "codes"


def test_what_was_added_is_there_now_and_later(folder):
    with GrowingStore(folder, ABOUT) as store:
        store.fail("broken", "broken.wav", "not audio")
        for held in (store, GrowingStore(folder)):
            assert list(held.newest) == ["a", "b", "c", "broken"]
            for name, frames in (("a", 5), ("b", 1), ("c", 9)):
                assert name in held
                assert np.array_equal(held.codes(name), codes(frames, frames))
                assert held.newest[name] == {"id": name, "seconds": frames / 100, "of": name.upper()}
            assert "broken" not in held
            assert held.newest["broken"]["error"] == "not audio"
            for name in ("broken", "d"):
                with pytest.raises(KeyError):
                    held.codes(name)
    assert (folder / "shards" / "000000" / CODES).stat().st_size == 2 * 3 * 15


def test_a_later_row_of_a_clip_counts(folder):
    with GrowingStore(folder, ABOUT) as store:
        store.fail("c", "", "gone")
        store.add("a", codes(99, 7), 1120, {})
        store.add("c", codes(7, 2), 320, {})
    again = GrowingStore(folder)
    assert np.array_equal(again.codes("a"), codes(99, 7))
    assert np.array_equal(again.codes("c"), codes(7, 2))


def test_codes_of_large_codebooks_and_of_no_frame(tmp_path):
    about = description(codebook_size=1 << 17, n_q=2)
    large = np.array([[70_000, 131_071], [0, 1]])
    with GrowingStore(tmp_path, about) as store:
        store.add("large", large, 320, {})
        store.add("nothing", np.zeros((2, 0), np.int64), 0, {})
    again = GrowingStore(tmp_path)
    assert np.array_equal(again.codes("large"), large)
    assert "nothing" in again
    assert again.codes("nothing").shape == (2, 0)


def test_a_folder_without_codes_stays_as_it_is(tmp_path):
    store = GrowingStore(tmp_path / "none")
    assert (store.newest, "a" in store, list(tmp_path.iterdir())) == ({}, False, [])
    with pytest.raises(StoreError, match="was opened to be read"):
        store.add("a", codes(0), 800, {})


@pytest.mark.parametrize("name", [CODES, INDEX, META])
@pytest.mark.parametrize("kept", [0.0, 0.4, 0.99])
def test_a_kill_takes_back_what_is_not_whole(folder, name, kept):
    shard = folder / "shards" / "000000"
    whole = {path.name: path.read_bytes() for path in shard.iterdir()}
    (shard / name).write_bytes(whole[name][: int(kept * len(whole[name]))])
    with GrowingStore(folder, ABOUT) as again:
        assert len(again.newest) < 3
        for clip, frames in (("a", 5), ("b", 1), ("c", 9)):
            if clip not in again:
                again.add(clip, codes(frames, frames), 160 * frames, {"of": clip.upper()})
    assert {path.name: path.read_bytes() for path in shard.iterdir()} == whole


def add_many(folder, first):
    with GrowingStore(folder, ABOUT) as store:
        for number in range(first, first + 40):
            store.add(str(number), codes(number, 1 + number % 7), 100, {})


def test_processes_may_share_a_folder(tmp_path):
    """One is at it for as long as the other takes."""
    with GrowingStore(tmp_path, ABOUT) as store:
        store.add("mine", codes(1), 100, {})
        worker = multiprocessing.get_context("fork").Process(target=add_many, args=(tmp_path, 100))
        worker.start()
        worker.join()
        store.add("and mine", codes(2), 100, {})
    assert worker.exitcode == 0
    again = GrowingStore(tmp_path)
    assert len(again.newest) == 42
    assert np.array_equal(again.codes("and mine"), codes(2))
    for number in range(100, 140):
        assert np.array_equal(again.codes(str(number)), codes(number, 1 + number % 7))


def test_a_folder_of_other_codes_is_refused_in_a_line(folder, tmp_path):
    with pytest.raises(StoreError, match=r"was begun with other codes \(weights 0f and 10\): choose another folder"):
        GrowingStore(folder, description(weights="10"))
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written") as error:
        GrowingStore(tmp_path / "file", ABOUT)
    assert len(str(error.value).splitlines()) == 1
