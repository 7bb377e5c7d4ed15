"""The scripts of X-Codec's tables: what they call, and what makes the audio that they measure."""

import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import typer.main
from tests.embedding import save_clap, tones
from tests.reference import tiny_config

from xycodec.checkpoints.build import random_codec
from xycodec.checkpoints.save import save_codec
from xycodec.cli.app import app
from xycodec.errors import CheckpointError, ConfigError
from xycodec.eval.generation.run import GENERATED
from xycodec.eval.report.expected import read_expected
from xycodec.eval.results import METRICS, ORIGINAL
from xycodec.eval.tts.sources import row_names
from xycodec.io.audio import read_audio, write_audio
from xycodec.models.base import codes_fingerprint
from xycodec.models.longform import decode_long, encode_long

RUNS = Path(__file__).parents[2] / "runs"
PROGRAMS = ("xycodec", "torchrun", "lhotse", "python")
HOP = 1280


def calls(tmp_path, script, *arguments):
    """The command lines that a script would run: each program only notes its own, and ends well."""
    shutil.copytree(RUNS, tmp_path / "runs")
    (tmp_path / "bin").mkdir()
    for program in PROGRAMS:
        stub = tmp_path / "bin" / program
        stub.write_text('#!/bin/sh\nprintf "%s\\0" "${0##*/}" "$@" >> "$NOTES"\nprintf "\\n" >> "$NOTES"\n')
        stub.chmod(0o755)
    place = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "NOTES": str(tmp_path / "notes"), "GPUS": "2"}
    ran = subprocess.run(
        ["bash", str(tmp_path / "runs" / script), *arguments, "out"],
        cwd=tmp_path, env=place, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return [line.rstrip("\0").split("\0") for line in (tmp_path / "notes").read_text().splitlines()]


def parsed(words):
    """Options of a command of ours as the program would take them; it has to know them all."""
    command = typer.main.get_command(app).commands[words[1]]
    return command.make_context(words[1], words[2:]).params


def test_the_tts_table(tmp_path):
    lines = calls(tmp_path, "reproduce_xcodec_tts.sh", "libritts", "librispeech", "verifier.pth")
    assert [" ".join(words[:2]) for words in lines if words[0] != "lhotse"] == [
        "xycodec tokenize", "xycodec tokenize", "torchrun --nproc-per-node", "torchrun --nproc-per-node",
        "xycodec export", "xycodec evaluate-tts",
    ]  # fmt: skip
    assert sum(words[:3] == ["lhotse", "prepare", "libritts"] for words in lines) == 4
    trained = [words[words.index("train") + 1] for words in lines if words[0] == "torchrun"]
    assert trained == ["lm/valle_ar.yaml", "lm/valle_nar.yaml"]
    told = parsed(lines[-1])
    assert told["test"] == "librispeech:test-clean:librispeech"
    assert (told["model"], told["seeds"]) == (["x-codec=out/valle"], "0,1,2")
    table = read_expected(told["expected"], row_names(["x-codec"], [], False), ("wer", "similarity", "utmos"))
    assert table.values["x-codec-ar"]["wer"] == 0.0527


@pytest.mark.parametrize(
    ("script", "arguments", "recipe"),
    [
        ("reproduce_xcodec_music.sh", ("music", "musdb", "weights"), "lm/music.yaml"),
        ("reproduce_xcodec_sound.sh", ("sounds.jsonl", "captions.jsonl", "true", "weights"), "lm/sound.yaml"),
    ],
)
def test_the_tables_of_music_and_sound(tmp_path, script, arguments, recipe):
    lines = calls(tmp_path, script, *arguments)
    (trained,) = (words for words in lines if words[0] == "torchrun")
    assert trained[trained.index("train") + 1] == recipe
    (generating,) = (words for words in lines if words[0] == "python")
    told = generator().parser().parse_args(generating[2:])
    assert told.run.__name__ == {"lm/music.yaml": "continue_music", "lm/sound.yaml": "make_sounds"}[recipe]
    options = parsed(lines[-1])
    assert str(options["generated"]).startswith(str(told.output))
    read_expected(options["expected"], (ORIGINAL, GENERATED), METRICS)


# ---- what makes the audio ------------------------------------------------------------------------


def generator():
    spec = importlib.util.spec_from_file_location("generate_audio", RUNS / "generate_audio.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Composer:
    """A model that draws codes by its seed, and notes what it is asked."""

    books = 2

    def __init__(self, codec):
        self.codec_name, self.codec_hash, self.size = "none", codes_fingerprint(codec), codec.codebook_size
        self.asked = []

    def generate(self, *, frames, prompt_codes=None, condition=None, seed=0):
        self.asked.append((frames, prompt_codes, condition, seed))
        return torch.randint(self.size, (self.books, frames), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    codec = random_codec(tiny_config())
    return codec, str(save_codec(codec, tmp_path_factory.mktemp("codec") / "tiny"))


def generate(*arguments, model):
    told = generator().parser().parse_args([*map(str, arguments), "--device", "cpu"])
    told.run(told, lambda path, device: model)


def test_music_is_continued_and_the_truth_goes_through_the_same_codebooks(codec, tmp_path):
    for number, clip in enumerate(tones(2, seconds=3)):
        (tmp_path / f"music/t{number}").mkdir(parents=True)
        write_audio(tmp_path / f"music/t{number}/mixture.wav", clip, 16_000)
        write_audio(tmp_path / f"music/t{number}/drums.wav", clip, 16_000)
    model = Composer(codec[0])
    arguments = ("music", tmp_path / "music", tmp_path, tmp_path / "out", "--codec", codec[1])
    arguments += ("--count", 3, "--prompt", 0.8, "--generate", 1.2)
    generate(*arguments, model=model)
    crops = [json.loads(line) for line in (tmp_path / "out/crops.jsonl").read_text().splitlines()]
    assert [row["track"] for row in crops] == ["t0/mixture.wav", "t1/mixture.wav", "t0/mixture.wav"]
    crop = read_audio(tmp_path / "music" / crops[1]["track"])[crops[1]["start"] :][: 25 * HOP]
    true = encode_long(codec[0], crop)[:2]
    frames, prompt, condition, seed = model.asked[1]
    assert (frames, condition, seed) == (15, None, 1)
    assert torch.equal(prompt, true[:, :10])
    made = torch.cat([prompt, Composer(codec[0]).generate(frames=15, seed=1)], dim=1)
    for kind, codes in (("reference", true), ("generated", made)):
        written = read_audio(tmp_path / "out" / kind / "0001.wav")
        expected = decode_long(codec[0], codes).numpy()[10 * HOP :]
        np.testing.assert_allclose(written, expected.clip(-1, 1), atol=1e-4)  # files have 16 bits
    (tmp_path / "out/reference/0001.wav").unlink()
    generate(*arguments, model=model)
    assert len(model.asked) == 4
    with pytest.raises(ConfigError, match="is shorter than a crop"):
        generate(*arguments[:3], tmp_path / "other", *arguments[4:-1], 30, model=model)
    other = Composer(codec[0])
    other.codec_hash = "0"
    with pytest.raises(CheckpointError, match="makes codes of another codec"):
        generate(*arguments, model=other)


def test_sounds_are_made_of_captions(codec, tmp_path):
    (tmp_path / "captions.jsonl").write_text('{"id": "a", "caption": "rain"}\n{"id": "b/c", "caption": "a dog"}\n')
    clap, model = save_clap(tmp_path / "clap"), Composer(codec[0])
    arguments = ("sound", tmp_path / "captions.jsonl", tmp_path, tmp_path / "out", "--codec", codec[1])
    generate(*arguments, "--clap", clap, "--seconds", 0.8, model=model)
    assert sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.wav")) == [
        "a.wav", "b/c.wav",
    ]  # fmt: skip
    (frames, prompt, condition, seed), (*_, other, second) = model.asked
    assert (frames, prompt, seed, second, condition.shape) == (10, None, 0, 1, (12,))
    assert not torch.equal(condition, other)
    assert len(read_audio(tmp_path / "out/a.wav")) == 10 * HOP
    assert os.path.getsize(tmp_path / "out/b/c.wav") > 10 * HOP
