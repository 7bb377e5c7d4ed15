"""Runs that end early, however they do, and go on as if they had not."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from tests.training_runs import (
    Running,
    assert_same_lines,
    lines_of,
    names,
    post_settings,
    settings,
    write_corpus,
    write_recipe,
    xycodec,
)

from xycodec.checkpoints.training import read_checkpoint

CONSTANT = {"lr": 1e-3, "warmup_steps": 2, "final_lr": 1}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, corpus):
    """A run that nothing happens to, over two epochs and more."""
    folder = tmp_path_factory.mktemp("whole")
    ended = xycodec(folder, "train", write_recipe(folder / "recipe.yaml", settings(corpus, folder / "run")))
    assert ended.code == 0, ended
    return folder / "run"


def recorded(run):
    """Training lines of a file that may be written just now."""
    file = run / "metrics.jsonl"
    return file.read_text().count('"kind": "train"') if file.is_file() else 0


def never_synchronised():
    """The disk takes its time: a checkpoint that is being written stays so."""
    os.fsync = lambda number: time.sleep(60)


def place(rank, port):
    """The environment that torchrun gives a process."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = str(port)


def assert_equal_runs(run, whole):
    assert_same_lines(lines_of(run), lines_of(whole))
    assert_same_lines(lines_of(run, "valid"), lines_of(whole, "valid"))
    assert names(run) == names(whole)
    for name in names(run):
        ours, theirs = (read_checkpoint(folder / "checkpoints" / name) for folder in (run, whole))
        assert (ours["step"], ours["epoch"], ours["batch"]) == (theirs["step"], theirs["epoch"], theirs["batch"])
        for network, tensors in theirs["networks"].items():
            for key, value in tensors.items():
                torch.testing.assert_close(ours["networks"][network][key], value, msg=f"{name}: {key}")


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 1])
def test_killed_at_several_moments(tmp_path, corpus, whole, workers):
    run = tmp_path / "run"
    changes = settings(corpus, run, data={"workers": workers})
    command = ("train", write_recipe(tmp_path / "recipe.yaml", changes), "--resume")

    # Before the first checkpoint, which has step 3.
    first = Running(tmp_path, *command)
    first.wait_for(lambda: recorded(run) >= 1)
    first.kill()
    # With one there, while the next one is being written.
    again = Running(tmp_path, *command)
    again.wait_for((run / "checkpoints" / "step_00000003.pt").is_file)
    again.kill()
    torn = Running(tmp_path, *command, prepare=never_synchronised)
    torn.wait_for(lambda: any((run / "checkpoints").glob(".*.tmp.pt")))
    before = [name for name in names(run) if not name.startswith(".")]
    torn.kill()
    assert [name for name in names(run) if not name.startswith(".")] == before
    # A line of which a part got to the disk.
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 1')
    # Past the border of an epoch, which is after step 5.
    late = Running(tmp_path, *command)
    late.wait_for(lambda: recorded(run) >= 8)
    late.kill()

    ended = xycodec(tmp_path, *command)
    assert (ended.code, ended.out) == (0, f"{run}: finished at step 12 of 12\n")
    assert_equal_runs(run, whole)


def test_of_a_finished_run_nothing_is_left_to_do(whole):
    before = (whole / "metrics.jsonl").read_bytes()
    ended = xycodec(whole.parent, "train", whole / "recipe.yaml", "--resume")
    assert (ended.code, ended.out) == (0, f"{whole}: finished at step 12 of 12\n")
    assert (whole / "metrics.jsonl").read_bytes() == before


def test_told_to_stop(tmp_path, corpus, whole):
    """Each time the run saves the step it is at, says so, and exits with 0."""
    run = tmp_path / "run"
    recipe = write_recipe(tmp_path / "recipe.yaml", settings(corpus, run, checkpoint={"every": 100}))
    stopped = 0
    for number in (signal.SIGTERM, signal.SIGINT):
        running = Running(tmp_path, "train", recipe, *["--resume"][:stopped])
        running.wait_for(lambda enough=stopped + 2: recorded(run) >= enough)
        ended = running.signal(number)
        stopped = lines_of(run)[-1]["step"]
        assert stopped < 12
        assert (ended.code, ended.out) == (0, f"{run}: stopped, --resume goes on at step {stopped} of 12\n")
        assert names(run)[-1] == f"step_{stopped:08}.pt"
    if stopped < 9:  # a limit that has passed is told with the next step, and read beside the one after it
        ended = xycodec(tmp_path, "train", recipe, "--resume", "minutes=1e-9")
        assert ended.out == f"{run}: stopped, --resume goes on at step {stopped + 3} of 12\n"
    assert xycodec(tmp_path, "train", recipe, "--resume").code == 0
    assert_same_lines(lines_of(run), lines_of(whole))


