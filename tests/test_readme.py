"""The README's Python runs as it stands."""

import re
from pathlib import Path

import pytest

import xycodec
from xycodec import CodecFile, read_audio, write_audio

PACKAGE = Path(xycodec.__file__).parent
README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    talk = read_audio(PACKAGE / "assets/fox.flac")
    write_audio("talk.mp3", talk, 16_000)
    exec(compile(block, "README.md", "exec"), {})
    assert CodecFile.read("talk.xyc").num_samples == len(read_audio("talk.mp3"))
    assert len(read_audio("talk.wav")) == len(read_audio("again.wav")) == len(read_audio("talk.mp3"))


def test_it_has_python():
    assert BLOCKS
