"""Features, cache, probes and the whole benchmark on clips that the tests make."""

import json
import math

import numpy as np
import pytest
import soundfile as sf
import torch
from tests.published_xcodec import tiny_config as tiny_xcodec
from tests.reference import tiny_config

from xycodec.checkpoints.build import random_codec
from xycodec.checkpoints.save import save_codec
from xycodec.errors import ConfigError, StoreError, XycodecError
from xycodec.eval.classify.clips import read_clips
from xycodec.eval.classify.features import LogMelFeatures, open_features
from xycodec.eval.classify.probe import (
    Attended,
    ClassifierConfig,
    Pooled,
    fit_probes,
    truth_of,
)
from xycodec.eval.classify.run import run_classify
from xycodec.eval.classify.splits import Run
from xycodec.eval.classify.store import FeatureStore
from xycodec.io.audio import read_audio
from xycodec.models.longform import embed_long, encode_long
from xycodec.nn.mel import LogMel

RATE = 16_000
TONES = {"low": 200, "middle": 900, "high": 3000}


@pytest.fixture(scope="module")
def codec():
    """Windows of 2 s, so that longer clips take several."""
    return random_codec(tiny_config(window_frames=25))


@pytest.fixture(scope="module")
def xcodec():
    return random_codec(tiny_xcodec(window_frames=100))


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """A manifest of three kinds of tones, four takes in each of three folds, of 0.2 to 0.5 s."""
    folder = tmp_path_factory.mktemp("tones")
    generator = np.random.default_rng(0)
    rows = []
    for number in range(36):
        kind, fold = list(TONES)[number % 3], number // 3 % 3
        time = np.arange(RATE * (4 + number % 7) // 20) / RATE
        tone = np.sin(2 * math.pi * TONES[kind] * (1 + 0.1 * generator.uniform(-1, 1)) * time)
        sf.write(folder / f"{number}.wav", 0.2 * tone + 0.02 * generator.standard_normal(len(time)), RATE)
        rows.append({"audio": f"{number}.wav", "label": kind, "fold": fold})
    return write(folder / "tones.jsonl", rows)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def noise(seconds, seed=0):
    return 0.2 * torch.randn(round(seconds * RATE), generator=torch.Generator().manual_seed(seed))


# ---- the one form ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"label": "a", "fold": 1}, "has no audio"),
        ({"audio": "a.wav", "fold": 1}, "needs a label, or labels"),
        ({"audio": "a.wav", "label": "a", "labels": ["a"], "fold": 1}, "needs a label, or labels"),
        ({"audio": "a.wav", "labels": "a", "fold": 1}, "labels are a list"),
        ({"audio": "a.wav", "label": "a"}, "needs a split, or a fold"),
        ({"audio": "a.wav", "label": "a", "split": "dev"}, "must be one of train, valid, test"),
        ({"audio": "a.wav", "label": "a", "fold": 0.5}, "must be a whole number"),
        ({"audio": "a.wav", "labels": ["a"], "fold": 1}, ":2: has other keys than the lines before"),
        ([], "not an object of JSON"),
    ],
)
def test_rows_that_are_no_clips(tmp_path, row, complaint):
    path = write(tmp_path / "rows.jsonl", [{"audio": "a.wav", "label": "a", "fold": 0}, row])
    with pytest.raises(ConfigError, match=complaint):
        read_clips(path)


# ---- features ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.03, 1.0, 5.3])
def test_post_quant_is_what_embed_gives(codec, seconds):
    audio = noise(seconds)
    expected = embed_long(codec, encode_long(codec, audio, n_q=2)).T
    assert torch.equal(open_features(codec, "post_quant", 2).frames(audio), expected)


def test_pre_quant_is_what_the_quantizer_reads(codec, xcodec):
    audio = noise(0.9)
    with torch.no_grad():
        expected = codec.encode_latents(audio[None], [len(audio)]).latents[0]
        assert torch.equal(open_features(codec, "pre_quant").frames(audio), expected)
        whole = torch.nn.functional.pad(audio, (0, -len(audio) % 320))
        assert torch.equal(open_features(xcodec, "pre_quant").frames(audio), xcodec.encode_latents(whole[None])[0])
    # Quantized, they are the codes.
    assert torch.equal(codec.quantizer.encode(expected[None], 4, 1)[0], encode_long(codec, audio))


