"""`xycodec evaluate`, `probe` and `abx`: how good codecs are."""

import json
from pathlib import Path
from typing import Annotated

import typer

from xycodec.cli.options import AsJson, Device, Jobs, Model, Quiet, Search, require_extra
from xycodec.cli.terminal import clip_progress, print_abx, print_evaluation, print_probe, probe_progress, stage_progress
from xycodec.models.registry import DEFAULT

Data = Annotated[
    list[str],
    typer.Argument(
        help="Manifests (JSON lines or Lhotse cuts), folders of audio, or public corpora as they were unpacked: "
        "librispeech:test-clean:FOLDER, libritts:..., commonvoice:en/test:..., voxpopuli:en/test:..."
    ),
]
Codecs = Annotated[
    list[str],
    typer.Option(
        "--codec",
        "-c",
        help="What --model takes, or a baseline: encodec-8, dac-8, mimi-8, hf:ID, opus-6k, codec2-1200, ...; "
        "NAME@N uses N codebooks, NAME+K searches as --search K. Or folder:PATH, files that were decoded elsewhere, or "
        "MODULE:CLASS or FILE.py:CLASS, any class with encode and decode. Once for each codec.",
    ),
]
Layers = Annotated[int | None, typer.Option("--n-q", min=1, help="Use only the first codebooks.")]
Branch = Annotated[str | None, typer.Option(help="semantic, as X-Codec's paper measures (default: the quantizer).")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of whatever is drawn at random.")]
Folder = Annotated[Path, typer.Option("--output", "-o", help="Folder of everything; a second call goes on there.")]


def evaluate(
    data: Data,
    codec: Codecs,
    output: Folder,
    search: Search = 1,
    metrics: Annotated[str | None, typer.Option(help="Signal metrics, with commas (default: all).")] = None,
    similarity: Annotated[
        str | None, typer.Option(help="Speaker model: microsoft/wavlm-base-plus-sv, wavlm_large_finetune.pth, ...")
    ] = None,
    recogniser: Annotated[str | None, typer.Option(help="For WER and CER: openai/whisper-base, ...")] = None,
    language: Annotated[
        str, typer.Option(help="For WER and CER: of clips whose manifest names none, such as de or German.")
    ] = "en",
    opinion: Annotated[str | None, typer.Option(help="dnsmos, utmos, or both with a comma.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Number of clips, drawn at random by --seed.")] = None,
    seed: Seed = 0,
    overlap: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds that windows of long clips share (default: a third); papers: 0."),
    ] = None,
    expected: Annotated[
        Path | None, typer.Option(help="YAML file of published values: the report shows the differences.")
    ] = None,
    title: Annotated[str, typer.Option(help="Title of the report.")] = "Evaluation",
    device: Device = "auto",
    jobs: Jobs = 2,
    quiet: Quiet = False,
) -> None:
    """Compare codecs on the same clips: JSON, CSV, Markdown, and a page with audio and plots."""
    require_extra("eval", "lhotse")  # without PESQ or Praat their metrics are missing, and said to be
    from xycodec.eval.corpus import open_corpora
    from xycodec.eval.evaluate import evaluate as run
    from xycodec.eval.foreign import is_foreign
    from xycodec.eval.judges.choose import make_judges
    from xycodec.eval.metrics.quality import METERS
    from xycodec.eval.report.expected import read_expected
    from xycodec.eval.report.write import write_report

    codec = [one if search == 1 or is_foreign(one) else f"{one}+{search}" for one in codec]
    judges = make_judges(similarity, recogniser, opinion, device, language=language)
    signal = tuple(METERS) if metrics is None else tuple(metrics.split(","))
    measured = [*signal, *(name for judge in judges for name in judge.names)]
    # Here rather than in the report, which comes an hour later.
    table = None if expected is None else read_expected(expected, codec, measured)
    result = run(
        codec,
        open_corpora(data, limit=limit, seed=seed),
        output,
        metrics=signal,
        judges=judges,
        processes=jobs,
        device=device,
        overlap_s=overlap,
        title=title,
        stage=stage_progress(quiet),
    )
    values, source = (table.values, table.source) if table else ({}, "")
    written = write_report(result, output, audio=output, expected=values, expected_source=source)
    if not quiet:
        print_evaluation(result, str(written["report.html"]))
    if any(clip.error for one in result.codecs for clip in one.clips):
        raise typer.Exit(1)


