"""Decoders for frozen encoders: what is read, what learns, and that decoders of unlike encoders are of one size."""

import itertools

import pytest
import torch
import transformers
from tests.training import batch, clip, recipe, seeded
from tests.training_runs import write_corpus
from torch.nn import functional as F

from xycodec.checkpoints.load import load_codec
from xycodec.checkpoints.training import read_checkpoint
from xycodec.errors import CheckpointError, ConfigError
from xycodec.models.autoencoder.config import FrozenSpeechModelConfig, FrozenWhisperConfig
from xycodec.models.autoencoder.model import Autoencoder
from xycodec.models.xcodec.semantic import transformers_model
from xycodec.nn.mel import LogMel
from xycodec.train.config import EngineConfig
from xycodec.train.engine import Engine
from xycodec.train.export import export_weights
from xycodec.train.recipe_file import load_recipe, parse_recipe
from xycodec.train.run import train
from xycodec.train.stages.autoencode import AutoencodeStage, build

WHISPER = {"kind": "whisper", "d_model": 16, "layers": 2, "heads": 2, "ffn_dim": 24, "n_mels": 80}
HUBERT = {"kind": "hubert", "d_model": 16, "layers": 2, "heads": 2, "ffn_dim": 24, "conv_dim": 8, "position_kernel": 8,
          "position_groups": 2}  # fmt: skip
ENCODERS = {
    "whisper": WHISPER,
    "hubert": HUBERT,
    "hubert-large": HUBERT | {"form": "large", "conv_bias": True},
    "wavlm-large": HUBERT | {"kind": "wavlm", "form": "large"},
}
DECODER = {"d_model": 24, "layers": 1, "heads": 2, "ffn_dim": 32}
VOCOS = {"dim": 24, "intermediate_dim": 32, "layers": 1}
SIZE = 43_578
CLIPS = (clip(0, 0.9), clip(1, 0.43), clip(2, 1.0))


def recipe_of(encoder="whisper", source=None, **changes):
    model = {"encoder": ENCODERS[encoder], "decoder": DECODER, "vocos": VOCOS, "window_frames": 50} | changes.pop(
        "model", {}
    )
    settings = {"model": {"decoder_parameters": SIZE} | model, "encoder": source}
    return recipe("autoencode", **{"data": {"train": ["unused"], "clip_seconds": 1.0}, **settings, **changes})


def stage_of(*arguments, **changes):
    return AutoencodeStage(recipe_of(*arguments, **changes), Engine(EngineConfig(device="cpu", precision="float32")))


def run(stage, steps, *clips):
    values = []
    for number in range(steps):
        seeded(number)
        values.append(float(stage.step([batch(*clips)], number).values["loss"]))
    return values


