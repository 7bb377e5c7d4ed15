import pytest

from xycodec.errors import CheckpointError
from xycodec.io.hub import fetch

COMMIT = "0" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_what_is_in_the_cache_needs_no_network(cache):
    repo = cache / "models--some--model"
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    assert fetch("some/model", ["*.json"]) == snapshot


@pytest.mark.parametrize("repo", ["some/other", "no such id", "a/b/c"])
def test_what_cannot_be_had_is_one_line(cache, repo):
    with pytest.raises(CheckpointError) as refused:
        fetch(repo, ["*.json"])
    message = str(refused.value)
    assert message.startswith(f"{repo}: cannot be had from the hub or its cache (")
    assert "\n" not in message
