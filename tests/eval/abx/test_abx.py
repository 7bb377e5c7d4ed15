"""Every number of ABX against loops that spell the protocol out, and against answers that are known."""

import itertools
import json
import math
import os
from collections import defaultdict
from functools import cache

import numpy as np
import pytest
import soundfile as sf
import torch

from published_layout import tiny_config
from xycodec.checkpoints.build import random_codec
from xycodec.checkpoints.save import save_codec
from xycodec.errors import ConfigError, XycodecError
from xycodec.eval.abx.distances import Features, block_distances, frame_distances, item_frames
from xycodec.eval.abx.dtw import dtw
from xycodec.eval.abx.items import COLUMNS, Omissions, PhoneItem, find_audio, read_items
from xycodec.eval.abx.run import abx_error, run_abx
from xycodec.eval.abx.triples import plan_triples
from xycodec.io.audio import read_audio
from xycodec.models.longform import encode_long

EVERYTHING = {"seed": 0, "max_group": 1000, "max_x": 1000}


@pytest.fixture(scope="module")
def codec():
    """12.5 frames a second, 3 codebooks; its window of 2 s is shorter than the recordings."""
    return random_codec(tiny_config())


@pytest.fixture
def corpus(tmp_path):
    """(item file, folder of audio): two speakers, two recordings of noise each, phones of 50 to 200 ms."""
    generator = np.random.default_rng(1)
    lines = [COLUMNS]
    for speaker, take in itertools.product("mn", range(2)):
        name = f"{speaker}{take}"
        (tmp_path / speaker).mkdir(exist_ok=True)
        sf.write(tmp_path / speaker / f"{name}.flac", generator.uniform(-0.5, 0.5, 48_000), 16_000)
        onset = 0.1
        for _ in range(10):
            offset = onset + generator.uniform(0.05, 0.2)
            phone, before = generator.choice(["a", "b"]), generator.choice(["p", "q"])
            lines.append(f"{name} {onset:.3f} {offset:.3f} {phone} {before} t {speaker}")
            onset = offset
    return write(tmp_path / "phones.item", lines), tmp_path


