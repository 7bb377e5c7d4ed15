import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.reference import TINY, randomise, tiny_config

from xycodec.checkpoints.whisper import load_whisper_encoder
from xycodec.errors import CheckpointError, ConfigError
from xycodec.models.config import TowerConfig
from xycodec.models.xy_tokenizer.model import XYTokenizer
from xycodec.train.init.weights import start_towers


def whisper(kind="WhisperForConditionalGeneration", **changes):
    import transformers

    config = transformers.WhisperConfig(
        **{
            "d_model": TINY.d_model,
            "encoder_layers": TINY.layers,
            "encoder_attention_heads": TINY.heads,
            "encoder_ffn_dim": TINY.ffn_dim,
            "decoder_layers": 1,
            "decoder_attention_heads": 2,
            "decoder_ffn_dim": 16,
            "vocab_size": 50,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
            "begin_suppress_tokens": None,
            **changes,
        }
    )
    return randomise(getattr(transformers, kind)(config), seed=7, scale=0.8).eval()


def features(n_mels):
    """Whisper's own log-mel features (2, n_mels, 3000) of a full window of noise that swells, and of a short clip."""
    from transformers import WhisperFeatureExtractor

    noise = np.random.default_rng(0).standard_normal(480_000).astype(np.float32)
    clips = [noise * np.linspace(0.001, 0.3, len(noise), dtype=np.float32), noise[:50_000]]
    made = WhisperFeatureExtractor(feature_size=n_mels)(clips, sampling_rate=16_000, return_tensors="pt")
    return made.input_features


@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize("kind", ["WhisperForConditionalGeneration", "WhisperModel"])
@torch.no_grad()
def test_both_towers_compute_what_whisper_computes(tmp_path, kind, n_mels):
    theirs = whisper(kind, num_mel_bins=n_mels)
    theirs.save_pretrained(tmp_path)
    mel = features(n_mels)
    expected = theirs.get_encoder()(mel).last_hidden_state
    codec = XYTokenizer(tiny_config(n_mels=n_mels))
    before = codec.acoustic_encoder(mel, 1500)
    start_towers(codec, str(tmp_path))
    for tower in (codec.semantic_encoder, codec.acoustic_encoder):
        torch.testing.assert_close(tower(mel, 1500), expected, rtol=0, atol=1e-5)
    assert (before - expected).abs().mean() > 0.1


def test_only_the_towers_change(tmp_path):
    whisper().save_pretrained(tmp_path)
    codec = XYTokenizer(tiny_config())
    before = {name: value.clone() for name, value in codec.state_dict().items()}
    start_towers(codec, str(tmp_path))
    for name, value in codec.state_dict().items():
        assert torch.equal(value, before[name]) != name.startswith(("semantic_encoder.", "acoustic_encoder.")), name
    weights = [tower.conv1.weight for tower in (codec.semantic_encoder, codec.acoustic_encoder)]
    assert weights[0].data_ptr() != weights[1].data_ptr()


def test_positions_are_the_first_rows_of_whispers_table(tmp_path):
    theirs = whisper("WhisperModel")
    theirs.encoder.embed_positions.weight.data.normal_()
    theirs.save_pretrained(tmp_path)
    codec = XYTokenizer(tiny_config(window_frames=25))
    start_towers(codec, str(tmp_path))
    for tower in (codec.semantic_encoder, codec.acoustic_encoder):
        assert torch.equal(tower.positional_embedding, theirs.encoder.embed_positions.weight[:100])


def test_a_codec_with_one_tower(tmp_path):
    whisper().save_pretrained(tmp_path)
    codec = XYTokenizer(tiny_config(semantic_encoder=None, semantic_encoder_adapter=None))
    start_towers(codec, str(tmp_path))
    state = load_whisper_encoder(str(tmp_path))
    assert all(torch.equal(value, state[name]) for name, value in codec.acoustic_encoder.state_dict().items())


