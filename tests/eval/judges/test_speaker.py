import numpy as np
import pytest
import torch
from tests.judging import EXTRACTORS, noisy, save_x_vector, speech

from xycodec.eval.judges.base import PIECE_S, Pair
from xycodec.eval.judges.choose import make_judges
from xycodec.eval.results import Scores
from xycodec.io.rate import SPEECH_RATE


@pytest.fixture(scope="module", params=EXTRACTORS)
def folder(request, tmp_path_factory):
    torch.manual_seed(0)
    return save_x_vector(tmp_path_factory.mktemp("x_vector"), request.param)


@pytest.fixture(scope="module")
def judge(folder):
    return make_judges(similarity=str(folder), device="cpu")[0]


def similarity(judge, decoded, original):
    return judge([Pair(decoded, original)])[0].values["similarity"]


@torch.no_grad()
def embedding(folder, audio):
    """The embedding by Transformers' model alone, on audio of zero mean and unit variance, scaled to unit length."""
    from transformers import WavLMForXVector

    model = WavLMForXVector.from_pretrained(folder).eval()
    scaled = (audio - audio.mean()) / np.sqrt(audio.var() + 1e-7)
    found = model(torch.from_numpy(scaled)[None]).embeddings[0].double().numpy()
    return found / np.sqrt((found**2).sum())


def test_it_is_the_cosine_of_the_models_embeddings(judge, folder):
    clip = speech()
    expected = (embedding(folder, noisy(clip)) * embedding(folder, clip)).sum()
    assert expected < 0.9999
    assert similarity(judge, noisy(clip), clip) == pytest.approx(expected, abs=1e-5)


def test_clips_of_different_lengths_have_the_same_scores_alone_and_together(judge):
    whole = speech()
    clips = [whole[:length] for length in (50_000, 8000, 24_321, 50_000, 12_345)]
    pairs = [Pair(noisy(clip, seed=number), clip) for number, clip in enumerate(clips)]
    together = [one.values["similarity"] for one in judge(pairs)]
    assert together == pytest.approx([similarity(judge, one.decoded, one.original) for one in pairs], abs=1e-5)
    assert together == pytest.approx(
        [one.values["similarity"] for one in reversed(judge(list(reversed(pairs))))], abs=1e-5
    )
    assert len({round(value, 5) for value in together}) == len(together)


def test_a_recording_is_its_own_speaker(judge):
    assert similarity(judge, speech(), speech().copy()) == pytest.approx(1, abs=1e-6)


def test_the_level_does_not_matter(judge):
    clip = speech()
    assert similarity(judge, 0.5 * clip, clip) == pytest.approx(1, abs=1e-4)


def test_a_long_clip_has_the_mean_of_its_pieces_embeddings(judge, folder):
    clip = np.resize(noisy(speech()), round(PIECE_S * SPEECH_RATE) + 20_001)
    half = len(clip) // 2 + 1
    assert half <= PIECE_S * SPEECH_RATE
    parts = embedding(folder, clip[:half]) + embedding(folder, clip[half:])
    expected = (parts * embedding(folder, speech())).sum() / np.sqrt((parts**2).sum())
    assert similarity(judge, clip, speech()) == pytest.approx(expected, abs=1e-5)


def test_the_shortest_clip(judge, folder):
    short = speech()[20_000:][: judge.shortest]
    assert np.isfinite(similarity(judge, noisy(short), short))
    less = short[:-1]
    assert judge([Pair(less, less)]) == [Scores(missing={"similarity": "under 0.325 s"})]
    with pytest.warns(UserWarning, match="degrees of freedom"):
        assert not np.isfinite(embedding(folder, less)).all()


def test_what_cannot_be_compared(judge):
    clip, silence = speech(), np.zeros(16_000, np.float32)
    broken = np.where(np.arange(len(clip)) == 7, np.inf, clip).astype(np.float32)
    scores = judge([Pair(clip, silence), Pair(clip[:10], clip[:10]), Pair(broken, clip), Pair(clip, clip)])
    assert [one.missing.get("similarity") for one in scores] == [
        "silent",
        "under 0.325 s",
        "has samples that are not finite",
        None,
    ]


def test_a_silent_decoding_is_judged(judge):
    assert -1 <= similarity(judge, np.zeros(16_000, np.float32), speech()) < 0.9999


def test_the_protocol_names_the_model(judge, folder):
    assert f"{folder} (WavLMForXVector); whole clips" in judge.describe()
