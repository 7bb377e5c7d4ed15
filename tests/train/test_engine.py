from functools import partial

import pytest
import torch
from tests.training import QUICK, batch, clip, posttraining, pretraining, save_lm, seeded, tiny_model, two_processes

from xycodec.checkpoints.build import random_codec
from xycodec.checkpoints.save import save_codec
from xycodec.distributed import all_reduce_, world_size
from xycodec.errors import ConfigError
from xycodec.models.xy_tokenizer.model import XYTokenizer
from xycodec.nn.transformer import TransformerLayer
from xycodec.nn.vocos import ConvNeXtBlock
from xycodec.train.checkpoint import network_state
from xycodec.train.config import EngineConfig, ValidationConfig
from xycodec.train.engine import Engine, prepare_blocks
from xycodec.train.run import open_stage
from xycodec.train.validate import validate

CPU = EngineConfig(device="cpu", precision="float32")
# Batches hold some fifty frames. Sixteen codes would leave many a frame nothing after the first layer but rounding,
# which then chooses among the rest; three layers of eight leave every choice a hundred times as much as rounding.
MODEL = tiny_model(quantizer=QUICK.model_copy(update={"n_q": 3, "codebook_size": 8}))
# With the usual eps Adam makes whole steps of gradients that are nothing but rounding, and within three steps other
# sums' rounding has become a difference of a ten-thousandth. With this one weights still move by a thousandth a step.
STEADY = {"lr": 1e-3, "warmup_steps": 0, "eps": 0.1}

# ---- two processes and one -------------------------------------------------------------------------

WHOLE = (clip(0), clip(1, 0.6), clip(2, 1.3), clip(3, 0.9))
MUTE = tuple(clip(number, text=None) for number in (4, 5))
MORE = (clip(10, 1.4), clip(11), clip(12, 1.2))
EVEN = tuple(clip(number, 0.4) for number in range(6))


def steps_of(name):
    """For every step its micro-batches: the clips of either process."""
    return {
        "uneven": [[(WHOLE[:1], WHOLE[1:])], [(WHOLE[1:], WHOLE[:1])], [(WHOLE[:2], WHOLE[2:])], [(MUTE, WHOLE)]],
        "one is silent": [[((), WHOLE)], [(WHOLE[:2], ())], [((), WHOLE[2:])]],
        "one has no text": [[(MUTE, WHOLE[:2])], [(WHOLE[2:], MUTE)], [(MUTE[:1], MUTE[1:])]],
        "accumulated": [[(WHOLE, MORE[:1]), (MORE[1:], MUTE)], [(MORE[:1], WHOLE[2:]), ((), MORE)]],
        "posttrain": [[(EVEN[:1], EVEN[1:3])], [(EVEN[3:], EVEN[1:3])], [(EVEN[:1], EVEN[5:])]],
        "posttrain, one is silent": [[((), EVEN[:2])], [(EVEN[2:4], ())]],
        "posttrain accumulated": [[(EVEN[:1], EVEN[1:2]), (EVEN[2:4], EVEN[4:])]] * 2,
    }[name]


NARROW = {"channels": 4, "spectrogram": False}
RECIPES = {
    "listened to": ("uneven", {}),
    "silent": ("one is silent", {}),
    "without text": ("one has no text", {}),
    "accumulated": ("accumulated", {}),
    "trained lm": ("uneven", {"lm": {"trainable": True}, "freeze_semantic": False}),
    "computed again": ("uneven", {"engine": {"checkpoint_activations": True}}),
    "asr alone": ("uneven", {"loss": {"mel": 0, "commitment": 0}, "lm": {"reads": "quantizer"}}),
    "averaged": ("one is silent", {"ema": 0.5}),
    "posttrain": ("posttrain", {"ema": 0.5}),
    "posttrain silent": ("posttrain, one is silent", {"discriminators": NARROW}),
    "posttrain accumulated": ("posttrain accumulated", {"discriminators": NARROW}),
}
SHARDED = [name for name in RECIPES if "posttrain" not in name and name != "averaged"]
TRIALS = [("ddp", name) for name in RECIPES] + [("fsdp2", name) for name in SHARDED]
# Every plan of batches and either kind of engine; the other trials are long ones.
QUICK = [("ddp", name) for name in ("listened to", "averaged", "without text", "accumulated", "posttrain")]
QUICK += [("ddp", "posttrain accumulated"), ("fsdp2", "listened to")]
LONG = [trial for trial in TRIALS if trial not in QUICK]


