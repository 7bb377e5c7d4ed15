"""Audio for models that judge, and such models: small, random, saved as Transformers saves them."""

import json
from pathlib import Path

import numpy as np
import torch

import xycodec
from xycodec.io.audio import read_audio

RATE = 16_000
BODY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
EXTRACTORS = {
    "group": {"feat_extract_norm": "group"},
    "layer": {"feat_extract_norm": "layer", "do_stable_layer_norm": True},
}


def speech():
    """3.2 s."""
    return read_audio(Path(xycodec.__file__).parent / "assets" / "harbour.flac")


def noisy(audio, level=0.02, seed=0):
    return audio + (np.random.default_rng(seed).standard_normal(len(audio)) * level).astype(np.float32)


def shake(model, seed=0, scale=0.3):
    """Weights that let the output depend on the input, which an untrained model's hardly does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += scale * torch.randn(weight.shape, generator=generator)
    return model.eval()


def save_x_vector(folder, norm="group"):
    import transformers

    config = transformers.WavLMConfig(
        **BODY, **EXTRACTORS[norm], tdnn_dim=[12] * 4 + [20], xvector_output_dim=10, use_weighted_layer_sum=True
    )
    shake(transformers.WavLMForXVector(config)).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=norm == "layer").save_pretrained(folder)
    return folder


def save_ctc(folder, norm="layer"):
    """A HuBERT that spells at random, in five letters."""
    import transformers

    symbols = ["<pad>", "<s>", "</s>", "<unk>", "|", *"AEINT"]
    vocabulary = folder / "symbols.json"
    vocabulary.write_text(json.dumps({symbol: number for number, symbol in enumerate(symbols)}))
    config = transformers.HubertConfig(**BODY, **EXTRACTORS[norm], vocab_size=len(symbols), pad_token_id=0)
    model = shake(transformers.HubertForCTC(config))
    with torch.no_grad():
        model.lm_head.bias[1:4] = -1e4  # trained models never write these
    model.save_pretrained(folder)
    transformers.Wav2Vec2Processor(
        transformers.Wav2Vec2FeatureExtractor(return_attention_mask=norm == "layer"),
        transformers.Wav2Vec2CTCTokenizer(str(vocabulary)),
    ).save_pretrained(folder)
    return folder


SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>"]
SPECIAL += ["<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]


def save_whisper(folder, multilingual=True, width=16):
    """A Whisper with a window of 2 s that writes a few bytes."""
    import transformers
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    stamps = [f"<|{step * 0.02:.2f}|>" for step in range(101)]
    tokenizer = transformers.WhisperTokenizer(vocab={token: id for id, token in enumerate([*letters, *SPECIAL])})
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.add_tokens(stamps)
    tokenizer.save_pretrained(folder)
    (folder / "normalizer.json").write_text('{"colour": "color"}')
    transformers.WhisperFeatureExtractor(chunk_length=2).save_pretrained(folder)

    ids = dict(zip(SPECIAL, tokenizer.convert_tokens_to_ids(SPECIAL), strict=True))
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    marks = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": start}
    config = transformers.WhisperConfig(
        vocab_size=len(tokenizer),
        d_model=width,
        encoder_layers=1,
        encoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=24,
        max_source_positions=100,
        max_target_positions=32,
        **marks,
    )
    model = shake(transformers.WhisperForConditionalGeneration(config))
    with torch.no_grad():
        model.model.decoder.embed_tokens.weight[-len(stamps) :] = 0  # never likelier than all letters
    languages = {"lang_to_id": {name: ids[name] for name in ("<|en|>", "<|de|>")}, "is_multilingual": True}
    languages["task_to_id"] = {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")}
    model.generation_config = transformers.GenerationConfig(
        **marks,
        **(languages if multilingual else {"is_multilingual": False}),
        max_length=14,
        no_timestamps_token_id=ids["<|notimestamps|>"],
        prev_sot_token_id=ids["<|startofprev|>"],
        suppress_tokens=list(ids.values())[1:],
        begin_suppress_tokens=[end],
    )
    model.save_pretrained(folder)
    return folder
