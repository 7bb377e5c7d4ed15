"""Exported codecs that several files of tests share: an export takes some seconds."""

import pytest
from tests.exporting import make_codec

from xycodec.export.graphs import export_onnx


@pytest.fixture(scope="session")
def exports(tmp_path_factory):
    """A function that gives (codec, folder) of a kind of codec, exported once."""
    made = {}

    def export(kind):
        if kind not in made:
            codec = make_codec(kind)
            folder = tmp_path_factory.mktemp("onnx") / kind
            export_onnx(codec, folder)
            made[kind] = codec, folder
        return made[kind]

    return export
