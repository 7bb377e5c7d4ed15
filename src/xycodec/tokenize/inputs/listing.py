"""Every clip of some inputs, in order, whatever form they have."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from xycodec.errors import XycodecError
from xycodec.io.audio import audio_extensions, is_hidden
from xycodec.io.parallel import expand_input
from xycodec.tokenize.inputs.item import Item, is_url
from xycodec.tokenize.inputs.manifests import cut_items, first_row, row_items, shar_items
from xycodec.tokenize.inputs.tables import dataset_items, is_dataset, parquet_items
from xycodec.tokenize.inputs.tars import tar_items

Lister = Callable[[str], Iterator[Item]]


def list_items(inputs: Iterable[str]) -> Iterator[Item]:
    """Yield the clips of inputs, one input after the other; the same items each time, as long as the inputs are.

    An input is a file of audio, a folder of such, a manifest in JSON lines (ours, or of Lhotse cuts), a folder of
    Lhotse Shar, a WebDataset tar, a Parquet file with a column of audio, or a folder that Hugging Face `datasets`
    saved; or a glob of files of one of these kinds. All but cuts, Shar and saved datasets may be addresses of fsspec
    (`s3://...`).
    A tar or a table that cannot be read is one item that says so.

    Raises XycodecError if an input is none of these, or is not there.
    """
    for given in inputs:
        yield from _items_of(given)


def _items_of(given: str) -> Iterator[Item]:
    if given == "-":
        raise XycodecError("a corpus cannot be read from stdin: give files, folders or manifests")
    path = Path(given)
    if not is_url(given) and path.is_dir():
        if any(path.glob("cuts.*.jsonl*")):
            yield from shar_items(given)
            return
        if is_dataset(path):
            yield from dataset_items(given)
            return
    for suffixes, lister in _OF_FILES:
        if given.lower().endswith(suffixes):
            for name, _ in _expanded(given, frozenset()):
                yield from _told(lister, name)
            return
    for name, relative in _expanded(given, audio_extensions()):
        shown, clip = (part.encode("utf-8", "backslashreplace").decode() for part in (name, relative))
        if (shown, clip) == (name, relative):
            yield Item(clip, {"kind": "file", "path": name}, {"audio": name})
        else:
            yield Item(clip, {}, {"audio": shown}, "its path is not text in UTF-8: rename the file or its folder")


def _manifest_items(name: str) -> Iterator[Item]:
    first = first_row(name)
    yield from cut_items(name) if "type" in first else row_items(name)


_OF_FILES: tuple[tuple[tuple[str, ...], Lister], ...] = (
    ((".jsonl", ".jsonl.gz"), _manifest_items),
    ((".tar",), tar_items),
    ((".parquet",), parquet_items),
)


def _told(lister: Lister, name: str) -> Iterator[Item]:
    """Yield the items of a file; where it cannot be read, one item with the reason ends them."""
    try:
        yield from lister(name)
    except XycodecError as error:
        yield Item(name, {}, {"audio": name}, str(error))


def _expanded(given: str, extensions: frozenset[str]) -> Iterator[tuple[str, str]]:
    """(file or address, its path below the folder or glob) of every file that an input names."""
    if not is_url(given):
        yield from ((name, relative.as_posix()) for name, relative in expand_input(given, extensions))
        return
    import fsspec

    try:
        system, inside = fsspec.core.url_to_fs(given)
        root = inside if system.isdir(inside) else inside.rsplit("/", 1)[0]
        if "*" in given:
            found, root = sorted(system.glob(inside)), inside.partition("*")[0].rpartition("/")[0]
        else:
            found = [inside] if system.isfile(inside) else sorted(system.find(inside))
    except Exception as error:  # each file system has its own, ImportError where its package is missing
        raise XycodecError(f"{given}: cannot be listed ({type(error).__name__}: {error})") from error
    names = [(name, name.removeprefix(root).lstrip("/")) for name in found]
    if len(names) != 1:
        names = [(n, r) for n, r in names if not extensions or Path(n).suffix.lower() in extensions]
    names = [(n, r) for n, r in names if not is_hidden(Path(r))]
    if not names:
        raise XycodecError(f"{given}: no such file, or a folder without audio")
    yield from ((system.unstrip_protocol(name), relative) for name, relative in names)
