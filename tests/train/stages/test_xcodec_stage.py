"""X-Codec's training: what moves, what stays, what a step draws, where it starts, and that it learns."""

import pytest
import torch
import transformers
from tests.published_xcodec import tiny_config
from tests.training import NoLooking, batch, clip, recipe, seeded, two_processes
from tests.training_runs import assert_same_lines, lines_of, settings, write_corpus, write_recipe, xycodec
from torch.nn import functional as F

from xycodec.checkpoints.build import random_codec
from xycodec.checkpoints.load import load_codec
from xycodec.checkpoints.save import save_codec
from xycodec.checkpoints.training import read_checkpoint
from xycodec.distributed import all_reduce_, world_size
from xycodec.errors import CheckpointError, ConfigError
from xycodec.losses.stft import FullBandStft, LogMelDistance, SubBandStft, WaveformDistance
from xycodec.models.config import CodebooksConfig
from xycodec.models.xcodec.config import XCODEC_CONFIGS, SelfSupervisedConfig
from xycodec.train.checkpoint import RunState, network_state, save_state
from xycodec.train.config import ValidationConfig
from xycodec.train.engine import Engine
from xycodec.train.init.weights import find_checkpoint
from xycodec.train.plan import plan_run
from xycodec.train.recipe_file import BUNDLED, load_recipe
from xycodec.train.run import open_stage
from xycodec.train.stages.xcodec import XCodecLoss, XCodecOptimizerConfig, XCodecStage, build
from xycodec.train.validate import validate

CONFIG_FOLDER = BUNDLED / "xcodec"
SECONDS = 0.64
CLIPS = (clip(0, SECONDS), clip(1, 0.5), clip(2, SECONDS))
QUICK = CodebooksConfig(codebook_size=16, decay=0.5, kmeans_iterations=3)
FAST = {"lr": 1e-3, "betas": (0.8, 0.99), "eps": 1e-6, "warmup_steps": 0, "clip": 2}
BRANCH = ("semantic_model", "semantic_encoder", "fusion", "semantic_proj", "semantic_decoder", "acoustic_proj")


def model(**changes):
    return tiny_config(**{"quantizer": QUICK, **changes}).model_dump()


def recipe_of(**changes):
    given = {
        "model": model(),
        "semantic_weights": None,
        "data": {"train": ["unused"], "clip_seconds": SECONDS},
        "discriminators": {"channels": 8},
        "optimizer": FAST,
        "discriminator_optimizer": FAST,
    }
    return recipe("xcodec", **{**given, **changes})


def stage_of(**changes):
    made = recipe_of(**changes)
    return XCodecStage(made, Engine(made.engine))


def run(stage, steps=2, clips=CLIPS):
    values = []
    for number in range(steps):
        seeded(number)
        report = stage.step([batch(*clips)], number)
        values.append({name: float(value) for name, value in (report.values | report.norms).items()})
    return values


def copy_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def save(stage, folder):
    networks = {name: network_state(network, lambda _: True) for name, network in stage.networks.items()}
    return save_state(folder, RunState(stage.name, 1, 0, 1, None, stage.model_config(), {}, networks), 1, best=False)


# ---- what moves ------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_semantic_model_stays_and_all_else_moves(precision):
    stage = stage_of(engine={"precision": precision}, n_q=[8])
    before = {name: copy_of(network) for name, network in stage.networks.items()}
    values = run(stage)
    assert all(torch.isfinite(torch.tensor(list(step.values()))).all() for step in values)
    moved = {
        (name, key): not torch.equal(value, before[name][key])
        for name, network in stage.networks.items()
        for key, value in network.state_dict().items()
    }
    stayed = {key for key, has in moved.items() if not has}
    assert stayed == {key for key in moved if key[1].startswith("codec.semantic_model.")}
    assert stage.codec.training
    assert stage.codec.quantizer.training
    assert not any(part.training for part in stage.codec.semantic_model.modules())


def test_the_loss_is_the_weighted_sum():
    weights = XCodecLoss().model_dump(exclude={"waveform"})
    (values,) = run(stage_of(), 1)
    assert set(values) == {*weights, "discriminator", "loss", "grad_norm", "discriminator_grad_norm"}
    assert values["loss"] == pytest.approx(sum(weight * values[name] for name, weight in weights.items()))
    weights = {"mel": 45, "waveform": 130, "subband_stft": 1, "commitment": 1}
    (values,) = run(stage_of(loss={**weights, "stft": 0, "feature": 0, "adversarial": 0, "semantic": 0}), 1)
    # Discriminators that nobody asks learn nothing.
    assert set(values) == {*weights, "loss", "grad_norm"}
    assert values["loss"] == pytest.approx(sum(weight * values[name] for name, weight in weights.items()))


