import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tests.training_runs import settings, smallest_config, write_corpus

from xycodec.checkpoints.build import random_codec
from xycodec.checkpoints.load import load_codec
from xycodec.checkpoints.save import save_codec
from xycodec.data.sources import ManifestCuts
from xycodec.train.recipe_file import load_recipe
from xycodec.train.run import train

SCRIPT = Path(__file__).parents[2] / "runs" / "gpu_ten_minutes.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("gpu_ten_minutes", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def home(tmp_path):
    """A corpus, a recipe of stage one, and a codec to start from."""
    codec = random_codec(smallest_config())
    save_codec(codec, tmp_path / "codec")
    cuts = write_corpus(tmp_path / "speech")
    recipe = settings(cuts, tmp_path / "unused", model=codec.config.model_dump(mode="json"), ema=0.9)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def prepare(script, home, *more):
    paths = [str(home / "recipe.yaml"), str(home / "bundle"), "--weights", str(home / "codec")]
    args = script.parser().parse_args(["prepare", *paths, "--dev-clips", "4", "--batch-seconds", "4", *more])
    script.prepare(args)
    return sorted((home / "bundle").iterdir())


def train_there(home, loads):
    """Run as on another machine: with the code that the bundle brings, and nothing else of ours."""
    command = ["bash", str(loads[-1] / "gpu_ten_minutes.sh"), "train", *map(str, loads), "--out", str(home / "result")]
    place = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"PYTHON": sys.executable}
    place["OMP_NUM_THREADS"] = "1"  # waiting threads cost more than they give at this size
    quick = ["--steps", "6", "--minutes", "5", "--set", "optimizer.lr=0.003", "--set", "optimizer.warmup_steps=0"]
    done = subprocess.run([*command, *quick], cwd=home, env=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
def test_the_weights_come_back_and_are_a_run(script, home, capsys):
    loads = prepare(script, home, "--loads", "2", "--limit-mib", "0.7")
    assert [load.name for load in loads] == ["load-1", "load-2"]
    assert all(sum(f.stat().st_size for f in load.rglob("*") if f.is_file()) <= 0.7 * 2**20 for load in loads)
    assert "speech:" in capsys.readouterr().out
    assert "before: " in train_there(home, loads)
    report = json.loads((home / "result" / "result.json").read_text())
    assert report["steps"] == 6
    assert max(file.stat().st_size for file in (home / "result").iterdir()) <= script.PART_BYTES

    merge = ["merge", str(home / "result"), str(home / "merged"), "--anyway"]
    script.merge(script.parser().parse_args(merge))
    _, start = script.training_state(home / "codec")
    _, merged = script.training_state(home / "merged")
    sent = script.read_checkpoint(home / "result")["networks"]["model"]
    assert 0 < len(sent) < len(start)
    assert "codec.quantizer.embed_avg" not in sent
    for key, value in merged.items():
        if key in sent:
            torch.testing.assert_close(value, sent[key], rtol=0, atol=0)
            assert not torch.equal(value, start[key])
        elif not key.endswith("embed_avg"):
            # What training leaves alone never went through half precision.
            assert torch.equal(value, start[key]), key

    # It is what recipes and commands take.
    assert load_codec(home / "merged").model_id == "tiny"
    recipe = settings(home / "speech" / "cuts.jsonl", home / "next", weights=str(home / "merged"), steps=2)
    (home / "next.yaml").write_text(yaml.safe_dump(recipe))
    assert train(load_recipe(home / "next.yaml"), quiet=True).finished


def test_the_start_survives_in_half_precision(script, home, monkeypatch):
    (load,) = prepare(script, home)
    _, here = script.training_state(home / "codec")
    monkeypatch.chdir(load)
    script.whole_start()
    _, there = script.training_state(load / "start")
    assert here.keys() == there.keys()
    for key, value in here.items():
        exact = key.endswith(script.EXACT) or not value.is_floating_point()
        torch.testing.assert_close(there[key], value, rtol=0 if exact else 1e-3, atol=0 if exact else 1e-4)


def test_the_bundle_names_its_files_by_where_they_lie_in_it(script, home, monkeypatch):
    (load,) = prepare(script, home)
    monkeypatch.chdir(load)
    recipe = load_recipe("recipe.yaml")
    for source in (*recipe.data.train, *recipe.data.valid):
        cuts = list(ManifestCuts(Path(source.path)))
        assert cuts
        assert all(Path(cut.recording.sources[0].source).is_file() for cut in cuts)
        assert not any(Path(cut.recording.sources[0].source).is_absolute() for cut in cuts)


def test_a_bundle_that_is_too_large_is_refused_in_one_line(script, home):
    with pytest.raises(script.ConfigError, match=r"the bundle takes .* may take 0\.01 MB in 1 loads") as error:
        prepare(script, home, "--limit-mib", "0.01")
    assert "\n" not in str(error.value)
    assert not (home / "bundle").exists()


def report_of(folder, script, fingerprint, before, after):
    _, state = script.training_state(folder / "codec")
    about = {"format": 1, "stage": "pretrain", "step": 3, "codec": smallest_config().model_dump(mode="json")}
    key = "codec.vocos.head.out.weight" if "codec.vocos.head.out.weight" in state else sorted(state)[0]
    script.save_weights(about, {"model": {key: state[key]}}, folder / "result")
    report = {"weights": str(folder / "codec"), "steps": 3, "before": {"loss": before}, "after": {"loss": after}}
    report["fingerprint"] = script.fingerprint_of(state) + fingerprint
    (folder / "result" / "result.json").write_text(json.dumps(report))


@pytest.mark.parametrize(
    ("wrong", "after", "said"), [(0, 2.5, "no better, .* is kept"), (1, 1.0, "not the weights that .* began from")]
)
def test_what_is_no_better_or_of_other_weights_is_not_merged(script, home, wrong, after, said):
    report_of(home, script, wrong, 2.0, after)
    with pytest.raises(script.CheckpointError, match=said):
        script.merge(script.parser().parse_args(["merge", str(home / "result"), str(home / "merged")]))
    assert not (home / "merged").exists()
