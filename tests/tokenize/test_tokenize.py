"""`xycodec tokenize`: the codes of each clip alone, from any input, whatever interrupts."""

import io
import json
import os
import shutil
import signal
import tarfile
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import SimpleNamespace

import datasets
import fsspec
import numpy as np
import pyarrow.parquet
import pytest
import soundfile as sf
import torch
from lhotse.audio import AudioSource
from tests.data.corpus import encoded, noise, save
from tests.tokenize.corpora import (
    alone,
    assert_codes_of,
    broken_folder,
    codes_of,
    cuts_of,
    save_model,
    tree,
    write_audio_files,
    write_rows,
    write_shar,
    write_webdataset,
)
from tests.training_runs import Running
from tests.training_runs import xycodec as run

from xycodec.checkpoints.load import load_codec
from xycodec.errors import StoreError, XycodecError
from xycodec.io.tokens import write
from xycodec.io.tokens.read import TokenStore
from xycodec.tokenize import corpus, local, shard
from xycodec.tokenize.corpus import tokenize_corpus
from xycodec.tokenize.inputs.listing import list_items
from xycodec.tokenize.inputs.manifests import cut_item
from xycodec.tokenize.local import LocalEngine
from xycodec.tokenize.shard import Encoding


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def codec(model):
    return load_codec(model, device="cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_audio_files(tmp_path_factory.mktemp("corpus") / "audio")


@pytest.fixture(scope="module")
def folder(files):
    return files[0].parents[1]


@pytest.fixture
def tokenize(xycodec, model, tmp_path):
    """Tokenize inputs into `tmp_path/store`: (exit code, stdout, stderr)."""

    def command(*inputs, store="store"):
        options = ("--model", model, "--device", "cpu", "--threads", 1)
        return xycodec("tokenize", *inputs, "-o", tmp_path / store, *options)

    return command


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model, folder):
    """The store that nothing happened to, in shards of two clips."""
    encoding, store = tiny_encoding(model), tmp_path_factory.mktemp("whole") / "store"
    engine = LocalEngine(lambda: encoding, {})
    assert tokenize_corpus([str(folder)], store, encoding.describe(), engine, shard_clips=2).failed == 0
    return store


def tiny_encoding(model):
    return Encoding(load_codec(model, device="cpu"))


def arguments(folder, store, model, *more):
    options = ("--model", model, "--device", "cpu", "--threads", 1, "--shard-clips", 2)
    return ("tokenize", folder, "-o", store, *options, *more)


def relative(files):
    folder = files[0].parents[1]
    return {path.relative_to(folder).as_posix(): path for path in sorted(files)}


def test_a_folder_becomes_the_codes_of_each_file_alone(whole, codec, files, folder):
    """Windows of 1 s, clips of up to 2.2 s: short ones share calls, long ones are streamed."""
    assert_codes_of(whole, codec, relative(files))
    store = TokenStore(whole)
    assert store.meta(3)["audio"] == str(folder / store[3].id)
    assert sorted(path.name for path in whole.iterdir()) == [
        "failures.jsonl", "ids.bin", "job.json", "shards", "shards.jsonl", "store.json",
    ]  # fmt: skip
    about = store.description
    assert (about.n_q, about.codebook_size, about.window.keeps, about.precision) == (2, 16, "middle", "float32")
    assert about.config["quantizer"]["codebook_dim"] == 8
    assert len(store.shards) == 5


def test_a_finished_store_is_left_alone(tokenize, folder, tmp_path):
    code, out, _ = tokenize(folder)
    assert (code, "10 clips (10 new), 0.00 h, 0 failed" in out) == (0, True)
    before = tree(tmp_path / "store")
    code, out, _ = tokenize(folder)
    assert (code, "10 clips (0 new)" in out, tree(tmp_path / "store") == before) == (0, True, True)
    code, _, err = tokenize(folder / "a")
    assert (code, "was begun with other inputs" in err) == (1, True)


# ---- inputs ----------------------------------------------------------------------------------------


def manifest(tmp_path, files):
    return write_rows(files[0].parents[1], files)


def cuts(tmp_path, files):
    cuts_of(files).to_file(tmp_path / "cuts.jsonl.gz")
    return tmp_path / "cuts.jsonl.gz"


def shar(tmp_path, files):
    return write_shar(tmp_path / "shar", files)


