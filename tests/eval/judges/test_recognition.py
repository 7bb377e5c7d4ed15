from itertools import groupby

import numpy as np
import pytest
import torch
from tests.judging import EXTRACTORS, noisy, save_ctc, save_whisper, save_x_vector, speech
from transformers import AutoTokenizer, WhisperForConditionalGeneration

from xycodec.errors import CheckpointError, XycodecError
from xycodec.eval.judges import recognition
from xycodec.eval.judges.base import PIECE_S, Pair
from xycodec.eval.judges.choose import make_judges
from xycodec.eval.judges.recognition import Recognition, Transcript, Whisper, language_code, loops
from xycodec.eval.judges.sources import locate
from xycodec.eval.results import ClipResult, Scores, pooled
from xycodec.io.rate import SPEECH_RATE

WINDOW = 2 * SPEECH_RATE
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
    long = np.resize(noisy(speech()), round(PIECE_S * SPEECH_RATE) + 1)
    parts = transcripts(ctc, np.array_split(long, 2))
    assert transcripts(ctc, [long]) == [" ".join(parts)]


def test_ctc_and_the_shortest_clip(ctc):
    assert ctc.shortest == 400
    silence = np.zeros(16_000, np.float32)
    assert isinstance(transcripts(ctc, [silence])[0], str)
    short = silence[:10]
    reason = "under 0.025 s"
    assert ctc([Pair(short, short, TEXT)]) == [Scores(missing=dict.fromkeys(("wer", "wer_capped", "cer"), reason))]


# ---- Whisper, with a window of 2 s -----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[True, False], ids=["multilingual", "english"])
def whisper_folder(request, tmp_path_factory):
    torch.manual_seed(0)
    return save_whisper(tmp_path_factory.mktemp("whisper"), request.param)


@pytest.fixture(scope="module")
def whisper(whisper_folder):
    return make_judges(recogniser=str(whisper_folder), device="cpu")[0]


@torch.no_grad()
def written(folder, audio, language="<|en|>", most=99):
    """The likeliest token after all that came before, from the start, one full pass for each."""
    import transformers

    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer = transformers.WhisperTokenizer.from_pretrained(folder)
    features = transformers.WhisperFeatureExtractor.from_pretrained(folder)(
        audio, sampling_rate=SPEECH_RATE, return_tensors="pt"
    ).input_features
    prompt = ["<|startoftranscript|>", "<|notimestamps|>"]
    if model.generation_config.is_multilingual:
        prompt[1:1] = [language, "<|transcribe|>"]
    ids = tokenizer.convert_tokens_to_ids(prompt)
    end = model.config.eos_token_id
    while len(ids) < len(prompt) + min(most, model.generation_config.max_length):
        logits = model(features, decoder_input_ids=torch.tensor([ids])).logits[0, -1]
        logits[model.generation_config.suppress_tokens] = -torch.inf
        if len(ids) == len(prompt):
            logits[end] = -torch.inf
        if (best := int(logits.argmax())) == end:
            break
        ids.append(best)
    return tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_whisper_writes_its_likeliest_tokens(whisper, whisper_folder, monkeypatch):
    monkeypatch.setattr(recognition, "MOST_COMPRESSION", 99)  # untrained ones repeat themselves
    audios = [speech()[:WINDOW], noisy(speech()[:20_000], 0.5), speech()[:10], np.zeros(16_000, np.float32)]
    expected = [written(whisper_folder, audio) for audio in audios]
    assert len(set(expected)) > 1
    assert transcripts(whisper, audios) == expected


def test_whisper_hears_the_same_alone_and_together(whisper_folder):
    source = locate(str(whisper_folder))
    together = Whisper(source, "cpu", batch_size=4)
    audios = [noisy(speech()[:length], 0.1, seed=length) for length in (10, 8000, 50_000, 24_321, 12_345, WINDOW)]
    heard = transcripts(Recognition(together), audios)
    assert heard == [one.text for audio in audios for one in together([audio], ["en"])]
    assert heard == transcripts(Recognition(Whisper(source, "cpu", batch_size=1)), audios)
    assert len(set(heard)) > 2


@pytest.mark.long
def test_whisper_hears_beyond_its_window(whisper):
    """The same start, and then something else: what it writes must differ."""
    start = speech()[:WINDOW]
    ends = [np.zeros(WINDOW, np.float32), noisy(np.zeros(WINDOW, np.float32), 0.5)]
    heard = transcripts(whisper, [start, *(np.concatenate([start, end]) for end in ends)])
    assert len(set(heard)) == 3


