import shutil

import pytest
import torch
import transformers

from xycodec.baselines.open import HUB_IDS, open_codec
from xycodec.errors import CheckpointError, XycodecError


def test_ours_are_opened_as_load_codec_does():
    codec = open_codec("xy-random", device="cpu")
    assert codec.model_id == "xy-random"
    assert not codec.training


@pytest.mark.parametrize(("spec", "n_q"), [("hf:{}", 4), ("hf:{}:2", 2)])
def test_a_folder_of_transformers_is_opened_with_its_codebooks(spec, n_q, tmp_path):
    transformers.utils.logging.disable_progress_bar()
    config = transformers.DacConfig(encoder_hidden_size=4, decoder_hidden_size=32, n_codebooks=4, codebook_size=16)
    transformers.DacModel(config).save_pretrained(tmp_path / "mine")
    codec = open_codec(spec.format(tmp_path / "mine"), device="cpu")
    assert (codec.model_id, codec.n_q) == (f"mine:{n_q}", n_q)
    assert codec.encode(torch.zeros(1, 1000)).codes.shape == (1, n_q, 2)


@pytest.mark.parametrize(
    ("spec", "repo"),
    [
        *HUB_IDS.items(),
        ("dac-8", "descript/dac_24khz"),
        ("dac-16khz-8", "descript/dac_16khz"),
        ("speech-tokenizer", "fnlp/SpeechTokenizer"),
        ("bigcodec", "Alethia/BigCodec"),
    ],
)
def test_short_names_ask_the_hub_for_the_codecs_of_the_papers(spec, repo):
    with pytest.raises(CheckpointError, match=f"^{repo}: cannot be had from the hub or its cache"):
        open_codec(spec, device="cpu")


def test_classical_codecs_are_opened_by_bitrate_and_mode():
    assert open_codec("opus-12k", device="cpu").model_id == "opus-12k"
    for spec in ("codec2-1200", "codec2-700c", "codec2-700C"):
        if shutil.which("c2enc"):
            assert open_codec(spec, device="cpu").model_id == spec.lower()
        else:
            with pytest.raises(XycodecError, match="install Debian's package codec2"):
                open_codec(spec, device="cpu")


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ("dacc-8", r"dacc-8: no such file, folder or model; .*; for comparison, encodec, dac, .*, opus-6k to opus-64k"),
        ("opus-3k", "opus-3k: Opus is for 6 to 64 kbit/s"),
        ("codec2-9600", "codec2-9600: no mode of Codec 2; known are 3200, 2400, 1600, 1400, 1300, 1200, 700c"),
        ("hf:./nothing:8", "./nothing: no such folder"),
    ],
)
def test_what_is_not_known_is_answered_with_what_is(spec, line):
    with pytest.raises(XycodecError, match=line):
        open_codec(spec, device="cpu")


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(CheckpointError, match="device 'nowhere' is not available here"):
        open_codec("opus-6k", device="nowhere")
