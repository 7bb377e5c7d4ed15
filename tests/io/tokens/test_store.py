"""The store of tokens: what was written is read, in place; kills and damages are seen."""

import io
import json
import os
import pickle
import resource
import shutil

import numpy as np
import pytest
from tests.io.tokens.stores import clip, description, store_of

from xycodec.errors import StoreError
from xycodec.io.tokens import write
from xycodec.io.tokens.check import damages
from xycodec.io.tokens.layout import ROW, hash_of
from xycodec.io.tokens.read import TokenStore
from xycodec.io.tokens.write import ShardWriter, begin_store, finish_store, write_store


def same(got, expected):
    return got.id == expected.id and got.samples == expected.samples and np.array_equal(got.codes, expected.codes)


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_what_was_written_is_read_by_number_and_by_id(tmp_path):
    store = TokenStore(store_of(tmp_path / "store", 10))
    assert (len(store), len(store.shards), store.description) == (10, 3, description())
    assert store.frames == sum(clip(number).codes.shape[1] for number in range(10))
    assert store.lengths().tolist() == [clip(number).codes.shape[1] for number in range(10)]
    for opened in (store, pickle.loads(pickle.dumps(store))):
        for number in (9, 0, 4, 3):
            assert same(opened[number], clip(number))
            assert opened.number_of(f"clip {number}") == number
            assert np.array_equal(opened.codes(number), clip(number).codes)
            seconds = round(clip(number).samples / 16_000, 6)
            assert opened.meta(number) == {"id": f"clip {number}", "seconds": seconds, "text": f"words {number}"}
    assert "clip 3" in store
    assert "clip 10" not in store
    assert [one.id for one in store] == [f"clip {number}" for number in range(10)]
    with pytest.raises(StoreError, match="holds no clip 'clip 10'"):
        store.number_of("clip 10")
    with pytest.raises(IndexError, match="clips 0 to 9, not 10"):
        store[10]


def test_the_bytes_are_those_of_the_written_specification(tmp_path):
    """Read without this package: numpy and docs/token_store.md."""
    folder = store_of(tmp_path / "store", 5, shard_clips=5)
    shard = folder / "shards" / "000000"
    index = np.fromfile(shard / "index.bin", "<u8,<u8,<u8,<u8,<u4,<u4")
    codes = np.fromfile(shard / "codes.bin", "<u2").reshape(-1, 3)
    lines = (shard / "meta.jsonl").read_bytes()
    for number, (first, meta, samples, name, frames, _) in enumerate(index.tolist()):
        assert np.array_equal(codes[first : first + frames], clip(number).codes.T)
        assert json.loads(lines[meta:].split(b"\n")[0])["id"] == f"clip {number}"
        assert (samples, name) == (clip(number).samples, hash_of(f"clip {number}"))
    about = json.loads((folder / "store.json").read_text())
    assert (about["version"], about["dtype"], about["frame_rate"], about["n_q"]) == (1, "<u2", 100.0, 3)


def test_codes_are_mapped_not_loaded(tmp_path):
    store = TokenStore(store_of(tmp_path / "store", 3))
    codes = store.codes(1)
    assert not codes.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        codes[0, 0] = 1
    path = store.folder / "shards" / "000000" / "codes.bin"
    with open(path, "r+b") as file:  # what is mapped sees what the file becomes
        file.seek(2 * 3 * clip(0).codes.shape[1])
        file.write(b"\x31\x00")
    assert codes[0, 0] == 0x31


def test_an_index_takes_at_most_a_tenth(tmp_path):
    """At 12.5 frames a second and 8 codebooks, of clips of 3 s."""
    about = description(n_q=8, codebook_size=1024, hop_length=1280)
    write_store(tmp_path / "store", about, (clip(i, about, frames=38) for i in range(1000)), 250)
    sizes = {path: len(data) for path, data in tree(tmp_path / "store").items() if not path.endswith("meta.jsonl")}
    codes = sum(size for path, size in sizes.items() if path.endswith("codes.bin"))
    assert codes == 1000 * 38 * 16
    assert 0 < sum(sizes.values()) - codes < 0.1 * codes