def test_each_clip_is_heard_in_its_own_language(tmp_path):
    torch.manual_seed(0)
    source = locate(str(save_whisper(tmp_path)))
    judge = Recognition(Whisper(source, "cpu", batch_size=4), language="German")
    audio = speech()[:WINDOW]
    languages = ["en", None, "de-AT", "English"]
    scores = judge([Pair(audio, audio, TEXT, language) for language in languages])
    english, german = written(tmp_path, audio), written(tmp_path, audio, "<|de|>")
    assert english != german
    assert [one.transcript for one in scores] == [english, german, german, english]
    assert "each clip in its own language (de where none is named)" in judge.describe()
    (french,) = judge([Pair(audio, audio, TEXT, "fr")])
    assert french.missing == dict.fromkeys(judge.names, "the recogniser knows no language 'fr'")
    with pytest.raises(XycodecError, match="knows no language 'klingon': give a code such as en"):
        make_judges(recogniser=str(tmp_path), device="cpu", language="klingon")


def test_a_whisper_of_english_alone_hears_nothing_else(tmp_path):
    judge = make_judges(recogniser=str(save_whisper(tmp_path, multilingual=False)), device="cpu")[0]
    audio = speech()[:WINDOW]
    english, german = judge([Pair(audio, audio, TEXT, language) for language in ("en", "de")])
    assert "wer" in english.values
    assert german.missing["wer"] == "the recogniser knows no language 'de'"


@pytest.mark.parametrize("name", ["de", "DE", "de-DE", "de_AT", "German", "german "])
def test_languages_have_codes_and_names(name):
    assert language_code(name) == "de"


