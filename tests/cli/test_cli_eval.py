"""`xycodec evaluate`, `probe` and `abx`, as a user calls them."""

import json
import re

import numpy as np
import pytest
import soundfile as sf
from tests.published_xcodec import tiny_config as tiny_xcodec
from tests.reference import tiny_config

from xycodec.checkpoints.build import random_codec
from xycodec.checkpoints.save import save_codec


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(save_codec(random_codec(tiny_config()), tmp_path_factory.mktemp("codec") / "tiny"))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("XYCODEC_MODEL", raising=False)
    return tmp_path


@pytest.fixture
def xycodec(xycodec):
    """The same, with the lines of stderr."""

    def run(*arguments):
        code, out, err = xycodec(*arguments)
        return code, out, err.splitlines()

    return run


@pytest.fixture
def speech(folder):
    """A manifest of four clips with text by two speakers, and an item file over them."""
    rows, items = [], ["#file onset offset #phone prev-phone next-phone speaker"]
    for number in range(4):
        name = f"speech/{number}.wav"
        (folder / "speech").mkdir(exist_ok=True)
        sf.write(name, np.random.default_rng(number).uniform(-0.3, 0.3, 16_000), 16_000)
        rows.append({"audio": name, "duration": 1.0, "text": "a b", "speaker": f"s{number % 2}"})
        items += [f"{number} {onset:.1f} {onset + 0.2:.1f} {'ab'[place % 2]} x y s{number % 2}"
                  for place, onset in enumerate((0.1, 0.3, 0.5, 0.7))]  # fmt: skip
    (folder / "speech.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "phones.item").write_text("\n".join(items) + "\n")
    return "speech.jsonl"


def evaluate(xycodec, *arguments):
    return xycodec("evaluate", *arguments, "-o", "out", "--device", "cpu", "--jobs", "1")


# ---- evaluate --------------------------------------------------------------------------------------


def test_evaluate_writes_a_report_and_prints_it_in_short(xycodec, tiny, speech, folder):
    code, out, err = evaluate(xycodec, speech, "-c", tiny, "-c", f"{tiny}@2", "--metrics", "stoi,si_sdr")
    assert (code, err) == (0, [])
    report = json.loads((folder / "out/report.json").read_text())
    assert {path.name for path in (folder / "out").glob("report.*")} == {
        f"report.{s}" for s in ("json", "csv", "md", "html")
    }
    assert [len(codec["clips"]) for codec in report["evaluation"]["codecs"]] == [4, 4, 4]
    lines = out.splitlines()
    assert lines[-1].endswith("out/report.html")
    (stoi,) = (line for line in lines if "STOI" in line)
    assert stoi.split("│")[2].strip() == "1.000"
    (rate,) = (line for line in lines if "bit/s" in line)
    # 13 frames of 24 bits in a second, and half of it.
    assert [cell.strip() for cell in rate.split("│")[2:-1]] == ["", "312", "156"]


def test_a_second_call_says_the_same(xycodec, tiny, speech, folder):
    first = evaluate(xycodec, speech, "-c", tiny, "--metrics", "stoi")
    kept = (folder / "out/report.json").read_text()
    assert evaluate(xycodec, speech, "-c", tiny, "--metrics", "stoi") == first
    assert (folder / "out/report.json").read_text() == kept


def test_clips_without_scores_are_said_and_end_in_1(xycodec, tiny, speech, folder):
    (folder / "speech/2.wav").unlink()
    sf.write("speech/3.wav", np.zeros(16_000), 16_000)
    code, out, err = evaluate(xycodec, speech, "-c", tiny, "--metrics", "stoi")
    assert code == 1
    assert "report.html" in out
    assert len(err) == 3
    assert "1 clips without scores" in err[0]
    assert "2.wav" in err[0]
    assert all("STOI lacks 1 clips, the first: silent" in line for line in err[1:])


def test_expected_values_show_in_the_report(xycodec, tiny, speech, folder):
    (folder / "table.yaml").write_text(f"source: a paper\nexpected:\n  {tiny}: {{stoi: 0.5}}\n")
    code, _, err = evaluate(xycodec, speech, "-c", tiny, "--metrics", "stoi", "--expected", "table.yaml")
    assert (code, err) == (0, [])
    assert "From a paper" in (folder / "out/report.md").read_text()


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ("source: x\nexpected: {other: {stoi: 1}}", "expects something of other, which is not evaluated"),
        ("source: x\nexpected: {TINY: {utmos: 1}}", "expects utmos of .*, which is not measured"),
        ("source: x\nexpected: {TINY: {stoi: high}}", "not a table of expected values"),
        ("[", "not a table of expected values"),
        ("expected: {}", "not a table of expected values"),
        (None, "no-such.yaml cannot be read"),
    ],
)
def test_expectations_that_cannot_be_met_are_refused_at_once(xycodec, tiny, speech, folder, table, complaint):
    name = "table.yaml" if table else "no-such.yaml"
    if table:
        (folder / name).write_text(table.replace("TINY", tiny))
    code, _, (line,) = evaluate(xycodec, speech, "-c", tiny, "--metrics", "stoi", "--expected", name)
    assert code == 1
    assert re.search(complaint, line)
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("-c", "no-such-codec"), "no such file, folder or model"),
        (("-c", "TINY", "--metrics", "stoy"), "did you mean 'stoi'"),
        (("-c", "TINY", "--opinion", "mine"), "no opinion is called 'mine'"),
        (("-c", "TINY", "--recogniser", "./no-such"), "no such folder"),
        (("-c", "TINY@9"), "n_q must be an integer from 1 to 4"),
    ],
)
def test_evaluate_refuses_in_one_line(xycodec, tiny, speech, folder, arguments, complaint):
    given = (argument.replace("TINY", tiny) for argument in arguments)
    code, _, (line,) = evaluate(xycodec, speech, *given)
    assert code == 1
    assert complaint in line
    assert not (folder / "out").exists()