def test_many_shards_need_few_open_files(tmp_path):
    store = TokenStore(store_of(tmp_path / "store", 150, shard_clips=1))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 400), hard))
    try:
        assert all(same(store[number], clip(number)) for number in range(150))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_large_codebooks_take_four_bytes(tmp_path):
    about = description(codebook_size=100_000)
    store = TokenStore(store_of(tmp_path / "store", 6, about))
    assert store.codes(0).dtype == np.dtype("<u4")
    assert all(same(store[number], clip(number, about)) for number in range(6))
    assert max(int(one.codes.max()) for one in store) > 65_536


def test_a_store_without_clips_is_one(tmp_path):
    store = TokenStore(store_of(tmp_path / "store", 0))
    assert (len(store), list(store), store.lengths().tolist(), "a" in store) == (0, [], [], False)
    assert list(damages(store)) == []


# ---- kills -----------------------------------------------------------------------------------------


NAMES = [f"clip {number}" for number in range(9)]


def write_shard(folder, upto, finish):
    """Clips 0, 1 (failed), 2, ... of a shard, from where it was left."""
    with ShardWriter(folder / "part", description()) as writer:
        for number in range(writer.go_on(NAMES), upto):
            if number == 1:
                writer.fail("clip 1", "1.wav", "not audio")
            else:
                writer.add(f"clip {number}", clip(number).codes, clip(number).samples, clip(number).meta)
        if finish:
            writer.finish(folder / "shards" / "000000")
            finish_store(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "store"
    begin_store(folder, description())
    write_shard(folder, 8, finish=True)
    return folder


@pytest.mark.parametrize("torn", ["", "codes.bin", "meta.jsonl", "index.bin", "failures.jsonl"])
@pytest.mark.parametrize("done", [0, 1, 2, 5, 8])
def test_a_shard_goes_on_after_a_kill(whole, tmp_path, done, torn):
    begin_store(tmp_path, description())
    write_shard(tmp_path, done, finish=False)
    if torn and done:
        with open(tmp_path / "part" / torn, "ab") as file:
            file.write(b'{"a\x01\x02')
    write_shard(tmp_path, 8, finish=True)
    assert tree(tmp_path) == tree(whole)
    assert [row["id"] for row in TokenStore(tmp_path).failures()] == ["clip 1"]


def test_a_clip_that_never_reached_the_disk_is_written_again(whole, tmp_path):
    """After a power failure: the row is there, its codes are not."""
    begin_store(tmp_path, description())
    write_shard(tmp_path, 6, finish=False)
    codes = (tmp_path / "part" / "codes.bin").read_bytes()
    (tmp_path / "part" / "codes.bin").write_bytes(codes[:-6] + bytes(6))
    write_shard(tmp_path, 8, finish=True)
    assert tree(tmp_path) == tree(whole)


def test_a_shard_whose_middle_is_lost_is_begun_again(whole, tmp_path):
    """The failure of clip 1 is there, clip 0 before it is not."""
    begin_store(tmp_path, description())
    write_shard(tmp_path, 2, finish=False)
    os.truncate(tmp_path / "part" / "index.bin", 0)
    write_shard(tmp_path, 8, finish=True)
    assert tree(tmp_path) == tree(whole)


def test_a_disk_that_takes_a_part_first_gets_the_rest(whole, tmp_path, monkeypatch):
    class Slow(io.FileIO):
        def write(self, data):
            return super().write(memoryview(data)[:7])

    monkeypatch.setattr(write, "open", lambda path, mode, buffering=-1: Slow(path, mode), raising=False)
    with ShardWriter(tmp_path / "part", description()) as writer:
        for number in (0, 2):
            writer.add(f"clip {number}", clip(number).codes, clip(number).samples, clip(number).meta)
    for name in ("codes.bin", "index.bin", "meta.jsonl"):
        made = (tmp_path / "part" / name).read_bytes()
        assert (whole / "shards" / "000000" / name).read_bytes()[: len(made)] == made


# ---- damages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "words"), [
    ("codes.bin", "hits 'clip 5'"), ("meta.jsonl", "hits 'clip 5'"), ("index.bin", "hits all 4 clips"),
])  # fmt: skip
def test_a_flipped_bit_is_found_with_its_clip(tmp_path, name, words):
    store = TokenStore(store_of(tmp_path / "store", 10))
    assert list(damages(store)) == []
    path = store.folder / "shards" / "000001" / name
    data = bytearray(path.read_bytes())
    row = np.fromfile(path.with_name("index.bin"), ROW)[1]
    place = {"codes.bin": 6 * int(row["first"]), "meta.jsonl": int(row["meta"]) + 20, "index.bin": 44}[name]
    data[place] ^= 1
    path.write_bytes(data)
    (line,) = damages(TokenStore(store.folder))
    assert words in line
    assert name in line


