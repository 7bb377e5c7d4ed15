"""Every example runs, and does what it says."""

import json
import runpy
import sys
from pathlib import Path

import datasets
import matplotlib as mpl
import numpy as np
import pytest
import soundfile as sf
from tests.published_xcodec import tiny_config

from xycodec import Codec, read_audio
from xycodec.checkpoints.build import random_codec
from xycodec.checkpoints.save import save_codec
from xycodec.io.tokens.read import TokenStore

EXAMPLES = Path(__file__).parents[2] / "examples"
SPEECH = EXAMPLES.parents[1] / "shared" / "data" / "speech"
SOUND = EXAMPLES.parent / "src" / "xycodec" / "assets" / "fox.flac"


@pytest.fixture
def recordings(tmp_path, monkeypatch):
    """A folder with two clips of different lengths, seen from the folder above it."""
    speech, rate = sf.read(SOUND, frames=48_000, dtype="float32")
    for name, clip in (("a.flac", speech[:20_000]), ("below/b.wav", speech)):
        (tmp_path / "recordings" / name).parent.mkdir(parents=True, exist_ok=True)
        sf.write(tmp_path / "recordings" / name, clip, rate)
    monkeypatch.chdir(tmp_path)
    return "recordings"


@pytest.fixture
def x_tiny(tmp_path):
    """A folder with a small X-Codec, which computes in milliseconds."""
    save_codec(random_codec(tiny_config(window_frames=60)), tmp_path / "x-tiny")
    return tmp_path / "x-tiny"


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a script of examples/ in this process with these arguments; what it has printed."""

    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_a_folder_becomes_tokens_and_sound_again(recordings, run, x_tiny):
    run("tokenize_folder.py", recordings, "tokens.jsonl", "--model", x_tiny)
    rows = [json.loads(line) for line in Path("tokens.jsonl").read_text().splitlines()]
    assert [row["name"] for row in rows] == ["a", "below/b"]
    codec = Codec.from_pretrained(x_tiny)
    codes = codec.encode(read_audio("recordings/a.flac")).codes[0]
    assert rows[0]["tokens"][: codec.n_q] == [q * codec.codebook_size + int(codes[q, 0]) for q in range(codec.n_q)]
    assert len(rows[0]["tokens"]) == codes.numel()
    run("tokenize_folder.py", "tokens.jsonl", "decoded", "--model", x_tiny)
    assert [sf.info(f"decoded/{row['name']}.wav").frames for row in rows] == [20_000, 48_000]


@pytest.mark.exact
def test_batches_have_the_codes_that_clips_have_alone(recordings, run):
    printed = run("encode_batches.py", recordings, "--check", "--batch", 2, "--model", "xy-mini")
    assert "a.flac: 16 frames of 8 codes" in printed
    assert "b.wav: 38 frames of 8 codes" in printed


def test_a_tiny_codec_is_trained_and_used(recordings, run):
    printed = run("train_tiny.py", recordings, "exp/tiny", "--steps", 2)
    assert "2 clips, 4 s" in printed
    assert "2 steps" in printed
    assert sf.info("exp/tiny/decoded.wav").frames == 20_000
    assert len(Path("exp/tiny/metrics.jsonl").read_text().splitlines()) >= 2


def test_librispeech_becomes_a_store(tmp_path, run, x_tiny):
    """Laid out as LibriSpeech is."""
    folder = tmp_path / "dev-clean" / "84" / "121123"
    folder.mkdir(parents=True)
    speech, rate = sf.read(SOUND, frames=16_000, dtype="float32")
    for number in range(2):
        sf.write(folder / f"84-121123-000{number}.flac", speech[: 9000 + 7000 * number], rate)
    (folder / "84-121123.trans.txt").write_text("84-121123-0000 GO\n84-121123-0001 THE QUICK BROWN FOX\n")
    arguments = (tmp_path / "dev-clean", tmp_path / "tokens", "--model", x_tiny)
    printed = run("tokenize_librispeech.py", *arguments)
    assert "2 clips (2 new), 0.00 h, 0 failed" in printed
    second = TokenStore(tmp_path / "tokens")[1]
    assert (second.id, second.meta["text"], second.meta["speaker"], second.samples) == (
        "84-121123-0001", "THE QUICK BROWN FOX", "84", 16_000,
    )  # fmt: skip
    assert "2 clips (0 new)" in run(
        "tokenize_librispeech.py", tmp_path / "dev-clean", tmp_path / "tokens", "--model", x_tiny
    )


@pytest.mark.speech
@pytest.mark.skipif(not SPEECH.is_dir(), reason="the recordings are not at ../shared/data/speech")
def test_the_shared_corpus_becomes_a_store(tmp_path, run, x_tiny):
    printed = run("tokenize_librispeech.py", SPEECH / "dev.jsonl", tmp_path / "tokens", "--model", x_tiny, "--limit", 3)
    assert "3 clips (3 new)" in printed
    assert "In der Literaturgeschichte bilden August Strindbergs" in printed
    assert TokenStore(tmp_path / "tokens")[0].meta["speaker"] == "kerstin"


def test_a_dataset_is_mapped(recordings, run, x_tiny):
    datasets.disable_progress_bars()
    printed = run("tokenize_dataset.py", recordings, "coded", "--model", x_tiny)
    assert "coded: 2 clips, columns audio, codes" in printed
    rows = datasets.load_from_disk("coded")
    codes = Codec.from_pretrained(x_tiny).encode(read_audio("recordings/a.flac")).codes[0]
    assert rows[0]["codes"] == codes.T.tolist()


@pytest.mark.long
@pytest.mark.parametrize("notebook", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.name)
def test_a_notebook_runs_from_top_to_bottom(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mpl.use("Agg")
    names = run_cells(notebook)
    names["plt"].close("all")
    assert names["stoi"][-1] > names["stoi"][0]
    assert len(names["mel"]) == names["codec"].n_q
    one, whole = (sf.read(name)[0] for name in ("one.wav", "all.wav"))
    assert one.shape == whole.shape == names["audio"].shape
    assert not np.array_equal(one, whole)


def run_cells(notebook):
    """Run a notebook's cells one after another; what they have defined."""
    names = {"__name__": "__main__"}
    for number, cell in enumerate(json.loads(notebook.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            exec(compile(source, f"{notebook.name}, cell {number}", "exec"), names)
    return names


def test_notebooks_are_kept_without_what_they_printed():
    for notebook in EXAMPLES.glob("*.ipynb"):
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)
        assert len({cell["id"] for cell in cells}) == len(cells)


def test_every_example_is_listed_and_tested():
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    names = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
    assert len(names) == 6
    assert {name for name in names if f"]({name})" not in listed} == set()
    tested = Path(__file__).read_text(encoding="utf-8")
    assert {name for name in names if name.endswith(".py") and f'"{name}"' not in tested} == set()
