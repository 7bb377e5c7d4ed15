import json

import pytest
import torch
import transformers
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from xycodec.baselines.transformers_codec import FAMILIES, TransformersCodec, load_transformers_codec
from xycodec.errors import CheckpointError, XycodecError
from xycodec.models.longform import decode_long, encode_long

DAC = {"encoder_hidden_size": 4, "decoder_hidden_size": 32}
CONFIGS = {
    "encodec": {
        "num_filters": 4,
        "hidden_size": 16,
        "codebook_size": 64,
        "upsampling_ratios": [5, 4, 2],
        "sampling_rate": 8000,
        "target_bandwidths": [2.4, 4.8, 9.6],
        "num_lstm_layers": 1,
    },
    "dac": {
        **DAC,
        "downsampling_ratios": [2, 4, 5],
        "n_codebooks": 6,
        "codebook_size": 64,
        "codebook_dim": 4,
        "sampling_rate": 8000,
    },
    "mimi": {
        "sampling_rate": 8000,
        "hidden_size": 32,
        "num_filters": 4,
        "upsampling_ratios": [5, 4, 2],
        "codebook_size": 64,
        "codebook_dim": 16,
        "vector_quantization_hidden_dimension": 16,
        "num_quantizers": 6,
        "num_semantic_quantizers": 2,
        "num_hidden_layers": 1,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "upsample_groups": 32,
        "sliding_window": 50,
    },
    "xcodec": {
        "target_bandwidths": [0.6, 1.2, 2.4],
        "codebook_size": 64,
        "acoustic_model_config": transformers.DacConfig(**DAC, hidden_size=64, downsampling_ratios=[8, 5, 4, 2]),
        "semantic_model_config": transformers.HubertConfig(
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            conv_dim=(8,) * 7,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4,
        ),
    },
    "xcodec2": {
        "hidden_size": 64,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "encoder_hidden_size": 2,
        "quantization_dim": 128,
        "quantization_levels": [4, 4, 4],
        "semantic_model_config": transformers.Wav2Vec2BertConfig(
            hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        ),
    },
}
# codebooks, hop, rate, bit/s
SHAPES = {
    "encodec": (8, 40, 8000, 9600),
    "dac": (6, 40, 8000, 7200),
    "mimi": (6, 80, 8000, 3600),
    "xcodec": (8, 320, 16_000, 2400),
    "xcodec2": (1, 320, 16_000, 300),
}
LENGTHS = (0, 1, 41, 319, 320, 3997, 6400)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each class, random, with codebooks that are told apart."""
    transformers.utils.logging.disable_progress_bar()
    root = tmp_path_factory.mktemp("codecs")
    torch.manual_seed(0)
    for kind, settings in CONFIGS.items():
        model_class = getattr(transformers, FAMILIES[kind].model_class)
        model = model_class(model_class.config_class(**settings))
        for name, buffer in model.named_buffers():
            if name.endswith((".embed", ".embed_sum")):
                buffer.normal_(std=0.1)
        if kind == "xcodec2":
            with torch.no_grad():  # or every latent would be in the middle
                model.quantizer.project_in.weight.mul_(100)
        if kind == "encodec":
            with torch.no_grad():
                model.quantizer.layers[0].codebook.embed.copy_(model.encoder(noise(64 * 40)[None, None])[0].T)
        model.save_pretrained(root / kind)
    return root


@pytest.fixture(params=list(FAMILIES))
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def codecs(folders):
    return {kind: load_transformers_codec(str(folders / kind)) for kind in FAMILIES}


def noise(samples, seed=0):
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def direct(kind, folder, audio):
    """Codes (1, n_q, L) and audio (T,) of Transformers' own class for one clip, at its highest bit rate."""
    model = getattr(transformers, FAMILIES[kind].model_class).from_pretrained(folder).eval()
    with torch.no_grad():
        if kind == "encodec":
            out = model(audio[None, None], bandwidth=9.6)
            return out.audio_codes[0], out.audio_values.flatten()
        if kind == "mimi":
            out = model(audio[None, None])
            return out.audio_codes, out.audio_values.flatten()
        if kind == "xcodec2":
            whole = F.pad(audio, (0, 320 - len(audio) % 320))
            # What both sides of the authors' code hand to w2v-BERT.
            extractor = transformers.SeamlessM4TFeatureExtractor()
            features = extractor(F.pad(whole, (160, 160)).numpy(), sampling_rate=16_000, return_tensors="pt")
            codes = model.encode(whole[None, None], features.input_features).audio_codes[..., : -(-len(audio) // 320)]
            return codes, model.decode(codes).audio_values.flatten()[: len(audio)]
        # As their feature extractor does.
        hop = SHAPES[kind][1]
        whole = F.pad(audio, (0, -len(audio) % hop))
        out = model(whole[None, None])
        return out.audio_codes, out.audio_values.flatten()[: len(audio)]


def test_shapes_follow_from_the_configuration(kind, codecs):
    codec = codecs[kind]
    n_q, hop, rate, bitrate = SHAPES[kind]
    assert (codec.n_q, codec.hop_length, codec.input_sample_rate, codec.output_sample_rate) == (n_q, hop, rate, rate)
    assert (codec.bitrate, codec.codebook_size, codec.model_id) == (bitrate, 64, f"{kind}:{n_q}")
    assert codec.frame_rate == rate / hop
    assert codec.window_samples >= 60 * rate
    assert not codec.training
    assert not any(parameter.requires_grad for parameter in codec.parameters())


@pytest.mark.parametrize("samples", [3997, 6400, 320])
def test_codes_and_audio_are_those_of_the_class_itself(kind, samples, folders, codecs):
    codec, audio = codecs[kind], noise(samples)
    codes, decoded = direct(kind, folders / kind, audio)
    ours = codec.encode(audio[None]).codes
    assert torch.equal(ours, codes)
    assert len(ours[0, 0].unique()) > 2 or samples == 320
    again = decode_long(codec, ours[0], num_samples=samples)
    assert again.shape == (samples,)
    torch.testing.assert_close(again[: len(decoded)], decoded, atol=1e-6, rtol=0)
    assert not again[len(decoded) :].any()
    assert samples - len(decoded) < 16  # what odd strides of DAC leave out


def test_fewer_codebooks_are_the_first_ones(kind, folders, codecs):
    whole, audio = codecs[kind], noise(4000)
    codes = whole.encode(audio[None]).codes
    for n_q in (1, 3)[: whole.n_q]:
        fewer = load_transformers_codec(str(folders / kind), n_q)
        assert fewer.n_q == n_q
        assert fewer.bitrate == whole.bitrate * n_q / whole.n_q
        assert torch.equal(fewer.encode(audio[None]).codes, codes[:, :n_q])
        assert torch.equal(whole.encode(audio[None], n_q=n_q).codes, codes[:, :n_q])
        assert fewer.payload_bits(codes[0, :n_q]) == 6 * n_q * codes.shape[2]
        assert torch.equal(fewer.decode(codes[:, :n_q]).audio, whole.decode(codes[:, :n_q]).audio)
    if whole.n_q > 1:
        with pytest.raises(XycodecError, match="codes must be"):
            load_transformers_codec(str(folders / kind), 1).decode(codes)


@pytest.mark.exact
@pytest.mark.parametrize("workers", [1, 3])
def test_items_of_a_batch_are_those_alone(kind, workers, codecs, threads):
    codec = codecs[kind]
    clips = [noise(samples, seed) for seed, samples in enumerate(LENGTHS)]
    threads(workers)
    out = codec.encode(pad_sequence(clips, batch_first=True), torch.tensor(LENGTHS))
    audio = codec.decode(out.codes, out.lengths)
    embeddings = codec.embed(out.codes, out.lengths)
    threads(1)
    for number, clip in enumerate(clips):
        frames = int(out.lengths[number])
        assert frames == -(-len(clip) // codec.hop_length)
        alone = codec.encode(clip[None]).codes
        assert torch.equal(alone[0], out.codes[number, :, :frames])
        assert audio.lengths[number] == frames * codec.hop_length
        decoded = codec.decode(alone).audio[0]
        torch.testing.assert_close(audio.audio[number, : len(decoded)], decoded, atol=1e-6, rtol=0)
        torch.testing.assert_close(codec.embed(alone)[0], embeddings[number, :, :frames], atol=1e-6, rtol=0)


def test_embeddings_are_sums_over_codebooks_that_the_decoder_takes(kind, codecs):
    codec = codecs[kind]
    codes = codec.encode(noise(2000)[None]).codes
    embeddings = codec.embed(codes)
    model, quantizer = codec.model, codec.model.quantizer
    slow = torch.zeros_like(embeddings)
    for number, layer in enumerate(codes[0]):
        if kind == "xcodec2":
            digits = torch.stack([layer // 4**place % 4 for place in range(3)], dim=-1)
            slow[0] += quantizer.project_out((digits - 2) / 2).T
        elif kind == "dac":
            part = quantizer.quantizers[number]
            slow[0] += (part.out_proj.weight[..., 0] @ part.codebook.weight[layer].T) + part.out_proj.bias[:, None]
        elif kind == "mimi":
            split = number < 2
            half = (
                quantizer.semantic_residual_vector_quantizer if split else quantizer.acoustic_residual_vector_quantizer
            )
            book = half.layers[number if split else number - 2].codebook
            slow[0] += half.output_proj.weight[..., 0] @ (book.embed_sum / book.cluster_usage[:, None])[layer].T
        else:
            layers = quantizer.layers if kind == "encodec" else quantizer.quantizers
            slow[0] += layers[number].codebook.embed[layer].T
    torch.testing.assert_close(embeddings, slow, atol=1e-5, rtol=1e-5)
    rest = {
        "encodec": lambda x: model.decoder(x),
        "dac": lambda x: model.decoder(x),
        "mimi": lambda x: model.decoder(x).audio_values,
        "xcodec": lambda x: model.acoustic_decoder(model.fc2(x.transpose(1, 2)).transpose(1, 2)),
        "xcodec2": lambda x: model.acoustic_decoder(x.transpose(1, 2)),
    }[kind]
    decoded = rest(embeddings).flatten()
    torch.testing.assert_close(codec.decode(codes).audio[0, : len(decoded)], decoded, atol=1e-6, rtol=0)


def test_clips_longer_than_a_window_keep_their_length(kind, folders, monkeypatch):
    monkeypatch.setattr("xycodec.baselines.transformers_codec.WINDOW_S", 0.5)
    codec, audio = load_transformers_codec(str(folders / kind)), noise(17_001)
    codes = encode_long(codec, audio)
    assert codes.shape == (codec.n_q, -(-17_001 // codec.hop_length))
    assert decode_long(codec, codes, num_samples=17_001).shape == (17_001,)


def test_what_is_no_codec_is_refused_in_a_line(folders, tmp_path):
    with pytest.raises(CheckpointError, match=r"dac: 7 codebooks asked of a model of 6: ask for 1 to 6$"):
        load_transformers_codec(str(folders / "dac"), 7)
    with pytest.raises(CheckpointError, match="0 codebooks asked"):
        load_transformers_codec(str(folders / "dac"), 0)
    with pytest.raises(CheckpointError, match="no such folder; give one of Transformers, or a hub id"):
        load_transformers_codec(str(tmp_path / "nothing"))
    with pytest.raises(CheckpointError, match=r"has no config\.json that can be read"):
        load_transformers_codec(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    with pytest.raises(CheckpointError, match=r"no codec that is known here \(qwen2\); known are encodec, dac, mimi"):
        load_transformers_codec(str(tmp_path))
    (tmp_path / "config.json").write_text((folders / "dac" / "config.json").read_text())
    with pytest.raises(CheckpointError, match="the codec cannot be loaded") as refusal:
        load_transformers_codec(str(tmp_path))
    assert "\n" not in str(refusal.value)
    weights = (folders / "mimi" / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights)
    with pytest.raises(CheckpointError, match=r"lacks the weights of .*: get a whole copy"):
        load_transformers_codec(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(weights[:1000])
    with pytest.raises(CheckpointError, match="the codec cannot be loaded"):
        load_transformers_codec(str(tmp_path))


@pytest.mark.parametrize("change", [{"audio_channels": 2}, {"chunk_length_s": 1.0, "overlap": 0.01}])
def test_models_of_stereo_and_of_chunks_are_refused(change):
    model = transformers.EncodecModel(transformers.EncodecConfig(**CONFIGS["encodec"], **change))
    with pytest.raises(CheckpointError, match=r"^mine: a stereo model or one that codes in chunks"):
        TransformersCodec(model, "mine")