@pytest.mark.parametrize("form", [manifest, cuts, shar])
def test_manifests(tokenize, codec, files, tmp_path, form):
    code, _, err = tokenize(form(tmp_path, files))
    assert code == 0, err
    assert_codes_of(tmp_path / "store", codec, {f"clip-{i}": path for i, path in enumerate(files)})
    meta = TokenStore(tmp_path / "store").meta(4)
    assert (meta["text"], meta["dnsmos"]) == ("words 4", 3.5)
    assert form is manifest or meta["speaker"] == "one"


def test_tars_and_globs_of_them(tokenize, codec, files, tmp_path):
    write_webdataset(tmp_path / "x-0.tar", files[:6])
    write_webdataset(tmp_path / "x-1.tar", files[6:])
    code, _, err = tokenize(tmp_path / "x-*.tar")
    assert code == 0, err
    names = [f"x-0/clip-{i}" for i in range(6)] + [f"x-1/clip-{i}" for i in range(4)]
    assert_codes_of(tmp_path / "store", codec, dict(zip(names, files, strict=True)))
    assert TokenStore(tmp_path / "store").meta(7)["text"] == "words 1"


def test_parquet(tokenize, codec, files, tmp_path):
    write = pyarrow.parquet.write_table
    audio = [{"bytes": path.read_bytes(), "path": path.name} for path in files]
    rows = {"audio": audio, "id": [f"clip-{i}" for i in range(10)], "text": ["words"] * 10}
    write(pyarrow.table(rows), tmp_path / "x.parquet", row_group_size=3)
    code, _, err = tokenize(tmp_path / "x.parquet")
    assert code == 0, err
    assert_codes_of(tmp_path / "store", codec, {f"clip-{i}": path for i, path in enumerate(files)})
    assert TokenStore(tmp_path / "store").meta(9)["text"] == "words"
    write(pyarrow.table({"sound": [path.read_bytes() for path in files]}), tmp_path / "y.parquet")
    assert tokenize(tmp_path / "y.parquet", store="other")[0] == 0
    assert_codes_of(tmp_path / "other", codec, {f"y/{i:08}": path for i, path in enumerate(files)})
    write(pyarrow.table({"text": ["a"]}), tmp_path / "z.parquet")
    code, _, err = tokenize(tmp_path / "z.parquet", store="none")
    assert (code, "no column holds audio as bytes (it has text)" in err) == (1, True)


def test_a_saved_dataset(tokenize, codec, files, tmp_path):
    text, data = datasets.Value("string"), datasets.Value("binary")
    audio = [{"bytes": path.read_bytes(), "path": path.name} for path in files]
    rows = {"audio": audio, "text": [f"words {i}" for i in range(10)]}
    raw = datasets.Features({"audio": {"bytes": data, "path": text}, "text": text})
    saved = datasets.Dataset.from_dict(rows, raw).cast_column("audio", datasets.Audio())
    saved.save_to_disk(tmp_path / "saved")
    code, _, err = tokenize(tmp_path / "saved")
    assert code == 0, err
    assert_codes_of(tmp_path / "store", codec, {f"saved/{i:08}": path for i, path in enumerate(files)})
    assert TokenStore(tmp_path / "store").meta(2)["text"] == "words 2"


@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_addresses(tokenize, codec, files, tmp_path, protocol):
    root = f"{protocol}://{tmp_path}/bucket"
    for path in files:
        with fsspec.open(f"{root}/{path.parent.name}/{path.name}", "wb", auto_mkdir=True) as file:
            file.write(path.read_bytes())
    with fsspec.open(f"{root}/x.tar", "wb") as file:
        file.write(write_webdataset(tmp_path / "x.tar", files[:3]).read_bytes())
    with fsspec.open(f"{root}/rows.jsonl", "wt") as file:
        file.write(json.dumps({"audio": f"b/{files[1].name}", "id": "mine"}))
    code, _, err = tokenize(root)
    assert code == 0, err
    assert_codes_of(tmp_path / "store", codec, relative(files))
    assert tokenize(f"{root}/*/*.wav", f"{root}/x.tar", f"{root}/rows.jsonl", store="other")[0] == 0
    wavs = {name: path for name, path in relative(files).items() if path.suffix == ".wav"}
    named = wavs | {f"x/clip-{i}": path for i, path in enumerate(files[:3])}
    assert_codes_of(tmp_path / "other", codec, named | {"mine": files[1]})
    code, _, err = tokenize(f"{root}/none.wav", store="none")
    assert (code, "no such file" in err) == (1, True)


