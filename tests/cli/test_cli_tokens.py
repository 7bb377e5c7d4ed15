"""`xycodec tokens`: looking at stores and making others of them."""

import json

import numpy as np
import pytest
import soundfile as sf
from tests.io.tokens.stores import clip, description, store_of
from tests.tokenize.corpora import save_model, tree

from xycodec.errors import StoreError
from xycodec.io.tokens.read import StoredClip, TokenStore
from xycodec.io.tokens.write import write_store
from xycodec.io.xyc import CodecFile
from xycodec.tokenize.stats import token_stats


@pytest.fixture
def store(tmp_path):
    return store_of(tmp_path / "store", 10)


@pytest.mark.parametrize("command", [("export", "--to", "npy", "-o", "out"), ("export", "--to", "tar", "-o", "out")])
def test_what_is_damaged_is_not_exported(xycodec, store, tmp_path, monkeypatch, command):
    """An export would give it a checksum that holds."""
    monkeypatch.chdir(tmp_path)
    name, *options = command
    (path, *_) = sorted(store.glob("shards/*/codes.bin"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    code, out, err = xycodec("tokens", name, store, *options)
    assert (code, out) == (1, "")
    assert "its codes or metadata are damaged" in err
    with pytest.raises(StoreError, match="damaged"):
        list(TokenStore(store))


def test_merge_makes_one_of_several(xycodec, tmp_path):
    about = description()
    for name, numbers in (("a", range(4)), ("b", range(4, 10))):
        write_store(tmp_path / name, about, (clip(number) for number in numbers), 3)
    code, out, _ = xycodec("tokens", "merge", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "c", "--shard-clips", 4)
    assert (code, "10 clips" in out) == (0, True)
    assert tree(tmp_path / "c") == tree(store_of(tmp_path / "whole", 10))
    code, _, err = xycodec("tokens", "merge", tmp_path / "a", tmp_path / "a", "-o", tmp_path / "d")
    assert (code, "two clips are called 'clip 0'" in err) == (1, True)
    write_store(tmp_path / "e", description(weights="other"), [])
    code, _, err = xycodec("tokens", "merge", tmp_path / "a", tmp_path / "e", "-o", tmp_path / "d")
    assert (code, "hold other codes (weights 0f and other)" in err) == (1, True)


@pytest.mark.parametrize(("way", "names"), [
    (["--parts", 3], {"0", "1", "2"}), (["--by", "speaker"], {"one", "t%2Fo", "none"}),
    (["--hold-out", 0.4], {"held_out", "rest"}),
])  # fmt: skip
def test_split_makes_several_of_one(xycodec, tmp_path, way, names):
    clips = [clip(number, **({}, {"speaker": "one"}, {"speaker": "t/o"})[number % 3]) for number in range(10)]
    write_store(tmp_path / "store", description(), clips)
    code, _, err = xycodec("tokens", "split", tmp_path / "store", "-o", tmp_path / "parts", *way)
    assert code == 0, err
    parts = {path.name: [one.id for one in TokenStore(path)] for path in (tmp_path / "parts").iterdir()}
    assert set(parts) == names
    assert sorted(one for part in parts.values() for one in part) == sorted(one.id for one in clips)
    assert "none" not in parts or parts["none"] == ["clip 0", "clip 3", "clip 6", "clip 9"]
    assert "0" not in parts or [len(parts[name]) for name in "012"] == [4, 3, 3]


def test_split_by_a_field_that_no_clip_has(xycodec, store, tmp_path):
    code, _, err = xycodec("tokens", "split", store, "-o", tmp_path / "parts", "--by", "speakr")
    assert (code, "no clip has a field 'speakr': fields are" in err) == (1, True)
    assert not (tmp_path / "parts").exists()


def test_verify_names_what_is_damaged(xycodec, store):
    code, out, _ = xycodec("tokens", "verify", store)
    assert (code, "10 clips in 3 shards are as they were written" in out) == (0, True)
    path = store / "shards" / "000001" / "codes.bin"
    path.write_bytes(b"\x01" + path.read_bytes()[1:])
    code, _, err = xycodec("tokens", "verify", store)
    assert (code, "codes.bin differ from what was written, which hits 'clip 4'" in err) == (1, True)


def test_show_prints_and_decodes(xycodec, tmp_path):
    model = save_model(tmp_path / "model")
    sf.write(tmp_path / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(9000), 16_000)
    assert xycodec("tokenize", tmp_path / "a.wav", "-o", tmp_path / "store", "-m", model, "--threads", 1)[0] == 0
    code, out, _ = xycodec("tokens", "show", tmp_path / "store", "a.wav")
    first, *books = out.splitlines()
    assert (code, json.loads(first)["samples"]) == (0, 9000)
    codes = TokenStore(tmp_path / "store").codes(0)
    assert [list(map(int, book.split())) for book in books] == codes.tolist()
    for name in ("b.wav", "b.xyc"):
        code, _, err = xycodec("tokens", "show", tmp_path / "store", "0", "-o", tmp_path / name, "-m", model)
        assert code == 0, err
    assert sf.info(tmp_path / "b.wav").frames == 9000
    assert np.array_equal(CodecFile.read(tmp_path / "b.xyc").codes, codes)
    code, _, err = xycodec("tokens", "show", tmp_path / "store", "b.wav")
    assert (code, "holds no clip 'b.wav'" in err) == (1, True)
    code, _, err = xycodec("tokens", "show", tmp_path / "store", "1")
    assert (code, "has no clip called 1, and its numbers end at 0" in err) == (1, True)


def test_export_and_import(xycodec, store, tmp_path):
    for form in ("jsonl", "memmap"):
        code, _, err = xycodec("tokens", "export", store, "-o", tmp_path / f"x.{form}", "--to", form)
        assert code == 0, err
    options = ("--from", "jsonl", "--like", store, "--shard-clips", 4)
    code, _, err = xycodec("tokens", "import", tmp_path / "x.jsonl", "-o", tmp_path / "back", *options)
    assert code == 0, err
    assert tree(tmp_path / "back") == tree(store)
    options = ("--from", "memmap", "--like", store)
    code, _, err = xycodec("tokens", "import", tmp_path / "x.memmap", "-o", tmp_path / "numbered", *options)
    assert (code, "clips are called by their numbers" in err) == (0, True)
    clips = zip(TokenStore(tmp_path / "numbered"), TokenStore(store), strict=True)
    assert all(np.array_equal(one.codes, other.codes) for one, other in clips)
    code, _, err = xycodec("tokens", "export", store, "-o", tmp_path / "y", "--to", "other")
    assert (code, "no form to export to" in err) == (1, True)


# ---- statistics ------------------------------------------------------------------------------------


def stats_of(folder, *codes, n_q=2, size=4, **more):
    about = description(n_q=n_q, codebook_size=size)
    write_store(folder, about, (StoredClip(str(i), one, 1, {}) for i, one in enumerate(codes)))
    return token_stats(TokenStore(folder), **more)


def test_statistics_by_hand(tmp_path):
    """Codebook 0 counts 0, 1, 2, 3, 0, ...; codebook 1 says whether it is odd."""
    counting = np.tile(np.arange(4), 100)
    stats = stats_of(tmp_path / "store", *[np.stack([counting, counting % 2])] * 4)
    first, second = stats.books
    assert (first.usage, second.usage, first.given_lower, first.repeats) == (1.0, 0.5, None, 0.0)
    assert (first.entropy, second.entropy) == pytest.approx((2.0, 1.0))
    assert (first.given_previous, second.given_previous, second.given_lower) == pytest.approx((0, 0, 0), abs=1e-3)
    assert stats.bitrate == pytest.approx(100 * 2 * 2)
    assert stats.entropy_bitrate == pytest.approx(300)
    assert 0 < stats.ngram_bitrate < 20
    assert stats.bpe_ratio > 4


def test_noise_has_nothing_to_save(tmp_path):
    """A bigram of one half of the clips does not tell the other half, whatever the counts of all seem to say."""
    generator = np.random.default_rng(0)
    stats = stats_of(tmp_path / "store", *[generator.integers(64, size=(2, 200)) for _ in range(6)], size=64)
    assert stats.books[0].given_previous < 5
    assert stats.ngram_bitrate > 0.99 * stats.bitrate
    assert all(0.005 < book.repeats < 0.03 for book in stats.books)


def test_one_clip_and_a_part_of_many(tmp_path):
    one = stats_of(tmp_path / "one", np.zeros((2, 3), int))
    assert (one.clips, one.ngram_bitrate, one.bpe_ratio, one.books[0].repeats) == (1, one.bitrate, None, 1.0)
    assert stats_of(tmp_path / "many", *[np.zeros((2, 3), int)] * 9, clips=4).clips == 4


def test_the_command_prints_and_draws(xycodec, store, tmp_path):
    code, out, _ = xycodec("tokens", "stats", store, "--picture", tmp_path / "x.png")
    assert (code, "kbit/s: plain 1.693" in out, "10 of 10 clips" in out) == (0, True, True)
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = xycodec("tokens", "stats", store, "--json")
    assert len(json.loads(out)["books"]) == 3
    code, _, err = xycodec("tokens", "stats", store_of(tmp_path / "empty", 0))
    assert (code, "holds no frames" in err) == (1, True)
