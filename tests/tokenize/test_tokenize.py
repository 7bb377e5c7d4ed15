"""`xycodec tokenize`: the codes of each clip alone, from any input, whatever interrupts."""

import io
import json
import os
import shutil
import signal

import fsspec
import numpy as np
import pytest
import soundfile as sf
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
from xycodec.io.tokens.read import TokenStore


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
        return xycodec("tokenize", *inputs, "-o", tmp_path / store, "--model", model, "--device", "cpu")

    return command


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model, folder):
    """The store that nothing happened to, in shards of two clips."""
    place = tmp_path_factory.mktemp("whole")
    ended = run(place, *arguments(folder, place / "store", model))
    assert (ended.code, ended.err.count("error")) == (0, 0), ended.err
    return place / "store"


def arguments(folder, store, model, *more):
    return ("tokenize", folder, "-o", store, "--model", model, "--device", "cpu", "--shard-clips", 2, *more)


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
    pyarrow = pytest.importorskip("pyarrow")
    write = pytest.importorskip("pyarrow.parquet").write_table
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
    datasets = pytest.importorskip("datasets")
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


@pytest.mark.parametrize(("victim", "jobs"), [("driver", 1), ("worker", 2)])
def test_a_killed_call_goes_on_and_makes_the_same_bytes(whole, model, folder, tmp_path, victim, jobs):
    command = arguments(folder, tmp_path / "store", model)
    ended = kill_at(tmp_path, 3, command, jobs, victim)
    assert ended is None or ended.code == 0, ended
    assert run(tmp_path, *command).code == 0
    assert tree(tmp_path / "store") == tree(whole)


@pytest.mark.long
@pytest.mark.parametrize("victim", ["driver", "worker"])
def test_kills_at_ten_moments(whole, model, folder, tmp_path, victim):
    command = arguments(folder, tmp_path / "store", model)
    for moment in np.random.default_rng(7).integers(0, 10, size=10).tolist():
        shutil.rmtree(tmp_path / "store", ignore_errors=True)
        ended = kill_at(tmp_path, moment, command, 2, victim)
        assert ended is None or ended.code == 0, ended
        assert run(tmp_path, *command, "--jobs", 2).code == 0
        assert tree(tmp_path / "store") == tree(whole)


def test_two_calls_at_once_are_refused(model, folder, tmp_path, tokenize):
    running = Running(tmp_path, *arguments(folder, tmp_path / "store", model))
    running.wait_for(lambda: begun(tmp_path / "store") >= 1)
    os.kill(running.process.pid, signal.SIGSTOP)
    try:
        code, _, err = tokenize(folder)
        assert (code, "another process is writing it" in err) == (1, True)
    finally:
        os.kill(running.process.pid, signal.SIGCONT)
    assert running.result().code == 0


# ---- what goes wrong -------------------------------------------------------------------------------


def test_broken_files_are_listed_and_the_rest_goes_on(tokenize, codec, files, tmp_path):
    broken = broken_folder(tmp_path / "audio", files)
    code, out, err = tokenize(broken)
    assert (code, "2 clips (6 new), 0.00 h, 4 failed" in out) == (1, True)
    assert_codes_of(tmp_path / "store", codec, {path.name: path for path in files[:2]})
    rows = [json.loads(line) for line in (tmp_path / "store" / "failures.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["empty.wav", "nonsense.mp3", "nothing.wav", "torn.flac"]
    assert rows[0]["audio"] == str(broken / "empty.wav")
    assert "is empty (0 bytes)" in rows[0]["error"]
    assert err.count("error: ") == 4
    assert tokenize(broken)[0] == 1  # it is not forgotten


def test_ids_that_occur_twice_are_told(tokenize, files, tmp_path):
    shutil.copytree(files[0].parent, tmp_path / "other")
    code, out, err = tokenize(files[0].parent, tmp_path / "other")
    assert (code, "5 clips (10 new), 0.00 h, 5 failed" in out) == (1, True)
    name = files[0].name
    assert f"error: {name}: {files[0]} has the same id: give one of them another" in err.replace(f"{name}: ", "", 1)


def test_two_files_of_one_stem_are_two_clips(tokenize, tmp_path):
    for suffix in (".wav", ".flac"):
        save(tmp_path / "audio" / f"a{suffix}", noise(0.5, seed=len(suffix)))
    assert tokenize(tmp_path / "audio")[0] == 0
    assert list(codes_of(tmp_path / "store")) == ["a.flac", "a.wav"]


def test_an_input_that_vanishes_is_a_failure(model, folder, tmp_path, files):
    shutil.copytree(folder, tmp_path / "audio")
    command = arguments(tmp_path / "audio", tmp_path / "store", model)
    running = Running(tmp_path, *command)
    running.wait_for(lambda: begun(tmp_path / "store") >= 1)
    running.kill()
    shutil.rmtree(tmp_path / "audio" / "b")
    ended = run(tmp_path, *command)
    assert ended.code == 1
    assert "cannot be read (No such file or directory)" in ended.err
    store = TokenStore(tmp_path / "store")
    assert len(store) + len(store.failures()) == 10


def test_another_model_is_refused(tokenize, xycodec, folder, tmp_path, model):
    tokenize(folder)
    code, _, err = xycodec("tokenize", folder, "-o", tmp_path / "store", "--model", model, "--n-q", 1)
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
