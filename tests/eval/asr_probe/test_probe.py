import json

import numpy as np
import pytest
import soundfile as sf
import torch
from safetensors.torch import load_file
from tests.published_xcodec import tiny_config as tiny_xcodec

from published_layout import tiny_config
from xycodec.checkpoints.build import random_codec
from xycodec.errors import AudioError, ConfigError, XycodecError
from xycodec.eval.asr_probe.codes import cached_codes
from xycodec.eval.asr_probe.data import Features, Spoken, open_clips
from xycodec.eval.asr_probe.model import Probe, alphabet_of, augmented
from xycodec.eval.asr_probe.run import run_probe
from xycodec.eval.asr_probe.training import ProbeConfig, ProbeTraining
from xycodec.eval.corpus import open_corpora
from xycodec.io.audio import read_audio
from xycodec.models.base import fingerprint
from xycodec.models.longform import encode_long
from xycodec.models.xy_tokenizer.ctc import Alphabet

SMALL = {"projection": 8, "hidden": 8, "batch": 2, "lr": 1e-3}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def codec():
    """12.5 frames a second, 3 layers of 32 codes, windows of 2 s."""
    return random_codec(tiny_config())


def write_clips(folder, *clips):
    """A manifest of (name, seconds, text); each clip is noise of its own."""
    rows = []
    for number, (name, seconds, text) in enumerate(clips):
        noise = np.random.default_rng(number).uniform(-0.3, 0.3, round(16_000 * seconds))
        sf.write(folder / name, noise, 16_000)
        rows.append({"audio": name, "duration": seconds, "text": text})
    path = folder / f"{clips[0][0]}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def train(tmp_path):
    return write_clips(tmp_path, *((f"t{n}.wav", 0.9 + n / 10, f"word {'abc'[n % 3]}") for n in range(5)))


@pytest.fixture
def dev(tmp_path):
    return write_clips(tmp_path, ("d0.wav", 1.0, "It's a word."), ("d1.wav", 2.5, "word b"))


# ---- the network -------------------------------------------------------------------------------


def network(layers=2, dropout=0.0):
    sizes = {"projection": 5, "hidden": 4, "layers": layers, "dropout": dropout}
    return Probe(6, 3, **sizes).eval().requires_grad_(False)


