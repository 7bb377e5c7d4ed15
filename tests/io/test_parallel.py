import os
import time
from pathlib import Path

import pytest

from xycodec.errors import XycodecError
from xycodec.io.parallel import NOTES, Job, Notes, Outcome, pending, plan_jobs, run_jobs

AUDIO = frozenset({".wav", ".flac"})


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("one.wav", "two.flac", "in/a.wav", "in/deep/b.WAV", "in/deep/c.txt", "in/deep/er/a.flac", "[x].wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)


def plan(*inputs, output=None):
    return {job.source: job.target for job in plan_jobs(inputs, output, ".xyc", AUDIO)}


def refusal(*inputs, output=None):
    with pytest.raises(XycodecError) as error:
        plan(*inputs, output=output)
    assert "\n" not in str(error.value)
    return str(error.value)


# planning


@pytest.mark.parametrize(
    ("inputs", "output", "expected"),
    [
        (["one.wav"], None, {"one.wav": "one.xyc"}),
        (["one.wav", "in/a.wav"], None, {"one.wav": "one.xyc", "in/a.wav": "in/a.xyc"}),
        (["one.wav"], "new.xyc", {"one.wav": "new.xyc"}),
        (["one.wav"], "-", {"one.wav": "-"}),
        (["one.wav"], "new/", {"one.wav": "new/one.xyc"}),
        (["one.wav"], "in", {"one.wav": "in/one.xyc"}),
        (["in/a.wav"], "out/", {"in/a.wav": "out/a.xyc"}),
        (["one.wav", "two.flac"], "out", {"one.wav": "out/one.xyc", "two.flac": "out/two.xyc"}),
        (["-"], None, {"-": "-"}),
        (["-"], "-", {"-": "-"}),
        (["-"], "new.xyc", {"-": "new.xyc"}),
        (["-"], "in", {"-": "in/stdin.xyc"}),
        (["-", "one.wav"], "out", {"-": "out/stdin.xyc", "one.wav": "out/one.xyc"}),
        (["[x].wav"], None, {"[x].wav": "[x].xyc"}),
        (["*.wav"], None, {"[x].wav": "[x].xyc", "one.wav": "one.xyc"}),
        (["in/**/*.flac"], "out", {"in/deep/er/a.flac": "out/deep/er/a.xyc"}),
        (["in/**/**/*.flac"], None, {"in/deep/er/a.flac": "in/deep/er/a.xyc"}),
    ],
)
def test_inputs_and_their_outputs(inputs, output, expected):
    assert plan(*inputs, output=output) == expected


def test_a_folder_keeps_its_tree():
    below = {"a.wav": "a.xyc", "deep/b.WAV": "deep/b.xyc", "deep/er/a.flac": "deep/er/a.xyc"}
    assert plan("in", output="out") == {f"in/{name}": f"out/{made}" for name, made in below.items()}
    assert plan("in") == {f"in/{name}": f"in/{made}" for name, made in below.items()}
    assert plan("in/", "one.wav", output="out")["one.wav"] == "out/one.xyc"


def test_the_order_does_not_depend_on_the_disk():
    sources = [job.source for job in plan_jobs(["in"], None, ".xyc", AUDIO)]
    assert sources == sorted(sources)


@pytest.mark.parametrize(
    ("inputs", "output", "named"),
    [
        (["missing.wav"], None, "missing.wav"),
        (["one.wav", "missing.wav"], None, "missing.wav"),
        (["*.mp3"], None, "*.mp3"),
        (["one.wav", "two.flac"], "in/a.wav", "in/a.wav"),
        (["in"], "-", "-"),
        (["in"], "one.wav", "one.wav"),
        (["*.wav"], "-", "-"),
    ],
)
def test_what_cannot_be_planned_is_named(inputs, output, named):
    assert refusal(*inputs, output=output).startswith(f"{named}: ")


def test_an_empty_folder_is_named_with_what_was_looked_for(tmp_path):
    (tmp_path / "empty").mkdir()
    assert ".wav" in refusal("empty")
    assert refusal("one.wav", "empty", output="out").startswith("empty: ")


def test_names_that_differ_in_their_suffix_alone_keep_it(tmp_path):
    (tmp_path / "in" / "a.flac").touch()
    made = {"in/a.wav": "a.wav.xyc", "in/a.flac": "a.flac.xyc", "in/deep/b.WAV": "deep/b.xyc"}
    for output, place in (("out", "out"), (None, "in")):
        planned = plan("in", output=output)
        assert {source: planned[source] for source in made} == {s: f"{place}/{name}" for s, name in made.items()}
    assert plan("in/a.*", output="out") == {"in/a.wav": "out/a.wav.xyc", "in/a.flac": "out/a.flac.xyc"}


def test_names_that_a_glob_finds_in_several_folders_keep_their_folders(tmp_path):
    for name in ("in/x/take.wav", "in/y/take.wav"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    made = {"in/x/take.wav": "out/x/take.xyc", "in/y/take.wav": "out/y/take.xyc"}
    assert plan("in/**/take.wav", output="out") == made
    assert plan("in/*/take.wav", output="out") == made


def test_hidden_files_are_left_out_of_a_folder(tmp_path):
    for name in ("in/._a.wav", "in/.trash/b.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert all("/." not in source for source in plan("in", output="out"))
    assert plan("in/._a.wav") == {"in/._a.wav": "in/._a.xyc"}  # unless it is named


def test_codes_do_not_get_the_name_of_audio():
    assert "codes.wav: a .xyc file cannot have that suffix" in refusal("one.wav", output="codes.wav")
    with pytest.raises(XycodecError, match="cannot have that suffix"):
        plan_jobs(["one.wav"], "out.xyc", ".wav", frozenset({".xyc"}))


def test_settings_are_noted_and_found_again(tmp_path):
    target, path = str(tmp_path / "in" / "a.xyc"), tmp_path / "in" / NOTES
    notes = Notes()
    assert notes.settings_of(target) == {}
    notes.note(target, {"overlap": 2.0})
    assert notes.settings_of(target) == {}  # there is no such result
    Path(target).touch()
    notes.note(target, {})
    assert not path.exists()
    for _ in range(2):
        notes.note(target, {"overlap": 2.0})
        assert notes.settings_of(target) == Notes().settings_of(target) == {"overlap": 2.0}
    assert len(path.read_text().splitlines()) == 1


def test_lines_that_are_no_notes_lose_no_other(tmp_path):
    target, other, path = str(tmp_path / "a.xyc"), str(tmp_path / "\udcff.xyc"), tmp_path / NOTES
    for name in (target, other):
        Path(name).touch()
    Notes().note(target, {"overlap": 2.0})
    with open(path, "a") as file:
        file.write('3\n["a"]\n{"result": "a.x')
    Notes().note(other, {"dtype": "bfloat16"})
    assert Notes().settings_of(target) == {"overlap": 2.0}
    assert Notes().settings_of(other) == {"dtype": "bfloat16"}


def test_two_inputs_for_one_output(tmp_path):
    assert "both" in refusal("one.wav", "./one.wav")
    assert "both" in refusal("one.wav", "one.wav")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.wav").touch()
    assert "both" in refusal("in/a.wav", "x/a.wav", output="out")


def test_two_spellings_of_one_output():
    assert "both" in refusal("one.wav", "in/../one.wav")


@pytest.mark.parametrize("output", ["one.wav", "./one.wav", "in/../one.wav", "link.wav"])
def test_an_output_over_its_input(output, tmp_path):
    (tmp_path / "link.wav").symlink_to("one.wav")
    assert "overwrite an input" in refusal("one.wav", output=output)


def test_an_output_over_another_input(tmp_path):
    (tmp_path / "one.xyc").touch()
    with pytest.raises(XycodecError, match="overwrite an input"):
        plan_jobs(["one.wav", "one.xyc"], None, ".xyc", AUDIO)


def test_what_exists_is_done_unless_it_is_to_be_replaced():
    jobs = [Job("a", "one.wav"), Job("b", "new.xyc"), Job("c", "-")]
    assert pending(jobs, overwrite=False) == ([jobs[1], jobs[2]], [jobs[0]])
    assert pending(jobs, overwrite=True) == (jobs, [])


# running


def make_work(fault=None, log=None):
    """Work that returns its source in capitals; sources named after an error raise it."""
    if fault:
        raise XycodecError(fault)

    def work(source, target, advance):
        if log is not None:
            log.append(source)
        if source == "bad":
            raise XycodecError("bad: cannot be read")
        if source == "system":
            raise OSError(28, "No space left on device")
        if source == "pipe":
            raise BrokenPipeError
        if source == "bug":
            raise ZeroDivisionError
        if source == "dies":
            time.sleep(0.5)
            os._exit(3)
        advance(1.5)
        return source.upper(), os.getpid()

    return work


def jobs_of(*names):
    return [Job(name, name + ".out") for name in names]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_failure_does_not_stop_the_others(processes):
    outcomes = list(run_jobs(jobs_of("a", "bad", "b", "system", "pipe", "c"), make_work, {}, processes))
    by_source = {outcome.job.source: outcome for outcome in outcomes}
    assert len(outcomes) == len(by_source) == 6
    assert [by_source[name].result[0] for name in "abc"] == ["A", "B", "C"]
    assert all(by_source[name].error is None for name in "abc")
    assert by_source["bad"] == Outcome(Job("bad", "bad.out"), None, "bad: cannot be read")
    assert by_source["system"].error == "system: No space left on device"
    assert "pipe.out" in by_source["pipe"].error
    if processes == 2:
        assert os.getpid() not in {by_source[name].result[1] for name in "abc"}


def test_one_process_works_in_order_and_tells_of_progress():
    log, heard = [], []
    stream = run_jobs(jobs_of("c", "a", "b"), make_work, {"log": log}, 1, heard.append)
    assert log == []
    next(stream)
    assert log == ["c"]  # nothing is done before it is asked for
    assert [outcome.job.source for outcome in stream] == ["a", "b"]
    assert heard == [1.5] * 3


def test_one_job_needs_no_process():
    (outcome,) = run_jobs(jobs_of("a"), make_work, {}, 8)
    assert outcome.result == ("A", os.getpid())


def test_what_cannot_start_fails_at_once():
    with pytest.raises(XycodecError, match="no model"):
        list(run_jobs(jobs_of("a", "b"), make_work, {"fault": "no model"}, 1))
    outcomes = list(run_jobs(jobs_of("a", "b"), make_work, {"fault": "no model"}, 2))
    assert [outcome.error for outcome in outcomes] == ["no model"] * 2


def test_a_process_that_dies_does_not_hang_the_rest():
    outcomes = list(run_jobs(jobs_of("dies", "a", "b", "c"), make_work, {}, 2))
    assert {outcome.job.source for outcome in outcomes} == {"dies", "a", "b", "c"}
    by_source = {outcome.job.source: outcome for outcome in outcomes}
    assert "worker process died" in by_source["dies"].error
    assert all(outcome.result or outcome.error for outcome in outcomes)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_bug_is_not_hidden(processes):
    with pytest.raises(ZeroDivisionError):
        list(run_jobs(jobs_of("bug", "a"), make_work, {}, processes))
