"""`xycodec evaluate-tts` and `evaluate-generation`: how good is what a language model of codes makes."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from xycodec.cli.options import Device, Quiet, require_extra
from xycodec.cli.terminal import print_evaluation, stage_progress
from xycodec.errors import XycodecError

Folder = Annotated[Path, typer.Option("--output", "-o", help="Folder of everything; a second call goes on there.")]
Expected = Annotated[Path | None, typer.Option(help="YAML file of published values: the report shows the differences.")]


class PromptSetting(StrEnum):
    """Speech that a text-to-speech model is prompted with."""

    continual = "continual"
    cross = "cross"


def evaluate_tts(
    test: Annotated[
        str,
        typer.Argument(
            help="Test list, JSON lines with id, text, audio; or a corpus as evaluate takes it, such as "
            "librispeech:test-clean:FOLDER, of which the utterances of 4 to 10 s are taken."
        ),
    ],
    output: Folder,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="A trained text-to-speech model, FOLDER or NAME=FOLDER. Again for more."),
    ] = None,
    generated: Annotated[
        list[str] | None,
        typer.Option(help="Speech made elsewhere: FOLDER or NAME=FOLDER of files named by id. Again for more."),
    ] = None,
    codec: Annotated[
        list[str] | None,
        typer.Option("--codec", "-c", help="A model's codec, where its name in the model does not lead to it."),
    ] = None,
    setting: Annotated[
        PromptSetting,
        typer.Option(help="continual: the utterance's first 3 s; cross: another utterance of the speaker."),
    ] = PromptSetting.continual,
    seeds: Annotated[str, typer.Option(help="Of sampling, with commas.")] = "0,1,2",
    ar_only: Annotated[bool, typer.Option("--ar-only", help="Only the first codebook: there is no NAR yet.")] = False,
    similarity: Annotated[
        str | None,
        typer.Option(help="Speaker model: wavlm_large_finetune.pth (the papers'), microsoft/wavlm-base-plus-sv, ..."),
    ] = None,
    recogniser: Annotated[
        str | None, typer.Option(help="For WER and CER: facebook/hubert-large-ls960-ft (the papers'), a Whisper, ...")
    ] = None,
    opinion: Annotated[str | None, typer.Option(help="utmos, dnsmos, or both with a comma.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Number of utterances: the first by id.")] = None,
    expected: Expected = None,
    title: Annotated[str, typer.Option(help="Title of the report.")] = "Text to speech",
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Let text-to-speech models speak a test list: WER, CER, speaker similarity and opinion, over several seeds."""
    require_extra("eval", "lhotse")
    from xycodec.eval.judges.choose import make_judges
    from xycodec.eval.report.expected import read_expected
    from xycodec.eval.report.write import write_report
    from xycodec.eval.tts.run import audio_file
    from xycodec.eval.tts.run import evaluate_tts as run
    from xycodec.eval.tts.sources import row_names
    from xycodec.eval.tts.speech import Setting
    from xycodec.eval.tts.utterances import open_utterances

    models, made = _named_folders(model or ()), _named_folders(generated or ())
    judges = make_judges(similarity, recogniser, opinion, device)
    measured = [name for judge in judges for name in judge.names]
    table = None if expected is None else read_expected(expected, row_names(models, made, ar_only), measured)
    utterances = open_utterances(test)
    result = run(
        sorted(utterances, key=lambda one: one.id)[:limit],
        output,
        models=models,
        generated=made,
        codecs=codec or (),
        load=_loader(device) if models else None,
        setting=Setting(setting.value),
        seeds=_numbers(seeds),
        first_codebook_only=ar_only,
        judges=judges,
        device=device,
        title=title,
        stage=stage_progress(quiet),
    )
    values, source = (table.values, table.source) if table else ({}, "")
    written = write_report(result, output, audio=audio_file(output), expected=values, expected_source=source)
    if not quiet:
        print_evaluation(result, str(written["report.html"]))
    if any(clip.error for one in result.codecs for clip in one.clips):
        raise typer.Exit(1)


