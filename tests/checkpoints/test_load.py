import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import xycodec.checkpoints.weights
from published_layout import LAYOUTS, official_state, published_settings, respelled, tiny_config, write_published
from xycodec.checkpoints.build import random_codec
from xycodec.checkpoints.load import load_codec
from xycodec.checkpoints.save import save_codec
from xycodec.cli.bench import bfloat16_advice
from xycodec.errors import CheckpointError
from xycodec.models.presets import NAMED_CONFIGS
from xycodec.models.registry import MODELS
from xycodec.models.xy_tokenizer.config import CONFIGS
from xycodec.nn.quantize import smoothed_counts


@pytest.fixture(scope="module")
def codec():
    return random_codec(tiny_config())


@pytest.fixture
def ours(codec, tmp_path):
    return save_codec(codec, tmp_path / "ours")


@pytest.fixture
def published(codec, tmp_path):
    return write_published(codec, tmp_path / "published")


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
    """Equal weights, codes and audio, to the bit."""
    left, right = one.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    for key in left:
        assert torch.equal(left[key], right[key]), key
    audio = torch.randn(2, 20_001, generator=torch.Generator().manual_seed(1)) * 0.1
    made, expected = one.encode(audio), other.encode(audio)
    assert torch.equal(made.codes, expected.codes)
    assert expected.codes.unique().numel() > 5  # codes that say something
    assert torch.equal(one.decode(made.codes).audio, other.decode(made.codes).audio)


# whole codecs


def test_our_folder(codec, ours):
    loaded = load_codec(ours, device="cpu")
    assert_same(loaded, codec)
    assert loaded.config == codec.config
    assert loaded.model_id == "tiny"
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert sorted(os.listdir(ours)) == ["README.md", "config.json", "model.safetensors"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_published_folder(tmp_path, layout):
    codec = random_codec(tiny_config(output_sample_rate=16000 if layout == "official" else 32000))
    loaded = load_codec(str(write_published(codec, tmp_path / "model", layout)), device="cpu")
    assert_same(loaded, codec)
    assert loaded.output_sample_rate == codec.output_sample_rate


def test_a_published_file_with_its_configuration_beside(codec, published):
    assert_same(load_codec(published / "xy_tokenizer.ckpt", device="cpu"), codec)


@pytest.mark.parametrize("name", ["weights.pt", "weights.pth", "weights.bin", "odd_name.ckpt"])
def test_a_bare_state_dict_under_any_name(codec, published, name):
    (published / "xy_tokenizer.ckpt").unlink()
    torch.save(official_state(codec), published / name)
    assert_same(load_codec(published, device="cpu"), codec)


def test_a_checkpoint_without_suffix(codec, published):
    (published / "xy_tokenizer.ckpt").rename(published / "MOSS_TTSD_tokenizer")
    (published / "LICENSE").write_text("no checkpoint")
    assert_same(load_codec(published, device="cpu"), codec)


def test_a_configuration_of_another_name(codec, published):
    (published / "config.yaml").rename(published / "xy_tokenizer_config.yml")
    assert_same(load_codec(published, device="cpu"), codec)


def test_one_safetensors_file_in_the_published_layout(codec, published):
    (published / "xy_tokenizer.ckpt").unlink()
    save_file(respelled(official_state(codec), "hf"), published / "model.safetensors")
    assert_same(load_codec(published, device="cpu"), codec)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floating_types_become_float32(codec, published, dtype):
    state = official_state(codec)
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    torch.save({"generator": state}, published / "xy_tokenizer.ckpt")
    loaded = load_codec(published, device="cpu")
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32, torch.bool}
    for key, value in codec.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], value, rtol=2e-2, atol=2e-2, check_dtype=False)


def test_a_lone_checkpoint_of_unknown_architecture_asks_for_its_configuration(published):
    (published / "config.yaml").unlink()
    file = published / "xy_tokenizer.ckpt"
    for path in (file, published):
        message = refusal(path)
        assert str(file) in message
        assert "config.yaml" in message


def test_custom_models_are_told_apart_by_their_codes(codec, published, tmp_path):
    first = load_codec(published, device="cpu").model_id
    other = write_published(random_codec(tiny_config(), seed=1), tmp_path / "other")
    assert first.startswith("custom-")
    assert load_codec(published / "xy_tokenizer.ckpt", device="cpu").model_id == first
    assert load_codec(write_published(codec, tmp_path / "hf", "hf"), device="cpu").model_id == first
    assert load_codec(other, device="cpu").model_id != first


