from itertools import groupby

import numpy as np
import pytest
import torch
from tests.judging import EXTRACTORS, noisy, save_ctc, save_whisper, save_x_vector, speech

from xycodec.errors import CheckpointError, XycodecError
from xycodec.eval.judges.base import PIECE_S, RATE, Pair
from xycodec.eval.judges.choose import make_judges
from xycodec.eval.judges.recognition import Recognition, Whisper
from xycodec.eval.judges.sources import locate
from xycodec.eval.results import ClipResult, Scores, pooled

WINDOW = 2 * RATE
TEXT = "A tin tea, an ant!"


def clips():
    whole = speech()
    return [noisy(whole[:length], seed=length) for length in (50_000, 8000, 24_321, 50_000, 12_345, 400)]


def transcripts(judge, audios):
    return [one.transcript for one in judge([Pair(audio, audio, TEXT) for audio in audios])]


# ---- CTC ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=EXTRACTORS)
def ctc_folder(request, tmp_path_factory):
    torch.manual_seed(0)
    return save_ctc(tmp_path_factory.mktemp("ctc"), request.param)


@pytest.fixture(scope="module")
def ctc(ctc_folder):
    return make_judges(recogniser=str(ctc_folder), device="cpu")[0]


@torch.no_grad()
def spelt(folder, audio):
    """The likeliest symbol of each frame by Transformers' model alone, repetitions joined, blanks left out."""
    from transformers import HubertForCTC

    scaled = (audio - audio.mean()) / np.sqrt(audio.var() + 1e-7)
    best = HubertForCTC.from_pretrained(folder).eval()(torch.from_numpy(scaled)[None]).logits[0].argmax(1).tolist()
    text = "".join({4: " "}.get(column, "????|AEINT"[column]) for column, _ in groupby(best) if column > 3)
    return " ".join(text.split())


def test_ctc_hears_what_its_frames_spell(ctc, ctc_folder):
    expected = [spelt(ctc_folder, audio) for audio in clips()]
    assert len(set(expected)) > 3
    assert [" ".join(text.split()) for text in transcripts(ctc, clips())] == expected


def test_ctc_hears_the_same_alone_and_together(ctc):
    together = ctc([Pair(audio, audio, TEXT) for audio in clips()])
    assert together == [ctc([Pair(audio, audio, TEXT)])[0] for audio in clips()]


def test_ctc_on_a_long_clip_joins_its_pieces(ctc):
    long = np.resize(noisy(speech()), round(PIECE_S * RATE) + 1)
    parts = transcripts(ctc, np.array_split(long, 2))
    assert transcripts(ctc, [long]) == [" ".join(parts)]


def test_ctc_and_the_shortest_clip(ctc):
    assert ctc.shortest == 400
    silence = np.zeros(16_000, np.float32)
    assert isinstance(transcripts(ctc, [silence])[0], str)
    short = silence[:10]
    reason = "under 0.025 s"
    assert ctc([Pair(short, short, TEXT)]) == [Scores(missing={"wer": reason, "cer": reason})]


# ---- Whisper, with a window of 2 s -----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[True, False], ids=["multilingual", "english"])
def whisper_folder(request, tmp_path_factory):
    torch.manual_seed(0)
    return save_whisper(tmp_path_factory.mktemp("whisper"), request.param)


@pytest.fixture(scope="module")
def whisper(whisper_folder):
    return make_judges(recogniser=str(whisper_folder), device="cpu")[0]


@torch.no_grad()
def written(folder, audio, language="<|en|>"):
    """The likeliest token after all that came before, from the start, one full pass for each."""
    import transformers

    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer = transformers.WhisperTokenizer.from_pretrained(folder)
    features = transformers.WhisperFeatureExtractor.from_pretrained(folder)(
        audio, sampling_rate=RATE, return_tensors="pt"
    ).input_features
    prompt = ["<|startoftranscript|>", "<|notimestamps|>"]
    if model.generation_config.is_multilingual:
        prompt[1:1] = [language, "<|transcribe|>"]
    ids = tokenizer.convert_tokens_to_ids(prompt)
    end = model.config.eos_token_id
    while len(ids) < len(prompt) + model.generation_config.max_length:
        logits = model(features, decoder_input_ids=torch.tensor([ids])).logits[0, -1]
        logits[model.generation_config.suppress_tokens] = -torch.inf
        if len(ids) == len(prompt):
            logits[end] = -torch.inf
        if (best := int(logits.argmax())) == end:
            break
        ids.append(best)
    return tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_whisper_writes_its_likeliest_tokens(whisper, whisper_folder):
    audios = [speech()[:WINDOW], noisy(speech()[:20_000], 0.5), speech()[:10], np.zeros(16_000, np.float32)]
    expected = [written(whisper_folder, audio) for audio in audios]
    assert len(set(expected)) > 1
    assert transcripts(whisper, audios) == expected


