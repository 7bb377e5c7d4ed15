import io
import json
import os
import shutil
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from published_xcodec import KINDS, OFFICIAL_FILE, official_name, official_state, tiny_config, transformers_model
from xycodec.baselines.open import HUB_IDS, open_codec
from xycodec.checkpoints.build import random_codec
from xycodec.checkpoints.load import load_codec, load_xy_tokenizer
from xycodec.checkpoints.save import save_codec
from xycodec.errors import CheckpointError
from xycodec.models.registry import MODELS
from xycodec.models.xcodec import convert as convert_xcodec
from xycodec.models.xcodec.config import XCODEC_CONFIGS
from xycodec.models.xcodec.model import XCodec

SPEC = Path(__file__).resolve().parents[3] / "shared" / "spec"
needs_keys = pytest.mark.skipif(
    not (SPEC / "x_codec_keys.txt").is_file(), reason="the lists of published keys are not in ../shared/spec"
)


def refusal(path, **options):
    """The line with which `path` is refused."""
    with pytest.raises(CheckpointError) as error:
        load_codec(path, device="cpu", **options)
    message = str(error.value)
    assert message
    assert "\n" not in message
    assert len(message) < 400
    return message


def assert_same(one, other):
    """Equal weights, codes, audio and features, to the bit."""
    left, right = one.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    for key in left:
        assert torch.equal(left[key], right[key]), key
    audio = 0.1 * torch.randn(2, 5001, generator=torch.Generator().manual_seed(1))
    made, expected = one.encode(audio), other.encode(audio)
    assert torch.equal(made.codes, expected.codes)
    assert expected.codes.unique().numel() > 30
    assert torch.equal(one.decode(made.codes).audio, other.decode(made.codes).audio)


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    return transformers_model(request.param, hidden_size=128)  # two heads of the base models' width


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """Transformers' layout."""
    path = tmp_path_factory.mktemp("transformers")
    model.save_pretrained(path)
    return path


