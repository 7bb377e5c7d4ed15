"""`xycodec train` and `export`: from a recipe to weights."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from xycodec.cli.options import Quiet, Storage, Store, Threads, require_extra, set_threads
from xycodec.cli.terminal import print_plan


def train(
    config: Annotated[Path, typer.Argument(help="A YAML file, or a bundled recipe: xy_tokenizer/pretrain.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="steps=1000 data.workers=2 ...")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's newest checkpoint.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print sizes, memory and steps per epoch, then stop.")
    ] = False,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Train a codec or a language model. Several processes: torchrun --nproc-per-node 8 -m xycodec train CONFIG."""
    require_extra("train", "lhotse", "transformers", "tensorboard", "jiwer")
    from xycodec.train.recipe_file import load_recipe

    recipe = load_recipe(config, tuple(overrides or ()))
    set_threads(threads)
    if dry_run:
        from xycodec.train.plan import plan_run

        print_plan(plan_run(recipe))
        return
    from xycodec.train import run

    ended = run.train(recipe, resume=resume, quiet=quiet)
    if not quiet and os.environ.get("RANK", "0") == "0":
        state = "finished" if ended.finished else "stopped, --resume goes on"
        print(f"{recipe.output}: {state} at step {ended.step} of {recipe.steps}")


def export(
    run: Annotated[Path, typer.Argument(help="A training run, for its newest checkpoint, or one checkpoint.")],
    folder: Annotated[Path, typer.Argument(help="A new folder: what weights and --model may name instead of RUN.")],
    part_mb: Annotated[int, typer.Option(min=1, help="Files of so many MB of tensors at most.")] = 15,
    store: Store = Storage.float32,
    transformers: Annotated[
        bool,
        typer.Option("--transformers", help="Of stage hubert: what HubertModel.from_pretrained reads, in float32."),
    ] = False,
    nar: Annotated[
        Path | None, typer.Option(help="Of stage valle_ar: the run of stage valle_nar to join it with.")
    ] = None,
) -> None:
    """Write a run's weights without its optimizers, to go on from elsewhere."""
    import torch

    from xycodec.checkpoints.weights import MB
    from xycodec.train.export import export_transformers, export_valle, export_weights

    parts: Any = {"part_bytes": part_mb * MB, "dtype": getattr(torch, store.value)}
    if transformers:
        made = export_transformers(run, folder)
    elif nar is not None:
        made = export_valle(run, nar, folder, **parts)
    else:
        made = export_weights(run, folder, **parts)
    print(f"{folder}: step {made.step:,}, {made.bytes / MB:,.1f} MB in {len(made.files)} files")
