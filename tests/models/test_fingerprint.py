import pytest
import torch
from tests import published_xcodec, reference

from xycodec.checkpoints.build import random_codec
from xycodec.models.base import codes_fingerprint, fingerprint
from xycodec.models.config import CodebooksConfig
from xycodec.models.speech_tokenizer.config import SpeechTokenizerConfig


def tiny_speech_tokenizer():
    books = CodebooksConfig(n_q=3, codebook_size=32)
    return SpeechTokenizerConfig(model_id="tiny", width=2, dim=24, semantic_dim=20, lstm_layers=1, quantizer=books)


@pytest.mark.parametrize("tiny_config", [reference.tiny_config, published_xcodec.tiny_config, tiny_speech_tokenizer])
def test_hash_of_codes_is_of_what_encoding_reads(tiny_config):
    codec = random_codec(tiny_config())
    clip = 0.3 * torch.randn(1, 9600, generator=torch.Generator().manual_seed(0))
    codes, whole, own = codec.encode(clip).codes, fingerprint(codec), codes_fingerprint(codec)
    audio = codec.decode(codes).audio
    for part in codec.decoder_parts:
        tensors = [one for name, one in codec.state_dict().items() if name.startswith(part)]
        assert tensors, part
        kept = [one.clone() for one in tensors]
        for one in tensors:
            one.normal_() if one.is_floating_point() else one.logical_not_()
        assert torch.equal(codec.encode(clip).codes, codes), part
        assert (codes_fingerprint(codec), fingerprint(codec) == whole) == (own, False)
        for one, before in zip(tensors, kept, strict=True):
            one.copy_(before)
    assert torch.equal(codec.decode(codes).audio, audio)
    others = [one for name, one in codec.state_dict().items() if not name.startswith(codec.decoder_parts)]
    told = 0
    for one in others:
        before = one.clone()
        one.add_(0.5) if one.is_floating_point() else one.logical_not_()
        same = torch.equal(codec.encode(clip).codes, codes)
        # What moves the codes has to move the hash.
        assert same or codes_fingerprint(codec) != own
        told += codes_fingerprint(codec) != own
        one.copy_(before)
    assert told > len(others) / 2
    assert codes_fingerprint(codec) == own