def recipe_of(name, folder, kind):
    plan, changes = RECIPES[name]
    engine = {**changes.get("engine", {}), "kind": kind}
    changes = {**changes, "engine": engine, "optimizer": STEADY}
    if plan.startswith("posttrain"):
        return posttraining(folder / "codec", **changes, discriminator_optimizer=STEADY)
    return pretraining(folder / "lm", **changes, model=MODEL.model_dump())


def share(pair, rank):
    return batch(*(pair[0] + pair[1] if rank is None else pair[rank]))


def learn(name, folder, kind, rank=None):
    """Values and norms of every step, a validation amid them, and the networks in the end."""
    recipe = recipe_of(name, folder, kind)
    engine = Engine(recipe.engine)
    stage = open_stage(recipe, engine)
    values, norms, measured = [], [], None
    for number, pairs in enumerate(steps_of(RECIPES[name][0])):
        seeded(number)
        report = stage.step([share(pair, rank) for pair in pairs], number)
        average = all_reduce_(torch.stack(list(report.values.values()))) / world_size()
        values.append(dict(zip(report.values, average.tolist(), strict=True)))
        norms.append({key: float(norm) for key, norm in report.norms.items()})
        if number == 1 and name in ("listened to", "posttrain"):
            mine = VALIDATION if rank is None else VALIDATION[rank::2]
            result = validate(stage, engine, iter([batch(*clips) for clips in mine]), ValidationConfig(listen=2))
            measured = result.values, result.counts, [heard[0] for heard in result.clips], len(result.transcripts)
    states = {key: network_state(network, lambda _: True) for key, network in stage.networks.items()}
    return {"values": values, "norms": norms, "measured": measured, "states": states}


VALIDATION = [WHOLE[:1], MUTE + WHOLE[2:3], WHOLE[1:2]]


def work(rank, folder, trials):
    return {(kind, name): learn(name, folder, kind, rank) for kind, name in trials}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("engine")
    save_lm(place / "lm")
    save_codec(random_codec(MODEL), place / "codec")
    return place


@pytest.fixture(scope="module")
def processes(folder):
    """Results of a trial by two processes, by rank; they start once for all quick trials, and once for the long."""
    made = {}

    def results(kind, name):
        if (kind, name) not in made:
            trials = QUICK if (kind, name) in QUICK else LONG
            both = two_processes(partial(work, folder=folder, trials=trials), folder)
            made.update({trial: tuple(one[trial] for one in both) for trial in trials})
        return made[kind, name]

    return results


@pytest.fixture(scope="module")
def alone(folder):
    """Results of one process for the joined batches, computed when asked for."""
    made = {}
    return lambda name: made.setdefault(name, learn(name, folder, "single"))


@pytest.mark.parametrize(("kind", "name"), [*QUICK, *(pytest.param(*trial, marks=pytest.mark.long) for trial in LONG)])
def test_two_processes_equal_one(processes, alone, kind, name):
    first, second = processes(kind, name)
    expected = alone(name)
    # A value is a sum in another order. A norm is of a gradient that holds the signs of L1 distances, of which rounding
    # may turn one over: that alone makes 3e-5.
    for key, rounding in (("values", 2e-6), ("norms", 1e-4)):
        for step, whole in enumerate(expected[key]):
            assert first[key][step] == second[key][step]
            assert first[key][step] == pytest.approx(whole, rel=rounding), (key, step)
    for network, state in expected["states"].items():
        assert state.keys() == first["states"][network].keys()
        for key, value in state.items():
            torch.testing.assert_close(
                first["states"][network][key], value, atol=2e-5, rtol=2e-5, msg=lambda m, k=key: f"{k}: {m}"
            )


