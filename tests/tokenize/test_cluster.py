"""`--engine ray`: the same bytes as on one machine, whatever order clips come in and whatever dies."""

import contextlib
import itertools
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tests.tokenize.corpora import broken_folder, save_model, tree, write_audio_files

from xycodec.cli.tokenize import make_encoding
from xycodec.errors import StoreError
from xycodec.tokenize.cluster import OrderedShards, make_encoder, make_reader
from xycodec.tokenize.corpus import tokenize_corpus
from xycodec.tokenize.inputs import item
from xycodec.tokenize.local import LocalEngine


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def settings(model):
    return {
        "model": str(model), "n_q": None, "search": 1, "overlap": None, "reference": False, "device": "cpu",
        "dtype": "float32", "share_batches": False, "batch_s": 2.0, "threads": 1,
    }  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten files of which some are longer than a window, and four that are broken."""
    place = tmp_path_factory.mktemp("corpus") / "audio"
    broken_folder(place / "c", write_audio_files(place))
    return place


@pytest.fixture(scope="module")
def whole(tmp_path_factory, settings, folder):
    return local_store(tmp_path_factory.mktemp("whole") / "store", settings, folder)


def local_store(place, settings, folder, engine=None):
    encoding = make_encoding(**settings)
    engine = engine or LocalEngine(lambda: encoding, {})
    tokenize_corpus([str(folder)], place, encoding.describe(), engine, shard_clips=3)
    return place


class Simulated:
    """What Ray does to tables between the functions that it calls, without Ray: any order, and some of them twice."""

    def __init__(self, settings, order, upto=None):
        self.settings, self.order, self.upto = settings, order, upto

    def __call__(self, folder, shards):
        encoder = make_encoder(make_encoding, self.settings)()
        with OrderedShards(folder, encoder._encoding.describe(), lambda clips, seconds: None) as written:
            begun = [{"shard": np.array([number]), "first": np.array([written.begin(number)])} for number in shards]
            rows = [
                {key: table[key][i : i + 1] for key in table}
                for one in begun
                for table in make_reader(folder, 16_000, 13 * 1280)(one)
                for i in range(len(table["data"]))
            ]
            moved = [pickle.loads(row["data"][0]).audio for row in rows]
            assert all(len(audio) <= 13 * 1280 for audio in moved if audio is not None)
            for row in itertools.islice(self.order(rows), self.upto):
                yield from written.take(encoder(row))
            if self.upto is not None:
                raise KeyboardInterrupt
            written.require_all(shards)


def shuffled(rows):
    order = np.random.default_rng(5).permutation(2 * len(rows)) % len(rows)
    return (rows[place] for place in order)


@pytest.mark.parametrize("order", [iter, reversed, shuffled])
def test_clips_in_any_order_make_the_same_bytes(whole, settings, folder, tmp_path, order):
    store = local_store(tmp_path / "store", settings, folder, Simulated(settings, order))
    assert tree(store) == tree(whole)
    rows = [json.loads(line) for line in (store / "failures.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["c/empty.wav", "c/nonsense.mp3", "c/nothing.wav", "c/torn.flac"]


@pytest.mark.parametrize("upto", [0, 1, 7])
def test_either_engine_goes_on_where_the_other_was_stopped(whole, settings, folder, tmp_path, upto):
    with pytest.raises(KeyboardInterrupt):
        local_store(tmp_path / "store", settings, folder, Simulated(settings, shuffled, upto))
    shutil.copytree(tmp_path / "store", tmp_path / "other")
    assert tree(local_store(tmp_path / "store", settings, folder)) == tree(whole)
    assert tree(local_store(tmp_path / "other", settings, folder, Simulated(settings, iter))) == tree(whole)


def test_clips_that_never_come_are_told(settings, folder, tmp_path):
    with pytest.raises(StoreError, match="clips of shard 0 never came"):
        local_store(tmp_path / "store", settings, folder, Simulated(settings, lambda rows: rows[1:]))


def test_without_ray_it_says_what_to_install(xycodec, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(item, "find_spec", lambda name: None)
    code, _, err = xycodec("tokenize", folder, "-o", tmp_path / "store", "--engine", "ray")
    assert (code, err) == (1, "error: ray is not installed: pip install 'xycodec[ray]'\n")
    assert not (tmp_path / "store").exists()


# ---- a cluster -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of two cores on this machine; a function that starts `xycodec` on them."""
    from ray.cluster_utils import Cluster

    room = {"num_cpus": 2, "object_store_memory": 200 << 20}
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_worker_niceness", "0")
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        made = Cluster(initialize_head=True, head_node_args={**room, "include_dashboard": False})
        made.add_node(**room)
        yield made
        made.shutdown()


def started(cluster, folder, store, model):
    environment = {**os.environ, "RAY_ADDRESS": cluster.address, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = ["tokenize", folder, "-o", store, "--model", model, "--device", "cpu", "--shard-clips", 3]
    more = ["--engine", "ray", "--threads", 1, "--quiet"]
    arguments = [sys.executable, "-m", "xycodec", *map(str, command + more)]
    return subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True)


def wait_for(process, store, clips):
    """Until so many clips are in the store, or the command has ended."""
    while process.poll() is None:
        index = [*store.glob("work/shard-*/index.bin"), *store.glob("shards/*/index.bin")]
        if sum(path.stat().st_size // 40 for path in index if path.exists()) >= clips:
            return
        time.sleep(0.05)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("victim", ["nobody", "worker", "driver", "node"])
def test_a_cluster_makes_the_same_bytes(whole, folder, model, tmp_path, cluster, victim):
    store = tmp_path / "store"
    process = started(cluster, folder, store, model)
    if victim != "nobody":
        wait_for(process, store, 4)
    if victim == "worker":
        assert [os.kill(pid, signal.SIGKILL) for pid in actors()[:1]]
    if victim == "driver":
        process.kill()
        process.communicate()
        process = started(cluster, folder, store, model)
    if victim == "node":
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    _, err = process.communicate()
    assert (process.returncode, err.count("error: c/")) == (1, 4), err
    assert tree(store) == tree(whole)


def actors():
    """Processes of Ray that encode."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if b"ray::MapWorker" in path.read_bytes():
                found.append(int(path.parent.name))
    return found