@pytest.fixture
def copied(folder, tmp_path):
    """One to change."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.fixture(scope="module")
def from_transformers(folder):
    return load_codec(folder, device="cpu")


@pytest.fixture(scope="module")
def codec():
    return random_codec(tiny_config())


# the published layouts


@pytest.mark.parametrize("norms", ["weight_g", "parametrizations"])
def test_the_official_file_gives_the_same_codec(model, from_transformers, tmp_path, norms):
    torch.save(official_state(model, norms), tmp_path / OFFICIAL_FILE)
    loaded = load_codec(tmp_path / OFFICIAL_FILE, device="cpu")
    assert loaded.model_id == "x-codec-wavlm"
    left, right = loaded.state_dict(), from_transformers.state_dict()
    assert left.keys() == right.keys()
    for key in left:
        torch.testing.assert_close(left[key], right[key])
    audio = 0.1 * torch.randn(1, 6400)
    assert torch.equal(loaded.encode(audio).codes, from_transformers.encode(audio).codes)


def test_nothing_is_left_of_the_meta_device(from_transformers):
    assert {value.device.type for value in from_transformers.state_dict().values()} == {"cpu"}
    assert {p.device.type for p in [*from_transformers.parameters(), *from_transformers.buffers()]} == {"cpu"}
    assert not any(p.requires_grad for p in from_transformers.parameters())
    assert not from_transformers.training


def test_weights_only_and_no_code_with_entries_of_bytes(model, from_transformers, tmp_path):
    state = OrderedDict(official_state(model)) | {"odd.entry": io.BytesIO(b"left over")}
    torch.save(state, tmp_path / "weights.pth")
    loaded = load_codec(tmp_path / "weights.pth", device="cpu")
    torch.testing.assert_close(loaded.quantizer.codebook, from_transformers.quantizer.codebook)
    torch.save(state | {"code": print}, tmp_path / "code.pth")
    assert "code in it was not run" in refusal(tmp_path / "code.pth")


def test_a_training_checkpoint_of_the_authors(model, from_transformers, tmp_path):
    torch.save({"codec_model": official_state(model), "step": 3}, tmp_path / "weights.pth")
    loaded = load_codec(tmp_path, device="cpu")
    torch.testing.assert_close(loaded.quantizer.embed_avg, from_transformers.quantizer.embed_avg)


def test_a_checkpoint_of_no_known_name_is_told_apart_by_its_codes(model, from_transformers, copied, tmp_path):
    torch.save(official_state(model), tmp_path / "weights.pth")
    name = load_codec(tmp_path / "weights.pth", device="cpu").model_id
    assert name == from_transformers.model_id == load_codec(copied, device="cpu").model_id
    assert name.startswith("custom-")
    weights = load_file(copied / "model.safetensors")
    weights["quantizer.quantizers.0.codebook.embed"] += 1
    save_file(weights, copied / "model.safetensors", {"format": "pt"})
    assert load_codec(copied, device="cpu").model_id not in ("custom", name)


def test_inited_is_a_float_buffer_there_and_a_flag_here(folder, from_transformers):
    theirs = load_file(folder / "model.safetensors")["quantizer.quantizers.3.codebook.inited"]
    assert (theirs.dtype, theirs.shape) == (torch.float32, (1,))
    assert from_transformers.quantizer.inited.dtype == torch.bool
    assert from_transformers.quantizer.inited.all()


def test_our_layout_holds_the_same_codec(from_transformers, tmp_path):
    saved = save_codec(from_transformers, tmp_path / "ours")
    loaded = load_codec(saved, device="cpu")
    assert_same(loaded, from_transformers)
    assert loaded.config == from_transformers.config
    assert sorted(os.listdir(saved)) == ["README.md", "config.json", "model.safetensors"]
    assert json.loads((saved / "config.json").read_text())["model_type"] == "x-codec"


def test_heads_are_read_from_transformers_configuration(tmp_path):
    model = transformers_model("hubert")  # of 32 channels: its weights would tell one head
    model.save_pretrained(tmp_path)
    assert load_codec(tmp_path, device="cpu").config.semantic.heads == 2
    assert load_codec(tmp_path / "model.safetensors", device="cpu").config.semantic.heads == 2


# names


def test_a_hub_id_gives_the_model_its_name(monkeypatch, folder):
    monkeypatch.setattr("xycodec.checkpoints.load.fetch", lambda repo, patterns: folder)
    assert load_codec("hf-audio/xcodec-hubert-general", device="cpu").model_id == "x-codec-general"
    assert load_codec("x-codec-general", device="cpu").model_id == "x-codec-general"
    assert load_codec("somebody/else", device="cpu").model_id.startswith("custom-")


def test_a_file_of_a_repository_with_several(monkeypatch, tmp_path, model):
    torch.save(official_state(model), tmp_path / OFFICIAL_FILE)
    asked = []

    def fetch(repo, patterns):
        asked.append((repo, list(patterns)))
        return tmp_path

    monkeypatch.setattr("xycodec.checkpoints.load.fetch", fetch)
    codec = load_codec(f"ZhenYe234/xcodec:{OFFICIAL_FILE}", device="cpu")
    assert codec.model_id == "x-codec-wavlm"
    assert asked == [("ZhenYe234/xcodec", [OFFICIAL_FILE])]
    with pytest.raises(CheckpointError, match=r"has no file other\.pth"):
        load_codec("ZhenYe234/xcodec:other.pth", device="cpu")
    asked.clear()
    # Five gigabytes are not fetched to find that out.
    with pytest.raises(CheckpointError, match=f"name a file, .*{OFFICIAL_FILE}") as raised:
        load_codec("ZhenYe234/xcodec", device="cpu")
    assert not asked
    assert "\n" not in str(raised.value)


def test_our_names_are_not_those_of_the_baselines(monkeypatch, folder):
    assert not XCODEC_CONFIGS.keys() & HUB_IDS.keys()
    assert {MODELS[name].source for name in XCODEC_CONFIGS} < set(HUB_IDS.values())
    monkeypatch.setattr("xycodec.checkpoints.load.fetch", lambda repo, patterns: folder)
    for name in XCODEC_CONFIGS:
        assert isinstance(open_codec(name, device="cpu"), XCodec)


# our layout


@pytest.mark.parametrize("semantic", [True, False])
def test_a_random_codec_survives_saving(tmp_path, semantic):
    codec = random_codec(tiny_config() if semantic else tiny_config(semantic=None))
    assert_same(load_codec(save_codec(codec, tmp_path / "ours"), device="cpu"), codec)
    assert_same(random_codec(codec.config), codec)


def test_a_codec_that_is_not_folded_is_not_saved(tmp_path):
    with pytest.raises(CheckpointError, match="fold the codec's weight norm"):
        save_codec(XCodec(tiny_config()), tmp_path / "ours")


def test_where_only_an_xy_tokenizer_will_do(codec, tmp_path):
    folder = save_codec(codec, tmp_path / "ours")
    with pytest.raises(CheckpointError, match=r"holds a codec of class XCodec, not XYTokenizer$"):
        load_xy_tokenizer(folder)


def test_bfloat16_is_refused(codec, tmp_path):
    assert "float32 only" in refusal(save_codec(codec, tmp_path / "ours"), dtype=torch.bfloat16)


# broken ones


@pytest.mark.parametrize(
    "key",
    [
        "acoustic_encoder.block.1.res_unit2.conv1.weight",
        "acoustic_decoder.conv1.weight",
        "encoder_semantic.conv_blocks.0.conv.bias",
        "semantic_model.encoder.pos_conv_embed.conv.parametrizations.weight.original0",
        "semantic_model.encoder.layers.1.attention.k_proj.weight",
        "quantizer.quantizers.2.codebook.embed_avg",
        "fc1.bias",
    ],
)
def test_a_part_that_lacks_is_named(copied, key):
    weights = load_file(copied / "model.safetensors")
    del weights[key]
    save_file(weights, copied / "model.safetensors", {"format": "pt"})
    assert "lacks" in refusal(copied)


def test_a_part_too_many_is_refused(copied):
    weights = load_file(copied / "model.safetensors") | {"fc3.weight": torch.zeros(2)}
    save_file(weights, copied / "model.safetensors", {"format": "pt"})
    assert "unknown 'fc3.weight'" in refusal(copied)


@pytest.mark.parametrize("key", ["encoder.block.0.weight_g", "decoder_2.model.2.block.1.weight_g"])
def test_a_gain_of_the_wrong_shape_is_refused(model, tmp_path, key):
    state = official_state(model) | {key: torch.ones(3, 1, 1)}
    torch.save(state, tmp_path / "weights.pth")
    assert "weight norm of" in refusal(tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"sample_rate": 24_000}, "sample_rate"),
        ({"strides": [1, 2]}, "strides"),
        ({"semantic_model_config": {"feat_extract_norm": "layer"}}, "semantic_model_config.feat_extract_norm"),
        ({"semantic_model_config": {"do_stable_layer_norm": True}}, "semantic_model_config.do_stable_layer_norm"),
    ],
)
def test_a_setting_that_is_not_supported_is_named(copied, change, named):
    settings = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(settings | change))
    assert named in refusal(copied)


# the full-size lists


def listed(file):
    """The full-size checkpoint without its numbers."""
    state = {}
    for line in (SPEC / file).read_text().splitlines():
        key, shape, dtype = line.split("\t")[:3]
        sizes = tuple(int(n) for n in shape.strip("()").split(",") if n.strip())
        state[key] = torch.empty(sizes, dtype=getattr(torch, dtype), device="meta")
    return state


@pytest.mark.golden
@needs_keys
@pytest.mark.parametrize("file", ["x_codec_keys.txt", "x_codec_official_keys_derived.txt"])
def test_the_published_keys_become_exactly_ours(file):
    state = listed(file)
    assert convert_xcodec.is_published(state)
    ours = convert_xcodec.to_ours(state, "a checkpoint")
    assert (
        convert_xcodec.config_from_ours(ours, "a checkpoint", "x-codec-hubert", {}) == XCODEC_CONFIGS["x-codec-hubert"]
    )
    with torch.device("meta"):
        codec = XCodec(XCODEC_CONFIGS["x-codec-hubert"])
    codec.fold_weight_norm()
    shapes = {key: (value.shape, value.dtype) for key, value in ours.items()}
    assert shapes == {key: (value.shape, value.dtype) for key, value in codec.state_dict().items()}


@pytest.mark.golden
@needs_keys
def test_the_layout_these_tests_write_is_the_authors():
    def plain(key):
        return key.replace(".weight_g", ".weight").replace(".weight_v", ".weight")

    assert {official_name(key) for key in listed("x_codec_keys.txt")} == {
        plain(key) for key in listed("x_codec_official_keys_derived.txt")
    }
