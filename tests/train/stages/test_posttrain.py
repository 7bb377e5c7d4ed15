import pytest
import torch
from tests.training import NoLooking, batch, clip, posttraining, pretraining, seeded, tiny_model

from xycodec.checkpoints.build import random_codec
from xycodec.checkpoints.load import load_codec
from xycodec.checkpoints.save import save_codec
from xycodec.errors import ConfigError
from xycodec.models.xy_tokenizer.config import VocosConfig
from xycodec.nn.discriminators import Discriminators
from xycodec.train.checkpoint import RunState, load_optimizer, network_state, optimizer_state, save_state
from xycodec.train.config import EngineConfig
from xycodec.train.engine import Engine
from xycodec.train.stages.posttrain import FROZEN, PosttrainStage, build
from xycodec.train.stages.pretrain import PretrainStage

CLIPS = (clip(0, 0.4), clip(1, 0.3))
FAST = {"channels": 4, "spectrogram": False}
KEPT = tuple(f"codec.{part}." for part in FROZEN)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_codec(random_codec(tiny_model()), tmp_path_factory.mktemp("codecs") / "codec")


def stage_of(weights, *, precision="float32", **changes):
    recipe = posttraining(weights, **{"discriminators": FAST, **changes})
    return PosttrainStage(recipe, Engine(EngineConfig(device="cpu", precision=precision)))


def run(stage, steps=2, clips=CLIPS, rate=16_000):
    values = []
    for number in range(steps):
        seeded(number)
        report = stage.step([batch(*clips, rate=rate)], number)
        values.append({name: float(value) for name, value in (report.values | report.norms).items()})
    return values


def save(stage, run):
    """A checkpoint of a stage's networks, as the trainer writes it."""
    networks = {name: network_state(network, lambda _: True) for name, network in stage.networks.items()}
    state = RunState(stage.name, 1, 0, 1, None, stage.model_config(), {}, networks)
    return save_state(run, state, keep=1, best=False)


def codes_of(codec):
    # Without the quantizer's own near-ties: a clip that codes do not sit on.
    return codec.encode(CLIPS[0].audio[None]).codes


# ---- what moves ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "freeze_adapter"), [("float32", True), ("float32", False), ("bf16", True)])
def test_encoder_and_codebooks_stay_bit_for_bit(weights, precision, freeze_adapter):
    stage = stage_of(weights, precision=precision, freeze_adapter=freeze_adapter)
    before = {name: {k: v.clone() for k, v in net.state_dict().items()} for name, net in stage.networks.items()}
    values = run(stage)
    assert all(torch.isfinite(torch.tensor(list(step.values()))).all() for step in values)
    assert set(values[0]) == {
        "mel", "adversarial", "feature", "discriminator", "loss", "grad_norm", "discriminator_grad_norm",
    }  # fmt: skip
    assert values[0]["loss"] == pytest.approx(15 * values[0]["mel"] + values[0]["feature"] + values[0]["adversarial"])
    trained = {name for name, value in stage.generator.named_parameters() if value.requires_grad}
    for name, value in stage.generator.state_dict().items():
        assert torch.equal(value, before["model"][name]) == (name not in trained), name
    assert not any(name.startswith(KEPT) for name in trained)
    parts = {name.split(".")[1] for name in trained}
    assert parts == {"upsample", "acoustic_decoder", "vocos"} | (set() if freeze_adapter else {"post_rvq_adapter"})
    for name, value in stage.discriminators.named_parameters():
        assert not torch.equal(value, before["discriminators"][name]), name
        assert value.requires_grad
    assert not any(part.training for name in FROZEN for part in getattr(stage.generator.codec, name).modules())
    assert stage.generator.codec.vocos.training


@pytest.mark.parametrize("freeze_adapter", [True, False])
def test_a_run_goes_on_with_what_it_trained(weights, tmp_path, freeze_adapter):
    """Earlier versions always trained the adapter, and had no setting for it."""
    begun = stage_of(weights, freeze_adapter=freeze_adapter)
    run(begun, 1)
    place = save(begun, tmp_path)
    state = RunState(begun.name, 1, 0, 1, None, begun.model_config(), {})
    for name, updater in begun.updaters.items():
        state.optimizers[name] = optimizer_state(updater.network, updater.optimizer)
    recipe = posttraining(weights, discriminators=FAST)
    changes = PosttrainStage.resumed(recipe, place, state)
    resumed = PosttrainStage(recipe.model_copy(update=changes), begun.engine)
    for name, updater in resumed.updaters.items():
        load_optimizer(updater.network, updater.optimizer, state.optimizers[name])
    assert resumed.codec.post_rvq_adapter.proj.weight.requires_grad != freeze_adapter