def _loader(device: str) -> Any:
    """A function that loads a language model's folder."""
    from xycodec.lm import load

    return lambda folder: load(folder, device=device)


def _named_folders(given: Sequence[str]) -> dict[str, Path]:
    """`NAME=FOLDER` or `FOLDER`, whose name is its last part, by name."""
    folders: dict[str, Path] = {}
    for text in given:
        name, equals, path = text.partition("=")
        folder = Path(path if equals else text)
        name = name if equals else folder.resolve().name
        if name in folders:
            raise XycodecError(f"{text}: the name {name} is taken: give NAME=FOLDER")
        folders[name] = folder
    return folders


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise XycodecError(f"{text!r}: seeds are whole numbers with commas between, such as 0,1,2") from None


def evaluate_generation(
    generated: Annotated[Path, typer.Argument(help="Folder of generated audio.")],
    reference: Annotated[Path, typer.Argument(help="Folder of true audio.")],
    output: Folder,
    panns: Annotated[
        Path | None, typer.Option(help="For FD, KAD and IS: Cnn14_16k_mAP=0.438.pth, or Cnn14_mAP=0.431.pth (32 kHz).")
    ] = None,
    vggish: Annotated[Path | None, typer.Option(help="For FAD: vggish-10086976.pth, torchvggish's layout.")] = None,
    mert: Annotated[str | None, typer.Option(help="For FD on layer 9: m-a-p/MERT-v1-95M, or a folder.")] = None,
    clap: Annotated[str | None, typer.Option(help="For the CLAP score: laion/clap-htsat-unfused, ...")] = None,
    captions: Annotated[
        Path | None, typer.Option(help="JSON lines with id, a clip's path without suffix, and caption.")
    ] = None,
    keep_level: Annotated[
        bool, typer.Option("--keep-level", help="CLAP hears clips at their level, not at peak 1.")
    ] = False,
    log_mel_statistics: Annotated[
        bool, typer.Option("--log-mel-statistics", help="A distance without any network, for trials: no FAD.")
    ] = False,
    expected: Expected = None,
    title: Annotated[str, typer.Option(help="Title of the report.")] = "Generation",
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Compare generated audio with a reference set: FD, FAD, KAD, IS and CLAP score, in the page of `evaluate`."""
    require_extra("eval", "scipy", "lhotse")
    from xycodec.eval.generation.choose import make_embedders
    from xycodec.eval.generation.run import GENERATED
    from xycodec.eval.generation.run import evaluate_generation as run
    from xycodec.eval.generation.sets import AudioSet, read_captions
    from xycodec.eval.report.expected import read_expected
    from xycodec.eval.report.write import write_report
    from xycodec.eval.results import ORIGINAL

    sets = {GENERATED: AudioSet(generated), ORIGINAL: AudioSet(reference)}
    texts = None if captions is None else read_captions(captions)
    embedders = make_embedders(
        panns=panns,
        vggish=vggish,
        mert=mert,
        clap=clap,
        log_mel_statistics=log_mel_statistics,
        keep_level=keep_level,
        device=device,
    )
    measured = [metric for embedder in embedders for metric in embedder.metrics]
    table = None if expected is None else read_expected(expected, [*sets], measured)
    result = run(
        sets[GENERATED],
        sets[ORIGINAL],
        output,
        embedders,
        captions=texts,
        device=device,
        title=title,
        stage=stage_progress(quiet),
    )
    values, source = (table.values, table.source) if table else ({}, "")
    written = write_report(
        result,
        output,
        audio=lambda name, clip: sets[name].files.get(clip, output / "no such clip"),
        expected=values,
        expected_source=source,
    )
    if not quiet:
        print_evaluation(result, str(written["report.html"]))
    if any(section.title == "Left out" for section in result.sections):
        raise typer.Exit(1)