def test_the_reference_flag_and_the_device_are_passed_on(ours):
    loaded = load_codec(ours, device="cpu", reference=True)
    assert loaded.reference
    assert not load_codec(ours, device="cpu").reference
    assert loaded.device.type == "cpu"


def test_bfloat16_is_for_the_matrices_only(codec, ours):
    loaded = load_codec(ours, device="cpu", dtype=torch.bfloat16)
    dtypes = {key: value.dtype for key, value in loaded.state_dict().items()}
    assert dtypes["acoustic_encoder.layers.0.fc1.weight"] == torch.bfloat16
    assert dtypes["quantizer.codebook"] == dtypes["vocos.head.out.weight"] == torch.float32
    assert loaded.encode(torch.zeros(1, 3000)).codes.shape == (1, 3, 3)


def test_the_random_model_by_name():
    loaded = load_codec("xy-random", device="cpu")
    assert loaded.config == CONFIGS["xy-random"]
    assert_same(loaded, random_codec(CONFIGS["xy-random"]))


def test_every_named_model_has_a_configuration_and_a_source():
    assert MODELS.keys() == NAMED_CONFIGS.keys()
    for model in MODELS.values():
        assert model.source in ("seeded", "bundled") or model.source.count("/") == 1


def test_the_advice_on_bfloat16_is_a_sentence():
    assert bfloat16_advice().startswith("bfloat16: ")
    assert "\n" not in bfloat16_advice()


# names and places that give nothing


def test_a_missing_path_is_named(tmp_path):
    missing = tmp_path / "nowhere" / "model.ckpt"
    assert str(missing) in refusal(missing)


def test_an_unknown_name_gets_the_nearest_one():
    message = refusal("xy-tokenzier")
    assert message.startswith("xy-tokenzier: ")
    assert "did you mean 'xy-tokenizer'?" in message


def test_a_name_like_no_other_gets_the_list():
    message = refusal("zzz")
    assert all(name in message for name in MODELS)


@pytest.mark.parametrize("name", ["weights/model.safetensors", "weights/model.bin", "weights/tokenizer.ckpt"])
def test_a_missing_file_is_not_looked_for_on_the_hub(monkeypatch, name):
    monkeypatch.setattr(xycodec.checkpoints.load, "_download", lambda repo: pytest.fail("asked the hub"))
    assert "no such file" in refusal(name)


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 5000, "nul\0byte", "~nobody/at/all"])
def test_impossible_names_are_refused_in_a_line(name):
    with pytest.raises(CheckpointError) as error:
        load_codec(name, device="cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("device", ["cuda", "mps", "cuda:99", "gpu", "", "cpu:x"])
def test_a_device_that_is_not_here(ours, device):
    if device in ("cuda", "mps") and getattr(torch, device).is_available():
        pytest.skip(f"{device} is here")
    with pytest.raises(CheckpointError) as error:
        load_codec(ours, device=device)
    assert repr(device) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int8, "float32"])
def test_a_dtype_that_will_not_do(ours, dtype):
    assert "dtype" in refusal(ours, dtype=dtype)


# files that are not what they seem


def test_an_empty_folder(tmp_path):
    assert str(tmp_path) in refusal(tmp_path)


def test_two_checkpoints_in_a_folder(published):
    (published / "other.ckpt").write_bytes((published / "xy_tokenizer.ckpt").read_bytes())
    message = refusal(published)
    assert str(published) in message
    assert "2 checkpoints" in message


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.3, 0.9, 0.99999])
def test_truncated_safetensors(ours, share):
    weights = ours / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: int(share * len(data))])
    assert str(weights) in refusal(ours)


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.3, 0.9, 0.99999])
def test_a_truncated_checkpoint(published, share):
    file = published / "xy_tokenizer.ckpt"
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    assert str(file) in refusal(published)


def test_damage_inside_the_index_of_a_checkpoint_never_gives_another_error(published):
    file = published / "xy_tokenizer.ckpt"
    data = file.read_bytes()
    index = data.index(b"generator")
    random = torch.Generator().manual_seed(0)
    refused = 0
    for _ in range(60):
        place = index + int(torch.randint(0, 3000, (), generator=random))
        value = int(torch.randint(0, 256, (), generator=random))
        file.write_bytes(data[:place] + bytes([value]) + data[place + 1 :])
        message = ""
        try:
            load_codec(published, device="cpu")
        except CheckpointError as error:
            message = str(error)
        assert "\n" not in message
        refused += bool(message)
    assert refused > 20


