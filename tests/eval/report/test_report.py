import base64
import csv
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from matplotlib.image import imread

import xycodec
from xycodec.errors import XycodecError
from xycodec.eval.report.listen import SHOWN_S, choose_clips
from xycodec.eval.report.markdown import make_markdown
from xycodec.eval.report.page import SHOWN_SPEAKERS, make_page
from xycodec.eval.report.published import published_points
from xycodec.eval.report.tables import make_tables
from xycodec.eval.report.write import REPORTS, write_report
from xycodec.eval.results import (
    METRICS,
    ORIGINAL,
    ClipResult,
    CodebookUse,
    CodecResult,
    Evaluation,
    Scores,
    Section,
    overall,
    pooled,
)
from xycodec.io.audio import read_audio, write_audio

NASTY = "</script><script>alert('name')</script> | & $title"
NAMED = ("stoi", "wer", "f0_error")
CLIPS = ("good", "plain", "bad", NASTY.replace("/", ":"), "long", "silent")
LEVELS = (0.9, 0.5, 0.1, 0.6, 0.4, None)


def results(codec, gain, *, fails=None):
    """One result for each of CLIPS; the silent one lacks STOI, and only every second has a transcript."""
    for number, (name, level) in enumerate(zip(CLIPS, LEVELS, strict=True)):
        clip = ClipResult(name, f"source {number % 2}", f"<b>{number}", NASTY, 1.5 + number, bits=1000, encode_s=0.125)
        if name == fails:
            yield replace(clip, error=f"{codec} broke\nhere")
            continue
        values, missing = {"f0_error": 100.0 * (number + gain) ** 2}, {}
        if level is None:
            missing["stoi"] = "silent"
        else:
            values["stoi"] = level + gain / 3
        if number % 2:
            values["wer"] = 1 / (number + 3) - gain / 7
        else:
            missing["wer"] = "no transcript"
        yield replace(clip, scores=Scores(values, missing, {"wer": number + 1.0}, NASTY))


def codec(name, clips, bitrate=1000.0):
    books = (CodebookUse(0.5, 8.25), CodebookUse(1.0, 10.0)) if bitrate else ()
    return CodecResult(name, f"{name} <i>&", "a folder", bitrate, 12.5, 800.0, 10**7, books, tuple(clips))


@pytest.fixture
def evaluation():
    codecs = (
        codec(ORIGINAL, results(ORIGINAL, 0.3), bitrate=None),
        codec("ours", results("ours", 0.0)),
        codec("theirs", results("theirs", 0.1, fails="plain"), bitrate=3200.0),
    )
    sections = (Section(NASTY, (NASTY, "seeds"), ((NASTY, "0, 1"), ("", "2")), NASTY), Section("bare", ("one",), ()))
    return Evaluation(
        NASTY, {"level": NASTY}, {"xycodec": "0.1.0"}, "two cores", NAMED, codecs, sections, (NASTY, "off")
    )


@pytest.fixture
def audio(tmp_path):
    """Audio of one clip for all codecs, of a long one for `ours`, and a damaged file."""
    speech = read_audio(Path(xycodec.__file__).parent / "assets" / "fox.flac")
    for name in (ORIGINAL, "ours", "theirs"):
        folder = tmp_path / "evaluation" / name / "audio"
        folder.mkdir(parents=True)
        write_audio(folder / "good.flac", speech * 0.5, 16_000)
    write_audio(tmp_path / "evaluation" / "ours" / "audio" / "bad.flac", np.resize(speech, 14 * 16_000), 16_000)
    (tmp_path / "evaluation" / "theirs" / "audio" / "bad.flac").write_bytes(b"no audio")
    return tmp_path / "evaluation"


