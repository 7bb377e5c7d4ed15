"""Corpora of noise in every form that can be tokenized, a codec that is fast, and its codes of each clip alone."""

import json
import shutil

import numpy as np
import torch
from lhotse import CutSet
from lhotse.shar import SharWriter
from tests.data.corpus import cut_of, encoded, noise, save, write_tar
from tests.training_runs import smallest_config

from xycodec.checkpoints.build import random_codec
from xycodec.checkpoints.save import save_codec
from xycodec.io.audio import read_audio
from xycodec.io.tokens.read import TokenStore


def save_model(folder):
    """A random codec of windows of 1 s whose codes are many."""
    torch.manual_seed(3)
    codec = random_codec(smallest_config())
    with torch.no_grad():
        codec.quantizer.codebook.normal_(std=0.3)
    save_codec(codec, folder)
    return folder


def write_audio_files(folder, clips=10):
    """`clips` files of 0.3 to 2.3 s, in two folders, as wav and flac."""
    return [
        save(
            folder / "ab"[number % 2] / f"{number:02}{('.wav', '.flac')[number % 3 == 0]}",
            noise(0.3 + number * 7 % 20 / 10, seed=number),
        )
        for number in range(clips)
    ]


def alone(codec, path):
    """Codes (n_q, L) of a file by itself, and its samples."""
    audio = read_audio(path, codec.input_sample_rate)
    return codec.encode(audio).codes[0].numpy(), len(audio)


def codes_of(folder):
    """Codes of every clip of a store, by id."""
    return {clip.id: clip.codes for clip in TokenStore(folder)}


def assert_codes_of(folder, codec, files):
    """A store has exactly the codes of these files, {id: path}, each encoded alone."""
    store = TokenStore(folder)
    assert [clip.id for clip in store] == list(files)
    for clip in store:
        codes, samples = alone(codec, files[clip.id])
        np.testing.assert_array_equal(clip.codes, codes)
        assert clip.samples == samples
    assert len(np.unique(np.concatenate([clip.codes.ravel() for clip in store]))) > 8


def tree(folder):
    """Every file below a folder with its bytes, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def write_rows(folder, files):
    """Our manifest, with fields of its own."""
    rows = [
        {"audio": str(path.relative_to(folder)), "id": f"clip-{i}", "text": f"words {i}", "dnsmos": 3.5}
        for i, path in enumerate(files)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "rows.jsonl"


def cuts_of(files):
    cuts = [cut_of(path, f"words {i}", f"clip-{i}") for i, path in enumerate(files)]
    for cut in cuts:
        cut.supervisions[0].speaker, cut.supervisions[0].custom = "one", {"dnsmos": 3.5}
    return CutSet.from_cuts(cuts)


def write_shar(folder, files):
    folder.mkdir(parents=True)
    with SharWriter(str(folder), fields={"recording": "flac"}, shard_size=4) as writer:
        for cut in cuts_of(files):
            writer.write(cut)
    return folder


def write_webdataset(path, files):
    members = []
    for i, file in enumerate(files):
        members.append((f"clip-{i}{file.suffix}", file.read_bytes()))
        members.append((f"clip-{i}.json", json.dumps({"text": f"words {i}", "dnsmos": 3.5}).encode()))
    return write_tar(path, members)


def broken_folder(folder, good):
    """Two files of `good`, and everything that can be wrong with others."""
    folder.mkdir(parents=True)
    for path in good[:2]:
        shutil.copy(path, folder / path.name)
    (folder / "empty.wav").write_bytes(b"")
    (folder / "nonsense.mp3").write_bytes(b"nothing that anybody could hear" * 9)
    (folder / "nothing.wav").write_bytes(encoded(np.zeros(0, np.float32), 16_000, ".wav"))
    (folder / "torn.flac").write_bytes(encoded(noise(3.0), 16_000, ".flac")[:9000])
    return folder
