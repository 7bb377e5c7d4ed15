"""A tower that learns to spell, alone and as what a codec starts from."""

import itertools
import json
import math

import numpy as np
import pytest
import soundfile as sf
import torch
from tests.reference import TINY
from tests.training import batch, clip, pretraining, recipe, seeded, tiny_model, two_processes
from tests.training_runs import assert_same_lines, lines_of, settings, write_corpus, write_recipe

from xycodec.checkpoints.load import load_codec
from xycodec.checkpoints.training import checkpoints, read_checkpoint
from xycodec.data.config import SourceConfig
from xycodec.data.manifest import import_manifest
from xycodec.data.sources import open_once
from xycodec.errors import CheckpointError, ConfigError
from xycodec.models.config import TowerConfig
from xycodec.models.xy_tokenizer.ctc import frames_needed, tower_frames
from xycodec.train.checkpoint import network_state
from xycodec.train.config import ValidationConfig
from xycodec.train.engine import Engine
from xycodec.train.export import export_weights
from xycodec.train.plan import _longest_batch, plan_run
from xycodec.train.recipe_file import load_recipe
from xycodec.train.run import open_stage, train
from xycodec.train.stages.ctc import (
    CtcStage,
    MaskingConfig,
    Targets,
    build,
    collect_characters,
    ctc,
    draw_masks,
    normalised,
    targets_of,
)
from xycodec.train.stages.pretrain import PretrainStage
from xycodec.train.stages.pretrain import build as build_pretraining
from xycodec.train.transcribe import load_ear
from xycodec.train.validate import validate

LETTERS = " abcdefghijklmnopqrstuvwxyz"
CLEAR = {"time_masks": 0, "frequency_masks": 0}
RATE = 16_000


def recognising(**changes):
    own = {"tower": TINY.model_dump(), "window_frames": 25, "characters": LETTERS, "masking": CLEAR}
    return recipe("ctc", **{**own, **changes})


def stage_of(**changes):
    made = recognising(**changes)
    return CtcStage(made, Engine(made.engine))


def run_settings(cuts, output, /, **changes):
    """A recipe of recognition as a mapping: 12 steps, 5 batches an epoch."""
    whole = settings(cuts, output)
    for name in ("model", "towers", "freeze_semantic", "lm", "loss"):
        del whole[name]
    tower = {"d_model": 16, "layers": 1, "heads": 2, "ffn_dim": 24}
    return whole | {"stage": "ctc", "tower": tower, "window_frames": 13} | changes


def begin(folder, mapping, resume=False):
    return train(load_recipe(write_recipe(folder / "recipe.yaml", mapping)), resume=resume, quiet=True)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, corpus):
    """A run that nothing happens to."""
    folder = tmp_path_factory.mktemp("whole")
    torch.set_num_threads(1)
    begin(folder, run_settings(corpus, folder / "run"))
    return folder / "run"


# ---- the loss --------------------------------------------------------------------------------------


def forward_algorithm(log_probs, columns):
    """Negative log-probability of all paths that spell `columns`, by the table of their beginnings, in float64."""
    states = [0, *(state for column in columns for state in (column, 0))]
    probs = np.exp(log_probs.numpy().astype(np.float64))
    reach = np.zeros(len(states))
    reach[:2] = probs[0, states[:2]]
    for row in probs[1:]:
        before = reach.copy()
        for s, column in enumerate(states):
            ways = before[s] + (before[s - 1] if s else 0)
            if s > 1 and column and column != states[s - 2]:
                ways += before[s - 2]
            reach[s] = ways * row[column]
    return -math.log(reach[-2:].sum())


def all_paths(log_probs, columns):
    """The same by listing them."""
    rows, width = log_probs.shape
    total = 0.0
    for path in itertools.product(range(width), repeat=rows):
        if [column for column, _ in itertools.groupby(path) if column] == columns:
            total += math.exp(sum(float(log_probs[row, column]) for row, column in enumerate(path)))
    return -math.log(total)