@pytest.mark.parametrize("left", ["commitment", "semantic", "stft"])
def test_a_loss_alone_reaches_what_it_should(left):
    """Gradients of the generator's parameters; STFT losses reach the decoder and, straight through, the encoder."""
    weights = dict.fromkeys(XCodecLoss.model_fields, 0)
    stage = stage_of(n_q=[3])
    stage.weights = weights | {left: 1.0, "mel": 0, "waveform": 0}
    found = set()

    def look(step):
        found.update(name.split(".")[1] for name, p in stage.generator.named_parameters() if p.grad is not None)
        return torch.zeros(())

    stage.updaters["model"].update = look
    run(stage, 1)
    encoder = {"acoustic_encoder", "semantic_encoder", "fusion"}
    reached = {
        "commitment": encoder,
        "semantic": {*encoder, "semantic_proj", "semantic_decoder"},
        "stft": {*encoder, "acoustic_proj", "acoustic_decoder"},
    }
    assert found == reached[left]


def test_discriminators_learn_first_from_the_same_pass():
    stage = stage_of()
    order, passes, seen = [], [], []
    for name, updater in stage.updaters.items():
        updater.update = lambda step, n=name, u=updater.update: order.append(n) or u(step)
    stage.generator.register_forward_hook(lambda *_: passes.append(1))
    stage.discriminators.register_forward_hook(
        lambda module, args, _: seen.append((torch.is_grad_enabled(), args[0].requires_grad, *order))
    )
    run(stage, 1)
    assert (order, len(passes)) == (["discriminators", "model"], 1)
    assert seen == [(True, False), (False, False, "discriminators"), (True, True, "discriminators")]


# ---- codebooks -------------------------------------------------------------------------------------


def test_codebooks_move_once_a_step_by_the_whole_batch():
    """Counts decay once and take in every valid frame of every clip."""
    stage = stage_of(model=model(quantizer=QUICK.model_copy(update={"dead_code_threshold": 0.0})), n_q=[8])
    run(stage, 1)
    before = stage.codec.quantizer.cluster_size.clone()
    seeded(1)
    report = stage.step([batch(*CLIPS)], 1)
    assert report.counts.sum(dim=1).tolist() == [32 + 25 + 32] * 8
    torch.testing.assert_close(stage.codec.quantizer.cluster_size, 0.5 * before + 0.5 * report.counts)


@pytest.mark.long
def test_micro_batches_move_the_codebooks_as_one_batch():
    """Codebooks are initialised at the step that they start at, by k-means of all micro-batches."""
    slow = {"lr": 1e-12, "warmup_steps": 0}
    whole, parts = (
        stage_of(n_q=[2, 8], quantize_from=1, optimizer=slow, discriminator_optimizer=slow) for _ in range(2)
    )
    for step in range(4):
        for stage, batches in ((whole, [batch(*CLIPS)]), (parts, [batch(*CLIPS[:1]), batch(*CLIPS[1:])])):
            seeded(step)
            stage.step(batches, step)
        assert bool(parts.codec.quantizer.inited.all()) == (step >= 1)
    for name in ("codebook", "embed_avg", "cluster_size"):
        ours, theirs = getattr(parts.codec.quantizer, name), getattr(whole.codec.quantizer, name)
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_layers_beyond_the_drawn_ones_stay():
    stage = stage_of(n_q=[3])
    run(stage, 1)
    before = copy_of(stage.codec.quantizer)
    seeded(1)
    report = stage.step([batch(*CLIPS)], 1)
    assert (report.counts.sum(dim=1) > 0).tolist() == [True] * 3 + [False] * 5
    assert before["inited"].all()
    for name in ("codebook", "embed_avg", "cluster_size"):
        value = stage.codec.quantizer.state_dict()[name]
        assert [torch.equal(*pair) for pair in zip(value, before[name], strict=True)] == [False] * 3 + [True] * 5


