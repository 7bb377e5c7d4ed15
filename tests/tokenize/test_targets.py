"""A corpus labelled by a codec: the right codes, whatever interrupts, and one line for what is wrong."""

import json
import math
import os
import shutil

import numpy as np
import pytest
import soundfile as sf
import soxr
import torch
import transformers
from lhotse import CutSet
from tests.tokenize.corpora import tree
from tests.training_runs import Running, write_corpus, xycodec

from xycodec.baselines.open import open_codec
from xycodec.data.config import SourceConfig
from xycodec.data.facts import has_labels
from xycodec.data.manifest import import_manifest
from xycodec.data.sources import open_source
from xycodec.data.targets import TARGETS_OF, load_labels
from xycodec.errors import ConfigError, StoreError, XycodecError
from xycodec.io.tokens.read import TokenStore
from xycodec.models.longform import encode_long
from xycodec.tokenize import shard
from xycodec.tokenize.inputs import audio
from xycodec.tokenize.targets import MANIFEST, extract_targets

ENCODEC = {"num_filters": 4, "hidden_size": 16, "codebook_size": 64, "num_lstm_layers": 1}


@pytest.fixture(scope="module")
def encodec(tmp_path_factory):
    """A folder with a random EnCodec of 24 kHz whose codes are many."""
    transformers.utils.logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("encodec") / "random"
    torch.manual_seed(1)
    model = transformers.EncodecModel(transformers.EncodecConfig(**ENCODEC))
    with torch.no_grad():
        latents = model.encoder(0.2 * torch.randn(1, 1, 24_000))
        for layer in model.quantizer.layers:
            layer.codebook.embed.copy_(latents[0, :, torch.randperm(75)[:64]].T)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def codec(encodec):
    return open_codec(f"hf:{encodec}", device="cpu")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def opened(path):
    return open_source(SourceConfig(path=str(path)))


def labels_of(folder):
    return {cut.id: cut.load_targets() for cut in opened(folder / MANIFEST)}


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[key], theirs[key]) for key in ours)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, corpus, codec):
    """Labels of two layers, made in one uninterrupted call."""
    folder = tmp_path_factory.mktemp("whole") / "labels"
    extract_targets(opened(corpus), codec, folder, layers=2)
    return folder


def test_labels_are_the_codes_of_transformers_for_each_clip_alone(whole, corpus, encodec):
    model = transformers.EncodecModel.from_pretrained(encodec).eval()
    found = labels_of(whole)
    assert len(found) == 10
    for name, labels in found.items():
        samples = soxr.resample(sf.read(corpus.parent / name, dtype="float32")[0], 16_000, 24_000)
        with torch.no_grad():
            codes = model.encode(torch.tensor(samples)[None, None], bandwidth=1.5).audio_codes[0, 0, :2]
        np.testing.assert_array_equal(labels, codes.T.numpy())
    assert len(np.unique(np.concatenate([labels[:, 0] for labels in found.values()]))) > 10


def test_the_manifest_says_what_they_are(whole, corpus):
    before, after = list(opened(corpus)), list(opened(whole / MANIFEST))
    for old, new in zip(before, after, strict=True):
        assert (new.id, new.duration, new.recording) == (old.id, old.duration, old.recording)
        assert [words.text for words in new.supervisions] == [words.text for words in old.supervisions]
        assert (new.targets.frame_shift, new.targets.start, new.targets.shape) == (
            1 / 75,
            0,
            [math.ceil(75 * new.duration), 2],
        )
        assert new.custom[TARGETS_OF] == {"codec": "random:53", "size": 64}
        assert has_labels(new)
    # Two bytes a label, and no file for each clip.
    frames = sum(cut.targets.num_frames for cut in after)
    assert sorted(path.name for path in whole.iterdir()) == ["codes", MANIFEST]
    assert sum(path.stat().st_size for path in whole.rglob("codes.bin")) == 2 * 2 * frames
    assert [clip.id for clip in TokenStore(whole / "codes")] == [cut.id for cut in after]


def test_long_recordings_are_read_in_blocks(tmp_path, codec, monkeypatch):
    """One at 22.05 kHz; so long a clip that the codec takes it in several windows."""
    samples = 0.2 * np.random.default_rng(0).standard_normal(22_050 * 5).astype(np.float32)
    sf.write(tmp_path / "long.wav", samples, 22_050, subtype="FLOAT")
    cut = CutSet.from_cuts([cut_of(tmp_path / "long.wav").truncate(offset=0.4, duration=4.3)])
    monkeypatch.setattr(audio, "BLOCK_S", 0.7)
    monkeypatch.setattr(codec, "window_frames", 100)
    extract_targets(cut, codec, tmp_path / "labels")
    part = samples[round(0.4 * 22_050) : round(4.7 * 22_050)]
    expected = encode_long(codec, soxr.resample(part, 22_050, 24_000), n_q=1)
    (labels,) = labels_of(tmp_path / "labels").values()
    assert len(labels) == 323
    np.testing.assert_array_equal(labels, expected.T.numpy())
    (made,) = opened(tmp_path / "labels" / MANIFEST)
    assert load_labels(made, 0.0, 16_000)[0, 0] == labels[int(75 * 200 / 16_000), 0]