def test_other_rates_and_channels(tokenize, codec, tmp_path):
    stereo = np.stack([noise(1.5, 44_100, seed=1), noise(1.5, 44_100, seed=2)], axis=1)
    (tmp_path / "audio").mkdir()
    sf.write(tmp_path / "audio" / "s.wav", stereo, 44_100)
    save(tmp_path / "audio" / "t.mp3", noise(1.2, 24_000), 24_000)
    assert tokenize(tmp_path / "audio")[0] == 0
    paths = {name: tmp_path / "audio" / name for name in ("s.wav", "t.mp3")}
    assert_codes_of(tmp_path / "store", codec, paths)


# ---- any number of processes, any kill -------------------------------------------------------------


@pytest.fixture
def pool(monkeypatch):
    """Threads in place of processes; the first `deaths` shards that are begun take theirs with them."""
    dying = []

    @contextmanager
    def workers(processes, make, settings):
        made = make(**settings)

        def submit(in_worker, work, *arguments):
            def run():
                if dying:
                    dying.pop()
                    raise BrokenProcessPool
                return work(made, *arguments)

            return threads.submit(run)

        with ThreadPoolExecutor(processes) as threads:
            yield SimpleNamespace(submit=submit)

    monkeypatch.setattr(local, "workers", workers)
    return dying


@pytest.mark.parametrize("deaths", [0, 2])
def test_shards_side_by_side_make_the_same_bytes(whole, model, folder, tmp_path, pool, deaths):
    pool += range(deaths)
    heard = []
    engine = LocalEngine(tiny_encoding, {"model": model}, 3, lambda clips, seconds: heard.append(clips))
    about = tiny_encoding(model).describe()
    report = tokenize_corpus([str(folder)], tmp_path / "store", about, engine, shard_clips=2)
    assert (report.clips, report.made, sum(heard), pool) == (10, 10, 10, [])
    assert tree(tmp_path / "store") == tree(whole)


def test_workers_that_die_without_getting_on_end_the_call(model, folder, tmp_path, pool):
    pool += range(1000)
    engine = LocalEngine(tiny_encoding, {"model": model}, 2)
    with pytest.raises(StoreError, match="worker processes die without getting on"):
        tokenize_corpus([str(folder)], tmp_path / "store", tiny_encoding(model).describe(), engine, shard_clips=2)


