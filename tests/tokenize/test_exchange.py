"""Every form that a store is exported to comes back as the same store."""

import gc
import json
from pathlib import PurePosixPath

import numpy as np
import pytest
from lhotse import CutSet
from tests.io.tokens.stores import clip, description, store_of
from tests.tokenize.corpora import tree

from xycodec.errors import StoreError, XycodecError
from xycodec.io.tokens.read import StoredClip, TokenStore
from xycodec.io.tokens.write import write_store
from xycodec.io.xyc import CodecFile
from xycodec.lm.memmap import read_memmap, shape_file, write_memmap
from xycodec.tokenize.exchange.forms import EXPORTS, IMPORTS
from xycodec.tokenize.exchange.rows import file_name

SUFFIX = {"jsonl": ".jsonl", "tar": ".tar", "parquet": ".parquet"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Ids with everything that a file system minds, one clip without samples, other languages."""
    names = ["a/b.wav", "../c", "d e%", "f", "..", "ü/ñ", "/tmp/g", "//h"]
    clips = [clip(i, frames=i % 4, name=name, speaker="one", more={"list": [1, "ä"]}) for i, name in enumerate(names)]
    folder = tmp_path_factory.mktemp("store") / "store"
    write_store(folder, description(), clips, 4)
    return TokenStore(folder)


@pytest.mark.parametrize("form", EXPORTS)
def test_a_round_trip_is_the_same_store(store, tmp_path, form):
    target = tmp_path / f"exported{SUFFIX.get(form, '')}"
    EXPORTS[form](store, target)
    write_store(tmp_path / "back", store.description, IMPORTS[form](target, store.description), 4)
    assert tree(tmp_path / "back") == tree(store.folder)
    assert {path.name for path in tmp_path.iterdir()} == {target.name, "back"}


@pytest.mark.parametrize("name", ["/etc/a", "../a", "a/../../b", "//a", "a//b", "a/", "", ".", "./a", "a\\b", "%2F/a"])
def test_no_id_leads_out_of_the_folder(name):
    path = PurePosixPath(file_name(name, ".npy"))
    assert not path.is_absolute()
    assert {".", ".."}.isdisjoint(path.parts)
    assert file_name(name, "") not in {file_name(other, "") for other in ("etc/a", "a", "b", "%2F", "x")} - {name}


def test_exports_are_what_they_say(store, tmp_path):
    """Read as other programs read them."""
    EXPORTS["npy"](store, tmp_path / "npy")
    assert np.array_equal(np.load(tmp_path / "npy" / "a" / "b.wav.npy"), store.codes(0).T)
    EXPORTS["xyc"](store, tmp_path / "xyc")
    file = CodecFile.read(tmp_path / "xyc" / "f.xyc")
    assert (np.array_equal(file.codes, store[3].codes), file.num_samples) == (True, store[3].samples)
    EXPORTS["jsonl"](store, tmp_path / "x.jsonl")
    row = json.loads((tmp_path / "x.jsonl").read_text().splitlines()[2])
    assert row["codes"] == store.codes(2).T.tolist()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Lhotse leaves the tar open
def test_lhotse_reads_its_shar(store, tmp_path):
    EXPORTS["shar"](store, tmp_path / "shar")
    fields = {"cuts": [tmp_path / "shar" / "cuts.000000.jsonl.gz"], "codes": [tmp_path / "shar" / "codes.000000.tar"]}
    cuts = list(CutSet.from_shar(fields=fields))
    cut = cuts[3]
    assert (cut.codes.frame_shift, cut.codes.shape, cut.supervisions[0].text) == (0.01, [3, 3], "words 3")
    assert np.array_equal(cut.codes.load(), store.codes(3).T)
    gc.collect()


@pytest.mark.parametrize("form", ["npy", "xyc"])
def test_folders_without_a_list(store, tmp_path, form):
    plain = StoredClip("g/h", store.codes(3), 480, {})
    write_store(tmp_path / "one", store.description, [plain])
    EXPORTS[form](TokenStore(tmp_path / "one"), tmp_path / "files")
    (tmp_path / "files" / "clips.jsonl").unlink()
    (found,) = IMPORTS[form](tmp_path / "files", store.description)
    assert (found.id, found.samples, np.array_equal(found.codes, plain.codes)) == ("g/h", 480, True)


@pytest.mark.parametrize("context", [1, 7, 2048])
def test_a_map_of_tokens(store, tmp_path, context):
    write_memmap(store, tmp_path / "x.bin", context, first=1000)
    rows, width = np.load(shape_file(tmp_path / "x.bin"))
    tokens = np.memmap(tmp_path / "x.bin", np.int32, "r", shape=(rows, width))
    assert width == context
    assert tokens.ravel()[:2].tolist() == [1150, 1000 + int(store.codes(1)[0, 0])]
    assert set(np.unique(tokens)) <= set(range(1000, 1152))
    back = list(read_memmap(tmp_path / "x.bin", store.description, first=1000))
    assert [np.array_equal(one.codes, two.codes) for one, two in zip(back, store, strict=True)] == [True] * 8


def test_what_is_not_the_form_is_refused(store, tmp_path):
    about = store.description
    (tmp_path / "x").write_bytes(b"nothing of this kind" * 9)
    for form in ("jsonl", "tar", "shar", "parquet"):
        with pytest.raises(XycodecError, match="x"):
            list(IMPORTS[form](tmp_path / "x", about))
    (tmp_path / "npy").mkdir()
    (tmp_path / "npy" / "a.npy").write_bytes(b"no array")
    with pytest.raises(StoreError, match=r"a\.npy: cannot be read"):
        list(IMPORTS["npy"](tmp_path / "npy", about))
    EXPORTS["xyc"](store, tmp_path / "xyc")
    with pytest.raises(StoreError, match="has codes of tiny, search 1, not of other, search 1"):
        list(IMPORTS["xyc"](tmp_path / "xyc", description(model="other")))
    with pytest.raises(StoreError, match="no map with its shape"):
        list(read_memmap(tmp_path / "x", about))
    with pytest.raises(StoreError, match="exists already"):
        EXPORTS["npy"](store, tmp_path / "npy")


@pytest.mark.parametrize(("codes", "words"), [
    ([[1, 2], [3, 4]], "clip: its codes are not frames of 3"), ([[0.5, 1, 2]], "float64 numbers"),
    ([[1, 2, 3], [4]], "are not frames of 3"), (["a"], "are not frames of 3"),
    ([[1, 2, 50]], "clip: holds a code outside 0 to 49"), ([[1, 2, -1]], "clip: holds a code outside 0 to 49"),
    ([[1, 2, 1 << 40]], "clip: holds a code outside 0 to 49"),
])  # fmt: skip
def test_codes_that_are_none_are_told(tmp_path, codes, words):
    (tmp_path / "x.jsonl").write_text(json.dumps({"id": "clip", "codes": codes}))
    with pytest.raises(StoreError, match=words):
        write_store(tmp_path / "store", description(), IMPORTS["jsonl"](tmp_path / "x.jsonl", description()))
    assert not (tmp_path / "store").exists()


def test_samples_that_are_none_are_told(tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps({"id": "clip", "codes": [], "samples": "many"}))
    with pytest.raises(StoreError, match="clip has 'many' samples"):
        list(IMPORTS["jsonl"](tmp_path / "x.jsonl", description()))


def test_one_codebook_needs_no_frames(tmp_path):
    (tmp_path / "a").mkdir()
    np.save(tmp_path / "a" / "b.npy", np.array([3, 1, 2], np.int32))
    (found,) = IMPORTS["npy"](tmp_path, description(n_q=1))
    assert (found.id, found.codes.tolist(), found.samples) == ("a/b", [[3, 1, 2]], 480)


def test_large_codes_take_their_room(tmp_path):
    about = description(codebook_size=70_000)
    store = TokenStore(store_of(tmp_path / "store", 3, about))
    EXPORTS["npy"](store, tmp_path / "npy")
    assert [one.codes.max() for one in IMPORTS["npy"](tmp_path / "npy", about)] == [one.codes.max() for one in store]