class Parsed(HTMLParser):
    """Tags with their attributes, and the text of every script by its id."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.inside = [], {}, None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "script":
            self.inside = dict(attributes).get("id")
            self.scripts[self.inside] = ""

    def handle_endtag(self, tag):
        if tag == "script":
            self.inside = ...

    def handle_data(self, data):
        if self.inside in self.scripts:
            self.scripts[self.inside] += data


def rows_of(path):
    return csv.DictReader(io.StringIO(path.read_text(), newline=""))


def plain(data):
    return json.loads(json.dumps(data))


# ---- tables ------------------------------------------------------------------------------------


def test_every_clip_counts_or_is_missing_with_a_reason(evaluation):
    ours, theirs = evaluation.codecs[1], evaluation.codecs[2]
    evaluation = replace(evaluation, codecs=(ours, replace(theirs, clips=theirs.clips[:-1])))
    tables = make_tables(evaluation)
    assert tables.overall.clips == len(CLIPS)
    for one in evaluation.codecs:
        for metric in NAMED:
            found = tables.overall.scores[one.name].get(metric)
            lacking = [gap for gap in tables.gaps if gap.codec == one.name and gap.metric in (metric, None)]
            assert (found.clips if found else 0) + sum(gap.clips for gap in lacking) == len(CLIPS)
    reasons = {(gap.codec, gap.metric, gap.reason): gap.examples for gap in tables.gaps}
    assert reasons == {
        ("ours", "stoi", "silent"): ("silent",),
        ("ours", "wer", "no transcript"): ("good", "bad", "long"),
        ("theirs", None, "not evaluated"): ("silent",),
        ("theirs", None, "theirs broke\nhere"): ("plain",),
        ("theirs", "wer", "no transcript"): ("good", "bad", "long"),
    }


def test_groups_are_evaluations_of_their_clips_alone(evaluation):
    tables = make_tables(evaluation)
    assert [(group.name, group.clips) for group in tables.sources] == [("source 0", 3), ("source 1", 3)]
    assert len(tables.speakers) == tables.speaker_count == len(CLIPS)
    for group in tables.sources:
        kept = [
            replace(one, clips=tuple(clip for clip in one.clips if clip.source == group.name))
            for one in evaluation.codecs
        ]
        assert replace(make_tables(replace(evaluation, codecs=tuple(kept))).overall, name=group.name) == group


def test_only_the_other_codecs_are_compared_with_the_first(evaluation):
    tables = make_tables(evaluation)
    assert tables.baseline == "ours"
    assert list(tables.differences) == ["theirs"]
    assert tables.differences["theirs"]["stoi"].value == pytest.approx(0.1 / 3)
    assert tables.differences["theirs"]["stoi"].clips == 4
    alone = make_tables(replace(evaluation, codecs=evaluation.codecs[:1]))
    assert (alone.baseline, alone.differences) == (None, {})


def test_what_only_a_set_has_stands_in_the_table_of_all_clips_alone(evaluation):
    ours = replace(evaluation.codecs[1], of_set={"fd_panns": 12.5})
    codecs = (evaluation.codecs[0], ours, evaluation.codecs[2])
    tables = make_tables(replace(evaluation, metrics=(*NAMED, "fd_panns"), codecs=codecs), {"ours": {"fd_panns": 12.0}})
    found = tables.overall.scores["ours"]["fd_panns"]
    assert (found.value, found.low, found.clips) == (12.5, None, len(CLIPS))
    assert [name for name, scores in tables.overall.scores.items() if "fd_panns" in scores] == ["ours"]
    assert not any("fd_panns" in scores for group in tables.sources for scores in group.scores.values())
    assert not any(gap.metric == "fd_panns" for gap in tables.gaps)
    assert [one.difference for one in tables.expected] == [0.5]
    assert (overall(ours, "fd_panns"), overall(codecs[2], "fd_panns")) == (12.5, None)
    assert overall(ours, "stoi") == pooled(ours.clips, "stoi")


def test_sections_and_warnings_are_shown(evaluation):
    text = make_markdown(make_tables(evaluation))
    assert text.index("**Warning: off.**") < text.index("## Overall") < text.index("## bare")
    assert "| 0, 1 |" in text


def test_expected_values_stand_beside_the_measured(evaluation):
    tables = make_tables(evaluation, {"ours": {"stoi": 0.75, "wer": 0.5}}, "the paper, table 1")
    measured = tables.overall.scores["ours"]
    assert [(one.metric, one.expected, one.measured, one.difference) for one in tables.expected] == [
        ("stoi", 0.75, measured["stoi"].value, measured["stoi"].value - 0.75),
        ("wer", 0.5, measured["wer"].value, measured["wer"].value - 0.5),
    ]
    with pytest.raises(XycodecError, match="expected of 'our', which was not evaluated: name one of original, ours"):
        make_tables(evaluation, {"our": {"stoi": 0.75}})
    with pytest.raises(XycodecError, match="'utmos' is expected, which was not measured: name one of stoi, wer"):
        make_tables(evaluation, {"ours": {"utmos": 4}})


def test_published_points_are_complete_and_within_their_scales():
    known = {**METRICS, "probe_wer": None, "abx_within": None, "abx_across": None}
    for point in published_points():
        assert point.values.keys() <= known.keys(), point
        assert all((point.source, point.data, point.protocol))
        assert point.bitrate is None or 500 <= point.bitrate <= 6000
        for name in ("stoi", "similarity", "probe_wer"):
            assert 0 < point.values.get(name, 0.5) < 1
        for name in ("pesq_nb", "pesq_wb", "utmos"):
            assert 1 < point.values.get(name, 2) < 4.6
    paper = next(point for point in published_points() if point.codec == "XY-Tokenizer (ACL 2026)")
    assert paper.values == {"probe_wer": 0.13, "similarity": 0.85, "stoi": 0.92, "pesq_nb": 3.10, "pesq_wb": 2.50}


# ---- files -------------------------------------------------------------------------------------


def test_the_files_hold_the_same_numbers(evaluation, tmp_path):
    paths = write_report(evaluation, tmp_path / "new" / "folder", expected={"ours": {"stoi": 0.75}})
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == set(REPORTS) == set(paths)
    data = json.loads(paths["report.json"].read_text())
    tables = make_tables(evaluation, {"ours": {"stoi": 0.75}})
    assert Evaluation.from_dict(data["evaluation"]) == evaluation
    assert data["tables"] == plain(tables.to_dict())

    rows = {(row["codec"], row["clip"]): row for row in rows_of(paths["report.csv"])}
    for one in evaluation.codecs:
        for clip in one.clips:
            row = rows.pop((one.name, clip.clip))
            assert {name: float(row[name]) for name in NAMED if row[name]} == clip.scores.values
            assert (row["text"], row["error"], float(row["seconds"])) == (clip.text, clip.error or "", clip.seconds)
    assert not rows

    for row in rows_of(paths["summary.csv"]):
        groups = {"all": [tables.overall], "source": tables.sources, "speaker": tables.speakers}[row["grouped_by"]]
        group = next(group for group in groups if group.name == row["group"])
        found = group.scores[row["codec"]].get(row["metric"])
        assert row["value"] == (repr(found.value) if found else "")
        assert int(row["clips"]) == (found.clips if found else 0)


def test_tables_in_markdown_survive_every_name(evaluation, tmp_path):
    text = write_report(evaluation, tmp_path)["report.md"].read_text()
    found = make_tables(evaluation).overall.scores["theirs"]["stoi"]
    assert f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f}) (n 4 of 6)" in text
    assert "<" not in text
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) == 1 + len(NAMED) + 4 + len(evaluation.sections)
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_all_files_are_written_or_none(evaluation, tmp_path):
    write_report(evaluation, tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in REPORTS[:-1]}
    (tmp_path / "report.html").unlink()
    (tmp_path / "report.html").mkdir()
    with pytest.raises(XycodecError, match=r"report.html' is a folder or a device: give the name of a file"):
        write_report(replace(evaluation, title="later"), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(REPORTS)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    (tmp_path / "file").touch()
    with pytest.raises(XycodecError, match="cannot hold a report"):
        write_report(evaluation, tmp_path / "file")


def test_nothing_to_report_is_said(evaluation, tmp_path):
    empty = replace(evaluation, title="t", codecs=tuple(replace(one, clips=()) for one in evaluation.codecs))
    with pytest.raises(XycodecError, match="t: there is no clip to report on, evaluate at least one"):
        write_report(empty, tmp_path)
    with pytest.raises(XycodecError, match="t: there is no metric to report on, ask for at least one"):
        write_report(replace(evaluation, title="t", metrics=()), tmp_path)
    assert not list(tmp_path.iterdir())


def test_words_are_told_by_what_they_are_compared_with(evaluation, tmp_path):
    original, ours, theirs = evaluation.codecs
    silent = replace(ours.clips[1], text=None, scores=replace(ours.clips[1].scores, reference="a <b>", looped=True))
    itself = replace(original.clips[1], text=None, scores=Scores(missing={"wer": "itself"}, transcript="a <b>"))
    codecs = (
        replace(original, clips=(original.clips[0], itself, *original.clips[2:])),
        replace(ours, clips=(ours.clips[0], silent, *ours.clips[2:])),
        theirs,
    )
    evaluation = replace(evaluation, codecs=codecs)
    told = {(one.codec, one.reference): one for one in make_tables(evaluation).words}
    assert [(*key, one.clips, one.looped) for key, one in told.items()] == [
        (ORIGINAL, "text", 5, 0), (ORIGINAL, "original", 1, 0),
        ("ours", "text", 5, 0), ("ours", "original", 1, 1),
        ("theirs", "text", 5, 0),
    ]  # fmt: skip
    assert told[ORIGINAL, "original"].wer is None
    assert told["ours", "original"].wer == silent.scores.values["wer"]
    assert told["ours", "text"].wer == pooled([clip for clip in codecs[1].clips if clip is not silent], "wer")
    assert make_tables(replace(evaluation, metrics=("stoi",))).words == ()
    paths = write_report(evaluation, tmp_path)
    (row,) = (row for row in rows_of(paths["report.csv"]) if row["heard_in_original"])
    assert (row["codec"], row["clip"], row["heard_in_original"], row["looped"]) == ("ours", "plain", "a <b>", "True")
    wer = told["ours", "original"].wer
    assert f"| ours &lt;i>&amp; | heard in the original | 1 | {wer:.3f} | - | 1 |" in paths["report.md"].read_text()
    median = json.loads(Parsed(paths["report.html"].read_text()).scripts["listen"])[1]
    assert (median["clip"], median["reference"]) == ("plain", "a <b>")


# ---- the page ----------------------------------------------------------------------------------


def test_clips_to_hear_are_the_best_the_median_and_the_worst(evaluation):
    assert [(one.rank, one.clip) for one in choose_clips(evaluation, None)] == [
        ("best", "good"),
        ("median", "plain"),
        ("worst", "bad"),
    ]
    errors = choose_clips(evaluation, None, "f0_error")  # lower is better
    assert [one.clip for one in errors] == [CLIPS[0], CLIPS[2], CLIPS[5]]
    assert [one.metric for one in choose_clips(evaluation, None, "utmos")] == ["stoi"] * 3
    ours = evaluation.codecs[1]
    for count, ranks in ((1, ["best"]), (2, ["best", "worst"]), (3, ["best", "median", "worst"])):
        few = replace(evaluation, codecs=(replace(ours, clips=ours.clips[:count]),))
        assert [one.rank for one in choose_clips(few, None)] == ranks
    silent = replace(evaluation, metrics=("stoi",), codecs=(replace(ours, clips=ours.clips[-1:]),))
    assert choose_clips(silent, None) == ()


def test_players_hold_the_audio_and_say_what_is_wrong(evaluation, audio):
    best, median, worst = choose_clips(evaluation, audio)
    for player in best.players:
        kind, data = player.audio.split(",")
        assert kind == "data:audio/flac;base64"
        sound, rate = sf.read(io.BytesIO(base64.b64decode(data)), dtype="float32")
        assert rate == 16_000
        np.testing.assert_array_equal(sound, read_audio(audio / player.codec / "audio" / "good.flac"))
        picture = imread(io.BytesIO(base64.b64decode(player.picture.split(",")[1])))
        assert picture.shape[:2] == (80, len(sound) // 256 + 1)
    assert [player.audio for player in median.players] == [None] * 3
    assert [player.error for player in median.players] == [None, None, "theirs broke\nhere"]
    original, ours, theirs = worst.players
    assert (original.audio, original.error) == (None, None)
    assert sf.info(io.BytesIO(base64.b64decode(ours.audio.split(",")[1]))).duration == SHOWN_S
    assert theirs.audio is None
    assert "is not audio" in theirs.error


def test_the_page_holds_the_data_and_asks_nobody(evaluation, audio, tmp_path):
    page = Parsed(write_report(evaluation, tmp_path, audio=audio)["report.html"].read_text())
    assert json.loads(page.scripts["tables"]) == plain(make_tables(evaluation).to_dict())
    clips = json.loads(page.scripts["listen"])
    assert [clip["clip"] for clip in clips] == ["good", "plain", "bad"]
    assert [tag for tag, _ in page.tags].count("script") == 3
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            assert attributes.get(name, "data:").startswith("data:")
    policy = next(attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'; ")
    program = (tmp_path / "report.html").read_text().replace(page.scripts["listen"], "")
    assert not re.search(r"@import|url\(|\bfetch\b|XMLHttpRequest|WebSocket|sendBeacon|\bimport\b", program)
    # The one address is the name of SVG, which nothing loads.
    assert set(re.findall(r"https?://[^\s\"']+", program)) == {"http://www.w3.org/2000/svg"}


def test_the_page_shows_the_speakers_with_the_most_clips(evaluation):
    many = [
        ClipResult(f"{speaker}/{number}", "one", f"{speaker:03d}", None, 1.0, scores=Scores({"stoi": 0.5}))
        for speaker in range(SHOWN_SPEAKERS + 5)
        for number in range(1 + (speaker > 4))
    ]
    tables = make_tables(replace(evaluation, codecs=(codec("ours", many),)))
    shown = json.loads(Parsed(make_page(tables, ())).scripts["tables"])
    assert shown["speaker_count"] == SHOWN_SPEAKERS + 5
    assert [group["name"] for group in shown["speakers"]] == [f"{number:03d}" for number in range(5, 45)]


PROBE = """<script>
const heads = [...document.querySelectorAll("table")[0].querySelectorAll("thead button")];
const names = () => [...document.querySelectorAll("table")[0].querySelectorAll("tbody tr th .small")].map(
  (small) => small.parentElement.textContent.replace(small.textContent, ""));
