import json

import numpy as np
import pytest
import soundfile as sf
from tests.embedding import save_panns, save_vggish, tones

from xycodec.errors import ConfigError, XycodecError
from xycodec.eval.generation.choose import make_embedders
from xycodec.eval.generation.distances import frechet_distance, inception_score, kernel_distance, moments
from xycodec.eval.generation.embedders.base import EMBEDDING, LOGITS
from xycodec.eval.generation.run import evaluate_generation
from xycodec.eval.generation.sets import AudioSet, read_captions
from xycodec.eval.results import Evaluation
from xycodec.io.audio import read_audio

NAMES = ("a/x", "a/y", "z")


def write(folder, clips, rate=16_000, suffix="wav"):
    for name, clip in zip(NAMES, clips, strict=False):
        path = folder / f"{name}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        sf.write(path, clip, rate)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    return {"panns": save_panns(folder / "panns.pth", rate=32_000), "vggish": save_vggish(folder / "vggish.pth")}


@pytest.fixture
def sets(tmp_path):
    generated = write(tmp_path / "generated", tones(3, seconds=2.2))
    reference = write(tmp_path / "reference", tones(3, seconds=2.5, rate=44_100, seed=1), 44_100, "flac")
    return generated, reference


def run(sets, folder, embedders, **changes):
    return evaluate_generation(*map(AudioSet, sets), folder, embedders, **{"device": "cpu", **changes})


def section(result, title):
    (found,) = (one for one in result.sections if one.title == title)
    return [dict(zip(found.heads, row, strict=True)) for row in found.rows]


def test_every_number_is_that_of_the_sets_vectors(sets, weights, tmp_path):
    embedders = make_embedders(**weights, log_mel_statistics=True, device="cpu")
    result = run(sets, tmp_path / "run", embedders)
    assert result.metrics == ("fd_panns", "kad", "inception_score", "fad_vggish", "fd_log_mel_statistics")
    original, generated = result.codecs
    panns, vggish, statistics = embedders

    def vectors(embedder, folder, suffix, part=EMBEDDING):
        clips = [read_audio(folder / f"{name}.{suffix}", embedder.sample_rate) for name in NAMES]
        return np.concatenate([embedder(clip)[part] for clip in clips])

    def both(embedder, part=EMBEDDING):
        return vectors(embedder, sets[0], "wav", part), vectors(embedder, sets[1], "flac", part)

    def frechet(embedder):
        one, two = both(embedder)
        return frechet_distance(moments([one]), moments([two]))

    assert generated.of_set == pytest.approx(
        {
            "fd_panns": frechet(panns),
            "kad": kernel_distance(*both(panns)),
            "inception_score": inception_score(both(panns, LOGITS)[0]),
            "fad_vggish": frechet(vggish),
            "fd_log_mel_statistics": frechet(statistics),
        },
        rel=1e-6,
    )
    assert original.of_set == {"inception_score": pytest.approx(inception_score(both(panns, LOGITS)[1]), rel=1e-6)}
    assert [clip.clip for clip in original.clips] == [clip.clip for clip in generated.clips] == list(NAMES)
    assert generated.clips[0].seconds == pytest.approx(2.2)
    assert Evaluation.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    # What every score needs beside it.
    rows = {row["embedder"]: row for row in section(result, "Embeddings")}
    assert (rows["vggish"]["N generated"], rows["vggish"]["N reference"], rows["vggish"]["dimensions"]) == (
        "6",
        "6",
        "5",
    )
    assert (rows["panns"]["rate"], rows["panns"]["N generated"]) == ("32000 Hz", "3")
    for embedder in embedders:
        assert rows[embedder.name]["hash of the weights"] == embedder.weights
        assert "soxr" in rows[embedder.name]["resampler"]
    hashes = [row["hash of the file list"] for row in section(result, "Sets")]
    assert hashes == [AudioSet(folder).list_hash for folder in reversed(sets)]
    assert len(set(hashes)) == 2
    assert result.warnings == ()


def test_equal_sets_have_no_distance(sets, tmp_path):
    result = run((sets[0], sets[0]), tmp_path / "run", make_embedders(log_mel_statistics=True))
    assert result.codecs[1].of_set["fd_log_mel_statistics"] == pytest.approx(0, abs=1e-6)


