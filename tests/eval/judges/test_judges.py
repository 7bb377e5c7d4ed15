import sys

import numpy as np
import pytest
import torch
from tests.judging import noisy, save_x_vector, speech

from xycodec.errors import CheckpointError, XycodecError
from xycodec.eval.judges.base import Judge, Pair, pieces
from xycodec.eval.judges.choose import make_judges
from xycodec.eval.results import Scores


class Peak(Judge):
    """Fails as a whole on a group with a clip of zeros."""

    names = ("peak", "length")
    shortest = 4
    batch_size = 3

    def __init__(self):
        self.groups = []

    def describe(self):
        return "the largest sample"

    def judge(self, pairs):
        self.groups.append(len(pairs))
        if not all(pair.decoded.any() for pair in pairs):
            raise RuntimeError("no room for it\nat line 3")
        return [Scores({"peak": float(pair.decoded.max()), "length": float(len(pair.decoded))}) for pair in pairs]


def pair_of(*samples):
    audio = np.array(samples, np.float32)
    return Pair(audio, audio)


def missing(reason):
    return Scores(missing={"peak": reason, "length": reason})


def test_scores_are_in_order_whatever_is_refused_or_fails():
    peak = Peak()
    clips = [pair_of(*[float(number)] * 4) for number in range(8)]  # the first one is of zeros
    clips[2:2] = [pair_of(1, 2, 3), pair_of(1, 2, float("nan"), 4)]
    scores = peak(clips)
    assert [one.values.get("peak") for one in scores] == [None, 1, None, None, 2, 3, 4, 5, 6, 7]
    assert scores[0] == missing("not computed: no room for it")
    assert scores[2] == missing("under 0.00025 s")
    assert scores[3] == missing("has samples that are not finite")
    # The group that failed was taken apart; no other was.
    assert peak.groups == [3, 1, 1, 1, 3, 2]
    assert [peak([clip])[0] for clip in clips] == scores
    assert peak([]) == []


def test_the_shorter_of_the_two_has_to_be_long_enough():
    long, short = np.ones(4, np.float32), np.ones(3, np.float32)
    assert Peak()([Pair(long, short), Pair(short, long)]) == [missing("under 0.00025 s")] * 2


@pytest.mark.parametrize(("samples", "sizes"), [(10, [10]), (640_000, [640_000]), (640_001, [320_001, 320_000])])
def test_pieces_are_equal_and_few(samples, sizes):
    audio = np.arange(samples, dtype=np.float32)
    parts = pieces(audio)
    assert [len(part) for part in parts] == sizes
    assert np.array_equal(np.concatenate(parts), audio)


def test_judges_that_are_asked_for(tmp_path):
    judges = make_judges(similarity=str(save_x_vector(tmp_path)), opinion="dnsmos", device="cpu")
    assert [judge.names for judge in judges] == [("similarity",), ("dnsmos",)]
    clip = speech()
    scores = [judge([Pair(noisy(clip), clip)])[0] for judge in judges]
    assert set((scores[0] | scores[1]).values) == {"similarity", "dnsmos"}
    assert make_judges() == []
    for judge in judges:
        assert "\n" not in judge.describe()


@pytest.mark.parametrize("what", ["similarity", "recogniser"])
@pytest.mark.parametrize(
    ("name", "reason"),
    [("{}/nowhere", "no such f"), ("someone/absent", "cannot be had from the hub or its cache"), ("{}", "gives no ")],
)
def test_a_model_that_cannot_be_had(tmp_path, monkeypatch, what, name, reason):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match=reason) as caught:
        make_judges(**{what: name.format(tmp_path)}, device="cpu")
    assert str(caught.value).startswith(name.format(tmp_path))
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_all_there(tmp_path):
    from transformers import WavLMConfig, WavLMForXVector

    save_x_vector(tmp_path)
    config = WavLMConfig.from_pretrained(tmp_path)
    whole = WavLMForXVector.from_pretrained(tmp_path)
    whole.wavlm.save_pretrained(tmp_path)  # without the head
    config.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="gives no speaker model, it lacks the weights of "):
        make_judges(str(tmp_path), device="cpu")


@pytest.mark.parametrize(
    ("module", "asked", "install"),
    [
        ("transformers", {"similarity": "./"}, "'xycodec\\[eval\\]'"),
        ("transformers", {"recogniser": "./"}, "'xycodec\\[eval\\]'"),
        ("onnxruntime", {"opinion": "dnsmos"}, "'xycodec\\[eval\\]'"),
        ("speechmos", {"opinion": "dnsmos"}, "'xycodec\\[eval\\]'"),
        ("utmos_pytorch.utmos_torch", {"opinion": "utmos"}, "'xycodec\\[eval\\]'"),
    ],
)
def test_a_package_that_is_not_installed(monkeypatch, module, asked, install):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(XycodecError, match=f"^{module} cannot be imported .*pip install {install}$"):
        make_judges(**asked, device="cpu")


def test_other_mistakes(tmp_path):
    with pytest.raises(XycodecError, match="no opinion is called 'mos': there are dnsmos and utmos"):
        make_judges(opinion="dnsmos,mos", device="cpu")
    with pytest.raises(CheckpointError, match="device 'cuda:7' is not available"):
        make_judges(similarity=str(save_x_vector(tmp_path)), device="cuda:7")
    assert not torch.cuda.is_available() or torch.cuda.device_count() < 8
