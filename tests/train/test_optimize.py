import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.published_xcodec import tiny_config as xcodec_config
from tests.training import pretraining, recipe, save_lm, tiny_model
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from xycodec.errors import ConfigError
from xycodec.models.xcodec.model import XCodec
from xycodec.models.xy_tokenizer.model import XYTokenizer
from xycodec.nn.dac import Snake
from xycodec.nn.discriminators import Discriminators
from xycodec.nn.frequency_discriminator import MultiFrequencyDiscriminator
from xycodec.train.checkpoint import load_optimizer, optimizer_state
from xycodec.train.config import OptimizerConfig
from xycodec.train.engine import Engine
from xycodec.train.optimize import Updater, is_matrix, learning_rate
from xycodec.train.run import open_stage
from xycodec.train.trainer import Trainer


def test_warm_up_then_half_a_cosine():
    config = OptimizerConfig(lr=2.0, warmup_steps=4, final_lr=0.1)
    rates = [learning_rate(config, step, 12) for step in range(12)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    cosine = [0.2 + 1.8 * (1 + math.cos(math.pi * k / 8)) / 2 for k in range(1, 9)]
    assert rates[4:] == pytest.approx(cosine)
    assert rates[-1] == pytest.approx(0.2)  # the last step, not the one after it
    assert learning_rate(config, 50, 12) == pytest.approx(0.2)


def test_no_warm_up_and_nothing_but_warm_up():
    assert learning_rate(OptimizerConfig(lr=1.0, warmup_steps=0), 0, 1000) == pytest.approx(1.0, rel=1e-5)
    longer = [learning_rate(OptimizerConfig(lr=1.0, warmup_steps=10), step, 4) for step in range(4)]
    assert longer == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_warm_up_then_the_inverse_square_root():
    config = OptimizerConfig(lr=2.0, warmup_steps=4, schedule="inverse_sqrt", final_lr=1.0)
    rates = [learning_rate(config, step, 12) for step in range(400)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4:] == pytest.approx([2 * (4 / number) ** 0.5 for number in range(5, 401)])
    assert rates[399] == pytest.approx(0.2)  # a hundred times the warm-up leaves a tenth
    without = OptimizerConfig(lr=2.0, warmup_steps=0, schedule="inverse_sqrt")
    assert [learning_rate(without, step, 12) for step in (0, 3, 99)] == pytest.approx([2.0, 1.0, 0.2])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.plain = nn.Linear(6, 2)
        self.snake = Snake(4)
        self.normed = weight_norm(nn.Conv1d(3, 5, 2))
        self.norm = nn.LayerNorm(4)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def test_decay_is_for_matrices_alone():
    net = Net()
    updater = Updater(net, OptimizerConfig(lr=0.1, weight_decay=0.5, warmup_steps=0, final_lr=1.0), steps=10)
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    for value in net.parameters():
        value.grad = torch.zeros_like(value) if value.requires_grad else None
    updater.update(0)
    decayed = {name for name, value in net.named_parameters() if not torch.equal(value, before[name])}
    # Of weight norm the direction, not the length.
    assert decayed == {"plain.weight", "normed.parametrizations.weight.original1"}
    torch.testing.assert_close(net.plain.weight, before["plain.weight"] * (1 - 0.1 * 0.5))


NORMED = {"parametrizations.weight.original1"}  # of weight norm the direction, not the length
ATTENTION = {"q_proj.weight", "k_proj.weight", "v_proj.weight"}
LAYER = {"qkv_weight", "out_proj.weight", "fc1.weight", "fc2.weight"}
SELF_SUPERVISED = {*NORMED, *ATTENTION, "out_proj.weight", "conv.weight", "projection.weight",
                   "intermediate_dense.weight", "output_dense.weight"}  # fmt: skip
XCODEC = {*SELF_SUPERVISED, "stem.weight", "conv1.weight", "conv2.weight", "fusion.weight", "acoustic_proj.weight",
          "semantic_proj.weight", "head.weight"}  # fmt: skip
DECAYED = {
    "xy_tokenizer": {
        *NORMED, *LAYER, "conv1.weight", "conv2.weight", "proj.weight", "gate_proj.weight", "up_proj.weight",
        "down_proj.weight", "deconv1.weight", "deconv2.weight", "embed.weight", "dwconv.weight", "pwconv1.weight",
        "pwconv2.weight", "out.weight",
    },
    "discriminators": {*NORMED, "parametrizations.weight.original", "layers.weight"},
    "frequency discriminator": NORMED,
    "xcodec": XCODEC,
    "xcodec with wavlm": {*XCODEC, "gru_rel_pos_linear.weight", "rel_attn_embed.weight"},
    "hubert": {*SELF_SUPERVISED, "proj.weight", "labels"},
    "language model": {
        *LAYER, *ATTENTION, "proj.weight", "gate_proj.weight", "up_proj.weight", "down_proj.weight", "o_proj.weight",
        "embed_tokens.weight",
    },
}  # fmt: skip


def network_of(name, folder):
    if name == "xy_tokenizer":
        return XYTokenizer(tiny_model())
    if name == "discriminators":
        return Discriminators(channels=4)
    if name == "frequency discriminator":
        return MultiFrequencyDiscriminator(16_000, channels=8)
    if name.startswith("xcodec"):
        config = xcodec_config()
        if "wavlm" in name:
            semantic = config.semantic.model_copy(update={"kind": "wavlm"})
            config = config.model_copy(update={"semantic": semantic})
        return XCodec(config)
    if name == "hubert":
        sizes = {"d_model": 16, "layers": 1, "heads": 2, "ffn_dim": 24, "conv_dim": 8, "position_kernel": 8}
        made = recipe("hubert", model={**sizes, "position_groups": 2}, codebook_size=12)
        return open_stage(made, Engine(made.engine)).model
    made = pretraining(save_lm(folder / "lm"), lm={"trainable": True})
    return open_stage(made, Engine(made.engine)).semantic_lm


@pytest.mark.parametrize("name", DECAYED)
def test_what_decays_of_every_network(name, tmp_path):
    """Weights of maps and convolutions, and embeddings: nothing else, whatever shape it has."""
    network = network_of(name, tmp_path)
    decayed = [re.sub(r"\.\d+", "", place) for place, value in network.named_parameters() if is_matrix(value)]
    assert {re.search(r"(\w+\.weight(\.\w+)?|\w+)$", place)[0] for place in decayed} == DECAYED[name]


def test_a_checkpoint_in_which_more_decayed_goes_on():
    """Earlier versions let Snake's alpha decay; averages come from the checkpoint, settings from the recipe."""
    net = Net()
    trained = [value for value in net.parameters() if value.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.5},
        {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
    ]
    before = torch.optim.AdamW(groups, lr=0.1, betas=(0.7, 0.8))
    for value in trained:
        value.grad = torch.randn_like(value)
    before.step()
    before.zero_grad()
    updater = Updater(net, OptimizerConfig(lr=0.2, weight_decay=0.25), steps=10)
    load_optimizer(net, updater.optimizer, optimizer_state(net, before))
    for value in trained:
        for name, expected in before.state[value].items():
            assert torch.equal(updater.optimizer.state[value][name], expected)
    decays = {id(p): group["weight_decay"] for group in updater.optimizer.param_groups for p in group["params"]}
    assert (decays[id(net.snake.alpha)], decays[id(net.plain.weight)]) == (0.0, 0.25)
    assert {tuple(group["betas"]) for group in updater.optimizer.param_groups} == {OptimizerConfig().betas}


@pytest.mark.parametrize("clip", [None, 0.5, 100.0])
def test_gradients_are_clipped_to_their_norm(clip):
    net = Net()
    config = OptimizerConfig(lr=0.1, betas=(0.9, 0.9), clip=clip, warmup_steps=0, final_lr=1.0)
    updater = Updater(net, config, steps=10)
    for value in net.parameters():
        value.grad = torch.full_like(value, 0.3) if value.requires_grad else None
    count = sum(value.numel() for value in net.parameters() if value.requires_grad)
    norm = updater.update(0)
    assert float(norm) == pytest.approx(0.3 * count**0.5)
    assert all(value.grad is None for value in net.parameters())
    # AdamW's first average holds a tenth of the gradient that it was given.
    given = updater.optimizer.state[net.plain.bias]["exp_avg"][0].item() / 0.1
    assert given == pytest.approx(0.3 * min(1, (clip or math.inf) / float(norm)), rel=1e-4)


def test_rates_can_fall_with_the_time():
    config = OptimizerConfig(lr=1.0, warmup_steps=0, final_lr=0.0)
    updater = SimpleNamespace(steps=1_000_000)
    recipe = pretraining(steps=1_000_000, minutes=1, anneal="minutes")
    stage = SimpleNamespace(updaters={"model": updater})
    trainer = Trainer(recipe, stage, None, iter, iter, Path("unused"))
    # At any speed the rate is that of the share of the time: after 30 or 3000 steps in half of it, half the peak.
    for step in (30, 3000):
        trainer.step = step
        trainer._expect(0.5)
        assert learning_rate(config, step - 1, updater.steps) == pytest.approx(0.5)
        trainer._expect(1.01)
        assert learning_rate(config, step - 1, updater.steps) == pytest.approx(0.0)
    trainer._expect(0.0)
    assert updater.steps == recipe.steps
    # Gone on from step 1000, 30 steps in half of the time: 60 are to come in all, and not 2060.
    trainer._from, trainer.step = 1000, 1030
    trainer._expect(0.5)
    assert updater.steps == 1060


def test_falling_with_the_time_needs_a_limit():
    with pytest.raises(ConfigError, match="anneal: minutes needs a limit: set minutes"):
        pretraining(anneal="minutes")