@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors", "model.pt"])
@pytest.mark.parametrize("text", ["hello, world\n" * 50, "version https://git-lfs.github.com/spec/v1\n", "{}", "\n"])
def test_a_text_file(tmp_path, name, text):
    file = tmp_path / name
    file.write_text(text)
    assert str(file) in refusal(file)


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("form", ["zip", "legacy", "raw"])
def test_code_in_a_pickle_is_not_run(tmp_path, form):
    marker, file = tmp_path / "boom", tmp_path / "model.ckpt"
    data = {"generator": {"quantizer.quantizers.0.codebook": torch.zeros(2), "x": Bomb(marker)}}
    if form == "raw":
        file.write_bytes(pickle.dumps({"x": Bomb(marker)}))
    else:
        torch.save(data, file, _use_new_zipfile_serialization=form == "zip")
    message = refusal(file)
    assert str(file) in message
    assert not marker.exists()
    pickle.loads(pickle.dumps(Bomb(marker)))
    assert marker.exists()  # the bomb was live


@pytest.mark.parametrize(
    "data", [[1, 2], torch.zeros(3), {"generator": {"a": 1}}, {"a": "b"}, {}, {"x": torch.ones(1)}]
)
def test_a_checkpoint_of_something_else(tmp_path, data):
    file = tmp_path / "model.ckpt"
    torch.save(data, file)
    assert str(file) in refusal(file)


def test_our_weights_file_stands_for_its_folder(ours):
    assert load_codec(ours / "model.safetensors", device="cpu").config == load_codec(ours, device="cpu").config


# tensors that do not fit


BROKEN = {
    "missing": (lambda state, key: state.pop(key), "acoustic_encoder.conv1.weight"),
    "unknown": (lambda state, key: state.update({key: torch.zeros(3)}), "acoustic_encoder.conv3.weight"),
    "shape": (lambda state, key: state.update({key: torch.zeros(3)}), "vocos.head.out.weight"),
    "dtype": (lambda state, key: state.update({key: state[key].int()}), "acoustic_encoder.conv1.weight"),
    "complex": (lambda state, key: state.update({key: state[key] + 0j}), "acoustic_encoder.conv1.weight"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_our_tensors_must_fit(ours, fault):
    change, key = BROKEN[fault]
    state = load_file(ours / "model.safetensors")
    change(state, key)
    save_file(state, ours / "model.safetensors")
    message = refusal(ours)
    assert str(ours) in message
    assert key in message


@pytest.mark.parametrize("fault", BROKEN)
def test_published_tensors_must_fit(codec, published, fault):
    change, key = BROKEN[fault]
    state = official_state(codec)
    change(state, key)
    torch.save({"generator": state}, published / "xy_tokenizer.ckpt")
    message = refusal(published)
    assert str(published / "xy_tokenizer.ckpt") in message
    assert key in message


def test_a_number_for_a_key(codec, published):
    torch.save({0: torch.zeros(2), **official_state(codec)}, published / "xy_tokenizer.ckpt")
    assert str(published) in refusal(published)


def test_a_missing_shard_shows(codec, tmp_path):
    folder = write_published(codec, tmp_path / "hf", "hf")
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert str(folder) in refusal(folder)


# settings that do not fit


def rewrite(folder, **changes):
    file = folder / "config.json"
    settings = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))
    return str(file)


def test_an_unknown_setting_gets_the_nearest_known_one(ours):
    file = rewrite(ours, window_frame=25)
    message = refusal(ours)
    assert file in message
    assert "window_frame: " in message
    assert "'window_frames'" in message


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"window_frames": "many"}, "window_frames"),
        ({"window_frames": -1}, "window_frames"),
        ({"output_sample_rate": 44100}, "output_sample_rate"),
        ({"acoustic_encoder": 3}, "acoustic_encoder"),
        ({"acoustic_encoder": {"d_model": 24, "layers": 1, "heads": 5, "ffn_dim": 40}}, "acoustic_encoder"),
        ({"semantic_encoder": None}, "semantic_encoder"),
        ({"model_id": None}, "model_id"),
        ({"model_type": "y-codec"}, "model_type"),
    ],
)
def test_a_wrong_setting_is_named(ours, changes, named):
    file = rewrite(ours, **changes)
    message = refusal(ours)
    assert file in message
    assert named in message


