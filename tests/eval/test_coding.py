import json
import math
from itertools import permutations

import numpy as np
import pytest
import soundfile as sf
import torch
from tests.io.tokens.stores import description
from tests.reference import tiny_config

from xycodec.checkpoints.build import random_codec
from xycodec.errors import XycodecError
from xycodec.eval.coding import (
    CodecSpec,
    adaptive_bits,
    code_clips,
    codebook_counts,
    codebook_use,
    coded_clips,
    uncoded,
)  # fmt: skip
from xycodec.io.tokens.grow import GrowingStore
from xycodec.models.base import fingerprint
from xycodec.models.longform import decode_long, encode_long
from xycodec.tokenize.shard import Encoding


@pytest.fixture(scope="module")
def codec():
    return random_codec(tiny_config())


@pytest.fixture
def clips(tmp_path):
    names = ["a", "deep/b", "c"]
    for number, name in enumerate(names):
        path = tmp_path / "original" / f"{name}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        sf.write(path, np.random.default_rng(number).uniform(-0.5, 0.5, 4000 + 3333 * number), 16_000)
    return {name: f"audio of {name}" for name in names}


META = "codes/shards/000000/meta.jsonl"


def rows(folder):
    return [json.loads(line) for line in (folder / META).read_text().splitlines()]


# ---- specs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "model", "n_q", "search"),
    [
        ("xy-mini", "xy-mini", None, 1),
        ("xy-mini@4", "xy-mini", 4, 1),
        ("xy-mini+16", "xy-mini", None, 16),
        ("xy-mini@4+16", "xy-mini", 4, 16),
        ("opus-6k", "opus-6k", None, 1),
        ("a@b", "a@b", None, 1),
        ("a+b", "a+b", None, 1),
    ],
)
def test_specs(text, model, n_q, search):
    spec = CodecSpec(text)
    assert (spec.model, spec.n_q, spec.search, spec.folder) == (model, n_q, search, text)


def test_folders_of_names_that_are_no_file_names_stay_apart():
    names = ["exp/run", "exp-run", "exp:run", "/exp/run", "..", "../x", "x" * 200, "x" * 201, "exp/run@4", "über"]
    folders = [CodecSpec(name).folder for name in names]
    assert len(set(folders)) == len(names)
    for folder in folders:
        assert folder == folder.strip(".")
        assert "/" not in folder
        assert 0 < len(folder) <= 64


def test_a_fingerprint_is_of_every_weight(codec):
    assert fingerprint(codec) == fingerprint(random_codec(tiny_config()))
    other = random_codec(tiny_config(), seed=1)
    assert fingerprint(codec) != fingerprint(other)
    other.load_state_dict(codec.state_dict())
    assert fingerprint(codec) == fingerprint(other)
    with torch.no_grad():
        other.quantizer.codebook[0, 0, 0] += 1e-6
    assert fingerprint(codec) != fingerprint(other)


# ---- clips -----------------------------------------------------------------------------------------


def test_files_are_what_the_codec_gives(codec, clips, tmp_path):
    folder = tmp_path / "codec"
    folder.mkdir()
    done = []
    code_clips(codec, 2, clips, tmp_path / "original", folder, lambda: done.append(1))
    assert len(done) == 3
    for row, name in zip(rows(folder), clips, strict=True):
        audio = sf.read(tmp_path / "original" / f"{name}.flac", dtype="float32")[0]
        codes = encode_long(codec, audio, n_q=2)
        assert (row["id"], row["seconds"]) == (name, round(len(audio) / 16_000, 6))
        assert row["bits"] == codes.numel() * math.ceil(math.log2(codec.codebook_size))
        assert min(row["encode_s"], row["decode_s"]) > 0
        assert np.array_equal(GrowingStore(folder / "codes").codes(name), codes.numpy())
        decoded = decode_long(codec, codes, num_samples=len(audio)).numpy().clip(-1, 1 - 2**-15)
        written = sf.read(folder / "audio" / f"{name}.flac", dtype="float32")[0]
        assert written.shape == audio.shape
        assert np.abs(written - decoded).max() <= 2**-15


def test_searched_codes_have_a_store_of_their_own(codec, clips, tmp_path):
    searched, greedy = tmp_path / "searched", tmp_path / "greedy"
    for folder, width in ((searched, 4), (greedy, 1)):
        folder.mkdir()
        code_clips(codec, None, clips, tmp_path / "original", folder, lambda: None, search=width)
    audio = sf.read(tmp_path / "original" / "a.flac", dtype="float32")[0]
    found = GrowingStore(searched / "codes")
    assert np.array_equal(found.codes("a"), encode_long(codec, audio, search=4).numpy())
    assert found.description == Encoding(codec, search=4).describe()
    with pytest.raises(XycodecError, match=r"was begun with other codes \(search 1 and 4\)"):
        code_clips(codec, None, clips, tmp_path / "original", greedy, lambda: None, search=4)