@pytest.mark.long
def test_post_training(tmp_path, corpus, whole):
    """Discriminators, both optimizers and random crops go on as well."""

    def command(name, *more):
        recipe = post_settings(corpus, whole, tmp_path / name, steps=7)
        return "train", write_recipe(tmp_path / f"{name}.yaml", recipe), *more

    assert xycodec(tmp_path, *command("unbroken")).code == 0
    running = Running(tmp_path, *command("run"))
    running.wait_for(lambda: recorded(tmp_path / "run") >= 4)
    running.kill()
    assert names(tmp_path / "run")[-1] == "step_00000003.pt"
    # What the run started from is not needed any more.
    gone = command("run", "--resume", f"weights={tmp_path}/gone")
    assert xycodec(tmp_path, *gone).code == 0
    assert_equal_runs(tmp_path / "run", tmp_path / "unbroken")
    assert all("discriminator_grad_norm" in line for line in lines_of(tmp_path / "run"))


def both(folder, recipe, *more):
    """Two processes that meet as torchrun's do."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [Running(folder, "train", recipe, *more, prepare=partial(place, rank, port)) for rank in range(2)]
    first, second = [process.result() for process in ranks]
    assert (first.code, second.code) == (0, 0), (first, second)
    assert second.out == ""


def paired(folder, corpus):
    """A recipe of a run in two processes, and where the run goes."""
    changes = {"optimizer": CONSTANT, "checkpoint": {"every": 1000}, "validation": {"every": 1000}}
    return write_recipe(folder / "run.yaml", settings(corpus, folder / "run", **changes)), folder / "run"


@pytest.mark.long
def test_two_processes_go_on_as_two(tmp_path, corpus):
    recipe, run = paired(tmp_path, corpus)
    both(tmp_path, recipe, "steps=2")
    both(tmp_path, recipe, "--resume", "steps=4")
    both(tmp_path, recipe, f"output={tmp_path}/unbroken", "steps=4")
    assert_same_lines(lines_of(run), lines_of(tmp_path / "unbroken"))
    # One process goes on with the clips of the epoch that are left, and says so.
    before = read_checkpoint(run / "checkpoints" / "step_00000002.pt")
    assert (before["epoch"], before["processes"], sum(before["taken"])) == (0, 2, 8)
    for path in (run / "checkpoints").glob("step_00000004.pt"):
        path.unlink()
    ended = xycodec(tmp_path, "train", recipe, "--resume", "steps=3")
    assert ended.code == 0, ended
    assert "resumed: on 1 processes, were 2: the clips that are left are theirs\n" in ended.err
    after = read_checkpoint(run / "checkpoints" / "step_00000003.pt")
    assert (after["epoch"], after["processes"], sum(after["taken"])) == (0, 1, 10)
    # One process takes the same clips in other batches.
    assert xycodec(tmp_path, "train", recipe, f"output={tmp_path}/one", "steps=1").code == 0
    assert abs(lines_of(tmp_path / "one")[0]["loss"] - lines_of(run)[0]["loss"]) > 1e-3


@pytest.mark.long
def test_torchrun_is_told_to_stop(tmp_path, corpus):
    recipe, run = paired(tmp_path, corpus)
    torchrun = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", "xycodec", "train", str(recipe), "steps=1000"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    end = time.monotonic() + 100
    while recorded(run) < 2:
        assert torchrun.poll() is None, torchrun.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    torchrun.send_signal(signal.SIGTERM)
    said, _ = torchrun.communicate(timeout=100)
    stopped = lines_of(run)[-1]["step"]
    assert f"{run}: stopped, --resume goes on at step {stopped} of 1000\n" in said
    assert names(run) == [f"step_{stopped:08}.pt"]

    steps = f"steps={stopped + 3}"
    both(tmp_path, recipe, "--resume", steps)
    both(tmp_path, recipe, f"output={tmp_path}/unbroken", steps)
    assert_same_lines(lines_of(run), lines_of(tmp_path / "unbroken"))