def test_parts_of_a_file_are_as_good_as_the_whole(tmp_path):
    theirs = whisper()
    theirs.save_pretrained(tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "parts", max_shard_size="30KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 2
    whole, parts = (load_whisper_encoder(str(tmp_path / name)) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(parts[key], value) for key, value in whole.items())


def test_half_precision_becomes_float32(tmp_path):
    theirs = whisper().half()
    theirs.save_pretrained(tmp_path)
    state = load_whisper_encoder(str(tmp_path))
    assert {value.dtype for value in state.values()} == {torch.float32}
    assert torch.equal(state["conv1.weight"], theirs.model.encoder.conv1.weight.float())


def test_the_decoder_need_not_be_there(tmp_path):
    whisper().save_pretrained(tmp_path)
    expected = load_whisper_encoder(str(tmp_path))
    file = tmp_path / "model.safetensors"
    save_file({key: value for key, value in load_file(file).items() if "decoder" not in key}, file)
    assert load_whisper_encoder(str(tmp_path)).keys() == expected.keys()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"d_model": 64}, "2 layers of 64"),
        ({"encoder_layers": 3}, "3 layers of 32"),
        ({"encoder_attention_heads": 2}, "2 heads"),
        ({"encoder_ffn_dim": 64}, "FFN 64"),
        ({"num_mel_bins": 128}, "128 mel bins"),
    ],
)
def test_another_size_is_told_with_both(tmp_path, change, told):
    whisper("WhisperModel", **change).save_pretrained(tmp_path)
    codec = XYTokenizer(tiny_config())
    before = codec.acoustic_encoder.conv1.weight.clone()
    ours = r"model.semantic_encoder has 2 layers of 32 \(4 heads, FFN 48, 80 mel bins\)"
    with pytest.raises(ConfigError, match=f"{told}.*{ours}") as raised:
        start_towers(codec, str(tmp_path))
    assert "\n" not in str(raised.value)
    assert torch.equal(codec.acoustic_encoder.conv1.weight, before)


def test_towers_of_two_sizes_cannot_start_from_one_whisper(tmp_path):
    whisper().save_pretrained(tmp_path)
    wide = TowerConfig(d_model=40, layers=2, heads=4, ffn_dim=48)
    codec = XYTokenizer(tiny_config(acoustic_encoder=wide))
    with pytest.raises(ConfigError, match=r"model\.acoustic_encoder has 2 layers of 40"):
        start_towers(codec, str(tmp_path))


def test_a_window_longer_than_whispers_is_refused(tmp_path):
    whisper("WhisperModel", max_source_positions=1000).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has 1000 positions, a window of the model 1500"):
        start_towers(XYTokenizer(tiny_config()), str(tmp_path))


def without_keys(place):
    file = place / "model.safetensors"
    save_file(
        {key: value for key, value in load_file(file).items() if "layers.1.self_attn.v_proj.bias" not in key}, file
    )


def of_another_shape(place):
    file = place / "model.safetensors"
    save_file({key: value[..., :1].contiguous() for key, value in load_file(file).items()}, file)


def of_another_kind(place):
    settings = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**settings, "model_type": "hubert"}))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda place: (place / "config.json").unlink(), "no readable config.json"),
        (lambda place: (place / "config.json").write_text("{"), "no readable config.json"),
        (lambda place: (place / "config.json").write_text('{"model_type": "whisper"}'), "does not tell"),
        (of_another_kind, "not a Whisper"),
        (lambda place: (place / "model.safetensors").unlink(), "holds no model.safetensors"),
        (lambda place: (place / "model.safetensors").write_bytes(b"nothing"), "damaged weights"),
        (without_keys, r"lacks 'layers\.1\.self_attn\.v_proj\.bias'"),
        (of_another_shape, "not those of the size"),
    ],
)
def test_what_is_no_whisper_is_told_in_one_line(tmp_path, damage, told):
    whisper().save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=told) as raised:
        start_towers(XYTokenizer(tiny_config()), str(tmp_path))
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("source", ["./nowhere", "/no/such/folder"])
def test_an_unknown_folder_is_told_without_asking_the_hub(source):
    with pytest.raises(CheckpointError, match=f"{source}: no such folder"):
        load_whisper_encoder(source)


def test_a_hub_id_comes_from_the_cache_when_offline(tmp_path, monkeypatch):
    from huggingface_hub import constants

    repository = tmp_path / "models--someone--whisper"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    theirs = whisper()
    theirs.save_pretrained(repository / "snapshots" / ("0" * 40))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    codec = XYTokenizer(tiny_config())
    start_towers(codec, "someone/whisper")
    assert torch.equal(codec.semantic_encoder.conv1.weight, theirs.model.encoder.conv1.weight)


def test_an_unreachable_hub_is_told_in_one_line(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="nobody/no-model: cannot be had") as raised:
        load_whisper_encoder("nobody/no-model")
    assert "\n" not in str(raised.value)