def test_long_clips_have_the_frames_of_their_windows(codec):
    audio = noise(5.3)
    frames = open_features(codec, "pre_quant").frames(audio)
    assert torch.equal(codec.quantizer.encode(frames[None], 4, 1)[0], encode_long(codec, audio))
    semantic = open_features(codec, "semantic").frames(audio)
    assert semantic.shape == (4 * len(frames), codec.config.semantic_encoder.d_model)
    with torch.no_grad():
        first = codec.encode_latents(audio[None, : codec.window_samples], [codec.window_samples]).semantic[0]
    # The first window keeps all but the end, which the next one knows better.
    assert torch.equal(semantic[:64], first[:64])


def test_semantic_of_an_xcodec_is_its_branch(xcodec):
    audio = noise(1.1)
    expected = embed_long(xcodec, encode_long(xcodec, audio, n_q=3), branch="semantic").T
    assert torch.equal(open_features(xcodec, "semantic", 3).frames(audio), expected)


def test_taps_that_a_codec_has_not(codec):
    baseline = random_codec(tiny_xcodec(semantic=None))
    with pytest.raises(XycodecError, match="x-tiny has no tap semantic: take post_quant or pre_quant"):
        open_features(baseline, "semantic")
    with pytest.raises(XycodecError, match="tap is 'middle'"):
        open_features(codec, "middle")
    with pytest.raises(XycodecError, match="n_q must be an integer from 1 to 4"):
        open_features(codec, "post_quant", 5)


def test_floors(codec, tmp_path):
    audio = noise(0.7)
    mel = LogMel(80, RATE)(audio[None])[0]
    features = LogMelFeatures()
    expected = np.concatenate([mel.numpy().mean(axis=1), mel.numpy().std(axis=1)])
    torch.testing.assert_close(features.pooled(features.frames(audio)).numpy(), expected)
    assert features.frames(audio[:40]).shape == (2, 80)
    saved = save_codec(codec, tmp_path / "tiny")
    drawn, again = (open_features(f"random:{saved}", device="cpu") for _ in range(2))
    assert drawn.identity == again.identity
    assert drawn.name == "random:tiny"
    other = save_codec(random_codec(tiny_config(window_frames=25), seed=1), tmp_path / "other")
    assert open_features(str(other), device="cpu").identity != drawn.identity
    # The same weights, whatever the model that is named had learned.
    assert open_features(f"random:{other}", device="cpu").identity == drawn.identity
    with pytest.raises(XycodecError, match="only an X-Codec or an XY-Tokenizer"):
        open_features("random:opus-6k")


# ---- the cache ---------------------------------------------------------------------------------


def test_a_store_is_whole_after_a_kill(tmp_path):
    with FeatureStore(tmp_path) as store:
        store.add("a", np.ones((2, 3), np.float32), 1.0)
        store.add("b", np.full((1, 3), 5, np.float32), 2.0)
        store.fail("c", "no audio")
        assert store.features("a").shape == (2, 3)  # at once
    with open(tmp_path / "features.f32", "ab") as file:  # data without a row, and a row that was cut short
        file.write(b"12345")
    with open(tmp_path / "clips.jsonl", "ab") as file:
        file.write(b'{"key": "d"')
    with FeatureStore(tmp_path) as store:
        assert ("a" in store, "c" in store, "d" in store) == (True, False, False)
        store.add("d", np.full((2, 3), 7, np.float32), 1.0)
    with FeatureStore(tmp_path) as store:
        assert [store.features(key)[0, 0] for key in "abd"] == [1, 5, 7]
        assert store.features("a").shape == (2, 3)
        with pytest.raises(KeyError):
            store.features("c")
    (tmp_path / "features.f32").write_bytes(b"")
    with pytest.raises(StoreError, match="shorter than"):
        FeatureStore(tmp_path)


def test_one_process_has_a_store_at_a_time(tmp_path):
    with FeatureStore(tmp_path), pytest.raises(StoreError, match="another process has it"):
        FeatureStore(tmp_path)
    FeatureStore(tmp_path).close()


# ---- probes ------------------------------------------------------------------------------------


