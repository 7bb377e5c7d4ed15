"""The comparison of codecs by small language models: its recipes, and bits a second."""

import json
import math

import pytest
from tests.lm.speaking import ABOUT, TINY, recipe, write_speech
from tests.runs.test_smollm import script

from xycodec.train.recipe_file import load_recipe
from xycodec.train.run import train


@pytest.mark.parametrize("half", ["ar", "nar"])
def test_recipes_train_both_halves_alike(half):
    made = load_recipe(f"lm/small/valle_{half}.yaml", ())
    assert made.stage == f"valle_{half}"
    assert made.model.transformer == load_recipe("lm/small/valle_ar.yaml", ()).model.transformer


def test_bits_a_second_are_losses_times_codes(tmp_path):
    store = write_speech(tmp_path / "store")
    folder = tmp_path / "codec"
    for half in ("ar", "nar"):
        changes = {"model": {"transformer": TINY}, "steps": 1, "validation": {"every": 1}}
        data = {"batch_clips": 4, "valid": [str(store.folder)]}
        train(recipe(f"valle_{half}", folder / half, store, data=data, **changes), quiet=True)
    cells = [cell.strip() for cell in script("lm_bits").row(folder).split("|")]
    loss = {}
    for half in ("ar", "nar"):
        rows = map(json.loads, (folder / half / "metrics.jsonl").read_text().splitlines())
        loss[half] = [one for one in rows if one["kind"] == "valid"][-1][half]
    first = loss["ar"] * ABOUT.frame_rate / math.log(2)
    others = loss["nar"] * ABOUT.frame_rate * (ABOUT.n_q - 1) / math.log(2)
    assert cells[1:5:3] == ["codec", f"{first:.0f}"]
    assert cells[2] == f"{math.exp(loss['ar']):.1f}"
    assert cells[7] == f"{others:.0f}"
    stored = ABOUT.frame_rate * ABOUT.n_q * math.log2(ABOUT.codebook_size)
    assert cells[8] == f"{first + others:.0f} of {stored:.0f}"
