import json
import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from corpus import config, corpus, cut_of, emilia, encoded, noise, save, write_tar
from lhotse import CutSet
from lhotse.shar import SharWriter

from xycodec.data.catalogue import open_catalogue
from xycodec.data.clip import load_clip
from xycodec.data.config import SourceConfig
from xycodec.data.corpus import open_corpus
from xycodec.data.pack import pack
from xycodec.data.sources import open_source
from xycodec.errors import ConfigError


def opened(path, **how):
    return open_catalogue(SourceConfig(path=str(path)), **how)


def every_kind(folder):
    """A source of each kind with the same nine clips, and how many files it has."""
    cuts = corpus(folder / "wav", 9)
    cuts.to_file(folder / "cuts.jsonl")
    cuts.to_file(folder / "cuts.jsonl.gz")
    (folder / "shar").mkdir()
    with SharWriter(str(folder / "shar"), fields={"recording": "flac"}, shard_size=4) as writer:
        for cut in cuts:
            writer.write(cut)
    for shard in range(3):
        chosen = list(cuts)[3 * shard : 3 * shard + 3]
        members = []
        for cut in chosen:
            key = cut.id.removesuffix(".wav")
            members.append((f"{key}.json", emilia(key, cut.duration, text=cut.supervisions[0].text)))
            members.append((f"{key}.wav", Path(cut.recording.sources[0].source).read_bytes()))
        write_tar(folder / f"tars/{shard}.tar", members)
    pack(cuts, folder / "pack")
    return (
        folder / "cuts.jsonl",
        folder / "cuts.jsonl.gz",
        folder / "shar",
        folder / "tars/*.tar",
        folder / "pack/cuts.jsonl.gz",
    )


def test_every_kind_of_source_by_number(tmp_path):
    """A clip by its number is the clip in its order, audio included."""
    heard = []
    for path in every_kind(tmp_path):
        catalogue, cuts = opened(path), list(open_source(SourceConfig(path=str(path))))
        assert len(catalogue) == len(cuts) == 9
        for number in (8, 0, 4):
            assert catalogue[number].to_dict() == cuts[number].to_dict()
        np.testing.assert_allclose(catalogue.facts["seconds"], [cut.duration for cut in cuts])
        assert set(catalogue.facts["rate"]) == {16000}
        assert catalogue.facts["text"].all()
        assert not catalogue.facts["labels"].any()
        clip = load_clip(catalogue[5], config(), output_sample_rate=16000, seed=0, epoch=0)
        heard.append((clip.text, clip.audio))
    assert {text for text, _ in heard} == {"text 5"}
    for _, audio in heard[1:]:
        np.testing.assert_allclose(audio, heard[0][1], atol=1e-4)


@pytest.mark.long
def test_large_tars_are_listed_by_several_processes(tmp_path, monkeypatch):
    _, _, *sharded, _ = every_kind(tmp_path)
    for path in sharded:
        alone = opened(path)
        monkeypatch.setenv("XYCODEC_CACHE", str(tmp_path / f"cache-{len(str(path))}"))
        monkeypatch.setattr("xycodec.data.catalogue._LARGE", 0)
        joined = opened(path)
        assert joined.folder != alone.folder
        assert joined.facts.tolist() == alone.facts.tolist()
        assert [joined[number].to_dict() for number in range(9)] == [alone[number].to_dict() for number in range(9)]
        monkeypatch.undo()


@pytest.mark.long
def test_a_tar_among_many_that_is_damaged_is_named(tmp_path, monkeypatch):
    _, _, _, tars, _ = every_kind(tmp_path)
    monkeypatch.setattr("xycodec.data.catalogue._LARGE", 0)
    second = tars.parent / "1.tar"
    second.write_bytes(second.read_bytes()[:40_000])
    with pytest.raises(ConfigError, match=r"1\.tar: not a plain tar"):
        opened(tars)


def test_facts_are_of_the_cut(tmp_path):
    cuts = [
        cut_of(save(tmp_path / "a.wav", noise(1, 24000), 24000), "words"),
        cut_of(save(tmp_path / "b.wav", noise(2)), "  "),
        cut_of(save(tmp_path / "c.wav", noise(1)), None),
    ]
    cuts[2].recording = None
    CutSet([*cuts, cuts[0].append(cuts[0]).with_id("both")]).to_file(tmp_path / "cuts.jsonl")
    facts = opened(tmp_path / "cuts.jsonl").facts
    assert facts[["seconds", "rate", "text"]].tolist() == [
        (1.0, 24000, True), (2.0, 16000, False), (1.0, 0, False), (2.0, 24000, True),
    ]  # fmt: skip


