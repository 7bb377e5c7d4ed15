import numpy as np
import onnxruntime
import pytest
import speechmos
import torch
import utmos_pytorch.utmos_torch as library
from tests.judging import noisy, speech

from xycodec.errors import CheckpointError
from xycodec.eval.judges.base import Pair
from xycodec.eval.judges.choose import make_judges
from xycodec.eval.judges.opinion import Dnsmos, Utmos
from xycodec.eval.results import Scores
from xycodec.io.rate import SPEECH_RATE

WINDOW = 144_160


@pytest.fixture(scope="module")
def dnsmos():
    return make_judges(opinion="dnsmos", device="cpu")[0]


def opinion(judge, audio):
    return judge([Pair(audio, audio)])[0].values[judge.names[0]]


def hertz(mel):
    """Slaney's scale: 3 mel in 200 Hz up to 1 kHz, then 27 in a factor of 6.4."""
    return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)


def features(audio):
    """(1, 900, 120), frame by frame in float64."""
    padded = np.pad(audio[:-160].astype(np.float64), 160)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(321) / 321)
    power = [np.abs(np.fft.rfft(padded[160 * n :][:321] * window)) ** 2 for n in range(900)]
    top = 15 + 27 * np.log(8) / np.log(6.4)
    edges = [hertz(top * n / 121) for n in range(122)]
    bank = np.zeros((120, 161))
    for band, (low, centre, high) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
        for column in range(161):
            place = column * SPEECH_RATE / 321
            rise, fall = (place - low) / (centre - low), (high - place) / (high - centre)
            bank[band, column] = max(0, min(rise, fall)) * 2 / (high - low)
    decibels = 10 * np.log10(np.maximum(np.array(power) @ bank.T, 1e-10))
    return ((np.maximum(decibels - decibels.max(), -80) + 40) / 40)[None].astype(np.float32)


def test_one_window_has_the_models_value(dnsmos):
    audio = noisy(np.resize(speech(), WINDOW))
    session = onnxruntime.InferenceSession(f"{speechmos.__path__[0]}/dnsmos_models/model_v8.onnx")
    expected = session.run(None, {"input_1": features(audio)})[0].item()
    assert opinion(dnsmos, audio) == pytest.approx(expected, abs=1e-4)


def test_values_of_the_package_itself(dnsmos):
    """`speechmos.dnsmos.run`, version 0.0.1.1 with librosa 0.11, on the same audio: its `p808_mos`."""
    assert opinion(dnsmos, speech()) == pytest.approx(3.50586, abs=1e-4)
    assert opinion(dnsmos, np.clip(noisy(speech()), -1, 1)) == pytest.approx(2.41479, abs=1e-4)
    assert opinion(dnsmos, np.resize(speech(), 13 * SPEECH_RATE)) == pytest.approx(3.51924, abs=1e-4)


def test_a_long_clip_has_the_mean_of_its_windows(dnsmos):
    audio = np.concatenate([np.resize(speech(), WINDOW), noisy(np.resize(speech(), 2 * SPEECH_RATE), 0.1)])
    windows = [audio[SPEECH_RATE * number :][:WINDOW] for number in range(2)]  # of three that there are
    assert opinion(dnsmos, audio) == pytest.approx(np.mean([opinion(dnsmos, part) for part in windows]), abs=1e-6)


def test_what_nobody_has_an_opinion_of(dnsmos):
    clip, silence = speech()[:8000], np.zeros(8000, np.float32)
    scores = dnsmos([Pair(silence, clip), Pair(clip[:10], clip[:10]), Pair(clip, silence)])
    assert scores[:2] == [Scores(missing={"dnsmos": reason}) for reason in ("decoded to silence", "under 0.25 s")]
    assert 1 < scores[2].values["dnsmos"] < 5


def test_the_protocol_names_the_model(dnsmos):
    assert "DNSMOS P.808 (model_v8 of speechmos 0" in dnsmos.describe()
    assert isinstance(dnsmos, Dnsmos)


# ---- UTMOS -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights():
    """Random weights of UTMOS' shapes."""
    generator = torch.Generator().manual_seed(0)
    with pytest.warns(FutureWarning, match="weight_norm"), torch.device("meta"):
        shapes = {key: value.shape for key, value in library.UTMOSModel().state_dict().items()}
    return {
        key: torch.randn(shape, generator=generator).div(max(1, shape[-1:].numel()) ** 0.5).half()
        for key, shape in shapes.items()
    }


@pytest.mark.long
def test_utmos_has_the_packages_value(weights, tmp_path):
    torch.save(weights, tmp_path / "utmos.pt")
    utmos = Utmos("cpu", tmp_path / "utmos.pt")
    clip = speech()[20_000:28_000]
    with torch.no_grad():
        frames = utmos._model.model(torch.from_numpy(clip)[None, None], torch.tensor([0]), torch.tensor([288]))
    assert opinion(utmos, clip) == pytest.approx(3 + 2 * frames.mean().item(), abs=1e-5)
    scores = utmos([Pair(clip[:10], clip), Pair(0 * clip, clip)])
    assert [one.missing for one in scores] == [{"utmos": "under 0.25 s"}, {"utmos": "decoded to silence"}]
    assert "utmos-pytorch" in utmos.describe()


def test_weights_of_something_else(weights, tmp_path):
    path = tmp_path / "utmos.pt"
    small = {"a": torch.zeros(1)}
    torch.save(small, path)
    with pytest.raises(CheckpointError, match="not the weights of UTMOS that utmos-pytorch knows"):
        Utmos("cpu", path)
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="no weights of UTMOS"):
        Utmos("cpu", path)