def test_evaluate_refuses_what_is_no_corpus(xycodec, tiny):
    code, _, (line,) = evaluate(xycodec, "no-such.jsonl", "-c", tiny)
    assert code == 1
    assert "no-such.jsonl: there is no such file or folder" in line


# ---- probe and abx ---------------------------------------------------------------------------------


def test_probe_learns_and_goes_on(xycodec, tiny, speech, folder):
    def probe(steps, *more):
        return xycodec("probe", speech, speech, "-m", tiny, "-o", "probe", "--steps", steps, "--hidden", 8,
                       "--evaluate-every", 2, "--device", "cpu", *more)  # fmt: skip

    code, out, err = probe(2, "--expected", 0.13)
    assert (code, err) == (0, [])
    assert "published" in out
    assert "2 of 2" in out
    code, out, _ = probe(4, "--json")
    assert code == 0
    found = json.loads(out)
    assert [point["step"] for point in found["curve"]] == [2, 4]
    code, _, (line,) = probe(4, "--lr", 0)
    assert code == 1
    assert "lr" in line
    code, _, (line,) = probe(4, "--n-q", 9)
    assert code == 1
    assert "n_q" in line


def test_abx_tells_phones_apart_or_not(xycodec, tiny, speech):
    code, out, err = xycodec("abx", "phones.item", "speech", "-m", tiny, "--device", "cpu")
    assert (code, err) == (0, [])
    assert out.count("within") == out.count("across") == 5  # the title has each once
    code, out, _ = xycodec("abx", "phones.item", "speech", "-m", tiny, "--n-q", 2, "--json", "--device", "cpu")
    assert code == 0
    assert {score["n_q"] for score in json.loads(out)["scores"]} == {2}


def test_abx_names_what_it_leaves_out(xycodec, tiny, speech, folder):
    with open("phones.item", "a") as file:
        file.write("gone 0.1 0.2 a x y s0\n")
    code, _, err = xycodec("abx", "phones.item", "speech", "-m", tiny, "--device", "cpu")
    assert code == 0
    assert len(err) == 1
    assert "items left out (1)" in err[0]
    (folder / "phones.item").write_text("#file onset\n0 0.1\n")
    code, _, (line,) = xycodec("abx", "phones.item", "speech", "-m", tiny, "--device", "cpu")
    assert code == 1
    assert "phones.item" in line


def test_a_branch_is_read_where_there_is_one(xycodec, tiny, speech, folder):
    place = save_codec(random_codec(tiny_xcodec()), folder / "x-tiny")

    def errors(model, *arguments):
        code, out, err = xycodec(
            "abx", "phones.item", "speech", "-m", model, "--n-q", 2, "--json", "--device", "cpu", *arguments
        )
        return code, {(s["kind"], s["mode"]): s["error"] for s in json.loads(out)["scores"]} if out else err

    (code, plain), (semantic_code, semantic) = errors(place), errors(place, "--branch", "semantic")
    assert code == semantic_code == 0
    for mode in ("within", "across"):
        assert plain["codes", mode] == semantic["codes", mode]
    assert any(plain["embeddings", mode] != semantic["embeddings", mode] for mode in ("within", "across"))
    code, (line,) = errors(tiny, "--branch", "semantic")
    assert code == 1
    assert "has no branch 'semantic'" in line
    arguments = (speech, speech, "-o", "probe", "--branch", "semantic", "--steps", 1, "--hidden", 8, "--device", "cpu")
    assert xycodec("probe", *arguments, "-m", place)[0] == 0
    code, _, (line,) = xycodec("probe", *arguments, "-m", tiny)
    assert code == 1
    assert "has no branch 'semantic'" in line