def test_the_loss_is_that_of_a_slow_reference():
    log_probs = (3 * torch.randn(4, 5, 4)).log_softmax(dim=2)
    spelt = [[1, 2], [3, 3], [2], [1, 2, 1, 3, 2]]
    lengths = [1600, 1281, 640, 1600]
    targets = Targets(torch.tensor([[*s, *[0] * (5 - len(s))] for s in spelt]), tuple(map(len, spelt)))
    mean = ctc(log_probs, lengths, targets)
    rows = tower_frames(lengths)
    assert rows == [5, 5, 2, 5]
    for reference in (forward_algorithm, all_paths):
        expected = [reference(log_probs[i, : rows[i]], spelt[i]) for i in range(4)]
        assert float(mean.total) == pytest.approx(sum(expected), rel=1e-6)
    assert float(mean.count) == 10
    assert float(mean.value()) == pytest.approx(sum(expected) / 10, rel=1e-6)


def test_a_longer_text_against_the_reference():
    log_probs = torch.randn(1, 40, 27).log_softmax(dim=2)
    columns = [1 + (7 * number) % 26 for number in range(12)] + [5, 5, 5]
    mean = ctc(log_probs, [40 * 320], Targets(torch.tensor([columns]), (15,)))
    assert float(mean.total) == pytest.approx(forward_algorithm(log_probs[0], columns), rel=1e-6)


@pytest.mark.parametrize("text", [None, "", "?!", "a" * 26, "ab" * 26])
def test_what_cannot_be_learned_counts_nowhere(text):
    """Half a second has 25 rows: 26 letters do not fit, nor do 13 equal ones and the blanks between."""
    stage = stage_of()
    lost, kept = clip(1, 0.5, text=text), clip(0, 0.7)
    alone, joined = stage.measure(batch(kept), transcribe=False), stage.measure(batch(lost, kept), transcribe=False)
    assert float(joined.means["loss"].count) == len("red green blue")
    torch.testing.assert_close(joined.means["loss"].total, alone.means["loss"].total, rtol=1e-5, atol=0)
    assert gradient_of(stage, [batch(lost)]) == 0
    assert gradient_of(stage, [batch(kept)]) > 0


def test_texts_at_the_limit_of_their_rows():
    stage = stage_of()
    for text in ("ab" * 12 + "a", "a" * 13):
        assert frames_needed(stage.recogniser.alphabet.spell(text)) == 25
        mean = stage.measure(batch(clip(0, 0.5, text=text)), transcribe=False).means["loss"]
        assert float(mean.count) == len(text)
        assert torch.isfinite(mean.total)
        assert float(stage.measure(batch(clip(0, 0.48, text=text)), transcribe=False).means["loss"].count) == 0


def gradient_of(stage, batches):
    return float(stage.step(batches, 0).norms["grad_norm"])


def test_micro_batches_equal_the_joined_batch():
    clips = [clip(number, seconds) for number, seconds in enumerate((1.0, 0.4, 1.6, 0.8))]
    whole, parts = stage_of(), stage_of(engine={"accumulate": 2})
    for number in range(3):
        expected = whole.step([batch(*clips)], number)
        got = parts.step([batch(*clips[:1]), batch(*clips[1:])], number)
        torch.testing.assert_close(got.values["loss"], expected.values["loss"], rtol=1e-5, atol=0)
        torch.testing.assert_close(got.norms["grad_norm"], expected.norms["grad_norm"], rtol=1e-4, atol=0)
    torch.testing.assert_close(parts.model.state_dict(), whole.model.state_dict(), atol=2e-5, rtol=0)


def test_a_step_in_bfloat16_is_nearly_that_in_float32():
    exact, low = stage_of(), stage_of(engine={"precision": "bf16"})
    expected, got = (stage.step([batch(*CLIPS)], 0) for stage in (exact, low))
    assert got.values["loss"].dtype == torch.float32
    assert 0 < abs(float(got.values["loss"]) / float(expected.values["loss"]) - 1) < 0.02
    assert float(got.norms["grad_norm"]) == pytest.approx(float(expected.norms["grad_norm"]), rel=0.1)


