"""HuBERT's training: what is hidden, what is guessed, that it learns, and that its result serves."""

import math

import numpy as np
import pytest
import soundfile as sf
import torch
import transformers
from lhotse import CutSet
from tests.published_xcodec import tiny_config
from tests.training import RATE, recipe, seeded, two_processes
from tests.training_runs import assert_same_lines, lines_of, settings, write_corpus, write_recipe, xycodec
from torch.nn import functional as F

from xycodec.checkpoints.load import load_codec
from xycodec.checkpoints.training import checkpoints, read_checkpoint
from xycodec.data.batch import Position, collate
from xycodec.data.clip import Clip
from xycodec.data.config import SourceConfig
from xycodec.data.manifest import import_manifest
from xycodec.data.sources import open_source
from xycodec.data.targets import NO_LABEL, with_targets
from xycodec.errors import CheckpointError, ConfigError
from xycodec.models.xcodec.config import SelfSupervisedConfig
from xycodec.train.checkpoint import network_state
from xycodec.train.config import ValidationConfig
from xycodec.train.engine import Engine
from xycodec.train.export import export_transformers, export_weights
from xycodec.train.init.weights import start_towers
from xycodec.train.plan import plan_run
from xycodec.train.recipe_file import BUNDLED, load_recipe
from xycodec.train.run import train
from xycodec.train.stages.hubert import (
    HubertOptimizerConfig,
    HubertStage,
    LabelHead,
    SpanMaskingConfig,
    Task,
    draw_spans,
    frames_within,
    measures,
)
from xycodec.train.stages.xcodec import build as build_xcodec
from xycodec.train.validate import validate

CONFIG = BUNDLED / "xcodec" / "hubert_general.yaml"
SIZES = {"d_model": 16, "layers": 2, "heads": 2, "ffn_dim": 24, "conv_dim": 8, "position_kernel": 8,
         "position_groups": 2}  # fmt: skip
LABELS = 12
CERTAIN = {"dropout": 0.0, "layer_drop": 0.0}
SECONDS = 0.8


def recipe_of(**changes):
    own = {
        "model": SIZES,
        "codebook_size": LABELS,
        "data": {"train": ["unused"], "clip_seconds": SECONDS},
        **CERTAIN,
        "optimizer": {"lr": 1e-3, "warmup_steps": 1},
    }
    return recipe("hubert", **{**own, **changes})


def stage_of(**changes):
    made = recipe_of(**changes)
    return HubertStage(made, Engine(made.engine))


def clip(number, seconds=SECONDS, layers=1):
    """Noise with labels at random, of which one frame has none."""
    generator = np.random.default_rng(number)
    samples = round(seconds * RATE)
    audio = torch.tensor(0.2 * generator.standard_normal(samples), dtype=torch.float32)
    labels = torch.tensor(generator.integers(0, LABELS, (math.ceil((samples - 200) / 320), layers)))
    labels[7:8] = NO_LABEL
    return Clip(f"clip {number}", audio, audio, None, labels)


def batch(*clips):
    return collate(clips, (), Position(0, 1), output_sample_rate=RATE)


CLIPS = (clip(0), clip(1, 0.5), clip(2), clip(3, 0.61))


# ---- what is hidden --------------------------------------------------------------------------------


def test_spans_are_as_long_and_as_many_as_they_should_be():
    config = SpanMaskingConfig()
    generator = np.random.default_rng(0)
    shares, ends = [], set()
    for _ in range(400):
        hidden = draw_spans(config, 500, generator)
        edges = np.flatnonzero(np.diff(np.pad(hidden.numpy().astype(int), 1)))
        lengths = edges[1::2] - edges[::2]
        assert (lengths >= 10).all()
        shares.append(float(hidden.float().mean()))
        ends |= {int(edges[0]), int(edges[-1])}
    # 40 spans of 10 begin anywhere in 491 places: a frame is left by all of them with a chance of (1 - 10/491)^40.
    # The generator decides the mean of 400, which is 0.007 from it on every machine.
    assert np.mean(shares) == pytest.approx(1 - (1 - 10 / 491) ** 40, abs=0.01)
    assert (min(ends), max(ends)) == (0, 500)


