"""The monitor: what a run shows and keeps."""

import io
import json
import os
import sys
import time

import numpy as np
import pytest
import soundfile as sf
import torch
from tests.training_runs import lines_of, settings, write_corpus, write_recipe

from xycodec.train.monitor import Monitor, _brief, forget_from, record_skipped
from xycodec.train.recipe_file import load_recipe
from xycodec.train.run import train


class Terminal(io.StringIO):
    """A stderr that someone watches."""

    def isatty(self):
        return True


@pytest.fixture
def monitor(tmp_path):
    made = Monitor(tmp_path / "run", 0, 10, quiet=True)
    yield made
    made.close()


def board(run):
    """The values of a run that TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"histograms": 0, "scalars": 0})
    return events.Reload()


def scalars(run, name):
    return [(event.step, event.value) for event in board(run).Scalars(name)]


def open_files(under):
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return [os.readlink(link) for link in links if os.path.islink(link) and str(under) in os.readlink(link)]


def test_metrics_are_lines_of_json(tmp_path, monitor):
    monitor.record(1, {"loss": 1 / 3, "steps": 2})
    monitor.record(2, {"loss": 1e-12}, kind="window")
    assert lines_of(tmp_path / "run") == [{"step": 1, "kind": "train", "loss": 0.33333333, "steps": 2}]
    assert lines_of(tmp_path / "run", "window") == [{"step": 2, "kind": "window", "loss": 1e-12}]


def test_a_run_that_goes_on_forgets_what_it_repeats(tmp_path):
    file = tmp_path / "metrics.jsonl"
    whole = [json.dumps({"step": step, "kind": kind}) for step in (1, 2, 3, 4) for kind in ("train", "valid")]
    for torn in ("", '{"step": 1, "ki', "{}", "[3]", "null"):
        file.write_text("\n".join([*whole, torn]))
        forget_from(file, 2)
        assert file.read_text() == "".join(line + "\n" for line in whole[:4])
    forget_from(tmp_path / "missing.jsonl", 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl"]


def test_skipped_clips(tmp_path):
    record_skipped(tmp_path, 3, [("a", "silent"), ("b", "läuft")])
    record_skipped(tmp_path, 4, [("a", "silent")])
    read = [(line["step"], line["id"], line["reason"]) for line in lines_of(tmp_path, None, "skipped.jsonl")]
    assert read == [(3, "a", "silent"), (3, "b", "läuft"), (4, "a", "silent")]


def test_what_a_board_holds(tmp_path, monitor):
    original = 0.5 * torch.sin(torch.arange(16_000) * 0.3)
    monitor.progress(4, {"loss": 2.5})
    monitor.validation(4, {"loss": 1.5})
    monitor.histogram(4, torch.tensor([[4, 0, 1, 0], [0, 0, 0, 7]]))
    monitor.listen(4, "clip 1", original, 2 * original, 16_000)
    monitor.text(4, [("said this", "heard that")])
    monitor.close()

    run = tmp_path / "run"
    assert scalars(run, "train/loss") == [(4, 2.5)]
    assert scalars(run, "valid/loss") == [(4, 1.5)]
    events = board(run)
    for kind, expected in (("original", original), ("decoded", (2 * original).clamp(-1, 1))):
        (heard,) = events.Audio(f"clip 1/{kind}")
        assert (heard.step, heard.sample_rate, heard.length_frames) == (4, 16_000, 16_000)
        samples, _ = sf.read(io.BytesIO(heard.encoded_audio_string))
        np.testing.assert_allclose(samples, expected.numpy(), atol=1e-3)
    (picture,) = events.Images("clip 1/spectrograms")
    assert picture.width > 500
    assert picture.encoded_image_string.startswith(b"\x89PNG")
    for layer, used in ((1, {0: 4, 2: 1}), (2, {3: 7})):
        (histogram,) = events.Histograms(f"codes/layer {layer}")
        value = histogram.histogram_value
        counts = {
            round(edge - 0.5): count for edge, count in zip(value.bucket_limit, value.bucket, strict=True) if count
        }
        assert counts == used
        assert (value.num, value.sum) == (sum(used.values()), sum(code * count for code, count in used.items()))
    (text,) = events.Tensors("transcripts/text_summary")
    assert b"heard: heard that" in text.tensor_proto.string_val[0]


def test_a_board_forgets_what_is_repeated(tmp_path):
    for begun, values in ((0, {2: 1.0, 4: 2.0, 6: 3.0}), (4, {6: 30.0})):
        monitor = Monitor(tmp_path, begun, 10, quiet=True)
        for step, value in values.items():
            monitor.progress(step, {"loss": value})
        monitor.close()
        time.sleep(1.1)  # a board names its files by the second
    assert scalars(tmp_path, "train/loss") == [(2, 1.0), (4, 2.0), (6, 30.0)]


def test_what_is_flushed_outlives_a_kill(tmp_path, monitor):
    monitor.progress(4, {"loss": 2.5})
    monitor.flush()
    assert scalars(tmp_path / "run", "train/loss") == [(4, 2.5)]


def test_beside_the_bar_stands_what_fits():
    values = {"loss": 88.634, "mel": 5.902, "asr": 5.1, "grad_norm": 94.27, "audio_s_per_s": 18.11, "codes_used": 0.119}
    assert _brief(values) == "loss 88.6, mel 5.9, asr 5.1, 18.1 x, codes 12%"
    assert _brief({"loss": 2.5}) == "loss 2.5"


def test_lines_where_no_one_watches(tmp_path, capsys):
    monitor = Monitor(tmp_path, 0, 10)
    monitor.progress(4, {"loss": 2.5, "speed": 1234.5})
    monitor.validation(4, {"loss": 0.5})
    monitor.say("[bold]text[/bold] " + "x" * 200)
    monitor.close()
    assert capsys.readouterr().err.splitlines() == [
        "step 4: loss 2.5, speed 1234", "step 4, validation: loss 0.5", "[bold]text[/bold] " + "x" * 200,
    ]  # fmt: skip


def test_a_bar_where_someone_does(tmp_path, monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monitor = Monitor(tmp_path, 2, 10)
    monitor.progress(4, {"loss": 2.5})
    monitor.validation(4, {"loss": 0.5})
    monitor.close()
    shown = screen.getvalue()
    assert "4/10" in shown
    assert "loss 2.5" in shown
    assert "step 4, validation: loss 0.5" in shown
    assert "step 4: loss" not in shown


def test_nothing_is_shown_quietly(tmp_path, monitor, capsys):
    monitor.progress(4, {"loss": 2.5})
    monitor.say("words")
    assert capsys.readouterr() == ("", "")


def test_a_run_leaves_all_of_it_and_no_file_open(tmp_path):
    torch.set_num_threads(1)
    cuts = write_corpus(tmp_path / "corpus", clips=6)
    sf.write(tmp_path / "corpus" / "2.wav", np.zeros(12_800), 16_000)
    mapping = settings(cuts, tmp_path / "run", steps=6, log_every=2, validation={"every": 3, "clips": 9, "listen": 2})
    train(load_recipe(write_recipe(tmp_path / "recipe.yaml", mapping)), quiet=True)
    run = tmp_path / "run"
    assert open_files(run) == []
    events = board(run)
    valid = lines_of(run, "valid")
    assert [line["step"] for line in valid] == [3, 6]
    assert [step for step, _ in scalars(run, "valid/mel")] == [3, 6]
    assert [value for _, value in scalars(run, "valid/mel")] == pytest.approx([line["mel"] for line in valid])
    tags = events.Tags()
    heard = {tag.partition("/")[0] for tag in tags["audio"]}
    assert len(heard) == 2
    assert "2.wav" not in heard
    assert set(tags["audio"]) == {f"{name}/{kind}" for name in heard for kind in ("original", "decoded")}
    assert set(tags["images"]) == {f"{name}/spectrograms" for name in heard}
    assert set(tags["histograms"]) == {"codes/layer 1", "codes/layer 2"}
    frames = sum(-(-16_000 * (6 + number % 5) // 10 // 1280) for number in (0, 1, 3, 4, 5))
    assert all(event.histogram_value.num == frames for event in events.Histograms("codes/layer 1"))
    windows = lines_of(run, "window")
    assert [line["step"] for line in windows] == [2, 4, 6]
    for line in windows:
        assert line["audio_s_per_s"] > 0
        assert 0 <= line["waiting"] < 1
        assert 0 < line["codes_used"] <= 1
        assert 1 <= line["perplexity"] <= 16
    skipped = lines_of(run, None, "skipped.jsonl")
    assert {line["id"] for line in skipped} == {"2.wav"}
    assert sum(line.get("skipped", 0) for line in windows) == len(skipped) == 2
