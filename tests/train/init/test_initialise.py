import pytest
import torch
from tests.reference import TINY, randomise, spread_codebooks
from tests.training import batch, clip, pretraining, save_lm, seeded, tiny_model

from xycodec.checkpoints.load import load_codec
from xycodec.checkpoints.save import save_codec
from xycodec.errors import CheckpointError
from xycodec.models.xy_tokenizer.model import RAISE, XYTokenizer
from xycodec.train.checkpoint import RunState, network_state, save_state
from xycodec.train.config import EngineConfig
from xycodec.train.engine import Engine
from xycodec.train.init.weights import adopt_codec, centre_vocoder, find_checkpoint, load_weights
from xycodec.train.stages.pretrain import PretrainStage, build

AUDIO = clip(3, 1.2).audio[None]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folded codec whose codes matter, and its folder."""
    codec = randomise(XYTokenizer(tiny_model()), scale=0.7)
    codec.fold_weight_norm()
    spread_codebooks(codec, torch.stack([clip(number).audio for number in range(6)]))
    codec.quantizer.inited.fill_(True)
    folder = tmp_path_factory.mktemp("codecs") / "codec"
    save_codec(codec.eval(), folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of pre-training with a language model: its folder, and its stage."""
    folder = tmp_path_factory.mktemp("run")
    recipe = pretraining(save_lm(folder / "lm"))
    stage = PretrainStage(recipe, Engine(EngineConfig(device="cpu", precision="float32")))
    for number in range(2):
        seeded(number)
        stage.step([batch(clip(0), clip(1))], number)
        kept = {"model": network_state(stage.model, lambda key: stage.kept("model", key))}
        save_state(folder, RunState("pretrain", number + 1, 0, 1, None, stage.model_config(), {}, kept), 5, False)
    return folder, stage


def listens(codec):
    codec.eval()
    codes = codec.encode(AUDIO).codes
    return codes, codec.decode(codes).audio


def test_a_codec_unfolds_to_the_same_codes_and_audio(source):
    loaded = load_codec(source, device="cpu")
    codec = XYTokenizer(tiny_model())
    adopt_codec(codec, loaded, "source")
    codes, audio = listens(loaded)
    assert len(codes.unique()) > 10
    got, decoded = listens(codec)
    assert torch.equal(got, codes)
    torch.testing.assert_close(decoded, audio, atol=1e-6, rtol=0)
    for proj in ("input_proj", "output_proj"):
        weight = getattr(loaded.quantizer, proj).weight
        torch.testing.assert_close(getattr(codec.quantizer, proj).weight, weight, rtol=1e-6, atol=0)
    # What training adds to the codec's own weights is a parametrization, not other tensors.
    assert loaded.quantizer.input_proj.weight.shape == weight.shape[::-1]
    codec.fold_weight_norm()
    assert torch.equal(listens(codec)[0], codes)


def test_pretraining_goes_on_from_a_codec(source):
    model = build(pretraining(weights=str(source)))
    assert torch.equal(listens(model.codec)[0], listens(load_codec(source, device="cpu"))[0])


def test_the_newest_checkpoint_of_a_run_is_taken(run):
    folder, _ = run
    names = [path.name for path in sorted((folder / "checkpoints").iterdir())]
    assert find_checkpoint(folder).name == names[-1] == "step_00000002.pt"
    assert find_checkpoint(folder / "checkpoints" / names[0]).name == names[0]
    assert find_checkpoint(folder / "lm") is None
    assert find_checkpoint(folder / "lm" / "config.json") is None


def test_a_run_of_the_same_stage_gives_all_it_has(run):
    folder, stage = run
    recipe = stage.recipe.model_copy(update={"weights": str(folder), "seed": 5})
    model = build(recipe)
    for name, value in stage.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    first = build(recipe.model_copy(update={"weights": str(find_checkpoint(folder).with_name("step_00000001.pt"))}))
    assert not torch.equal(first.codec.vocos.head.out.weight, model.codec.vocos.head.out.weight)
    alone = build(pretraining(weights=str(folder)))  # without the language model
    assert torch.equal(alone.codec.quantizer.codebook, stage.codec.quantizer.codebook)


OTHERS = [
    {"acoustic_encoder": TINY.model_copy(update={"ffn_dim": 64})},
    {"acoustic_decoder": TINY.model_copy(update={"layers": 3})},
    {"acoustic_decoder": TINY.model_copy(update={"layers": 1})},
    {"semantic_encoder": None, "semantic_encoder_adapter": None},
    {"output_sample_rate": 24_000},
]


@pytest.mark.parametrize("changes", OTHERS)
@pytest.mark.parametrize("kind", ["run", "codec"])
def test_another_architecture_is_told_in_one_line(run, source, kind, changes):
    place = run[0] if kind == "run" else source
    with pytest.raises(CheckpointError, match="of another architecture") as raised:
        build(pretraining(weights=str(place), model=tiny_model(**changes).model_dump()))
    assert str(place) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_no_such_weights_are_told_in_one_line(tmp_path):
    with pytest.raises(CheckpointError, match="no such file, folder or model") as raised:
        load_weights(build(pretraining()), tmp_path / "nothing")
    assert "\n" not in str(raised.value)


# ---- starts at random ------------------------------------------------------------------------------


def test_a_centred_vocoder_does_not_hear_the_height_of_features():
    torch.manual_seed(0)
    plain, centred = XYTokenizer(tiny_model()), XYTokenizer(tiny_model())
    centred.load_state_dict(plain.state_dict())
    centre_vocoder(centred)
    log_mel = torch.randn(1, plain.config.n_mels, 40)
    before, after = (
        codec.vocos.backbone.embed(features) for codec, features in ((plain, log_mel), (centred, log_mel + RAISE))
    )
    # At both ends the convolution sees the zeros around the features.
    torch.testing.assert_close(after[..., 3:-3], 10 * before[..., 3:-3], atol=1e-4, rtol=1e-3)
