"""The whole of both stages on eight clips: does it learn?"""

import json

import numpy as np
import pytest
import soundfile as sf
import torch

from xycodec.checkpoints.load import load_codec
from xycodec.data.manifest import import_manifest
from xycodec.models.xy_tokenizer.config import CONFIGS
from xycodec.train.init.small_lm import make_small_lm
from xycodec.train.recipe_file import load_recipe
from xycodec.train.run import train

WORDS = ("red", "green", "blue", "cat", "dog", "bird", "up", "down")
RATE = 16_000
RECIPE = """
stage: pretrain
output: {folder}/run
steps: {steps}
model:
  model_id: learns
  window_frames: 25
  semantic_encoder: null
  semantic_encoder_adapter: null
  acoustic_encoder: {tower}
  pre_rvq_adapter: {tower}
  quantizer: {{n_q: 4, codebook_size: 64, codebook_dim: 16}}
  post_rvq_adapter: {tower}
  acoustic_decoder: {tower}
  vocos: {{dim: 64, intermediate_dim: 192, layers: 3}}
towers: null
lm:
  source: {folder}/lm
  trainable: true
  adapter: {tower}
data:
  train: [{folder}/cuts.jsonl.gz]
  valid: [{folder}/cuts.jsonl.gz]
  clip_seconds: 2
  batch_clips: 8
  buckets: 0
  workers: 0
optimizer: {{lr: 2.0e-3, warmup_steps: 20}}
engine: {{kind: single, device: cpu, precision: float32}}
validation: {{every: 1000, transcribe: 8, listen: 1}}
checkpoint: {{every: 1000}}
"""
TOWER = "{d_model: 64, layers: 1, heads: 4, ffn_dim: 128}"


def write_corpus(folder):
    """Eight clips of three words; every word is a chord of its own with a rise and a fall."""
    rows = []
    generator = np.random.default_rng(0)
    time = np.arange(int(0.32 * RATE)) / RATE
    shape = np.sin(np.pi * time / time[-1]) ** 0.5
    for number in range(8):
        said = [WORDS[(number * step + step) % 8] for step in (1, 3, 5)]
        parts = []
        for word in said:
            base = 120 * 2 ** (WORDS.index(word) / 4)
            chord = sum(np.sin(2 * np.pi * base * k * time) / k for k in (1, 2, 3, 5))
            parts.append(0.2 * chord * shape + 0.002 * generator.standard_normal(len(time)))
        sf.write(folder / f"{number}.wav", np.concatenate(parts), RATE)
        rows.append({"audio": f"{number}.wav", "duration": len(time) * 3 / RATE, "text": " ".join(said)})
    manifest = folder / "rows.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    import_manifest(manifest, folder / "cuts.jsonl.gz")
    return [row["text"] for row in rows]


def metrics(run, kind):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_both_stages_learn_eight_clips(tmp_path):
    texts = write_corpus(tmp_path)
    make_small_lm(tmp_path / "lm", texts, vocabulary=300, hidden=64, layers=2, heads=2)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(folder=tmp_path, steps=250, tower=TOWER))

    train(load_recipe(tmp_path / "recipe.yaml"), quiet=True)
    steps = metrics(tmp_path / "run", "train")
    (valid,) = metrics(tmp_path / "run", "valid")
    assert valid["mel"] < steps[0]["mel"] / 3
    assert valid["accuracy"] > 0.9
    assert valid["asr_wer"] < 0.2
    assert valid["codes_used"] > 0.2

    posttrain = tmp_path / "posttrain.yaml"
    posttrain.write_text(
        f"stage: posttrain\noutput: {tmp_path}/post\nsteps: 50\nweights: {tmp_path}/run\n"
        f"data: {{train: [{tmp_path}/cuts.jsonl.gz], valid: [{tmp_path}/cuts.jsonl.gz], clip_seconds: 0.8, "
        "crop: random, batch_clips: 4, buckets: 0, workers: 0}\n"
        "discriminators: {channels: 4}\n"
        "optimizer: {lr: 1.0e-4, warmup_steps: 5}\ndiscriminator_optimizer: {lr: 2.0e-4, warmup_steps: 5}\n"
        "engine: {kind: single, device: cpu, precision: float32}\nvalidation: {every: 1000}\n"
    )
    train(load_recipe(posttrain), quiet=True)
    (after,) = metrics(tmp_path / "post", "valid")
    steps = metrics(tmp_path / "post", "train")
    assert after["mel"] < 1.2 * valid["mel"]
    # Neither side has won: a discriminator that sees through everything has a loss near 0, a blind one 0.5.
    assert 0.05 < steps[-1]["discriminator"] < 0.9
    assert all(np.isfinite(list(line.values())[2:]).all() for line in steps)

    codec = load_codec(tmp_path / "post")
    audio, _ = sf.read(tmp_path / "0.wav", dtype="float32")
    decoded = codec.decode(codec.encode(torch.from_numpy(audio)[None]).codes).audio[0, : len(audio)].numpy()
    # What it says is loud where the original is, and no louder.
    loudness = [np.sqrt((x.reshape(-1, 320) ** 2).mean(axis=1)) for x in (audio, decoded)]
    assert np.corrcoef(*loudness)[0, 1] > 0.5
    assert 0.3 < np.linalg.norm(decoded) / np.linalg.norm(audio) < 3
    assert set(CONFIGS).isdisjoint({codec.model_id})