def reference_logits(vectors, truth, run, config, *, several=False):
    """A probe with torch's own layer, AdamW and order of clips, as ARCH's code steps them."""
    rows = torch.from_numpy(run.train)
    generator = torch.Generator().manual_seed(config.seed)
    layer = torch.nn.Linear(vectors.shape[1], truth.shape[1])
    bound = 1 / math.sqrt(vectors.shape[1])
    with torch.no_grad():
        layer.weight.copy_(torch.empty(vectors.shape[1], truth.shape[1]).uniform_(-bound, bound, generator=generator).T)
        layer.bias.copy_(torch.empty(truth.shape[1]).uniform_(-bound, bound, generator=generator))
    optimizer = torch.optim.AdamW(layer.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    batches = math.ceil(len(rows) / config.batch)
    total = config.epochs * batches
    warm = 0.1 * total
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda place: place / warm if place < warm else max(0, (total - place) / (total - warm))
    )
    loss = torch.nn.BCEWithLogitsLoss() if several else torch.nn.CrossEntropyLoss()
    for _ in range(config.epochs):
        order = rows[torch.randperm(len(rows), generator=generator)]
        for batch in torch.split(order, config.batch):
            optimizer.zero_grad()
            target = truth[batch] if several else truth[batch].argmax(dim=-1)
            loss(layer(vectors[batch]), target).backward()
            optimizer.step()
            scheduler.step()
        scheduler.step()
    return layer(vectors[torch.from_numpy(run.test)]).detach()


