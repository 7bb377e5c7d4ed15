"""`xycodec say`: speech from text."""

from pathlib import Path
from typing import Annotated

import typer

from xycodec.cli.options import Device, Quiet, Threads, set_threads
from xycodec.cli.terminal import print_note
from xycodec.errors import CheckpointError


def say(
    text: Annotated[str, typer.Argument(help="What to say, in the symbols that the model knows.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The audio file to write.")],
    model: Annotated[
        Path | None,
        typer.Option("--model", "-m", envvar="XYCODEC_SAY", help="A run, a checkpoint or an exported folder."),
    ] = None,
    codec: Annotated[str | None, typer.Option(help="Where the model's codec is (default: the name it knows).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another one gives another reading.")] = 0,
    device: Device = "auto",
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Say a text with a trained text-to-speech model and the codec that it names."""
    if model is None:
        raise CheckpointError("no model to speak with: make one with runs/train_say.sh, then name it: --model FOLDER")
    from xycodec.io.audio import write_audio
    from xycodec.lm.say import Voice

    set_threads(threads)
    said = Voice(model, codec, device=device).say(text, seed=seed)
    write_audio(output, said.samples, said.sample_rate)
    if said.hit_cap:
        print_note("a sentence did not end by itself and was cut off")
    if not quiet:
        print(f"{output}: {len(said.samples) / said.sample_rate:.2f} s")