def lstm_by_hand(rows, weights, suffix):
    """One direction of one layer, gate by gate (Hochreiter and Schmidhuber 1997, PyTorch's order of gates)."""
    into, own, *biases = (weights[f"lstm.{kind}_{suffix}"] for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    hidden = cell = torch.zeros(own.shape[1])
    seen = []
    for row in rows:
        entry, forget, candidate, out = (into @ row + own @ hidden + sum(biases)).chunk(4)
        cell = forget.sigmoid() * cell + entry.sigmoid() * candidate.tanh()
        hidden = out.sigmoid() * cell.tanh()
        seen.append(hidden)
    return torch.stack(seen)


def test_the_network_is_two_bidirectional_lstms_between_two_maps():
    probe, features = network(), torch.randn(7, 6)
    weights = probe.state_dict()
    rows = features @ weights["projection.weight"].T + weights["projection.bias"]
    for layer in range(2):
        back = lstm_by_hand(rows.flip(0), weights, f"l{layer}_reverse").flip(0)
        rows = torch.cat([lstm_by_hand(rows, weights, f"l{layer}"), back], dim=1)
    expected = (rows @ weights["head.weight"].T + weights["head.bias"]).log_softmax(dim=1)
    torch.testing.assert_close(probe([features])[0], expected)


def test_a_clip_is_read_the_same_whatever_is_in_its_batch():
    probe, clips = network(), [torch.randn(length, 6) for length in (3, 9, 1, 5)]
    together = probe(clips)
    assert together.shape == (4, 9, 4)
    for row, clip in zip(together, clips, strict=True):
        torch.testing.assert_close(row[: len(clip)], probe([clip])[0])


def test_dropout_follows_every_layer():
    assert network(layers=1, dropout=0.5).dropout.p == 0.5
    assert (network(dropout=0.5).lstm.dropout, network(dropout=0.5).dropout.p) == (0.5, 0.5)


def test_characters():
    alphabet = alphabet_of(["ab b", "ä"])
    assert alphabet.characters == " 'abä"
    assert alphabet.spell("a bxä") == [3, 1, 4, 5]
    assert alphabet.read([0, 3, 3, 0, 3, 1, 0, 1, 4, 4, 0]) == "aa b"
    assert alphabet.read([]) == alphabet.read([0, 1, 0]) == ""


def runs(hidden):
    """Lengths of the stretches of True."""
    edges = np.flatnonzero(np.diff(np.r_[0, hidden.numpy().astype(int), 0]))
    return edges[1::2] - edges[::2]


@pytest.mark.parametrize(("width", "widest"), [(1000, 49), (96, 5)])
def test_holes_of_spec_augment(width, widest):
    times, places = [], []
    for _ in range(40):
        changed = augmented(torch.ones(200, width))
        assert changed.shape == (200, width)
        seen = changed[changed != 0]
        torch.testing.assert_close(seen, torch.ones_like(seen))  # a warp of a constant changes nothing
        rows, columns = changed.eq(0).all(dim=1), changed.eq(0).all(dim=0)
        assert changed.eq(0).sum() == 200 * width - (~rows).sum() * (~columns).sum()
        times.append(rows.sum())
        places.append(columns.sum())
        assert len(runs(rows)) <= 2
        assert len(runs(columns)) <= 4
    # Two stretches of 0 to 39 frames, and four of 0 to `widest` features, seldom overlapping.
    assert max(times) <= 78
    assert max(places) <= 4 * widest
    assert 30 < np.mean(times) < 45
    assert 1.5 * widest < np.mean(places) < 2.1 * widest


def test_a_warp_moves_a_point_by_five_frames_at_most():
    ramp = torch.arange(100.0)[:, None].expand(100, 800)
    moved = []
    for _ in range(40):
        changed = augmented(ramp)
        column = changed[:, (changed != 0).any(dim=0)].max(dim=1).values
        kept = column > 0
        moved.append((column - torch.arange(100.0))[kept].abs().max())
    assert 2 < max(moved) < 6.5
    short = torch.ones(4, 3)
    assert augmented(short).shape == (4, 3)


# ---- codes and features ------------------------------------------------------------------------


def test_features_are_embeddings_repeated_to_50_a_second(codec):
    codes = torch.randint(32, (3, 60), dtype=torch.int32)  # longer than a window of 25
    spoken = Spoken("long", "text", 4.8, codes)
    for n_q in (None, 1):
        features = Features(codec, n_q)
        found = features(spoken)
        assert found.shape == (features.frames(spoken), features.width([spoken])) == (240, 48)
        for frame in (0, 16, 24, 25, 59):
            (one,) = codec.embed(codes[None, :n_q, frame : frame + 1].long())
            torch.testing.assert_close(found[4 * frame : 4 * frame + 4], one.T.expand(4, -1))
    with pytest.raises(XycodecError, match="n_q must be an integer from 1 to 3"):
        Features(codec, 4)


def test_features_of_a_branch_are_what_it_gives():
    codec = random_codec(tiny_xcodec())
    codes = torch.randint(64, (8, 30), dtype=torch.int32)
    found = Features(codec, 2, "semantic")(Spoken("clip", "text", 0.6, codes))
    torch.testing.assert_close(found, codec.embed(codes[None, :2].long(), branch="semantic")[0].T)
    assert found.shape != Features(codec, 2)(Spoken("clip", "text", 0.6, codes)).shape


def test_codes_are_those_of_the_codec_and_are_kept(codec, train, tmp_path):
    items, heard = open_corpora([train]), []
    found = cached_codes(codec, items, tmp_path / "cache", advance=heard.append)
    assert heard == [item.seconds for item in items]
    for item, codes in zip(items, found, strict=True):
        expected = encode_long(codec, read_audio(tmp_path / f"{item.clip}.wav"))
        assert torch.equal(codes.long(), expected)
    (kept,) = (tmp_path / "cache").rglob("codes.u2")
    # What is on disk is what the next call gets.
    (np.fromfile(kept, "<u2") + 1).astype("<u2").tofile(kept)
    again = cached_codes(codec, items, tmp_path / "cache")
    assert all(torch.equal(codes, before + 1) for codes, before in zip(again, found, strict=True))


def test_no_other_model_nor_other_recording_gets_cached_codes(codec, train, tmp_path):
    items, cache = open_corpora([train]), tmp_path / "cache"
    first = cached_codes(codec, items, cache)
    other = random_codec(tiny_config(), seed=1)
    assert fingerprint(other) != fingerprint(codec) == fingerprint(random_codec(tiny_config()))
    assert not torch.equal(cached_codes(other, items, cache)[0], first[0])
    path = tmp_path / f"{items[0].clip}.wav"
    sf.write(path, 0.5 * read_audio(path)[::-1], 16_000)
    changed = cached_codes(codec, open_corpora([train]), cache)
    assert torch.equal(changed[0].long(), encode_long(codec, read_audio(path)))
    assert not torch.equal(changed[0], first[0])
    assert torch.equal(changed[1], first[1])


def test_encoding_that_was_stopped_goes_on(codec, train, tmp_path):
    items, done = open_corpora([train]), []

    def stop(seconds):
        done.append(seconds)
        if len(done) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_codes(codec, items, tmp_path / "cache", advance=stop)
    (journal,) = (tmp_path / "cache").rglob("codes.jsonl")
    assert len(journal.read_text().splitlines()) == 1 + 3
    resumed = cached_codes(codec, items, tmp_path / "cache")
    assert all(map(torch.equal, resumed, cached_codes(codec, items, tmp_path / "other")))
    assert len(journal.read_text().splitlines()) == 1 + len(items)


def test_a_damaged_cache_is_named(codec, train, tmp_path):
    cached_codes(codec, open_corpora([train]), tmp_path)
    (kept,) = tmp_path.rglob("codes.u2")
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(XycodecError, match=r"codes\.u2: lacks codes .*: remove the folder"):
        cached_codes(codec, open_corpora([train]), tmp_path)


def test_clips_that_cannot_be_used_are_counted(codec, tmp_path):
    kinds = [("a.wav", 0.5, "Words!"), ("b.wav", 0.5, " ..."), ("c.wav", 0.5, None), ("d.wav", 0.5, "Broken")]
    manifest = write_clips(tmp_path, *kinds, ("e.wav", 0.5, "Silence"))
    (tmp_path / "d.wav").write_text("no audio")
    sf.write(tmp_path / "e.wav", np.zeros(8000), 16_000)
    heard = []
    clips = open_clips(codec, manifest, tmp_path / "cache", advance=lambda *seconds: heard.append(seconds))
    assert [(one.clip, one.text, one.codes.shape) for one in clips.spoken] == [
        ("a", "words", (3, 7)), ("e", "silence", (3, 7)),
    ]  # fmt: skip
    assert clips.without_text == 2
    ((name, reason),) = clips.failed
    assert (name, "not audio" in reason) == ("d", True)
    assert heard[-1] == pytest.approx((1.5, 1.5))
    # A file that is repaired is encoded then.
    sf.write(tmp_path / "d.wav", np.zeros(8000), 16_000)
    assert len(open_clips(codec, manifest, tmp_path / "cache").spoken) == 3


def test_corpora_without_a_clip_to_use(codec, tmp_path):
    silent = write_clips(tmp_path, ("a.wav", 0.5, None), ("b.wav", 0.5, "?"))
    with pytest.raises(XycodecError, match="none of its 2 clips has a text"):
        open_clips(codec, silent, tmp_path / "cache")
    broken = write_clips(tmp_path, ("c.wav", 0.5, "text"))
    (tmp_path / "c.wav").write_text("no audio")
    with pytest.raises(XycodecError, match="none of its 1 clips with text can be read, first: "):
        open_clips(codec, broken, tmp_path / "cache")
    with pytest.raises(ConfigError):
        open_clips(codec, str(tmp_path / "missing.jsonl"), tmp_path / "cache")


# ---- learning ----------------------------------------------------------------------------------

WORDS = ("sun", "it's", "tea", "go")


def spoken_texts(count, seed, *, telling):
    """Texts of two words whose codes tell their letters, a frame each, or nothing."""
    draws = np.random.default_rng(seed)
    for number in range(count):
        text = " ".join(draws.choice(WORDS, 2))
        letters = [(ord(letter) - 32) % 32 for letter in text]
        codes = torch.tensor(letters if telling else draws.integers(32, size=len(letters)))
        yield Spoken(f"{number}", text, 1.0, codes.to(torch.int32).expand(3, -1).contiguous())


@pytest.mark.long
@pytest.mark.parametrize("telling", [True, False])
def test_words_are_read_from_codes_that_tell_them_and_from_no_others(codec, tmp_path, telling):
    config = ProbeConfig(steps=100, hidden=24, projection=24, lr=0.02, dropout=0.0, augment=False)
    train = list(spoken_texts(40, 0, telling=telling))
    dev = list(spoken_texts(10, 1, telling=telling))
    training = ProbeTraining(config, Features(codec, 1), train, dev, CPU, tmp_path)
    training.restore({})
    training.train({}, lambda: None)
    if telling:
        assert training.best.wer < 0.05
        assert training.read(train[:4]) == [one.text for one in train[:4]]
    else:
        assert training.best.wer > 0.6


# ---- runs --------------------------------------------------------------------------------------


def small(**changes):
    return ProbeConfig(**{**SMALL, "steps": 9, "evaluate_every": 3, "log_every": 2, **changes})


def files(folder):
    return {path.name for path in folder.iterdir()}


def test_a_run_that_was_stopped_gives_what_one_gives_that_was_not(codec, train, dev, tmp_path):
    phases = []
    whole = run_probe(codec, train, dev, tmp_path / "whole", small(), advance=phases.append)
    assert [(one.phase, one.done, one.total) for one in phases[-2:]] == [("training", 8, 9), ("training", 9, 9)]
    assert phases[0].phase == "encoding"
    for stop in (5, 8):

        def interrupt(progress, at=stop):
            if progress.phase == "training" and progress.done == at:
                raise KeyboardInterrupt

        before = torch.get_rng_state()
        with pytest.raises(KeyboardInterrupt):
            run_probe(codec, train, dev, tmp_path / "parts", small(), advance=interrupt)
        assert torch.equal(torch.get_rng_state(), before)
    parts = run_probe(codec, train, dev, tmp_path / "parts", small())
    assert parts == whole
    assert files(tmp_path / "parts") == {"codes", "state.pt", "best.safetensors", "log.jsonl", "result.json"}
    for name in ("best.safetensors", "log.jsonl", "result.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    states = [torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("whole", "parts")]
    for kind in ("probe", "optimizer"):
        torch.testing.assert_close(*(state[kind] for state in states), rtol=0, atol=0)


def test_what_a_run_reports(codec, train, dev, tmp_path):
    result = run_probe(codec, train, dev, tmp_path / "run", small())
    assert json.loads((tmp_path / "run/result.json").read_text()) == json.loads(json.dumps(result.to_dict()))
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [2, 3, 4, 6, 8, 9]
    assert [(one.step, one.wer) for one in result.curve] == [(row["step"], row["wer"]) for row in log if "wer" in row]
    assert [one.step for one in result.curve] == [3, 6, 9]
    assert result.wer == min(one.wer for one in result.curve)
    assert [(one.clip, one.said) for one in result.transcripts] == [("d0", "it's a word"), ("d1", "word b")]
    assert result.characters == " 'abcdorw"
    assert (result.model, result.n_q, result.steps) == ("tiny", 3, 9)
    assert (result.train.used, result.train.seconds) == (5, pytest.approx(5.5))
    # The weights that are kept read what the result shows.
    clips = open_clips(codec, dev, tmp_path / "run/codes").spoken
    best = ProbeTraining(small(), Features(codec, None), clips, clips, CPU, tmp_path)
    best.alphabet = Alphabet(result.characters)
    best.probe = Probe(48, 9, projection=8, hidden=8, layers=2, dropout=0.2)
    best.probe.load_state_dict(load_file(tmp_path / "run/best.safetensors"))
    assert best.read(clips) == [one.heard for one in result.transcripts]


def test_a_run_that_ended_goes_on_with_more_steps(codec, train, dev, tmp_path):
    run_probe(codec, train, dev, tmp_path / "run", small(steps=6))
    more = run_probe(codec, train, dev, tmp_path / "run", small())
    assert more == run_probe(codec, train, dev, tmp_path / "whole", small())
    with pytest.raises(XycodecError, match="holds a probe of 9 steps: ask for more, or choose another folder"):
        run_probe(codec, train, dev, tmp_path / "run", small(steps=8))


def test_a_folder_of_another_run_is_refused(codec, train, dev, tmp_path):
    run = tmp_path / "run"
    run_probe(codec, train, dev, run, small(steps=1))
    other = random_codec(tiny_config(), seed=1)
    for what, arguments in (
        ("model", (other, train, dev, run, small())),
        ("list of training clips", (codec, dev, dev, run, small())),
        ("list of dev clips", (codec, train, train, run, small())),
        ("hidden", (codec, train, dev, run, small(hidden=9))),
        ("n_q", (codec, train, dev, run, small(n_q=2))),
    ):
        with pytest.raises(XycodecError, match=f"run: holds a probe with another {what}: "):
            run_probe(*arguments)
    assert len(list((run / "codes").iterdir())) == 1  # nothing was encoded for a model that is refused
    run_probe(codec, train, dev, run, small(steps=1, n_q=3))  # all of its layers, named
    (run / "state.pt").write_bytes(b"no state")
    with pytest.raises(XycodecError, match=r"state\.pt: damaged \(.*\): choose another folder"):
        run_probe(codec, train, dev, run, small())


def test_a_text_of_more_characters_than_frames(codec, train, tmp_path):
    crowd = "a" * 30  # needs 59 frames, and 0.9 s have 48
    (tmp_path / "more").mkdir()
    mixed = write_clips(tmp_path / "more", ("x.wav", 0.9, crowd), ("y.wav", 0.9, "word"))
    result = run_probe(codec, mixed, mixed, tmp_path / "run", small(steps=2))
    assert (result.train.used, result.train.crowded) == (1, 1)
    assert (result.dev.used, result.dev.crowded) == (2, 1)
    only = write_clips(tmp_path, ("x.wav", 0.9, crowd))
    with pytest.raises(XycodecError, match="none of 1 clips has as many frames as its text needs"):
        run_probe(codec, only, train, tmp_path / "none", small())


def test_a_loss_that_is_not_finite_ends_the_run(codec, train, dev, tmp_path):
    with pytest.raises(XycodecError, match=r"the loss is not finite at step \d+: lower lr"):
        run_probe(codec, train, dev, tmp_path / "run", small(lr=1e30, steps=50))
    # Neither state nor log holds what was not finite.
    assert "NaN" not in (tmp_path / "run/log.jsonl").read_text()


def test_bfloat16_needs_a_gpu(codec, train, dev, tmp_path):
    with pytest.raises(XycodecError, match="bfloat16 on cpu"):
        run_probe(codec, train, dev, tmp_path, small(bfloat16=True), device="cpu")


def test_an_unreadable_item_is_an_error_of_its_own(codec, tmp_path):
    manifest = write_clips(tmp_path, ("a.wav", 0.5, "text"), ("b.wav", 0.5, "text"))
    items = open_corpora([manifest])
    (tmp_path / "a.wav").unlink()
    first, second = cached_codes(codec, items, tmp_path / "cache")
    assert isinstance(first, AudioError)
    assert second.shape == (3, 7)
