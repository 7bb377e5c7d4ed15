"""Recipes, batches and language models small enough to train in a test."""

import contextlib
import os
import socket

import numpy as np
import torch
from tests.processes import start_two
from tests.reference import tiny_config
from torch import distributed
from torch.utils._python_dispatch import TorchDispatchMode

from xycodec.data.batch import Position, collate
from xycodec.data.clip import Clip
from xycodec.models.config import TowerConfig
from xycodec.models.xy_tokenizer.config import QuantizerConfig
from xycodec.train.init.small_lm import make_small_lm
from xycodec.train.recipe_file import parse_recipe

ADAPTER = TowerConfig(d_model=32, layers=1, heads=4, ffn_dim=48)
RATE = 16_000
TEXTS = ("red green blue", "the cat and the dog", "up and down", "a bird in blue")
# Codes die within a few steps.
QUICK = QuantizerConfig(n_q=4, codebook_size=16, codebook_dim=16, decay=0.5)


def tiny_model(**changes):
    """The model of `reference.tiny_config`, with a window of 2 s and codebooks that move quickly."""
    return tiny_config(**{"window_frames": 25, "quantizer": QUICK, **changes})


def save_lm(folder, **changes):
    """A random Qwen2 with its tokenizer, as Transformers saves them."""
    size = {"vocabulary": 300, "hidden": 32, "layers": 1, "heads": 2, "positions": 80}
    make_small_lm(folder, TEXTS, **{**size, **changes})
    return folder


def save_llama(folder, hidden=32):
    """A random model of SmolLM2's architecture, with a tokenizer."""
    import transformers

    save_lm(folder, hidden=hidden)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def recipe(stage, **changes):
    """A recipe of a stage, on the CPU in float32, unless `changes` say otherwise."""
    settings = {
        "stage": stage,
        "output": "unused",
        "steps": 100,
        "data": {"train": ["unused"], "clip_seconds": 2.0},
        "engine": {"device": "cpu", "precision": "float32"},
        "optimizer": {"lr": 1e-3, "warmup_steps": 0},
    }
    settings = {**settings, **changes}
    settings["engine"] = {"device": "cpu", "precision": "float32", **settings["engine"]}
    return parse_recipe(settings, "the test's recipe")


def pretraining(lm=None, /, **changes):
    """A recipe of pre-training; without the folder `lm` of a language model there is no ASR loss."""
    settings = {"model": tiny_model().model_dump(), "towers": None}
    if lm is None:
        settings |= {"lm": None, "loss": {"asr": 0}}
    else:
        settings["lm"] = {"source": str(lm), "adapter": ADAPTER.model_dump(), "max_tokens": 40, **changes.pop("lm", {})}
    return recipe("pretrain", **{**settings, **changes})


def posttraining(weights, **changes):
    """A recipe of post-training with narrow discriminators."""
    narrow = {"weights": str(weights), "discriminators": {"channels": 4}}
    return recipe("posttrain", **{**narrow, "discriminator_optimizer": {"lr": 1e-3, "warmup_steps": 0}, **changes})


def clip(number, seconds=1.0, rate=RATE, text="given"):
    """A clip of noise that swells over a tone; `number` decides all of it. `rate` is that of the target."""
    generator = np.random.default_rng(number)
    time = np.arange(round(seconds * RATE)) / RATE
    tone = 0.3 * np.sin(2 * np.pi * generator.uniform(100, 1000) * time)
    audio = tone + 0.1 * time * generator.standard_normal(len(time))
    target = np.interp(np.arange(len(time) * rate // RATE) / rate, time, audio)
    words = TEXTS[number % len(TEXTS)] if text == "given" else text
    return Clip(f"clip {number}", *(torch.tensor(x, dtype=torch.float32) for x in (audio, target)), words)


def batch(*clips, rate=RATE):
    """The clips as a batch; none of them is the silent batch."""
    return collate(clips, (), Position(0, 1), output_sample_rate=rate)


def seeded(step):
    """Do what the trainer does before each step, in a process that draws for all."""
    torch.manual_seed(1000 + step)


def two_processes(work, folder):
    """Run `work(rank)` in two processes that meet as torchrun's do; returns what each gave, by rank."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start_two(_process, (work, folder, port))
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def _process(rank, work, folder, port):
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    torch.save(work(rank), folder / f"{rank}.pt")
    if distributed.is_initialized():
        distributed.destroy_process_group()


class NoLooking(TorchDispatchMode):
    """Raises where the host would wait to see a value or a shape that the device computes."""

    waits = ("_local_scalar_dense", "masked_select", "equal.default", "unique", "nonzero")

    def __init__(self, of_masks):
        super().__init__()
        self.of_masks = of_masks

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # A mask that lies on the CPU tells its places there. There are as many as batches have uneven clips.
        if "nonzero" in str(func) and args[0].dtype == torch.bool and self.of_masks:
            self.of_masks -= 1
        elif any(name in str(func) for name in self.waits):
            raise AssertionError(f"{func} waits for the device")
        if "index.Tensor" in str(func) and any(i is not None and i.dtype == torch.bool for i in args[1]):
            raise AssertionError("indexing by a mask waits for the device")
        return func(*args, **(kwargs or {}))
