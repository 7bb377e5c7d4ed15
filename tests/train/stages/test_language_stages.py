"""Runs of language models: exactly resumed, equal on two processes, heard in validation; their recipes."""

import numpy as np
import pytest
import torch
from tests.lm.speaking import FRAMES, GREEDY, TEXTS, TINY, recipe, write_speech
from tests.tokenize.corpora import save_model
from tests.training import NoLooking, two_processes
from tests.training_runs import lines_of

import xycodec.lm
from xycodec.checkpoints.load import load_codec
from xycodec.checkpoints.training import checkpoints
from xycodec.cli.app import app
from xycodec.data.batch import Position
from xycodec.data.codes import StoreCatalogue, collate_codes
from xycodec.data.config import DataConfig
from xycodec.data.corpus import open_stores
from xycodec.data.sampling import Sampler
from xycodec.errors import CheckpointError, ConfigError
from xycodec.io.tokens.vectors import write_vectors
from xycodec.lm.say import Voice
from xycodec.models.base import codes_fingerprint
from xycodec.train.checkpoint import load_state
from xycodec.train.engine import Engine
from xycodec.train.plan import plan_run
from xycodec.train.recipe_file import load_recipe
from xycodec.train.run import open_stage, train

SCALED = {"kind": "scaled_adam", "lr": 0.02, "schedule": "eden", "clip": None, "weight_decay": 0}
STAGES = {
    "delay": {
        "model": {"transformer": {**TINY, "dropout": 0.1}, "aligned": True, "attention": "prefix"},
        "optimizer": {"schedule": "inverse_sqrt"},
    },
    "valle_ar": {"model": {"transformer": {**TINY, "dropout": 0.1}}, "optimizer": SCALED},
    "valle_nar": {"model": {"transformer": {**TINY, "dropout": 0.1}, "prefix_mode": 4}, "optimizer": SCALED},
    "gpt": {
        "model": {"transformer": {**TINY, "dropout": 0.1}, "books": 2, "condition_dim": 4, "context": 40},
        "optimizer": {"schedule": "inverse_sqrt"},
    },
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    made = write_speech(tmp_path_factory.mktemp("speech") / "store")
    write_vectors(made, np.eye(3, 4), {})
    return made


def weights_of(run):
    return load_state(checkpoints(run)[-1]).networks["model"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_is_the_same_run(stage, store, tmp_path):
    def run(name, steps, resume=False):
        settings = recipe(stage, tmp_path / name, store, **STAGES[stage], steps=steps, data={"batch_clips": 2})
        train(settings, resume=resume, quiet=True)

    run("whole", 5)
    run("parts", 3)
    run("parts", 5, resume=True)  # no schedule here asks for the last step
    one, other = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    losses = [[line["loss"] for line in lines_of(tmp_path / name)] for name in ("whole", "parts")]
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 5


def batch_of(store, numbers):
    config = DataConfig(train=(str(store.folder),))
    catalogue = StoreCatalogue(store.folder, companions=True)
    clips = [catalogue.clip(number, config, seed=0, epoch=0) for number in numbers]
    return collate_codes(clips, (), Position(0, 1), 3)


def learn(rank, stage, folder, kind, shares):
    from xycodec.io.tokens.read import TokenStore

    store = TokenStore(folder)
    changes = {key: value for key, value in STAGES[stage].items() if key != "optimizer"}
    changes["model"] = changes["model"] | {"transformer": TINY}
    settings = recipe(stage, "unused", store, **changes, engine={"kind": kind}, optimizer={"eps": 0.1})
    engine = Engine(settings.engine)
    opened = open_stage(settings, engine)
    reports = [opened.step([batch_of(store, shares[rank])], step) for step in range(2)]
    from xycodec.train.checkpoint import network_state

    weights = {key: value.clone() for key, value in network_state(opened.model, lambda key: True).items()}
    return [float(report.norms["grad_norm"]) for report in reports], weights


class Learn:
    """`learn`, to be sent to other processes."""

    def __init__(self, *facts):
        self.facts = facts

    def __call__(self, rank):
        return learn(rank, *self.facts)


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_learn_what_one_does(kind, store, tmp_path):
    """Of the delay-pattern model; prompts and conditions of the others are drawn by batch."""
    alone = learn(0, "delay", store.folder, "single", [[0, 1, 2]])
    both = two_processes(Learn("delay", store.folder, kind, [[0, 1], [2]]), tmp_path)
    assert both[0][0] == pytest.approx(alone[0], rel=1e-4)
    for key, value in alone[1].items():
        # Three times what sums of gradients in another order came to.
        torch.testing.assert_close(both[0][1][key], value, rtol=0, atol=2e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_a_process_without_clips_takes_part_and_a_device_is_not_waited_for(stage, store):
    settings = recipe(stage, "unused", store, **STAGES[stage])
    opened = open_stage(settings, Engine(settings.engine))
    batch = batch_of(store, [0, 1])
    task = opened.task(settings, opened.config, batch, 0)
    with NoLooking(of_masks=0):
        means = opened.model(task)
    for name, count in task.counts().items():
        assert float(count) == float(means[name].count)
    nothing = opened.silence(settings, 16_000)
    empty = opened.model(opened.task(settings, opened.config, nothing, 0))
    assert all(float(mean.detach().total) == float(mean.count) == 0 for mean in empty.values())
    sum(mean.total.sum() for mean in empty.values()).backward()
    lacking = [name for name, one in opened.plain.named_parameters() if one.requires_grad and one.grad is None]
    assert lacking == []


@pytest.mark.parametrize("name", ["valle_ar", "valle_nar", "delay_tts", "music", "sound", "say"])
def test_recipes_can_be_read(name):
    made = load_recipe(f"lm/{name}.yaml")
    if name != "delay_tts":
        own = made.model.transformer
        assert (own.d_model, own.layers) == {"v": (1024, 12), "m": (1024, 24), "so": (1024, 24)}.get(
            "so" if name == "sound" else name[0], (256, 6)
        )


@pytest.mark.parametrize("name", ["debug", "debug/valle_ar", "debug/valle_nar", "debug/music", "debug/sound"])
def test_tiny_forms_are_planned(name, store):
    changes = (f"data.train=[{store.folder}]", "engine.device=cpu")
    changes += ("model.condition_dim=4",) if name.endswith("sound") else ()
    plan = plan_run(load_recipe(f"lm/{name}.yaml", changes))
    assert plan.steps == 200
    assert plan.memory_gib["activations"] > 0
    assert sum(part.parameters for part in plan.parts) > 10_000


# ---- data ----------------------------------------------------------------------------------------


def test_batches_are_bounded_by_frames_and_text(store):
    places = [frames + len(text) for frames, text in zip(FRAMES, TEXTS, strict=True)]
    corpus = open_stores(recipe("delay", "unused", store).data.train)
    assert corpus.places.tolist() == places

    def sizes(limit):
        config = DataConfig(
            train=(str(store.folder),), batch_clips=9, batch_places=limit, buckets=0, min_seconds=0, workers=0
        )
        sampler = Sampler(corpus, config, output_sample_rate=16_000, seed=0, rank=0, world_size=1)
        drawn = []
        for draws, position in sampler.steps(Position(0, 0)):
            if position.epoch:
                return drawn
            drawn.append(len(draws))
        return drawn

    assert sizes(max(places)) == [1, 1, 1]
    assert sizes(2 * max(places)) == [2, 1]
    with pytest.raises(ConfigError, match="raise it"):
        sizes(max(places) - 1)


def test_a_part_of_a_clip_is_drawn_and_has_no_text(store):
    config = DataConfig(train=(str(store.folder),), clip_seconds=0.05, crop="random")
    catalogue = StoreCatalogue(store.folder)
    whole = store[1].codes.astype(np.int64)
    starts = set()
    for epoch in range(12):
        clip = catalogue.clip(1, config, seed=0, epoch=epoch)
        assert (clip.codes.shape, clip.text, clip.samples) == ((3, 5), None, 800)
        places = [s for s in range(FRAMES[1] - 4) if np.array_equal(whole[:, s : s + 5], clip.codes)]
        assert len(places) == 1
        starts.update(places)
    assert len(starts) > 3


def test_stores_of_other_codecs_are_refused(store, tmp_path):
    other = write_speech(tmp_path / "other", weights="aa")
    wrong = recipe("delay", tmp_path / "run", store, data={"train": [str(store.folder), str(other.folder)]})
    with pytest.raises(ConfigError, match="hold other codes"):
        train(wrong)
    with pytest.raises(ConfigError, match="not a store of tokens"):
        train(recipe("delay", tmp_path / "run", store, data={"train": [str(tmp_path)]}))


# ---- with a codec --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def heard(tmp_path_factory):
    """A run with a codec of its own, which has been listened to."""
    folder = tmp_path_factory.mktemp("heard")
    codec = load_codec(save_model(folder / "codec"), device="cpu")
    about = {"model": codec.model_id, "weights": codes_fingerprint(codec), "n_q": codec.n_q}
    about |= {"codebook_size": codec.codebook_size, "hop_length": codec.hop_length}
    speech = write_speech(folder / "store", **about)
    model = {"transformer": TINY, "sampling": GREEDY, "sampling_others": GREEDY}
    settings = recipe(
        "delay", folder / "run", speech, model=model, codec=str(folder / "codec"), steps=60,
        data={"valid": [str(speech.folder)]}, validation={"every": 60, "listen": 2},
    )  # fmt: skip
    train(settings, quiet=True)
    return folder


def test_a_validation_is_heard(heard):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(heard / "run" / "tensorboard"))
    board.Reload()
    names = board.Tags()["audio"]
    assert len(names) == 4
    assert {name.rpartition("/")[2] for name in names} == {"original", "decoded"}
    valid = lines_of(heard / "run", "valid")[-1]
    assert valid["loss"] > 0


def test_a_text_is_said(heard, capfd):
    out = heard / "out.wav"
    arguments = ["say", "A bird\nUp and down", "-o", str(out), "--model", str(heard / "run"), "--device", "cpu"]
    app([*arguments, "--codec", str(heard / "codec")], standalone_mode=False)
    assert out.stat().st_size > 44
    assert " s\n" in capfd.readouterr().out
    with pytest.raises(CheckpointError, match=r"runs/train_say\.sh"):
        app(["say", "a bird", "-o", str(out)], standalone_mode=False)


def test_another_codec_is_refused(heard, tmp_path):
    with pytest.raises(CheckpointError, match="name the codec it was trained with"):
        Voice(heard / "run", "xy-random", device="cpu")
    with pytest.raises(CheckpointError, match="holds a language model and no codec"):
        load_codec(heard / "run")
    with pytest.raises(CheckpointError, match="holds no language model"):
        xycodec.lm.load(tmp_path)
