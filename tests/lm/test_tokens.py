"""Stores as datasets: every clip once, whole, in packs; resumed exactly; shared out over processes."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from tests.io.tokens.stores import clip, description, store_of
from torch.utils.data import DataLoader

from xycodec.errors import XycodecError
from xycodec.io.tokens.read import StoredClip, TokenStore
from xycodec.io.tokens.write import write_store
from xycodec.lm.patterns import Flattened, one_after_another, parallel
from xycodec.lm.tokens import Clips, PackedTokens, rendered

PAD, END = 50, 51


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return TokenStore(store_of(tmp_path_factory.mktemp("a") / "store", 20))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Clips whose codes are all 7."""
    folder = tmp_path_factory.mktemp("b") / "store"
    sevens = [StoredClip(f"seven {i}", np.full((3, 9), 7, np.uint16), 1440, {}) for i in range(5)]
    write_store(folder, description(), sevens)
    return TokenStore(folder)


def packed(stores, context=16, pattern=None, **more):
    return PackedTokens(stores, rendered(pattern or parallel(3, PAD), END), context, **more)


def documents(packs):
    """The rows of each clip that ended, in order, joined over packs."""
    rows = torch.cat([pack.rows for pack in packs])
    places = torch.cat([pack.positions for pack in packs])
    starts = [*(places == 0).nonzero().flatten().tolist(), len(rows)]
    pieces = [rows[a:b] for a, b in pairwise(starts)]
    return [piece[:-1].T for piece in pieces if (piece[-1] == END).all()]


def same(one, two):
    return all(torch.equal(getattr(one, key), getattr(two, key)) for key in ("rows", "mask", "documents", "positions"))


def test_clips_are_a_dataset(store):
    clips = Clips(store)
    assert len(clips) == 20
    assert torch.equal(clips[3]["codes"], torch.from_numpy(clip(3).codes.astype(np.int64)))
    assert clips[3]["meta"]["text"] == "words 3"
    assert [item[0]["id"] for item in DataLoader(clips, collate_fn=list, num_workers=1)] == [
        f"clip {i}" for i in range(20)
    ]


@pytest.mark.parametrize("context", [1, 5, 16, 100])
def test_an_epoch_has_every_clip_whole_and_once(store, context):
    packs = list(packed([store], context))
    assert {pack.rows.shape for pack in packs} == {(context, 3)}
    assert len(packs) == int(store.lengths().sum() + 20) // context
    got = documents(packs)
    expected = {clip(number).codes.tobytes(): number for number in range(20)}
    numbers = [expected[codes.numpy().astype(np.uint16).tobytes()] for codes in got]
    assert len(set(numbers)) == len(numbers) >= 20 - context // 2
    assert numbers != sorted(numbers)


def test_documents_tell_clips_apart(store):
    for pack in packed([store], 40):
        change = (pack.documents[1:] != pack.documents[:-1]).nonzero().flatten() + 1
        assert (pack.positions[change] == 0).all()
        assert torch.equal(change, (pack.rows[:, 0] == END).nonzero().flatten()[: len(change)] + 1)


@pytest.mark.parametrize("pattern", [one_after_another(3, PAD), Flattened(3, 50)])
def test_masks_count_codes_and_ends_alone(store, pattern):
    packs = list(packed([store], 1, pattern))
    masks = torch.cat([pack.mask for pack in packs])
    channels = masks.shape[1]
    assert int(masks.sum()) == 3 * store.frames + 20 * channels
    rows = torch.cat([pack.rows for pack in packs])
    assert not (rows[masks] == PAD).any() or isinstance(pattern, Flattened)


@pytest.mark.parametrize("weights", [None, [1.0, 3.0]])
@pytest.mark.parametrize("stop", [0, 1, 7])
def test_it_goes_on_exactly(store, other, weights, stop):
    whole = iter(packed([store, other], 10, weights=weights))
    expected = [next(whole) for _ in range(15)]
    first = packed([store, other], 10, weights=weights)
    left = iter(first)
    for _ in range(stop):
        next(left)
    second = packed([store, other], 10, weights=weights)
    second.load_state_dict(first.state_dict())
    # What of a pack was not full is drawn again.
    got = iter(second)
    assert all(same(next(got), pack) for pack in expected[stop:])


def test_ranks_share_the_clips(store):
    shares = [documents(packed([store], 1, rank=rank, world_size=3)) for rank in range(3)]
    found = sorted(codes.numpy().tobytes() for share in shares for codes in share)
    assert found == sorted(clip(number).codes.astype(np.int64).tobytes() for number in range(20))
    assert [len(share) for share in shares] == [7, 7, 6]


def test_workers_share_the_clips(store):
    loader = DataLoader(packed([store], 1), batch_size=None, num_workers=2)
    rows = [pack.rows for pack in loader]
    assert len(rows) == store.frames + 20


def test_weights_decide_how_often_a_store_is_drawn(store, other):
    stream = iter(packed([store, other], 50, weights=[1.0, 3.0]))
    drawn = documents([next(stream) for _ in range(400)])
    share = sum(bool((codes == 7).all()) for codes in drawn) / len(drawn)
    assert len(drawn) > 1000
    assert abs(share - 0.75) < 0.05
    # All clips of a store come before one comes again.
    first = [codes.numpy().tobytes() for codes in drawn if not (codes == 7).all()][:20]
    assert len(set(first)) == 20


def test_an_epoch_decides_the_order(store):
    stream = packed([store], 10)
    first = list(stream)
    assert all(map(same, first, stream))  # though that one is left before its end
    stream.epoch = 1
    assert not all(map(same, first, stream))
    assert not all(map(same, first, packed([store], 10, seed=1)))


def test_what_cannot_be_drawn_is_refused(store, tmp_path):
    empty = TokenStore(store_of(tmp_path / "empty", 0))
    wide = TokenStore(store_of(tmp_path / "wide", 3, description(n_q=2)))
    cases = [
        (([],), {}, "no clips to draw"),
        (([store, empty],), {"weights": [1, 1]}, "no clips to draw"),
        (([store],), {"weights": [1, 1]}, "for each of 1 stores"),
        (([store],), {"weights": [0]}, "give a positive one"),
        (([store], 0), {}, "context 0"),
        (([store],), {"rank": 1}, "rank 1 of 1"),
        (([store, wide],), {}, r"different shapes, \[\(2, 50\), \(3, 50\)\]"),
    ]
    for arguments, more, words in cases:
        with pytest.raises(XycodecError, match=words):
            packed(*arguments, **more)