@pytest.mark.parametrize(("frames", "begun"), [(10, 1), (9, 0), (0, 0), (12, 3), (40, 4)])
def test_short_clips_and_large_shares(frames, begun):
    config = SpanMaskingConfig(share=0.25 if frames == 12 else 1 / 1000 if frames < 12 else 0.1, frames=10)
    counted = {int(draw_spans(config, frames, np.random.default_rng(seed)).sum()) for seed in range(30)}
    assert max(counted) <= min(frames, 10 * begun)
    assert min(counted) >= min(10 * begun, 10)


def test_what_is_hidden_depends_on_seed_step_and_clip_alone():
    stage = stage_of()
    both, alone = stage.task(batch(CLIPS[1], CLIPS[0]), 3), stage.task(batch(CLIPS[0]), 3)
    assert torch.equal(both.hidden[1], alone.hidden[0])
    assert not torch.equal(stage.task(batch(CLIPS[0]), 4).hidden, alone.hidden)
    assert not torch.equal(stage_of(seed=1).task(batch(CLIPS[0]), 3).hidden, alone.hidden)
    count = frames_within(8000)
    assert (both.hidden[0].any(), both.hidden[0, count:].any()) == (True, False)


def test_what_is_guessed():
    stage = stage_of()
    task = stage.task(batch(*CLIPS), 0)
    for row, one in enumerate(CLIPS):
        frames = (len(one.audio) - 400) // 320 + 1
        for place in range(stage.plain.frames):
            within = place < frames
            known = within and bool(one.labels[place] != NO_LABEL)
            hidden = bool(task.hidden[row, place])
            assert bool(task.inside[row, place]) == within
            assert (bool(task.masked[row, place]), bool(task.unmasked[row, place])) == (
                known and hidden,
                known and not hidden,
            )
            if known:
                assert task.labels[row, place] == one.labels[place]


# ---- the loss --------------------------------------------------------------------------------------


def test_the_measures_are_those_of_a_slow_reference():
    logits, features = 3 * torch.randn(2, 5, 2, 4), torch.randn(2, 5, 3)
    masked = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 1, 0, 0]], dtype=torch.bool)
    unmasked = torch.tensor([[0, 1, 0, 0, 0], [1, 1, 0, 0, 0]], dtype=torch.bool)
    inside = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]], dtype=torch.bool)
    labels = torch.randint(4, (2, 5, 2))
    found = measures(logits, features, Task(labels, masked, masked, unmasked, inside))
    for name, chosen in (("masked", masked), ("unmasked", unmasked)):
        losses, right = [], []
        for b, place in chosen.nonzero().tolist():
            for layer in range(2):
                odds = np.exp(logits[b, place, layer].double().numpy())
                label = int(labels[b, place, layer])
                losses.append(-math.log(odds[label] / odds.sum()))
                right.append(odds.argmax() == label)
        assert float(found[name].value()) == pytest.approx(np.mean(losses), rel=1e-6)
        assert float(found[f"{name}_accuracy"].value()) == pytest.approx(np.mean(right))
    squares = [float((features[b, place] ** 2).mean()) for b, place in inside.nonzero().tolist()]
    assert float(found["features"].value()) == pytest.approx(np.mean(squares), rel=1e-6)


def test_the_head_compares_by_cosine():
    head = LabelHead(6, recipe_of(codebooks=2, codebook_size=3, label_dim=4, temperature=0.25))
    x = torch.randn(1, 2, 6)
    logits = head(x)
    assert logits.shape == (1, 2, 2, 3)
    for place in range(2):
        projected = head.proj(x[0, place])
        for layer in range(2):
            part = projected[4 * layer : 4 * layer + 4]
            for label in range(3):
                cosine = F.cosine_similarity(part, head.labels[layer, label], dim=0)
                torch.testing.assert_close(logits[0, place, layer, label], cosine / 0.25)