def test_what_is_done_is_not_done_again(codec, clips, tmp_path):
    folder = tmp_path / "codec"
    folder.mkdir()
    code_clips(codec, None, dict(list(clips.items())[:2]), tmp_path / "original", folder, lambda: None)
    first = (folder / META).read_bytes()
    (folder / META).write_bytes(first[:-5])  # a kill in the middle of the second row
    todo = uncoded(clips, folder)
    assert list(todo) == ["deep/b", "c"]
    code_clips(codec, None, todo, tmp_path / "original", folder, lambda: None)
    assert uncoded(clips, folder) == {}
    again = rows(folder)
    assert [row["id"] for row in again] == list(clips)
    assert (folder / META).read_bytes().startswith(first[: first.rindex(b"\n", 0, -1) + 1])


def test_a_clip_that_the_codec_fails_on(codec, clips, tmp_path):
    class Moody(type(codec)):
        def _encode(self, items, n_q, search):
            if items[0].shape[0] == 7333:
                raise RuntimeError("not\nthis one")
            return super()._encode(items, n_q, search)

    Moody.__name__ = type(codec).__name__  # the same codec in another mood
    moody = Moody(codec.config).eval()
    moody.fold_weight_norm()
    moody.load_state_dict(codec.state_dict())
    folder = tmp_path / "codec"
    folder.mkdir()
    code_clips(moody, None, clips, tmp_path / "original", folder, lambda: None)
    found = rows(folder)
    error = "RuntimeError: not this one"
    assert found[1] == {"id": "deep/b", "seconds": 0.0, "of": "audio of deep/b", "error": error}
    assert [row["id"] for row in found if "bits" in row] == ["a", "c"]
    assert not (folder / "audio" / "deep" / "b.flac").exists()
    # Another time it may work.
    todo = uncoded(clips, folder)
    assert list(todo) == ["deep/b"]
    code_clips(codec, None, todo, tmp_path / "original", folder, lambda: None)
    assert "bits" in coded_clips(clips, folder)["deep/b"]
    assert uncoded(clips, folder) == {}


# ---- what the codes say ----------------------------------------------------------------------------


def test_counts_add_up_over_clips(tmp_path):
    with GrowingStore(tmp_path / "codes", description(n_q=2, codebook_size=4)) as store:
        store.add("a", np.array([[0, 1, 1], [3, 3, 3]]), 480, {})
        store.add("b", np.array([[1], [0]]), 160, {})
    counts = codebook_counts(tmp_path, ["a", "b"], 4)
    assert counts.tolist() == [[1, 3, 0, 0], [1, 0, 0, 3]]
    use = codebook_use(counts)
    assert [one.used for one in use] == [0.5, 0.5]
    assert use[0].entropy_bits == pytest.approx(-(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75)))
    assert codebook_use(codebook_counts(tmp_path, [], 4)) == ()
    assert adaptive_bits(codebook_counts(tmp_path, [], 4)) == 0


def test_an_adaptive_coder_is_what_it_says():
    def coded(codes, size):
        """One after another, as a coder would."""
        bits, seen = 0.0, [0.5] * size
        for code in codes:
            bits -= math.log2(seen[code] / sum(seen))
            seen[code] += 1
        return bits

    for order in set(permutations([0, 0, 2, 1, 0])):
        assert adaptive_bits(np.array([[3, 1, 1, 0]])) == pytest.approx(coded(order, 4))
    draws = np.random.default_rng(0).choice(8, 5000, p=np.arange(1, 9) / 36)
    counts = np.bincount(draws, minlength=8)
    bits = adaptive_bits(counts[None])
    assert bits == pytest.approx(coded(draws.tolist(), 8))
    # A little more than the entropy, which it has to learn.
    entropy = codebook_use(counts[None])[0].entropy_bits * 5000
    assert entropy < bits < entropy + 60
    assert adaptive_bits(np.stack([counts, counts])) == pytest.approx(2 * bits)


def test_long_clips_go_through_windows_that_share_what_is_asked(codec, tmp_path):
    (tmp_path / "original").mkdir()
    audio = np.random.default_rng(0).uniform(-0.3, 0.3, 3 * codec.window_samples).astype(np.float32)
    sf.write(tmp_path / "original" / "long.flac", audio, 16_000)
    audio = sf.read(tmp_path / "original" / "long.flac", dtype="float32")[0]
    found = {}
    for name, overlap in (("apart", 0.0), ("third", None)):
        (tmp_path / name).mkdir()
        clips = {"long": "digest"}
        code_clips(codec, None, clips, tmp_path / "original", tmp_path / name, lambda: None, overlap_s=overlap)
        codes = encode_long(codec, audio, overlap)
        assert np.array_equal(GrowingStore(tmp_path / name / "codes").codes("long"), codes.numpy())
        decoded = decode_long(codec, codes, overlap, len(audio)).numpy().clip(-1, 1 - 2**-15)
        found[name] = sf.read(tmp_path / name / "audio" / "long.flac", dtype="float32")[0]
        assert np.abs(found[name] - decoded).max() <= 2**-15
    assert not np.array_equal(found["apart"], found["third"])
    with pytest.raises(XycodecError, match="was begun with other codes"):
        code_clips(codec, None, {"b": "other"}, tmp_path / "original", tmp_path / "third", lambda: None, overlap_s=0.0)
