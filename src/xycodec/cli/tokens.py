"""`xycodec tokens`: looking at stores of tokens, and making others of them."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from xycodec.cli.options import AsJson, Device, Quiet
from xycodec.cli.terminal import clip_progress, print_error, print_note, print_table
from xycodec.errors import XycodecError

tokens_app = typer.Typer(help="Stores of tokens.", no_args_is_help=True)

Store = Annotated[Path, typer.Argument(help="A store that xycodec tokenize made.")]
ShardClips = Annotated[int, typer.Option(min=1, help="Clips of a shard.")]


@tokens_app.command(name="stats")
def tokens_stats(
    store: Store,
    clips: Annotated[int, typer.Option(min=1, help="Random clips to look at.")] = 10_000,
    picture: Annotated[Path | None, typer.Option(help="A picture to draw: .png, .svg or .pdf.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show how often codes are used, and how predictable the next one is."""
    from xycodec.io.tokens.read import TokenStore
    from xycodec.tokenize.stats import draw_stats, token_stats

    opened = TokenStore(store)
    stats = token_stats(opened, clips)
    if picture is not None:
        draw_stats(stats, picture)
    if as_json:
        print(json.dumps({key: value for key, value in asdict(stats).items() if key != "counts"}))
        return
    names = ("codebook", "used", "entropy", "given frame before", "given codebook below", "repeats")
    rows = [
        (
            str(number),
            f"{book.usage:.1%}",
            f"{book.entropy:.2f}",
            f"{book.given_previous:.2f}",
            "--" if book.given_lower is None else f"{book.given_lower:.2f}",
            f"{book.repeats:.1%}",
        )
        for number, book in enumerate(stats.books, 1)
    ]
    title = (
        f"{opened.description.model}: {stats.clips:,} of {len(opened):,} clips, {stats.frames:,} frames, bits a code"
    )
    print_table(title, [(name, "right") for name in names], rows)
    print(
        f"kbit/s: plain {stats.bitrate / 1000:.3f}, entropy {stats.entropy_bitrate / 1000:.3f}, "
        f"bigram on other clips {stats.ngram_bitrate / 1000:.3f}"
    )
    if stats.bpe_ratio is not None:
        print(f"BPE over flattened codes: {stats.bpe_ratio:.2f} codes a token, on other clips")


