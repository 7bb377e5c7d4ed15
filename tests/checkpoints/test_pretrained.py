"""`save_pretrained` and `push_to_hub`: folders and repositories that `from_pretrained` reads again."""

from unittest.mock import create_autospec

import huggingface_hub
import pytest
import torch
import yaml
from tests.published_xcodec import tiny_config as tiny_xcodec
from tests.reference import tiny_config

from xycodec import Codec, load_codec
from xycodec.baselines.opus import Opus
from xycodec.checkpoints.build import random_codec
from xycodec.checkpoints.save import save_codec
from xycodec.errors import CheckpointError


@pytest.fixture(scope="module", params=["xy", "x"])
def codec(request):
    return random_codec(tiny_config() if request.param == "xy" else tiny_xcodec())


def assert_same(one, other):
    state, expected = one.state_dict(), other.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in state)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_is_read_again(codec, tmp_path):
    folder = codec.save_pretrained(tmp_path / "new" / "codec")
    assert names(folder) == ["README.md", "config.json", "model.safetensors"]
    for loaded in (type(codec).from_pretrained(folder, device="cpu"), Codec.from_pretrained(str(folder), device="cpu")):
        assert type(loaded) is type(codec)
        assert_same(loaded, codec)


def test_a_folder_that_exists_keeps_what_is_not_the_codecs(codec, tmp_path):
    (tmp_path / ".git").mkdir()
    (tmp_path / "README.md").write_text("mine")
    codec.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    other = random_codec(codec.config, seed=1)
    other.save_pretrained(tmp_path)
    assert names(tmp_path) == [".git", "README.md", "config.json", "model.safetensors"]
    assert_same(load_codec(tmp_path, device="cpu"), other)
    # From what lies there now, which is read while it is replaced.
    load_codec(tmp_path, device="cpu").save_pretrained(tmp_path)
    assert_same(load_codec(tmp_path, device="cpu"), other)


def test_parts_of_an_older_codec_do_not_outlive_it(codec, tmp_path):
    save_codec(random_codec(codec.config, seed=1), tmp_path / "codec", part_bytes=60_000)
    codec.save_pretrained(tmp_path / "codec")
    assert names(tmp_path / "codec") == ["README.md", "config.json", "model.safetensors"]
    assert_same(load_codec(tmp_path / "codec", device="cpu"), codec)


def test_the_card_tells_what_the_codec_is(codec, tmp_path):
    card = (codec.save_pretrained(tmp_path / "my codec") / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    settings = yaml.safe_load(front)
    assert settings["library_name"] == "xycodec"
    assert "license" not in settings
    assert f"# {codec.model_id}\n" in body
    assert f"{codec.n_q} codebooks" in body
    assert 'load_codec("my codec")' in body


def test_what_cannot_be_saved(codec, tmp_path):
    (tmp_path / "file").write_text("")
    for work in (lambda: codec.save_pretrained(tmp_path / "file"), lambda: codec.save_pretrained(tmp_path / "file/x"),
                 lambda: Opus(12).save_pretrained(tmp_path / "opus")):  # fmt: skip
        with pytest.raises(CheckpointError) as error:
            work()
        assert "\n" not in str(error.value)
    assert names(tmp_path) == ["file"]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that accepts only calls that its client's methods have, and keeps what is uploaded in `tmp_path`."""
    api = create_autospec(huggingface_hub.HfApi, instance=True)
    made = huggingface_hub.RepoUrl("https://huggingface.co/someone/codec")
    api.create_repo.return_value, api.file_exists.return_value = made, False

    def keep(*, repo_id, folder_path, commit_message, ignore_patterns):
        for file in folder_path.iterdir():
            if file.name not in ignore_patterns:
                (tmp_path / file.name).write_bytes(file.read_bytes())

    api.upload_folder.side_effect = keep
    client = create_autospec(huggingface_hub.HfApi, return_value=api)
    monkeypatch.setattr(huggingface_hub, "HfApi", client)
    api.client = client
    return api


def test_a_codec_goes_to_the_hub(codec, hub, tmp_path):
    address = codec.push_to_hub("codec", private=True, token="secret", commit_message="First")
    assert address == "https://huggingface.co/someone/codec"
    hub.client.assert_called_once_with(token="secret")
    hub.create_repo.assert_called_once_with("codec", private=True, exist_ok=True)
    assert hub.upload_folder.call_args.kwargs["repo_id"] == "someone/codec"
    assert hub.upload_folder.call_args.kwargs["commit_message"] == "First"
    assert names(tmp_path) == ["README.md", "config.json", "model.safetensors"]
    assert_same(load_codec(tmp_path, device="cpu"), codec)


def test_a_card_on_the_hub_stays(codec, hub, tmp_path):
    hub.file_exists.return_value = True
    codec.push_to_hub("someone/codec")
    hub.file_exists.assert_called_once_with("someone/codec", "README.md")
    assert names(tmp_path) == ["config.json", "model.safetensors"]


def test_a_hub_that_refuses_is_one_line(codec, hub):
    hub.upload_folder.side_effect = OSError("403 Forbidden\nLog in first")
    with pytest.raises(CheckpointError, match=r"^someone/codec: cannot be uploaded to the hub") as error:
        codec.push_to_hub("someone/codec")
    assert "\n" not in str(error.value)
