import pytest
import torch
from tests.judging import SPECIAL, save_whisper, shake
from tests.reference import randomise
from tests.training import NoLooking

from xycodec.errors import CheckpointError, ConfigError
from xycodec.models.config import TowerConfig
from xycodec.models.xy_tokenizer.config import LanguageModelConfig
from xycodec.models.xy_tokenizer.semantic_branch import Tokens
from xycodec.models.xy_tokenizer.semantic_lm import load_semantic_lm
from xycodec.models.xy_tokenizer.whisper_lm import STATES_PER_FRAME, WhisperLM

ADAPTER = TowerConfig(d_model=32, layers=1, heads=4, ffn_dim=48)
INPUT_DIM, WINDOW = 24, 20
SENTENCES = ["the cat sat", "a dog ran after it", "fish swim deep"]
FRAMES, TEXTS = [7, WINDOW, 1, 0, 12], [*SENTENCES[:2], "x", SENTENCES[2], None]


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Folders of random Whispers: multilingual and of English alone."""
    made = {}
    for name, multilingual in (("multilingual", True), ("english", False)):
        torch.manual_seed(0)
        made[name] = save_whisper(tmp_path_factory.mktemp(name), multilingual, width=64)
    return made


def load(place, meta=False, **settings):
    config = LanguageModelConfig(source=str(place), adapter=ADAPTER, **settings)
    return load_semantic_lm(config, input_dim=INPUT_DIM, window_frames=WINDOW, meta=meta)


@pytest.fixture(params=["english", "multilingual"])
def model(request, folders):
    """A random Whisper whose adapter is random as well."""
    language = {"multilingual": "de"}.get(request.param)
    made = load(folders[request.param], language=language)
    assert isinstance(made, WhisperLM)
    randomise(made.adapter, seed=4)
    return made.eval()


def speech(*shape):
    return torch.randn(*shape, INPUT_DIM, generator=torch.Generator().manual_seed(1))


def whole(model):
    """The Whisper it is of, as Transformers knows it, encoder and all."""
    from transformers import WhisperForConditionalGeneration

    return WhisperForConditionalGeneration.from_pretrained(model.lm.config.name_or_path).eval()


def states(model, features):
    """The states that one clip's decoder attends to, (1, STATES_PER_FRAME x L, width)."""
    return model.adapter(features[None]).view(1, STATES_PER_FRAME * len(features), -1)


def by_hand(model, features, frames, texts):
    """Summed loss, right guesses and target tokens by the whole Whisper, one clip after the other."""
    whisper = whole(model)
    loss, right, count = torch.zeros(()), 0, 0
    for item, valid, text in zip(features, frames, texts, strict=True):
        if not valid or text is None:
            continue
        ids = model.tokenizer(" " + text + "<|endoftext|>", add_special_tokens=False).input_ids
        read = torch.tensor([model.prompt + ids[:-1]])
        out = whisper(decoder_input_ids=read, encoder_outputs=(states(model, item[:valid]),))
        logits = out.logits[0, len(model.prompt) - 1 :]
        loss = loss + torch.nn.functional.cross_entropy(logits, torch.tensor(ids), reduction="sum")
        right += int((logits.argmax(1) == torch.tensor(ids)).sum())
        count += len(ids)
    return loss, right, count


# ---- the loss --------------------------------------------------------------------------------------


def test_loss_is_what_the_whole_whisper_computes_clip_by_clip(model):
    features = speech(5, WINDOW)
    expected, right, count = by_hand(model, features, FRAMES, TEXTS)
    out = model(features, FRAMES, model.tokenize(TEXTS))
    assert out.loss.count.tolist() == out.accuracy.count.tolist() == [count]
    assert out.loss.total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert out.accuracy.total.item() == right
    assert expected.item() / count > 1  # nats: far from trivial


def test_gradient_passes_the_frozen_decoder_to_adapter_and_features(model):
    features = speech(5, WINDOW).requires_grad_()
    inputs = [features, *model.adapter.parameters()]
    expected = torch.autograd.grad(by_hand(model, features, FRAMES, TEXTS)[0], inputs)
    model.train()
    out = model(features, FRAMES, model.tokenize(TEXTS))
    assert not out.accuracy.total.requires_grad
    out.loss.total.sum().backward()
    for value, wanted in zip(inputs, expected, strict=True):
        assert (value.grad - wanted).norm() < 1e-4 * wanted.norm()
    assert features.grad[0, :7].abs().sum() > 0
    assert features.grad[0, 7:].abs().sum() == 0
    assert all(value.grad is None and not value.requires_grad for value in model.lm.parameters())
    assert not any(part.training for part in model.lm.modules())