@tokens_app.command(name="show")
def tokens_show(
    store: Store,
    clip: Annotated[str, typer.Argument(help="The id of a clip, or its number.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Decode it to this audio or .xyc file.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="The model, if not by its name.")] = None,
    device: Device = "auto",
) -> None:
    """Print what is known of a clip and its codes, or decode it."""
    from xycodec.io.tokens.read import TokenStore

    opened = TokenStore(store)
    by_number = clip not in opened and clip.isdecimal()
    if by_number and int(clip) >= len(opened):
        raise XycodecError(f"{store}: has no clip called {clip}, and its numbers end at {len(opened) - 1}")
    number = int(clip) if by_number else opened.number_of(clip)
    found = opened[number]
    print(json.dumps(found.meta | {"number": number, "frames": found.codes.shape[1], "samples": found.samples}))
    if output is None:
        for book in found.codes:
            print(" ".join(map(str, book.tolist())))
        return
    from xycodec.tokenize.exchange.files import codec_file

    file = codec_file(opened.description, found)
    if output.suffix == ".xyc":
        file.write(output)
        return
    from xycodec.baselines.open import open_codec

    open_codec(model or opened.description.model, device=device).decode_file(file, output)


@tokens_app.command(name="merge")
def tokens_merge(
    stores: Annotated[list[Path], typer.Argument(help="Stores of one codec.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The new store.")],
    shard_clips: ShardClips = 4096,
) -> None:
    """Make one store of several, or larger shards of one."""
    from xycodec.io.tokens.read import TokenStore
    from xycodec.io.tokens.rearrange import merge_stores

    merge_stores([TokenStore(store) for store in stores], output, shard_clips)
    print(f"{output}: {len(TokenStore(output)):,} clips")


@tokens_app.command(name="split")
def tokens_split(
    store: Store,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new stores.")],
    parts: Annotated[int | None, typer.Option(min=1, help="Number of equal stores, in order.")] = None,
    by: Annotated[str | None, typer.Option(help="One for each value of this metadata field.")] = None,
    hold_out: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of clips in held_out; rest has the others."),
    ] = None,
    shard_clips: ShardClips = 4096,
) -> None:
    """Make several stores of one."""
    from xycodec.io.tokens.read import TokenStore
    from xycodec.io.tokens.rearrange import by_field, equal_parts, held_out, split_store

    opened = TokenStore(store)
    ways = [
        *([equal_parts(len(opened), parts)] if parts is not None else []),
        *([by_field(opened, by)] if by is not None else []),
        *([held_out(hold_out)] if hold_out is not None else []),
    ]
    if len(ways) != 1:
        raise typer.BadParameter("give one of --parts, --by and --hold-out")
    for name, clips in split_store(opened, output, ways[0], shard_clips).items():
        print(f"{output / name}: {clips:,} clips")


@tokens_app.command(name="verify")
def tokens_verify(store: Store) -> None:
    """Compare every file of a store with its checksum; exit code 1 where one differs."""
    from xycodec.io.tokens.check import damages
    from xycodec.io.tokens.read import TokenStore

    opened = TokenStore(store)
    found = list(damages(opened))
    for line in found:
        print_error(line)
    if found:
        raise typer.Exit(1)
    print(f"{store}: {len(opened):,} clips in {len(opened.shards):,} shards are as they were written")


@tokens_app.command(name="export")
def tokens_export(
    store: Store,
    output: Annotated[Path, typer.Option("--output", "-o", help="A new file or folder.")],
    form: Annotated[str, typer.Option("--to", help="jsonl, npy, xyc, tar, shar, parquet or memmap.")],
    context: Annotated[int, typer.Option(min=1, help="Of memmap: tokens of a row.")] = 2048,
    first: Annotated[int, typer.Option(min=0, help="Of memmap: the id of code 0.")] = 0,
) -> None:
    """Write a store in a form that other programs read."""
    from xycodec.io.tokens.read import TokenStore
    from xycodec.lm.memmap import write_memmap
    from xycodec.tokenize.exchange.forms import EXPORTS

    opened = TokenStore(store)
    if form == "memmap":
        write_memmap(opened, output, context, first)
    elif form in EXPORTS:
        EXPORTS[form](opened, output)
    else:
        raise XycodecError(f"{form}: no form to export to: give {', '.join(EXPORTS)} or memmap")
    print(output)


@tokens_app.command(name="import")
def tokens_import(
    source: Annotated[Path, typer.Argument(help="What xycodec tokens export wrote, or the like.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The new store.")],
    form: Annotated[str, typer.Option("--from", help="jsonl, npy, xyc, tar, shar, parquet or memmap.")],
    like: Annotated[Path, typer.Option(help="A store, or its store.json, of the codec that made the codes.")],
    first: Annotated[int, typer.Option(min=0, help="Of memmap: the id of code 0.")] = 0,
    shard_clips: ShardClips = 4096,
) -> None:
    """Make a store of codes that are kept in another form."""
    from xycodec.io.tokens.layout import read_description
    from xycodec.io.tokens.read import TokenStore
    from xycodec.io.tokens.write import write_store
    from xycodec.lm.memmap import read_memmap
    from xycodec.tokenize.exchange.forms import IMPORTS

    if form not in (*IMPORTS, "memmap"):
        raise XycodecError(f"{form}: no form to import: give {', '.join(IMPORTS)} or memmap")
    about = read_description(like if like.is_dir() else like.parent)
    clips = read_memmap(source, about, first) if form == "memmap" else IMPORTS[form](source, about)
    write_store(output, about, clips, shard_clips)
    if form == "memmap":
        print_note("a map keeps no ids, so clips are called by their numbers")
    print(f"{output}: {len(TokenStore(output)):,} clips")


@tokens_app.command(name="describe")
def tokens_describe(
    store: Annotated[Path, typer.Argument(help="A store whose clips have texts.")],
    clap: Annotated[
        str, typer.Option(help="A CLAP model of Transformers: a hub id or a folder.")
    ] = "laion/clap-htsat-unfused",
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Keep the CLAP embedding of every clip's text in its store, for a model of sounds to be trained on."""
    from xycodec.cli.options import require_extra
    from xycodec.io.tokens.read import TokenStore
    from xycodec.lm.clap import ClapText, describe_store

    require_extra("train", "transformers")
    opened = TokenStore(store)
    embedder = ClapText(clap, device=device)
    with clip_progress("texts", quiet) as advance:
        count = describe_store(opened, embedder, lambda: advance(0.0))
    if not quiet:
        print(f"{store}: {count:,} vectors of {clap}")
