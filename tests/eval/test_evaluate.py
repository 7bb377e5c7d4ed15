import json
import os
from dataclasses import replace

import numpy as np
import pytest
import soundfile as sf
from tests.reference import tiny_config

from xycodec.checkpoints.build import random_codec
from xycodec.checkpoints.load import load_codec
from xycodec.checkpoints.save import save_codec
from xycodec.errors import XycodecError
from xycodec.eval.corpus import open_corpora
from xycodec.eval.evaluate import evaluate
from xycodec.eval.judges.base import Judge
from xycodec.eval.judges.recognition import Recognition, Transcript
from xycodec.eval.metrics.quality import measure_quality
from xycodec.eval.results import Evaluation, Scores, pooled
from xycodec.io.audio import read_audio

METRICS = ("stoi", "mel_distance", "si_sdr")


@pytest.fixture(scope="module")
def codecs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codecs")
    return [
        str(save_codec(random_codec(tiny_config(model_id=name), seed), folder / name))
        for seed, name in enumerate(("one", "two"))
    ]


@pytest.fixture
def corpus(tmp_path):
    time = np.arange(16_000) / 16_000
    rows = []
    for number, name in enumerate(("a/x", "a/y", "b/z")):
        path = tmp_path / "speech" / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        loud = np.sin(2 * np.pi * (150 + 70 * number) * time) * np.sin(2 * np.pi * 3 * time) ** 2
        sf.write(path, 0.4 * loud[: 16_000 - 1000 * number], 16_000)
        rows.append({"audio": f"{name}.wav", "duration": 1 - number / 16, "text": name[-1], "speaker": name[0]})
    (tmp_path / "speech/all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_corpora([str(tmp_path / "speech/all.jsonl")])


class Loudness(Judge):
    """A judge of loudness that refuses clips that say y."""

    names = ("utmos",)
    shortest = 1
    batch_size = 2

    def __init__(self, scale=1.0):
        self.scale, self.heard = scale, []

    def describe(self):
        return f"loudness times {self.scale}"

    def judge(self, pairs):
        self.heard += [pair.text for pair in pairs]
        return [
            Scores(missing={"utmos": "will not hear y"})
            if pair.text == "y"
            else Scores({"utmos": self.scale * float(np.abs(pair.decoded).mean())}, transcript=pair.text)
            for pair in pairs
        ]


def run(specs, corpus, folder, **changes):
    return evaluate(specs, corpus, folder, **{"metrics": METRICS, "device": "cpu", **changes})


def timeless(result):
    """Without wall times, which no two runs share."""
    return replace(
        result,
        codecs=tuple(
            replace(one, clips=tuple(replace(clip, encode_s=None, decode_s=None) for clip in one.clips))
            for one in result.codecs
        ),
    )


# ---- what comes out --------------------------------------------------------------------------------


def test_everything_of_every_codec(codecs, corpus, tmp_path):
    folder = tmp_path / "run"
    result = run([*codecs, f"{codecs[0]}@2"], corpus, folder, judges=[Loudness()], title="three")
    assert result.title == "three"
    assert result.metrics == (*METRICS, "utmos")
    assert result.protocol["utmos"] == "loudness times 1.0"
    original, one, two, half = result.codecs
    assert (original.name, original.bitrate, original.encode_speed) == ("original", None, None)
    assert [codec.model for codec in (one, two, half)] == ["one", "two", "one"]
    assert one.parameters == sum(p.numel() for p in load_codec(codecs[0], device="cpu").parameters())
    for codec in result.codecs:
        assert [(clip.clip, clip.source, clip.speaker, clip.text) for clip in codec.clips] == [
            ("a/x", "a", "a", "x"),
            ("a/y", "a", "a", "y"),
            ("b/z", "b", "b", "z"),
        ]
        assert codec.clips[1].scores.missing == {"utmos": "will not hear y"}
        assert codec.clips[0].scores.transcript == "x"
        for clip in codec.clips:
            decoded, true = (
                read_audio(folder / name / "audio" / f"{clip.clip}.flac", 16_000) for name in (codec.name, "original")
            )
            alone = measure_quality([decoded], [true], METRICS)
            assert {name: clip.scores.values[name] for name in METRICS} == alone.values
    assert pooled(original.clips, "stoi") == pytest.approx(1)
    assert pooled(original.clips, "mel_distance") == 0
    # 4 layers of 6 bits, 12.5 Hz; 13, 12 and 11 frames of 1, 15/16 and 14/16 s.
    assert one.bitrate == pytest.approx((13 + 12 + 11) * 24 / (1 + 15 / 16 + 14 / 16))
    assert half.bitrate == pytest.approx(one.bitrate / 2)
    assert len(one.codebooks) == 4
    assert len(half.codebooks) == 2
    assert half.codebooks == one.codebooks[:2]
    assert one.entropy_bitrate > 0
    assert one.encode_speed > 0
    assert Evaluation.from_dict(json.loads(json.dumps(result.to_dict()))) == result


@pytest.mark.long
def test_processes_make_no_difference(codecs, corpus, tmp_path):
    one = run(codecs[:1], corpus, tmp_path / "one")
    two = run(codecs[:1], corpus, tmp_path / "two", processes=2)
    assert timeless(one) == timeless(two)


class Ear:
    """Hears how loud a clip is, in letters."""

    about, shortest, batch_size, normaliser, spellings, languages = "an ear", 1, 2, "plain", {}, frozenset({"en", "de"})

    def __init__(self):
        self.told = []

    def __call__(self, clips, languages):
        self.told += languages
        return [
            Transcript(" ".join("abcdefghij"[int(digit)] for digit in str(int(1e6 * clip.std())))) for clip in clips
        ]


def test_where_there_is_no_text_the_original_is_heard_once_and_is_the_reference(codecs, corpus, tmp_path):
    items = [replace(corpus[0], text=None, language="de"), *corpus[1:]]
    ear = Ear()
    original, one = run(codecs[:1], items, tmp_path / "run", judges=[Recognition(ear)]).codecs
    assert original.clips[0].scores.missing["wer"] == "no text: it is the reference itself"
    assert one.clips[0].scores.reference == original.clips[0].scores.transcript
    assert 0 < one.clips[0].scores.values["wer_capped"] <= 1
    assert [clip.scores.reference for clip in (*original.clips, *one.clips[1:])] == [None] * 5
    assert [clip.language for clip in one.clips] == ["de", None, None]
    assert sorted(ear.told) == ["de", "de", "en", "en", "en", "en"]
    ear.told.clear()
    _, again, two = run(codecs, items, tmp_path / "run", judges=[Recognition(ear)]).codecs
    assert again == one
    assert len(ear.told) == 3
    assert two.clips[0].scores.reference == one.clips[0].scores.reference


# ---- going on --------------------------------------------------------------------------------------


def test_a_run_goes_on_where_it_was_killed(codecs, corpus, tmp_path):
    whole = run(codecs, corpus, tmp_path / "whole", judges=[Loudness()])
    folder = tmp_path / "killed"
    run(codecs[:1], corpus, folder, metrics=("stoi",))
    # As if it had been killed while it wrote: of each journal, most of the last row is gone.
    for journal in folder.rglob("*.jsonl"):
        journal.write_bytes(journal.read_bytes()[:-9])
    (folder / "original/audio/b/z.flac").unlink()
    assert timeless(run(codecs, corpus, folder, judges=[Loudness()])) == timeless(whole)


def test_what_is_there_is_not_done_again(codecs, corpus, tmp_path):
    folder = tmp_path / "run"
    judge = Loudness()
    first = run(codecs, corpus, folder, judges=[judge])
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.suffix in (".flac", ".u2", ".jsonl")}
    judge.heard.clear()
    assert run(codecs, corpus, folder, judges=[judge]) == first
    assert run(codecs, corpus, folder, judges=[judge], processes=2) == first
    assert judge.heard == []
    assert kept == {path: path.stat().st_mtime_ns for path in kept}


