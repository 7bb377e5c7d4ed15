"""Stores as datasets of Hugging Face."""

import pytest
from tests.io.tokens.stores import clip, description, store_of

from xycodec.errors import StoreError
from xycodec.io.tokens.read import TokenStore
from xycodec.lm.huggingface import as_dataset


@pytest.fixture
def stores(tmp_path):
    return [TokenStore(store_of(tmp_path / name, count)) for name, count in (("a", 10), ("b", 3))]


def test_rows_are_the_clips_in_order(stores):
    rows = list(as_dataset(stores))
    assert [row["id"] for row in rows] == [f"clip {number}" for number in (*range(10), *range(3))]
    for row, number in zip(rows, (*range(10), *range(3)), strict=True):
        known = clip(number)
        assert row["codes"] == known.codes.T.tolist()
        assert (row["samples"], row["text"]) == (known.samples, f"words {number}")


def test_nodes_share_the_shards(stores):
    from datasets.distributed import split_dataset_by_node

    dataset = as_dataset(stores)
    assert dataset.num_shards == 4
    parts = [[row["id"] for row in split_dataset_by_node(dataset, rank, 2)] for rank in range(2)]
    assert sorted(parts[0] + parts[1]) == sorted(row["id"] for row in dataset)
    assert min(map(len, parts)) > 0


def test_stores_of_other_shapes_are_refused(stores, tmp_path):
    other = TokenStore(store_of(tmp_path / "c", 2, description(n_q=2)))
    with pytest.raises(StoreError, match=r"stores of \[2, 3\] codebooks"):
        as_dataset([stores[0], other])
