"""Every block of README and docs is run if it can run here, and checked against the program if it cannot."""

import re
import tomllib

import av
import numpy as np
import pytest
import soundfile as sf
import typer.main
import yaml
from tests.documents import PAGES, ROOT, blocks, commands, inline_code, read
from tests.io.tokens.stores import clip, description
from tests.serve.servers import running

from xycodec.checkpoints.load import load_codec
from xycodec.cli.app import app
from xycodec.io.audio import read_audio
from xycodec.io.tokens.write import write_store
from xycodec.train.recipe_file import load_recipe

LANGUAGES = {"sh", "python", "yaml", "text"}
RUNS = {"models", "info", "encode", "decode", "roundtrip", "convert", "data import"}
"""Commands that end within seconds here, with the stand-ins below."""
SYSTEM = {"apt-get", "bash", "curl", "docker", "git", "pip", "pre-commit", "ray"}
SERVER = "http://127.0.0.1:8765"
"""The address of a server that a block of Python asks."""
PROGRAM = typer.main.get_command(app)


# commands as they are written


def parse(words):
    """Check the words after `xycodec` as the program would, without running it; the command's name.

    Raises click's UsageError for an unknown command or option, a missing argument or a value of another type.
    """
    command, name, rest = PROGRAM, [], list(words)
    while hasattr(command, "commands"):
        if not rest or rest[0] not in command.commands:
            raise ValueError(f"no command {' '.join(['xycodec', *name, *rest[:1]])}")
        name.append(rest.pop(0))
        command = command.commands[name[-1]]
    context = command.make_context(" ".join(name), rest)
    if name == ["train"] and not context.params["config"].name.isupper():
        load_recipe(context.params["config"], tuple(context.params["overrides"] or ()))
    return " ".join(name)


def check(words):
    """Check one command of a shell block against what it calls."""
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    program = words[0].removeprefix(".venv/bin/")
    if program == "xycodec":
        parse(words[1:])
    elif program == "torchrun":
        assert words[words.index("-m") + 1] == "xycodec"
        parse(words[words.index("-m") + 2 :])
    elif program == "make":
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert set(words[1:]) <= targets
    elif program == "python":
        assert (ROOT / words[1]).is_file()
    elif "/" in program:
        assert (ROOT / program).is_file()
        for word in words[1:]:
            if word.endswith(".yaml"):
                load_recipe(word)
    else:
        assert program in SYSTEM
        if words[:2] == ["pip", "install"]:
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            named = [extra for word in words for extra in re.findall(r"xycodec\[(\w+)\]", word)]
            assert set(named) <= set(extras)


def test_every_block_is_of_a_language_that_is_checked():
    assert {str(block): block.language for block in blocks() if block.language not in LANGUAGES} == {}


@pytest.mark.parametrize("block", blocks("sh"), ids=str)
def test_commands_are_as_the_program_takes_them(block):
    for words in commands(block.text):
        try:
            check(words)
        except Exception as error:
            pytest.fail(f"{block}: {' '.join(words)}: {type(error).__name__}: {error}")


@pytest.mark.parametrize("line", [
    "xycodec encoda a.wav", "xycodec encode a.wav --modell x", "xycodec encode", "xycodec encode a.wav --jobs many",
    "xycodec data imports a b", "xycodec train xy_tokenizer/pretrained.yaml", "make tests", "runs/none.sh",
    "xycodec train xy_tokenizer/pretrain.yaml stepz=3", "pip install 'xycodec[trian]'", "frobnicate",
    "runs/small.sh prepare configs/xy_tokenizer/xy_mini/decoder.yaml", "torchrun -m xycodec trane RECIPE",
])  # fmt: skip
def test_a_stale_command_is_seen(line):
    with pytest.raises((Exception, pytest.fail.Exception)):
        check(commands(line)[0])


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_commands_in_passing_have_known_names_and_options(page):
    """`xycodec export --transformers` in a sentence may leave arguments out, but not invent options."""
    for code in inline_code(page):
        words = [word for line in commands(code) for word in line] if code.startswith("xycodec ") else []
        command, rest = PROGRAM, words[1:]
        while rest and hasattr(command, "commands") and rest[0] in command.commands:
            command = command.commands[rest.pop(0)]
        options = {option for parameter in command.params for option in parameter.opts} | {"--help", "-h"}
        unknown = [word for word in rest if word.startswith("-") and word != "-" and word not in options]
        assert unknown == [], f"{page}: {code}"
        assert not (rest and hasattr(command, "commands") and rest[0].isalpha()), f"{page}: {code}"


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_settings_are_yaml(block):
    assert isinstance(yaml.safe_load(block.text), dict)