def test_padding_and_neighbours_change_nothing(model):
    features = speech(3, WINDOW)
    frames, texts = [7, 11, 4], [SENTENCES[2], "a", SENTENCES[0]]
    joined = model(features, frames, model.tokenize(texts))
    heard = model.transcribe(features, frames, 8)
    single = [
        model(features[i : i + 1, : frames[i]], frames[i : i + 1], model.tokenize(texts[i : i + 1])) for i in range(3)
    ]
    assert joined.loss.count.item() == sum(part.loss.count.item() for part in single)
    torch.testing.assert_close(joined.loss.total, sum(part.loss.total for part in single))
    for row, valid in zip(features, frames, strict=True):
        row[valid:] = 1000.0
    again = model(features, frames, model.tokenize(texts))
    assert torch.equal(again.loss.total, joined.loss.total)
    assert model.transcribe(features, frames, 8) == heard


@pytest.mark.parametrize(
    ("frames", "texts"),
    [([5, 9], [None, None]), ([0, 0], SENTENCES[:2]), ([0, 5], [None, None]), ([0, 5], ["text", "  "])],
)
def test_nothing_to_transcribe_gives_a_gradient_of_zeros(model, frames, texts):
    features = speech(2, WINDOW).requires_grad_()
    out = model(features, frames, model.tokenize(texts))
    for mean in (out.loss, out.accuracy):
        assert mean.total.tolist() == mean.count.tolist() == [0.0]
        assert mean.value().item() == 0
    out.loss.total.sum().backward()
    for value in (features, *model.adapter.parameters()):
        assert torch.equal(value.grad, torch.zeros_like(value))


def test_loss_is_float32_under_autocast(model):
    features, tokens = speech(2, WINDOW), model.tokenize(SENTENCES[:2])
    exact = model(features, [5, 9], tokens)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(features, [5, 9], tokens)
    assert rough.loss.total.dtype == torch.float32
    assert rough.loss.total.item() == pytest.approx(exact.loss.total.item(), rel=0.03)
    assert rough.loss.total.item() != exact.loss.total.item()


def test_the_host_never_waits(model):
    features, tokens = speech(5, WINDOW).requires_grad_(), model.tokenize(TEXTS)
    with NoLooking(of_masks=0):
        model(features, FRAMES, tokens).loss.value().backward()
    assert features.grad.abs().sum() > 0


# ---- text ------------------------------------------------------------------------------------------


def test_a_transcript_begins_as_whisper_begins_it(folders):
    for name, language, marks in (
        ("english", None, ["<|startoftranscript|>", "<|notimestamps|>"]),
        ("english", "en", ["<|startoftranscript|>", "<|notimestamps|>"]),
        ("multilingual", "de", ["<|startoftranscript|>", "<|de|>", "<|transcribe|>", "<|notimestamps|>"]),
    ):
        model = load(folders[name], language=language)
        assert model.tokenizer.convert_ids_to_tokens(model.prompt) == marks
        tokens = model.tokenize(["cat ", None, " "])
        assert model.tokenizer.decode(tokens.ids[0]) == " cat<|endoftext|>"
        assert tokens.lengths == (5, 0, 0)


def test_it_writes_its_own_language_alone(folders):
    named = [None, "en", "EN", "English", "en-GB", "de", "German", "de_AT", "fr"]
    for folder, language, written in (
        ("english", None, named[:5]),
        ("multilingual", "de", [None, "de", "German", "de_AT"]),
    ):
        model = load(folders[folder], language=language)
        assert [name for name in named if model.writes(name)] == written


def test_long_texts_are_cut_at_the_setting_or_at_the_decoders_last_position(folders):
    """Two of 32 positions hold the prompt, and the last token is predicted but not read."""
    for most, kept in ((448, 31), (9, 9)):
        model = load(folders["english"], max_tokens=most)
        tokens = model.tokenize(["x" * 100, "x" * (kept - 2), "x" * (kept - 1)])
        assert tokens.lengths == (kept, kept, kept)
        ends = [int(row[-1]) == model.tokenizer.eos_token_id for row in tokens.ids]
        assert ends == [False, True, False]
        assert model(speech(3, 4), [4, 4, 4], tokens).loss.count.item() == 3 * kept
    assert len(load(folders["english"]).transcribe(speech(1, 4), [4], 1000)[0].encode()) <= 31 * 4


# ---- listening -------------------------------------------------------------------------------------


@torch.no_grad()
def greedy(model, features, steps):
    """Token ids, one whole forward pass for each, up to the end."""
    whisper, ids = whole(model), []
    while len(ids) < steps:
        read = torch.tensor([model.prompt + ids])
        logits = whisper(decoder_input_ids=read, encoder_outputs=(states(model, features),)).logits
        best = int(logits[0, -1].argmax())
        if best == model.tokenizer.eos_token_id:
            break
        ids.append(best)
    return ids