def write(path, lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


# ---- references, loop by loop ------------------------------------------------------------------


def naive_dtw(distances):
    """The mean along the cheapest path, the shortest of several, by memory of (cost, steps)."""
    height, width = distances.shape
    best = {}
    for i, j in itertools.product(range(height), range(width)):
        ways = [best[way] for way in ((i - 1, j), (i, j - 1), (i - 1, j - 1)) if way in best]
        cost, steps = min(ways, default=(0.0, 0))
        best[i, j] = cost + float(distances[i, j]), steps + 1
    cost, steps = best[height - 1, width - 1]
    return cost / steps


def naive_angle(u, v):
    if not u.any() or not v.any():
        return float(u.any() != v.any())
    return math.acos(min(1.0, max(-1.0, float(u @ v) / math.sqrt(float(u @ u) * float(v @ v))))) / math.pi


def naive_share(u, v):
    return sum(a != b for a, b in zip(u.tolist(), v.tolist(), strict=True)) / len(u)


def naive_abx(items, sequences, mode, frame_distance):
    """Every triple of the definition, in percent: cells, then means over cells, speakers and pairs of phones."""

    @cache
    def distance(i, j):
        return naive_dtw(np.array([[frame_distance(u, v) for v in sequences[j]] for u in sequences[i]]))

    cells = defaultdict(list)
    for a, b, x in itertools.permutations(range(len(items)), 3):
        first, other, third = items[a], items[b], items[x]
        same_context = first.context == other.context == third.context
        phones = first.phone == third.phone != other.phone
        speakers = first.speaker == other.speaker and (first.speaker == third.speaker) == (mode == "within")
        if same_context and phones and speakers:
            gap = distance(x, a) - distance(x, b)
            wrong = 0.5 if abs(gap) < 1e-6 else float(gap > 0)
            cells[first.phone, other.phone, first.speaker, first.context, third.speaker].append(wrong)
    levels = {key: np.mean(wrong) for key, wrong in cells.items()}
    for length in (3, 2, 0):
        grouped = defaultdict(list)
        for key, value in levels.items():
            grouped[key[:length]].append(value)
        levels = {key: np.mean(values) for key, values in grouped.items()}
    triples = sum(map(len, cells.values()))
    return 100 * levels.get((), math.nan), triples, len(cells)


def random_items(count, seed, speakers="mno", phones="abc", contexts="pq"):
    generator = np.random.default_rng(seed)
    drawn = (tuple(map(str, map(generator.choice, map(list, (phones, contexts, speakers))))) for _ in range(count))
    return [
        PhoneItem("f", number, number + 1, phone, (context, "t"), speaker)
        for number, (phone, context, speaker) in enumerate(drawn)
    ]


def features_of(sequences, metric="angle"):
    sizes = [len(one) for one in sequences]
    ends = np.cumsum(sizes)
    frames = [np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    return Features(np.concatenate(sequences), frames, metric)


# ---- alignment ---------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [None, 3])
def test_alignment_is_that_of_the_loop(levels):
    generator = np.random.default_rng(0)
    sizes = generator.integers(1, 9, (60, 2))
    distances = generator.random((60, 8, 8))
    if levels:  # few levels give many ties
        distances = np.floor(distances * levels)
    expected = [naive_dtw(one[:rows, :columns]) for one, (rows, columns) in zip(distances, sizes, strict=True)]
    found = dtw(torch.from_numpy(distances), *torch.from_numpy(sizes).unbind(1))
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-12)
    turned = dtw(torch.from_numpy(distances).transpose(1, 2), *torch.from_numpy(sizes[:, ::-1].copy()).unbind(1))
    np.testing.assert_array_equal(turned.numpy(), found.numpy())


def test_alignment_by_hand():
    # 0 then 1 then 0 along the diagonal and one step more: (0,0) (1,1) (1,2) costs 0 + 0 + 1 over three steps.
    distances = torch.tensor([[[0.0, 5.0, 5.0], [5.0, 0.0, 1.0]]], dtype=torch.float64)
    assert dtw(distances, torch.tensor([2]), torch.tensor([3])).tolist() == [1 / 3]
    assert dtw(distances, torch.tensor([1]), torch.tensor([2])).tolist() == [5 / 2]
    assert dtw(distances, torch.tensor([2]), torch.tensor([1])).tolist() == [5 / 2]


def test_frames_are_compared_as_the_loop_compares_them():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(5, 7)).astype(np.float32), generator.normal(size=(6, 7)).astype(np.float32)
    y[2], x[1] = 3 * x[0], 0
    y[4] = 0
    expected = [[naive_angle(u.astype(float), v.astype(float)) for v in y] for u in x]
    np.testing.assert_allclose(frame_distances(x, y, "angle"), expected, rtol=0, atol=1e-7)
    codes = [generator.integers(0, 2, (n, 3)).astype(np.uint16) for n in (5, 6)]
    expected = [[naive_share(u, v) for v in codes[1]] for u in codes[0]]
    np.testing.assert_allclose(frame_distances(*codes, "share"), expected, rtol=0, atol=1e-12)


def test_frames_of_an_item():
    # Libri-light at 100 Hz: centres at 0.105, 0.115, 0.125, 0.135 lie in [0.1, 0.14); the last is dropped.
    assert item_frames(0.1, 0.14, 100.0, 50).tolist() == [10, 11, 12]
    assert item_frames(0.0, 9.0, 100.0, 5).tolist() == [0, 1, 2, 3, 4]
    # 12.5 Hz: a frame lasts 0.08 s. The item's middle, 0.13 s, is in frame 1; in steps of 0.02 s it has 5 to 6.
    assert item_frames(0.1, 0.16, 12.5, 50).tolist() == [1]
    assert item_frames(0.1, 0.16, 12.5, 50, repeat=4).tolist() == [1, 1]
    assert item_frames(0.1, 0.26, 12.5, 50, repeat=4).tolist() == [1, 1, 1, 2, 2, 2, 2]
    assert item_frames(3.99, 4.05, 12.5, 50, repeat=4).tolist() == [49]  # over the end