const press = (word) => { heads.find((head) => head.textContent.startsWith(word)).click(); return names(); };
const found = { before: names(), stoi: press("STOI"), again: press("STOI"), rate: press("kbit/s") };
document.querySelectorAll("input[name=metric]").forEach((chip) => chip.click());
let looks = 0;
const look = setInterval(() => { // plots are drawn when their frame has its width, which a busy machine gives late
if (!document.querySelector("svg circle") && ++looks < 100) return;
clearInterval(look);
found.heads = [...document.querySelectorAll("h2")].map((head) => head.textContent);
found.clips = [...document.querySelectorAll("article h3")].map((head) => head.textContent);
found.bold = document.querySelectorAll("main b").length;
found.dots = document.querySelectorAll("svg circle").length;
found.wide = document.documentElement.scrollWidth - innerWidth;
parent.postMessage(JSON.stringify(found), "*");
}, 100);
</script></body>"""
FRAME = """<iframe src="probed.html" style="width: WIDTHpx; height: 900px"></iframe><pre></pre><script>
onmessage = (event) => { document.querySelector("pre").textContent = event.data; };
</script>"""


def seen_in_a_browser(path, width):
    """The page in a frame of `width` pixels, and the complaints of Chromium; None where it is absent."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        return None
    path.with_name("probed.html").write_text(path.read_text().replace("</body>", PROBE))
    frame = path.with_name("frame.html")
    frame.write_text(FRAME.replace("WIDTH", str(width)))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=15000"]
    profile = f"--user-data-dir={path.parent / 'profile'}"
    command = [browser, *flags, profile, f"--window-size={width + 40},900", "--dump-dom", frame.as_uri()]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    shown = re.search(r"<pre>(.*?)</pre>", ran.stdout, re.DOTALL).group(1)
    complaints = [line for line in ran.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(shown.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")), complaints


@pytest.mark.parametrize("width", [390, 1400])
def test_a_browser_shows_the_page_without_complaint(evaluation, audio, tmp_path, width):
    expected = {"ours": {"stoi": 0.75}}
    paths = write_report(evaluation, tmp_path, audio=audio, expected=expected)
    seen = seen_in_a_browser(paths["report.html"], width)
    if seen is None:
        assert "report.md" in paths["report.html"].read_text()  # what a page without scripts tells
        return
    found, complaints = seen
    assert complaints == []
    assert found["wide"] <= 0
    assert found["before"] == [f"{name} <i>&" for name in (ORIGINAL, "ours", "theirs")]
    assert found["stoi"] == [f"{name} <i>&" for name in (ORIGINAL, "theirs", "ours")]
    assert found["again"] == found["stoi"][::-1]
    assert found["rate"] == [f"{name} <i>&" for name in ("ours", "theirs", ORIGINAL)]  # without a rate: last
    assert found["heads"] == [
        "By metric",
        "Listen",
        "Expected values",
        NASTY,
        "bare",
        "Missing",
        "Words",
        "Codebooks",
        "Published",
        "Protocol",
    ]
    assert found["clips"] == ["Best: good", "Median: plain", "Worst: bad"]
    players = [player for clip in choose_clips(evaluation, None) for player in clip.players]
    assert found["bold"] == sum(len(player.values) for player in players)
    assert found["dots"] == 2