def test_transcripts_are_the_likeliest_tokens(model):
    features, frames = speech(4, WINDOW), [9, 0, WINDOW, 2]
    expected = [greedy(model, item[:count], 8) if count else [] for item, count in zip(features, frames, strict=True)]
    texts = model.transcribe(features, frames, max_new_tokens=8)
    assert texts == [model.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in expected]
    assert len({tuple(ids) for ids in expected}) > 2
    for index, count in enumerate(frames):
        assert model.transcribe(features[index : index + 1, : max(count, 1)], [count], 8) == [texts[index]]
    tokens = Tokens(torch.tensor([expected[0]]), (len(expected[0]),))
    assert model(features[:1], frames[:1], tokens).accuracy.value().item() == 1


def test_nothing_heard_nothing_written(model):
    assert model.transcribe(speech(2, 3), [0, 0], 8) == ["", ""]


def test_clips_are_learned_by_heart(model):
    """Only the adapter learns, and then the frozen decoder writes the texts."""
    before = {key: value.clone() for key, value in model.lm.state_dict().items()}
    randomise(model.adapter, seed=6)
    features, frames = speech(3, WINDOW), [7, WINDOW, 12]
    tokens = model.train().tokenize(SENTENCES)
    optimizer = torch.optim.AdamW(model.adapter.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.02, 250)
    for _ in range(250):
        loss = model(features, frames, tokens).loss.value()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    assert loss.item() < 0.1
    assert model.eval().transcribe(features, frames, 30) == SENTENCES
    assert all(torch.equal(value, before[key]) for key, value in model.lm.state_dict().items())


# ---- loading ---------------------------------------------------------------------------------------


def test_meta_model_has_the_parameters_and_no_values(folders):
    real, planned = (load(folders["english"], meta=meta) for meta in (False, True))
    assert {value.device.type for value in planned.parameters()} == {"meta"}
    shapes = [
        {name: (value.shape, value.requires_grad) for name, value in model.named_parameters()}
        for model in (real, planned)
    ]
    assert shapes[0] == shapes[1]
    assert planned.prompt == real.prompt
    assert not any("encoder." in name for name in shapes[0])


def test_loading_says_nothing(folders, capfd):
    load(folders["english"])
    assert capfd.readouterr() == ("", "")


def without_decoder(place):
    from transformers import WhisperForAudioClassification

    WhisperForAudioClassification.from_pretrained(place).save_pretrained(place)


def another_tokenizer(place):
    from transformers import WhisperTokenizer

    vocabulary = {token: number for number, token in enumerate(["a", "b", *SPECIAL[:-1]])}
    WhisperTokenizer(vocab=vocabulary).save_pretrained(place)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda place: (place / "generation_config.json").unlink(), "gives no generation configuration"),
        (lambda place: (place / "model.safetensors").write_bytes(b"nothing"), "gives no Whisper with a decoder"),
        (without_decoder, "not a Whisper with a decoder, it lacks the weights of"),
        (another_tokenizer, "tokenizer has no <|notimestamps|>"),
    ],
)
def test_what_is_no_whisper_is_told_in_one_line(tmp_path, damage, told):
    save_whisper(tmp_path, multilingual=False)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=told) as raised:
        load(tmp_path)
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("multilingual", {}, "writes 2 languages, give lm.language"),
        ("multilingual", {"language": "german"}, "knows no language 'german'"),
        ("english", {"language": "de"}, "writes English alone, not 'de'"),
        ("english", {"prompt": "write:"}, "lm.prompt: a Whisper's transcripts begin with tokens of its own"),
        ("english", {"like_tokens": True}, "lm.like_tokens: a Whisper reads speech across"),
    ],
)
def test_settings_that_are_not_for_it_are_told_in_one_line(folders, name, settings, told):
    for meta in (False, True):
        with pytest.raises(ConfigError, match=told) as raised:
            load(folders[name], meta, **settings)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("meta", [False, True])
def test_a_window_with_more_states_than_the_decoder_knows_is_told_at_once(folders, meta):
    config = LanguageModelConfig(source=str(folders["english"]), adapter=ADAPTER)
    load_semantic_lm(config, input_dim=INPUT_DIM, window_frames=25, meta=meta)
    with pytest.raises(ConfigError, match="knows 100 states of speech, a window has 104"):
        load_semantic_lm(config, input_dim=INPUT_DIM, window_frames=26, meta=meta)


def test_a_language_is_for_whisper_alone(tmp_path):
    from tests.training import save_lm

    with pytest.raises(ConfigError, match=r"lm.language: only a Whisper is told"):
        load(save_lm(tmp_path / "lm"), language="en", max_tokens=40)


def test_a_random_whisper_depends_on_what_it_hears(folders):
    """Else none of the above would mean anything."""
    model = load(folders["english"]).eval()
    shake(model.adapter, seed=1)
    losses = [model(speech(2, 8)[i : i + 1], [8], model.tokenize(["cat"])).loss.total.item() for i in range(2)]
    assert abs(losses[0] - losses[1]) > 1e-3
