"""Initial weights of an X-Codec: its tower from a recogniser, a codec or a Whisper, or all of another X-Codec."""

import pytest
import torch
from tests.checkpoints.test_whisper_init import whisper
from tests.published_xcodec import tiny_config
from tests.training import recipe

import reference
from xycodec.checkpoints.build import random_codec
from xycodec.checkpoints.load import load_codec
from xycodec.checkpoints.save import save_codec
from xycodec.errors import CheckpointError, ConfigError
from xycodec.models.xy_tokenizer.model import XYTokenizer
from xycodec.train.checkpoint import RunState, network_state, save_state
from xycodec.train.engine import Engine
from xycodec.train.init.weights import start_towers
from xycodec.train.stages.ctc import CtcStage
from xycodec.train.stages.xcodec import XCodecStage, build

DATA = {"train": ["unused"], "clip_seconds": 1}
TOWER = {"kind": "tower", "d_model": 32, "layers": 2, "heads": 4, "ffn_dim": 48, "positions": 50}


def from_recogniser(folder):
    sizes = {key: TOWER[key] for key in ("d_model", "layers", "heads", "ffn_dim")}
    made = recipe("ctc", tower=sizes, window_frames=20, characters="ab ", data={"train": ["unused"], "clip_seconds": 1})
    stage = CtcStage(made, Engine(made.engine))
    networks = {name: network_state(network, lambda _: True) for name, network in stage.networks.items()}
    about = stage.model_config()
    save_state(folder, RunState(stage.name, 1, 0, 1, None, None, {}, networks, recogniser=about), 1, best=False)
    return stage.recogniser.tower


def from_xy(folder):
    codec = random_codec(reference.tiny_config())
    save_codec(codec, folder)
    return codec.semantic_encoder


def from_x(folder):
    codec = random_codec(tiny_config(semantic={**TOWER, "positions": 60}, window_frames=50))
    save_codec(codec, folder)
    return codec.semantic_model.tower


def from_whisper(folder):
    whisper().save_pretrained(folder)
    codec = XYTokenizer(reference.tiny_config())
    start_towers(codec, str(folder))
    return codec.semantic_encoder


def codec_from(source, **changes):
    model = tiny_config(semantic=TOWER | changes, window_frames=50).model_dump()
    made = recipe("xcodec", model=model, semantic_weights=str(source), data=DATA, discriminators={"channels": 8})
    return build(made)[0].codec


@pytest.mark.parametrize("made", [from_recogniser, from_xy, from_x, from_whisper])
def test_a_tower_starts_from_whoever_has_one(tmp_path, made):
    theirs = made(tmp_path / "source").state_dict()
    codec = codec_from(tmp_path / "source")
    for name, value in codec.semantic_model.tower.state_dict().items():
        assert torch.equal(value, theirs[name][: len(value)]), name
    assert not any(p.requires_grad for p in codec.semantic_model.parameters())


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"layers": 1}, "model.semantic has 1 layers"), ({"positions": 1501}, "lower model.semantic.positions")],
)
@pytest.mark.parametrize("made", [from_recogniser, from_xy, from_x, from_whisper])
def test_a_tower_of_another_size_is_refused_in_one_line(tmp_path, made, changes, words):
    made(tmp_path / "source")
    with pytest.raises(ConfigError, match=words) as raised:
        codec_from(tmp_path / "source", **changes)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("semantic", [None, tiny_config().semantic])
def test_a_codec_without_a_tower_is_refused(tmp_path, semantic):
    save_codec(random_codec(tiny_config(semantic=semantic)), tmp_path / "codec")
    with pytest.raises(CheckpointError, match="holds no tower: name a Whisper"):
        codec_from(tmp_path / "codec")


def test_a_tower_is_no_self_supervised_model(tmp_path):
    from_x(tmp_path / "codec")
    model = tiny_config().model_dump()
    made = recipe("xcodec", model=model, semantic_weights=str(tmp_path / "codec"), data=DATA)
    with pytest.raises(ConfigError, match=r"its semantic\.\w+ is .*, model\.semantic asks for"):
        build(made)


# ---- all of it -------------------------------------------------------------------------------------


def small(**changes):
    settings = {"model": tiny_config().model_dump(), "semantic_weights": None, "data": DATA}
    return recipe("xcodec", **{**settings, "discriminators": {"channels": 8}, **changes})


def saved_run(folder):
    """A checkpoint whose discriminators and weight norms are not those of a start."""
    made = small(seed=5)
    stage = XCodecStage(made, Engine(made.engine))
    for network in stage.networks.values():
        reference.randomise(network, seed=3)
    networks = {name: network_state(network, lambda _: True) for name, network in stage.networks.items()}
    save_state(folder, RunState(stage.name, 1, 0, 1, None, stage.model_config(), {}, networks), 1, best=False)
    return stage


def same_as(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["run", "folder"])
def test_all_weights_come_from_another_one(tmp_path, kind):
    stage = saved_run(tmp_path / "run")
    source = tmp_path / "run"
    if kind == "folder":
        source = tmp_path / "codec"
        save_codec(load_codec(tmp_path / "run", device="cpu"), source)
    generator, discriminators = build(small(weights=str(source), semantic_weights="never/read"))
    audio = 0.1 * torch.randn(1, 6400)
    with torch.no_grad():
        ours, theirs = (c.eval().encode_latents(audio) for c in (generator.codec, stage.codec))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(generator.codec.decode_latents(ours), stage.codec.decode_latents(theirs))
    trained = {name for name, p in generator.named_parameters() if p.requires_grad}
    assert any("parametrizations" in name for name in trained)
    same = [
        torch.equal(a, b) for a, b in zip(discriminators.parameters(), stage.discriminators.parameters(), strict=True)
    ]
    assert all(same) if kind == "run" else not any(same)
    fresh = build(small(weights=str(source), keep_discriminators=False))[1]
    assert not any(
        torch.equal(a, b) for a, b in zip(fresh.parameters(), stage.discriminators.parameters(), strict=True)
    )


def test_weights_of_another_size_are_refused_in_one_line(tmp_path):
    saved_run(tmp_path / "run")
    wide = tiny_config(encoder_width=8).model_dump()
    for changes, error, words in (
        ({"model": wide}, CheckpointError, "of another architecture than the recipe's model"),
        ({"discriminators": {"channels": 16}}, ConfigError, "its discriminators differ"),
        ({"weights": "xy-random-or-none"}, CheckpointError, "no such file"),
    ):
        with pytest.raises(error, match=words) as raised:
            build(small(**{"weights": str(tmp_path / "run"), **changes}))
        assert "\n" not in str(raised.value)
    save_codec(random_codec(reference.tiny_config()), tmp_path / "xy")
    with pytest.raises(CheckpointError, match="holds XYTokenizer, weights is to name an X-Codec"):
        build(small(weights=str(tmp_path / "xy")))
