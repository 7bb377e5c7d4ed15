import os

import pytest

from xycodec.errors import AudioError, BitstreamError, XycodecError
from xycodec.io.files import atomic_path, write_whole


def test_the_temporary_name_is_a_sibling_with_the_suffix(tmp_path):
    with atomic_path(tmp_path / "a.tar.gz", XycodecError) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".gz"
        assert not (tmp_path / "a.tar.gz").exists()
        temporary.write_bytes(b"new")
    assert os.listdir(tmp_path) == ["a.tar.gz"]
    assert (tmp_path / "a.tar.gz").read_bytes() == b"new"


def test_a_symbolic_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link.txt").symlink_to(tmp_path / "real" / "file.txt")
    for content in ("new", "newer"):
        with atomic_path(tmp_path / "link.txt", XycodecError) as temporary:
            temporary.write_text(content)
        assert (tmp_path / "link.txt").is_symlink()
        assert (tmp_path / "real" / "file.txt").read_text() == content


def test_atomic_path_raises_the_callers_error(tmp_path):
    for path in (tmp_path, tmp_path / "no" / "a", "/", f"{tmp_path}/a\0", ""):
        with pytest.raises(BitstreamError) as error, atomic_path(path, BitstreamError):
            pass
        assert len(str(error.value).splitlines()) == 1
    assert not os.listdir(tmp_path)


def test_a_target_that_became_a_folder(tmp_path):
    with pytest.raises(AudioError, match="cannot be written"), atomic_path(tmp_path / "a", AudioError):
        (tmp_path / "a").mkdir()
    assert os.listdir(tmp_path) == ["a"]


def test_a_whole_file_appears_with_the_folders_above_it(tmp_path):
    target = tmp_path / "deep" / "er" / "a.txt"
    write_whole(target, lambda scratch: scratch.write_text("all of it"))
    assert target.read_text() == "all of it"
    assert os.listdir(target.parent) == ["a.txt"]


@pytest.mark.parametrize("reason", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 64")])
def test_a_disk_that_takes_no_more_leaves_the_old_file_and_one_line(tmp_path, reason):
    (tmp_path / "a").write_text("old")

    def write(scratch):
        scratch.write_text("ne")
        raise reason

    with pytest.raises(BitstreamError, match=r"a cannot be written \(.*check the path") as error:
        write_whole(tmp_path / "a", write, BitstreamError)
    assert len(str(error.value).splitlines()) == 1
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]