def drawn_task(clips=50, width=6, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(clips, width, generator=generator)
    labels = (vectors @ torch.randn(width, classes, generator=generator)).argmax(dim=-1)
    return vectors, torch.nn.functional.one_hot(labels, classes).float()


def rows(*parts):
    return [np.array(part, dtype=np.int64) for part in parts]


RUNS = [Run("a", *rows(range(35), range(35, 40), range(40, 50))), Run("b", *rows(range(20, 50), (), range(20)))]


@pytest.mark.parametrize("several", [False, True])
def test_probes_side_by_side_are_those_of_torch_alone(several):
    """Runs of unlike length too: 5 and 4 batches an epoch."""
    vectors, truth = drawn_task()
    config = ClassifierConfig(epochs=6, batch=8, lr=0.05)
    together = fit_probes(Pooled(vectors), truth, RUNS, config, several=several)
    for run, one in zip(RUNS, together, strict=True):
        # 30 steps of 0.05 at most; float32 rounds them at the seventh digit, and near 0 Adam divides by little.
        torch.testing.assert_close(
            one.scores, reference_logits(vectors, truth, run, config, several=several), atol=2e-4, rtol=1e-4
        )
        assert one.epoch == 6


def test_standardised_probes_do_not_mind_the_scale():
    vectors, truth = drawn_task()
    config = ClassifierConfig(epochs=5, lr=0.02, standardise=True)
    one, *_ = fit_probes(Pooled(vectors), truth, RUNS, config, several=False)
    other, *_ = fit_probes(Pooled(1000 * vectors + 7), truth, RUNS, config, several=False)
    torch.testing.assert_close(one.scores, other.scores, atol=5e-3, rtol=0)
    plain, *_ = fit_probes(Pooled(vectors), truth, RUNS, ClassifierConfig(epochs=5, lr=0.02), several=False)
    assert not torch.allclose(one.scores, plain.scores, atol=0.01)
    flat = torch.cat([vectors, torch.full((50, 1), 3.0)], dim=1)  # a feature that says nothing
    assert fit_probes(Pooled(flat), truth, RUNS, config, several=False)[0].scores.isfinite().all()


def test_the_best_epoch_is_the_one_with_the_lowest_loss_on_validation():
    vectors, truth = drawn_task(seed=3)
    noisy = truth.clone()
    noisy[:35] = noisy[torch.randperm(35, generator=torch.Generator().manual_seed(1))]  # nothing true can be learned
    settings = {"epochs": 8, "lr": 0.2, "batch": 8}
    (best,) = fit_probes(Pooled(vectors), noisy, RUNS[:1], ClassifierConfig(**settings, select="best"), several=False)
    (last,) = fit_probes(Pooled(vectors), noisy, RUNS[:1], ClassifierConfig(**settings), several=False)

    watched = [Run("v", RUNS[0].train, RUNS[0].valid, RUNS[0].valid)]
    on_valid = {}
    for select in ("best", "last"):
        config = ClassifierConfig(**settings, select=select)
        (one,) = fit_probes(Pooled(vectors), noisy, watched, config, several=False)
        on_valid[select] = torch.nn.functional.cross_entropy(one.scores, noisy[35:40].argmax(dim=-1))
    assert best.epoch < last.epoch == 8
    assert on_valid["best"] < on_valid["last"]


def test_attention_finds_the_frame_that_matters():
    """One frame of ten tells the class; the mean of all hardly does."""
    generator = np.random.default_rng(0)
    frames, labels = [], []
    for number in range(60):
        clip = generator.normal(size=(generator.integers(6, 14), 5)).astype(np.float32)
        place, label = generator.integers(len(clip)), number % 2
        clip[:, 3] *= 6
        clip[:, 4] = 0
        clip[place] = [0, 0, 0, 2 if label else -2, 5]
        frames.append(clip)
        labels.append((str(label),))
    truth = truth_of(labels, ("0", "1"))
    (run,) = [Run("all", *rows(range(40), (), range(40, 60)))]
    config = ClassifierConfig(epochs=60, lr=0.05)
    right = {}
    for name, source in (
        ("attention", Attended(frames)),
        ("mean", Pooled(torch.stack([torch.from_numpy(c).mean(0) for c in frames]))),
    ):
        (one,) = fit_probes(source, truth, [run], config, several=False)
        right[name] = float((one.scores.argmax(-1) == truth[40:].argmax(-1)).float().mean())
    assert right["attention"] == 1.0
    assert right["mean"] < 0.8


def test_attention_does_not_see_padding():
    clips = [np.ones((3, 2), np.float32), np.full((7, 2), 2, np.float32)]
    source = Attended(clips)
    scale = type("Plain", (), {"__call__": lambda self, x: x})()
    pooled = source(torch.tensor([[0, 1]]), scale, {"score": torch.randn(1, 2)})
    torch.testing.assert_close(pooled, torch.tensor([[[1.0, 1.0], [2.0, 2.0]]]))
    mean, variance = source.moments(torch.tensor([0, 1]))
    torch.testing.assert_close(mean.float(), torch.full((2,), 1.7))
    torch.testing.assert_close(variance.float(), torch.full((2,), 0.21))


# ---- the whole benchmark -----------------------------------------------------------------------


def test_tones_are_told_apart(tones, codec, tmp_path):
    config = ClassifierConfig(epochs=30, lr=0.05, standardise=True)
    result = run_classify(f"jsonl:{tones}", "log-mel", tmp_path, config)
    assert result.scores["accuracy"].value == 100
    assert (result.classes, len(result.folds), result.tap, result.published) == (3, 3, None, {})
    assert result.chance == pytest.approx(100 / 3)
    assert json.loads((tmp_path / "result.json").read_text())["scores"]["accuracy"]["value"] == 100
    # What it wrote is the same task, with durations.
    again = read_clips(tmp_path / "clips.jsonl")
    assert [clip.labels for clip in again.clips] == [clip.labels for clip in read_clips(tones).clips]
    assert again.clips[0].duration == pytest.approx(0.2)
    coded = run_classify(f"jsonl:{tones}", codec, tmp_path / "codec", config)
    assert (coded.width, coded.tap) == (codec.config.latent_dim, "post_quant")


def test_features_are_computed_once(tones, codec, tmp_path, monkeypatch):
    config = ClassifierConfig(epochs=1)
    first = run_classify(f"jsonl:{tones}", codec, tmp_path / "a", config, cache=tmp_path / "cache")
    monkeypatch.setattr("xycodec.eval.classify.embed.read_audio", None)  # nothing is read again
    second = run_classify(f"jsonl:{tones}", codec, tmp_path / "b", config, cache=tmp_path / "cache")
    assert first == second
    with pytest.raises(TypeError):
        run_classify(f"jsonl:{tones}", codec, tmp_path / "c", config, cache=tmp_path / "cache", n_q=1)


def test_padded_means_are_over_the_silence_too(tones, codec, tmp_path):
    config = ClassifierConfig(epochs=1)
    run_classify(f"jsonl:{tones}", codec, tmp_path, config, pooling="padded", max_seconds=0.3)
    (folder,) = (tmp_path / "features").iterdir()
    audio = torch.from_numpy(read_audio(tones.parent / "0.wav"))
    assert len(audio) == 3200
    features = open_features(codec, "post_quant")
    expected = features.frames(torch.nn.functional.pad(audio, (0, 1600))).mean(dim=0)
    with FeatureStore(folder) as store:
        assert any(np.array_equal(store.features(key)[0], expected.numpy()) for key in store.rows)
    with pytest.raises(XycodecError, match="give max_seconds"):
        run_classify(f"jsonl:{tones}", codec, tmp_path, config, pooling="padded")


def test_clips_that_cannot_be_read_are_left_out_and_told(tones, tmp_path):
    listed = [json.loads(line) for line in tones.read_text().splitlines()]
    absent = {"audio": str(tmp_path / "no.wav"), "label": "low", "fold": 0}
    broken = absent | {"audio": str(tmp_path / "broken.wav")}
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    whole = [row | {"audio": str(tones.parent / row["audio"])} for row in listed]
    task = write(tmp_path / "task.jsonl", [*whole, absent, broken])
    result = run_classify(f"jsonl:{task}", "log-mel", tmp_path / "out", ClassifierConfig(epochs=1))
    assert len(result.failed) == 2
    assert sum(fold.test for fold in result.folds) == 36
    alone = write(tmp_path / "alone.jsonl", [absent, absent | {"fold": 1}])
    with pytest.raises(XycodecError, match="none of 2 clips can be read"):
        run_classify(f"jsonl:{alone}", "log-mel", tmp_path / "out")


def test_several_labels_and_one_split(tones, tmp_path):
    splits = ("train", "train", "valid", "test")
    listed = [
        {
            "audio": str(tones.parent / f"{n}.wav"),
            "labels": [list(TONES)[n % 3]] * (n != 5),
            "split": splits[n // 3 % 4],
        }
        for n in range(36)
    ]
    task = write(tmp_path / "task.jsonl", listed)
    config = ClassifierConfig(epochs=30, lr=0.05, standardise=True, select="best")
    result = run_classify(f"jsonl:{task}", "log-mel", tmp_path / "out", config, pooling="attention")
    assert set(result.scores) == {"macro_map", "weighted_map"}
    assert result.scores["macro_map"].value > 90
    assert result.scores["macro_map"].low is None
    no_valid = write(tmp_path / "two.jsonl", [row for row in listed if row["split"] != "valid"])
    with pytest.raises(ConfigError, match="no clips to choose an epoch on"):
        run_classify(f"jsonl:{no_valid}", "log-mel", tmp_path / "out2", config)


def test_the_command(xycodec, tones, tmp_path):
    code, out, err = xycodec("classify", f"jsonl:{tones}", "-m", "log-mel", "-o", tmp_path / "o", "--epochs", 3)
    assert (code, err) == (0, "")
    assert "accuracy" in out
    assert "most frequent label" in out
    code, out, _ = xycodec(
        "classify", f"jsonl:{tones}", "-m", "log-mel", "-o", tmp_path / "o", "--epochs", 3, "--select", "best", "--json"
    )
    assert code == 0
    assert json.loads(out)["config"]["select"] == "best"
    code, _, err = xycodec("classify", "esc50", "-m", "log-mel", "-o", tmp_path / "o")
    assert code == 1
    assert err == "error: esc50: where is it? give --root, the folder that it was unpacked into\n"


def test_published_values_stand_beside_and_are_marked(xycodec, tmp_path):
    for speaker in range(1, 5):
        folder = tmp_path / "EMOVO" / f"{'fm'[speaker % 2]}{speaker % 3 + 1}"
        folder.mkdir(parents=True)
        for emotion in ("dis", "gio"):
            for take in range(3):
                path = folder / f"{emotion}-{folder.name}-b{take}.wav"
                sf.write(path, np.random.default_rng(take).uniform(-0.1, 0.1, 3200), RATE)
    code, out, err = xycodec(
        "classify", "emovo", "--root", tmp_path, "-m", "log-mel", "-o", tmp_path / "o", "--epochs", 1
    )
    assert code == 0
    assert "published: X-Codec, accuracy" in out
    assert "35.20" in out
    assert err.count("note: published values") == 1


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([{"audio": "a.wav", "labels": [], "fold": 1}], "no clip has a label"),
        ([{"audio": "a.wav", "label": "x", "fold": 1}, {"audio": "b.wav", "labels": ["x"], "fold": 1}], "other keys"),
    ],
)
def test_labels_that_say_nothing_are_refused(tmp_path, rows, complaint):
    path = tmp_path / "clips.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ConfigError, match=complaint):
        read_clips(path)


def test_a_null_is_as_if_it_were_not_there(tmp_path):
    path = tmp_path / "clips.jsonl"
    path.write_text(json.dumps({"audio": "a.wav", "label": "x", "labels": None, "fold": 1, "split": None}))
    assert not read_clips(path).several
