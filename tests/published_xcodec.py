"""Small X-Codecs of Transformers, and the authors' layout of their weights, spelled out anew from its
table of names."""

import re

import torch

import reference
from xycodec.models.config import CodebooksConfig
from xycodec.models.xcodec.config import SelfSupervisedConfig, XCodecConfig

KINDS = ("hubert", "wavlm")
BANDWIDTHS = {0.3: 1, 0.6: 2, 0.9: 3, 1.2: 4, 2.4: 8}  # kbit/s of codebooks of 64 -> n_q
STRIDES = [8, 5, 4, 2]
OFFICIAL_FILE = "xcodec_speech_wavlm_mls.pth"
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
         "conv_dim": (8,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}  # fmt: skip


def tiny_config(**changes):
    """A codec of ours that computes in milliseconds; all widths differ."""
    settings = {
        "model_id": "x-tiny",
        "encoder_width": 4,
        "decoder_width": 48,
        "acoustic_dim": 12,
        "semantic": SelfSupervisedConfig(
            d_model=20, layers=2, heads=2, ffn_dim=28, conv_dim=8, position_kernel=16, position_groups=4
        ),
        "quantizer": CodebooksConfig(codebook_size=64),
    }
    return XCodecConfig(**{**settings, **changes})


def transformers_model(kind, *, encoder=4, decoder=32, acoustic=16, codebook_size=64, bandwidths=None, **semantic):
    """A random XcodecModel whose every weight matters, in eval mode."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    classes = {"hubert": transformers.HubertConfig, "wavlm": transformers.WavLMConfig}
    config = transformers.XcodecConfig(
        codebook_size=codebook_size,
        target_bandwidths=list(bandwidths or BANDWIDTHS),
        acoustic_model_config=transformers.DacConfig(
            encoder_hidden_size=encoder,
            decoder_hidden_size=decoder,
            hidden_size=acoustic,
            downsampling_ratios=STRIDES,
            upsampling_ratios=STRIDES,
        ),
        semantic_model_config=classes[kind](**{**SMALL, **semantic}),
    )
    model = reference.randomise(transformers.XcodecModel(config), scale=0.5).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith(".alpha"):
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
        noise = 0.1 * torch.randn(1, 1, 320 * 50, generator=generator)
        latents = joint_latents(model, noise)
        mean, spread = latents.mean(0), latents - latents.mean(0)
        for depth, layer in enumerate(model.quantizer.quantizers):
            # Codes vary as latents do: where they vary in every direction, all are about as far from a latent.
            mixture = torch.randn(codebook_size, len(spread), generator=generator) / len(spread) ** 0.5
            embed = 0.8**depth * mixture @ spread
            layer.codebook.embed.copy_(embed + mean * (depth == 0))
            layer.codebook.embed_avg.copy_(embed * 3)
            layer.codebook.cluster_size.fill_(3)
        # Audio of a random decoder is as loud as its depth; absolute tolerances mean an ordinary level.
        audio = model.decode(model.encode(noise).audio_codes).audio_values
        for value in model.acoustic_decoder.conv2.parameters():
            value.mul_(0.1 / audio.std())
    return model


def joint_latents(model, audio):
    """The input of the quantizer of Transformers' class for audio (1, 1, 320 k): (k, D)."""
    semantic = model.encoder_semantic(model._extract_semantic_features(audio).transpose(1, 2))
    return model.fc(torch.cat([model.acoustic_encoder(audio), semantic], dim=1).transpose(1, 2))[0]


def official_state(model, norms="weight_g"):
    """The authors' state dict of Transformers' model; `norms` is how torch spells the position convolution's."""
    state = {}
    for key, value in model.state_dict().items():
        name = official_name(key)
        if name.startswith(("encoder.", "decoder_2.")) and name.endswith(".weight"):
            stem = name.removesuffix("weight")
            length = torch.linalg.vector_norm(value, dim=(1, 2), keepdim=True)
            state[f"{stem}weight_g"] = length
            # Another length than the weight's: a reader that forgets g shows.
            state[f"{stem}weight_v"] = value * 4
        elif norms == "weight_g" and ".parametrizations." in name:
            state[name.replace("parametrizations.weight.original0", "weight_g").replace(
                "parametrizations.weight.original1", "weight_v")] = value  # fmt: skip
        else:
            state[name] = value
    return state


def official_name(key):
    """Transformers' name of a tensor -> the authors'."""
    parts = key.split(".")
    if parts[0] in ("acoustic_encoder", "acoustic_decoder"):
        encoder = parts[0] == "acoustic_encoder"
        stem = "encoder.block" if encoder else "decoder_2.model"
        if parts[1] != "block":
            return ".".join([stem, {"conv1": "0", "snake1": "5", "conv2": "6"}[parts[1]], *parts[2:]])
        stem = f"{stem}.{int(parts[2]) + 1}.block"
        if not parts[3].startswith("res_unit"):
            place = {"snake1": 3, "conv1": 4} if encoder else {"snake1": 0, "conv_t1": 1}
            return ".".join([stem, str(place[parts[3]]), *parts[4:]])
        unit = int(parts[3][-1]) - 1 if encoder else int(parts[3][-1]) + 1
        place = ["snake1", "conv1", "snake2", "conv2"].index(parts[4])
        return ".".join([stem, str(unit), "block", str(place), *parts[5:]])
    if parts[0] in ("encoder_semantic", "decoder_semantic"):
        in_unit = "res_units" in parts
        wrapped = not in_unit or parts[-2] == "conv1"
        return ".".join([*parts[:-1], "conv", parts[-1]]) if wrapped else key
    key = re.sub(r"^quantizer\.quantizers\.(\d+)\.codebook\.", r"quantizer.vq.layers.\1._codebook.", key)
    key = re.sub(r"^fc\.", "fc_prior.", key)
    return re.sub(r"^fc([12])\.", r"fc_post\1.", key)
