"""`xycodec train` and `xycodec data import`: what they refuse, each in one line before the first step."""

import json
import sys
from pathlib import Path

import pytest
import soundfile as sf
import torch
from tests.training import save_lm
from tests.training_runs import (
    lines_of,
    names,
    post_settings,
    settings,
    smallest_config,
    write_corpus,
    write_recipe,
)

from xycodec.checkpoints.load import load_codec
from xycodec.cli import app as cli

SHORT = {"steps": 2, "validation": {"every": 2, "clips": 2, "listen": 0}}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    # The variable is read once, when the hub's client is imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


@pytest.fixture
def xycodec(monkeypatch, capfd):
    """Run the command line in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["xycodec", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capfd.readouterr()

    return run


@pytest.fixture
def refused(xycodec):
    """Run a command that fails; returns its one line on stderr."""

    def run(*arguments):
        code, out, err = xycodec(*arguments)
        (line,) = err.splitlines()
        assert (code, out, line[:7]) == (1, "", "error: ")
        return line

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory, corpus):
    """The folder of a run of two steps."""
    from xycodec.train.recipe_file import load_recipe
    from xycodec.train.run import train

    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("trained") / "run"
    train(load_recipe(write_recipe(run.parent / "recipe.yaml", settings(corpus, run, **SHORT))), quiet=True)
    return run


def recipe(corpus, **changes):
    return write_recipe(Path("recipe.yaml"), settings(corpus, "run", **(SHORT | changes)))


def test_a_run_says_what_it_does(xycodec, corpus):
    code, out, err = xycodec("train", recipe(corpus, log_every=1))
    assert (code, out) == (0, "run: finished at step 2 of 2\n")
    first, *steps, last = err.splitlines()
    assert first == "data: 10 clips, 0.00 h, 10 with text"
    assert [line.split(":")[0] for line in steps] == ["step 2"]
    assert last.startswith("step 2, validation: mel ")
    code, out, err = xycodec("train", "recipe.yaml", "output=other", "--quiet")
    assert (code, out, err) == (0, "", "")
    assert lines_of("other") == lines_of("run")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ("steps=none", "recipe.yaml: steps: "),
        ("stpes=3", "stpes: unknown key, did you mean 'steps'?"),
        ("data.train=[missing.jsonl]", "missing.jsonl cannot be read (No such file or directory)"),
        ("data.valid=[missing.jsonl]", "missing.jsonl cannot be read (No such file or directory)"),
        ("data.train=[missing/*.tar]", "missing/*.tar: no such file"),
        ("data.train=[clip.wav]", "clip.wav: not a source of data"),
        ("data.train=[rows.jsonl]", "rows.jsonl:1: this is not yet a manifest of cuts"),
        ("data.train=[torn.jsonl]", "torn.jsonl:2: not a line of JSON"),
        ("data.train=[no_duration.jsonl]", "no_duration.jsonl:1: not a Lhotse cut"),
        ("data.train=[low.jsonl]", "no clip is left"),
        ("data.clip_seconds=30", "longer than the model's window of 1.04 s"),
        ("data.batch_seconds=0.5", "data.batch_seconds 0.5 is below data.clip_seconds 1"),
        ("data.min_seconds=2", "no clip is left"),
        ("weights=missing", "missing: no such file, folder or model"),
        ("weights=empty", "holds no checkpoint"),
        ("weights=other.safetensors", "other.safetensors"),
        ("towers=./missing", "./missing"),
        ("towers=openai/whisper-small", "openai/whisper-small"),
        ("lm.source=./missing loss.asr=20", "./missing: no such folder"),
        ("lm.source=Qwen/Qwen2.5-0.5B loss.asr=20", "Qwen/Qwen2.5-0.5B: gives no configuration"),
        ("engine.device=gpu", "device 'gpu' is not available here"),
        ("engine.device=cuda", "device 'cuda' is not available here"),
        ("output=clip.wav/run", "clip.wav/run"),
        ("output=clip.wav", "clip.wav"),
    ],
)
def test_bad_input(refused, corpus, changes, words):
    if "cuda" in changes and torch.cuda.is_available():
        changes, words = "engine.device=cuda:99", "is not available here"
    sf.write("clip.wav", [0.1] * 16_000, 16_000)
    row = json.loads(corpus.read_text().splitlines()[0])
    Path("rows.jsonl").write_text(json.dumps({"audio": "clip.wav", "duration": 1.0}))
    Path("torn.jsonl").write_text(corpus.read_text().splitlines()[0] + "\n{")
    Path("no_duration.jsonl").write_text(json.dumps({k: v for k, v in row.items() if k != "duration"}))
    Path("low.jsonl").write_text(write_corpus(Path("low"), clips=2, rate=8000).read_text())
    Path("empty").mkdir()
    Path("other.safetensors").write_bytes(b"x")
    line = refused("train", recipe(corpus), *changes.split())
    assert words in line
    assert not Path("run").exists()


def test_posttraining_of_what_does_not_fit(refused, corpus, trained):
    def line(**changes):
        return refused("train", write_recipe(Path("post.yaml"), post_settings(corpus, trained, "post", **changes)))

    assert "missing: no such file, folder or model" in line(weights="missing")
    assert "data.clip_seconds" in line(data={"train": [str(corpus)], "clip_seconds": 5})
    assert "multiple of 4" in line(discriminators={"channels": 3})
    assert "every family is left out" in line(
        discriminators={"period": False, "scale": False, "spectrogram": False, "channels": 4}
    )
    assert "no clip is left" in line(output_sample_rate=24_000)


def test_a_checkpoint_of_another_architecture(refused, corpus, trained):
    other = smallest_config(semantic_encoder=None, semantic_encoder_adapter=None).model_dump(mode="json")
    line = refused("train", recipe(corpus, model=other, weights=str(trained)))
    assert "of another architecture" in line
    assert str(trained) in line


def test_a_run_is_not_begun_twice(refused, xycodec, corpus, trained):
    before = (trained / "metrics.jsonl").read_bytes(), (trained / "recipe.yaml").read_bytes()
    output = f"output={trained}"
    assert "holds a run already: pass --resume" in refused("train", recipe(corpus), output)
    # What does not fit leaves the run as it was.
    other = smallest_config(vocos={"dim": 16, "intermediate_dim": 32, "layers": 1}).model_dump(mode="json")
    line = refused("train", recipe(corpus, model=other), output, "--resume")
    assert f"{trained}/checkpoints/step_00000002.pt: of another architecture, codec.vocos" in line
    assert "asks for" in line
    line = refused("train", recipe(corpus, freeze_semantic=True), output, "--resume", "steps=3")
    assert "trains codec.semantic_encoder" in line
    post = write_recipe(Path("post.yaml"), post_settings(corpus, trained, trained))
    assert "a pretrain run cannot go on as posttrain" in refused("train", post, "--resume")
    assert before == ((trained / "metrics.jsonl").read_bytes(), (trained / "recipe.yaml").read_bytes())


def test_clips_without_text_train_reconstruction_only(xycodec, refused, corpus):
    silent = write_corpus(Path("silent"), clips=4, text=None)
    lm = {"source": str(save_lm(Path("lm"))), "max_tokens": 20}
    lm["adapter"] = {"d_model": 16, "layers": 1, "heads": 2, "ffn_dim": 24}
    heard = {"lm": lm, "loss": {"asr": 20}}
    line = refused("train", recipe(corpus, data={"train": [str(silent)]}, **heard))
    assert "no clip has a text" in line
    assert "loss.asr=0" in line
    code, _, err = xycodec("train", recipe(corpus, data={"train": [str(silent), str(corpus)]}, **heard))
    assert code == 0
    assert "without text: 4 clips, which train reconstruction only" in err.splitlines()
    assert all(line["asr"] >= 0 for line in lines_of("run"))


def test_clips_left_out_are_said(xycodec, corpus):
    write_corpus(Path("low"), clips=2, rate=8000)
    code, _, err = xycodec("train", recipe(corpus, data={"train": [str(corpus), "low/cuts.jsonl"]}))
    assert code == 0
    assert "left out: 2 clips recorded below 16000 Hz, the first is 0.wav" in err.splitlines()


def test_files_that_vanish(xycodec, tmp_path):
    """Some are listed and counted; if all are gone the run ends."""
    cuts = write_corpus(tmp_path / "going", clips=6)
    for name in ("1.wav", "3.wav"):
        (tmp_path / "going" / name).unlink()
    code, _, err = xycodec("train", recipe(cuts, steps=3, log_every=3))
    assert code == 0
    listed = {line["id"]: line for line in lines_of("run", None, "skipped.jsonl")}
    assert listed.keys() == {"1.wav", "3.wav"}
    assert all("cannot be read (No such file or directory)" in line["reason"] for line in listed.values())
    assert [line["skipped"] for line in lines_of("run", "window")] == [2]

    for path in (tmp_path / "going").glob("*.wav"):
        path.unlink()
    code, _, err = xycodec("train", recipe(cuts, output="gone"))
    assert code == 1
    *said, line = err.splitlines()
    assert line == "error: step 2: no clip of the last 2 steps could be read, gone/skipped.jsonl says why"
    assert not any(text.startswith("error") for text in said)
    assert not Path("gone/checkpoints").exists()


@pytest.mark.parametrize(
    "changes", [{"optimizer": {"lr": 1e30, "warmup_steps": 0}}, {"optimizer": {"lr": 3e38, "warmup_steps": 0}}]
)
def test_a_run_that_explodes(xycodec, corpus, changes):
    xycodec("train", recipe(corpus, checkpoint={"every": 1}), "-q", "steps=2")
    saved = names("run")
    arguments = [f"optimizer.lr={changes['optimizer']['lr']}", "checkpoint.every=1000", "steps=50"]
    code, out, err = xycodec("train", "recipe.yaml", *arguments, "--resume", "-q")
    assert (code, out) == (1, "")
    (line,) = err.splitlines()
    assert "not finite" in line
    assert "the run can resume from run/checkpoints/step_00000002.pt" in line
    assert names("run") == saved
    (named,) = Path("run").glob("not_finite_step*_rank0.json")
    report = json.loads(named.read_text(), parse_constant=pytest.fail)
    assert set(report["clips"]) <= {f"{number}.wav" for number in range(10)}
    assert len(report["clips"]) == 2
    assert any(value in ("nan", "inf") for value in report["values"].values())
    load_codec("run")
    assert xycodec("train", "recipe.yaml", "steps=4", "--resume", "-q") == (0, "", "")


def test_weights_that_are_not_finite_are_not_saved(xycodec, corpus):
    """At the step that breaks them, the losses are still those of the weights before."""
    xycodec("train", recipe(corpus), "-q")
    saved = names("run")
    code, out, err = xycodec(
        "train", "recipe.yaml", "steps=3", "optimizer={lr: 3.4e+38, weight_decay: 1.0e+3}", "--resume", "-q"
    )
    assert (code, out) == (1, "")
    (line,) = err.splitlines()
    assert "step 3: " in line
    assert names("run") == saved


def test_wrong_usage(xycodec):
    for arguments in (["train"], ["train", "--nonsense"], ["train", "a.yaml", "--threads", "0"], ["data", "import"]):
        code, out, _ = xycodec(*arguments)
        assert (code, out) == (2, "")


# data import


def test_import(xycodec, refused):
    sf.write("good.wav", [0.1] * 32_000, 16_000)
    rows = [{"audio": "good.wav", "duration": 2.0, "text": "hello"}, {"audio": "gone.wav", "duration": 1.0}]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, err = xycodec("data", "import", "rows.jsonl", "cuts.jsonl.gz")
    assert (code, out) == (0, "cuts.jsonl.gz: 1 clips, 0.00 h, 1 left out\n")
    (line,) = err.splitlines()
    assert line.startswith("left out: gone.wav: ")
    assert xycodec("data", "import", "rows.jsonl", "cuts.jsonl", "-q")[1] == ""

    assert "folder/rows.jsonl:1: cannot be read" in refused("data", "import", "folder/rows.jsonl", "c.jsonl")
    assert "c.txt: cuts are written to .jsonl or .jsonl.gz" in refused("data", "import", "rows.jsonl", "c.txt")
    Path("bad.jsonl").write_text('{"audio": "good.wav"}\n')
    assert "bad.jsonl:1: no duration" in refused("data", "import", "bad.jsonl", "c.jsonl")
    assert not Path("c.jsonl").exists()
