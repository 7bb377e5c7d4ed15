import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from published_layout import LAYOUTS, official_state, published_settings, respelled, tiny_config
from xycodec.checkpoints.build import random_codec
from xycodec.errors import CheckpointError
from xycodec.models.xy_tokenizer.config import CONFIGS
from xycodec.models.xy_tokenizer.convert import (
    config_from_published_yaml,
    config_from_state,
    is_published,
    published_name,
    to_ours,
)
from xycodec.models.xy_tokenizer.model import XYTokenizer

KEYS = Path(__file__).resolve().parents[4] / "shared" / "spec" / "xy_tokenizer_keys.txt"
PUBLISHED = ("xy-tokenizer", "xy-tokenizer-24k", "xy-tokenizer-32k")

needs_keys = pytest.mark.skipif(not KEYS.is_file(), reason="the list of published keys is not in ../shared/spec")


def one_line(error):
    message = str(error.value)
    assert message
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def codec():
    return random_codec(tiny_config())


@pytest.fixture
def state(codec):
    return official_state(codec)


def published_keys(rate=16000, layout="official"):
    """The full-size checkpoint without its numbers: the listed keys and shapes, for another output rate too."""
    state = {}
    for line in KEYS.read_text().splitlines():
        key, shape, dtype, _ = line.split("\t")
        sizes = tuple(int(n) for n in shape.strip("()").split(",") if n.strip())
        if key.startswith("vocos.head."):
            # head.out has 4 hops and 2 rows, the window has 4 hops
            scaled = {642: 4 * rate // 100 + 2, 640: 4 * rate // 100}
            sizes = tuple(scaled.get(n, n) for n in sizes)
        state[key] = torch.empty(sizes, dtype=getattr(torch, dtype), device="meta")
    return respelled(state, layout)


# ours and theirs


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_back_our_tensors(codec, state, layout):
    ours = to_ours(respelled(state, layout), "a checkpoint")
    expected = codec.state_dict()
    assert ours.keys() == expected.keys()
    for key, value in expected.items():
        assert ours[key].dtype == value.dtype, key
        assert torch.equal(ours[key], value), key


def test_conversion_empties_its_input(state):
    to_ours(state, "a checkpoint")
    assert state == {}


@pytest.mark.parametrize("side", ["input_proj", "output_proj"])
def test_folded_weight_norm_equals_torchs_own(state, side):
    rows, columns = state[f"quantizer.{side}.weight_v"].shape[:2]
    conv = weight_norm(nn.Conv1d(columns, rows, 1))
    torch.manual_seed(1)
    gain, direction = torch.rand(rows, 1, 1) + 0.1, torch.randn(rows, columns, 1)
    with torch.no_grad():
        conv.parametrizations.weight.original0.copy_(gain)
        conv.parametrizations.weight.original1.copy_(direction)
    state[f"quantizer.{side}.weight_g"], state[f"quantizer.{side}.weight_v"] = gain, direction
    ours = to_ours(state, "a checkpoint")[f"quantizer.{side}.weight"]
    assert torch.equal(ours, conv.weight.detach()[..., 0])


def test_downsampling_by_products_equals_the_published_convolution(codec, state):
    torch.manual_seed(2)
    x = torch.randn(2, 12, codec.config.pre_rvq_adapter.d_model)
    by_convolution = nn.functional.conv1d(x.transpose(1, 2), state["downsample.gate_proj.weight"], stride=4)
    by_product = codec.downsample.gate_proj(x.reshape(2, 3, -1))
    torch.testing.assert_close(by_product, by_convolution.transpose(1, 2))


def test_upsampling_by_a_product_equals_the_published_convolution(codec, state):
    torch.manual_seed(3)
    x = torch.randn(2, 5, codec.config.latent_dim)
    by_convolution = nn.functional.conv_transpose1d(x.transpose(1, 2), state["upsample.up_conv.weight"], stride=4)
    torch.testing.assert_close(codec.upsample(x), by_convolution.transpose(1, 2))


# the full-size list


@pytest.mark.golden
@needs_keys
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_keys_become_exactly_ours(name, layout):
    state = published_keys(CONFIGS[name].output_sample_rate, layout)
    assert is_published(respelled(state, "official"))
    config = config_from_state(state, "a checkpoint")
    assert config == CONFIGS[name]
    with torch.device("meta"):
        model = XYTokenizer(config)
    model.fold_weight_norm()
    ours = to_ours(state, "a checkpoint")
    shapes = {key: (value.shape, value.dtype) for key, value in ours.items()}
    assert shapes == {key: (value.shape, value.dtype) for key, value in model.state_dict().items()}


@pytest.mark.golden
@needs_keys
def test_the_full_size_model_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = XYTokenizer(CONFIGS["xy-tokenizer"])
    assert sum(p.numel() for p in model.parameters()) == 519_621_074


@pytest.mark.golden
@needs_keys
def test_another_architecture_is_not_taken_for_a_published_one():
    state = published_keys()
    for i in range(8):
        state[f"quantizer.quantizers.{i}.codebook"] = torch.empty(512, 512, device="meta")
    with pytest.raises(CheckpointError) as error:
        config_from_state(state, "odd.ckpt")
    assert "odd.ckpt" in one_line(error)
    assert "config.yaml" in one_line(error)


# broken checkpoints


@pytest.mark.parametrize(
    "key",
    [
        "acoustic_encoder.layers.0.self_attn.k_proj.weight",
        "acoustic_encoder.layers.0.self_attn.v_proj.bias",
        "downsample.up_proj.weight",
        "quantizer.input_proj.weight_g",
        "quantizer.output_proj.weight_v",
        "quantizer.quantizers.1.codebook",
        "quantizer.quantizers.2.inited",
        "upsample.up_conv.weight",
    ],
)
def test_a_part_that_lacks_is_named(state, key):
    del state[key]
    with pytest.raises(CheckpointError) as error:
        to_ours(state, "part.ckpt")
    assert "part.ckpt" in one_line(error)
    assert "lacks" in one_line(error)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("acoustic_encoder.layers.0.self_attn.k_proj.weight", (3, 5)),
        ("downsample.gate_proj.weight", (7,)),
        ("quantizer.quantizers.1.codebook", (2, 2)),
        ("upsample.up_conv.weight", (4, 4)),
    ],
)
def test_a_part_that_cannot_be_converted_is_refused_in_a_line(state, key, shape):
    state[key] = torch.zeros(shape)
    with pytest.raises(CheckpointError) as error:
        to_ours(state, "part.ckpt")
    assert one_line(error).startswith("part.ckpt: ")