@pytest.mark.parametrize("why", ["not installed: pip install it", "not computed: a worker process died"])
def test_what_may_pass_is_tried_again(codecs, corpus, tmp_path, why):
    folder = tmp_path / "run"
    first = run(codecs[:1], corpus, folder)
    journal = folder / first.codecs[1].name / "scores.jsonl"
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    for row in rows:
        row["scores"]["missing"]["stoi"] = why
        del row["scores"]["values"]["stoi"]
    journal.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(codecs[:1], corpus, folder) == first


# ---- what a clip is known by -----------------------------------------------------------------------


def test_replaced_audio_gets_scores_of_its_own(codecs, corpus, tmp_path):
    manifest, place = tmp_path / "speech/all.jsonl", tmp_path / "speech/a/y.wav"
    first = run(codecs[:1], corpus, tmp_path / "run", judges=[Loudness()])
    stat = place.stat()
    audio, rate = sf.read(place)
    sf.write(place, 0.5 * audio[::-1], rate)
    # As long, as large and as old as before.
    os.utime(place, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert place.stat().st_size == stat.st_size
    judge = Loudness()
    again = run(codecs[:1], open_corpora([str(manifest)]), tmp_path / "run", judges=[judge])
    assert timeless(again) == timeless(run(codecs[:1], corpus, tmp_path / "fresh", judges=[Loudness()]))
    for before, now in zip(first.codecs, again.codecs, strict=True):
        assert [one == other for one, other in zip(before.clips, now.clips, strict=True)] == [True, False, True]
    assert judge.heard == ["y", "y"]


def test_a_corrected_transcript_is_judged_anew_but_not_coded(codecs, corpus, tmp_path):
    folder = tmp_path / "run"
    run(codecs[:1], corpus, folder, judges=[Loudness()])
    codes = {path: path.read_bytes() for path in folder.rglob("codes.*")}
    judge = Loudness()
    corrected = [replace(item, text="corrected" if item.text == "x" else item.text) for item in corpus]
    again = run(codecs[:1], corrected, folder, judges=[judge])
    assert judge.heard == ["corrected"] * 2
    assert again.codecs[1].clips[0].scores.transcript == "corrected"
    assert {path: path.read_bytes() for path in codes} == codes
    assert [row["clip"] for row in map(json.loads, (folder / "original/audio.jsonl").read_text().splitlines())] == [
        "a/x", "a/y", "b/z",
    ]  # fmt: skip
    # What was scored under the old words is not lost.
    judge.heard.clear()
    run(codecs[:1], corpus, folder, judges=[judge])
    assert judge.heard == []


def test_audio_that_can_no_longer_be_read_keeps_no_scores(codecs, corpus, tmp_path):
    run(codecs[:1], corpus, tmp_path / "run")
    (tmp_path / "speech/a/y.wav").write_bytes(b"RIFF")
    for codec in run(codecs[:1], corpus, tmp_path / "run").codecs:
        assert [bool(clip.error) for clip in codec.clips] == [False, True, False]
        assert codec.clips[1].scores == Scores()


def test_a_search_stands_beside_the_greedy_codes(codecs, corpus, tmp_path):
    _, greedy, searched = run([codecs[0], f"{codecs[0]}+4"], corpus, tmp_path / "run").codecs
    assert (greedy.search, searched.search, searched.title) == (1, 4, f"{codecs[0]}+4")
    assert greedy.bitrate == searched.bitrate
    assert [clip.scores for clip in greedy.clips] != [clip.scores for clip in searched.clips]
    with pytest.raises(XycodecError, match="opus-6k has no search over its codes"):
        run(["opus-6k+4"], corpus, tmp_path / "other")


# ---- what goes wrong -------------------------------------------------------------------------------


def test_a_clip_that_cannot_be_read_is_told_of_everywhere(codecs, corpus, tmp_path):
    (tmp_path / "speech/a/y.wav").write_bytes(b"RIFF")
    corpus = open_corpora([str(tmp_path / "speech/all.jsonl")])
    result = run(codecs[:1], corpus, tmp_path / "run")
    for codec in result.codecs:
        assert [bool(clip.error) for clip in codec.clips] == [False, True, False]
        assert "y.wav" in codec.clips[1].error
        assert codec.clips[1].scores == Scores()


def test_a_silent_clip_counts_as_one_without_scores(codecs, tmp_path):
    sf.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
    sf.write(tmp_path / "loud.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 16_000), 16_000)
    items = open_corpora([str(tmp_path / "silent.wav"), str(tmp_path / "loud.wav")])
    result = run(codecs[:1], items, tmp_path / "run")
    for codec in result.codecs:
        assert codec.clips[0].error is None
        assert "stoi" in codec.clips[0].scores.missing
        assert "stoi" in codec.clips[1].scores.values


def test_one_line_each(codecs, corpus, tmp_path):
    folder = tmp_path / "run"
    run(codecs[:1], corpus, folder, judges=[Loudness()])
    with pytest.raises(XycodecError, match="with other clips"):
        run(codecs[:1], corpus[:2], folder)
    with pytest.raises(XycodecError, match=r"utmos was scored by 'loudness times 1\.0'"):
        run(codecs[:1], corpus, folder, judges=[Loudness(2.0)])
    with pytest.raises(XycodecError, match="is given twice"):
        run(codecs[:1] * 2, corpus, folder)
    with pytest.raises(XycodecError, match="no codec to evaluate"):
        run([], corpus, folder)
    with pytest.raises(XycodecError, match="no clip to evaluate"):
        run(codecs, [], tmp_path / "none")
    with pytest.raises(XycodecError, match="n_q must be an integer from 1 to 4"):
        run([f"{codecs[0]}@5"], corpus, tmp_path / "none")
    with pytest.raises(XycodecError, match=r"stoy: .*did you mean 'stoi'"):
        run(codecs, corpus, tmp_path / "none", metrics=("stoy",))
    assert not (tmp_path / "none").exists()
    with pytest.raises(XycodecError, match="no such file, folder or model"):
        run([codecs[0], "no-such"], corpus, tmp_path / "other")
    assert not list((tmp_path / "other").rglob("*.flac"))


def test_other_weights_under_the_same_name_are_refused(corpus, tmp_path):
    place = tmp_path / "codec"
    save_codec(random_codec(tiny_config(), 0), place)
    run([str(place)], corpus, tmp_path / "run")
    save_codec(random_codec(tiny_config(), 1), place, overwrite=True)
    with pytest.raises(XycodecError, match="holds scores of other weights"):
        run([str(place)], corpus, tmp_path / "run")


def test_other_windows_under_the_same_name_are_refused(codecs, corpus, tmp_path):
    run(codecs, corpus, tmp_path / "run", overlap_s=0.0)
    with pytest.raises(XycodecError, match=r"holds scores of other windows \(--overlap\)"):
        run(codecs, corpus, tmp_path / "run")