def probe(
    train: Annotated[str, typer.Argument(help="What the probe learns from, as evaluate takes its data; with texts.")],
    dev: Annotated[str, typer.Argument(help="What it is measured on.")],
    output: Folder,
    model: Model = DEFAULT,
    n_q: Layers = None,
    branch: Branch = None,
    steps: Annotated[int, typer.Option(min=1, help="The paper's 400,000 take a GPU.")] = 400_000,
    batch: Annotated[int, typer.Option(min=1, help="Clips a step.")] = 4,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 1e-4,
    hidden: Annotated[
        int, typer.Option(min=1, help="Width of each direction of each LSTM, and of what it reads.")
    ] = 1024,
    dropout: Annotated[float, typer.Option(help="Share of outputs left out, 0 to 1.")] = 0.2,
    augment: Annotated[bool, typer.Option(help="SpecAugment.")] = True,
    evaluate_every: Annotated[int, typer.Option(min=1, help="Steps.")] = 2000,
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="Products in bfloat16, on a GPU.")] = False,
    seed: Seed = 0,
    cache: Annotated[Path | None, typer.Option(help="Folder of codes that several runs share.")] = None,
    expected: Annotated[float | None, typer.Option(help="A published WER to set beside it.")] = None,
    device: Device = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a small recogniser on a frozen codec's embeddings: its word error rate says what of the words is left."""
    require_extra("eval", "lhotse", "jiwer")
    from xycodec.eval.asr_probe.run import run_probe
    from xycodec.eval.asr_probe.training import ProbeConfig
    from xycodec.io.config import parse_config

    settings = {
        "n_q": n_q,
        "branch": branch,
        "steps": steps,
        "batch": batch,
        "lr": lr,
        "projection": hidden,
        "hidden": hidden,
        "dropout": dropout,
        "augment": augment,
        "evaluate_every": evaluate_every,
        "bfloat16": bfloat16,
        "seed": seed,
    }
    config = parse_config(ProbeConfig, settings, "probe")
    with probe_progress(quiet or as_json) as advance:
        result = run_probe(model, train, dev, output, config, device=device, cache=cache, advance=advance)
    if as_json:
        print(json.dumps(result.to_dict()))
    elif not quiet:
        print_probe(result, expected)


def abx(
    items: Annotated[Path, typer.Argument(help="Item file of Libri-light's form: file, onset, offset, phone, ...")],
    audio: Annotated[Path, typer.Argument(help="Folder with its recordings, at any depth.")],
    model: Model = DEFAULT,
    n_q: Annotated[
        list[int] | None, typer.Option("--n-q", min=1, help="Codebooks; again for more (default: 1, all).")
    ] = None,
    branch: Branch = None,
    seed: Seed = 0,
    max_group: Annotated[int, typer.Option(min=2, help="Items at most of a phone, context and speaker.")] = 10,
    max_x: Annotated[int, typer.Option(min=1, help="Other speakers at most for one group.")] = 5,
    cache: Annotated[Path | None, typer.Option(help="Folder that keeps the codes.")] = None,
    device: Device = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """ABX error of a codec's frames on phones, within and across speakers: 0 % is perfect, 50 % is chance."""
    from xycodec.eval.abx.run import run_abx

    with clip_progress("recordings", quiet or as_json) as advance:
        result = run_abx(
            model,
            items,
            audio,
            n_q=n_q,
            seed=seed,
            max_group=max_group,
            max_x=max_x,
            branch=branch,
            cache=cache,
            device=device,
            advance=advance,
        )
    if as_json:
        print(json.dumps(result.to_dict()))
    elif not quiet:
        print_abx(result)