@pytest.mark.parametrize("version", [2, "1", 0, -1, [1], 1.5])
def test_another_format_version(ours, version):
    rewrite(ours, format_version=version)
    message = refusal(ours)
    assert str(ours) in message
    assert "format" in message


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", '{"format_version": 1', "[" * 100_000])
def test_a_config_json_that_is_none(ours, text):
    (ours / "config.json").write_text(text)
    assert str(ours / "config.json") in refusal(ours)


def test_a_config_json_that_is_not_text(ours):
    (ours / "config.json").write_bytes(b"\xff\xfe\x00")
    assert str(ours / "config.json") in refusal(ours)


def test_a_folder_of_ours_without_weights(ours):
    (ours / "model.safetensors").unlink()
    assert str(ours / "model.safetensors") in refusal(ours)


@pytest.mark.parametrize(
    "text", ["", "a: [", "- 1\n- 2", "just words", "a: &a [*a]", "\t- x: :", "2020-13-45", "a: \0"]
)
def test_a_config_yaml_that_is_none(published, text):
    (published / "config.yaml").write_text(text)
    assert str(published / "config.yaml") in refusal(published)


def test_a_config_yaml_that_does_not_fit_its_checkpoint(codec, published):
    settings = published_settings(codec.config)
    settings["generator_params"]["vocos_kwargs"]["num_layers"] = 3
    (published / "config.yaml").write_text(yaml.safe_dump(settings))
    message = refusal(published)
    assert str(published) in message
    assert "vocos.backbone.convnext.2" in message


# the hub


HUB_PROGRAM = """
import json, socket, sys
from xycodec import load_codec
from xycodec.errors import CheckpointError

def refuse(*address, **options):
    asked.append(repr(address))
    raise OSError("nothing is asked when offline")

report, asked = {}, []
socket.getaddrinfo = socket.socket.connect = refuse
for name in sys.argv[1:]:
    try:
        report[name] = load_codec(name, device="cpu").config.model_dump(mode="json")
    except CheckpointError as error:
        report[name] = str(error)
print(json.dumps([report, asked]))
"""


def test_a_hub_repository_comes_from_the_cache_when_offline(codec, tmp_path):
    """And nobody is asked, so that nobody is waited for."""
    repository = tmp_path / "home" / "hub" / "models--someone--codec"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    write_published(codec, repository / "snapshots" / ("0" * 40))
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    ran = subprocess.run(
        [sys.executable, "-c", HUB_PROGRAM, "someone/codec", "someone/missing", "xy-tokenizer", "not a/repo id"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    report, asked = json.loads(ran.stdout)
    assert asked == []
    config = report["someone/codec"]
    assert {**config, "model_id": "tiny"} == codec.config.model_dump(mode="json")
    for name, named in {
        "someone/missing": "someone/missing", "xy-tokenizer": "fdugyt/XY_Tokenizer", "not a/repo id": "not a/repo id",
    }.items():  # fmt: skip
        assert report[name].startswith(f"{named}: ")
        assert "\n" not in report[name]


# saving


def test_float32_round_trip(codec, tmp_path):
    saved = save_codec(codec, tmp_path / "one")
    assert saved == tmp_path / "one"
    assert_same(load_codec(saved, device="cpu"), codec)


def test_float16_halves_the_file_and_rounds_once(codec, ours, tmp_path):
    codec = copy.deepcopy(codec)
    codec.quantizer.cluster_size[0, 0] = 1e6
    half = save_codec(codec, tmp_path / "half", dtype=torch.float16)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (half, ours)]
    assert sizes[0] < 0.62 * sizes[1]
    loaded = load_codec(half, device="cpu")
    assert loaded.state_dict()["quantizer.inited"].dtype == torch.bool
    for key, value in codec.state_dict().items():
        if key == "quantizer.embed_avg":
            continue
        # A count exceeds what half precision holds.
        exact = key.endswith("cluster_size") or not value.is_floating_point()
        rounded = value if exact else value.half().to(value.dtype)
        assert torch.equal(loaded.state_dict()[key], rounded), key
    # The sums are not stored, and belong to codebook and counts as after a step of training.
    codebook, sums, counts = (getattr(loaded.quantizer, name) for name in ("codebook", "embed_avg", "cluster_size"))
    torch.testing.assert_close(sums / smoothed_counts(counts)[..., None], codebook, rtol=1e-6, atol=0)
    assert_same(load_codec(save_codec(loaded, tmp_path / "again", dtype=torch.float16), device="cpu"), loaded)


def test_an_existing_folder_is_refused_and_left_alone(codec, ours):
    before = (ours / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(CheckpointError) as error:
        save_codec(codec, ours)
    assert str(ours) in str(error.value)
    assert (ours / "model.safetensors").stat().st_mtime_ns == before


def test_overwrite_replaces_a_codec(ours):
    other = random_codec(tiny_config(model_id="other"), seed=1)
    save_codec(other, ours, overwrite=True)
    assert_same(load_codec(ours, device="cpu"), other)
    assert [path.name for path in ours.parent.iterdir()] == ["ours"]


def test_overwrite_replaces_nothing_but_a_codec(codec, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").touch()
    (tmp_path / "file").touch()
    for target in (tmp_path / "photos", tmp_path / "file"):
        with pytest.raises(CheckpointError):
            save_codec(codec, target, overwrite=True)
    assert (tmp_path / "photos" / "one.jpg").exists()


@pytest.mark.parametrize("folder", ["missing/codec", "file/codec"])
def test_a_folder_that_cannot_be_made(codec, tmp_path, folder):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError) as error:
        save_codec(codec, tmp_path / folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("existing", [False, True])
def test_a_failed_save_leaves_everything_as_it_was(codec, tmp_path, monkeypatch, existing):
    if existing:
        save_codec(codec, tmp_path / "model")

    def fails(state, path, metadata=None):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(xycodec.checkpoints.weights, "save_file", fails)
    with pytest.raises((CheckpointError, OSError)):
        save_codec(random_codec(tiny_config(), seed=1), tmp_path / "model", overwrite=existing)
    assert sorted(os.listdir(tmp_path)) == (["model"] if existing else [])
    if existing:
        assert_same(load_codec(tmp_path / "model", device="cpu"), codec)


def test_a_full_disk_is_told_in_a_line(codec, tmp_path, monkeypatch):
    def fails(state, path, metadata=None):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(xycodec.checkpoints.weights, "save_file", fails)
    with pytest.raises(CheckpointError):
        save_codec(codec, tmp_path / "model")


def test_the_replaced_codec_survives_if_the_new_one_cannot_take_its_place(codec, ours, monkeypatch):
    rename = Path.rename

    def fails(self, target):
        if self.name == "made":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises((CheckpointError, OSError)):
        save_codec(random_codec(tiny_config(), seed=1), ours, overwrite=True)
    assert_same(load_codec(ours, device="cpu"), codec)


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="needs /proc")
def test_weights_are_mapped_not_copied(ours):
    loaded = load_codec(ours, device="cpu")
    ranges = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(ours / "model.safetensors")):
            start, end = line.split()[0].split("-")
            ranges.append(range(int(start, 16), int(end, 16)))
    for key, value in loaded.state_dict().items():
        assert any(value.data_ptr() in mapped for mapped in ranges), key


# random codecs


def test_random_codecs_depend_on_their_seed_alone():
    torch.manual_seed(5)
    first = random_codec(tiny_config(), seed=3)
    torch.manual_seed(6)
    assert_same(first, random_codec(tiny_config(), seed=3))
    other = random_codec(tiny_config(), seed=4)
    assert not torch.equal(first.quantizer.codebook, other.quantizer.codebook)
    assert not torch.equal(first.vocos.head.out.weight, other.vocos.head.out.weight)


def test_random_codecs_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    random_codec(tiny_config())
    load_codec("xy-random", device="cpu")
    assert torch.equal(torch.get_rng_state(), before)


def test_random_codecs_are_ready_to_use():
    made = random_codec(tiny_config())
    assert made.quantizer.inited.all()
    assert not made.training
    assert "quantizer.input_proj.weight" in made.state_dict()


START_PROGRAM = """
import sys, numpy, xycodec
codec = xycodec.Codec.from_pretrained(sys.argv[1], device="cpu")
codec.decode(codec.encode(numpy.zeros(16_000)))
print(codec.model_id, [name for name in ("torch._dynamo", "sympy", "transformers", "scipy") if name in sys.modules])
"""


def test_the_class_finds_its_loader_and_imports_nothing_slow(tmp_path):
    """The class loads codecs in a process that imports nothing else."""
    folder = save_codec(random_codec(tiny_config()), tmp_path / "tiny")
    ran = subprocess.run([sys.executable, "-c", START_PROGRAM, folder], capture_output=True, text=True, check=True)
    assert ran.stdout == "tiny []\n"