SHARES = [(3, 1), (0, 4), (1, 3)]
CLIPS = [clip(0), clip(1, 0.5), clip(2, 1.4), clip(3, 0.8, text=None)]


def learn(kind, rank=None):
    stage = stage_of(engine={"kind": kind})
    losses = []
    for number, (first, _) in enumerate(SHARES):
        mine = CLIPS if rank is None else (CLIPS[:first], CLIPS[first:])[rank]
        # On either process the value is its share of the whole, times the number of processes.
        losses.append(float(stage.step([batch(*mine)], number).values["loss"]))
    mine = CLIPS if rank is None else CLIPS[rank : rank + 1] if rank else [*CLIPS[:1], *CLIPS[2:]]
    measured = validate(stage, stage.engine, iter([batch(one) for one in mine]), ValidationConfig())
    return {"losses": losses, "valid": measured.values, "state": network_state(stage.model, lambda _: True)}


def work(rank):
    return {kind: learn(kind, rank) for kind in ("ddp", "fsdp2")}


@pytest.mark.long
def test_two_processes_equal_one(tmp_path):
    results, alone = two_processes(work, tmp_path), learn("single")
    for kind in ("ddp", "fsdp2"):
        first, second = (result[kind] for result in results)
        average = [sum(pair) / 2 for pair in zip(first["losses"], second["losses"], strict=True)]
        assert average == pytest.approx(alone["losses"], rel=1e-5)
        torch.testing.assert_close(first["state"], alone["state"], atol=2e-5, rtol=2e-5)
        assert first["valid"] == pytest.approx(second["valid"], rel=1e-6)
        assert first["valid"] == pytest.approx(alone["valid"], rel=1e-4)


# ---- texts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don\N{RIGHT SINGLE QUOTATION MARK}t  STOP, she said!", "don't stop she said"),
        ("well-known\tfacts\n", "well known facts"),
        ("u\u0308ber", "über"),
        (None, ""),
        ("?!", ""),
    ],
)
def test_one_form_of_texts(text, expected):
    assert normalised(text) == expected
    assert normalised(expected) == expected


def test_characters_are_those_of_the_training_texts(corpus):
    cuts = open_once([SourceConfig(path=str(corpus))])
    assert collect_characters(cuts) == " 0123456789dorsw"
    # A mix with weights has no end, its sources have.
    weighted = {"train": [{"path": str(corpus), "weight": 2}], "clip_seconds": 1}
    model = build(recognising(characters=None, data=weighted))
    assert model.recogniser.config.characters == " 0123456789dorsw"


def test_unknown_characters_are_not_learned_but_are_errors():
    stage = stage_of(characters=" abcdr")
    heard = batch(clip(0, text="red bear"))
    assert targets_of(heard, stage.recogniser).lengths == (6,)
    assert float(stage.measure(heard, transcribe=False).means["cer"].count) == 8


# ---- masking ---------------------------------------------------------------------------------------


def test_masks_stay_within_clip_and_bounds():
    config = MaskingConfig(time_masks=1, time_frames=10, time_share=0.25, frequency_masks=1, frequency_bins=7)
    widths, heights, starts = set(), set(), set()
    for _ in range(300):
        hidden = draw_masks(config, [16_000, 3_200], 20, 130)
        assert hidden.shape == (2, 20, 130)
        for item, frames, most in ((hidden[0], 100, 10), (hidden[1], 20, 5)):
            bins, times = item.all(dim=1), item.all(dim=0)
            # Whole rows and whole columns, and nothing else.
            assert torch.equal(item, bins[:, None] | times[None])
            assert not times[frames:].any()
            assert times.sum() <= most
            assert bins.sum() <= 7
            for stretch in (times, bins):
                place = stretch.nonzero()
                assert len(place) == 0 or place[-1] - place[0] + 1 == len(place)
        widths.add(int(hidden[0].all(dim=0).sum()))
        heights.add(int(hidden[0].all(dim=1).sum()))
        starts |= {int(place) for place in hidden[0].all(dim=0).nonzero()[:1]}
    assert widths == set(range(11))
    assert heights == set(range(8))
    assert (min(starts), max(starts)) <= (5, 99)
    assert max(starts) > 90


