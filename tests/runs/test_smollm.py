"""The scripts around the run with a real language model."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from tests.training import ADAPTER, save_llama
from tests.training_runs import smallest_config, write_corpus

from xycodec.checkpoints.build import random_codec
from xycodec.models.xy_tokenizer.config import LanguageModelConfig
from xycodec.models.xy_tokenizer.semantic_lm import load_semantic_lm
from xycodec.train.listener import Listener


def script(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[2] / "runs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_held_out_words_are_not_learned(tmp_path):
    def row(audio, **facts):
        return {"audio": audio, "duration": 1.0, "speaker": None, "text": "open", "language": "en", **facts}

    rows = [row(f"picovoice_wakeword_en/{number}.opus") for number in range(130)]
    rows += [row(f"dsp20/{who}-1.opus", speaker=who) for who in ("dsp20-01", "dsp20-33")]
    rows += [
        row("dsp20/long.opus", duration=2.6),
        row("dsp20/mute.opus", text=None),
        row("dsp20/zh.opus", language="zh"),
    ]
    rows += [row("librispeech/1.flac")]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    script("smollm_data").main(tmp_path, tmp_path)
    learned, held_out = (
        [Path(json.loads(line)["audio"]).name for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("words", "dev_words")
    )
    assert held_out == ["0.opus", "60.opus", "120.opus", "dsp20-33-1.opus"]
    assert len(learned) == 130 - 3 + 1
    assert not set(learned) & set(held_out)


@pytest.fixture
def listener(tmp_path):
    torch.manual_seed(0)
    codec = random_codec(smallest_config())
    config = LanguageModelConfig(source=str(save_llama(tmp_path / "lm")), adapter=ADAPTER, max_tokens=40)
    branch = load_semantic_lm(config, input_dim=codec.config.latent_dim, window_frames=codec.window_frames)
    return Listener(codec, branch)


def test_what_is_heard_stands_beside_what_is_guessed(listener, tmp_path):
    hear = script("hear")
    cuts = str(write_corpus(tmp_path / "corpus", clips=3, text="up and down"))
    told = hear.drawn(hear.texts_of(cuts), 2)
    found = hear.hear(listener, cuts, told)
    assert found["clips"] == len(found["transcripts"]) == 3
    assert {row["said"] for row in found["transcripts"]} == {f"up and down {number}" for number in range(3)}
    assert all(row["heard"] for row in found["transcripts"])
    assert found["words"]["words"] == 12
    nats = found["nats_per_token"]
    assert nats.keys() == {"own", "other", "alone", "context"}
    assert len(set(nats.values())) == 4

    # By Transformers' own loss, with what is told before left out of it.
    branch = listener.semantic_lm
    begin = branch.tokenizer.eos_token_id
    totals, count = [0.0, 0.0], 0
    for row in found["transcripts"]:
        ids = branch.tokenize([row["said"]]).ids[0].tolist()
        before = [id for text in told for id in branch.tokenize([text]).ids[0].tolist()]
        count += len(ids)
        for place, context in enumerate(([begin], [begin, *before])):
            labels = torch.tensor([[-100] * len(context) + ids])
            loss = branch.lm(input_ids=torch.tensor([[*context, *ids]]), labels=labels).loss
            totals[place] += loss.item() * len(ids)
    assert [nats["alone"], nats["context"]] == pytest.approx([total / count for total in totals], rel=1e-4)