def cut_of(path):
    rows = path.parent / f"{path.stem}.rows.jsonl"
    rows.write_text(json.dumps({"audio": path.name, "duration": 1.0}) + "\n")
    import_manifest(rows, rows.with_suffix(".cuts.jsonl"))
    return next(iter(opened(rows.with_suffix(".cuts.jsonl"))))


# ---- interruptions ---------------------------------------------------------------------------------


def test_it_goes_on_after_a_stop(whole, corpus, codec, tmp_path, monkeypatch):
    monkeypatch.setattr(shard, "_BUCKETED", 0)  # each clip alone

    def stop(clips, seconds):
        heard.append(clips)
        if len(heard) == 3:
            raise KeyboardInterrupt

    heard = []
    with pytest.raises(KeyboardInterrupt):
        extract_targets(opened(corpus), codec, tmp_path / "labels", layers=2, advance=stop)
    assert not (tmp_path / "labels" / MANIFEST).exists()
    report = extract_targets(opened(corpus), codec, tmp_path / "labels", layers=2)
    assert (report.clips, report.made, report.left_out) == (10, 7, ())
    assert tree(tmp_path / "labels" / "codes") == tree(whole / "codes")
    assert same(labels_of(tmp_path / "labels"), labels_of(whole))


@pytest.mark.long
def test_a_killed_command_loses_and_repeats_nothing(corpus, encodec, whole, tmp_path):
    arguments = ("data", "targets", corpus, "labels", "--codec", f"hf:{encodec}", "--layers", 2, "--device", "cpu")
    running = Running(tmp_path, *arguments)
    running.wait_for(lambda: any((tmp_path / "labels").rglob("codes.bin")))
    running.kill()
    ended = xycodec(tmp_path, *arguments)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.endswith("0.00 h, 0 left out\n2 x 64 labels, 75 frames a second\n")
    assert tree(tmp_path / "labels" / "codes") == tree(whole / "codes")
    assert same(labels_of(tmp_path / "labels"), labels_of(whole))


# ---- what goes wrong -------------------------------------------------------------------------------


def test_broken_clips_are_left_out_in_a_line_each(tmp_path, codec):
    cuts = write_corpus(tmp_path / "corpus", clips=5)
    (tmp_path / "corpus" / "1.wav").write_bytes(b"RIFF nonsense")
    sf.write(tmp_path / "corpus" / "2.wav", np.full(16_000, np.nan, np.float32), 16_000, subtype="FLOAT")
    os.truncate(tmp_path / "corpus" / "3.wav", 6000)
    mixed = CutSet.from_cuts([*opened(cuts), next(iter(opened(cuts))).pad(3.0)])
    report = extract_targets(mixed, codec, tmp_path / "labels")
    assert report.clips == 2
    assert sorted(labels_of(tmp_path / "labels")) == ["0.wav", "4.wav"]
    words = ("1.wav' is not audio", "2.wav: holds a NaN", "3.wav: ends", "a MixedCut holds no labels")
    assert len(report.left_out) == 4
    for line, expected in zip(report.left_out, words, strict=True):
        assert expected in line
    assert extract_targets(mixed, codec, tmp_path / "labels").left_out == report.left_out


def test_a_folder_of_something_else_is_refused(whole, corpus, codec, tmp_path):
    folder = tmp_path / "labels"
    shutil.copytree(whole, folder)
    cases = [
        (opened(corpus), codec, 1, "was begun with other codes"),
        (opened(corpus), open_codec("xy-random", device="cpu"), 2, "was begun with other codes"),
        (CutSet.from_cuts(reversed(list(opened(corpus)))), codec, 2, "was begun with other inputs"),
        (CutSet.from_cuts(list(opened(corpus))[:4]), codec, 2, "was begun with other inputs"),
    ]
    for cuts, other, layers, words in cases:
        with pytest.raises(StoreError, match=words) as raised:
            extract_targets(cuts, other, folder, layers=layers)
        assert "\n" not in str(raised.value)
    assert (whole / MANIFEST).read_bytes() == (folder / MANIFEST).read_bytes()


def test_nothing_to_label_leaves_no_manifest(tmp_path, codec):
    cuts = write_corpus(tmp_path / "corpus", clips=2)
    for path in cuts.parent.glob("*.wav"):
        path.unlink()
    with pytest.raises(ConfigError, match=r"no clip could be labelled, first: .*0\.wav' cannot be read"):
        extract_targets(opened(cuts), codec, tmp_path / "labels")
    assert not (tmp_path / "labels" / MANIFEST).exists()
    with pytest.raises(XycodecError, match="n_q must be an integer from 1 to"):
        extract_targets(opened(cuts), codec, tmp_path / "more", layers=99)
    assert not (tmp_path / "more").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file/codes cannot be written"):
        extract_targets(opened(cuts), codec, tmp_path / "file")
