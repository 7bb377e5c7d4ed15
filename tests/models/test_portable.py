"""A codec gives the same codes wherever it is carried, and whatever torch is set to around it."""

import copy
import multiprocessing
import pickle
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from tests.published_xcodec import tiny_config as tiny_xcodec
from tests.reference import tiny_config

from xycodec import load_codec
from xycodec.checkpoints.build import random_codec
from xycodec.checkpoints.save import save_codec
from xycodec.models.precision import own_precision

CLIP = np.random.default_rng(0).uniform(-0.3, 0.3, 40_000).astype(np.float32)


@pytest.fixture(scope="module", params=["xy", "x"])
def codec(request):
    return random_codec(tiny_config(window_frames=20) if request.param == "xy" else tiny_xcodec(window_frames=60))


def results(codec):
    """Everything that a codec computes: of a long clip and of a batch with padding."""
    out = codec.encode([CLIP, CLIP[:5000]])
    return out.codes, codec.decode(out).audio, codec.embed(out)


def assert_same(codec, expected):
    for got, wanted in zip(results(codec), expected, strict=True):
        assert got.device == wanted.device
        assert got.dtype == wanted.dtype
        assert torch.equal(got, wanted)


# copies and processes


def test_pickles_and_copies(codec):
    expected = results(codec)
    data = pickle.dumps(codec)
    assert len(data) < 1.3 * sum(tensor.nbytes for tensor in codec.state_dict().values()) + 200_000
    for other in (pickle.loads(data), copy.deepcopy(codec), pickle.loads(pickle.dumps(copy.deepcopy(codec)))):
        assert other is not codec
        assert_same(other, expected)


def test_a_loaded_model_pickles():
    loaded = load_codec("xy-mini", device="cpu")
    again = pickle.loads(pickle.dumps(loaded))
    assert torch.equal(again.encode(CLIP).codes, loaded.encode(CLIP).codes)


def test_a_copy_of_a_codec_has_weights_of_its_own(codec):
    expected, other = results(codec), copy.deepcopy(codec)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1.5)
    assert_same(codec, expected)
    assert not torch.equal(results(other)[2], expected[2]) or not torch.equal(results(other)[1], expected[1])


def _report(codec, queue):
    queue.put(codec.encode(CLIP).codes.numpy())


@pytest.mark.parametrize("method", [pytest.param("spawn", marks=pytest.mark.long), "fork"])
def test_another_process(codec, threads, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this system")
    threads(2)  # OpenMP's second thread does not come along when a process forks
    expected = codec.encode([CLIP, CLIP]).codes[:1].numpy()
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=_report, args=(codec, queue))
    process.start()
    try:
        assert np.array_equal(queue.get(timeout=120), expected)
    finally:
        process.kill()
        process.join()


# what torch is set to


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def matmul_precision(name):
    torch.set_float32_matmul_precision(name)
    try:
        yield
        assert torch.get_float32_matmul_precision() == name
    finally:
        torch.set_float32_matmul_precision("highest")


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


SETTINGS = {
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "float64": lambda: default_dtype(torch.float64),
    # Nothing can be computed there: whatever is left to the default fails.
    "meta": lambda: default_device("meta"),
    "medium": lambda: matmul_precision("medium"),
    "high": lambda: matmul_precision("high"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference": torch.inference_mode,
    "gradients": torch.enable_grad,
    "deterministic": deterministic,
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_nothing_around_a_call_matters(codec, setting):
    expected = results(codec)
    with SETTINGS[setting]():
        assert_same(codec, expected)
    assert_same(codec, expected)


@pytest.mark.parametrize("setting", SETTINGS)
def test_nothing_around_loading_matters(codec, setting, tmp_path):
    expected, folder = results(codec), save_codec(codec, tmp_path / "codec")
    with SETTINGS[setting]():
        loaded = load_codec(folder, device="cpu")
        again = random_codec(codec.config)
    for other in (loaded, again):
        assert {weight.dtype for weight in other.parameters()} == {torch.float32}
        assert_same(other, expected)


def test_a_bundled_model_in_a_program_of_another_type():
    expected = results(load_codec("xy-mini", device="cpu"))
    with default_dtype(torch.bfloat16), default_device("meta"), matmul_precision("medium"):
        assert_same(load_codec("xy-mini", device="cpu"), expected)


def test_precision_is_put_back_when_the_last_call_ends():
    switch, cpu = torch.backends.mkldnn.matmul, torch.device("cpu")
    with matmul_precision("medium"):
        first, second = own_precision(cpu), own_precision(cpu)
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert switch.fp32_precision == "ieee"
        second.__exit__(None, None, None)
        assert switch.fp32_precision == "bf16"
        with pytest.raises(ZeroDivisionError), own_precision(cpu):
            _ = 1 / 0
        assert switch.fp32_precision == "bf16"