def test_more_masks_hide_more():
    def share(count):
        config = MaskingConfig(time_masks=count, time_share=0.2, time_frames=20, frequency_masks=0)
        return draw_masks(config, [16_000] * 100, 4, 100).float().mean()

    assert share(0) == 0
    assert 0.07 < share(1) < 0.13
    assert 1.7 < share(2) / share(1) < 2.1


def test_masks_are_drawn_from_the_step_s_generator_and_in_training_only():
    stage, heard = stage_of(masking={"frequency_bins": 40}), batch(*CLIPS[:2])

    def output(seed, training):
        seeded(seed)
        return stage.model.train(training)(heard).detach()

    assert torch.equal(output(0, True), output(0, True))
    assert not torch.equal(output(0, True), output(1, True))
    assert torch.equal(output(0, False), output(1, False))
    stage.model.masking = MaskingConfig(**CLEAR)
    assert torch.equal(output(0, True), output(0, False))


# ---- does it learn ---------------------------------------------------------------------------------

WORDS = ("abba", "bead", "cede")


def write_words(folder):
    """Three clips; every letter is a tone of its own, and between two there is a short silence."""
    time = np.arange(int(0.12 * RATE)) / RATE
    pause = np.zeros(int(0.06 * RATE))
    rows = []
    for word in WORDS:
        tones = [0.4 * np.sin(2 * np.pi * (300 + 400 * "abcde".index(letter)) * time) for letter in word]
        samples = np.concatenate([part for tone in tones for part in (tone, pause)])
        sf.write(folder / f"{word}.wav", samples, RATE)
        rows.append({"audio": f"{word}.wav", "duration": len(samples) / RATE, "text": word.title() + "!"})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    import_manifest(folder / "rows.jsonl", folder / "cuts.jsonl")
    return folder / "cuts.jsonl"


