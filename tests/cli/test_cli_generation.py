"""`xycodec evaluate-tts` and `evaluate-generation`, as a user calls them."""

import json

import numpy as np
import pytest
import soundfile as sf
from tests.embedding import save_vggish, tones
from tests.judging import save_x_vector
from tests.reference import tiny_config
from tests.talking import Babbler, make_utterances, write_speech

from xycodec import lm
from xycodec.checkpoints.build import random_codec
from xycodec.checkpoints.save import save_codec
from xycodec.eval.tts.utterances import write_utterances


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


# ---- evaluate-generation -------------------------------------------------------------------------


@pytest.fixture
def sets(folder):
    for name, seed in (("made", 0), ("true", 1)):
        (folder / name).mkdir()
        for number, clip in enumerate(tones(3, seconds=1.2, seed=seed)):
            sf.write(f"{name}/{number}.wav", clip, 16_000)
    return "made", "true"


def generation(xycodec, sets, *arguments):
    return xycodec("evaluate-generation", *sets, "-o", "out", "--device", "cpu", *arguments)


def test_sets_are_compared_in_the_page_of_evaluate(xycodec, sets, folder):
    (folder / "table.yaml").write_text("source: a paper\nexpected:\n  generated: {fd_log_mel_statistics: 0.5}\n")
    arguments = ("--log-mel-statistics", "--expected", "table.yaml")
    code, out, err = generation(xycodec, sets, *arguments)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].endswith("out/report.html")
    (line,) = (line for line in out.splitlines() if "log-mel" in line)
    report = json.loads((folder / "out/report.json").read_text())
    value = report["evaluation"]["codecs"][1]["of_set"]["fd_log_mel_statistics"]
    assert f"{value:.3f}" in line
    (expected,) = report["tables"]["expected"]
    assert (expected["expected"], expected["measured"]) == (0.5, value)
    markdown = (folder / "out/report.md").read_text()
    for row in report["evaluation"]["sections"][0]["rows"]:
        assert row[-1] in markdown  # the hash of each file list
    assert "## Embeddings" in markdown
    page = (folder / "out/report.html").read_text()
    assert "The first clips." in page
    assert page.count("data:audio/flac") == 6
    kept = (folder / "out/report.json").read_text()
    assert generation(xycodec, sets, *arguments)[0] == 0
    assert (folder / "out/report.json").read_text() == kept


def test_what_is_left_out_ends_in_1(xycodec, sets, folder):
    save_vggish(folder / "vggish.pth")
    sf.write("made/2.wav", np.zeros(8000), 16_000)
    code, out, err = generation(xycodec, sets, "--vggish", "vggish.pth")
    assert code == 1
    assert "vggish left out 1 generated clips" in err
    assert "FAD (VGGish)" in out
    assert "is under 0.975 s, the least that VGGish hears" in (folder / "out/report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "nothing to measure by: name an embedder"),
        (("--panns", "none.pth"), "none.pth: no such file"),
        (("--mert", "./none"), "no such folder"),
        (("--log-mel-statistics", "--expected", "none.yaml"), "none.yaml cannot be read"),
        (("--log-mel-statistics", "--captions", "none.jsonl"), "none.jsonl cannot be read"),
    ],
)
def test_generation_refuses_in_one_line(xycodec, sets, folder, arguments, complaint):
    code, _, err = generation(xycodec, sets, *arguments)
    assert code == 1
    assert complaint in err
    assert len(err.splitlines()) == 1
    assert not (folder / "out/report.json").exists()


# ---- evaluate-tts --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def voice(tmp_path_factory):
    return str(save_x_vector(tmp_path_factory.mktemp("voice") / "voice"))


@pytest.fixture
def test_list(folder):
    write_utterances(make_utterances(folder / "speech"), folder / "list.jsonl")
    return "list.jsonl"


def tts(xycodec, test_list, *arguments):
    return xycodec("evaluate-tts", test_list, "-o", "out", "--device", "cpu", *arguments)


def test_a_model_speaks_and_is_reported_with_true_speech_first(xycodec, test_list, voice, folder, monkeypatch):
    codec = random_codec(tiny_config())
    saved = str(save_codec(codec, folder / "tiny"))
    (folder / "models/babbler").mkdir(parents=True)
    monkeypatch.setattr(lm, "load", lambda path, device: Babbler(codec), raising=False)
    (folder / "table.yaml").write_text("source: a paper\nexpected:\n  babbler-ar: {similarity: 0.5}\n")
    arguments = ("--model", "models/babbler", "-c", saved, "--similarity", voice, "--limit", "1", "--seeds", "0,3")
    code, out, err = tts(xycodec, test_list, *arguments, "--expected", "table.yaml")
    assert code == 0
    assert "note: true speech has SIM" in err
    assert out.splitlines()[-1].endswith("out/report.html")
    report = json.loads((folder / "out/report.json").read_text())
    titles = [row["title"] for row in report["tables"]["codecs"]]
    assert titles == [
        "true speech", "babbler: AR+NAR", "babbler: AR stage", "babbler: codec alone",
        "babbler: codec alone, first codebook",
    ]  # fmt: skip
    assert [len(row["clips"]) for row in report["evaluation"]["codecs"]] == [1] * 5
    assert [one["title"] for one in report["tables"]["sections"]] == ["Speech", "Seeds", "Calibration"]
    assert report["tables"]["expected"][0]["measured"] is not None
    markdown = (folder / "out/report.md").read_text()
    assert "**Warning: true speech has SIM" in markdown
    assert "| babbler: AR+NAR | 0, 3 | 2 | 0 | 3 | 0 | 0 |" in markdown
    assert (folder / "out/report.html").read_text().count("data:audio/flac") == 5


def test_files_made_elsewhere_and_one_that_lacks(xycodec, test_list, voice, folder):
    write_speech(folder / "made/u0.wav", 4, 3)
    code, out, err = tts(xycodec, test_list, "--generated", "theirs=made", "--similarity", voice)
    assert code == 1
    assert "theirs: 1 clips without scores: u1.*: there is no generated file of this name" in err
    assert "SIM" in out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "nothing to evaluate: give --model or --generated"),
        (("--generated", "none"), "none: there is no folder with files of audio"),
        (("--generated", "speech", "--generated", "a/speech"), "the name speech is taken: give NAME=FOLDER"),
        (("--generated", "speech", "--seeds", "0,x"), "'0,x': seeds are whole numbers with commas between"),
        (("--generated", "speech", "--expected", "table.yaml"), "expects something of babbler, which is not evaluated"),
    ],
)
def test_tts_refuses_in_one_line(xycodec, test_list, voice, folder, arguments, complaint):
    (folder / "table.yaml").write_text("source: a paper\nexpected:\n  babbler: {similarity: 0.5}\n")
    code, _, err = tts(xycodec, test_list, *arguments, "--similarity", voice)
    assert code == 1
    assert complaint in err
    assert len(err.splitlines()) == 1
    assert not (folder / "out/report.json").exists()


def test_tts_takes_a_list_and_a_judge(xycodec, test_list, voice, folder):
    code, _, err = tts(xycodec, "none.jsonl", "--generated", "speech", "--similarity", voice)
    assert (code, err.count("\n")) == (1, 1)
    assert "none.jsonl: there is no such file or folder" in err
    code, _, err = tts(xycodec, test_list, "--generated", "speech")
    assert (code, err) == (1, "error: nothing to judge by: name a recogniser, a speaker model or an opinion\n")
