"""Token stores as datasets of Hugging Face."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from xycodec.errors import StoreError
from xycodec.io.tokens.read import TokenStore
from xycodec.tokenize.inputs.item import require_package

if TYPE_CHECKING:
    import datasets


def as_dataset(stores: Sequence[TokenStore] | TokenStore) -> "datasets.IterableDataset":
    """The clips of stores, one store after another, as an `IterableDataset`; nothing is copied.

    A row has `id`, `codes` (a list of frames, each of n_q codes), `samples` and `text` (empty where a clip has none).
    A shard of a store is a shard of the dataset, so that workers and nodes share them (`split_dataset_by_node`).
    For a `Dataset` of all columns, `xycodec tokens export --to parquet` and `Dataset.from_parquet`.

    Raises StoreError if the stores' codes have different shapes, XycodecError without `datasets`.
    """
    require_package("datasets", "store")
    from datasets import Features, IterableDataset, List, Value

    opened = [stores] if isinstance(stores, TokenStore) else list(stores)
    shapes = {store.description.n_q for store in opened}
    if len(shapes) != 1:
        raise StoreError(f"stores of {sorted(shapes)} codebooks: give stores of one number")
    code = "uint16" if all(store.description.dtype.itemsize == 2 for store in opened) else "uint32"
    features = Features(
        {
            "id": Value("string"),
            "codes": List(List(Value(code), length=shapes.pop())),
            "samples": Value("int64"),
            "text": Value("string"),
        }
    )
    parts = [(store, range(*bounds)) for store in opened for bounds in store.bounds()]
    return IterableDataset.from_generator(_rows, features, gen_kwargs={"parts": parts})


def _rows(parts: Sequence[tuple[TokenStore, range]]) -> Iterator[dict[str, Any]]:
    for store, numbers in parts:
        for number in numbers:
            clip = store[number]
            text = clip.meta.get("text")
            yield {
                "id": clip.id,
                "codes": clip.codes.T.tolist(),
                "samples": clip.samples,
                "text": text if isinstance(text, str) else "",
            }