def test_another_rate_is_another_model(weights):
    name = stage_of(weights).model_config()["model_id"]
    assert stage_of(weights, output_sample_rate=24000).model_config()["model_id"] == f"{name}-24k"
    assert stage_of(weights, output_sample_rate=16000).model_config()["model_id"] == name


@pytest.mark.parametrize(("left_out", "kept"), [("feature", "adversarial"), ("adversarial", "feature")])
def test_a_loss_without_weight_is_not_computed(weights, left_out, kept):
    values = run(stage_of(weights, loss={left_out: 0}), 1)[0]
    assert left_out not in values
    assert values["loss"] == pytest.approx(15 * values["mel"] + values[kept])


def test_discriminators_learn_first(weights):
    stage = stage_of(weights)
    order = []
    for name, updater in stage.updaters.items():
        updater.update = lambda step, n=name, u=updater.update: order.append(n) or u(step)
    plain = stage.discriminators
    seen = []
    plain.register_forward_hook(
        lambda module, args, _: seen.append((module.training, torch.is_grad_enabled(), args[0].requires_grad, *order))
    )
    run(stage, 1)
    assert order == ["discriminators", "model"]
    # Real and decoded in one batch; then, after their update, real without and decoded with a gradient.
    assert seen == [
        (True, True, False),
        (False, False, False, "discriminators"),
        (False, True, True, "discriminators"),
    ]


def test_the_generators_loss_gives_the_discriminators_no_gradient(weights):
    stage = stage_of(weights)
    left = {}
    update = stage.updaters["model"].update

    def look(step):
        left.update({name: value.grad for name, value in stage.discriminators.named_parameters()})
        return update(step)

    stage.updaters["model"].update = look
    run(stage, 1)
    assert left
    assert all(value is None for value in left.values())


def test_a_batch_of_nothing_teaches_nothing(weights):
    stage = stage_of(weights)
    (values,) = run(stage, 1, clips=())
    assert set(values.values()) == {0.0}


def test_mel_alone_needs_no_judgement(weights):
    stage = stage_of(weights, loss={"feature": 0, "adversarial": 0})
    calls = []
    stage.discriminators.register_forward_hook(lambda *_: calls.append(1))
    assert set(run(stage, 1)[0]) == {"mel", "loss", "grad_norm"}
    assert not calls


def test_a_part_of_each_clip_is_judged(weights):
    stage = stage_of(weights, segment_seconds=0.16)
    judged, heard = [], []
    stage.discriminators.register_forward_hook(lambda _, args, out: judged.append(args[0]))
    stage.mel.register_forward_hook(lambda _, args, out: heard.append(args))
    for number in range(4):
        seeded(number)
        stage.step([batch(*CLIPS)], number)
    places = set()
    for both, (decoded, target, lengths) in zip(judged[::3], heard, strict=True):
        assert both.shape == (2 * len(CLIPS), 2 * 1280)
        real, fake = both.chunk(2)
        assert torch.equal(real, target)
        assert torch.equal(fake, decoded.detach())
        for one, part, length in zip(CLIPS, real, lengths.tolist(), strict=True):
            starts = range(0, len(one.audio), 1280)
            (place,) = (at for at in starts if torch.equal(one.audio[at:][:length], part[:length]))
            assert length == min(2560, len(one.audio) - place)
            assert not part[length:].any()
            places.add((len(one.audio), place))
    assert len(places) > 3
    # What is measured is all of it.
    assert stage.measure(batch(*CLIPS), transcribe=False).audio.shape == (2, 5 * 1280)