# blocks that run


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with the files that the pages name, made of the bundled sample."""
    speech, rate = sf.read(ROOT / "src/xycodec/assets/fox.flac", frames=32_000, dtype="float32")
    for name in ("talk.wav", "talk.mp3", "podcast.flac", "corpus/talk.flac", "speech/a.flac", "speech/b.flac"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        sf.write(tmp_path / name, speech, rate)
    with av.open(tmp_path / "memo.m4a", "w") as output:
        stream = output.add_stream("aac", rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(speech[None], format="fltp", layout="mono")
        frame.sample_rate = rate
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    line = '{"audio": "corpus/talk.flac", "duration": 2.0, "speaker": "a", "text": "the fox"}\n'
    (tmp_path / "corpus.jsonl").write_text(line)
    about = description(n_q=8, codebook_size=1024)
    for store in ("tokens", "more"):
        write_store(tmp_path / store, about, (clip(number, about, frames=100) for number in range(30)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("XYCODEC_MODEL", raising=False)
    return tmp_path


def runnable(block):
    """The commands of a block that run here, with the bundled model and one process in place of what they name."""
    found = []
    for words in commands(block.text):
        if words[0] == "xycodec" and parse(words[1:]) in RUNS:
            words = ["xy-mini" if re.match(r"(fdugyt|exp)/", word) else word for word in words[1:]]
            if "-j" in words:
                words[words.index("-j") + 1] = "1"
            found.append(words)
    return found


@pytest.mark.parametrize("block", [block for block in blocks("sh") if runnable(block)], ids=str)
def test_commands_run_in_the_order_of_the_page(block, desk, xycodec):
    for words in runnable(block):
        code, _, err = xycodec(*words)
        assert code == 0, f"{block}: {' '.join(words)}: {err}"


def run_python(text):
    """Run a block as a program of its own, the published model replaced by the bundled one; what it has defined."""
    names = {"__name__": "__main__"}
    exec(compile(text.replace("fdugyt/XY_Tokenizer", "xy-mini"), "block", "exec"), names)
    return names


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # those of Ray Serve
@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_runs(block, desk):
    if SERVER not in block.text:
        run_python(block.text)
        return
    with running(load_codec("xy-mini", device="cpu")) as (url, _):
        run_python(block.text.replace(SERVER, url))


def test_the_readme_goes_from_file_to_file_in_six_lines(desk):
    (block,) = [block for block in blocks("python") if block.page == "README.md"]
    lines = [line for line in block.text.splitlines() if line]
    assert len(lines) <= 6
    (desk / "talk.wav").unlink()
    run_python(block.text)
    original, decoded = read_audio(desk / "talk.mp3"), read_audio(desk / "talk.wav")
    assert len(decoded) == len(original)
    assert np.abs(decoded).max() > 0.01


def test_pages_have_blocks_that_run():
    """The checks above are of something."""
    run = [words for block in blocks("sh") for words in runnable(block)]
    assert {"roundtrip", "encode", "decode", "models", "info"} <= {words[0] for words in run}
    assert len(blocks("python")) >= 2
    assert "## Speed" in read("README.md")
