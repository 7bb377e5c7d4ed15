"""`xycodec train --dry-run`: right sizes, and nothing is allocated, computed or written for them."""

import itertools
import os
import sys
from multiprocessing.util import Finalize
from resource import RUSAGE_SELF, getrusage

import pytest
import torch
from tests.reference import PUBLISHED_PARAMETERS
from tests.training import save_lm
from tests.training_runs import post_settings, settings, smallest_config, write_corpus, write_recipe, xycodec

from xycodec.checkpoints.build import random_codec
from xycodec.checkpoints.save import save_codec
from xycodec.cli import app as cli
from xycodec.data.batch import BEGINNING
from xycodec.data.corpus import open_corpus
from xycodec.data.stream import BatchStream
from xycodec.train.engine import Engine
from xycodec.train.plan import _longest_batch, plan_run
from xycodec.train.recipe_file import BUNDLED, load_recipe
from xycodec.train.run import open_stage

# docs/models/xy_tokenizer.md, Discriminators
FULL_DISCRIMINATORS = {"periods": 41_105_770, "scales": 29_618_821, "spectrograms": 472_330}
CONFIG_FOLDER = BUNDLED / "xy_tokenizer"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), clips=11)


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return save_lm(tmp_path_factory.mktemp("lm") / "lm", positions=1000)


@pytest.fixture
def read(tmp_path, corpus):
    """A recipe of `settings` (or, with weights, of `post_settings`)."""

    def make(weights=None, **changes):
        output = tmp_path / "run"
        mapping = post_settings(corpus, weights, output, **changes) if weights else settings(corpus, output, **changes)
        return load_recipe(write_recipe(tmp_path / "recipe.yaml", mapping))

    return make


def tell_peak():
    """At its end the process says how much memory it held at most, in KiB, all of torch included."""
    Finalize(None, lambda: os.write(2, f"{getrusage(RUSAGE_SELF).ru_maxrss}".encode()), exitpriority=1)


@pytest.mark.long
def test_the_paper_s_pretraining_offline(tmp_path, corpus, lm):
    recipe = CONFIG_FOLDER / "pretrain.yaml"
    overrides = [
        "towers=null",
        f"lm.source={lm}",
        f"data.train=[{corpus}]",
        "data.valid=[]",
        "data.buckets=0",
        f"output={tmp_path}/run",
    ]
    ended = xycodec(tmp_path, "train", recipe, *overrides, "--dry-run", prepare=tell_peak)
    tiny = write_recipe(tmp_path / "tiny.yaml", settings(corpus, tmp_path / "tiny"))
    least = xycodec(tmp_path, "train", tiny, "--dry-run", prepare=tell_peak)
    assert (ended.code, least.code) == (0, 0), (ended, least)
    rows = dict(row for line in ended.out.splitlines() if (row := cells(line)))
    for name, count in PUBLISHED_PARAMETERS.items():
        assert rows[name] == (f"{count:,}", "frozen" if name == "semantic_encoder" else "trained")
    assert rows["semantic_lm.lm"][1] == "frozen"
    assert rows["semantic_lm.adapter"][1] == "trained"
    assert "in all" in rows
    assert "processes: 1; clips a step: at most 4" in ended.out
    assert "800,000 steps, an epoch is 3" in ended.out
    assert "data: 11 clips" in ended.out
    # No more memory than a tiny model takes: the weights alone would be 2 GiB.
    assert 1024 * (int(ended.err) - int(least.err)) < 4 * sum(PUBLISHED_PARAMETERS.values()) / 5
    assert not (tmp_path / "run").exists()


def cells(line):
    parts = [part.strip() for part in line.replace("┃", "│").split("│")]
    return (parts[1], tuple(parts[2:4])) if len(parts) == 5 else None


def test_the_paper_s_sizes(read, lm):
    """Plans of both stages; weights of post-training are read for their configuration only."""
    recipe = read(model={"preset": "xy-tokenizer"}, freeze_semantic=True, lm={"source": str(lm)}, loss={"asr": 20})
    plan = plan_run(recipe)
    counts = {part.name: part.parameters for part in plan.parts}
    assert {name: counts[name] for name in PUBLISHED_PARAMETERS} == PUBLISHED_PARAMETERS
    assert sum(PUBLISHED_PARAMETERS.values()) == 519_621_074
    trained = {part.name: part.trainable for part in plan.parts}
    assert (trained["semantic_encoder"], trained["semantic_lm.lm"]) == (0, 0)
    assert trained["acoustic_encoder"] == PUBLISHED_PARAMETERS["acoustic_encoder"]
    assert plan.memory_gib["weights"] == pytest.approx(4 * sum(counts.values()) / 2**30)
    assert plan.memory_gib["gradients"] == pytest.approx(4 * sum(trained.values()) / 2**30)
    assert plan.memory_gib["optimizer"] == 2 * plan.memory_gib["gradients"]
    assert plan.memory_gib["in all"] == pytest.approx(sum(plan.memory_gib.values()) / 2)


