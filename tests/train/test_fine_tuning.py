"""Published weights taken further, by the recipes of docs/fine_tuning.md in small: a new voice, rate and language."""

import pytest
import torch
from tests.published_layout import write_published
from tests.training import ADAPTER, save_lm
from tests.training_runs import lines_of, smallest_config, write_corpus, xycodec

from xycodec.checkpoints.build import random_codec
from xycodec.checkpoints.load import load_codec
from xycodec.train.checkpoint import load_state
from xycodec.train.recipe_file import load_recipe
from xycodec.train.run import train
from xycodec.train.stages.posttrain import FROZEN

SMALL = (
    "steps=3", "engine.device=cpu", "engine.precision=float32", "data.workers=0", "data.batch_clips=2",
    "data.clip_seconds=0.64", "data.min_seconds=0.1", "validation.every=3", "validation.listen=0", "optimizer.lr=1e-3",
    "optimizer.warmup_steps=0",
)  # fmt: skip
NARROW = ("discriminators={channels: 4, scale: false, spectrogram: false}", "discriminator_optimizer.lr=1e-3")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A small codec in the published layout, converted by the command line."""
    folder = tmp_path_factory.mktemp("published")
    write_published(random_codec(smallest_config()), folder / "original")
    assert xycodec(folder, "convert", "original", "converted").code == 0
    return folder / "converted"


def corpus_of(folder, rate=16_000):
    return write_corpus(folder / f"corpus-{rate}", rate=rate)


def fine_tune(name, weights, cuts, output, *changes):
    settings = (*SMALL, f"weights={weights}", f"data.train=[{cuts}]", f"data.valid=[{cuts}]", f"output={output}")
    train(load_recipe(f"xy_tokenizer/fine_tune/{name}.yaml", (*settings, *changes)), quiet=True)
    return output


def audio():
    return 0.3 * torch.randn(3, 16_000, generator=torch.Generator().manual_seed(1))


def assert_codes_are_kept(run, weights):
    """Bit for bit: what makes codes, and the codes; and something after them has changed."""
    ours, theirs = (load_codec(source, device="cpu") for source in (run, weights))
    state, before = ours.state_dict(), theirs.state_dict()
    for key, value in before.items():
        if key.split(".")[0] in (*FROZEN, "post_rvq_adapter"):
            assert torch.equal(state[key], value), key
    assert not torch.equal(state["acoustic_decoder.deconv1.weight"], before["acoustic_decoder.deconv1.weight"])
    codes = ours.encode(audio()).codes
    assert torch.equal(codes, theirs.encode(audio()).codes)
    assert len(codes.unique()) > 2
    return ours


def discriminators_of(run):
    return load_state(run / "checkpoints" / "step_00000003.pt").networks["discriminators"]


def test_a_voice_of_one_s_own_keeps_the_codes(published, tmp_path):
    cuts = corpus_of(tmp_path)
    first = fine_tune("voice", published, cuts, tmp_path / "first", *NARROW)
    assert assert_codes_are_kept(first, published).model_id == "xy-tokenizer-voice"
    assert {"adversarial", "feature", "discriminator"} <= lines_of(first)[-1].keys()
    # Discriminators that are there go on; others are made anew.
    still = ("discriminator_optimizer.lr=1e-12",)
    kept = fine_tune("voice", first, cuts, tmp_path / "kept", *NARROW, *still)
    fresh = fine_tune("voice", first, cuts, tmp_path / "fresh", *NARROW, *still, "keep_discriminators=false")
    before = discriminators_of(first)
    for run, same in ((kept, True), (fresh, False)):
        assert_codes_are_kept(run, published)
        after = discriminators_of(run)
        weights = [key for key in before if key.endswith("original1")]
        assert {torch.allclose(before[key], after[key], atol=1e-6) for key in weights} == {same}


@pytest.mark.parametrize("rate", [24_000, *(pytest.param(rate, marks=pytest.mark.long) for rate in (32_000, 48_000))])
def test_another_rate_keeps_the_codes(published, tmp_path, rate):
    cuts = corpus_of(tmp_path, rate)
    changes = (f"output_sample_rate={rate}", f"model_id=own-{rate}")
    first = fine_tune("rate", published, cuts, tmp_path / "mel", *changes, *NARROW[:1])
    codec = assert_codes_are_kept(first, published)
    assert (codec.output_sample_rate, codec.model_id) == (rate, f"own-{rate}")
    assert codec.decode(codec.encode(audio()).codes).audio.shape == (3, 13 * 1280 * rate // 16_000)
    assert "discriminator" not in lines_of(first)[-1]
    second = fine_tune("voice", first, cuts, tmp_path / "judged", *NARROW, "keep_discriminators=false")
    assert assert_codes_are_kept(second, published).output_sample_rate == rate
    assert "discriminator" in lines_of(second)[-1]


@pytest.mark.long
def test_another_language_changes_the_codes_and_then_keeps_them(published, tmp_path):
    cuts = corpus_of(tmp_path)
    model = {key: value for key, value in smallest_config(model_id="own").model_dump(mode="json").items() if value}
    changes = (
        f"model={model}", f"lm.source={save_lm(tmp_path / 'lm')}", f"lm.adapter={ADAPTER.model_dump()}",
        "data.clip_seconds=1", "lm.max_tokens=40",
    )  # fmt: skip
    run = fine_tune("language", published, cuts, tmp_path / "language", *changes)
    assert {"asr", "mel", "commitment"} <= lines_of(run)[-1].keys()
    ours, theirs = (load_codec(source, device="cpu") for source in (run, published))
    assert torch.equal(ours.state_dict()["semantic_encoder.conv1.weight"], theirs.semantic_encoder.conv1.weight)
    for key in ("acoustic_encoder.conv1.weight", "quantizer.codebook"):
        before, after = theirs.state_dict()[key], ours.state_dict()[key]
        assert not torch.equal(after, before)
        # It went on from the published weights and did not begin anew.
        assert (after - before).norm() < 0.5 * before.norm()
    voice = fine_tune("voice", run, cuts, tmp_path / "voice", *NARROW)
    assert_codes_are_kept(voice, run)
