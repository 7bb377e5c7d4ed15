import csv
import gzip
import json

import numpy as np
import pytest
import soundfile as sf

from xycodec.data.manifest import import_manifest
from xycodec.errors import AudioError, ConfigError
from xycodec.eval.corpus import open_corpora


def speech(path, seconds=0.5, rate=16_000, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * rate)).astype(np.float32)
    sf.write(path, samples, rate)
    return samples


def manifest(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def told(items):
    return [(item.clip, item.source, item.speaker, item.text) for item in items]


@pytest.fixture
def corpus(tmp_path):
    for number in range(3):
        speech(tmp_path / f"part/{number}.flac", 0.5 + number / 10, seed=number)
    speech(tmp_path / "top.wav", seed=9)
    return manifest(
        tmp_path / "all.jsonl",
        *(
            {"audio": f"part/{n}.flac", "duration": 0.5 + n / 10, "speaker": f"s{n % 2}", "text": f"t {n}"}
            for n in range(3)
        ),
        {"audio": "top.wav", "duration": 0.5},
    )


# ---- manifests and folders -------------------------------------------------------------------------


def test_rows_and_the_cuts_made_of_them_are_the_same_clips(corpus, tmp_path):
    import_manifest(tmp_path / "all.jsonl", tmp_path / "cuts.jsonl.gz")
    rows, cuts = open_corpora([corpus]), open_corpora([str(tmp_path / "cuts.jsonl.gz")])
    assert told(rows)[:2] == [("part/0", "part", "s0", "t 0"), ("part/1", "part", "s1", "t 1")]
    assert told(rows)[3] == ("top", "all", None, None)
    assert told(cuts)[:3] == told(rows)[:3]
    assert [item.seconds for item in rows] == [item.seconds for item in cuts] == [0.5, 0.6, 0.7, 0.5]
    for one, other in zip(rows, cuts, strict=True):
        assert np.array_equal(one.load(), other.load())
    assert np.array_equal(rows[1].load(), sf.read(tmp_path / "part/1.flac", dtype="float32")[0])


def test_a_folder_of_audio_and_one_file(corpus, tmp_path):
    (tmp_path / "notes.txt").write_text("no audio")
    assert told(open_corpora([str(tmp_path)])) == [
        *((f"part/{n}", "part", None, None) for n in range(3)),
        ("top", tmp_path.name, None, None),
    ]
    assert told(open_corpora([str(tmp_path / "top.wav")])) == [("top", "top", None, None)]


def test_another_rate_and_two_channels(tmp_path):
    left = speech(tmp_path / "left.wav", 1, 24_000)
    sf.write(tmp_path / "both.wav", np.stack([left, -left], 1), 24_000)
    left, both = (open_corpora([str(tmp_path / name)])[0].load() for name in ("left.wav", "both.wav"))
    assert left.shape == both.shape == (16_000,)
    assert left.dtype == np.float32
    assert np.abs(left).max() > 0.3
    assert np.abs(both).max() < 1e-3


def test_names_stay_inside_the_folder(tmp_path):
    speech(tmp_path / "a/x.wav")
    rows = [{"audio": f"a/../a/./{'x'}.wav", "duration": 0.5}]
    (tmp_path / "b").mkdir()
    items = open_corpora([manifest(tmp_path / "b" / "m.jsonl", {"audio": "../a/x.wav", "duration": 0.5})])
    items += open_corpora([manifest(tmp_path / "m.jsonl", *rows)])
    assert [item.clip for item in items] == ["a/x", "a/a/x"]


# ---- what is drawn ---------------------------------------------------------------------------------


def test_a_sample_depends_on_the_seed_and_on_nothing_else(tmp_path):
    for number in range(30):
        speech(tmp_path / f"{number:02}.wav", 0.05, seed=number)
    rows = [{"audio": f"{number:02}.wav", "duration": 0.05} for number in range(30)]
    forward, backward = manifest(tmp_path / "a.jsonl", *rows), manifest(tmp_path / "b.jsonl", *rows[::-1])

    def drawn(spec, seed, limit=7):
        return [item.clip for item in open_corpora([spec], limit=limit, seed=seed)]

    assert len(drawn(forward, 1)) == 7
    assert drawn(forward, 1) == drawn(forward, 1) == drawn(backward, 1)[::-1]
    assert drawn(forward, 1) != drawn(forward, 2)
    assert drawn(forward, 1, 30) == drawn(forward, 1, 99) == [f"{number:02}" for number in range(30)]


# ---- public corpora, as they are unpacked ----------------------------------------------------------


def test_librispeech(tmp_path):
    for speaker, chapter, number in ((61, 70968, 0), (61, 70968, 1), (121, 1, 0)):
        name = f"{speaker}-{chapter}-{number:04}"
        speech(tmp_path / f"LibriSpeech/test-clean/{speaker}/{chapter}/{name}.flac", seed=number)
        with open(tmp_path / f"LibriSpeech/test-clean/{speaker}/{chapter}/{speaker}-{chapter}.trans.txt", "a") as file:
            file.write(f"{name} HELLO {number}\n")
    items = open_corpora([f"librispeech:test-clean:{tmp_path / 'LibriSpeech'}"])
    source = "librispeech test-clean"
    assert sorted(told(items)) == [
        ("121-1-0000", source, "121", "HELLO 0"),
        ("61-70968-0000", source, "61", "HELLO 0"),
        ("61-70968-0001", source, "61", "HELLO 1"),
    ]
    assert all(item.load().shape == (8000,) for item in items)


def test_libritts(tmp_path):
    folder = tmp_path / "LibriTTS"
    name = folder / "test-clean/61/70968/61_70968_000000_000000"
    speech(name.with_suffix(".wav"), rate=24_000)
    (name.parent / "61_70968.trans.tsv").write_text(f"{name.name}\tHello, there.\tHello there.\n")
    (name.parent / "61_70968.book.tsv").write_text(f"{name.name} Hello, there. 30.5\n")
    (folder / "SPEAKERS.txt").write_text("61 | M | test-clean | 1 | Somebody\n")
    (item,) = open_corpora([f"libritts:test-clean:{folder}"])
    assert (item.speaker, item.text, item.source) == ("61", "Hello there.", "libritts test-clean")
    assert item.load().shape == (8000,)


def test_common_voice(tmp_path):
    folder = tmp_path / "cv/en"
    speech(folder / "clips/one.mp3", 1.0, 32_000)
    row = {"client_id": "me", "path": "one.mp3", "sentence": "Hello.", "up_votes": 2, "down_votes": 0, "age": "",
           "gender": "", "accents": "", "locale": "en", "segment": "", "accent": "", "variant": "",
           "sentence_id": "1", "sentence_domain": ""}  # fmt: skip
    with open(folder / "test.tsv", "w", newline="") as file:
        writer = csv.DictWriter(file, row, delimiter="\t")
        writer.writeheader()
        writer.writerow(row)
    (item,) = open_corpora([f"commonvoice:en/test:{tmp_path / 'cv'}"])
    assert (item.speaker, item.text) == ("me", "Hello.")
    assert abs(len(item.load()) - 16_000) < 2_000


def test_voxpopuli(tmp_path):
    path = tmp_path / "vp/raw_audios/en/2020/20200101-0900-PLENARY_en.wav"
    whole = speech(path, 3.0)
    sf.write(path.with_suffix(".ogg"), whole, 16_000, format="OGG")
    path.unlink()
    head = "session_id|id_|original_text|normed_text|start_time|end_time|speaker_id|gender|split"
    # The recipe wants all three parts.
    rows = [
        f"20200101-0900-PLENARY|{part}|Yes.|yes {part}|{start}|{start + 1}|{part} speaker|f|{part}"
        for start, part in ((0.5, "test"), (1.5, "dev"), (1.75, "train"))
    ]
    with gzip.open(tmp_path / "vp/asr_en.tsv.gz", "wt") as file:
        file.write("\n".join([head, *rows]) + "\n")
    (item,) = open_corpora([f"voxpopuli:en/test:{tmp_path / 'vp'}"])
    assert (item.clip, item.speaker, item.text, item.seconds) == (
        "20200101-0900-PLENARY-1",
        "test speaker",
        "yes test",
        1.0,
    )
    assert np.corrcoef(item.load(), whole[8_000:24_000])[0, 1] > 0.9


# ---- what goes wrong -------------------------------------------------------------------------------


def test_a_clip_that_cannot_be_read_is_an_item_that_says_so(corpus, tmp_path):
    (tmp_path / "part/1.flac").unlink()
    (tmp_path / "top.wav").write_bytes(b"RIFF")
    items = open_corpora([corpus])
    assert [item.clip for item in items] == ["part/0", "part/1", "part/2", "top"]
    assert (items[1].source, items[1].seconds, items[1].text) == ("part", 0.6, "t 1")
    for index in (1, 3):
        with pytest.raises(AudioError):
            items[index].load()
    assert len(items[0].load()) == 8000


def test_one_line_each(corpus, tmp_path):
    with pytest.raises(ConfigError, match=r"part/0: two clips have this name"):
        open_corpora([corpus, corpus])
    with pytest.raises(ConfigError, match=r"nowhere: there is no such file or folder: .*librispeech:PART:FOLDER"):
        open_corpora(["nowhere"])
    with pytest.raises(ConfigError, match=r"empty.jsonl: holds no clips"):
        open_corpora([manifest(tmp_path / "empty.jsonl")])
    with pytest.raises(ConfigError, match=r"nowhere: there is no such folder: .*librispeech was unpacked"):
        open_corpora(["librispeech:test-clean:nowhere"])
    (tmp_path / "other").mkdir()
    for spec in (f"librispeech:test-clean:{tmp_path / 'other'}", f"commonvoice:en:{tmp_path / 'other'}"):
        with pytest.raises(ConfigError, match=r"other: no '.*' of .* found there") as raised:
            open_corpora([spec])
        assert "\n" not in str(raised.value)
