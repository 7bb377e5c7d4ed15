"""`xycodec evaluate-tts` and `evaluate-generation`: how good is what a language model of codes makes."""

from pathlib import Path
from typing import Annotated

import typer

from xycodec.cli.options import Device, Quiet, require_extra
from xycodec.cli.terminal import print_evaluation, stage_progress

Folder = Annotated[Path, typer.Option("--output", "-o", help="Folder of everything; a second call goes on there.")]
Expected = Annotated[Path | None, typer.Option(help="YAML file of published values: the report shows the differences.")]


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
