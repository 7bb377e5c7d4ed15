"""What ablations of both papers train, how large it is and by which losses, from recipes as they are: no weights."""

import pytest
from tests.reference import PUBLISHED_PARAMETERS
from tests.training import save_lm

from xycodec.train.plan import parts_of
from xycodec.train.recipe_file import BUNDLED, load_recipe
from xycodec.train.stages import stage_of

TOWERS = {"semantic_encoder", "semantic_encoder_adapter"}
MODEL = set(PUBLISHED_PARAMETERS)
FULL = sum(PUBLISHED_PARAMETERS.values())
LM, ADAPTER = "semantic_lm.lm", "semantic_lm.adapter"


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return save_lm(tmp_path_factory.mktemp("lm") / "lm", positions=1000)


@pytest.fixture(scope="module")
def planned(lm):
    """Parts and the recipe of an ablation, once each, with a small language model in place of the real one."""
    made = {}

    def plan(name):
        if name not in made:
            recipe = load_recipe(f"xy_tokenizer/ablations/{name}.yaml")
            if recipe.lm is not None:
                recipe = load_recipe(f"xy_tokenizer/ablations/{name}.yaml", (f"lm.source={lm}",))
            made[name] = recipe, {part.name: part for part in parts_of(stage_of(recipe).build(recipe, meta=True))}
        return made[name]

    return plan


# Parts of the codec, its millions of parameters, what of everything is frozen, and weights of losses other than 0.
LOSSES = {"asr": 20, "mel": 15, "commitment": 1}
EXPECTED = {
    "base": (MODEL, 519.621074, {"semantic_encoder", LM}, LOSSES),
    "no_semantic_small": (MODEL - TOWERS, 403.088594, {LM}, LOSSES),
    "no_semantic_medium": (MODEL - TOWERS, 622.554066, {LM}, LOSSES),
    "lm_trainable": (MODEL, 519.621074, {"semantic_encoder"}, LOSSES),
    "random_init": (MODEL - TOWERS, 403.088594, {LM}, LOSSES),
    "no_asr": (MODEL - TOWERS, 403.088594, set(), {"mel": 15, "commitment": 1}),
    "towers_base": (MODEL, 245.556, {"semantic_encoder", LM}, LOSSES),
    "towers_large": (MODEL, 2220.643, {"semantic_encoder", LM}, LOSSES),
    "lm_frozen_400k": (MODEL, 519.621074, {"semantic_encoder", LM}, LOSSES),
    "lm_frozen_800k": (MODEL, 519.621074, {"semantic_encoder", LM}, LOSSES),
    "lm_trainable_400k": (MODEL, 519.621074, {"semantic_encoder"}, LOSSES),
    "lm_trainable_800k": (MODEL, 519.621074, {"semantic_encoder"}, LOSSES),
    "commitment_l2": (MODEL, 519.621074, {"semantic_encoder", LM}, LOSSES),
    "quantizer_dropout": (MODEL, 519.621074, {"semantic_encoder", LM}, LOSSES),
    "small_vocoder": (MODEL, 425.064914, {"semantic_encoder", LM}, LOSSES),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_parts_sizes_and_losses(name, planned):
    recipe, parts = planned(name)
    codec, millions, frozen, losses = EXPECTED[name]
    own = {part: one for part, one in parts.items() if not part.startswith("semantic_lm.")}
    assert set(own) == codec
    assert sum(part.parameters for part in own.values()) / 1e6 == pytest.approx(millions, abs=1e-3)
    assert {part for part, one in parts.items() if not one.trainable} == frozen
    assert all(one.trainable in (0, one.parameters) for one in parts.values())
    assert {loss for loss, weight in recipe.loss if weight} == set(losses)
    assert {loss: getattr(recipe.loss, loss) for loss in losses} == losses
    # What the language model listens through is there whenever it is, and learns.
    assert (ADAPTER in parts) == (LM in parts) == ("asr" in losses)
    assert recipe.data.batch_clips == 4  # on 32 processes 128
    assert recipe.optimizer.lr == 1e-4


def test_every_pretraining_ablation_is_planned():
    names = {path.stem for path in (BUNDLED / "xy_tokenizer" / "ablations").glob("*.yaml")}
    assert names - {"adversarial"} == set(EXPECTED)


@pytest.mark.parametrize(
    ("name", "semantic", "latent"),
    [("train", True, 1024), ("baseline", False, 256), ("general", True, 1024), ("general_baseline", False, 256),
     ("wavlm", True, 1024), ("published_code", True, 1024)],
)  # fmt: skip
def test_xcodec_with_and_without_its_semantic_half(name, semantic, latent):
    recipe = load_recipe(f"xcodec/{name}.yaml")
    assert recipe.model.latent_dim == latent
    assert (recipe.semantic_weights is not None) == semantic
    parts = {part.name: part for part in parts_of(stage_of(recipe).build(recipe, meta=True))}
    half = {"semantic_model", "semantic_encoder", "fusion", "semantic_proj", "semantic_decoder", "acoustic_proj"}
    assert half & set(parts) == (half if semantic else set())
    assert {part for part, one in parts.items() if not one.trainable} == ({"semantic_model"} if semantic else set())
    # The paper's sizes, in units of 2^20 weight-normed parameters.
    assert parts["acoustic_encoder"].parameters / 2**20 == pytest.approx(12.18, abs=0.01)
    assert parts["acoustic_decoder"].parameters / 2**20 == pytest.approx(19.27, abs=0.01)


def test_baselines_of_xcodec_differ_in_the_semantic_half_alone():
    for name, base in (("baseline", "train"), ("general_baseline", "general")):
        with_half, without = (load_recipe(f"xcodec/{one}.yaml") for one in (base, name))
        same = {"output", "model", "semantic_weights"}
        assert without.model_copy(update={key: getattr(with_half, key) for key in same}) == with_half
        named = {"semantic": with_half.model.semantic, "model_id": with_half.model.model_id}
        assert without.model.model_copy(update=named) == with_half.model
