import pytest
import torch
from tests.reference import tiny_config
from tests.training import batch, clip, posttraining, pretraining, seeded, tiny_model

from xycodec.checkpoints.build import random_codec
from xycodec.checkpoints.save import save_codec
from xycodec.errors import ConfigError
from xycodec.models.xy_tokenizer.model import RAISE, XYTokenizer
from xycodec.train.config import EngineConfig
from xycodec.train.distances import feature_distance, state_distance, states_of_audio, states_of_features
from xycodec.train.engine import Engine
from xycodec.train.stages.posttrain import PosttrainStage
from xycodec.train.stages.pretrain import PretrainStage

CLIPS = (clip(0), clip(1, 0.6), clip(2, 1.3))
STATES = {"loss": {"asr": 0, "mel": 0, "features": 10, "states": 3}}


@pytest.fixture
def codec():
    torch.manual_seed(0)
    return XYTokenizer(tiny_config()).eval()


def stage_of(**changes):
    return PretrainStage(pretraining(**changes), Engine(EngineConfig(device="cpu", precision="float32")))


def test_features_of_the_clip_itself_are_at_no_distance(codec):
    one = batch(*CLIPS)
    ideal = codec.ideal_features(one.audio, one.lengths)
    assert feature_distance(codec, ideal, one).value() == 0
    assert feature_distance(codec, ideal + 0.25, one).value() == pytest.approx(0.25, rel=1e-5)


def test_the_state_distance_is_relative_and_padding_counts_nothing():
    target = torch.randn(2, 5, 8)
    target[1, 3:] = 0
    decoded = 1.5 * target
    assert state_distance(decoded, target).value() == pytest.approx(0.5, rel=1e-5)
    whole, first = state_distance(decoded, target), state_distance(decoded[:1], target[:1])
    joined = first + state_distance(decoded[1:, :3], target[1:, :3])
    torch.testing.assert_close(joined.value(), whole.value(), rtol=1e-6, atol=0)


def test_states_of_true_features_are_those_of_the_encoder(codec):
    audio = torch.stack([one.audio for one in (clip(0), clip(4))])[:, : 12 * 1280]
    with torch.no_grad():
        encoded = codec.encode_latents(audio, [audio.shape[1]] * 2)
        read = states_of_features(codec, codec.ideal_features(audio, [audio.shape[1]] * 2), None)
        heard = states_of_audio(codec, audio, None)
    # The last rows see the silence after the clip, of which features and audio here hold less.
    far = (encoded.semantic - encoded.semantic.mean(dim=1, keepdim=True)).abs().mean()
    assert codec.ideal_features(audio, [audio.shape[1]] * 2).min() > 0.5 * RAISE
    assert (read - encoded.semantic).abs().mean() < 0.1 * far
    assert (heard - encoded.semantic).abs().mean() < 0.1 * far


def test_its_gradient_reaches_the_encoder_and_not_the_frozen_tower():
    stage = stage_of(**STATES | {"loss": {"asr": 0, "mel": 0, "features": 1e-9, "states": 3, "commitment": 0}})
    seeded(0)
    before = {name: value.clone() for name, value in stage.model.named_parameters()}
    assert float(stage.step([batch(*CLIPS)], 0).values["states"]) > 0.1
    moved = {name for name, value in stage.model.named_parameters() if not torch.equal(value, before[name])}
    assert any(name.startswith("codec.acoustic_encoder.") for name in moved)
    assert not any(name.startswith("codec.semantic_encoder.") for name in moved)


def test_learning_lowers_it():
    stage = stage_of(**STATES)
    values = []
    for number in range(25):
        seeded(number)
        values.append(float(stage.step([batch(*CLIPS)], number).values["states"]))
    assert sum(values[-3:]) < 0.8 * sum(values[:3])


def test_validation_measures_it_and_it_is_part_of_the_loss():
    stage = stage_of(**STATES)
    values = {name: float(mean.value()) for name, mean in stage.measure(batch(*CLIPS), transcribe=False).means.items()}
    with_states = stage.loss(values)
    assert with_states - stage.loss({**values, "states": 0.0}) == pytest.approx(3 * values["states"], rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": tiny_model(semantic_encoder=None, semantic_encoder_adapter=None).model_dump()}, "has none"),
        ({"freeze_semantic": False}, "freeze_semantic"),
        ({"loss": {"asr": 0, "states": 1}}, r"loss\.features"),
    ],
)
def test_what_it_needs_is_told(changes, told):
    with pytest.raises(ConfigError, match=rf"states.*{told}"):
        pretraining(**STATES | changes)


# ---- random positions --------------------------------------------------------------------------


def test_a_later_position_is_another_one_and_the_first_is_the_default(codec):
    audio = clip(0).audio[None]
    with torch.no_grad():
        default, first, later = (codec.encode_latents(audio, [16_000], *place).latents for place in ((), (0,), (5,)))
    assert torch.equal(default, first)
    assert not torch.allclose(default, later, atol=1e-3)


def test_random_positions_are_drawn_in_training_only_and_fit_the_window():
    stage = stage_of(**STATES, positions="random")
    seen = []
    encoder = stage.codec.acoustic_encoder
    encoder.register_forward_pre_hook(lambda _, args: seen.append(args[3]))
    whole = batch(clip(0, 2.0))
    for number in range(6):
        seeded(number)
        stage.step([batch(*CLIPS)], number)
        stage.step([whole], number)
    short, full = seen[::2], seen[1::2]
    assert full == [0] * 6  # a clip as long as the window has one place
    assert len(set(short)) > 2
    # 25 frames, of which the longest clip takes 17
    assert all(place % 4 == 0 and place <= 8 * 4 for place in short)
    stage.measure(batch(*CLIPS), transcribe=False)
    assert seen[-1] == 0


# ---- in post-training --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_codec(random_codec(tiny_model()), tmp_path_factory.mktemp("codec") / "weights")


def test_the_decoder_learns_from_what_is_heard_in_its_audio(weights):
    loss = {"adversarial": 0, "feature": 0, "mel": 1, "log_mel": 3, "states": 2}
    stage = PosttrainStage(
        posttraining(weights, loss=loss, segment_seconds=0.6, positions="random"),
        Engine(EngineConfig(device="cpu", precision="float32")),
    )
    frozen = {name: value.clone() for name, value in stage.codec.state_dict().items()}
    values = []
    for number in range(25):
        seeded(number)
        report = stage.step([batch(*CLIPS)], number)
        assert {"mel", "log_mel", "states", "loss"} <= report.values.keys()
        values.append(float(report.values["states"]))
    assert sum(values[-5:]) < 0.9 * sum(values[:5])
    fixed = ("semantic_encoder.", "acoustic_encoder.", "quantizer.")
    assert all(
        torch.equal(value, frozen[name]) for name, value in stage.codec.state_dict().items() if name.startswith(fixed)
    )
    measured = stage.measure(batch(*CLIPS), transcribe=False)
    assert {"mel", "log_mel", "states"} == measured.means.keys()


def test_another_output_rate_cannot_be_heard(weights):
    with pytest.raises(ConfigError, match=r"loss\.states.*16 kHz"):
        PosttrainStage(
            posttraining(weights, loss={"states": 1}, output_sample_rate=24000),
            Engine(EngineConfig(device="cpu", precision="float32")),
        )
