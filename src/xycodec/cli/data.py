"""`xycodec data`: corpora for training."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from xycodec.cli.options import Device, Jobs, Quiet, require_extra
from xycodec.cli.terminal import clip_progress, token_progress
from xycodec.errors import ConfigError
from xycodec.io.rate import SPEECH_RATE

data_app = typer.Typer(help="Corpora for training.", no_args_is_help=True)


@data_app.command(name="import")
def data_import(
    manifest: Annotated[Path, typer.Argument(help="JSON lines with audio, duration, speaker, text, ...")],
    cuts: Annotated[Path, typer.Argument(help="The Lhotse manifest to write: .jsonl.gz or .jsonl.")],
    quiet: Quiet = False,
) -> None:
    """Turn a JSON-lines manifest into Lhotse cuts."""
    require_extra("train", "lhotse")
    from xycodec.data.manifest import import_manifest

    report = import_manifest(manifest, cuts)
    for name, reason in report.left_out:
        print(f"left out: {name}: {reason}", file=sys.stderr)
    if not quiet:
        print(f"{cuts}: {report.clips:,} clips, {report.seconds / 3600:.2f} h, {len(report.left_out)} left out")


@data_app.command(name="pack")
def data_pack(
    cuts: Annotated[str, typer.Argument(help="What data.train may name: a Lhotse manifest, a Shar folder, tars.")],
    folder: Annotated[Path, typer.Argument(help="A new folder, for cuts.jsonl.gz and the WAV files it points into.")],
    rate: Annotated[int, typer.Option(help="Of all clips, Hz; those recorded below it are left out.")] = SPEECH_RATE,
    jobs: Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Processes (default: every core).")] = None,
    quiet: Quiet = False,
) -> None:
    """Decode a corpus once, so that training need not: 115 MB an hour at 16 kHz."""
    require_extra("train", "lhotse")
    from xycodec.data import pack
    from xycodec.data.config import SourceConfig
    from xycodec.data.sources import open_source
    from xycodec.io.cores import available_cores

    source = open_source(SourceConfig(path=cuts))
    with clip_progress("clips", quiet) as advance:
        processes = jobs or available_cores()
        report = pack.pack(source, folder, rate=rate, processes=processes, advance=advance)
    for line in report.left_out:
        print(f"left out: {line}", file=sys.stderr)
    if not quiet:
        hours = f"{report.seconds / 3600:.2f} h in {report.files:,} files"
        print(f"{folder / pack.MANIFEST}: {report.clips:,} clips, {hours}, {len(report.left_out)} left out")


@data_app.command(name="targets")
def data_targets(
    cuts: Annotated[str, typer.Argument(help="What data.train may name: a Lhotse manifest, a Shar folder, tars.")],
    folder: Annotated[Path, typer.Argument(help="Where cuts.jsonl.gz and the labels go; a call goes on with it.")],
    codec: Annotated[str, typer.Option(help="Any codec, as evaluate names it.")] = "encodec",
    layers: Annotated[int, typer.Option(min=1, help="Its first codebooks.")] = 1,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Label every clip with a codec's codes, which stage hubert learns to predict (default: EnCodec, 24 kHz)."""
    require_extra("train", "lhotse", "transformers")
    from xycodec.baselines.open import open_codec
    from xycodec.data.config import SourceConfig
    from xycodec.data.sources import open_source
    from xycodec.tokenize.targets import MANIFEST, extract_targets

    source = open_source(SourceConfig(path=cuts))
    opened = open_codec(codec, device=device)
    with token_progress(quiet) as bar:
        report = extract_targets(source, opened, folder, layers=layers, advance=bar.advance)
    for line in report.left_out:
        print(f"left out: {line}", file=sys.stderr)
    if not quiet:
        counts = f"{report.clips:,} clips ({report.made:,} new), {report.seconds / 3600:.2f} h"
        print(f"{folder / MANIFEST}: {counts}, {len(report.left_out)} left out")
        print(f"{layers} x {opened.codebook_size} labels, {opened.frame_rate:g} frames a second")