@pytest.mark.long
def test_three_words_are_learned_by_heart(tmp_path):
    cuts = write_words(tmp_path)
    data = {"train": [str(cuts)], "valid": [str(cuts)], "clip_seconds": 1, "batch_clips": 3, "workers": 0, "buckets": 0}
    changes = {
        "data": data,
        "steps": 150,
        "tower": {"d_model": 64, "layers": 2, "heads": 4, "ffn_dim": 128},
        "optimizer": {"lr": 3e-3, "warmup_steps": 20},
        "validation": {"every": 150},
        "log_every": 50,
    }
    begin(tmp_path, run_settings(cuts, tmp_path / "run", **changes))
    (valid,) = lines_of(tmp_path / "run", "valid")
    assert valid.keys() == {"step", "kind", "loss", "cer", "wer"}
    assert (valid["cer"], valid["wer"]) == (0, 0)
    assert valid["loss"] < 0.1 * lines_of(tmp_path / "run")[0]["loss"]
    transcripts = board(tmp_path / "run").Tensors("transcripts/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "said:  Abba!\n    heard: abba\n" in transcripts


def board(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(run / "tensorboard")).Reload()


def test_error_rates_are_those_of_what_is_read():
    stage = stage_of(characters=" abc")
    said = ("Ab, c!", None, "bb")
    heard = batch(*(clip(number, 0.4, text=text) for number, text in enumerate(said)))
    with torch.no_grad():  # every row says a, which is a single a
        stage.recogniser.head.weight.zero_()
        stage.recogniser.head.bias.copy_(torch.tensor([0.0, 0.0, 9.0, 0.0, 0.0]))
    measured = stage.measure(heard, transcribe=True)
    assert measured.texts == ("a", "a", "a")
    # "ab c" lacks three of four; "bb" has one wrong and lacks one.
    assert (float(measured.means["cer"].total), float(measured.means["cer"].count)) == (5, 6)
    assert (measured.words.errors, measured.words.words) == (3, 3)
    assert stage.measure(heard, transcribe=False).texts == ()
    nothing = stage.measure(batch(), transcribe=True)
    assert {name: float(mean.count) for name, mean in nothing.means.items()} == {"loss": 0, "cer": 0}


# ---- a run -----------------------------------------------------------------------------------------


def test_a_run_that_stops_goes_on_as_if_it_had_not(tmp_path, corpus, run):
    assert not begin(tmp_path, run_settings(corpus, tmp_path / "run", minutes=1e-9)).finished
    assert begin(tmp_path, run_settings(corpus, tmp_path / "run"), resume=True).finished
    assert_same_lines(lines_of(tmp_path / "run"), lines_of(run))
    assert_same_lines(lines_of(tmp_path / "run", "valid"), lines_of(run, "valid"))
    ours, theirs = (read_checkpoint(checkpoints(folder)[-1]) for folder in (tmp_path / "run", run))
    torch.testing.assert_close(ours["networks"], theirs["networks"], atol=1e-6, rtol=0)
    assert ours["recogniser"] == theirs["recogniser"]
    assert (run / "checkpoints" / "best.pt").is_file()


def test_a_run_keeps_its_characters_where_texts_have_changed(tmp_path, corpus):
    begin(tmp_path, run_settings(corpus, tmp_path / "run", steps=2))
    later = run_settings(write_corpus(tmp_path / "later", text="xyz"), tmp_path / "run", steps=3)
    assert begin(tmp_path, later, resume=True).step == 3
    assert read_checkpoint(checkpoints(tmp_path / "run")[-1])["recogniser"]["characters"] == " 0123456789dorsw"


def test_a_run_under_the_stages_earlier_name_goes_on(tmp_path, corpus, run):
    begin(tmp_path, run_settings(corpus, tmp_path / "run", steps=10, stage="recognise"))
    path = checkpoints(tmp_path / "run")[-1]
    made = torch.load(path, weights_only=True)
    assert made["stage"] == "ctc"
    torch.save(made | {"stage": "recognise"}, path)
    assert begin(tmp_path, run_settings(corpus, tmp_path / "run", stage="recognise"), resume=True).finished
    assert lines_of(tmp_path / "run")[-1]["step"] == lines_of(run)[-1]["step"]


def test_a_dry_run_counts_what_a_run_has(corpus, tmp_path):
    mapping = run_settings(corpus, tmp_path / "run")
    made = load_recipe(write_recipe(tmp_path / "recipe.yaml", mapping))
    plan = plan_run(made)
    stage = open_stage(made, Engine(made.engine))
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in stage.recogniser.named_children()}
    assert {part.name: part.parameters for part in plan.parts} == {"tower": sizes["tower"], "head": sizes["head"]}
    assert all(part.trainable == part.parameters for part in plan.parts)
    assert (plan.stage, plan.steps_per_epoch) == ("ctc", 5)
    assert plan.remarks == ("data: 10 clips, 0.00 h, 10 with text",)
    expected = kept_by(stage, _longest_batch(made, RATE))
    assert plan.memory_gib["activations"] * 2**30 == pytest.approx(expected, rel=0.1)
    assert not (tmp_path / "run").exists()


def kept_by(stage, longest):
    """Bytes that a real forward pass holds for its backward pass, counted storage by storage."""
    own = {p.untyped_storage().data_ptr() for p in stage.model.parameters()}
    kept, alive = {}, []

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        stage.step([longest], 0)
    return sum(kept.values())


# ---- what a codec starts from ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def tower_run(tmp_path_factory, corpus):
    """A run whose tower has the size of the tiny codec's, with windows longer than its."""
    folder = tmp_path_factory.mktemp("tower")
    torch.set_num_threads(1)
    begin(folder, run_settings(corpus, folder / "run", tower=TINY.model_dump(), window_frames=30, steps=2))
    return folder / "run"


def tower_of(run):
    state = read_checkpoint(checkpoints(run)[-1])["networks"]["model"]
    return {key.split(".", 2)[2]: value for key, value in state.items() if key.startswith("recogniser.tower.")}