def test_a_gain_of_the_wrong_shape_is_refused_and_does_not_crash_the_process():
    # In a process of its own: torch reads and writes past the end of a gain that is too short.
    program = (
        "import torch; from published_layout import *; from xycodec.models.xy_tokenizer.convert import to_ours;"
        "from xycodec.checkpoints.build import random_codec; state = official_state(random_codec(tiny_config()));"
        "state['quantizer.input_proj.weight_g'] = torch.zeros(3, 1, 1); to_ours(state, 'part.ckpt')"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert ran.returncode == 1, f"died with {ran.returncode}"
    assert "CheckpointError: part.ckpt: " in ran.stderr


@pytest.mark.parametrize("key", ["vocos.head.out.weight", "acoustic_decoder.layers.0.fc1.weight"])
def test_no_configuration_from_a_state_dict_that_is_not_whole(state, key):
    del state[key]
    with pytest.raises(CheckpointError) as error:
        config_from_state(state, "part.ckpt")
    assert one_line(error).startswith("part.ckpt: ")


def test_other_checkpoints_are_not_published_ones(codec):
    assert not is_published(codec.state_dict())
    assert not is_published({})


# the published config.yaml


@pytest.mark.parametrize("layout", ["official", "ttsd"])
def test_the_published_yaml_gives_the_configuration(layout):
    rate = 16000 if layout == "official" else 24000
    config = tiny_config(output_sample_rate=rate)
    given = config_from_published_yaml(published_settings(config, layout), "config.yaml")
    assert given == config.model_copy(update={"model_id": "custom"})


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_models_are_known_by_their_yaml(name):
    layout = "official" if name == "xy-tokenizer" else "ttsd"
    assert config_from_published_yaml(published_settings(CONFIGS[name], layout), "config.yaml") == CONFIGS[name]
    assert published_name(CONFIGS[name]) == name


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda data: data.pop("generator_params"), "generator_params"),
        (lambda data: data["generator_params"].pop("vocos_kwargs"), "vocos_kwargs"),
        (lambda data: data["generator_params"]["downsample_kwargs"].pop("avg_pooler"), "avg_pooler"),
        (lambda data: data["generator_params"]["quantizer_kwargs"].update(rvq_dim=11), "codebook_dim"),
        (lambda data: data["generator_params"]["vocos_kwargs"].update(dim="wide"), "vocos.dim"),
        (lambda data: data["generator_params"]["acoustic_encoder_kwargs"].update(d_model=-8), "acoustic_encoder"),
        (lambda data: data.update(sample_rate=22050), "output_sample_rate"),
        (lambda data: data.update(generator_params=[1]), "configuration"),
        (lambda data: data.update(generator_params=None), "configuration"),
    ],
)
def test_an_odd_setting_is_named(change, named):
    data = published_settings(tiny_config())
    change(data)
    with pytest.raises(CheckpointError) as error:
        config_from_published_yaml(data, "odd/config.yaml")
    assert one_line(error).startswith("odd/config.yaml: ")
    assert named in one_line(error)