def test_what_is_written_is_limited_by_the_clips_length(tmp_path, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(recognition, "MOST_TOKENS", 3)
    source = locate(str(save_whisper(tmp_path)))
    audios = [speech()[:8000], speech()[:WINDOW]]
    expected = [written(tmp_path, audio, most=most) for audio, most in zip(audios, (5, 9), strict=True)]
    assert expected != [written(tmp_path, audio) for audio in audios]
    alone, together = (Whisper(source, "cpu", batch_size=size) for size in (1, 2))
    assert [one.text for one in together(audios, ["en", "en"])] == expected
    assert [alone([audio], ["en"])[0].text for audio in audios] == expected


def test_loops_are_found():
    assert loops("and the cat " * 10)
    assert loops(" a" * 60)
    assert not loops("")
    assert not loops(
        "If called to a case supposed or suspected to be one of poisoning, the medical man has two duties."
    )
    draw = np.random.default_rng(0)
    vocabulary = ["".join(draw.choice(list("abcdefghijklmnop"), 5)) for _ in range(100)]
    long = " ".join(draw.choice(vocabulary, 2000))
    assert loops(long)  # as one window's, which it cannot be
    assert not loops(long, 40)
    assert loops(long + " no" * 400, 40)


def test_a_loop_is_heard_again_without_repetitions(tmp_path):
    """A Whisper that writes one letter without end, as trained ones do now and then."""
    torch.manual_seed(0)
    save_whisper(tmp_path)
    model = WhisperForConditionalGeneration.from_pretrained(tmp_path)
    tokens = AutoTokenizer.from_pretrained(tmp_path)
    letters = [tokens.convert_tokens_to_ids(letter) for letter in "ab"]
    with torch.no_grad():
        # The last norm's bias decides alone: a, and b where a may not be.
        model.model.decoder.layer_norm.weight.zero_()
        model.model.decoder.layer_norm.bias.zero_()
        model.model.decoder.layer_norm.bias[:2] = 1
        model.model.decoder.embed_tokens.weight[:, :2] = -1
        model.model.decoder.embed_tokens.weight[letters, :2] = torch.tensor([[3.0, 0.0], [2.0, 0.0]])
    model.config.max_target_positions = 64
    model.model.decoder.embed_positions.weight = torch.nn.Parameter(torch.zeros(64, 16))
    model.generation_config.max_length = 60
    model.save_pretrained(tmp_path)
    once, again = (
        Whisper(locate(str(tmp_path)), "cpu", batch_size=1),
        Whisper(locate(str(tmp_path)), "cpu", batch_size=2),
    )
    (heard,) = once([speech()[:WINDOW]], ["en"])
    assert heard.looped
    text = heard.text
    assert text.startswith("aaab")
    threes = [text[start : start + 3] for start in range(len(text) - 2)]
    assert len(set(threes)) == len(threes) > 20
    assert again([speech()[:WINDOW], speech()[:8000]], ["en", "de"])[0] == heard
    assert Recognition(once)([Pair(speech()[:WINDOW], speech()[:WINDOW], "a")])[0].looped


# ---- errors of words and characters ------------------------------------------------------------


class Typist:
    """Writes one text after the other, whatever it hears."""

    about, shortest, batch_size, normaliser, spellings = "a typist", 1, 2, "plain", {"grey": "gray"}
    languages = None

    def __init__(self, *texts):
        self.texts = list(texts)

    def __call__(self, audios, languages):
        return [Transcript(self.texts.pop(0)) for _ in audios]


def judged(heard, texts, language="en", **settings):
    audio = np.ones(100, np.float32)
    return Recognition(Typist(*heard), **settings)([Pair(audio, audio, text, language) for text in texts])


def test_known_errors_pool_by_the_transcripts_length():
    scores = judged(["the Cat sat, at mat", "oh yes"], ["The cat sat on the mat.", "yes"])
    assert scores[0] == Scores(
        {"wer": 2 / 6, "wer_capped": 2 / 6, "cer": 5 / 22},
        weights={"wer": 6, "wer_capped": 6, "cer": 22},
        transcript="the Cat sat, at mat",
    )
    assert scores[1].values == {"wer": 1.0, "wer_capped": 1.0, "cer": 1.0}
    results = [ClipResult(str(n), "here", None, None, 1.0, scores=one) for n, one in enumerate(scores)]
    assert pooled(results, "wer") == pytest.approx(3 / 7)
    assert pooled(results, "cer") == pytest.approx(8 / 25)


def test_a_clip_with_many_insertions_counts_as_all_wrong_where_it_is_capped():
    scores = judged(["a a a a a", "a b x"], ["a", "a b c"])
    assert [one.values["wer"] for one in scores] == [4, pytest.approx(1 / 3)]
    results = [ClipResult(str(n), "here", None, None, 1.0, scores=one) for n, one in enumerate(scores)]
    assert pooled(results, "wer") == pytest.approx(5 / 4)
    assert pooled(results, "wer_capped") == pytest.approx(2 / 4)


def test_texts_that_give_no_rate():
    scores = judged(["a", "b"], [None, "...", "a", ""])
    reasons = [one.missing.get("wer") for one in scores]
    itself = "no text: it is the reference itself"
    assert reasons == [itself, "no words in the transcript", None, "no words in the transcript"]
    assert [one.missing.get("cer") for one in scores] == reasons
    assert [one.transcript for one in scores] == ["a", None, "b", None]


def test_what_is_heard_in_the_original_stands_for_a_text():
    audio, other = np.ones(100, np.float32), np.zeros(100, np.float32)
    judge = Recognition(Typist("a b", "a b", "c"))
    scores = judge([Pair(other, audio, None, "en", "A c."), Pair(other, audio, "a b", "en", "x"), Pair(other, audio)])
    assert [one.values.get("wer") for one in scores] == [0.5, 0, None]
    assert [one.reference for one in scores] == ["A c.", None, None]
    # May be tried again once the original has been heard.
    assert scores[2].missing["wer"].startswith("not computed")


def test_nothing_heard_is_all_deleted():
    assert judged([""], ["a b c"])[0].values == {"wer": 1, "wer_capped": 1, "cer": 1}


def test_the_normaliser_decides_what_is_equal():
    heard, text = ["I'll pay Mr. Grey 20 dollars [laughs]"], ["i will pay mister gray twenty dollars"]
    assert set(judged(heard, text, normaliser="whisper")[0].values.values()) == {0}
    assert judged(heard, text)[0].values["wer"] > 0.5
    assert judged(["um"], ["um"])[0].values["wer"] == 0
    assert judged([], ["um"], normaliser="whisper")[0].missing["wer"] == "no words in the transcript"
    # It is English: in German um is a word.
    assert judged(["um"], ["um"], "de", normaliser="whisper")[0].values["wer"] == 0
    assert judged(["colour"], ["color"], "de", normaliser="whisper")[0].values["wer"] == 1


def test_the_protocol_tells_model_and_normaliser(ctc, whisper, ctc_folder):
    assert ctc.describe().startswith(f"{ctc_folder} (HubertForCTC), greedy")
    assert "without punctuation" in ctc.describe()
    assert "texts compared: Whisper's English normaliser, other languages lower case" in whisper.describe()
    other = make_judges(recogniser=str(ctc_folder), device="cpu", normaliser="whisper")[0]
    assert "Whisper's English normaliser without its list of spellings" in other.describe()
    with pytest.raises(XycodecError, match="no normaliser is called 'strict': there are plain and whisper"):
        Recognition(Typist(), "strict")


def test_a_model_that_does_not_recognise(tmp_path):
    with pytest.raises(CheckpointError, match="gives no CTC recogniser, it lacks the weights of lm_head"):
        make_judges(recogniser=str(save_x_vector(tmp_path)), device="cpu")