# ---- the networks ----------------------------------------------------------------------------------


def test_hidden_states_are_those_of_transformers():
    """The model's own forward pass, which hides and attends for itself."""
    stage = stage_of()
    hubert = stage.plain.hubert.eval()
    given = batch(*CLIPS)
    task = stage.task(given, 0)
    audio = F.pad(given.audio, (0, stage.plain.samples - given.audio.shape[1]))
    attended = torch.arange(audio.shape[1]) < torch.tensor(given.lengths)[:, None]
    with torch.no_grad():
        logits, features = stage.plain.eval()(given, task.hidden)
        theirs = hubert(audio, attention_mask=attended.long(), mask_time_indices=task.hidden).last_hidden_state
        plain = hubert(audio[:1]).last_hidden_state
    inside = task.inside
    torch.testing.assert_close(logits[inside], stage.plain.head(theirs)[inside], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features, hubert.feature_extractor(audio).transpose(1, 2))
    with torch.no_grad():
        torch.testing.assert_close(stage.plain(batch(CLIPS[0]))[0], stage.plain.head(plain), atol=1e-5, rtol=1e-5)


def test_a_clip_does_not_depend_on_its_neighbours():
    model = stage_of().plain.eval()
    with torch.no_grad():
        together = model(batch(*CLIPS))[0]
        for row, one in enumerate(CLIPS):
            count = frames_within(len(one.audio))
            torch.testing.assert_close(model(batch(one))[0][0, :count], together[row, :count], atol=1e-5, rtol=1e-5)


def test_a_dropped_layer_changes_nothing_and_has_gradients_of_zero():
    given = batch(CLIPS[0], CLIPS[1])
    whole, none, half = (stage_of(layer_drop=share).plain for share in (0.0, 1.0, 0.5))
    assert torch.equal(whole.train()(given)[0], half.eval()(given)[0])
    made, _ = none.train()(given)
    made.sum().backward()
    for layer in none.hubert.encoder.layers:
        assert all(p.grad is not None and not p.grad.any() for p in layer.parameters())
    # Without its layers a transformer passes on what the first one reads.
    none.hubert.encoder.layers = torch.nn.ModuleList()
    assert torch.equal(none(given)[0], made)
    drawn = set()
    for seed in range(20):
        torch.manual_seed(seed)
        drawn.add(float(half.train()(given)[0].detach().double().sum()))
    assert len(drawn) == 4


def test_the_convolutions_learn_from_a_share_of_the_gradient():
    def gradients(share):
        stage, found = stage_of(feature_gradient=share), {}
        stage.updaters["model"].update = lambda step: torch.zeros(())
        stage.step([batch(*CLIPS)], 0)
        for name in ("feature_extractor.conv_layers.0.conv", "feature_projection.projection"):
            found[name] = stage.plain.hubert.get_submodule(name).weight.grad
        return found

    whole, tenth = gradients(1.0), gradients(0.1)
    convolution, projection = whole
    # The backward pass of another scale rounds otherwise; weights whose gradients nearly cancel differ by more than a
    # ten-thousandth of their own, but not of the largest.
    largest = float(whole[convolution].abs().max())
    assert largest > 0
    torch.testing.assert_close(tenth[convolution], 0.1 * whole[convolution], rtol=1e-4, atol=1e-5 * largest)
    torch.testing.assert_close(tenth[projection], whole[projection])


@pytest.mark.parametrize("settings", [{}, {"precision": "bf16"}, {"checkpoint_activations": True}])
def test_all_of_it_moves(settings):
    stage = stage_of(engine=settings, dropout=0.1, layer_drop=0.3)
    before = {name: value.clone() for name, value in stage.model.state_dict().items()}
    for number in range(4):
        seeded(number)
        report = stage.step([batch(*CLIPS)], number)
    assert {name for name, value in stage.model.state_dict().items() if torch.equal(value, before[name])} == set()
    assert set(report.values) == {"loss", "masked", "masked_accuracy", "unmasked", "unmasked_accuracy", "features"}
    torch.testing.assert_close(report.values["loss"], report.values["masked"] + 10 * report.values["features"])


