import pytest
import torch
from typer.testing import CliRunner

from xycodec.cli.app import app
from xycodec.data.manifest import import_manifest
from xycodec.errors import ConfigError
from xycodec.models.xy_tokenizer.config import LanguageModelConfig
from xycodec.models.xy_tokenizer.semantic_lm import load_semantic_lm
from xycodec.train.init.small_lm import make_small_lm

TEXTS = ["the cat sat on the mat", "", "so on the mat sat the cat", "Größe: 5 €"]


def load(folder):
    config = LanguageModelConfig(
        source=str(folder), trainable=True, adapter={"d_model": 16, "layers": 1, "heads": 2, "ffn_dim": 16}
    )
    return load_semantic_lm(config, input_dim=8, window_frames=25)


def test_it_loads_knows_its_texts_and_is_the_same_again(tmp_path):
    count = make_small_lm(tmp_path / "one", TEXTS, vocabulary=280, hidden=32, layers=1, heads=2)
    torch.manual_seed(5)
    make_small_lm(tmp_path / "two", TEXTS, vocabulary=280, hidden=32, layers=1, heads=2)
    one, two = load(tmp_path / "one"), load(tmp_path / "two")
    assert count == sum(p.numel() for p in one.lm.parameters())
    assert all(torch.equal(a, b) for a, b in zip(one.lm.parameters(), two.lm.parameters(), strict=True))
    for text in ("the cat sat", "Größe: 5 €", "что-то новое"):
        ids = one.tokenize([text]).ids[0].tolist()
        assert ids == two.tokenize([text]).ids[0].tolist()
        assert one.tokenizer.decode(ids[:-1]) == text
        assert ids[-1] == one.tokenizer.eos_token_id
    # "the" is frequent enough to have a token of its own, and 280 tokens are few.
    assert len(one.tokenize(["the"]).ids[0]) == 2
    assert len(one.tokenizer) <= 280


def test_what_cannot_be_made(tmp_path):
    with pytest.raises(ConfigError, match="no clip has a text"):
        make_small_lm(tmp_path / "none", ["", "  "])
    assert not (tmp_path / "none").exists()
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match=r"there: exists already"):
        make_small_lm(tmp_path / "there", TEXTS)


def test_the_command(tmp_path):
    import numpy as np
    import soundfile as sf

    sf.write(tmp_path / "a.wav", np.zeros(16_000), 16_000)
    (tmp_path / "rows.jsonl").write_text('{"audio": "a.wav", "duration": 1.0, "text": "the cat"}\n')
    import_manifest(tmp_path / "rows.jsonl", tmp_path / "cuts.jsonl.gz")
    run = CliRunner()
    arguments = ["data", "lm", str(tmp_path / "cuts.jsonl.gz"), str(tmp_path / "lm"), "--hidden", "32", "--layers", "1"]
    result = run.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "lm.trainable=true" in result.output
    assert load(tmp_path / "lm").lm.config.hidden_size == 32
    assert run.invoke(app, [*arguments[:-4], "--hidden", "30"]).exit_code == 2