def save_whisper(folder):
    torch.manual_seed(1)
    config = transformers.WhisperConfig(
        vocab_size=20, d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=24, decoder_layers=1,
        decoder_attention_heads=2, decoder_ffn_dim=24, num_mel_bins=80, max_source_positions=50, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    model = transformers.WhisperModel(config).eval()
    model.save_pretrained(folder)
    return model.encoder


def save_speech_model(encoder, folder):
    torch.manual_seed(1)
    config = FrozenSpeechModelConfig(**ENCODERS[encoder])
    model = transformers_model(**config.model_dump(exclude={"form", "conv_bias"}), **config.more).eval()
    model.save_pretrained(folder)
    return model


# ---- what is read ------------------------------------------------------------------------------


def test_a_whisper_gives_what_transformers_gives(tmp_path):
    theirs = save_whisper(tmp_path)
    ours = build(recipe_of(source=str(tmp_path))).autoencoder
    audio = CLIPS[2].audio[None]
    with torch.no_grad():
        expected = theirs(LogMel(80, 16_000)(audio)).last_hidden_state
    assert audio.shape[1] == 16_000  # a whole window
    # Both are float32; products are in another order, at values around 1.
    torch.testing.assert_close(ours.encode(audio, [16_000]), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("encoder", ["hubert", "hubert-large", "wavlm-large"])
def test_a_speech_model_gives_its_last_layer(tmp_path, encoder):
    theirs = save_speech_model(encoder, tmp_path)
    ours = build(recipe_of(encoder, str(tmp_path))).autoencoder
    audio = CLIPS[1].audio
    whole = F.pad(audio, (0, -len(audio) % 320))
    if "large" in encoder:
        extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
        whole = extractor(whole.numpy(), sampling_rate=16_000, return_tensors="pt").input_values[0]
    with torch.no_grad():
        expected = theirs(F.pad(whole, (160, 160))[None]).last_hidden_state
    features = ours.encode(audio[None], [len(audio)])
    assert features.shape == (1, 22, 16)
    torch.testing.assert_close(features, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("encoder", sorted(ENCODERS))
def test_a_clip_is_the_same_alone_and_in_a_batch(encoder):
    model = build(recipe_of(encoder)).autoencoder
    both = batch(*CLIPS)
    features = model.encode(both.audio, both.lengths)
    for row, one in enumerate(CLIPS):
        alone = model.encode(one.audio[None], [len(one.audio)])[0]
        torch.testing.assert_close(features[row, : len(alone)], alone, atol=1e-5, rtol=0)
        assert not features[row, len(alone) :].any()


def test_positions_and_gelu_can_be_dropped(tmp_path):
    save_whisper(tmp_path)
    bare = {"encoder": WHISPER | {"use_positions": False, "stem_gelu": False}}
    whole, plain = (build(recipe_of(source=str(tmp_path), model=model)).autoencoder for model in ({}, bare))
    towers = [model.encoder.tower for model in (whole, plain)]
    assert towers[0].positional_embedding.any()
    assert not towers[1].positional_embedding.any()
    mel = LogMel(80, 16_000)(CLIPS[2].audio[None])
    convolved = F.conv1d(mel, towers[0].conv1.weight, towers[0].conv1.bias, padding=1)
    second = {"weight": towers[0].conv2.weight, "bias": towers[0].conv2.bias, "stride": 2, "padding": 1}
    expected = [F.gelu(F.conv1d(F.gelu(convolved), **second)), F.conv1d(convolved, **second)]
    for tower, stem in zip(towers, expected, strict=True):
        torch.testing.assert_close(tower.stem(mel, 50), stem.transpose(1, 2), atol=1e-5, rtol=0)
    # At random too, where nothing is loaded.
    assert not build(recipe_of(model=bare)).autoencoder.encoder.tower.positional_embedding.any()


# ---- sizes -------------------------------------------------------------------------------------


def trained(autoencoder):
    return sum(p.numel() for p in autoencoder.parameters() if p.requires_grad)


ENCODER_SIZES = {"whisper": 87_002_112, "hubert": 315_438_720, "wavlm": 315_453_120}


@pytest.mark.parametrize(
    ("names", "stated"),
    [(("whisper", "hubert", "wavlm"), 250_000_000), (("small_whisper", "small_hubert"), 4_260_000)],
)
def test_decoders_that_are_compared_are_of_one_size(names, stated):
    recipes = {name: load_recipe(f"xy_tokenizer/encoders/{name}.yaml") for name in names}
    counts = []
    for name, one in recipes.items():
        with torch.device("meta"):
            model = Autoencoder(one.model)
        counts.append(trained(model))
        assert one.model.decoder_parameters == stated
        assert abs(counts[-1] - stated) <= 0.03 * stated
        # The paper's encoders.
        size = sum(p.numel() for p in model.encoder.parameters())
        assert size == ENCODER_SIZES.get(name, size)
    assert all(abs(a - b) <= 0.03 * min(a, b) for a, b in itertools.combinations(counts, 2))
    # Beside the encoder nothing differs.
    plain = [
        one.model_dump(exclude={"model": {"encoder"}, "encoder": True, "output": True}) for one in recipes.values()
    ]
    assert all(other == plain[0] for other in plain)


def test_the_bare_recipe_drops_two_parts_and_changes_nothing_else():
    whole, bare = (load_recipe(f"xy_tokenizer/encoders/{name}.yaml") for name in ("whisper", "whisper_bare"))
    assert isinstance(bare.model.encoder, FrozenWhisperConfig)
    changed = bare.model.encoder.model_copy(update={"use_positions": True, "stem_gelu": True})
    assert not bare.model.encoder.use_positions | bare.model.encoder.stem_gelu
    assert bare.model.model_copy(update={"encoder": changed}) == whole.model
    assert bare.encoder == whole.encoder


def test_a_decoder_of_another_size_is_refused():
    with pytest.raises(ConfigError, match=f"have {SIZE:,}, the recipe states 45,000"):
        build(recipe_of(model={"decoder_parameters": 45_000}))
    build(recipe_of(model={"decoder_parameters": 44_800}))


# ---- training ----------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", ["whisper", pytest.param("hubert", marks=pytest.mark.long)])
def test_it_learns_a_clip_by_heart_and_the_encoder_stays(encoder):
    stage = stage_of(encoder, optimizer={"lr": 1e-2, "warmup_steps": 0, "clip": 10})
    before = {key: value.clone() for key, value in stage.autoencoder.state_dict().items()}
    one = clip(0, 0.3)
    first = stage.measure(batch(one), transcribe=False)
    values = run(stage, 40, one)
    assert values[-1] < 0.6 * values[0]
    last = stage.measure(batch(one), transcribe=False)
    assert stage.loss({"mel": float(last.means["mel"].value())}) < 0.6 * float(first.means["mel"].value())
    assert last.audio.shape == (1, 4800)
    for key, value in stage.autoencoder.state_dict().items():
        frozen = key.startswith("encoder.") or "positional" in key or "window" in key
        assert torch.equal(value, before[key]) == frozen, key


def test_a_batch_of_nothing_teaches_nothing():
    for encoder in ("whisper", "hubert"):
        report = stage_of(encoder).step([batch()], 0)
        assert float(report.values["loss"]) == float(report.norms["grad_norm"]) == 0


def test_a_run_resumes_with_its_encoder_and_is_no_codec(tmp_path):
    cuts = str(write_corpus(tmp_path / "corpus", clips=2))
    source = tmp_path / "whisper"
    save_whisper(source)
    settings = recipe_of(source=str(source)).model_dump(mode="json") | {
        "output": str(tmp_path / "run"), "steps": 1,
        "data": {"train": [cuts], "clip_seconds": 1, "batch_clips": 1, "workers": 0, "buckets": 1},
    }  # fmt: skip
    assert train(parse_recipe(settings, "test"), quiet=True).finished
    (source / "model.safetensors").unlink()  # the checkpoint has it
    assert train(parse_recipe(settings | {"steps": 2}, "test"), resume=True, quiet=True).step == 2
    with pytest.raises(CheckpointError, match="holds an autoencoder and no codec"):
        load_codec(tmp_path / "run")
    export_weights(tmp_path / "run", tmp_path / "export")
    kept = read_checkpoint(tmp_path / "export")
    assert kept["autoencoder"] == settings["model"]
    with pytest.raises(CheckpointError, match="holds an autoencoder and no codec"):
        load_codec(tmp_path / "export")


# ---- refusals ----------------------------------------------------------------------------------


def test_sources_that_do_not_fit(tmp_path):
    save_whisper(tmp_path / "whisper")
    save_speech_model("hubert", tmp_path / "hubert")
    larger = {"encoder": WHISPER | {"layers": 3}}
    with pytest.raises(ConfigError, match=r"model\.encoder has 3 layers"):
        build(recipe_of(source=str(tmp_path / "whisper"), model=larger))
    with pytest.raises(CheckpointError, match="not a Whisper"):
        build(recipe_of(source=str(tmp_path / "hubert")))
    with pytest.raises(ConfigError, match=r"its conv_bias is False, model\.encoder asks for True"):
        build(recipe_of("hubert-large", str(tmp_path / "hubert")))
    with pytest.raises(CheckpointError, match="no such file or folder; name a hub id"):
        build(recipe_of("hubert", str(tmp_path / "no-such")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no HuBERT and no WavLM"):
        build(recipe_of("hubert", str(tmp_path / "empty")))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"ema": 0.9}, "only a codec's weights are averaged"),
        ({"model": {"window_frames": 40}}, "longer than the model's window of 0.8 s"),
    ],
)
def test_recipes_that_cannot_be(changes, complaint):
    with pytest.raises(ConfigError, match=complaint):
        recipe_of(**changes)