def test_activations_that_are_computed_again_are_the_same():
    def learned(checkpointing):
        stage = stage_of(engine={"checkpoint_activations": checkpointing}, dropout=0.1, layer_drop=0.5)
        for number in range(2):
            seeded(number)
            stage.step([batch(*CLIPS)], number)
        return stage.model.state_dict()

    torch.testing.assert_close(learned(True), learned(False))


# ---- batches, processes ----------------------------------------------------------------------------


def test_micro_batches_equal_the_joined_batch():
    whole, parts = stage_of(loss={"unmasked": 0.5}), stage_of(loss={"unmasked": 0.5}, engine={"accumulate": 2})
    for number in range(3):
        expected = whole.step([batch(*CLIPS)], number)
        got = parts.step([batch(*CLIPS[:1]), batch(*CLIPS[1:])], number)
        for name, value in (expected.values | expected.norms).items():
            torch.testing.assert_close((got.values | got.norms)[name], value, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(parts.model.state_dict(), whole.model.state_dict(), atol=2e-5, rtol=1e-4)


def learn(rank=None):
    # With the usual eps Adam makes whole steps of gradients that are nothing but rounding.
    steady = {"lr": 1e-2, "warmup_steps": 1, "eps": 0.1}
    stage = stage_of(engine={"kind": "single" if rank is None else "ddp"}, optimizer=steady)
    shares, values = [(3, 1), (0, 4), (1, 3)], []
    for number, (first, _) in enumerate(shares):
        mine = CLIPS if rank is None else (CLIPS[:first], CLIPS[first:])[rank]
        report = stage.step([batch(*mine)], number)
        values.append({name: float(value) for name, value in report.values.items()})
    mine = CLIPS if rank is None else CLIPS[:3] if rank else CLIPS[3:]
    measured = validate(stage, stage.engine, iter([batch(one) for one in mine]), ValidationConfig(listen=0))
    return {"values": values, "valid": measured.values, "state": network_state(stage.model, lambda _: True)}


@pytest.mark.long
def test_two_processes_equal_one(tmp_path):
    (first, second), alone = two_processes(learn, tmp_path), learn()
    for ours, theirs, expected in zip(first["values"], second["values"], alone["values"], strict=True):
        average = {name: (ours[name] + theirs[name]) / 2 for name in ours}
        assert average == pytest.approx(expected, rel=1e-4, abs=1e-6)
    torch.testing.assert_close(first["state"], alone["state"], atol=2e-5, rtol=1e-4)
    assert first["valid"] == second["valid"] == pytest.approx(alone["valid"], rel=1e-5)


def test_a_batch_without_a_label_teaches_nothing():
    stage = stage_of(loss={"features": 0})
    unlabelled = Clip("no", CLIPS[0].audio, CLIPS[0].audio, None)
    for given in (batch(), batch(unlabelled), batch(clip(1, 0.02))):
        report = stage.step([given], 0)
        told = {name: float(value) for name, value in (report.values | report.norms).items() if name != "features"}
        assert set(told.values()) == {0.0}
        assert float(stage.measure(given, transcribe=False).means["masked"].count) == 0


# ---- does it learn ---------------------------------------------------------------------------------

TONES = (300, 700, 1200, 1900, 2700, 3600)


def label_corpus(cuts, labels, rate=50.0, size=LABELS):
    """The cuts of a manifest with `labels(cut)` (frames,), as `cuts.jsonl.gz` in a new folder."""
    folder = cuts.parent / "labels"
    folder.mkdir()
    first, made, flat = 0, [], []
    for cut in open_source(SourceConfig(path=str(cuts))):
        own = labels(cut)
        made.append(
            with_targets(
                cut,
                folder / "labels.bin",
                first,
                (len(own), 1),
                np.dtype("<u2"),
                rate,
                {"codec": "none", "size": size},
            )
        )
        first += len(own)
        flat.append(own)
    np.concatenate(flat).astype("<u2").tofile(folder / "labels.bin")
    CutSet.from_cuts(made).to_file(folder / "cuts.jsonl.gz")
    return folder / "cuts.jsonl.gz"


def write_tunes(folder):
    """Four clips of 2 s: tones of 80 ms that follow each other as in a scale, and the tone is the label."""
    cuts = write_corpus(folder, clips=4)
    time = np.arange(2 * RATE) / RATE
    for number in range(4):
        order = (np.arange(25) * (1 if number % 2 else 5) + number) % len(TONES)
        tones = np.array(TONES)[np.repeat(order, 1280)]
        phase = 2 * np.pi * np.cumsum(tones) / RATE
        noise = np.random.default_rng(number).standard_normal(len(time))
        sf.write(folder / f"{number}.wav", (0.3 * np.sin(phase) + 0.01 * noise).astype(np.float32), RATE)
    cuts.unlink()
    rows = folder / "rows.jsonl"
    rows.write_text(rows.read_text().replace(": 0.6", ": 2.0"))
    import_manifest(rows, cuts)

    def labels(cut):
        number = int(cut.id.split(".")[0])
        return np.repeat((np.arange(25) * (1 if number % 2 else 5) + number) % len(TONES), 4)

    return label_corpus(cuts, labels, size=len(TONES))


@pytest.mark.long
def test_masked_accuracy_rises(tmp_path):
    cuts = write_tunes(tmp_path / "tunes")
    size = {"d_model": 64, "layers": 2, "heads": 4, "ffn_dim": 128, "conv_dim": 32, "position_kernel": 32,
            "position_groups": 4}  # fmt: skip
    data = {"train": [str(cuts)], "valid": [str(cuts)], "clip_seconds": 2, "batch_clips": 4, "workers": 0, "buckets": 0}
    mapping = run_settings(
        cuts, tmp_path / "run", model=size, codebook_size=len(TONES), data=data, steps=80, log_every=40,
        optimizer={"lr": 3e-3, "warmup_steps": 20}, validation={"every": 80}, checkpoint={"every": 1000},
        feature_gradient=1.0, dropout=0.0,
    )  # fmt: skip
    begin(tmp_path, mapping)
    (valid,) = lines_of(tmp_path / "run", "valid")
    steps = lines_of(tmp_path / "run")
    # None of the six labels comes much more often than every sixth time.
    assert np.mean([line["masked_accuracy"] for line in steps[:5]]) < 0.3
    assert np.mean([line["masked_accuracy"] for line in steps[-5:]]) > 0.6
    assert valid["masked_accuracy"] > 0.6
    assert valid["masked"] < 0.7 * math.log(len(TONES))


# ---- runs ------------------------------------------------------------------------------------------


def run_settings(cuts, output, /, **changes):
    whole = settings(cuts, output, data=changes.pop("data", {}))
    for name in ("model", "towers", "freeze_semantic", "lm", "loss"):
        del whole[name]
    ours = {"stage": "hubert", "model": SIZES, "codebook_size": LABELS}
    return whole | ours | changes


def begin(folder, mapping, resume=False):
    return train(load_recipe(write_recipe(folder / "recipe.yaml", mapping)), resume=resume, quiet=True)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    cuts = write_corpus(tmp_path_factory.mktemp("corpus"))
    generator = np.random.default_rng(0)
    return label_corpus(cuts, lambda cut: generator.integers(0, LABELS, math.ceil(75 * cut.duration)), rate=75.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory, corpus):
    """A run that nothing happens to, with dropout and layer drop."""
    folder = tmp_path_factory.mktemp("whole")
    torch.set_num_threads(1)
    begin(folder, run_settings(corpus, folder / "run"))
    return folder / "run"


def test_a_run_that_resumes_ends_as_the_whole_one(tmp_path, run, corpus):
    mapping = run_settings(corpus, tmp_path / "run")
    assert not begin(tmp_path, mapping | {"minutes": 1e-9}).finished
    assert begin(tmp_path, mapping, resume=True).finished
    for kind in ("train", "valid"):
        assert_same_lines(lines_of(tmp_path / "run", kind), lines_of(run, kind))
    ours, theirs = (read_checkpoint(checkpoints(folder)[-1]) for folder in (tmp_path / "run", run))
    torch.testing.assert_close(ours["networks"], theirs["networks"], atol=1e-6, rtol=0)
    moments = [made["optimizers"]["model"]["state"] for made in (ours, theirs)]
    torch.testing.assert_close(*moments, atol=1e-6, rtol=0)
    assert SelfSupervisedConfig(**ours["self_supervised"]) == SelfSupervisedConfig(**SIZES)
    assert lines_of(run)[-1]["masked"] > 0
    assert (run / "checkpoints" / "best.pt").is_file()


def test_a_dry_run_counts_what_a_run_has(corpus, run, tmp_path):
    plan = plan_run(load_recipe(write_recipe(tmp_path / "recipe.yaml", run_settings(corpus, tmp_path / "run"))))
    state = read_checkpoint(checkpoints(run)[-1])["networks"]["model"]
    sizes = {
        name: sum(v.numel() for key, v in state.items() if key.startswith(f"{name}.")) for name in ("hubert", "head")
    }
    assert {part.name: part.parameters for part in plan.parts} == sizes
    assert all(part.trainable == part.parameters for part in plan.parts)
    assert (plan.stage, plan.steps_per_epoch, plan.remarks) == ("hubert", 5, ("data: 10 clips, 0.00 h, 10 with text",))
    assert plan.memory_gib["activations"] > 0


def test_the_paper_s_recipe(corpus):
    recipe = load_recipe(CONFIG)
    assert recipe.model == SelfSupervisedConfig()
    assert recipe.optimizer == HubertOptimizerConfig()
    assert (recipe.optimizer.lr, recipe.optimizer.schedule, recipe.optimizer.warmup_steps) == (
        3e-4,
        "inverse_sqrt",
        32_000,
    )
    assert (recipe.steps, recipe.masking.share, recipe.masking.frames) == (325_000, 0.08, 10)
    assert recipe.data.batch_clips * recipe.data.clip_seconds * RATE == pytest.approx(2.6e6, rel=0.05)
    data = (f"data.train=[{corpus}]", "data.valid=[]", "data.min_seconds=0.5")
    plan = plan_run(load_recipe(CONFIG, (*data, "codebook_size=12", "engine.kind=single", "engine.device=cpu")))
    # HuBERT base; and 256 numbers for each of 12 labels, beside the projection to them.
    assert {part.name: part.parameters for part in plan.parts} == {"hubert": 94_371_712, "head": 256 * (768 + 1 + 12)}


@pytest.mark.long
def test_the_command_line(corpus, tmp_path):
    path = write_recipe(
        tmp_path / "recipe.yaml", run_settings(corpus, tmp_path / "run", steps=2, checkpoint={"every": 2})
    )
    ended = xycodec(tmp_path, "train", path)
    assert (ended.code, "finished at step 2 of 2" in ended.out) == (0, True), ended
    ended = xycodec(tmp_path, "export", "run", "made", "--transformers")
    assert "step 2" in ended.out, ended
    assert transformers.HubertConfig.from_pretrained(tmp_path / "made").hidden_size == 16
    assert xycodec(tmp_path, "encode", "x.wav", "--model", "run").code == 1


# ---- its result serves -----------------------------------------------------------------------------


def test_an_xcodec_reads_a_run_a_checkpoint_and_what_was_exported(run, tmp_path):
    export_weights(run, tmp_path / "export")
    made = export_transformers(run, tmp_path / "folder")
    assert (made.step, [path.name for path in made.files]) == (12, ["model.safetensors"])
    theirs, report = transformers.HubertModel.from_pretrained(tmp_path / "folder", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    audio = 0.1 * torch.randn(2, 3200)
    with torch.no_grad():
        states = theirs.eval()(F.pad(audio, (160, 160)), output_hidden_states=True).hidden_states
    model = tiny_config(semantic=SelfSupervisedConfig(**SIZES)).model_dump()
    for source in (run, checkpoints(run)[-1], tmp_path / "export", tmp_path / "folder"):
        codec = build_xcodec(xcodec_recipe(model, source))[0].codec
        torch.testing.assert_close(codec.semantic_features(audio), torch.stack(states).mean(0), atol=1e-5, rtol=1e-5)
        assert not any(p.requires_grad for p in codec.semantic_model.parameters())


def xcodec_recipe(model, source):
    return recipe("xcodec", model=model, semantic_weights=str(source))


def test_what_does_not_fit_is_refused_in_a_line(run, corpus, tmp_path):
    other = tiny_config(semantic=SelfSupervisedConfig(**{**SIZES, "ffn_dim": 32})).model_dump()
    with pytest.raises(ConfigError, match=r"semantic\.ffn_dim is 24, model\.semantic asks for 32"):
        build_xcodec(xcodec_recipe(other, run))
    with pytest.raises(CheckpointError, match="holds a HuBERT and no codec: name it in semantic_weights"):
        load_codec(run)
    with pytest.raises(CheckpointError, match="holds a HuBERT and no recogniser: name it in semantic_weights"):
        start_towers(None, str(run))
    begin(tmp_path, settings(corpus, tmp_path / "codec", steps=1))
    with pytest.raises(CheckpointError, match="holds no HuBERT for Transformers"):
        export_transformers(tmp_path / "codec", tmp_path / "folder")
    with pytest.raises(CheckpointError, match="no run and no checkpoint of one"):
        export_transformers(tmp_path / "nothing", tmp_path / "folder")
    with pytest.raises(CheckpointError, match="a hubert run cannot go on as pretrain"):
        begin(tmp_path, settings(corpus, run), resume=True)


# ---- refusals --------------------------------------------------------------------------------------


def test_corpora_without_these_labels(corpus, tmp_path, capfd):
    plain = write_corpus(tmp_path / "plain", clips=3)
    whole = {"clip_seconds": 1, "batch_clips": 2, "workers": 0, "buckets": 2, "valid": []}
    cases = [
        ({"train": [str(plain)]}, {}, "no clip has labels, .* make them with xycodec data targets"),
        ({"train": [str(corpus)], "valid": [str(plain)]}, {}, "no clip has labels"),
        ({"train": [str(corpus)]}, {"codebook_size": 1024}, "labels out of 12, the recipe has 1024: change"),
        ({"train": [str(corpus)]}, {"codebooks": 2}, "1 layers of labels, the recipe asks for 2: lower codebooks"),
    ]  # fmt: skip
    for data, changes, words in cases:
        with pytest.raises(ConfigError, match=words) as raised:
            begin(tmp_path, run_settings(corpus, tmp_path / "run", data=whole | data, **changes))
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()
    mapping = run_settings(corpus, tmp_path / "run", steps=1, data=whole | {"train": [str(plain), str(corpus)]})
    train(load_recipe(write_recipe(tmp_path / "recipe.yaml", mapping)))
    assert "without labels: 3 clips, which are passed over" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": {**SIZES, "kind": "wavlm"}}, "model.kind: wavlm is not trained here"),
        ({"data": {"train": ["a"], "augment": {"speed": 0.1}}}, "data.augment.speed: it would move the audio away"),
        ({"ema": 0.9}, "ema: only a codec's weights are averaged"),
        ({"engine": {"kind": "fsdp2"}}, "engine.kind: "),
        ({"engine": {"compile": True}}, "engine.compile: "),
        ({"loss": {"masked": 0}}, "loss: nothing is guessed"),
        ({"masking": {"share": 0}}, "masking.share: "),
        ({"masking": {"frame": 3}}, "masking.frame: unknown key, did you mean 'frames'"),
        ({"optimizer": {"schedule": "linear"}}, "optimizer.schedule: "),
    ],
)
def test_refused_values(changes, words):
    with pytest.raises(ConfigError, match=words) as raised:
        recipe_of(**changes)
    assert "\n" not in str(raised.value)