# ---- triples -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["within", "across"])
@pytest.mark.parametrize("metric", ["angle", "share"])
def test_errors_are_those_of_every_triple(mode, metric):
    items = random_items(36, seed=3)
    generator = np.random.default_rng(4)
    if metric == "angle":
        sequences = [generator.normal(size=(size, 6)).astype(np.float32) for size in generator.integers(1, 6, 36)]
    else:
        sequences = [generator.integers(0, 2, (size, 3)).astype(np.uint16) for size in generator.integers(1, 6, 36)]
    naive = naive_angle if metric == "angle" else naive_share
    expected, triples, cells = naive_abx(items, sequences, mode, naive)
    blocks = plan_triples(items, mode, **EVERYTHING)
    assert sum(block.triples for block in blocks) == triples > 100
    assert sum(block.cells for block in blocks) == cells
    assert abx_error(features_of(sequences, metric), blocks) == pytest.approx(expected, abs=1e-6)


def test_batches_of_pairs_change_nothing(monkeypatch):
    items = random_items(40, seed=5)
    generator = np.random.default_rng(6)
    features = features_of([generator.normal(size=(size, 6)) for size in generator.integers(1, 20, 40)])
    blocks = plan_triples(items, "across", **EVERYTHING)
    whole = [found for _, found in block_distances(features, blocks)]
    monkeypatch.setattr("xycodec.eval.abx.distances._PAIRS", 30)
    monkeypatch.setattr("xycodec.eval.abx.distances._CELLS", 900)
    for left, (_, right) in zip(whole, block_distances(features, blocks), strict=True):
        np.testing.assert_allclose(right, left, rtol=0, atol=1e-12)


def test_known_answers():
    generator = np.random.default_rng(0)
    items = random_items(400, seed=7)
    phone = [np.eye(3)["abc".index(item.phone)] for item in items]
    apart = features_of([np.tile(one, (3, 1)) + 0.05 * generator.normal(size=(3, 3)) for one in phone])
    alike = features_of([generator.normal(size=(3, 3)) for _ in items])
    equal = features_of([np.ones((3, 3)) for _ in items])
    for mode in ("within", "across"):
        blocks = plan_triples(items, mode, seed=0, max_group=10, max_x=5)
        assert abx_error(apart, blocks) == 0
        assert abx_error(equal, blocks) == pytest.approx(50)
        assert abx_error(alike, blocks) == pytest.approx(50, abs=2)


def test_a_small_example_by_hand():
    def item(phone, speaker):
        return PhoneItem("f", 0, 1, phone, ("p", "t"), speaker)

    items = [item("a", "m"), item("a", "m"), item("b", "m"), item("a", "n")]
    codes = [np.array([one], np.uint16) for one in ([1, 1], [1, 2], [1, 3], [2, 2])]
    features = features_of(codes, "share")
    # Within m: X = 0, A = 1: 1/2 against d(0, 2) = 1/2, a tie; X = 1, A = 0: 1/2 against 1/2, a tie.
    within = plan_triples(items, "within", **EVERYTHING)
    assert [(block.triples, block.cells) for block in within] == [(2, 1)]
    assert abx_error(features, within) == 50
    # Across, A and B of m, X = 3: d(3, 0) = 1 ties with d(3, 2) = 1; d(3, 1) = 1/2 is nearer.
    across = plan_triples(items, "across", **EVERYTHING)
    assert [(block.triples, block.cells) for block in across] == [(2, 1)]
    assert abx_error(features, across) == 25