def test_fewer_codebooks_are_those_of_a_smaller_model():
    """`n_q` layers of eight learn and give what a quantizer of `n_q` layers does."""
    stage = stage_of(n_q=[8])
    run(stage, 1)
    quantizer = stage.codec.quantizer.train()
    smaller = type(quantizer)(input_dim=32, codebook_dim=None, **QUICK.model_dump() | {"n_q": 3})
    smaller.load_state_dict({name: value[:3] for name, value in copy_of(quantizer).items()})
    x, mask = torch.randn(2, 9, 32), torch.arange(9) < torch.tensor([[9], [4]])
    outputs = []
    for book, n_q in ((quantizer, 3), (smaller, None)):
        seeded(0)
        outputs.append(book(x, mask, n_q))
    ours, theirs = outputs
    assert torch.equal(ours.codes, theirs.codes)
    assert torch.equal(ours.quantized, theirs.quantized)
    assert torch.equal(ours.counts[:3], theirs.counts)
    assert not ours.counts[3:].any()
    assert torch.equal(ours.commitment_loss.total, theirs.commitment_loss.total)
    for name, value in smaller.state_dict().items():
        assert torch.equal(quantizer.state_dict()[name][:3], value), name


def test_the_draw_follows_from_seed_and_step():
    stage, again, other = (stage_of(seed=seed) for seed in (5, 5, 6))
    drawn = [stage.codebooks_of(step) for step in range(1000)]
    torch.manual_seed(1)
    assert drawn == [again.codebooks_of(step) for step in range(1000)]
    assert drawn != [other.codebooks_of(step) for step in range(1000)]
    counts = {n: drawn.count(n) for n in set(drawn)}
    assert set(counts) == {1, 2, 3, 4, 8}
    assert min(counts.values()) > 150


def test_commitment_is_the_mean_over_the_layers_that_ran():
    stage = stage_of(n_q=[2], loss={"semantic": 0})
    run(stage, 1)
    codec = stage.codec
    stage.generator.eval()
    made = stage.generator(batch(CLIPS[0]), 2)
    latents = codec.encode_latents(CLIPS[0].audio[None])[0].detach()
    codes = codec.quantizer.encode(latents[None], 2)[0]
    first = latents - codec.quantizer.codebook[0][codes[0]]
    second = first - codec.quantizer.codebook[1][codes[1]]
    expected = float(first.square().mean() + second.square().mean()) / 2
    assert float(made.losses["commitment"].detach().value()) == pytest.approx(expected, rel=1e-5)


# ---- batches ---------------------------------------------------------------------------------------


@pytest.mark.exact
def test_a_clip_gives_the_same_in_any_batch():
    stage = stage_of()
    run(stage, 1)
    together = stage.measure(batch(*CLIPS), transcribe=False)
    alone = [stage.measure(batch(one), transcribe=False) for one in CLIPS]
    for row, one in zip(together.audio, alone, strict=True):
        torch.testing.assert_close(row, one.audio[0], atol=1e-5, rtol=0)
    assert torch.equal(together.counts, sum(one.counts for one in alone))
    for name, mean in together.means.items():
        joined = sum((one.means[name] for one in alone[1:]), alone[0].means[name])
        assert float(mean.value()) == pytest.approx(float(joined.value()), rel=1e-4), name


def test_what_is_measured_is_what_the_codec_gives():
    """Losses of a whole clip: through the codec's own interface, compared by the losses' own classes."""
    stage = stage_of()
    run(stage, 2)
    measured = stage.measure(batch(CLIPS[0]), transcribe=False)
    codec, audio = stage.codec.eval(), CLIPS[0].audio[None]
    with torch.no_grad():
        codes = codec.encode(audio).codes
        decoded = codec.decode(codes).audio
        quantized = codec.quantizer.decode(codes)
        semantic = F.mse_loss(codec.decode_semantic(quantized), codec.semantic_features(audio))
    torch.testing.assert_close(measured.audio, decoded, atol=1e-5, rtol=0)
    expected = {"stft": FullBandStft(), "subband_stft": SubBandStft(), "mel": LogMelDistance(16_000)}
    expected["waveform"] = WaveformDistance()
    expected = {name: float(distance(decoded, audio).value()) for name, distance in expected.items()}
    expected["semantic"] = float(semantic)
    got = {name: float(mean.value()) for name, mean in measured.means.items()}
    commitment = got.pop("commitment")
    assert got == pytest.approx(expected, rel=1e-3)
    weights = {"stft": 1, "subband_stft": 1, "mel": 45, "semantic": 100}
    total = sum(weight * got[name] for name, weight in weights.items()) + commitment
    assert stage.loss(got | {"commitment": commitment}) == pytest.approx(total)