@pytest.mark.parametrize("writes", [0, 1, 2, 3, 4, 11, 20, 29])
def test_a_stop_between_any_two_writes_loses_and_repeats_nothing(whole, model, folder, tmp_path, monkeypatch, writes):
    """A clip is three writes: its codes, its line, its row."""
    encoding, left, append = tiny_encoding(model), [None] * writes, write._append

    def stopping(file, data):
        if not left:
            file.write(data[: len(data) // 2])
            raise KeyboardInterrupt
        left.pop()
        append(file, data)

    def call():
        engine = LocalEngine(lambda: encoding, {})
        return tokenize_corpus([str(folder)], tmp_path / "store", encoding.describe(), engine, shard_clips=2)

    monkeypatch.setattr(write, "_append", stopping)
    with pytest.raises(KeyboardInterrupt):
        call()
    monkeypatch.setattr(write, "_append", append)
    assert call().made == 10 - writes // 3
    assert tree(tmp_path / "store") == tree(whole)


@pytest.mark.long
def test_processes_make_the_same_bytes(whole, model, folder, tmp_path):
    assert run(tmp_path, *arguments(folder, tmp_path / "store", model, "--jobs", 3)).code == 0
    assert tree(tmp_path / "store") == tree(whole)


def begun(store):
    """Clips that are in a store that is being written."""
    index = [*store.glob("work/shard-*/index.bin"), *store.glob("shards/*/index.bin")]
    return sum(path.stat().st_size // 40 for path in index if path.exists())


def workers_of(pid):
    """Processes that a process has started, but for Python's tracker of resources."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        found = [int(child) for child in file.read().split()]
    return [child for child in found if b"spawn_main" in _command_line(child)]


def _command_line(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""


def kill_at(place, count, command, jobs, victim):
    """Start a command, and kill it or a worker of its once so many clips are there."""
    running = Running(place, *command, "--jobs", jobs)
    running.wait_for(lambda: begun(place / "store") >= count)
    if victim == "driver":
        running.kill()
        return None
    for pid in workers_of(running.process.pid)[:1]:
        os.kill(pid, signal.SIGKILL)
    return running.ended()


@pytest.mark.parametrize(("victim", "jobs"), [("driver", 1), pytest.param("worker", 2, marks=pytest.mark.long)])
def test_a_killed_call_goes_on_and_makes_the_same_bytes(whole, model, folder, tmp_path, victim, jobs):
    command = arguments(folder, tmp_path / "store", model)
    ended = kill_at(tmp_path, 3, command, jobs, victim)
    assert ended is None or ended.code == 0, ended
    assert run(tmp_path, *command).code == 0
    assert tree(tmp_path / "store") == tree(whole)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("victim", ["driver", "worker"])
def test_kills_at_ten_moments(whole, model, folder, xycodec, tmp_path, victim):
    command = arguments(folder, tmp_path / "store", model)
    for moment in np.random.default_rng(7).integers(0, 10, size=10).tolist():
        shutil.rmtree(tmp_path / "store", ignore_errors=True)
        ended = kill_at(tmp_path, moment, command, 2, victim)
        assert ended is None or ended.code == 0, ended
        wait_for_orphans(tmp_path / "store")
        assert xycodec(*command)[0] == 0
        assert tree(tmp_path / "store") == tree(whole)


def wait_for_orphans(store):
    """Until no worker of a killed driver holds a shard: they end with it, in a moment."""
    for path in (store / "work").glob("*.lock"):
        with write.locked(path):
            pass


def test_a_kill_while_the_store_is_finished_leaves_nothing_behind(whole, tokenize, folder, model, xycodec, tmp_path):
    for left in ("shards.jsonl", None):
        shutil.rmtree(tmp_path / "store", ignore_errors=True)
        shutil.copytree(whole, tmp_path / "store")
        (tmp_path / "store" / "work").mkdir()
        shutil.copy(whole / "job.json", tmp_path / "store" / "work" / "job.json")
        (tmp_path / "store" / ".0123456789abcdef.tmp.jsonl").write_text("half")
        if left:
            (tmp_path / "store" / left).unlink()
        assert xycodec(*arguments(folder, tmp_path / "store", model))[0] == 0
        assert tree(tmp_path / "store") == tree(whole)


def test_a_damaged_plan_is_told(folder, model, xycodec, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "store")
    (tmp_path / "store" / "shards.jsonl").unlink()
    (tmp_path / "store" / "work").mkdir()
    (tmp_path / "store" / "work" / "job.json").write_text('{"inputs"')
    code, _, err = xycodec(*arguments(folder, tmp_path / "store", model))
    assert (code, "job.json: is damaged" in err, err.count("\n")) == (1, True, 1)
    shutil.copy(whole / "job.json", tmp_path / "store" / "work" / "job.json")
    (tmp_path / "store" / "shards" / "000001" / "shard.json").write_text("x")
    code, _, err = xycodec(*arguments(folder, tmp_path / "store", model))
    assert (code, "000001/shard.json:1: not a row of JSON" in err, err.count("\n")) == (1, True, 1)
    shutil.rmtree(tmp_path / "store" / "shards" / "000001")
    (tmp_path / "store" / "work" / "offsets.bin").write_bytes(b"torn")
    (tmp_path / "store" / "work" / "items.jsonl").write_text("torn")
    code, _, err = xycodec(*arguments(folder, tmp_path / "store", model))
    assert (code, "the plan of shard 1 is damaged" in err, err.count("\n")) == (1, True, 1)


def test_two_calls_at_once_are_refused(folder, model, xycodec, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "store")
    with corpus._alone(tmp_path / "store"):
        code, _, err = xycodec(*arguments(folder, tmp_path / "store", model))
    assert (code, "another process is writing it" in err) == (1, True)
    assert xycodec(*arguments(folder, tmp_path / "store", model))[0] == 0


# ---- what goes wrong -------------------------------------------------------------------------------


def test_broken_files_are_listed_and_the_rest_goes_on(tokenize, codec, files, tmp_path):
    broken = broken_folder(tmp_path / "audio", files)
    code, out, err = tokenize(broken)
    assert (code, "2 clips (2 new), 0.00 h, 4 failed" in out) == (1, True)
    assert_codes_of(tmp_path / "store", codec, {path.name: path for path in files[:2]})
    rows = [json.loads(line) for line in (tmp_path / "store" / "failures.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["empty.wav", "nonsense.mp3", "nothing.wav", "torn.flac"]
    assert rows[0]["audio"] == str(broken / "empty.wav")
    assert "is empty (0 bytes)" in rows[0]["error"]
    assert err.count("error: ") == 4
    assert tokenize(broken)[0] == 1  # it is not forgotten


def test_a_full_disk_ends_the_call_and_loses_nothing(whole, folder, model, xycodec, tmp_path, monkeypatch):
    append, room = write._append, iter(range(13))

    def filling(file, data):
        if next(room, None) is None:
            raise OSError(28, "No space left on device")
        append(file, data)

    monkeypatch.setattr(write, "_append", filling)
    code, _, err = xycodec(*arguments(folder, tmp_path / "store", model))
    assert (code, "cannot be written (No space left on device)" in err, err.count("\n")) == (1, True, 1)
    monkeypatch.setattr(write, "_append", append)
    assert xycodec(*arguments(folder, tmp_path / "store", model))[0] == 0
    assert tree(tmp_path / "store") == tree(whole)


def test_what_a_codec_or_a_file_system_raises_is_a_failure(whole, model, folder, tmp_path, monkeypatch):
    encoding, read = tiny_encoding(model), shard.blocks_of

    def blocks_of(item, rate, tell):
        if item.id.startswith("a/0"):
            raise ConnectionResetError("peer went\naway")
        return read(item, rate, tell)

    def encode(audio, **more):
        if any(len(clip) == 4800 for clip in audio):
            raise RuntimeError("odd length")
        return type(encoding.codec).encode(encoding.codec, audio, **more)

    monkeypatch.setattr(shard, "blocks_of", blocks_of)
    monkeypatch.setattr(encoding.codec, "encode", encode)
    shutil.copytree(folder, tmp_path / "audio")
    save(tmp_path / "audio" / "odd.wav", noise(0.3))
    engine = LocalEngine(lambda: encoding, {})
    report = tokenize_corpus([str(tmp_path / "audio")], tmp_path / "store", encoding.describe(), engine)
    errors = {row["id"]: row["error"] for row in TokenStore(tmp_path / "store").failures()}
    assert set(errors.values()) == {"ConnectionResetError: peer went away", "RuntimeError: odd length"}
    assert report.clips + report.failed == 11
    whole_codes = codes_of(whole)
    for name, codes in codes_of(tmp_path / "store").items():
        np.testing.assert_array_equal(codes, whole_codes[name])


def test_a_machine_without_memory_ends_the_call(model, folder, tmp_path, monkeypatch):
    """Or a whole corpus would be listed as failures."""
    encoding = tiny_encoding(model)

    def encode(audio, **more):
        raise torch.OutOfMemoryError("all is used")

    monkeypatch.setattr(encoding.codec, "encode", encode)
    with pytest.raises(XycodecError, match="out of memory: encode less at once"):
        tokenize_corpus([str(folder)], tmp_path / "store", encoding.describe(), LocalEngine(lambda: encoding, {}))


def test_ids_that_occur_twice_are_told(tokenize, files, tmp_path):
    shutil.copytree(files[0].parent, tmp_path / "other")
    code, out, err = tokenize(files[0].parent, tmp_path / "other")
    assert (code, "5 clips (5 new), 0.00 h, 5 failed" in out) == (1, True)
    name = files[0].name
    assert f"error: {name}: {files[0]} has the same id: give one of them another" in err


def test_two_files_of_one_stem_are_two_clips(tokenize, tmp_path):
    for suffix in (".wav", ".flac"):
        save(tmp_path / "audio" / f"a{suffix}", noise(0.5, seed=len(suffix)))
    assert tokenize(tmp_path / "audio")[0] == 0
    assert list(codes_of(tmp_path / "store")) == ["a.flac", "a.wav"]


def test_an_input_that_vanishes_is_a_failure(model, folder, xycodec, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "audio")
    append, room = write._append, iter(range(3))

    def stopping(file, data):
        if next(room, None) is None:
            raise OSError("somebody took the disk out")
        append(file, data)

    command = arguments(tmp_path / "audio", tmp_path / "store", model)
    monkeypatch.setattr(write, "_append", stopping)
    assert xycodec(*command)[0] == 1
    monkeypatch.setattr(write, "_append", append)
    shutil.rmtree(tmp_path / "audio" / "b")
    code, _, err = xycodec(*command)
    assert (code, "cannot be read (No such file or directory)" in err) == (1, True)
    store = TokenStore(tmp_path / "store")
    assert (len(store), [row["id"][0] for row in store.failures()]) == (5, ["b"] * 5)


def test_another_model_is_refused(tokenize, xycodec, folder, tmp_path, model):
    tokenize(folder)
    code, _, err = xycodec("tokenize", folder, "-o", tmp_path / "store", "--model", model, "--n-q", 1, "--threads", 1)
    assert (code, "was begun with other codes (n_q 2 and 1)" in err) == (1, True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("")
    code, _, err = tokenize(folder, store="mine")
    assert (code, "holds other files: choose a new folder" in err) == (1, True)


@pytest.mark.parametrize(("given", "words"), [
    ("none", "none: no such file or folder"), ("-", "cannot be read from stdin"), ("*.wav", "no file matches"),
])  # fmt: skip
def test_inputs_that_are_none(tokenize, given, words):
    code, _, err = tokenize(given)
    assert (code, words in err) == (1, True)


def test_a_damaged_manifest_or_tar_is_one_failure(tokenize, files, tmp_path):
    (tmp_path / "x.tar").write_bytes(b"no tar" * 200)
    (tmp_path / "rows.jsonl").write_text(f'{json.dumps({"audio": str(files[0])})}\nnonsense\n{{"text": "a"}}\n')
    code, _, _ = tokenize(tmp_path / "x.tar", tmp_path / "rows.jsonl")
    assert code == 1
    store = TokenStore(tmp_path / "store")
    assert [clip.id for clip in store] == [str(files[0])]
    assert [row["id"].rsplit("/", 1)[1] for row in store.failures()] == ["x.tar", "rows.jsonl:2", "rows.jsonl:3"]


def test_cuts_in_memory_are_told(files):
    """A plan is text."""
    cut = cuts_of(files[:1])[0]
    cut.recording.sources[0] = AudioSource("memory", [0], files[0].read_bytes())
    item = cut_item(cut)
    assert item.error == "clip-0: its audio lies in memory, not in a file: save the cuts with their audio"


def test_odd_audio_is_remarked(tokenize, tmp_path):
    save(tmp_path / "audio" / "quiet.wav", noise(0.5, level=0.001))
    assert tokenize(tmp_path / "audio")[0] == 0
    (remark,) = TokenStore(tmp_path / "store").meta(0)["remarks"]
    assert remark.startswith("very quiet")


# ---- verify ----------------------------------------------------------------------------------------


def test_clips_are_encoded_again_and_compared(tokenize, xycodec, whole, folder, model, tmp_path):
    shutil.copytree(whole, tmp_path / "store")
    command = arguments(folder, tmp_path / "store", model, "--verify", 10)
    code, _, err = xycodec(*command)
    assert (code, "verify: 10 clips encoded alone, 0.0000% of codes differ" in err) == (0, True)
    path = tmp_path / "store" / "shards" / "000002" / "codes.bin"
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    code, _, err = xycodec(*command)
    assert (code, "of codes differ, 0.0000% may: first" in err) == (1, True)
    assert xycodec(*command, "--verify-rate", 0.1)[0] == 0


def test_json_tells_where_the_time_went(xycodec, folder, model, tmp_path):
    code, out, _ = xycodec(*arguments(folder, tmp_path / "store", model, "--json"))
    report = json.loads(out)
    assert (code, report["clips"], report["made"], report["failed"]) == (0, 10, 10, 0)
    assert report["times"]["clips"] == 10
    assert report["times"]["audio"] == pytest.approx(report["seconds"])
    assert report["times"]["encoding"] > 0


def test_memory_files_are_files(codec):
    """Files in memory, which readers of tables give, are read as files are."""
    data = encoded(noise(0.4), 16_000, ".wav")
    assert alone(codec, io.BytesIO(data))[1] == 6400


def test_an_id_of_zero_is_an_id(files, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"audio": str(files[0]), "id": 0}))
    assert [item.id for item in list_items([str(tmp_path / "rows.jsonl")])] == ["0"]


def test_a_path_that_is_no_text_is_a_failure_of_that_file(tokenize, files, tmp_path):
    folder = tmp_path / "audio"
    folder.mkdir()
    for name in (b"good.flac", b"bad\xff.flac"):
        (folder / os.fsdecode(name)).write_bytes(files[0].read_bytes())
    assert tokenize(folder)[0] == 1
    store = TokenStore(tmp_path / "store")
    assert [clip.id for clip in store] == ["good.flac"]
    ((row),) = store.failures()
    assert "not text in UTF-8" in row["error"]


def test_a_key_of_a_tar_may_hold_dots(files, tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(files[0], "a.en.flac")
    assert [item.id for item in list_items([str(tmp_path / "x.tar")])] == ["x/a.en"]
