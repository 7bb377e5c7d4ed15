import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile as sf
import torch
from tests.io.tokens.stores import store_of

from published_layout import tiny_config, write_published
from xycodec import __version__
from xycodec.checkpoints.build import random_codec
from xycodec.checkpoints.load import BUNDLED, load_codec
from xycodec.checkpoints.save import save_codec
from xycodec.eval.metrics.quality import measure_quality, plain
from xycodec.io.audio import read_audio
from xycodec.io.xyc import CodecFile
from xycodec.models.longform import decode_long, encode_long
from xycodec.models.presets import NAMED_CONFIGS
from xycodec.models.registry import DEFAULT, MODELS
from xycodec.models.xy_tokenizer.model import XYTokenizer

NOTE = "note: xy-random has random weights"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with a codec that computes in milliseconds."""
    return str(save_codec(random_codec(tiny_config(window_frames=375)), tmp_path_factory.mktemp("codec") / "tiny"))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("XYCODEC_MODEL", raising=False)
    return tmp_path


def process(*arguments, stdin=b"", **options):
    command = [sys.executable, "-m", "xycodec.cli.app", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=120, **options)


def speech(name, samples=8000, rate=16_000, seed=0):
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    sf.write(name, np.random.default_rng(seed).uniform(-0.3, 0.3, samples), rate)
    return name


def files():
    return sorted(str(path) for path in Path().rglob("*") if path.is_file())


def error_line(err):
    """The one line that stderr holds."""
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    return line


# encode and decode


def test_encoding_a_file_is_short(xycodec, tiny, monkeypatch):
    """Few of our functions stand between the command and the model."""
    way = []

    def watched(self, *args, **kwargs):
        frame = sys._getframe(1)
        while frame.f_code.co_name != "main":
            if "/xycodec/" in frame.f_code.co_filename:
                way.insert(0, frame.f_code.co_name)
            frame = frame.f_back
        return encode(self, *args, **kwargs)

    encode = XYTokenizer.encode_latents
    monkeypatch.setattr(XYTokenizer, "encode_latents", watched)
    speech("clip.wav")
    assert xycodec("encode", "clip.wav", "-m", tiny, "--threads", "1")[0] == 0
    to_the_codec = ["encode", "run_all", "run_jobs", "_attempt", "encode_file", "encode_long"]
    by_windows = ["encode_long", "computed", "encode", "encode_windows"]
    assert way == [*to_the_codec, *by_windows, "_compute", "_encode"]


def test_encode_and_decode_one_file(xycodec, tiny):
    speech("clip.flac", 20_001)
    code, out, err = xycodec("encode", "clip.flac", "--model", tiny)
    assert (code, out) == (0, "")
    assert "clip.flac -> clip.xyc: 1.25 s" in err
    assert CodecFile.read("clip.xyc").num_samples == 20_001
    code, out, err = xycodec("decode", "clip.xyc", "-m", tiny, "-o", "out.wav")
    assert (code, out) == (0, "")
    assert "clip.xyc -> out.wav" in err
    assert sf.info("out.wav").frames == 20_001


def test_a_folder_is_mirrored(xycodec, tiny):
    for name in ("in/a.wav", "in/b/c.flac", "in/b/d.ogg"):
        speech(name)
    Path("in/notes.txt").touch()
    code, _, err = xycodec("encode", "in", "-o", "codes", "-m", tiny)
    assert code == 0
    assert "3 done, 1.5 s of audio" in err
    made = ["codes/a.xyc", "codes/b/c.xyc", "codes/b/d.xyc"]
    assert [name for name in files() if name.startswith("codes")] == made
    assert xycodec("decode", "codes", "-o", "out", "-m", tiny, "--format", "flac")[0] == 0
    assert [name for name in files() if name.startswith("out")] == ["out/a.flac", "out/b/c.flac", "out/b/d.flac"]


def test_a_glob(xycodec, tiny):
    for name in ("a1.wav", "a2.wav", "b.wav"):
        speech(name)
    assert xycodec("encode", "a*.wav", "-m", tiny)[0] == 0
    assert [name for name in files() if name.endswith(".xyc")] == ["a1.xyc", "a2.xyc"]


def test_names_with_brackets_and_spaces(xycodec, tiny):
    speech("take [final] 1.wav")
    code, _, err = xycodec("encode", "take [final] 1.wav", "-m", tiny)
    assert code == 0
    assert "take [final] 1.wav -> take [final] 1.xyc" in err


def test_decoding_finds_the_model_by_the_name_in_the_file(xycodec):
    speech("clip.wav")
    code, _, err = xycodec("encode", "clip.wav", "-m", "xy-random")
    assert code == 0
    assert NOTE in err
    assert xycodec("decode", "clip.xyc", "-o", "out.wav")[0] == 0
    assert sf.info("out.wav").frames == 8000


def test_the_model_may_come_from_the_environment(xycodec, tiny, monkeypatch):
    speech("clip.wav")
    monkeypatch.setenv("XYCODEC_MODEL", tiny)
    assert xycodec("encode", "clip.wav")[0] == 0


def test_the_bundled_model_is_the_default(xycodec):
    assert next(iter(MODELS)) == DEFAULT
    speech("clip.wav")
    assert xycodec("encode", "clip.wav", "-q") == (0, "", "")
    file, codec = CodecFile.read("clip.xyc"), load_codec(DEFAULT, device="cpu")
    assert file.model == codec.model_id == DEFAULT
    assert np.array_equal(file.codes, encode_long(codec, read_audio("clip.wav")).numpy())
    assert xycodec("decode", "clip.xyc", "-q", "-o", "out.wav") == (0, "", "")
    assert sf.info("out.wav").frames == 8000
    assert xycodec("roundtrip", "clip.wav", "-q", "-o", "trip") == (0, "", "")
    assert Path("trip/clip.xyc").read_bytes() == Path("clip.xyc").read_bytes()
    assert json.loads(xycodec("info", DEFAULT, "--json")[1])["bitrate"] == 1000


BITRATES = {DEFAULT: 1000}


@pytest.mark.parametrize(("name", "most"), [(DEFAULT, 60_000_000)])
def test_a_bundled_model_is_small_and_in_parts(name, most):
    codec = load_codec(name, device="cpu")
    assert codec.config == NAMED_CONFIGS[name]
    assert (codec.bitrate, codec.output_sample_rate) == (BITRATES[name], 16_000)
    sizes = [path.stat().st_size for path in (BUNDLED / name).iterdir()]
    assert max(sizes) <= 15_000_000
    assert sum(sizes) <= most


def test_the_package_is_small():
    assert sum(path.stat().st_size for path in BUNDLED.rglob("*") if path.is_file()) <= 62_000_000
    assert BITRATES.keys() == {name for name, model in MODELS.items() if model.source == "bundled"}


@pytest.mark.parametrize("name", BITRATES)
def test_a_bundled_model_does_its_job(name):
    codec = load_codec(name, device="cpu")
    audio = torch.from_numpy(read_audio(BUNDLED / "harbour.flac"))
    codes = encode_long(codec, audio)
    decoded = decode_long(codec, codes, num_samples=len(audio))
    assert len(decoded) == len(audio)
    # Nothing of the kind is said by chance, nor by an untrained model.
    assert measure_quality([decoded.numpy()], [audio.numpy()], ["stoi"]).values["stoi"] > 0.6
    assert all(layer.unique().numel() > 10 for layer in codes)


@pytest.mark.parametrize("n_q", [1, 2, 3])
def test_fewer_codebooks(xycodec, tiny, n_q):
    speech("clip.wav")
    assert xycodec("encode", "clip.wav", "-m", tiny, "--n-q", n_q)[0] == 0
    assert CodecFile.read("clip.xyc").n_q == n_q
    assert xycodec("decode", "clip.xyc", "-m", tiny, "-o", "out.wav")[0] == 0


def test_the_published_rules(xycodec, tiny):
    speech("clip.wav", 3000)
    assert xycodec("encode", "clip.wav", "-m", tiny, "--reference")[0] == 0
    assert CodecFile.read("clip.xyc").num_samples == 2560


@pytest.mark.parametrize("options", [["--dtype", "bfloat16"], ["--overlap", "0"], ["--device", "cpu"]])
def test_options_that_must_work(xycodec, tiny, options):
    speech("clip.wav")
    assert xycodec("encode", "clip.wav", "-m", tiny, *options)[0] == 0
    assert xycodec("decode", "clip.xyc", "-m", tiny, "-o", "out.wav", *options)[0] == 0


# what exists already


def test_one_existing_output_is_an_error(xycodec, tiny):
    speech("clip.wav")
    Path("clip.xyc").write_text("precious")
    code, out, err = xycodec("encode", "clip.wav", "-m", tiny)
    assert (code, out) == (1, "")
    assert "clip.xyc" in error_line(err)
    assert "--overwrite" in error_line(err)
    assert Path("clip.xyc").read_text() == "precious"
    assert xycodec("encode", "clip.wav", "-m", tiny, "--overwrite")[0] == 0
    assert CodecFile.read("clip.xyc").frames == 7


def written(path):
    """Identity and time of writing of a file, which may have been read since."""
    found = os.stat(path)
    return found.st_ino, found.st_mtime_ns, found.st_size


def test_existing_outputs_of_a_folder_are_skipped_and_counted(xycodec, tiny):
    for name in ("in/a.wav", "in/b.wav"):
        speech(name)
    assert xycodec("encode", "in/a.wav", "-m", tiny)[0] == 0
    precious = written("in/a.xyc")
    code, _, err = xycodec("encode", "in", "-m", tiny)
    assert code == 0
    assert "1 done" in err
    assert "1 existed already" in err
    assert written("in/a.xyc") == precious
    code, _, err = xycodec("encode", "in", "-m", tiny)
    assert code == 0
    assert "0 done" in err
    assert "2 existed already" in err
    assert xycodec("encode", "in", "-m", tiny, "--overwrite")[0] == 0
    assert CodecFile.read("in/a.xyc").frames == 7


@pytest.mark.parametrize(
    ("first", "then", "says"),
    [
        ([], ["--n-q", "2"], "then 3 codebooks of tiny, now 2 of tiny"),
        (["--n-q", "2"], [], "then 2 codebooks of tiny, now 3 of tiny"),
        (["--search", "4"], [], "then 3 codebooks of tiny, search 4, now 3 of tiny, search 1"),
        ([], ["--overlap", "0.25"], "then none, now overlap 0.25"),
        (["--overlap", "0.25"], ["--overlap", "0.5"], "then overlap 0.25, now overlap 0.5"),
        (["--overlap", "0.25"], [], "then overlap 0.25, now none"),
        ([], ["--reference"], "now reference True"),
        ([], ["-m", "xy-random"], "of tiny, now 8 of xy-random"),
    ],
)
def test_a_rerun_with_other_settings_does_not_pass_for_done(xycodec, tiny, first, then, says):
    for name in ("in/a.wav", "in/b.wav"):
        speech(name)
    assert xycodec("encode", "in", "-o", "codes", "-m", tiny, *first)[0] == 0
    before = {name: Path(name).read_bytes() for name in files()}
    assert xycodec("encode", "in", "-o", "codes", "-m", tiny, *first)[0] == 0
    code, _, err = xycodec("encode", "in", "-o", "codes", "-m", tiny, *then)
    assert code == 1
    assert err.count("error: ") == 2
    assert all(f"codes/{name}.xyc" in err for name in "ab")
    assert says in err
    assert "2 were made with other settings" in err
    assert {name: Path(name).read_bytes() for name in files()} == before
    assert xycodec("encode", "in", "-o", "codes", "-m", tiny, *then, "--overwrite")[0] == 0
    assert xycodec("encode", "in", "-o", "codes", "-m", tiny, *then)[0] == 0


def test_audio_of_codes_that_changed_does_not_pass_for_done(xycodec, tiny):
    for name in ("in/a.wav", "in/b.wav"):
        speech(name)
    assert xycodec("encode", "in", "-o", "codes", "-m", tiny)[0] == 0
    assert xycodec("decode", "codes", "-o", "out", "-m", tiny)[0] == 0
    assert xycodec("decode", "codes", "-o", "out", "-m", tiny)[0] == 0
    assert xycodec("decode", "codes", "-o", "out", "-m", tiny, "--overlap", "0.25")[0] == 1
    assert xycodec("encode", "in", "-o", "codes", "-m", tiny, "--n-q", "1", "--overwrite")[0] == 0
    later = os.stat("out/a.wav").st_mtime + 10
    os.utime("codes/a.xyc", (later, later))
    code, _, err = xycodec("decode", "codes", "-o", "out", "-m", tiny)
    assert code == 1
    assert "out/a.wav: older than codes/a.xyc" in err


def test_a_file_with_no_codes_does_not_pass_for_done(xycodec, tiny):
    for name in ("in/a.wav", "in/b.wav"):
        speech(name)
    Path("in/a.xyc").write_text("precious")
    code, _, err = xycodec("encode", "in", "-m", tiny)
    assert code == 1
    assert "in/a.xyc: exists already and holds no codes" in err
    assert Path("in/a.xyc").read_text() == "precious"
    assert CodecFile.read("in/b.xyc").frames == 7


def test_audio_of_any_kind_in_one_folder(xycodec, tiny):
    """Files of phones and podcasts, beside what macOS leaves, names that differ in the suffix alone, and a tag."""
    speech("in/a.wav")
    speech("in/a.mp3", 16_000)
    Path("in/._a.wav").write_bytes(b"\0\5\x16\7" + bytes(100))
    with av.open("in/b.m4a", "w") as output:
        stream = output.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.full((1, 8000), 0.1, np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = 16_000, 0
        resampler = av.AudioResampler(stream.format, "mono", 16_000)
        for part in [*resampler.resample(frame), None]:
            output.mux(stream.encode(part))
    code, _, err = xycodec("encode", "in", "-o", "codes", "-m", tiny)
    assert code == 0, err
    lengths = {name: CodecFile.read(name).num_samples for name in files() if name.startswith("codes")}
    assert lengths == {"codes/a.mp3.xyc": 16_000, "codes/a.wav.xyc": 8000, "codes/b.xyc": 8000}


def test_what_is_odd_about_a_recording_is_noted(xycodec, tiny):
    sf.write("loud.wav", 20_000 * np.sin(np.arange(16_000) / 20), 16_000, "FLOAT")
    sf.write("quiet.wav", 1e-4 * np.sin(np.arange(16_000) / 20), 16_000, "FLOAT")
    code, _, err = xycodec("encode", "loud.wav", "quiet.wav", "-o", "out", "-m", tiny)
    assert code == 0
    notes = [line for line in err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 2
    assert "loud.wav" in notes[0]
    assert "+86 dB" in notes[0]
    assert "quiet.wav" in notes[1]
    assert "-80 dB" in notes[1]


# what is printed


def test_quiet_prints_errors_only(xycodec, tiny):
    speech("a.wav")
    assert xycodec("encode", "a.wav", "-m", tiny, "-q") == (0, "", "")
    Path("b.wav").write_text("no audio")
    code, out, err = xycodec("encode", "a.wav", "b.wav", "-o", "out", "-m", tiny, "--quiet")
    assert (code, out) == (1, "")
    assert "b.wav" in error_line(err)
    assert xycodec("roundtrip", "a.wav", "-m", tiny, "-q", "-o", "trip") == (0, "", "")


def test_quiet_goes_without_the_note_on_random_weights(xycodec):
    speech("a.wav")
    assert xycodec("encode", "a.wav", "-m", "xy-random", "-q") == (0, "", "")


def test_json_is_one_object_a_line(xycodec, tiny):
    for name in ("in/a.wav", "in/b.wav"):
        speech(name)
    Path("in/c.wav").write_text("no audio")
    code, out, err = xycodec("encode", "in", "-m", tiny, "--json")
    assert code == 1
    reports = {report["source"]: report for report in map(json.loads, out.splitlines())}
    assert sorted(reports) == ["in/a.wav", "in/b.wav", "in/c.wav"]
    assert reports["in/a.wav"]["frames"] == 7
    assert reports["in/a.wav"]["bytes"] == os.path.getsize("in/a.xyc")
    assert reports["in/a.wav"]["model"] == "tiny"
    assert "in/c.wav" in reports["in/c.wav"]["error"]
    assert "in/c.wav" in err


def test_many_files_are_summed_up(xycodec, tiny):
    for i in range(21):
        speech(f"in/{i:02}.wav", 2000)
    code, out, err = xycodec("encode", "in", "-m", tiny)
    assert (code, out) == (0, "")
    assert err.splitlines() == ["21 done, 2.6 s of audio"]


# failures


def test_one_bad_file_among_good_ones(xycodec, tiny):
    for name in ("in/a.wav", "in/z.wav"):
        speech(name)
    Path("in/bad.wav").write_text("no audio at all")
    Path("in/empty.wav").touch()
    code, _, err = xycodec("encode", "in", "-o", "out", "-m", tiny)
    assert code == 1
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert "in/bad.wav" in errors[0]
    assert "in/empty.wav" in errors[1]
    assert "2 done" in err
    assert "2 failed" in err
    assert [name for name in files() if name.startswith("out")] == ["out/a.xyc", "out/z.xyc"]


def test_an_interrupted_file_leaves_nothing(xycodec, tiny, monkeypatch):
    speech("clip.wav")

    def interrupted(self, clips, n_q, search):
        raise KeyboardInterrupt

    monkeypatch.setattr("xycodec.models.base.Codec.encode_windows", interrupted)
    code, out, err = xycodec("encode", "clip.wav", "-m", tiny)
    assert (code, out) == (130, "")
    assert "interrupted" in error_line(err)
    assert files() == ["clip.wav"]


def damaged(name):
    data = bytearray(Path(name).read_bytes())
    data[-6] ^= 1
    Path(name).write_bytes(data)


def test_a_damaged_code_file(xycodec, tiny):
    speech("clip.wav")
    assert xycodec("encode", "clip.wav", "-m", tiny)[0] == 0
    damaged("clip.xyc")
    code, out, err = xycodec("decode", "clip.xyc", "-m", tiny, "-o", "out.wav")
    assert (code, out) == (1, "")
    assert "clip.xyc" in error_line(err)
    assert not Path("out.wav").exists()


def write_codes(name, model, codebook_size=32, n_q=3):
    codes = np.zeros((n_q, 3), np.uint16)
    CodecFile(codes, model, codebook_size, 16_000, 16_000, 1280, 3000).write(name)


def test_codes_of_another_model(xycodec, tiny):
    write_codes("clip.xyc", "sibling")
    code, _, err = xycodec("decode", "clip.xyc", "-m", tiny, "-o", "out.wav")
    assert code == 1
    assert "--any-model" in error_line(err)
    assert not Path("out.wav").exists()
    assert xycodec("decode", "clip.xyc", "-m", tiny, "-o", "out.wav", "--any-model")[0] == 0
    assert sf.info("out.wav").frames == 3000
    write_codes("clip.xyc", "sibling", codebook_size=64)
    assert xycodec("decode", "clip.xyc", "-m", tiny, "-o", "new.wav", "--any-model")[0] == 1


def test_codes_of_a_model_that_is_not_known_here_name_their_file(xycodec):
    write_codes("clip.xyc", "nobody-knows")
    code, _, err = xycodec("decode", "clip.xyc", "-o", "out.wav")
    assert code == 1
    assert "nobody-knows" in error_line(err)
    assert "clip.xyc" in error_line(err)


@pytest.mark.parametrize("model", ["someone/repository", "../elsewhere", "/tmp", "."])
def test_a_code_file_does_not_choose_what_is_downloaded_or_read(xycodec, monkeypatch, model):
    monkeypatch.setattr("xycodec.checkpoints.load._download", lambda repo: pytest.fail("asked the hub"))
    monkeypatch.setattr("xycodec.checkpoints.load._load_path", lambda path: pytest.fail("read a folder"))
    write_codes("clip.xyc", model)
    code, _, err = xycodec("decode", "clip.xyc", "-o", "out.wav")
    assert code == 1
    assert "clip.xyc" in error_line(err)


@pytest.mark.parametrize(
    "arguments",
    [
        ["encode", "missing.wav"],
        ["encode", "clip.wav", "missing.wav"],
        ["encode", "empty"],
        ["encode", "*.mp3"],
        ["encode", "clip.wav", "./clip.wav"],
        ["encode", "clip.wav", "-o", "clip.wav", "--overwrite"],
        ["encode", "clip.wav", "-o", "codes.flac"],
        ["encode", "both", "-o", "-"],
        ["encode", "clip.wav", "-o", "clip.wav/x.xyc"],
        ["encode", "clip.wav", "other.wav", "-o", "clip.wav/out"],
        ["encode", "clip.wav", "--n-q", "9"],
        ["encode", "clip.wav", "--overlap", "30"],
        ["encode", "clip.wav", "--overlap", "-1"],
        ["encode", "clip.wav", "--overlap", "nan"],
        ["encode", "clip.wav", "--overlap", "inf"],
        ["encode", "clip.wav", "--device", "nowhere"],
        ["decode", "clip.wav"],
        ["decode", "missing.xyc"],
        ["decode", "good.xyc", "-o", "out.m4a"],
        ["decode", "good.xyc", "--format", "m4a"],
        ["roundtrip", "missing.wav"],
        ["roundtrip", "empty"],
        ["roundtrip", "clip.wav", "-o", "other.wav"],
        ["roundtrip", "clip.wav", "-o", "other.wav/out"],
    ],
)
def test_a_failure_is_one_line_and_leaves_nothing(xycodec, tiny, arguments):
    for name in ("clip.wav", "other.wav", "both/a.wav", "both/a.flac"):
        speech(name)
    write_codes("good.xyc", "tiny")
    Path("empty").mkdir()
    before = {name: Path(name).read_bytes() for name in files()}
    code, out, err = xycodec(*arguments, "--model", tiny)
    assert (code, out) == (1, "")
    error_line(err)
    assert {name: Path(name).read_bytes() for name in files()} == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file(xycodec, tiny):
    speech("clip.wav")
    Path("clip.wav").chmod(0)
    code, _, err = xycodec("encode", "clip.wav", "-m", tiny)
    assert code == 1
    assert "clip.wav" in error_line(err)


@pytest.mark.parametrize(
    "arguments",
    [
        ["encode"],
        ["encode", "clip.wav", "-m", "xy-random", "--n-q", "0"],
        ["encode", "clip.wav", "-m", "xy-random", "--jobs", "0"],
        ["encode", "clip.wav", "-m", "xy-random", "--threads", "none"],
        ["encode", "clip.wav", "-m", "xy-random", "--dtype", "float16"],
        ["encode", "clip.wav", "-m", "xy-random", "--unheard-of"],
        ["decode"],
        ["roundtrip"],
        ["info"],
        ["convert", "xy-random"],
        ["convert", "xy-random", "out", "--store", "int8"],
        ["bench", "--seconds", "long"],
        ["nonsense"],
    ],
)
def test_wrong_usage_ends_with_2(xycodec, arguments):
    speech("clip.wav")
    code, out, err = xycodec(*arguments)
    assert (code, out) == (2, "")
    assert err
    assert files() == ["clip.wav"]


# the other commands


def test_roundtrip_writes_codes_audio_and_a_picture(xycodec, tiny):
    speech("clip.flac", 20_001)
    code, out, err = xycodec("roundtrip", "clip.flac", "-m", tiny, "-o", "a/b")
    assert (code, err) == (0, "")
    assert files() == ["a/b/clip.decoded.wav", "a/b/clip.png", "a/b/clip.xyc", "clip.flac"]
    assert sf.info("a/b/clip.decoded.wav").frames == 20_001
    for heading in ("STOI", "PESQ-WB", "PESQ-NB", "mel"):
        assert re.search(heading + r" +│ \d\.\d{2,3} \(.* is equality\)", out), heading
    assert "188 bit/s" in out
    assert "a/b/clip.png" in out
    code, out, err = xycodec("roundtrip", "clip.flac", "-m", tiny, "-o", "a/b")
    assert (code, out) == (1, "")
    assert "--overwrite" in error_line(err)
    assert xycodec("roundtrip", "clip.flac", "-m", tiny, "-o", "a/b", "--overwrite")[0] == 0


def test_roundtrip_as_json(xycodec, tiny):
    speech("clip.wav")
    code, out, _ = xycodec("roundtrip", "clip.wav", "-m", tiny, "--json", "--n-q", "2")
    (line,) = out.splitlines()
    report = json.loads(line)
    assert code == 0
    assert report["encoded"]["bitrate"] == 125
    assert report["decoded"]["target"] == "clip.decoded.wav"
    quality = measure_quality([read_audio("clip.decoded.wav")], [read_audio("clip.wav")])
    assert {name: report[name] for name in plain(quality)} == plain(quality)
    assert quality.missing == {}
    assert report["picture"] == "clip.png"


@pytest.mark.parametrize(("samples", "level", "why"), [(8000, 0, "silent"), (3000, 0.3, "under 0.41 s of speech")])
def test_roundtrip_says_why_a_metric_is_missing(xycodec, tiny, samples, level, why):
    sf.write("clip.wav", np.random.default_rng(0).uniform(-level, level, samples), 16_000)
    code, out, err = xycodec("roundtrip", "clip.wav", "-m", tiny)
    note = "note: 'clip.wav': very quiet, its loudest sample has -inf dB of full scale: is this the right channel"
    assert code == 0
    assert err == ("" if level else f"{note} and level?\n")
    assert re.search(rf"STOI +│ -- \({why}\)", out)
    code, out, err = xycodec("roundtrip", "clip.wav", "-m", tiny, "--overwrite", "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert (report["stoi"], report["pesq_wb"]) == (None, None)
    assert report["missing"]["stoi"] == why


def test_info_on_codes_audio_and_models(xycodec, tiny):
    speech("clip.wav", 20_001)
    assert xycodec("encode", "clip.wav", "-m", tiny)[0] == 0
    described = {}
    for path in ("clip.xyc", "clip.wav", tiny, "xy-random"):
        code, out, _ = xycodec("info", path, "--json")
        assert code == 0
        described[path] = json.loads(out)
        code, out, _ = xycodec("info", path)
        assert code == 0
        assert described[path]["kind"] in out
        assert not re.search(r"\.\d{4}", out)
    codes, audio, model = (described[path] for path in ("clip.xyc", "clip.wav", tiny))
    assert (codes["kind"], codes["model"], codes["frames"], codes["num_samples"]) == ("codes", "tiny", 16, 20_001)
    assert codes["bytes"] == os.path.getsize("clip.xyc")
    assert (audio["kind"], audio["num_samples"], audio["sample_rate"]) == ("audio", 20_001, 16_000)
    assert (model["kind"], model["model"], model["bitrate"]) == ("model", "tiny", 187.5)
    parts = sum(count for name, count in model.items() if name.startswith("parameters of "))
    assert model["parameters"] == parts == sum(p.numel() for p in load_codec(tiny, device="cpu").parameters())


def test_info_goes_by_the_content(xycodec, tiny):
    speech("clip.flac", 20_001)
    assert xycodec("encode", "clip.flac", "-m", tiny)[0] == 0
    os.rename("clip.flac", "audio.bin.dat")
    os.rename("clip.xyc", "codes.wav")
    for path, kind in (("audio.bin.dat", "audio"), ("codes.wav", "codes")):
        code, out, _ = xycodec("info", path, "--json")
        assert code == 0
        assert json.loads(out)["kind"] == kind
        assert json.loads(out)["num_samples"] == 20_001
        piped = process("info", "-", "--json", stdin=Path(path).read_bytes())
        assert json.loads(piped.stdout)["kind"] == kind


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"PK\3\4" + bytes(300), "a zip archive"),
        (b'{"audio": "a.wav"}\n', "JSON"),
        (b"dear reader\n", "text"),
        (bytes(257) + b"ustar" + bytes(300), "a tar archive"),
        (bytes(range(256)), "of no kind known here"),
    ],
)
def test_info_says_what_else_a_file_is(xycodec, data, says):
    for name in ("thing", "thing.json"):
        Path(name).write_bytes(data)
        code, out, err = xycodec("info", name)
        assert (code, out) == (1, "")
        assert says in error_line(err)


def test_a_round_trip_of_a_pipe_is_refused_at_once(xycodec, tiny):
    os.mkfifo("pipe.wav")
    for source in ("pipe.wav", "-"):
        code, out, err = xycodec("roundtrip", source, "-o", "out", "-m", tiny)
        assert (code, out) == (2, "")
        assert "reads its source twice" in " ".join(err.split())
    assert not Path("out").exists()


def test_info_shows_names_with_brackets(xycodec):
    speech("take[final].wav")
    code, out, _ = xycodec("info", "take[final].wav")
    assert code == 0
    assert "take[final].wav" in out


def test_info_on_folders(xycodec, tiny):
    store_of(Path("store"), 10)
    speech("in/a.wav")
    speech("in/deep/b.wav")
    assert xycodec("encode", "in/a.wav", "-m", tiny)[0] == 0
    described = [json.loads(xycodec("info", path, "--json")[1]) for path in ("store", "in", tiny)]
    assert [one["kind"] for one in described] == ["store of tokens", "folder", "model"]
    assert (described[0]["clips"], described[0]["failures"]) == (10, 0)
    assert (described[1]["files of audio"], described[1]["files of codes"]) == (2, 1)


@pytest.mark.parametrize(
    "path", ["missing.wav", "missing.xyc", "missing", "empty/missing", "text.wav", "text.xyc", "text.ckpt", "empty"]
)
def test_info_on_nothing(xycodec, path):
    Path("empty").mkdir()
    for name in ("text.wav", "text.xyc", "text.ckpt"):
        Path(name).write_text("just text\n" * 20)
    code, out, err = xycodec("info", path)
    assert (code, out) == (1, "")
    assert path in error_line(err)


def test_the_list_of_models(xycodec):
    code, out, err = xycodec("models", "--json")
    assert (code, err) == (0, "")
    listed = json.loads(out)
    assert listed["bfloat16"].startswith("bfloat16: ")
    models = {model["name"]: model for model in listed["models"]}
    assert models["xy-tokenizer"]["bitrate"] == 1000
    assert models["xy-tokenizer-32k"]["output_hz"] == 32_000
    code, out, _ = xycodec("models")
    assert code == 0
    assert all(name in out for name in models)


@pytest.mark.parametrize("store", ["float32", "float16"])
def test_converting_a_published_checkpoint(xycodec, store):
    published = write_published(random_codec(tiny_config()), Path("published"))
    code, out, err = xycodec("convert", published, "ours", "--store", store)
    assert (code, err) == (0, "")
    loaded, expected = load_codec("ours", device="cpu"), load_codec(published, device="cpu")
    assert out == f"ours: {expected.model_id}, {sum(p.numel() for p in expected.parameters()):,} parameters\n"
    assert loaded.config == expected.config
    for key, value in expected.state_dict().items():
        assert (loaded.state_dict()[key].float() - value.float()).abs().max() <= (store == "float16") * 0.01
    code, _, err = xycodec("convert", published, "ours")
    assert code == 1
    assert "ours" in error_line(err)
    assert xycodec("convert", published, "ours", "--overwrite")[0] == 0


def test_help_of_every_command(xycodec):
    for command in ("encode", "decode", "roundtrip", "info", "models", "convert", "bench"):
        code, out, _ = xycodec(command, "--help")
        assert code == 0
        assert command in out
    assert xycodec("-h")[0] == 0


# processes and pipes


def test_two_processes_give_what_one_gives(xycodec, tiny):
    for i in range(4):
        speech(f"in/{i}.wav", 4000 + 1000 * i, seed=i)
    Path("in/bad.wav").write_text("no audio")
    assert xycodec("encode", "in", "-o", "one", "-m", tiny)[0] == 1
    code, out, err = xycodec("encode", "in", "-o", "two", "-m", tiny, "--jobs", "2", "--json")
    assert code == 1
    assert "4 done" in err
    assert len([json.loads(line) for line in out.splitlines()]) == 5
    names = sorted(os.listdir("one"))
    assert names == sorted(os.listdir("two")) == [f"{i}.xyc" for i in range(4)]
    for name in names:
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes()


def test_a_pipe_gives_back_the_length(tiny):
    speech("clip.wav", 12_345)
    encoded = process("encode", "-", "-o", "-", "-m", tiny, "--json", stdin=Path("clip.wav").read_bytes())
    assert encoded.returncode == 0
    assert CodecFile.from_bytes(encoded.stdout).num_samples == 12_345
    assert [json.loads(line)["target"] for line in encoded.stderr.splitlines()] == ["-"]
    decoded = process("decode", "-", "-o", "-", "-m", tiny, stdin=encoded.stdout)
    assert decoded.returncode == 0
    audio, rate = sf.read(io.BytesIO(decoded.stdout))
    assert (len(audio), rate) == (12_345, 16_000)
    assert files() == ["clip.wav"]


def test_a_reader_that_goes_away(tiny):
    write_codes("clip.xyc", "tiny")
    command = [sys.executable, "-m", "xycodec.cli.app", "decode", "clip.xyc", "-o", "-", "-m", tiny]
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as stdout:
        ended = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=120)
    assert ended.returncode == 1
    assert "reader" in error_line(ended.stderr)


@pytest.mark.parametrize(
    ("given", "found"), [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")]
)
def test_threads_that_wait_soon_sleep_unless_told_otherwise(given, found):
    """OpenMP reads the environment when torch is imported, so that must be later."""
    program = "import os, sys, xycodec.cli.app; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in names} | given
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout == f"{found} False\n"


def test_a_name_that_is_not_text(xycodec, tiny):
    speech("clip.wav")
    os.rename(b"clip.wav", b"clip\xff.wav")
    assert xycodec("encode", "clip\udcff.wav", "-m", tiny, "-q") == (0, "", "")
    assert os.path.exists(b"clip\xff.xyc")
    # In a process of its own, because its stdout must be as strict as a terminal's.
    described = process("info", "clip\udcff.wav", env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"})
    assert b"Traceback" not in described.stderr
    assert described.returncode == 0


# tables, version, completion


def test_no_id_is_broken_over_two_lines(xycodec, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = xycodec("models")
    lines = out.splitlines()
    for model in MODELS.values():
        for word in (model.name, model.source):
            assert any(word in line.replace("\N{BOX DRAWINGS LIGHT VERTICAL}", " ").split() for line in lines), word
    assert max(map(len, lines[:-1])) <= 80


def test_no_path_is_broken_over_two_lines(xycodec, tiny, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    folder = "a folder whose name is long and/" + "another-one-" * 6
    speech(f"{folder}/my clip.wav")
    code, out, _ = xycodec("roundtrip", f"{folder}/my clip.wav", "-m", tiny, "-o", f"{folder}/out")
    assert code == 0
    for path in (f"{folder}/my clip.wav", *(f"{folder}/out/my clip.{end}" for end in ("xyc", "decoded.wav", "png"))):
        assert sum(path in line for line in out.splitlines()) == 1
    assert f"{folder}/my clip.wav\n" in xycodec("info", f"{folder}/my clip.wav")[1]


def test_the_version(xycodec):
    assert xycodec("--version") == (0, f"xycodec {__version__}\n", "")


@pytest.mark.parametrize(("words", "expected"), [("xycodec enc", ["encode"]), ("xycodec encode --mod", ["--model"])])
def test_a_shell_completes(xycodec, monkeypatch, words, expected):
    monkeypatch.setenv("_XYCODEC_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    code, out, _ = xycodec()
    assert (code, out.split()) == (0, expected)


def test_completion_is_installed(xycodec, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    assert xycodec("--install-completion", "bash")[0] == 0
    assert "_XYCODEC_COMPLETE=complete_bash" in (tmp_path / ".bash_completions" / "xycodec.sh").read_text()