def assert_is(tower, state):
    for name, value in tower.state_dict().items():
        assert torch.equal(value, state[name][: len(value)]), name


@pytest.mark.parametrize("frozen", [True, False])
def test_pretraining_starts_from_exactly_this_tower(tower_run, frozen):
    made = pretraining(towers=str(tower_run), freeze_semantic=frozen)
    stage, state = PretrainStage(made, Engine(made.engine)), tower_of(tower_run)
    for tower in (stage.codec.semantic_encoder, stage.codec.acoustic_encoder):
        assert_is(tower, state)
        assert tower.positional_embedding.shape == (100, 32)
    for number in range(2):
        seeded(number)
        stage.step([batch(clip(0), clip(1))], number)
    semantic, acoustic = stage.codec.semantic_encoder.conv1.weight, stage.codec.acoustic_encoder.conv1.weight
    assert torch.equal(semantic, state["conv1.weight"]) == frozen
    assert not torch.equal(acoustic, state["conv1.weight"])


def test_an_acoustic_tower_of_another_size_stays_as_it_was(tower_run):
    other = tiny_model(acoustic_encoder=TINY.model_copy(update={"ffn_dim": 64})).model_dump()
    started, random = (build_pretraining(pretraining(model=other, towers=t)).codec for t in (str(tower_run), None))
    assert_is(started.semantic_encoder, tower_of(tower_run))
    assert_is(started.acoustic_encoder, random.acoustic_encoder.state_dict())


def test_a_single_tower_and_a_single_checkpoint(tower_run):
    model = tiny_model(semantic_encoder=None, semantic_encoder_adapter=None).model_dump()
    codec = build_pretraining(pretraining(model=model, towers=str(checkpoints(tower_run)[0]))).codec
    assert_is(codec.acoustic_encoder, tower_of(tower_run))


def test_exported_weights_are_as_good_as_the_run(tower_run, tmp_path):
    export_weights(tower_run, tmp_path / "weights")
    assert_is(
        build_pretraining(pretraining(towers=str(tmp_path / "weights"))).codec.semantic_encoder, tower_of(tower_run)
    )


WIDE = TowerConfig(d_model=40, layers=2, heads=4, ffn_dim=48)
LONE = {"semantic_encoder": None, "semantic_encoder_adapter": None}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"semantic_encoder": WIDE, "semantic_encoder_adapter": WIDE}, "has 2 layers of 32 .* model.semantic_encoder"),
        ({**LONE, "acoustic_encoder": WIDE}, "model.acoustic_encoder has 2 layers of 40"),
        ({"n_mels": 64}, "80 mel bins.*64 mel bins"),
        ({"window_frames": 31}, "has 120 positions, a window of the model 124: lower model.window_frames"),
    ],
)
def test_a_tower_that_does_not_fit(tower_run, changes, words):
    with pytest.raises(ConfigError, match=words) as raised:
        build_pretraining(pretraining(model=tiny_model(**changes).model_dump(), towers=str(tower_run)))
    assert "step_00000002.pt has " in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_recogniser_is_no_codec_and_a_codec_is_no_recogniser(tower_run, tmp_path, corpus):
    words = "step_00000002.pt: holds a recogniser and no codec: name it in towers"
    post = recipe("posttrain", weights=str(tower_run))
    for use in (
        lambda: load_codec(tower_run),
        lambda: load_codec(checkpoints(tower_run)[0]),
        lambda: build_pretraining(pretraining(weights=str(tower_run))),
        lambda: open_stage(post, Engine(post.engine)),
    ):
        with pytest.raises(CheckpointError, match=words) as raised:
            use()
        assert "\n" not in str(raised.value)
    begin(tmp_path, settings(corpus, tmp_path / "codec", steps=1))
    with pytest.raises(CheckpointError, match="holds a codec and no recogniser: name it in weights"):
        build_pretraining(pretraining(towers=str(tmp_path / "codec")))


