"""Digests tell files and settings from all others."""

from xycodec.io.digests import digest_of, file_digest, file_stamp


def test_a_file_is_told_from_all_others(tmp_path):
    path = tmp_path / "a"
    path.write_text("one")
    before, digest = file_stamp(path), file_digest(path)
    assert digest_of(before) == digest_of(file_stamp(path))
    path.write_text("other")
    (tmp_path / "b").write_text("one")
    assert len({digest_of(stamp) for stamp in (before, file_stamp(path), file_stamp(tmp_path / "b"))}) == 3
    assert file_digest(path) != digest == file_digest(tmp_path / "b")