def test_what_is_drawn_depends_on_the_seed_alone():
    items = random_items(300, seed=8, contexts="p", speakers="mnopqrs")
    blocks = plan_triples(items, "across", seed=1, max_group=3, max_x=2)
    for block in blocks:
        assert len(block.a) == 3
        assert [len(group) for group in block.x] == [3, 3]
        assert {len(group) for group in block.b.values()} == {3}
        assert {items[index].speaker for index in block.rows}.isdisjoint({block.speaker})
    back = plan_triples(items[::-1], "across", seed=1, max_group=3, max_x=2)
    assert [(299 - block.columns).tolist() for block in back] == [block.columns.tolist() for block in blocks]
    other = plan_triples(items, "across", seed=2, max_group=3, max_x=2)
    assert any(one.columns.tolist() != two.columns.tolist() for one, two in zip(blocks, other, strict=True))


# ---- a codec on recordings ---------------------------------------------------------------------


def test_a_codec_is_measured_as_the_loop_measures_it(codec, corpus):
    heard, told = [], []
    result = run_abx(codec, *corpus, n_q=[3, 1], max_group=100, max_x=100, advance=heard.append, found=told.append)
    items = read_items(corpus[0], Omissions())
    codes = {
        name: encode_long(codec, read_audio(corpus[1] / name[0] / f"{name}.flac")) for name in ("m0", "m1", "n0", "n1")
    }
    for score in result.scores:
        sequences = []
        for item in items:
            frames = item_frames(item.onset, item.offset, 12.5, codes[item.file].shape[1], repeat=4)
            kept = codes[item.file][: score.n_q, frames]
            sequences.append((codec.embed(kept[None])[0] if score.kind == "embeddings" else kept).T.numpy())
        naive = naive_share
        if score.kind == "embeddings":
            naive, sequences = naive_angle, [one.astype(np.float64) for one in sequences]
        expected, triples, cells = naive_abx(items, sequences, score.mode, naive)
        (counts,) = (one for one in result.counts if one.mode == score.mode)
        assert score.error == pytest.approx(expected, abs=1e-6)
        assert (counts.triples, counts.cells) == (triples, cells)
    assert [(one.kind, one.n_q, one.mode) for one in result.scores] == list(
        itertools.product(("embeddings", "codes"), (1, 3), ("within", "across"))
    )
    assert tuple(told) == result.scores
    assert sum(heard) == pytest.approx(12)
    assert (result.model, result.items, result.frame_rate, result.left_out) == ("tiny", 40, 50.0, ())
    assert result.remarks == ()
    json.dumps(result.to_dict())


def test_codes_are_kept_for_a_later_call(codec, corpus, tmp_path):
    cache = tmp_path / "cache"
    first = run_abx(codec, *corpus, cache=cache)
    stamps = {path: path.stat().st_mtime_ns for path in cache.rglob("*.bin")}
    assert len(stamps) == 2
    assert run_abx(str(save_codec(codec, tmp_path / "tiny")), *corpus, cache=cache, device="cpu") == first
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.bin")} == stamps
    other = random_codec(tiny_config(), seed=1)
    assert run_abx(other, *corpus, cache=cache).scores == run_abx(other, *corpus).scores != first.scores


def test_another_recording_of_a_name_is_encoded_anew(codec, corpus, tmp_path_factory):
    items, audio = corpus
    cache, other = tmp_path_factory.mktemp("cache"), tmp_path_factory.mktemp("other")
    for number, name in enumerate(("m0", "m1", "n0", "n1")):
        sf.write(other / f"{name}.flac", np.random.default_rng(50 + number).uniform(-0.5, 0.5, 48_000), 16_000)
        os.utime(other / f"{name}.flac", (0, 0))  # older than anything that is kept
    first = run_abx(codec, items, audio, cache=cache).scores
    assert run_abx(codec, items, other, cache=cache).scores == run_abx(codec, items, other).scores != first


