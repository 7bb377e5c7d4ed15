"""Weights in files of bounded size: the same bits again, or one line that names the file."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.reference import randomise
from tests.training import batch, clip, posttraining, pretraining, save_lm, seeded, tiny_model
from typer.testing import CliRunner

from xycodec.checkpoints.build import random_codec
from xycodec.checkpoints.load import load_codec
from xycodec.checkpoints.save import save_codec
from xycodec.checkpoints.training import read_checkpoint
from xycodec.checkpoints.weights import load_tensors, save_tensors
from xycodec.cli.app import app
from xycodec.errors import CheckpointError
from xycodec.models.xy_tokenizer.model import XYTokenizer
from xycodec.train.checkpoint import RunState, network_state, save_state
from xycodec.train.engine import Engine
from xycodec.train.export import export_weights
from xycodec.train.run import open_stage
from xycodec.train.stages import posttrain, pretrain

KB = 1000


def tensors():
    generator = torch.Generator().manual_seed(0)
    shapes = {"large": (300, 40), "row": (1, 700), "deep": (5, 6, 7, 8), "scalar": (), "none": (0, 3), "long": (9000,)}
    made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    made["tied"] = made["large"]
    made["half"], made["brain"] = made["long"][:50].half(), made["long"][:50].bfloat16()
    made["flags"] = made["row"] > 0
    made["number"] = torch.tensor(1 << 60)
    made |= {f"many.small.{i}": torch.full((i,), float(i)) for i in range(200)}
    return made


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert got[key].dtype == value.dtype, key
        assert torch.equal(got[key], value), key


@pytest.mark.parametrize("most", [5 * KB, 20 * KB, 50_000])
def test_shards_hold_the_same_bits_where_the_index_says(tmp_path, most):
    files = save_tensors(tensors(), tmp_path, "model", most)
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    index = tmp_path / "model.safetensors.index.json"
    assert sorted(os.listdir(tmp_path)) == sorted([*(file.name for file in files), index.name])
    sizes = [sum(tensor.nbytes for tensor in load_file(file).values()) for file in files]
    assert all(size <= most or len(load_file(file)) == 1 for size, file in zip(sizes, files, strict=True))
    assert_same(load_tensors(tmp_path, "model"), tensors())
    # As everyone else reads them.
    told = json.loads(index.read_text())
    assert told["metadata"]["total_size"] == sum(sizes)
    assert told["weight_map"].keys() == tensors().keys()
    for key, name in told["weight_map"].items():
        assert torch.equal(load_file(tmp_path / name)[key], tensors()[key]), key


def test_transformers_reads_shards_by_their_index(tmp_path):
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = transformers.BertModel(transformers.BertConfig(**size, vocab_size=50))
    model.config.save_pretrained(tmp_path)
    assert len(save_tensors(model.state_dict(), tmp_path, "model", 5 * KB)) > 2
    again, about = transformers.BertModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not about["missing_keys"]
    assert not about["unexpected_keys"]
    assert_same(again.state_dict(), model.state_dict())


def test_shards_without_index_of_earlier_versions(tmp_path):
    table = torch.arange(4000.0).view(200, 20)
    pieces = {f"table#{number}": piece.clone() for number, piece in enumerate(table.split(17))}
    save_file({"first": torch.ones(3), "table#0": pieces.pop("table#0")}, tmp_path / "model-00001-of-00002.safetensors")
    save_file(pieces, tmp_path / "model-00002-of-00002.safetensors")
    assert len(pieces) > 10
    assert_same(load_tensors(tmp_path, "model"), {"first": torch.ones(3), "table": table})
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00001-of-00002\.safetensors: missing"):
        load_tensors(tmp_path, "model")


@pytest.mark.parametrize("text", ["{", "{}", "[1]", '{"weight_map": 3}'])
def test_an_index_that_cannot_be_read(tmp_path, text):
    save_tensors(tensors(), tmp_path, "model", 5 * KB)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(CheckpointError, match="damaged or not a checkpoint") as raised:
        load_tensors(tmp_path, "model")
    assert str(raised.value).startswith(f"{index}: ")


def test_one_file_is_what_everyone_reads(tmp_path):
    plain = {key: value for key, value in tensors().items() if key != "tied"}
    assert save_tensors(plain, tmp_path, "model") == [tmp_path / "model.safetensors"]
    assert_same(load_file(tmp_path / "model.safetensors"), plain)
    assert_same(load_tensors(tmp_path, "model"), plain)


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_who_may_read_them_is_up_to_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        written = save_tensors(tensors(), tmp_path, "model", 30 * KB)
        written += save_tensors({"alone": torch.zeros(3)}, tmp_path, "whole", None)
    finally:
        os.umask(before)
    assert len(written) > 2
    assert {path.stat().st_mode & 0o777 for path in written} == {0o666 & ~mask}


def spoil_end(path):
    path.write_bytes(path.read_bytes()[:-100])


def spoil_bit(path):
    data = bytearray(path.read_bytes())
    data[-50] ^= 1
    path.write_bytes(data)


SPOILT = [
    (os.unlink, "missing, get a whole copy"),
    (spoil_end, "damaged or not a checkpoint"),
    (spoil_bit, "its checksum differs: get it again"),
    (lambda path: path.write_bytes(b""), "damaged or not a checkpoint"),
]


@pytest.mark.parametrize(("spoil", "words"), SPOILT)
@pytest.mark.parametrize("number", [0, 1, -1])
def test_a_part_that_is_missing_or_damaged_is_named(tmp_path, spoil, words, number):
    files = save_tensors(tensors(), tmp_path, "model", 20 * KB)
    assert len(files) > 3
    spoil(files[number])
    with pytest.raises(CheckpointError, match=words) as raised:
        load_tensors(tmp_path, "model")
    assert str(raised.value).startswith(f"{files[number]}: ")
    assert "\n" not in str(raised.value)


# ---- codecs ----------------------------------------------------------------------------------------


def test_a_codec_in_parts(tmp_path):
    codec = random_codec(tiny_model())
    save_codec(codec, tmp_path / "parts", part_bytes=60 * KB)
    names = sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert names[:2] == ["README.md", "config.json"]
    assert len(names) > 4
    assert_same(load_codec(tmp_path / "parts", device="cpu").state_dict(), codec.state_dict())
    # Whole again, in place of the parts.
    save_codec(codec, tmp_path / "parts", overwrite=True)
    assert sorted(os.listdir(tmp_path / "parts")) == ["README.md", "config.json", "model.safetensors"]


def test_the_command_that_converts(tmp_path):
    codec = save_codec(random_codec(tiny_model()), tmp_path / "codec")
    command = ["convert", str(codec), f"{tmp_path}/parts", "--part-mb", "1", "--store", "float16"]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert sorted(os.listdir(tmp_path / "parts")) == ["README.md", "config.json", "model.safetensors"]
    whole = save_codec(load_codec(codec, device="cpu"), tmp_path / "half", dtype=torch.float16)
    assert_same(load_codec(tmp_path / "parts", device="cpu").state_dict(), load_codec(whole, device="cpu").state_dict())


# ---- runs ------------------------------------------------------------------------------------------


def checkpoint_of(stage, folder, step):
    """Two steps of a stage, saved as the trainer does."""
    for number in range(2):
        seeded(number)
        stage.step([batch(clip(0, 0.4), clip(1, 0.3))], number)
    networks = {
        name: network_state(network, lambda key, name=name: stage.kept(name, key))
        for name, network in stage.networks.items()
    }
    state = RunState(stage.name, step, 0, 1, None, stage.model_config(), {}, networks, {"model": {"huge": [0]}})
    return save_state(folder, state, keep=3, best=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each stage, with averages, a trained language model and discriminators; and the folder of both."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs")
    lm = save_lm(folder / "lm")
    recipes = {"pretrain": pretraining(lm, ema=0.9, lm={"trainable": True})}
    codec = save_codec(folded(randomise(XYTokenizer(tiny_model()))), folder / "codec")
    recipes["posttrain"] = posttraining(codec, ema=0.9, discriminators={"channels": 4, "spectrogram": False})
    for name, recipe in recipes.items():
        for step in (5, 7):
            checkpoint_of(open_stage(recipe, Engine(recipe.engine)), folder / name, step)
    return folder, recipes


def folded(codec):
    codec.quantizer.inited.fill_(True)
    codec.fold_weight_norm()
    return codec.eval()


@pytest.mark.parametrize(
    ("name", "networks"), [("pretrain", {"model", "ema"}), ("posttrain", {"model", "ema", "discriminators"})]
)
def test_an_export_has_the_bits_of_its_checkpoint(tmp_path, runs, name, networks):
    run = runs[0] / name
    made = export_weights(run, tmp_path / "export", part_bytes=100 * KB)
    files = sorted(tmp_path.glob("export/*.safetensors"))
    assert (made.step, list(made.files)) == (7, files)
    assert len(files) > 3
    assert made.bytes == sum(file.stat().st_size for file in files)
    assert all(file.stat().st_size <= 110 * KB or len(load_file(file)) == 1 for file in files)
    got, expected = read_checkpoint(tmp_path / "export"), read_checkpoint(run / "checkpoints" / "step_00000007.pt")
    assert got["networks"].keys() == networks
    for network, state in expected["networks"].items():
        assert_same(got["networks"][network], state)
    assert {key: got[key] for key in ("stage", "step", "codec")} == {
        key: expected[key] for key in ("stage", "step", "codec")
    }
    assert "optimizers" not in got
    assert_same(load_codec(tmp_path / "export", device="cpu").state_dict(), load_codec(run, device="cpu").state_dict())


def test_a_named_checkpoint(tmp_path, runs):
    checkpoint = runs[0] / "posttrain" / "checkpoints" / "step_00000005.pt"
    assert export_weights(checkpoint, tmp_path / "export").step == 5
    assert json.loads((tmp_path / "export" / "weights.json").read_text())["step"] == 5


def test_a_stage_goes_on_from_an_export_as_from_the_run(tmp_path, runs):
    folder, recipes = runs
    for name in recipes:
        export_weights(folder / name, tmp_path / name, part_bytes=100 * KB)
    again = recipes["pretrain"].model_copy(update={"seed": 9})
    got, expected = (
        pretrain.build(again.model_copy(update={"weights": str(place / "pretrain")})) for place in (tmp_path, folder)
    )
    assert any(key.startswith("semantic_lm.lm.") for key in got.state_dict())
    assert_same(got.state_dict(), expected.state_dict())
    assert not torch.equal(got.codec.vocos.head.out.weight, pretrain.build(again).codec.vocos.head.out.weight)
    for name in recipes:  # post-training takes a codec of either stage, and the discriminators of its own
        first, other = (
            posttrain.build(recipes["posttrain"].model_copy(update={"weights": str(place / name), "seed": 9}))
            for place in (tmp_path, folder)
        )
        for ours, theirs in zip(first, other, strict=True):
            assert_same(ours.state_dict(), theirs.state_dict())


def test_half_precision_is_float32_again(tmp_path, runs):
    run = runs[0] / "posttrain"
    whole, half = (
        export_weights(run, tmp_path / dtype, dtype=getattr(torch, dtype)) for dtype in ("float32", "float16")
    )
    assert half.bytes < 0.6 * whole.bytes
    got, expected = (read_checkpoint(tmp_path / dtype)["networks"] for dtype in ("float16", "float32"))
    for network, state in expected.items():
        for key, value in state.items():
            torch.testing.assert_close(got[network][key], value, rtol=1e-3, atol=1e-6)
    assert torch.equal(got["ema"]["codec.quantizer.embed_avg"], expected["ema"]["codec.quantizer.embed_avg"])


def test_what_is_no_run_and_what_exists(tmp_path, runs):
    with pytest.raises(CheckpointError, match="no run and no checkpoint of one"):
        export_weights(runs[0] / "codec", tmp_path / "export")
    with pytest.raises(CheckpointError, match="exists already"):
        export_weights(runs[0] / "posttrain", tmp_path)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(("spoil", "words"), SPOILT)
def test_a_damaged_export_is_told_in_a_line(tmp_path, runs, spoil, words):
    made = export_weights(runs[0] / "posttrain", tmp_path / "export", part_bytes=100 * KB)
    spoil(made.files[1])
    recipe = runs[1]["posttrain"].model_copy(update={"weights": f"{tmp_path}/export"})
    for reading in (lambda: load_codec(tmp_path / "export"), lambda: posttrain.build(recipe)):
        with pytest.raises(CheckpointError, match=words) as raised:
            reading()
        assert str(raised.value).startswith(f"{made.files[1]}: ")


def test_a_newer_export_and_a_broken_one(tmp_path, runs):
    export_weights(runs[0] / "posttrain", tmp_path / "export")
    about = tmp_path / "export" / "weights.json"
    about.write_text(about.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(CheckpointError, match="format 2 is not one this xycodec reads, upgrade it"):
        load_codec(tmp_path / "export")
    about.write_text("{")
    with pytest.raises(CheckpointError, match=r"weights\.json: cannot be read"):
        load_codec(tmp_path / "export")


def test_the_command_that_exports(tmp_path, runs):
    ran = CliRunner().invoke(app, ["export", str(runs[0] / "pretrain"), f"{tmp_path}/export"])
    assert ran.exit_code == 0, ran.output
    size = (tmp_path / "export" / "weights.safetensors").stat().st_size
    assert ran.stdout == f"{tmp_path}/export: step 7, {size / 1e6:.1f} MB in 1 files\n"
    assert sorted(os.listdir(tmp_path / "export")) == ["weights.json", "weights.safetensors"]