def test_a_catalogue_is_made_once_and_again_when_a_file_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("XYCODEC_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "cuts.jsonl"
    corpus(tmp_path / "wav", 4).to_file(path)

    def made():
        return {entry.name: entry.stat().st_mtime_ns for entry in (tmp_path / "cache/catalogues").iterdir()}

    first = opened(path)
    before = made()
    assert len(opened(path)) == 4
    assert made() == before
    CutSet(list(corpus(tmp_path / "wav", 6))).to_file(path)
    assert len(opened(path)) == 6
    # One that is in use goes on with what it was made of, and no old one is left.
    assert [first[number].id for number in range(4)] == [f"00{number}.wav" for number in range(4)]
    assert sum(not name.endswith(".lock") for name in made()) == 1


def test_it_goes_to_other_processes_by_name(tmp_path):
    corpus(tmp_path, 50).to_file(tmp_path / "cuts.jsonl")
    packed = pickle.dumps(opened(tmp_path / "cuts.jsonl"))
    assert len(packed) < 500
    assert pickle.loads(packed)[49].id == "049.wav"


def _open(path, results):
    results.put(len(opened(path)))


def test_processes_that_come_at_once_make_one(tmp_path, monkeypatch):
    monkeypatch.setenv("XYCODEC_CACHE", str(tmp_path / "cache"))
    corpus(tmp_path, 30, lambda i: 0.6).to_file(tmp_path / "cuts.jsonl")
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_open, args=(tmp_path / "cuts.jsonl", results)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [30] * 4
    for process in processes:
        process.join()
    (folder,) = (entry for entry in (tmp_path / "cache/catalogues").iterdir() if entry.is_dir())
    assert {entry.name for entry in folder.iterdir()} == {"cuts.bin", "dictionary.bin", "facts.bin", "source.txt"}


def test_long_passes_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr("xycodec.data.catalogue._TOLD", 2)
    corpus(tmp_path, 5).to_file(tmp_path / "cuts.jsonl")
    told = []
    opened(tmp_path / "cuts.jsonl", tell=told.append)
    opened(tmp_path / "cuts.jsonl", tell=told.append)
    assert told == [f"data: {tmp_path}/cuts.jsonl: {n} clips listed, once for all runs" for n in (2, 4)]


def test_what_is_wrong_anywhere_in_a_source_is_said_at_once(tmp_path):
    path = tmp_path / "cuts.jsonl"
    corpus(tmp_path, 5).to_file(path)
    path.write_text(path.read_text() + "no JSON\n")
    with pytest.raises(ConfigError, match=r"cuts\.jsonl:6: not a line of JSON"):
        opened(path)
    for name in ("none.jsonl", "none.jsonl.gz"):
        with pytest.raises(ConfigError, match=f"{name} cannot be read .No such file or directory"):
            opened(tmp_path / name)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ConfigError, match=r"empty\.jsonl: holds no clips"):
        opened(tmp_path / "empty.jsonl")


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    corpus(tmp_path, 2).to_file(tmp_path / "cuts.jsonl")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XYCODEC_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"cannot be written .* or set XYCODEC_CACHE") as error:
        opened(tmp_path / "cuts.jsonl")
    assert "\n" not in str(error.value)


def test_tars_named_from_another_folder(tmp_path, monkeypatch):
    data = encoded(noise(1), 16000, ".wav")
    write_tar(tmp_path / "a.tar", [("k.wav", data), ("k.json", emilia("k", 1.0))])
    monkeypatch.chdir(tmp_path)
    catalogue = opened("a.tar")
    monkeypatch.chdir(os.path.dirname(tmp_path))
    assert len(load_clip(catalogue[0], config(), output_sample_rate=16000, seed=0, epoch=0).audio) == 16000


def test_several_sources_have_one_row_of_numbers(tmp_path):
    for number, count in enumerate((3, 1, 4)):
        corpus(tmp_path / f"c{number}", count).to_file(tmp_path / f"c{number}.jsonl")
    joined = open_corpus([SourceConfig(path=str(tmp_path / f"c{number}.jsonl")) for number in range(3)])
    found = [Path(joined[number].recording.sources[0].source).relative_to(tmp_path) for number in range(len(joined))]
    expected = [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1), (2, 2), (2, 3)]
    assert list(map(str, found)) == [f"c{source}/00{clip}.wav" for source, clip in expected]
    assert len(joined.facts) == 8


def test_lines_are_kept_as_they_are(tmp_path):
    """Custom fields and what lies outside of ASCII."""
    cut = cut_of(save(tmp_path / "ä.wav", noise(1)), "größer 語")
    cut.custom = {"snr": 3.5}
    (tmp_path / "cuts.jsonl").write_text(json.dumps(cut.to_dict(), ensure_ascii=False) + "\n", encoding="utf-8")
    assert opened(tmp_path / "cuts.jsonl")[0].to_dict() == cut.to_dict()