def test_a_torn_shard_is_told_when_it_is_read(tmp_path):
    folder = store_of(tmp_path / "store", 10)
    os.truncate(folder / "shards" / "000001" / "codes.bin", 30)
    store = TokenStore(folder)
    assert same(store[0], clip(0))
    with pytest.raises(StoreError, match=r"000001/codes\.bin: has 30 bytes where shard\.json says"):
        store[5]
    (line,) = damages(store)
    assert "hits all 4 clips" in line
    os.truncate(folder / "ids.bin", 30)
    with pytest.raises(StoreError, match=r"ids\.bin: has 30 bytes for 10 clips"):
        store.number_of("clip 1")
    (folder / "shards" / "000000" / "shard.json").write_text("{}")
    assert "000000: shard.json differ from what was written, which hits no clip" in next(damages(store))
    shutil.rmtree(folder / "shards" / "000002")
    assert len(list(damages(TokenStore(folder)))) == 3


def test_a_wrong_table_of_ids_is_a_damage(tmp_path):
    store = TokenStore(store_of(tmp_path / "store", 10))
    (store.folder / "ids.bin").write_bytes(bytes(120))
    (line,) = damages(store)
    assert "ids.bin" in line


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(StoreError, match="not a store of tokens"):
        TokenStore(tmp_path)
    folder = store_of(tmp_path / "store", 3)
    about = json.loads((folder / "store.json").read_text())
    cases = [
        (about | {"version": 2}, "of version 2, this xycodec reads 1: update xycodec"),
        (about | {"format": "other"}, "does not describe a store"),
        ({key: value for key, value in about.items() if key != "n_q"}, r"lacks or misspells a field \('n_q'\)"),
        (about | {"n_q": 0}, "a number is not positive"),
    ]
    for changed, words in cases:
        (folder / "store.json").write_text(json.dumps(changed))
        with pytest.raises(StoreError, match=words):
            TokenStore(folder)
    (folder / "store.json").write_text("{")
    with pytest.raises(StoreError, match="not JSON"):
        TokenStore(folder)
    (folder / "store.json").write_text(json.dumps(about))
    (folder / "shards.jsonl").unlink()
    with pytest.raises(StoreError, match="not finished: run the command"):
        TokenStore(folder)


def test_what_cannot_be_stored_is_refused(tmp_path):
    with ShardWriter(tmp_path / "part", description()) as writer:
        with pytest.raises(StoreError, match=r"codes of shape \(2, 4\) do not fit a store of 3 codebooks"):
            writer.add("a", np.zeros((2, 4), int), 4, {})
        with pytest.raises(StoreError, match="a: holds a code outside 0 to 49"):
            writer.add("a", np.full((3, 4), 50), 4, {})
    with pytest.raises(StoreError, match="two clips are called 'a'"):
        write_store(tmp_path / "store", description(), [clip(0, name="a"), clip(1, name="a")])
    assert not (tmp_path / "store").exists()
    begin_store(tmp_path / "begun", description())
    begin_store(tmp_path / "begun", description(versions={"xycodec": "9"}))
    with pytest.raises(StoreError, match=r"was begun with other codes \(weights 0f and aa\)"):
        begin_store(tmp_path / "begun", description(weights="aa"))
    with pytest.raises(StoreError, match="holds other files"):
        begin_store(tmp_path, description())


def test_a_full_disk_is_told(tmp_path):
    with ShardWriter(tmp_path / "part", description()) as writer, open("/dev/full", "ab", buffering=0) as full:
        before, writer._codes = writer._codes, full
        with pytest.raises(StoreError, match="No space left on device"):
            writer.add("a", clip(3).codes, 4, {})
        before.close()