def test_a_batch_of_nothing_teaches_nothing():
    (values,) = run(stage_of(), 1, clips=())
    assert set(values.values()) == {0.0}


def test_the_host_never_waits():
    stage = stage_of()
    run(stage, 1)
    with NoLooking(of_masks=1):
        stage.step([batch(*CLIPS)], 1)


# ---- the baseline ----------------------------------------------------------------------------------


def test_the_baseline_is_the_same_without_the_branch():
    stage = stage_of(model=model(semantic=None))
    values = run(stage)
    assert "semantic" not in values[0]
    names = {name for name, _ in stage.codec.named_children()}
    assert names == {"acoustic_encoder", "quantizer", "acoustic_decoder"}
    assert {name for name, _ in stage_of().codec.named_children()} == names | set(BRANCH)
    assert stage.codec.config.latent_dim == 12
    assert values[1]["loss"] < values[0]["loss"]


# ---- learning --------------------------------------------------------------------------------------


@pytest.mark.long
def test_over_fits_two_clips():
    changes = {"optimizer": {**FAST, "lr": 3e-3}, "loss": {"mel": 1}, "seed": 1}
    stage = stage_of(model=model(encoder_width=8, acoustic_dim=20), **changes)
    clips = CLIPS[::2]
    run(stage, 1, clips)
    before = {name: float(mean.value()) for name, mean in stage.measure(batch(*clips), transcribe=False).means.items()}
    run(stage, 24, clips)
    after = {name: float(mean.value()) for name, mean in stage.measure(batch(*clips), transcribe=False).means.items()}
    for name, share in {"stft": 0.75, "subband_stft": 0.75, "mel": 0.7, "semantic": 0.5}.items():
        assert after[name] < share * before[name], (before, after)


def test_accumulated_micro_batches_draw_alike():
    stage = stage_of(n_q=[1, 2, 3, 4, 8])
    seeded(0)
    report = stage.step([batch(CLIPS[0]), batch(CLIPS[2])], 4)
    used = (report.counts.sum(dim=1) == 64).sum()
    assert used == stage.codebooks_of(4)
    assert report.counts[used:].sum() == 0


