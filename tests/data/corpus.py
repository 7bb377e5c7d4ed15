"""Small corpora of real files that the tests of `xycodec.data` write themselves."""

import io
import json
import os
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import soundfile as sf
from lhotse import CutSet, Recording, SupervisionSegment

from xycodec.data.config import DataConfig, SourceConfig
from xycodec.data.corpus import open_corpus

CODING = {".wav": "PCM_16", ".flac": "PCM_16", ".mp3": "MPEG_LAYER_III", ".ogg": "VORBIS", ".opus": "OPUS"}
CONTAINER = {".ogg": "OGG", ".opus": "OGG"}


def noise(seconds, rate=16000, seed=0, level=0.1):
    samples = round(seconds * rate)
    return (level * np.random.default_rng(seed).standard_normal(samples)).clip(-1, 1).astype(np.float32)


def tone(hz, seconds, rate, level=0.3):
    return (level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def encoded(samples, rate, suffix):
    buffer = io.BytesIO()
    sf.write(buffer, samples, rate, format=CONTAINER.get(suffix, suffix[1:].upper()), subtype=CODING[suffix])
    return buffer.getvalue()


def save(path, samples, rate=16000):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(samples, rate, path.suffix))
    return path


def cut_of(path, text=None, name=None):
    """A cut of a whole file, with one supervision."""
    cut = Recording.from_file(path, recording_id=name or path.name).to_cut()
    cut.supervisions = [SupervisionSegment(cut.id, cut.id, 0.0, cut.duration, text=text)]
    return cut


def corpus(folder, count, seconds=lambda i: 0.6 + 0.07 * i, rate=16000):
    """`count` wav files of noise as a CutSet: clip i holds its own seed, and lasts `seconds(i)`."""
    paths = [save(folder / f"{i:03}.wav", noise(seconds(i), rate, seed=i), rate) for i in range(count)]
    return CutSet([cut_of(path, f"text {i}") for i, path in enumerate(paths)])


def numbered(cuts):
    """Cuts as a corpus that training draws from, by way of a manifest."""
    folder = Path(tempfile.mkdtemp(dir=os.environ["XYCODEC_CACHE"]))
    CutSet(list(cuts)).to_file(folder / "cuts.jsonl")
    return open_corpus([SourceConfig(path=str(folder / "cuts.jsonl"))])


def config(**settings):
    return DataConfig(**{"train": ["unused"], "workers": 0, "buckets": 3, "clip_seconds": 2.0} | settings)


def write_tar(path, members):
    """Write [(name, bytes)] in that order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def emilia(key, seconds, **more):
    row = {"id": key, "wav": f"{key}.mp3", "text": f"words of {key}", "duration": seconds, "speaker": "s1"}
    return json.dumps(row | {"language": "en", "dnsmos": 3.1} | more).encode()