# ---- another rate ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [24_000, 32_000])
def test_other_output_rates_keep_the_codes(weights, tmp_path, rate):
    stage = stage_of(weights, output_sample_rate=rate, model_id=f"tiny-{rate}", optimizer={"lr": 1e-3})
    source, own = load_codec(weights, device="cpu").state_dict(), stage.generator.codec.state_dict()
    same = {name for name, value in source.items() if name in own and torch.equal(own[name], value)}
    assert {name for name in own if name.startswith("vocos.") and name not in same} == {
        "vocos.head.out.weight", "vocos.head.out.bias", "vocos.head.istft.window",
    }  # fmt: skip
    clips = tuple(clip(number, 0.4, rate) for number in (0, 1))
    values = run(stage, 2, clips, rate)
    assert values[1]["mel"] < 1.1 * values[0]["mel"]
    measured = stage.measure(batch(*clips, rate=rate), transcribe=False)
    assert measured.audio.shape[1] >= len(clips[0].target) == 0.4 * rate
    trained = load_codec(save(stage, tmp_path), device="cpu")
    assert trained.output_sample_rate == rate
    assert trained.model_id == f"tiny-{rate}"
    codes = codes_of(trained)
    assert torch.equal(codes, codes_of(load_codec(weights, device="cpu")))
    assert trained.decode(codes).audio.shape == (1, 5 * 1280 * rate // 16_000)


def test_another_vocoder_starts_at_random(weights):
    recipe = posttraining(weights, vocos=VocosConfig(dim=48, intermediate_dim=64, layers=1).model_dump())
    generator, _ = build(recipe)
    assert generator.codec.vocos.head.out.in_features == 48
    assert len(generator.codec.vocos.backbone.convnext) == 1
    assert torch.equal(codes_of(generator.codec.eval()), codes_of(load_codec(weights, device="cpu")))


# ---- where it starts -------------------------------------------------------------------------------


def test_starts_from_a_pretraining_run(tmp_path):
    pretrained = PretrainStage(pretraining(), Engine(EngineConfig(device="cpu", precision="float32")))
    seeded(0)
    pretrained.step([batch(*CLIPS)], 0)
    checkpoint = save(pretrained, tmp_path)
    for source in (tmp_path, checkpoint):
        generator, _ = build(posttraining(source, discriminators=FAST))
        before = pretrained.codec.state_dict()
        for name, value in generator.codec.state_dict().items():
            if "input_proj" in name or "output_proj" in name:
                torch.testing.assert_close(value, before[name], atol=1e-6, rtol=1e-5) if "original0" in name else None
            else:
                assert torch.equal(value, before[name]), name
    quantizer = pretrained.codec.quantizer
    torch.testing.assert_close(generator.codec.quantizer.input_proj.weight, quantizer.input_proj.weight)


@pytest.mark.parametrize("keep", [True, False])
def test_discriminators_of_a_checkpoint_are_kept_or_not(weights, tmp_path, keep):
    stage = stage_of(weights)
    run(stage, 1)
    save(stage, tmp_path)
    generator, discriminators = build(posttraining(tmp_path, discriminators=FAST, keep_discriminators=keep))
    trained = stage.discriminators.state_dict()
    same = all(torch.equal(value, trained[name]) for name, value in discriminators.state_dict().items())
    assert same is keep
    torch.testing.assert_close(
        generator.codec.vocos.head.out.weight, stage.generator.codec.vocos.head.out.weight, rtol=0, atol=0
    )


def test_other_discriminators_are_refused_in_one_line(weights, tmp_path):
    save(stage_of(weights), tmp_path)
    wider = {**FAST, "channels": 8}
    with pytest.raises(ConfigError, match="keep_discriminators false") as raised:
        build(posttraining(tmp_path, discriminators=wider))
    assert "\n" not in str(raised.value)
    _, fresh = build(posttraining(tmp_path, discriminators=wider, keep_discriminators=False))
    assert isinstance(fresh, Discriminators)


def test_clips_longer_than_the_window_are_refused(weights):
    with pytest.raises(ConfigError, match="clip_seconds: the codec's window is 2 s"):
        build(posttraining(weights, data={"train": ["unused"], "clip_seconds": 3}))


# ---- learning --------------------------------------------------------------------------------------


def test_accumulated_micro_batches_give_the_average(weights):
    stage = stage_of(weights)
    seeded(0)
    twice = stage.step([batch(*CLIPS), batch(*CLIPS)], 0)
    once = run(stage_of(weights), 1)[0]
    got = {name: float(value) for name, value in (twice.values | twice.norms).items()}
    # Equal micro-batches: the same mel and discriminator gradients; only the second meets taught discriminators.
    assert got["mel"] == pytest.approx(once["mel"], rel=1e-5)
    assert got["discriminator"] == pytest.approx(once["discriminator"], rel=1e-3)
    assert got["discriminator_grad_norm"] == pytest.approx(once["discriminator_grad_norm"], rel=1e-2)
    assert twice.counts.sum() == 2 * 4 * (5 + 4)


@pytest.mark.long
def test_steps_lower_the_mel_distance(weights):
    values = run(stage_of(weights), 12)
    assert values[-1]["mel"] < 0.95 * values[0]["mel"]


def test_the_host_never_waits(weights):
    stage = stage_of(weights)
    with NoLooking(of_masks=1):
        stage.step([batch(*CLIPS)], 0)
    with NoLooking(of_masks=0):
        stage.step([batch(CLIPS[0], clip(4, 0.4))], 1)
