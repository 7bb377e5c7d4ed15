"""Ten minutes of one GPU: speech and weights as a small bundle, one command that trains there, and the way back.

`prepare` and `merge` run where corpora and runs are, `train` where the GPU is. See docs/training.md.
"""

import argparse
import gzip
import json
import shutil
import sys
import tarfile
import tempfile
import time
import zlib
from contextlib import chdir
from pathlib import Path

import torch
import yaml

from xycodec.checkpoints.load import load_xy_tokenizer
from xycodec.checkpoints.training import (
    CHECKPOINT_FORMAT,
    EXPORT_FILE,
    checkpoints,
    read_checkpoint,
    read_codec_checkpoint,
    trained_weights,
)
from xycodec.checkpoints.weights import MB, stored
from xycodec.data.pack import MANIFEST, pack
from xycodec.data.sources import open_once, open_source
from xycodec.errors import CheckpointError, ConfigError, XycodecError
from xycodec.io.files import new_folder
from xycodec.models.xy_tokenizer.model import XYTokenizer
from xycodec.nn.quantize import smoothed_counts
from xycodec.train.export import save_weights
from xycodec.train.init.weights import adopt_codec, find_checkpoint
from xycodec.train.recipe_file import load_recipe, save_recipe
from xycodec.train.run import measure, train

PART_BYTES = 15 * MB
BACK_BYTES = 60 * MB  # of all that comes back
FILE_SECONDS = 600  # of speech in a file: small ones fill loads well
DEV_KBPS = 64
RESERVE_S = 40.0  # to decode the speech and to write the result
EXACT = ("quantizer.codebook", "quantizer.cluster_size")  # codes hang on them
SUMS = "quantizer.embed_avg"  # what codebooks and counts give
FOREVER = 1_000_000


# ---- here: the bundle --------------------------------------------------------------------------


def prepare(args):
    """Write the bundle, check its size, and say what it holds."""
    about, state = training_state(args.weights)
    target = Path(args.bundle)
    with new_folder(target, ConfigError) as made:
        things = made / "things"
        things.mkdir()
        small = {key: value for key, value in state.items() if not key.endswith(SUMS)}
        save_weights(about, {"model": small}, things / "start", part_bytes=PART_BYTES, dtype=torch.float16, exact=EXACT)
        write_code(things)
        if args.wheels:
            shutil.copytree(args.wheels, things / "wheels", ignore=lambda _, names: no_wheels(names))
        recipe = load_recipe(args.recipe, tuple(args.set))
        dev = evenly(list(open_once(recipe.data.valid)), args.dev_clips)
        pack_relative(dev, things, "dev", DEV_KBPS)
        seconds = [sum(cut.duration for cut in open_source(source)) for source in recipe.data.train]
        share = speech_share(args, things, sum(seconds))
        sources = []
        for number, source in enumerate(recipe.data.train):
            cuts = [cut for cut in open_source(source) if zlib.crc32(cut.id.encode()) < share * 2**32]
            if cuts:
                name = f"speech-{number:02}"
                pack_relative(cuts, things, name, args.kbps)
                sources.append({"path": f"{name}/{MANIFEST}", "weight": source.weight})
        fingerprint = fingerprint_of(state)
        (things / "recipe.yaml").write_text(travelling(recipe, sources, len(dev), args), encoding="utf-8")
        facts = {"weights": args.weights, "fingerprint": fingerprint, "stage": recipe.stage, "kbps": args.kbps}
        (things / "bundle.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        held = weights_of(things)
        sizes = fill_loads(made, things, args)
    print(f"{target}: {args.loads} loads of " + ", ".join(f"{size / MB:.2f} MB" for size in sizes))
    for kind, size in held.items():
        print(f"  {kind}: {size / MB:.2f} MB")
    print(f"  {share:.0%} of {sum(seconds) / 3600:.2f} h of speech, {len(dev)} clips to measure on")


def training_state(source):
    """What is known of a run, checkpoint or codec, and its model's tensors under the names of training."""
    checkpoint = find_checkpoint(Path(source))
    if checkpoint is not None:
        data = read_codec_checkpoint(checkpoint)
        state = {key: value for key, value in trained_weights(data).items() if key.startswith("codec.")}
        return {
            "format": CHECKPOINT_FORMAT,
            "stage": data["stage"],
            "step": data["step"],
            "codec": data["codec"],
        }, state
    loaded = load_xy_tokenizer(source)
    codec = XYTokenizer(loaded.config)
    adopt_codec(codec, loaded, str(source))
    about = {
        "format": CHECKPOINT_FORMAT,
        "stage": "pretrain",
        "step": 0,
        "codec": loaded.config.model_dump(mode="json"),
    }
    return about, {f"codec.{key}": value for key, value in codec.state_dict().items()}


def fingerprint_of(state):
    """A number that tells whether a result belongs to these weights."""
    total = 0
    for key in sorted(state):
        if not key.endswith(SUMS):
            tensor = stored(key, state[key], torch.float16, exact=EXACT)
            total = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, total)
    return total