@pytest.mark.parametrize(("kind", "name"), [("ddp", "listened to"), ("fsdp2", "listened to"), ("ddp", "posttrain")])
def test_validation_of_uneven_shares_equals_one_process(processes, alone, kind, name):
    results = [result["measured"] for result in processes(kind, name)]
    values, counts, ids, transcripts = alone(name)["measured"]
    for got, used, _, _ in results:
        assert got == pytest.approx(values, rel=1e-5)
        assert torch.equal(used, counts)
    # The first two clips of either, and the transcripts of all that have text.
    assert [heard for _, _, heard, _ in results] == [["clip 0", "clip 1"], ["clip 4", "clip 5"]]
    assert ids == ["clip 0", "clip 4"]
    listens = name == "listened to"
    assert transcripts == sum(count for *_, count in results) == (3 if listens else 0)
    assert ("asr_wer" in values) == listens


def test_codes_died_and_weights_moved(folder, alone):
    """Or the tests above would compare too little."""
    state = alone("listened to")["states"]["model"]
    start = open_stage(recipe_of("listened to", folder, "single"), Engine(CPU)).model.state_dict()
    moved = {key for key, value in state.items() if not torch.equal(value, start[key])}
    assert {"codec.vocos.head.out.weight", "codec.acoustic_encoder.conv1.weight"} < moved
    # A replaced code has twice the count that it died below, a tenth of its layer's average at the time.
    counts = state["codec.quantizer.cluster_size"]
    assert counts.min() > 0
    assert state["codec.quantizer.inited"].all()
    model = tiny_model(quantizer=MODEL.quantizer.model_copy(update={"dead_code_threshold": 0.0}))
    never = open_stage(pretraining(folder / "lm", model=model.model_dump()), Engine(CPU))
    for number, pairs in enumerate(steps_of("uneven")):
        seeded(number)
        never.step([share(pair, None) for pair in pairs], number)
    assert never.codec.quantizer.cluster_size.min() < counts.min() / 2


# ---- one process -----------------------------------------------------------------------------------


@pytest.mark.long
def test_sharding_works_without_torchrun(folder, alone, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "nowhere.invalid")  # as on a cluster, outside torchrun
    recipe = recipe_of("without text", folder, "fsdp2")
    engine = Engine(recipe.engine)
    try:
        stage = open_stage(recipe, engine)
        for number, pairs in enumerate(steps_of("one has no text")):
            seeded(number)
            report = stage.step([share(pair, None) for pair in pairs], number)
            expected = alone("without text")
            assert {k: float(v) for k, v in report.values.items()} == pytest.approx(expected["values"][number])
            assert {k: float(v) for k, v in report.norms.items()} == pytest.approx(expected["norms"][number])
        state = network_state(stage.model, lambda _: True)
        torch.testing.assert_close(state, expected["states"]["model"], atol=1e-6, rtol=0)
    finally:
        engine.close()


def test_single_is_refused_where_there_are_several(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="single, but torchrun started 2 processes: use ddp"):
        Engine(EngineConfig(kind="single", device="cpu"))


@pytest.mark.long
def test_computing_blocks_again_changes_nothing(folder, alone):
    torch.testing.assert_close(alone("computed again")["values"], alone("listened to")["values"], rtol=1e-6, atol=0)
    torch.testing.assert_close(alone("computed again")["norms"], alone("listened to")["norms"], rtol=1e-6, atol=0)


def test_computing_blocks_again_keeps_less():
    kept = {}
    for checkpointing in (False, True):
        codec = XYTokenizer(tiny_model())
        prepare_blocks(codec, checkpointing=checkpointing, compiling=False)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            codec.acoustic_decoder(torch.randn(2, 40, 32))
        kept[checkpointing] = sum(sizes)
    assert kept[True] < 0.6 * kept[False]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, when it loads its compiler
def test_compiling_takes_the_blocks_and_nothing_else():
    codec = XYTokenizer(tiny_model())
    features = torch.randn(1, 40, 32)
    expected = codec.acoustic_decoder(features)
    prepare_blocks(codec, checkpointing=False, compiling=True)
    compiled = {type(part) for part in codec.modules() if part._compiled_call_impl is not None}
    assert compiled == {TransformerLayer, ConvNeXtBlock}
    # Without a compiler, what would be compiled runs as it is.
    with torch.compiler.set_stance("force_eager"):
        torch.testing.assert_close(codec.acoustic_decoder(features), expected, rtol=0, atol=0)