@pytest.mark.long
def test_blocks_can_be_computed_again():
    """Less is kept, and nothing else differs."""
    expected, got = (run(stage_of(engine={"checkpoint_activations": again}), 2) for again in (False, True))
    for ours, theirs in zip(got, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


# ---- processes, runs -------------------------------------------------------------------------------

VALIDATION = [CLIPS[:1], CLIPS[1:]]
SEED = 2  # draws different numbers
STEPS = [[((), CLIPS[:2])], [(CLIPS[1:], CLIPS[:1]), (CLIPS[:1], CLIPS[1:2])]]


def learn(rank=None, kind="ddp"):
    """Values and norms of every step, what each drew, a validation, and the networks in the end."""
    # With the usual eps Adam makes whole steps of gradients that are nothing but rounding.
    steady = {**FAST, "eps": 0.1}
    made = recipe_of(engine={"kind": kind}, ema=0.5, seed=SEED, optimizer=steady, discriminator_optimizer=steady)
    engine = Engine(made.engine)
    stage = open_stage(made, engine)
    values, drawn = [], []
    for number, pairs in enumerate(STEPS):
        # As the trainer does it, every process has numbers of its own; for all, process 0 draws.
        seeded(number + 100 * (rank or 0))
        report = stage.step([batch(*(pair[0] + pair[1] if rank is None else pair[rank])) for pair in pairs], number)
        average = all_reduce_(torch.stack(list(report.values.values()))) / world_size()
        norms = {name: float(norm) for name, norm in report.norms.items()}
        values.append(dict(zip(report.values, average.tolist(), strict=True)) | norms)
        drawn.append(int((all_reduce_(report.counts.clone()).sum(dim=1) > 0).sum()))
    mine = VALIDATION if rank is None else VALIDATION[rank::2]
    measured = validate(stage, engine, iter([batch(*clips) for clips in mine]), ValidationConfig(listen=0)).values
    states = {name: network_state(network, lambda _: True) for name, network in stage.networks.items()}
    return {"values": values, "drawn": drawn, "measured": measured, "states": states}


@pytest.mark.long
def test_two_processes_equal_one(tmp_path):
    first, second = two_processes(learn, tmp_path)
    whole = learn(kind="single")
    assert first["values"] == second["values"]
    assert first["drawn"] == second["drawn"] == whole["drawn"]
    assert len(set(first["drawn"])) > 1
    for ours, theirs in zip(first["values"], whole["values"], strict=True):
        assert ours == pytest.approx(theirs, rel=5e-5)
    assert first["measured"] == pytest.approx(whole["measured"], rel=1e-5)
    for network, state in whole["states"].items():
        for key, value in state.items():
            torch.testing.assert_close(first["states"][network][key], value, atol=1e-5, rtol=1e-4, msg=key)


def run_settings(cuts, output, **changes):
    ours = {
        "stage": "xcodec",
        "model": model(),
        "semantic_weights": None,
        "discriminators": {"channels": 8},
        "discriminator_optimizer": {"lr": 1e-3},
        "ema": 0.9,
        "loss": {},
    }
    whole = settings(cuts, output, data={"clip_seconds": SECONDS, "crop": "random"})
    kept = {key: value for key, value in whole.items() if key not in ("towers", "freeze_semantic", "lm")}
    return kept | ours | {"steps": 5, "checkpoint": {"every": 10}, "validation": {"every": 5, "clips": 2}} | changes


@pytest.mark.long
def test_a_run_stops_resumes_and_is_a_codec(tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    source = save_codec(random_codec(tiny_config()), tmp_path / "source")

    def train(name, *more):
        mapping = run_settings(corpus, tmp_path / name, semantic_weights=str(source))
        ended = xycodec(tmp_path, "train", write_recipe(tmp_path / f"{name}.yaml", mapping), *more)
        assert ended.code == 0, ended
        return ended.out

    train("whole")
    assert "stopped" in train("run", "minutes=1e-9")
    # What the run started from is not needed any more.
    assert "finished" in train("run", "--resume", f"semantic_weights={tmp_path}/gone")
    assert_same_lines(lines_of(tmp_path / "run"), lines_of(tmp_path / "whole"))
    assert_same_lines(lines_of(tmp_path / "run", "valid"), lines_of(tmp_path / "whole", "valid"))
    ours, theirs = (read_checkpoint(find_checkpoint(tmp_path / name)) for name in ("run", "whole"))
    assert ours["networks"].keys() == {"model", "discriminators", "ema"}
    for network, tensors in theirs["networks"].items():
        for key, value in tensors.items():
            torch.testing.assert_close(ours["networks"][network][key], value, msg=key)
    assert_is_the_average(load_codec(tmp_path / "run", device="cpu"), ours, source)


def assert_is_the_average(codec, checkpoint, source):
    audio = CLIPS[0].audio[None]
    assert codec.decode(codec.encode(audio).codes).audio.shape == (1, 32 * 320)
    assert codec.model_id == "x-tiny"
    weight = checkpoint["networks"]["ema"]["codec.fusion.weight"]
    assert torch.equal(codec.fusion.weight, weight)
    assert not torch.equal(weight, checkpoint["networks"]["model"]["codec.fusion.weight"])
    features = load_codec(source, device="cpu").semantic_features(audio)
    torch.testing.assert_close(codec.semantic_features(audio), features)


# ---- how it starts ---------------------------------------------------------------------------------


def test_latents_pass_the_quantizer_by_until_it_is_to_start():
    stage = stage_of(quantize_from=2, n_q=[3])
    quantizer = stage.codec.quantizer
    before = copy_of(quantizer)
    values = run(stage)
    assert "commitment" not in values[0]
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())
    measured = stage.measure(batch(*CLIPS), transcribe=False)
    assert "commitment" not in measured.means
    assert not measured.counts.any()
    seeded(2)
    values = stage.step([batch(*CLIPS)], 2).values
    assert values["commitment"] > 0
    assert quantizer.inited.all()
    assert "commitment" in stage.measure(batch(*CLIPS), transcribe=False).means


@pytest.mark.parametrize("semantic", [True, False])
def test_a_scaled_start_keeps_the_size_of_speech(semantic):
    wide = {"encoder_width": 16, "decoder_width": 128, "acoustic_dim": 32}
    sizes = model(**wide) if semantic else model(semantic=None, **wide)
    spreads = {}
    for start in ("plain", "scaled"):
        codec = build(recipe_of(model=sizes, start=start))[0].codec
        with torch.no_grad():
            latents = codec.acoustic_encoder(0.1 * torch.randn(2, 1, 9600, generator=torch.Generator().manual_seed(0)))
            joint = (
                torch.cat([latents.transpose(1, 2), torch.randn(2, 30, 20)], dim=-1)
                if semantic
                else latents.transpose(1, 2)
            )
            audio = codec.decode_latents(codec.fusion(joint) if semantic else joint)
        spreads[start] = float(latents.std(dim=2).mean()), float(audio.std())
    assert 0.3 < spreads["scaled"][0] < 4
    assert 0.02 < spreads["scaled"][1] < 0.5
    assert spreads["plain"][0] < 0.1


@torch.no_grad()
def test_a_scaled_start_keeps_the_halves_apart():
    """Either decoder reads its own half, as it went in."""
    codec = build(recipe_of(model=model(), start="scaled"))[0].codec
    acoustic, semantic = torch.randn(2, 30, codec.config.acoustic_dim), torch.randn(2, 30, 20)
    latents = codec.fusion(torch.cat([acoustic, semantic], dim=-1))
    torch.testing.assert_close(codec.acoustic_proj(latents), acoustic)
    torch.testing.assert_close(codec.semantic_proj(latents), semantic)


# ---- where the semantic model comes from -----------------------------------------------------------


def semantic_config(kind="hubert", **changes):
    sizes = {"d_model": 20, "layers": 2, "heads": 2, "ffn_dim": 28, "conv_dim": 8}
    return SelfSupervisedConfig(**{"kind": kind, **sizes, "position_kernel": 16, "position_groups": 4, **changes})


def save_transformers(folder, kind="hubert", **changes):
    transformers.utils.logging.disable_progress_bar()
    config, made = {
        "hubert": (transformers.HubertConfig, transformers.HubertModel),
        "wavlm": (transformers.WavLMConfig, transformers.WavLMModel),
    }[kind]
    sizes = {"hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 28,
             "conv_dim": (8,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}  # fmt: skip
    torch.manual_seed(7)
    network = made(config(**sizes, **changes)).eval()
    network.save_pretrained(folder)
    return network


@pytest.mark.parametrize("kind", ["hubert", "wavlm"])
def test_starts_from_a_model_of_transformers(tmp_path, kind):
    theirs = save_transformers(tmp_path / "ssl", kind)
    config = model(semantic=semantic_config(kind))
    codec = build(recipe_of(model=config, semantic_weights=str(tmp_path / "ssl")))[0].codec
    audio = 0.1 * torch.randn(2, 3200)
    with torch.no_grad():
        states = theirs(F.pad(audio, (160, 160)), output_hidden_states=True).hidden_states
    torch.testing.assert_close(codec.semantic_features(audio), torch.stack(states).mean(0), atol=1e-5, rtol=1e-5)
    assert not any(p.requires_grad for p in codec.semantic_model.parameters())


def test_starts_from_a_codec_and_from_a_run(tmp_path):
    codec = random_codec(tiny_config(), seed=4)
    save_codec(codec, tmp_path / "codec")
    audio = 0.1 * torch.randn(2, 3200)
    stage = stage_of(semantic_weights=str(tmp_path / "codec"))
    torch.testing.assert_close(stage.codec.semantic_features(audio), codec.semantic_features(audio))
    save(stage, tmp_path / "run")
    other = build(recipe_of(semantic_weights=str(tmp_path / "run"), seed=9))[0].codec
    torch.testing.assert_close(other.semantic_features(audio), codec.semantic_features(audio))
    assert not torch.equal(other.fusion.weight, stage.codec.fusion.weight)


@pytest.mark.parametrize(
    ("made", "error", "words"),
    [
        (lambda folder: save_transformers(folder, hidden_act="relu") and folder, ConfigError, "hidden_act is relu"),
        (lambda folder: save_transformers(folder, "wavlm") and folder, ConfigError, "model_type is wavlm"),
        (lambda folder: save_codec(random_codec(tiny_config(semantic=None)), folder), CheckpointError, "no HuBERT"),
        (lambda folder: save_codec(random_codec(tiny_config(semantic=semantic_config(ffn_dim=12))), folder),
         ConfigError, "semantic.ffn_dim is 12"),
        (lambda folder: folder, CheckpointError, "no such file or folder"),
    ],
)  # fmt: skip
def test_other_semantic_models_are_refused_in_one_line(tmp_path, made, error, words):
    source = made(tmp_path / "source")
    with pytest.raises(error, match=words) as raised:
        build(recipe_of(semantic_weights=str(source)))
    assert "\n" not in str(raised.value)


# ---- recipes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_q": [1, 9]}, "n_q: 9 codebooks of 8"),
        ({"n_q": []}, "n_q"),
        ({"model": model(semantic=None), "semantic_weights": "a/b"}, "semantic_weights: model.semantic is null"),
        ({"engine": {"kind": "fsdp2"}}, "two optimizers"),
        ({"discriminators": {"channels": 12}}, "channels: Input should be a multiple of 8"),
        (
            {"loss": dict.fromkeys(("adversarial", "feature", "stft", "subband_stft", "mel"), 0)},
            "loss: the decoder has none",
        ),
        ({"loss": {"stff": 1}}, "did you mean 'stft'"),
    ],
)
def test_recipes_are_refused_in_one_line(changes, words):
    with pytest.raises(ConfigError) as raised:
        recipe_of(**changes)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_files_in_configs():
    """The published recipe, of which the others change what their names say."""
    recipes = {path.stem: load_recipe(path) for path in CONFIG_FOLDER.glob("*.yaml")}
    assert set(recipes) == {
        "train", "baseline", "general", "general_baseline", "wavlm", "debug", "hubert_general", "published_code",
    }  # fmt: skip
    train, baseline = recipes["train"], recipes["baseline"]
    own = {"model_id": "x-codec-own"}
    assert train.model == XCODEC_CONFIGS["x-codec-hubert"].model_copy(update=own)
    assert train.optimizer == train.discriminator_optimizer == XCodecOptimizerConfig()
    assert (train.optimizer.lr, train.optimizer.betas, train.optimizer.eps) == (2e-4, (0.8, 0.99), 1e-6)
    assert (train.optimizer.clip, train.optimizer.weight_decay, train.discriminators.channels) == (2, 0.01, 512)
    assert train.loss.model_dump() == {
        "adversarial": 1, "feature": 20, "stft": 1, "subband_stft": 1, "mel": 45, "waveform": 0, "commitment": 1,
        "semantic": 100,
    }  # fmt: skip
    assert train.loss == XCodecLoss()
    code = recipes["published_code"]
    assert code.loss == train.loss.model_copy(update={"mel": 0})
    assert not code.model.quantizer.commit_every_layer
    assert code.model.quantizer == train.model.quantizer.model_copy(update={"commit_every_layer": False})
    other = {"output", "loss", "model"}
    assert code.model_dump(exclude=other) == train.model_dump(exclude=other)
    # Crops are multiples of 1280 samples, and nothing is added to them.
    assert round(train.data.clip_seconds * 16_000) % 1280 == 0
    without = {"output", "model", "semantic_weights"}
    assert baseline.model_dump(exclude=without) == train.model_dump(exclude=without)
    assert (baseline.model.semantic, baseline.semantic_weights, baseline.model.latent_dim) == (None, None, 256)
    assert [source.weight for source in recipes["general"].data.train] == [1, 1, 1]


def test_a_preset_of_the_other_model_is_refused(tmp_path):
    path = write_recipe(tmp_path / "a.yaml", run_settings("a", "b", model={"preset": "xy-mini"}))
    with pytest.raises(ConfigError, match=r"model\.preset: 'xy-mini' is not one of x-codec-hubert"):
        load_recipe(path)


def test_dry_run(tmp_path):
    """The paper's sizes, with weight norm; the discriminator's published number."""
    corpus = write_corpus(tmp_path / "corpus", clips=3)
    path = CONFIG_FOLDER / "train.yaml"
    plan = plan_run(load_recipe(path, (f"data.train=[{corpus}]", "data.valid=[]", "engine.device=cpu")))
    parts = {part.name: (part.parameters, part.trainable) for part in plan.parts}
    assert parts["acoustic_encoder"] == (12_770_944, 12_770_944)
    assert parts["acoustic_decoder"] == (20_209_730, 20_209_730)
    assert parts["semantic_model"] == (94_371_712, 0)
    assert parts["frequencies"] == (5_256_372, 5_256_372)
    assert plan.memory_gib["activations"] > 1
    assert (plan.stage, plan.clips_per_step) == ("xcodec", 8)