# ---- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"characters": "abA"}, "characters: 'A' is in no text once it is normalised"),
        ({"characters": "ab-"}, "characters: '-' is in no text"),
        ({"characters": "abca"}, "characters: one is given twice"),
        (
            {"data": {"train": ["unused"], "clip_seconds": 3}},
            "3 s is longer than the window of 2 s: lower it, or raise",
        ),
    ],
)
def test_recipes_that_cannot_be(changes, words):
    with pytest.raises(ConfigError, match=words) as raised:
        build(recognising(**changes))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"characters": ""}, "characters: "),
        ({"masking": {"time_share": 1.5}}, "masking.time_share: "),
        ({"masking": {"time_mask": 1}}, "time_mask: unknown key, did you mean 'time_masks'"),
        ({"ema": 0.9}, "ema: only a codec's weights are averaged"),
    ],
)
def test_refused_values(changes, words):
    with pytest.raises(ConfigError, match=words):
        recognising(**changes)


@pytest.mark.parametrize("characters", [None, "abc"])
def test_a_corpus_without_texts(tmp_path, characters):
    cuts = write_corpus(tmp_path / "corpus", text=None)
    with pytest.raises(ConfigError, match=r"cuts\.jsonl: no clip has a text") as raised:
        begin(tmp_path, run_settings(cuts, tmp_path / "run", characters=characters))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_clips_without_text_are_passed_over(tmp_path, corpus, capfd):
    mute = write_corpus(tmp_path / "mute", text=None)
    both = {"clip_seconds": 1, "batch_clips": 2, "workers": 0, "buckets": 2}
    begin(tmp_path, run_settings(corpus, tmp_path / "run", steps=3))
    mapping = run_settings(corpus, tmp_path / "more", steps=3, data={"train": [str(mute), str(corpus)], **both})
    train(load_recipe(write_recipe(tmp_path / "recipe.yaml", mapping)))
    assert lines_of(tmp_path / "more") == lines_of(tmp_path / "run")
    assert "without text: 10 clips, which are passed over" in capfd.readouterr().err
    plan = plan_run(load_recipe(tmp_path / "recipe.yaml"))
    assert plan.steps_per_epoch == 5
    with pytest.raises(ConfigError, match=r"mute/cuts\.jsonl: no clip has a text"):
        begin(tmp_path, mapping | {"output": "unused", "data": {**both, "train": [str(corpus)], "valid": [str(mute)]}})


def test_resuming_with_another_tower(tmp_path, run, corpus):
    wider = {"d_model": 16, "layers": 1, "heads": 2, "ffn_dim": 32}
    with pytest.raises(CheckpointError, match=r"of another architecture, recogniser\.tower\.layers\.0\.fc1\.weight is"):
        begin(tmp_path, run_settings(corpus, run, tower=wider), resume=True)
    other = settings(corpus, run)
    with pytest.raises(CheckpointError, match="a ctc run cannot go on as pretrain"):
        begin(tmp_path, other, resume=True)


# ---- audio to text ---------------------------------------------------------------------------------


def test_a_run_spells_audio_as_in_validation_and_window_by_window(run):
    ear, newest = load_ear(run, device="cpu"), read_checkpoint(checkpoints(run)[-1])
    made = load_recipe(run / "recipe.yaml", (f"characters={json.dumps(newest['recogniser']['characters'])}",))
    stage = CtcStage(made, Engine(made.engine))
    stage.networks["model"].load_state_dict(newest["networks"]["model"])
    said = clip(0, seconds=0.4)
    measured = stage.measure(batch(said), transcribe=True).texts[0]
    audio = said.audio.numpy()
    assert ear(audio) == measured
    window = stage.recogniser.window_samples
    long = np.concatenate([np.pad(audio, (0, window - len(audio))), audio])
    assert ear(long) == " ".join(filter(None, (ear(long[:window]), ear(long[window:]))))


def test_a_tower_has_no_language_model_and_no_codebooks(run):
    with pytest.raises(ConfigError, match="leave lm and n_q out"):
        load_ear(run, n_q=1)
