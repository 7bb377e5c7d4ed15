import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.judging import noisy, speech

import xycodec
from xycodec.errors import CheckpointError, XycodecError
from xycodec.eval.judges.base import Pair
from xycodec.eval.judges.choose import make_judges
from xycodec.eval.judges.ge2e import Ge2e, resemblyzer_weights, window_starts
from xycodec.eval.results import Scores
from xycodec.io.audio import read_audio

# Cosines of the embeddings by resemblyzer 0.1.4 itself (`embed_utterance` of clips at -25 dB, without its voice
# detector); fox and harbour have one speaker, numbers another.
RECORDED = {("fox", "harbour"): 0.903866, ("fox", "numbers"): 0.628690, ("harbour", "numbers"): 0.618728}


@pytest.fixture(scope="module")
def voice():
    return Ge2e(resemblyzer_weights(), "cpu")


@pytest.fixture(scope="module")
def judge():
    return make_judges(similarity="resemblyzer", device="cpu")[0]


def asset(name):
    return read_audio(Path(xycodec.__file__).parent / "assets" / f"{name}.flac")


def similarity(judge, decoded, original):
    return judge([Pair(decoded, original)])[0].values["similarity"]


@pytest.mark.parametrize(("one", "other"), RECORDED)
def test_it_computes_what_the_package_computes(judge, one, other):
    assert similarity(judge, asset(one), asset(other)) == pytest.approx(RECORDED[one, other], abs=1e-5)


def test_single_components_are_the_packages(voice):
    for name, expected in {"fox": 0.080541, "harbour": 0.090583, "numbers": 0.143090}.items():
        embedding = voice(asset(name))
        assert embedding.shape == (256,)
        assert embedding[2] / np.linalg.norm(embedding) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("samples", "starts"),
    [
        (1600, [0]),
        (25_600, [0]),
        (31_519, [0]),  # the second window would hold 74.99 %
        (31_520, [0, 77]),
        (112_001, [0, 77, 154, 231, 308, 385, 462, 539]),
    ],
)
def test_windows(samples, starts):
    assert window_starts(samples) == starts


def test_windows_leave_no_more_than_a_quarter_out():
    for samples in range(1600, 200_000, 997):
        starts = window_starts(samples)
        assert {b - a for a, b in pairwise(starts)} <= {77}
        assert 160 * (starts[-1] + 160) - samples <= 6400 or len(starts) == 1
        assert samples - 160 * (starts[-1] + 160) < 160 * 77


def test_a_recording_is_its_own_speaker_and_noise_takes_away(judge):
    values = [similarity(judge, noisy(speech(), level), speech()) for level in (0, 0.003, 0.03, 0.3)]
    assert values[0] == pytest.approx(1, abs=1e-6)
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("gain", [0.01, 0.5, 2])
def test_the_level_does_not_matter(judge, gain):
    assert similarity(judge, gain * speech(), speech()) == pytest.approx(1, abs=1e-5)


def test_what_cannot_be_compared(judge):
    clip, silence = speech(), np.zeros(16_000, np.float32)
    scores = judge([Pair(clip, silence), Pair(silence, clip), Pair(clip[:1599], clip[:1599]), Pair(clip[:1600], clip)])
    assert scores[:3] == [
        Scores(missing={"similarity": reason})
        for reason in ("silent", "the speaker model finds no voice", "under 0.1 s")
    ]
    assert -1 <= scores[3].values["similarity"] < 1


def test_loading_draws_nothing_at_random():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    Ge2e(resemblyzer_weights(), "cpu")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_protocol_names_the_weights(judge):
    assert "GE2E with resemblyzer's weights (" in judge.describe()
    assert "\n" not in judge.describe()


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "resemblyzer", None)
    with pytest.raises(XycodecError, match=r"^resemblyzer is not installed: pip install --no-deps resemblyzer$"):
        make_judges(similarity="resemblyzer", device="cpu")


@pytest.mark.parametrize("state", [None, {}, {"model_state": {"lstm.weight_ih_l0": torch.zeros(4, 4)}}])
def test_other_weights(tmp_path, state):
    path = tmp_path / "pretrained.pt"
    path.write_bytes(b"no weights") if state is None else torch.save(state, path)
    with pytest.raises(CheckpointError, match="no weights of resemblyzer") as caught:
        Ge2e(path, "cpu")
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="no weights of resemblyzer"):
        Ge2e(tmp_path / "nowhere.pt", "cpu")
