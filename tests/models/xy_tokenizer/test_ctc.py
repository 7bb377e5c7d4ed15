import itertools

import numpy as np
import pytest
import torch
from tests.reference import (
    TINY,
    array,
    convolution,
    gelu,
    layer_norm,
    linear,
    randomise,
    tiny_config,
    transformer_layer,
)
from tests.training import clip

from xycodec.models.xy_tokenizer.config import RecogniserConfig
from xycodec.models.xy_tokenizer.ctc import Recogniser, frames_needed, tower_frames
from xycodec.models.xy_tokenizer.model import XYTokenizer


def recogniser(characters="abc ", window_frames=25, **changes):
    config = RecogniserConfig(tower=TINY, characters=characters, window_frames=window_frames, **changes)
    return randomise(Recogniser(config), scale=0.7).eval()


def listen(model, *clips):
    audio = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    lengths = [len(one) for one in clips]
    return model(model.log_mel(audio, lengths), lengths)


@torch.no_grad()
def test_probabilities_are_those_of_a_slow_reference():
    model, audio = recogniser(), clip(1, 0.33).audio
    got = array(listen(model, audio)[0])
    mel = array(model.log_mel(audio[None], [len(audio)]))[0].T
    h = gelu(convolution(gelu(convolution(mel, model.tower.conv1)), model.tower.conv2))
    h = h[: len(got)] + array(model.tower.positional_embedding)[: len(got)]
    for layer in model.tower.layers:
        h = transformer_layer(h, layer)
    scores = np.exp(linear(layer_norm(h, model.tower.layer_norm, 1e-5), model.head))
    np.testing.assert_allclose(got, np.log(scores / scores.sum(axis=1, keepdims=True)), atol=2e-5)
    assert got.shape == (17, 5)


@torch.no_grad()
def test_a_batch_gives_what_its_clips_give_alone():
    model = recogniser()
    clips = [clip(number, seconds).audio for number, seconds in enumerate((0.5, 2.0, 0.013, 1.27))]
    together = listen(model, *clips)
    for item, one in zip(together, clips, strict=True):
        (alone,) = listen(model, one)
        torch.testing.assert_close(item[: len(alone)], alone, atol=1e-5, rtol=0)
    assert together.shape == (4, 100, 5)


@pytest.mark.exact
@torch.no_grad()
@pytest.mark.parametrize("seconds", [0.8, 1.28, 2.0])
def test_the_tower_hears_what_a_codec_s_hears(seconds):
    """Or what it has learned would be of no use there."""
    model, codec = recogniser(), XYTokenizer(tiny_config(window_frames=25))
    codec.semantic_encoder.load_state_dict(model.tower.state_dict())
    heard = {}
    for part, name in ((codec.semantic_encoder, "codec"), (model.tower, "recogniser")):
        part.register_forward_hook(lambda _, args, out, n=name: heard.update({n: out}))
    audio = clip(2, seconds).audio
    codec.encode_latents(audio[None], [len(audio)])
    listen(model, audio)
    assert torch.equal(heard["codec"], heard["recogniser"])


@torch.no_grad()
def test_probabilities_are_float32_in_any_precision():
    model, audio = recogniser(), clip(0).audio
    exact = listen(model, audio)
    with torch.autocast("cpu", torch.bfloat16):
        low = listen(model, audio)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.exp().sum(dim=2), torch.ones(1, 50), atol=1e-5, rtol=0)
    assert 0 < (low - exact).abs().max() < 0.5


# ---- characters ------------------------------------------------------------------------------------


def certain(columns):
    return torch.nn.functional.one_hot(torch.tensor(columns), 5).float().log()


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ([1, 1, 0, 1, 2], "aab"),
        ([0, 0, 0, 0, 0], ""),
        ([1, 4, 0, 4, 3], "a c"),  # white space is joined
        ([4, 2, 2, 2, 4], "b"),
        ([3, 0, 0, 0, 3], "cc"),
    ],
)
def test_what_the_likeliest_columns_spell(columns, text):
    assert recogniser().read(certain([columns]), [1600]) == [text]


def test_rows_past_the_end_are_not_read():
    model, columns = recogniser(), [1, 2, 3, 1, 2]
    rows = {0: "a", 1: "a", 320: "a", 321: "ab", 1281: "abcab"}
    assert model.read(certain([columns] * len(rows)), list(rows)) == list(rows.values())
    assert tower_frames(list(rows)) == [1, 1, 1, 2, 5]


def test_spelling_and_reading_are_inverse():
    model = recogniser()
    columns = model.alphabet.spell("a cab")
    assert columns == [1, 4, 3, 1, 2]
    assert model.read(certain([columns]), [1600]) == ["a cab"]
    assert model.alphabet.spell("a-xb") == [1, 2]


@pytest.mark.parametrize("length", range(5))
def test_fewest_rows(length):
    """The fewest frames equal those found by trying all outputs of every number of frames."""

    def collapsed(path):
        return tuple(column for column, _ in itertools.groupby(path) if column)

    for columns in itertools.product((1, 2), repeat=length):
        fewest = next(n for n in range(9) if columns in {collapsed(p) for p in itertools.product((0, 1, 2), repeat=n)})
        assert frames_needed(columns) == fewest