def test_posttraining(read, tmp_path):
    weights = save_codec(random_codec(smallest_config()), tmp_path / "codec")
    whole = {"period": True, "scale": True, "spectrogram": True, "channels": 32}
    plan = plan_run(read(weights, discriminators=whole))
    parts = {part.name: part for part in plan.parts}
    assert {name: parts[name].trainable for name in FULL_DISCRIMINATORS} == FULL_DISCRIMINATORS
    frozen = {name for name, part in parts.items() if not part.trainable}
    assert frozen == {
        "semantic_encoder", "semantic_encoder_adapter", "acoustic_encoder", "pre_rvq_adapter", "downsample",
        "quantizer", "post_rvq_adapter",
    }  # fmt: skip
    assert (plan.stage, plan.clips_per_step) == ("posttrain", 2)
    assert not (tmp_path / "run").exists()


def kept_by(recipe, batch):
    """Bytes that a real step holds for its backward passes, counted storage by storage."""
    stage = open_stage(recipe, Engine(recipe.engine))
    own = {p.untyped_storage().data_ptr() for network in stage.networks.values() for p in network.parameters()}
    kept, alive = {}, []

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        stage.step([batch], 0)
    return sum(kept.values())


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_of_a_step(read, precision, checkpointing):
    engine = {"device": "cpu", "precision": precision, "checkpoint_activations": checkpointing}
    recipe = read(
        engine=engine, model=smallest_config(vocos={"dim": 64, "intermediate_dim": 128, "layers": 3}).model_dump()
    )
    expected = kept_by(recipe, _longest_batch(recipe, 16_000))
    assert plan_run(recipe).memory_gib["activations"] * 2**30 == pytest.approx(expected, rel=0.1)


def test_activations_with_a_language_model(read, lm):
    recipe = read(lm={"source": str(lm), "max_tokens": 99}, loss={"asr": 20})
    batch = _longest_batch(recipe, 16_000)
    batch = type(batch)(**{**vars(batch), "texts": ("a " * 200,) * 2})
    expected = kept_by(recipe, batch)
    assert plan_run(recipe).memory_gib["activations"] * 2**30 == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(
    "changes", [{}, {"batch_clips": 3}, {"batch_seconds": 1.7, "batch_clips": 9}, {"min_seconds": 0.75}]
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_of_an_epoch_are_those_of_the_stream(read, changes, accumulate):
    recipe = read(data=changes, engine={"device": "cpu", "accumulate": accumulate})
    stream = BatchStream(
        open_corpus(recipe.data.train), recipe.data, output_sample_rate=16_000, seed=0, rank=0, world_size=1
    )
    batches = len(list(itertools.takewhile(lambda batch: batch.position.epoch == 0, stream.batches(BEGINNING))))
    assert plan_run(recipe).steps_per_epoch == -(-batches // accumulate)


def test_clips_that_fit_by_seconds(read):
    for seconds, fitting in ((1.5, 1), (2.0, 2), (99.0, 8)):
        bounded = plan_run(read(data={"batch_clips": 8, "batch_seconds": seconds}))
        assert bounded.memory_gib == plan_run(read(data={"batch_clips": fitting})).memory_gib
        assert bounded.clips_per_step == 8


def test_a_mix_has_no_epochs(read, corpus):
    plan = plan_run(read(data={"train": [{"path": str(corpus), "weight": 1}]}))
    assert plan.steps_per_epoch is None
    assert plan.remarks == ("data: 11 clips, 0.00 h, 11 with text",)


def test_bad_input_is_found(read, tmp_path, monkeypatch, capsys):
    read(data={"valid": ["missing.jsonl"]})
    monkeypatch.setattr(sys, "argv", ["xycodec", "train", str(tmp_path / "recipe.yaml"), "--dry-run"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (1, "")
    assert "missing.jsonl" in err
    assert len(err.splitlines()) == 1