def write_code(things):
    """The package's code without models, as one archive, and this script beside it."""
    root = Path(__file__).resolve().parents[1]
    with tarfile.open(things / "code.tar.gz", "w:gz") as tar:
        for path in [*sorted((root / "src").rglob("*.py")), *sorted((root / "runs").glob("gpu_ten_minutes.*"))]:
            tar.add(path, str(path.relative_to(root)))
    shutil.copy(root / "runs" / "gpu_ten_minutes.sh", things)


def no_wheels(names):
    """Names of a folder that are left out of it."""
    return [name for name in names if not name.endswith(".whl")]


def evenly(cuts, count):
    """So many of the cuts, from all over the list."""
    if len(cuts) <= count:
        return cuts
    return [cuts[number * len(cuts) // count] for number in range(count)]


def pack_relative(cuts, things, name, kbps):
    """Cuts as files of Opus in the folder `name`, by which their manifest calls them."""
    report = pack(cuts, things / name, part_seconds=FILE_SECONDS, opus_kbps=kbps)
    for line in report.left_out:
        print(f"left out: {line}", file=sys.stderr)
    manifest = things / name / MANIFEST
    text = gzip.decompress(manifest.read_bytes()).decode("utf-8")
    text = text.replace(json.dumps(f"{things.resolve()}/", ensure_ascii=False)[1:-1], "")
    manifest.write_bytes(gzip.compress(text.encode("utf-8"), mtime=0))


def speech_share(args, things, seconds):
    """How much of the speech there is room for."""
    room = args.loads * args.limit_mib * 2**20 - sum(weights_of(things).values())
    a_second = args.kbps * 1000 / 8 * 1.04 + 20  # containers and manifests
    share = min(1.0, 0.97 * room / (seconds * a_second))
    if args.hours is not None:
        share = min(share, args.hours * 3600 / seconds)
    if share <= 0:
        raise ConfigError(too_large(weights_of(things), args))
    return share


def weights_of(things):
    """Bytes of each kind of thing in the bundle."""
    held = {}
    for path in sorted(things.rglob("*")):
        if path.is_file():
            kind = path.relative_to(things).parts[0].partition("-")[0]
            held[kind] = held.get(kind, 0) + path.stat().st_size
    return held


def too_large(held, args):
    """The line that says so."""
    parts = ", ".join(f"{kind} {size / MB:.2f}" for kind, size in sorted(held.items(), key=lambda item: -item[1]))
    limit = args.loads * args.limit_mib * 2**20
    return (
        f"the bundle takes {sum(held.values()) / MB:.2f} MB ({parts}) and may take {limit / MB:.2f} MB in "
        f"{args.loads} loads: lower --hours or --kbps, or allow more --loads"
    )


def fill_loads(made, things, args):
    """Move all files into load-1 to load-N, the code into the last one; returns the bytes of each."""
    limit = args.limit_mib * 2**20
    held = weights_of(things)
    files = [path for path in sorted(things.rglob("*")) if path.is_file()]
    first = [path for path in files if path.parent == things]
    # Large before small, so that little room is lost.
    rest = sorted(set(files) - set(first), key=lambda path: (-path.stat().st_size, path))
    sizes = [0] * args.loads
    for path in [*first, *rest]:
        size = path.stat().st_size
        places = [args.loads - 1] if path in first else range(args.loads)
        place = next((place for place in places if sizes[place] + size <= limit), None)
        if place is None:
            raise ConfigError(too_large(held, args))
        sizes[place] += size
        target = made / f"load-{place + 1}" / path.relative_to(things)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    shutil.rmtree(things)
    return sizes


def travelling(recipe, sources, dev_clips, args):
    """The recipe as it runs there, as YAML: from the bundle's files, in memory, until the time is over."""
    data = recipe.model_dump(mode="json")
    clips = max(1, round(args.batch_seconds / recipe.data.clip_seconds))
    data |= {"output": "run", "weights": "start", "steps": FOREVER, "minutes": 1.0, "anneal": "minutes"}
    if recipe.stage == "pretrain":
        data |= {"towers": None, "vocos": None, "start": "plain"}
    data["data"] |= {
        "train": sources,
        "valid": [f"dev/{MANIFEST}"],
        "batch_clips": clips,
        "batch_seconds": clips * recipe.data.clip_seconds,
        "in_memory": True,
        "workers": 0,
        "augment": data["data"]["augment"] | {"pitch": 0.0, "formant": 0.0, "eq": 0.0},
    }
    data["validation"] |= {"every": FOREVER, "clips": dev_clips, "listen": 0, "transcribe": 0}
    data["checkpoint"] |= {"every": FOREVER, "keep": 1}
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        yaml.safe_dump(data, file, allow_unicode=True)
        file.flush()
        # Settings that were asked for stand above the machine's, but files are the bundle's.
        own = tuple(text for text in args.set if not text.startswith(("data.train=", "data.valid=", "weights=")))
        return save_recipe(load_recipe(file.name, own))


# ---- there -------------------------------------------------------------------------------------


def train_there(args):
    """Unpack, measure, train until the time is over, measure, and write what changed."""
    began = time.monotonic()
    out = Path(args.out).resolve()
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out}: is not empty: name another folder")
    with tempfile.TemporaryDirectory() as scratch:
        for load in args.loads:
            shutil.copytree(load, scratch, dirs_exist_ok=True)
        with chdir(scratch):
            train_unpacked(args, out, began)
    print(f"{out}: {time.monotonic() - began:.0f} s in all", flush=True)


def train_unpacked(args, out, began):
    """As `train_there`, in the folder where all that was sent lies."""
    whole_start()
    facts = json.loads(Path("bundle.json").read_text(encoding="utf-8"))
    recipe = load_recipe("recipe.yaml", tuple(args.set))
    before, start = measure(recipe)
    spent = time.monotonic() - began
    left = args.minutes - (2 * spent + RESERVE_S) / 60 if args.steps is None else args.minutes
    if left <= 0:
        raise ConfigError(f"--minutes: {spent:.0f} s went into unpacking and measuring: allow more time")
    print(f"before: {shown(before)}; {spent:.0f} s; training {left:.1f} minutes", flush=True)
    steps = FOREVER if args.steps is None else args.steps
    recipe = recipe.model_copy(update={"minutes": left, "steps": steps})
    ended = train(recipe)
    after, _ = measure(recipe, resume=True)
    print(f"after {ended.step} steps: {shown(after)}", flush=True)
    run = read_checkpoint(checkpoints(Path(recipe.output))[-1])
    report = facts | {"before": before, "after": after, "steps": ended.step}
    write_result(out, run, start, report)


def whole_start():
    """Compute what did not travel of the starting weights, and write them as training reads them."""
    data = read_checkpoint(Path("start"))
    shutil.rmtree("start")
    save_weights(data, {"model": with_sums(data["networks"]["model"])}, Path("start"), part_bytes=1000 * MB)


def with_sums(state):
    """The tensors, and the codebooks' running sums that go with codebooks and counts."""
    sums = {
        key.removesuffix("codebook") + "embed_avg": value * smoothed_counts(state[key[:-8] + "cluster_size"])[..., None]
        for key, value in state.items()
        if key.endswith("quantizer.codebook")
    }
    return state | sums


def write_result(out, run, start, report):
    """What training changed, in half precision and parts, and the report; discriminators where they fit."""
    weights = trained_weights(run)
    changed = {
        key: value
        for key, value in weights.items()
        if not key.endswith(SUMS) and not (key in start and torch.equal(start[key], value))
    }
    networks = {"model": changed}
    if "discriminators" in run["networks"]:
        networks["discriminators"] = run["networks"]["discriminators"]
    if bytes_of(networks) > BACK_BYTES - MB and len(networks) > 1:
        print("discriminators are left behind: they do not fit", flush=True)
        del networks["discriminators"]
    if bytes_of(networks) > BACK_BYTES - MB:
        raise CheckpointError(f"what changed takes {bytes_of(networks) / MB:.1f} MB, too much to send back")
    folder = out.with_name(f".{out.name}.made")
    save_weights(run, networks, folder, part_bytes=PART_BYTES, dtype=torch.float16, exact=EXACT)
    (folder / "result.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    out.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        shutil.move(file, out / file.name)
    folder.rmdir()


def bytes_of(networks):
    """What tensors take as they travel."""
    return sum(
        stored(key, value, torch.float16, exact=EXACT).nbytes
        for state in networks.values()
        for key, value in state.items()
    )


def shown(values):
    """Measures in a line."""
    return ", ".join(f"{key} {value:.4g}" for key, value in values.items())


# ---- here: the way back ------------------------------------------------------------------------


def merge(args):
    """Join a result with the weights it began from: a folder that `weights` of a recipe and `convert` take."""
    result = Path(args.result)
    if not (result / "result.json").is_file() or not (result / EXPORT_FILE).is_file():
        raise CheckpointError(f"{result}: no result of train: it lacks result.json or {EXPORT_FILE}")
    report = json.loads((result / "result.json").read_text(encoding="utf-8"))
    source = args.weights or report["weights"]
    _, state = training_state(source)
    if fingerprint_of(state) != report["fingerprint"]:
        raise CheckpointError(f"{source}: not the weights that {result} began from: name those with --weights")
    before, after = report["before"]["loss"], report["after"]["loss"]
    told = f"loss on dev {before:.4f} before, {after:.4f} after {report['steps']} steps"
    if not after < before and not args.anyway:
        raise CheckpointError(f"{result}: {told}: no better, {source} is kept (--anyway joins them all the same)")
    data = read_checkpoint(result)
    changed = data["networks"].pop("model")
    sums = {key: value for key, value in with_sums(changed).items() if key.endswith(SUMS)}
    save_weights(data, {"model": state | changed | sums, **data["networks"]}, Path(args.folder), part_bytes=1000 * MB)
    shutil.copy(result / "result.json", args.folder)
    print(f"{args.folder}: {told}")


# ---- the command line --------------------------------------------------------------------------


def parser():
    """What may be asked for."""
    whole = argparse.ArgumentParser(prog="gpu_ten_minutes.sh", description=__doc__)
    commands = whole.add_subparsers(required=True, dest="command")
    here = commands.add_parser("prepare", help="here: write the bundle")
    here.add_argument("recipe")
    here.add_argument("bundle", help="a new folder, for load-1 to load-N")
    here.add_argument("--weights", required=True, help="a run, checkpoint or codec to start from")
    here.add_argument("--kbps", type=float, default=16.0, help="of the speech")
    here.add_argument("--hours", type=float, help="of speech at most (default: what there is room for)")
    here.add_argument("--dev-clips", type=int, default=32)
    here.add_argument("--batch-seconds", type=float, default=384.0)
    here.add_argument("--loads", type=int, default=1, help="calls that may carry something")
    here.add_argument("--limit-mib", type=float, default=64.0, help="of a load")
    here.add_argument("--wheels", help="a folder of wheels that the other machine lacks")
    here.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="changes the recipe")
    there = commands.add_parser("train", help="there: train until the time is over")
    there.add_argument("loads", nargs="+")
    there.add_argument("--out", required=True)
    there.add_argument("--minutes", type=float, default=9.0, help="in all, unpacking and measuring included")
    there.add_argument("--steps", type=int, help="stop after so many")
    there.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="changes the recipe")
    back = commands.add_parser("merge", help="here: join the result with the weights it began from")
    back.add_argument("result")
    back.add_argument("folder", help="a new folder")
    back.add_argument("--weights", help="as for prepare (default: what it was given)")
    back.add_argument("--anyway", action="store_true", help="even if it is no better")
    return whole


def main():
    """Run a command; an error is one line."""
    args = parser().parse_args()
    try:
        {"prepare": prepare, "train": train_there, "merge": merge}[args.command](args)
    except XycodecError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