def test_whisper_hears_the_same_alone_and_together(whisper_folder):
    source = locate(str(whisper_folder))
    together = Whisper(source, "cpu", "en", rows=4)
    audios = [noisy(speech()[:length], 0.1, seed=length) for length in (10, 8000, 50_000, 24_321, 12_345, WINDOW)]
    heard = transcripts(Recognition(together), audios)
    assert heard == [text for audio in audios for text in together([audio])]
    assert heard == transcripts(Recognition(Whisper(source, "cpu", "en", rows=1)), audios)
    assert len(set(heard)) > 2


def test_whisper_hears_beyond_its_window(whisper):
    """The same start, and then something else: what it writes must differ."""
    start = speech()[:WINDOW]
    ends = [np.zeros(WINDOW, np.float32), noisy(np.zeros(WINDOW, np.float32), 0.5)]
    heard = transcripts(whisper, [start, *(np.concatenate([start, end]) for end in ends)])
    assert len(set(heard)) == 3


def test_whisper_is_told_the_language(tmp_path):
    save_whisper(tmp_path)
    german = make_judges(recogniser=str(tmp_path), device="cpu", language="de")[0]
    assert transcripts(german, [speech()[:WINDOW]]) == [written(tmp_path, speech()[:WINDOW], "<|de|>")]
    assert "language de" in german.describe()
    with pytest.raises(CheckpointError, match="knows no language 'english', give a code such as en"):
        make_judges(recogniser=str(tmp_path), device="cpu", language="english")


# ---- errors of words and characters ------------------------------------------------------------


class Typist:
    """Writes one text after the other, whatever it hears."""

    about, shortest, rows, normaliser, spellings = "a typist", 1, 2, "plain", {"grey": "gray"}

    def __init__(self, *texts):
        self.texts = list(texts)

    def __call__(self, audios):
        return [self.texts.pop(0) for _ in audios]


def judged(heard, texts, **settings):
    audio = np.ones(100, np.float32)
    return Recognition(Typist(*heard), **settings)([Pair(audio, audio, text) for text in texts])


def test_known_errors_pool_by_the_transcripts_length():
    scores = judged(["the Cat sat, at mat", "oh yes"], ["The cat sat on the mat.", "yes"])
    assert scores[0] == Scores(
        {"wer": 2 / 6, "cer": 5 / 22}, weights={"wer": 6, "cer": 22}, transcript="the Cat sat, at mat"
    )
    assert scores[1] == Scores({"wer": 1.0, "cer": 1.0}, weights={"wer": 1, "cer": 3}, transcript="oh yes")
    results = [ClipResult(str(n), "here", None, None, 1.0, scores=one) for n, one in enumerate(scores)]
    assert pooled(results, "wer") == pytest.approx(3 / 7)
    assert pooled(results, "cer") == pytest.approx(8 / 25)


def test_texts_that_give_no_rate():
    scores = judged(["a", "b"], [None, "...", "a", ""])
    reasons = [one.missing.get("wer") for one in scores]
    assert reasons == ["no transcript", "no words in the transcript", None, "no words in the transcript"]
    assert [one.missing.get("cer") for one in scores] == reasons
    assert scores[2].transcript == "a"


def test_nothing_heard_is_all_deleted():
    assert judged([""], ["a b c"])[0].values == {"wer": 1, "cer": 1}


def test_the_normaliser_decides_what_is_equal():
    heard, text = ["I'll pay Mr. Grey 20 dollars [laughs]"], ["i will pay mister gray twenty dollars"]
    assert judged(heard, text, normaliser="whisper")[0].values == {"wer": 0, "cer": 0}
    assert judged(heard, text)[0].values["wer"] > 0.5
    assert judged(["um"], ["um"])[0].values["wer"] == 0
    assert judged([], ["um"], normaliser="whisper")[0].missing["wer"] == "no words in the transcript"


def test_the_protocol_tells_model_and_normaliser(ctc, whisper, ctc_folder):
    assert ctc.describe().startswith(f"{ctc_folder} (HubertForCTC), greedy")
    assert "without punctuation" in ctc.describe()
    assert whisper.describe().endswith("Whisper's English normaliser; spaces are characters")
    other = make_judges(recogniser=str(ctc_folder), device="cpu", normaliser="whisper")[0]
    assert "Whisper's English normaliser without its list of spellings" in other.describe()
    with pytest.raises(XycodecError, match="no normaliser is called 'strict': there are plain and whisper"):
        Recognition(Typist(), "strict")


def test_a_model_that_does_not_recognise(tmp_path):
    with pytest.raises(CheckpointError, match="gives no CTC recogniser, it lacks the weights of lm_head"):
        make_judges(recogniser=str(save_x_vector(tmp_path)), device="cpu")