def test_captions_are_scored_clip_by_clip(sets, clap, tmp_path):
    embedders = make_embedders(clap=clap, device="cpu")
    captions = {"a/x": "a dog barks", "z": "rain on a roof"}
    result = run(sets, tmp_path / "run", embedders, captions=captions)
    for row, folder, suffix in zip(result.codecs, reversed(sets), ("flac", "wav"), strict=True):
        for clip in row.clips:
            if clip.clip in captions:
                heard = embedders[0](read_audio(folder / f"{clip.clip}.{suffix}", 48_000))[EMBEDDING][0]
                expected = float(heard @ embedders[0].captions([captions[clip.clip]])[0])
                assert clip.scores.values == {"clap_laion": pytest.approx(expected, abs=1e-6)}
            else:
                assert clip.scores.missing == {"clap_laion": "no caption"}
            assert clip.text == captions.get(clip.clip)
    with pytest.raises(XycodecError, match="a CLAP score takes captions"):
        run(sets, tmp_path / "run", embedders)


def test_what_is_there_is_not_done_again(sets, weights, tmp_path):
    (embedder,) = make_embedders(vggish=weights["vggish"], device="cpu")
    heard = []

    class Counted(type(embedder)):
        def __init__(self):
            vars(self).update(vars(embedder))

        def __call__(self, audio):
            heard.append(len(audio))
            return super().__call__(audio)

    whole = run(sets, tmp_path / "run", [Counted()])
    assert len(heard) == 6
    journal = tmp_path / "run/generated/vggish/vectors.jsonl"
    journal.write_bytes(journal.read_bytes()[:-9])
    heard.clear()
    assert run(sets, tmp_path / "run", [Counted()]) == whole
    assert len(heard) == 1
    sf.write(sets[0] / "a/x.wav", tones(1, seconds=3)[0], 16_000)
    heard.clear()
    changed = run(sets, tmp_path / "run", [Counted()])
    assert heard == [48_000]
    assert changed.codecs[1].of_set != whole.codecs[1].of_set
    other = replace_weights(embedder)
    with pytest.raises(XycodecError, match="holds vectors of another vggish"):
        run(sets, tmp_path / "run", [other])


def replace_weights(embedder):
    copied = object.__new__(type(embedder))
    vars(copied).update(vars(embedder) | {"weights": "0" * 32})
    return copied


def test_what_cannot_be_heard_is_left_out_and_told(sets, weights, tmp_path):
    sf.write(sets[0] / "z.wav", tones(1, seconds=0.5)[0], 16_000)
    (sets[1] / "z.flac").write_bytes(b"fLaC")
    (sets[0] / "more.wav").write_bytes((sets[0] / "a/x.wav").read_bytes())
    result = run(
        sets, tmp_path / "run", make_embedders(vggish=weights["vggish"], log_mel_statistics=True, device="cpu")
    )
    original, generated = result.codecs
    left_out = [(row["embedder"], row["set"], row["clip"]) for row in section(result, "Left out")]
    assert left_out == [
        ("vggish", "original", "z"), ("vggish", "generated", "z"), ("log_mel_statistics", "original", "z"),
    ]  # fmt: skip
    assert "z.flac" in original.clips[2].error
    assert all(clip.error is None for clip in generated.clips)
    assert result.warnings == (
        "vggish left out 1 original clips: see Left out",
        "vggish left out 1 generated clips: see Left out",
        "log_mel_statistics left out 1 original clips: see Left out",
        "4 generated and 3 reference clips: sets of equal size compare best",
    )
    (sets[1] / "a/y.flac").write_bytes(b"fLaC")
    with pytest.raises(XycodecError, match="vggish: hears 1 original clips, two are the least, a/y: "):
        run(sets, tmp_path / "run", make_embedders(vggish=weights["vggish"], device="cpu"))


def test_one_line_each(sets, tmp_path):
    with pytest.raises(XycodecError, match="nothing to measure by"):
        run(sets, tmp_path / "run", [])
    with pytest.raises(ConfigError, match="there is no folder with files of audio"):
        AudioSet(tmp_path / "none")
    (sets[0] / "z.ogg").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"z\.ogg and z\.wav are of one clip"):
        AudioSet(sets[0])
    for text, complaint in (
        ("[]", r":1: a row is {"),
        ('{"id": "a", "caption": " "}', ":1: a row is"),
        ('{"id": "a", "caption": "b"}\n' * 2, ":2: a has a caption already"),
    ):
        (tmp_path / "captions.jsonl").write_text(text)
        with pytest.raises(ConfigError, match=complaint):
            read_captions(tmp_path / "captions.jsonl")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_captions(tmp_path / "none.jsonl")


def test_a_set_is_known_by_names_and_bytes(sets, tmp_path):
    one, same = AudioSet(sets[0]), AudioSet(write(tmp_path / "copy", tones(3, seconds=2.2)))
    assert one.list_hash == same.list_hash
    (tmp_path / "copy/z.wav").rename(tmp_path / "copy/w.wav")
    assert AudioSet(tmp_path / "copy").list_hash != one.list_hash