def test_what_cannot_be_used_is_named_and_the_rest_measured(codec, corpus):
    items, audio = corpus
    whole = run_abx(codec, *corpus)
    (audio / "bad.wav").write_text("no audio")
    sf.write(audio / "twice.wav", np.zeros(500), 16_000)
    sf.write(audio / "twice.flac", np.zeros(500), 16_000)
    lines = items.read_text().splitlines()
    lines[2:2] = [
        "m0 0.5 0.5 a p t m", "gone 0 1 a p t m", "gone 1 2 b p t m", "far 1 2 b p t m", "bad 0 1 a p t m",
        "twice 0 0.1 a p t m", "m0 2.9 3.2 a p t m", "m0 3.0 3.05 a p t m", "n0 0.2 0.4 z z z hermit",
    ]  # fmt: skip
    result = run_abx(codec, write(items, lines), audio)
    assert result.scores == whole.scores
    assert [(one.items, one.reason, one.places) for one in result.left_out[:3]] == [
        (1, "it does not end after it begins", (f"{items}:3",)),
        (3, "there is no recording of its name", ("gone", "far")),
        (1, "several recordings have its name", ("twice",)),
    ]
    encoded, beyond = result.left_out[3:]
    assert (encoded.items, encoded.reason) == (1, "its recording cannot be encoded")
    assert "bad.wav" in encoded.places[0]
    assert (beyond.items, beyond.places) == (2, ("m0 (3.00 s)",))
    assert result.counts[0].lonely == result.counts[1].lonely == ("hermit",)
    assert result.remarks[1] == "items left out (3): there is no recording of its name: gone, far"
    assert "within: speakers without a partner, who do not count: hermit" in result.remarks


def test_a_mode_without_a_triple_has_no_error(codec, corpus):
    items, audio = corpus
    alone = [line for line in items.read_text().splitlines() if not line.endswith(" n")]
    result = run_abx(codec, write(items, alone), audio, kinds=["codes"], n_q=[1])
    assert [(score.mode, score.error is None) for score in result.scores] == [("within", False), ("across", True)]
    assert any(line.startswith("across: no triple: it takes two speakers") for line in result.remarks)
    with pytest.raises(XycodecError, match="no triple: it takes two phones") as caught:
        run_abx(codec, items, audio, modes=["across"])
    assert "\n" not in str(caught.value)
    write(items, [*alone[:2], "gone 0 1 a p t m"])
    with pytest.raises(XycodecError, match=r"1 items are left out, first: there is no recording of its name: gone"):
        run_abx(codec, items, audio)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("#head\nf 0 1 a p t\n", "phones.item:2: 6 columns, not 7: give #file onset"),
        ("f 0 1 a p t m more\n", "phones.item:1: 8 columns"),
        ("#head\n\nf 0 one a p t m\n", "phones.item:3: 'one' is not a time"),
        ("f nan 1 a p t m\n", "phones.item:1: 'nan' is not a time"),
        ("f -1 1 a p t m\n", "phones.item:1: '-1' is not a time"),
        (COLUMNS + "\n", "phones.item: it holds no item"),
        ("f 1 1 a p t m\n", "phones.item: it holds no item"),
        (b"\xff\xfe", "phones.item: it is not text"),
    ],
)
def test_files_that_are_no_item_file(tmp_path, content, message):
    path = tmp_path / "phones.item"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        read_items(path, Omissions())


def test_settings_and_places_that_will_not_do(codec, corpus, tmp_path):
    items, audio = corpus
    for settings, message in (
        ({"kinds": ["mels"]}, "mels cannot be compared: choose of embeddings, codes"),
        ({"modes": []}, "nothing cannot be compared: choose of within, across"),
        ({"n_q": [4]}, "n_q must be an integer from 1 to 3"),
        ({"max_group": 1}, "max_group must be at least 2"),
        ({"max_x": 0}, "max_x must be at least 1"),
        ({"least_rate": 0}, "least_rate must be over 0"),
        ({"cache": items}, "cannot be written"),
    ):
        with pytest.raises(XycodecError, match=message):
            run_abx(codec, items, audio, **settings)
    with pytest.raises(ConfigError, match="cannot be read"):
        run_abx(codec, tmp_path / "missing.item", audio)
    with pytest.raises(XycodecError, match="not a folder"):
        run_abx(codec, items, tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(XycodecError, match="no recording of the item file is in it, such as 'm0'"):
        find_audio(tmp_path / "empty", read_items(items, Omissions()), Omissions())