@data_app.command(name="synthesise")
def data_synthesise(
    folder: Annotated[Path, typer.Argument(help="Where audio/*.flac and cuts.jsonl.gz go.")],
    hours: Annotated[float, typer.Option(help="Hours of speech; what is there already is kept.")],
    seed: Annotated[int, typer.Option(help="Of sentences and voices.")] = 0,
    voice: Annotated[
        str | None, typer.Option(help="One voice of flite says all: slt, rms, awb or kal16 (default: many voices).")
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="A file of sentences, one a line, for that voice to say too.")
    ] = None,
    jobs: Jobs = 2,
    quiet: Quiet = False,
) -> None:
    """Make speech with transcripts, with the programs flite and espeak-ng."""
    require_extra("train", "lhotse")
    from xycodec.data.synthetic.synthesise import CUTS, synthesise

    try:
        lines = [] if texts is None else texts.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ConfigError(f"{texts}: not text in UTF-8: save it so") from None
    given = [line.strip() for line in lines if line.strip()]
    with clip_progress(f"clips of {hours:g} h", quiet) as advance:
        report = synthesise(folder, hours=hours, seed=seed, jobs=jobs, voice=voice, texts=given, advance=advance)
    for name, reason in report.left_out:
        print(f"left out: {name}: {reason}", file=sys.stderr)
    if not quiet:
        counts = f"{report.clips:,} clips ({report.made:,} new), {report.seconds / 3600:.2f} h"
        print(f"{folder / CUTS}: {counts}, {len(report.left_out)} left out")


@data_app.command(name="transcribe")
def data_transcribe(
    cuts: Annotated[str, typer.Argument(help="What data.train may name: a Lhotse manifest, a Shar folder, tars.")],
    target: Annotated[Path, typer.Argument(help="The manifest to write: .jsonl.gz or .jsonl; a call goes on with it.")],
    recogniser: Annotated[
        str, typer.Option(help="A Whisper or CTC model of Transformers: a hub id or a folder.")
    ] = "openai/whisper-tiny.en",
    language: Annotated[str, typer.Option(help="Clips that name another one, or none, are left as they are.")] = "en",
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Give clips without text what a recogniser hears; their cuts say that a machine wrote it."""
    require_extra("train", "lhotse", "transformers")
    from xycodec.data.config import SourceConfig
    from xycodec.data.sources import open_source
    from xycodec.eval.judges.recognition import load_transcriber
    from xycodec.eval.transcribe import transcribe_cuts

    source = open_source(SourceConfig(path=cuts))
    transcriber = load_transcriber(recogniser, device)
    with clip_progress("clips", quiet) as advance:
        report = transcribe_cuts(source, transcriber, target, name=recogniser, language=language, advance=advance)
    for line in report.left_out:
        print(f"without text: {line}", file=sys.stderr)
    if not quiet:
        texts = f"{report.transcribed:,} of them with a text of {recogniser} ({report.made:,} heard now)"
        print(f"{target}: {report.clips:,} clips, {texts}, {report.seconds / 3600:.2f} h")


@data_app.command(name="lm")
def data_lm(
    cuts: Annotated[Path, typer.Argument(help="A Lhotse manifest whose texts it learns its tokens from.")],
    folder: Annotated[Path, typer.Argument(help="A new folder: what lm.source names in a recipe.")],
    vocabulary: Annotated[int, typer.Option(min=257, help="Tokens, at most.")] = 1000,
    hidden: Annotated[int, typer.Option(min=16, help="Width.")] = 256,
    layers: Annotated[int, typer.Option(min=1, help="Layers.")] = 4,
    heads: Annotated[int, typer.Option(min=1, help="Attention heads.")] = 4,
) -> None:
    """Make a small random language model to train along (lm.trainable=true), where no pretrained one is at hand."""
    require_extra("train", "lhotse", "transformers")
    from xycodec.data.config import SourceConfig
    from xycodec.data.sources import open_source
    from xycodec.train.init.small_lm import make_small_lm

    if hidden % (2 * heads):
        raise typer.BadParameter(f"{hidden} is no even multiple of {heads} heads", param_hint="--hidden")
    texts = (words.text or "" for cut in open_source(SourceConfig(path=str(cuts))) for words in cut.supervisions)
    count = make_small_lm(folder, texts, vocabulary=vocabulary, hidden=hidden, layers=layers, heads=heads)
    print(f"{folder}: {count:,} parameters with random weights; set lm.source={folder} and lm.trainable=true")
