"""Recipes: what is read, what is refused and in what words, and what the bundled files say."""

from pathlib import Path

import pytest
import yaml

from xycodec.errors import ConfigError
from xycodec.models.xy_tokenizer.config import CONFIGS
from xycodec.train.recipe_file import BUNDLED, load_recipe, save_recipe
from xycodec.train.stages.posttrain import PosttrainRecipe
from xycodec.train.stages.pretrain import PretrainRecipe

CONFIG_FOLDER = BUNDLED / "xy_tokenizer"
FILES = sorted(path.relative_to(CONFIG_FOLDER).as_posix() for path in CONFIG_FOLDER.rglob("[!_]*.yaml"))
ABSENT = "absent"
SMALLEST = {
    "stage": "pretrain",
    "output": "run",
    "steps": 5,
    "model": {"preset": "xy-random"},
    "data": {"train": ["a"]},
}


@pytest.fixture
def write(tmp_path):
    def make(name="recipe.yaml", text=None, **changes):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(SMALLEST | changes) if text is None else text)
        return path

    return make


def refusal(path, *overrides):
    with pytest.raises(ConfigError) as refused:
        load_recipe(path, overrides)
    message = str(refused.value)
    assert "\n" not in message
    return message


def flat(value, prefix=""):
    """{a: {b: 1}} -> {"a.b": 1}."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        key: leaf for name, part in value.items() for key, leaf in flat(part, f"{prefix}.{name}".strip(".")).items()
    }


def differing(one, other):
    one, other = (flat(recipe.model_dump(mode="json")) for recipe in (one, other))
    both = one.keys() | other.keys()
    return {key: one.get(key, ABSENT) for key in both if one.get(key, ABSENT) != other.get(key, ABSENT)}


# defaults: what the paper says


def test_published_values_of_pretraining(write):
    recipe = load_recipe(write())
    assert isinstance(recipe, PretrainRecipe)
    assert recipe.loss.model_dump() == {"asr": 20, "mel": 15, "commitment": 1, "features": 0, "states": 0}
    assert recipe.optimizer.model_dump() == {
        "lr": 1e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.01, "warmup_steps": 2000, "final_lr": 0.1,
        "clip": 1.0, "schedule": "cosine", "kind": "adamw", "eden_steps": 5000, "eden_epochs": 4.0,
    }  # fmt: skip
    assert (recipe.towers, recipe.freeze_semantic) == ("openai/whisper-small", True)
    assert (recipe.lm.source, recipe.lm.trainable) == ("Qwen/Qwen2.5-0.5B", False)
    assert recipe.lm.adapter.model_dump() == {"d_model": 768, "layers": 4, "heads": 12, "ffn_dim": 3072}
    assert recipe.lm.reads == "post_rvq_adapter"
    assert (recipe.data.clip_seconds, recipe.data.crop, recipe.data.batch_clips) == (30, "first", 4)
    assert recipe.engine.precision == "bf16"
    assert {recipe.data.augment.model_dump()[key] for key in ("speed", "pitch", "gain", "eq")} == {0}


def test_published_values_of_posttraining(write):
    changes = {"stage": "posttrain", "weights": "run"}
    text = yaml.safe_dump({key: value for key, value in SMALLEST.items() if key != "model"} | changes)
    recipe = load_recipe(write(text=text))
    assert isinstance(recipe, PosttrainRecipe)
    assert recipe.loss.model_dump() == {"mel": 15, "feature": 1, "adversarial": 1, "log_mel": 0, "states": 0}
    assert (recipe.optimizer.lr, recipe.discriminator_optimizer.lr) == (1e-5, 1e-4)
    assert recipe.optimizer.weight_decay == recipe.discriminator_optimizer.weight_decay == 0.01
    assert recipe.discriminators.model_dump() == {"period": True, "scale": True, "spectrogram": True, "channels": 32}


# reading


def test_bases_are_merged_and_the_nearest_wins(write):
    write("far.yaml", optimizer={"lr": 1.0, "clip": 2.0}, data={"train": ["a", "b"], "workers": 7})
    write("near.yaml", text="base: far.yaml\noptimizer: {lr: 2.0}\ndata: {train: [c]}\n")
    recipe = load_recipe(write("in/it.yaml", text="base: ../near.yaml\nsteps: 6\n"), ("optimizer.betas=[0, 0.5]",))
    assert recipe.steps == 6
    assert (recipe.optimizer.lr, recipe.optimizer.clip, recipe.optimizer.betas) == (2.0, 2.0, (0, 0.5))
    assert [source.path for source in recipe.data.train] == ["c"]
    assert recipe.data.workers == 7


def test_a_preset_can_be_changed_in_part(write):
    path = write(model={"preset": "xy-tokenizer", "quantizer": {"n_q": 4}})
    full = CONFIGS["xy-tokenizer"]
    assert load_recipe(path).model == full.model_copy(
        update={"quantizer": full.quantizer.model_copy(update={"n_q": 4})}
    )
    other = load_recipe(path, ("model.preset=xy-random", "model.vocos={layers: 2}")).model
    assert (other.acoustic_encoder, other.quantizer.n_q, other.vocos.layers) == (
        CONFIGS["xy-random"].acoustic_encoder, 4, 2,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("steps=7", lambda r: r.steps, 7),
        ("optimizer.lr=3e-4", lambda r: r.optimizer.lr, 3e-4),  # a string in YAML 1.1
        ("engine.compile=true", lambda r: r.engine.compile, True),
        ("optimizer.clip=null", lambda r: r.optimizer.clip, None),
        ("optimizer.clip=", lambda r: r.optimizer.clip, None),
        ("minutes=1.5", lambda r: r.minutes, 1.5),
        ("data.train=[x, {path: y}]", lambda r: [s.path for s in r.data.train], ["x", "y"]),
        ("data.train=[{path: x, weight: 2}]", lambda r: r.data.train[0].weight, 2),
        ("data.augment.speed_range=[0.5, 2]", lambda r: r.data.augment.speed_range, (0.5, 2)),
        ("lm.prompt=a=b", lambda r: r.lm.prompt, "a=b"),
        ("lm={prompt: hear}", lambda r: (r.lm.prompt, r.lm.source), ("hear", "Qwen/Qwen2.5-0.5B")),
        ("model.quantizer.commitment=l2", lambda r: r.model.quantizer.commitment, "l2"),
    ],
)  # fmt: skip
def test_overrides(write, override, read, expected):
    got = read(load_recipe(write(), (override,)))
    assert got == expected
    assert type(got) is type(expected) or got == pytest.approx(expected)


def test_the_last_override_wins_and_another_may_go_through_null(write):
    path = write(lm=None, loss={"asr": 0})
    recipe = load_recipe(path, ("steps=7", "steps=8", "lm.trainable=true"))
    assert (recipe.steps, recipe.lm.trainable) == (8, True)


def test_a_saved_recipe_says_all_and_loads_as_the_same(write):
    recipe = load_recipe(write(output="läuft", data={"train": [{"path": "a", "weight": 1}]}), ("lm.prompt='null'",))
    text = save_recipe(recipe)
    assert load_recipe(write("saved.yaml", text=text)) == recipe
    assert "läuft" in text
    assert flat(yaml.safe_load(text)).keys() == flat(recipe.model_dump(mode="json")).keys()


# refusals


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stpes=5", "stpes: unknown key, did you mean 'steps'?"),
        ("optimizer.weight_decy=0", "optimizer.weight_decy: unknown key, did you mean 'weight_decay'?"),
        ("data.augment.pich=1", "data.augment.pich: unknown key, did you mean 'pitch'?"),
        ("model.quantizer.n_k=1", "model.quantizer.n_k: unknown key, did you mean 'n_q'?"),
        ("model.quantizer.decay=1.5", "model.quantizer.decay: "),
        ("model.quantizer.dropout=1.5", "model.quantizer.dropout: "),
        ("model.quantizer.dead_code_threshold=-1", "model.quantizer.dead_code_threshold: "),
        ("data.train=[{path: a, wieght: 1}]", "data.train.0.wieght: unknown key, did you mean 'weight'?"),
        ("zzzzzz=5", "zzzzzz: unknown key"),
        ("steps=many", "steps: "),
        ("steps=0", "steps: "),
        ("steps=1.5", "steps: "),
        ("steps=null", "steps: "),
        ("steps.more=1", "steps: "),
        ("optimizer=1", "optimizer: "),
        ("optimizer.lr=0", "optimizer.lr: "),
        ("optimizer.lr=.nan", "optimizer.lr: "),
        ("optimizer.lr=.inf", "optimizer.lr: "),
        ("optimizer.betas=[0.9, 1.0]", "optimizer.betas.1: "),
        ("optimizer.betas=[0.9]", "optimizer.betas.1: "),
        ("engine.kind=deepspeed", "engine.kind: "),
        ("engine.compile=perhaps", "engine.compile: "),
        ("data.train=[]", "name at least one source"),
        ("data.train=[{path: a, weight: 1}, b]", "give every source a weight, or none"),
        ("data.valid=[{path: a, weight: 1}]", "have no weights"),
        ("data.augment.gain_range=[3, -3]", "[3.0, -3.0] is not a range"),
        ("data.augment.speed_range=[0, 1]", "data.augment.speed_range.0: "),
        ("lm=null", "loss.asr needs a language model: give lm, or set loss.asr to 0"),
        ("loss={asr: 0, mel: 0, commitment: 0}", "every weight is 0"),
        ("loss.mel=-1", "loss.mel: "),
        ("model.preset=xy-tiny", "'xy-tiny' is not one of xy-tokenizer, "),
        ("model.preset=[a]", "['a'] is not one of xy-tokenizer, "),
        ("model=7", "model: "),
        ("model.semantic_encoder=null", "given together or not at all"),
        ("stage=finetune", "stage is 'finetune', must be one of autoencode, ctc, delay, gpt, "),
        ("stage=[pretrain]", "stage is ['pretrain'], must be one of"),
        ("stage=posttrain", "weights: Field required"),
        ("base=other.yaml", "base: unknown key"),
        ("steps", "'steps' is not key=value"),
        ("=5", "'=5' is not key=value"),
        ("optimizer..lr=5", "is not key=value"),
        ("data.train=[a", "the value is not YAML"),
    ],
)  # fmt: skip
def test_refused_values(write, override, words):
    message = refusal(write(), override)
    assert words in message
    assert "recipe.yaml" in message or override in message


def test_posttraining_refuses_shards(write):
    text = yaml.safe_dump({"stage": "posttrain", "output": "a", "steps": 1, "weights": "b", "data": {"train": ["c"]}})
    path = write(text=text)
    load_recipe(path)
    assert "runs on ddp or single" in refusal(path, "engine.kind=fsdp2")
    assert "every weight is 0" in refusal(path, "loss={mel: 0, feature: 0, adversarial: 0}")
    assert "output_sample_rate: " in refusal(path, "output_sample_rate=44100")


def test_refused_files(tmp_path, write):
    assert "no.yaml: cannot be read (No such file or directory)" in refusal(tmp_path / "no.yaml")
    assert "cannot be read (Is a directory)" in refusal(tmp_path)
    assert "recipe.yaml: not YAML" in refusal(write(text="a: [1\nb: 2\n"))
    assert "expected a mapping" in refusal(write(text=""))
    assert "expected a mapping" in refusal(write(text="- a\n- b\n"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    assert "binary.yaml: cannot be read (not text)" in refusal(tmp_path / "binary.yaml")
    assert "missing.yaml: cannot be read" in refusal(write(text="base: missing.yaml\n"))
    text = "stage: pretrain\noutput: a\nmodel: {preset: xy-random}\ndata: {train: [a]}\n"
    assert "steps: Field required" in refusal(write(text=text))


@pytest.mark.parametrize("length", [1, 2, 3])
def test_bases_in_a_circle(write, length):
    for number in range(length):
        write(f"{number}.yaml", text=f"base: {(number + 1) % length}.yaml\n")
    assert "leads back to itself" in refusal(write("recipe.yaml", text="base: 0.yaml\n"))


# src/xycodec/configs/


@pytest.mark.parametrize("name", FILES)
def test_every_config_loads(name):
    recipe = load_recipe(CONFIG_FOLDER / name)
    assert (CONFIG_FOLDER / name).read_text().startswith("# ")
    assert load_recipe(CONFIG_FOLDER / name, ("steps=3",)).steps == 3
    # No two write into one folder.
    assert [other for other in FILES if load_recipe(CONFIG_FOLDER / other).output == recipe.output] == [name]


def test_pretraining_is_the_paper_s():
    recipe = load_recipe(CONFIG_FOLDER / "pretrain.yaml")
    assert recipe.model == CONFIGS["xy-tokenizer"]
    assert (recipe.steps, recipe.engine.kind, recipe.engine.precision) == (800_000, "fsdp2", "bf16")
    changed = differing(recipe, load_recipe(CONFIG_FOLDER / "pretrain.yaml", ("optimizer={}", "loss={}", "lm={}")))
    assert changed == {}


def test_the_published_code_s_losses_have_a_recipe_of_their_own():
    paper, code = (load_recipe(CONFIG_FOLDER / f"{name}.yaml") for name in ("pretrain", "published_code"))
    assert paper.model.quantizer.commitment == "l1"
    assert differing(code, paper) == {
        "output": code.output, "model.quantizer.commitment": "l2", "model.quantizer.commit_every_layer": False,
    }  # fmt: skip


def test_recipes_of_bundled_models_keep_what_was_once_a_default():
    for name in ("features", "again", "vocoder"):
        assert load_recipe(CONFIG_FOLDER / f"xy_mini/{name}.yaml").model.quantizer.commitment == "l2"
    for name in ("xy_mini/decoder", "xy_mini/posttrain", "small_posttrain"):
        assert not load_recipe(CONFIG_FOLDER / f"{name}.yaml").freeze_adapter
    assert load_recipe(CONFIG_FOLDER / "small.yaml").model.quantizer.commitment == "l2"
    for path in (CONFIG_FOLDER.parent / "xcodec" / "x_mini").glob("*.yaml"):
        assert load_recipe(path).loss.mel == 45


def test_posttraining_is_the_paper_s():
    recipe = load_recipe(CONFIG_FOLDER / "posttrain.yaml")
    assert (recipe.steps, recipe.data.batch_clips, recipe.data.clip_seconds, recipe.data.crop) == (
        250_000,
        16,
        5,
        "random",
    )
    assert (recipe.optimizer.lr, recipe.discriminator_optimizer.lr) == (1e-5, 1e-4)
    assert recipe.freeze_adapter
    assert recipe.weights == load_recipe(CONFIG_FOLDER / "pretrain.yaml").output
    higher = load_recipe(CONFIG_FOLDER / "posttrain_24k.yaml")
    assert differing(higher, recipe) == {
        "output": higher.output, "output_sample_rate": 24000, "model_id": "xy-tokenizer-24k",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "base", "changes"),
    [
        ("base", "../pretrain", {"steps": 200_000}),
        ("no_semantic_small", "base", {"model.semantic_encoder": None, "model.semantic_encoder_adapter": None}),
        (
            "no_semantic_medium",
            "no_semantic_small",
            {
                "towers": "openai/whisper-medium", "model.acoustic_encoder.d_model": 1024,
                "model.acoustic_encoder.layers": 24, "model.acoustic_encoder.heads": 16,
                "model.acoustic_encoder.ffn_dim": 4096,
            },
        ),
        ("lm_trainable", "base", {"lm.trainable": True}),
        ("random_init", "no_semantic_small", {"towers": None}),
        ("no_asr", "no_semantic_small", {"lm": None, "loss.asr": 0}),
        ("lm_frozen_400k", "base", {"steps": 400_000}),
        ("lm_frozen_800k", "base", {"steps": 800_000}),
        ("lm_trainable_400k", "lm_trainable", {"steps": 400_000}),
        ("lm_trainable_800k", "lm_trainable", {"steps": 800_000}),
        ("towers_base", "base", {
            "towers": "openai/whisper-base",
            **{f"model.{part}.{size}": value for part in ("semantic_encoder", "acoustic_encoder", "acoustic_decoder")
               for size, value in {"d_model": 512, "layers": 6, "heads": 8, "ffn_dim": 2048}.items()},
            **{f"model.{part}_adapter.{size}": value for part in ("semantic_encoder", "pre_rvq", "post_rvq")
               for size, value in {"d_model": 512, "heads": 8, "ffn_dim": 2048}.items()},
        }),
        ("towers_large", "base", {
            "towers": "openai/whisper-large",
            **{f"model.{part}.{size}": value for part in ("semantic_encoder", "acoustic_encoder", "acoustic_decoder")
               for size, value in {"d_model": 1280, "layers": 32, "heads": 20, "ffn_dim": 5120}.items()},
            **{f"model.semantic_encoder_adapter.{size}": value
               for size, value in {"d_model": 1280, "heads": 20, "ffn_dim": 5120}.items()},
        }),
        ("adversarial", "../posttrain", {"weights": "exp/ablations/full"}),
        ("commitment_l2", "base", {"model.quantizer.commitment": "l2"}),
        ("quantizer_dropout", "base", {"model.quantizer.dropout": 0.5}),
        ("small_vocoder", "base", {"model.vocos.layers": 15, "model.vocos.intermediate_dim": 2048}),
    ],
)  # fmt: skip
def test_an_ablation_differs_in_what_it_names(name, base, changes):
    folder = CONFIG_FOLDER / "ablations"
    changed = differing(load_recipe(folder / f"{name}.yaml"), load_recipe(folder / f"{base}.yaml"))
    changed = {key: value for key, value in changed.items() if key not in ("output", "model.model_id")}
    assert {key: value for key, value in changed.items() if value != ABSENT} == changes


def test_every_ablation_is_tested():
    tested = {case[0] for case in test_an_ablation_differs_in_what_it_names.pytestmark[0].args[1]}
    assert tested == {Path(name).stem for name in FILES if name.startswith("ablations/")}


def test_names_that_keys_and_stages_once_had_are_still_read(write, tmp_path):
    base = write("base.yaml", hear_seconds=0.5)
    assert load_recipe(base).segment_seconds == 0.5
    assert load_recipe(base, ("segment_seconds=0.25",)).segment_seconds == 0.25
    later = write(text=f"base: {base}\nsegment_seconds: 0.75\n")
    assert load_recipe(later).segment_seconds == 0.75
    assert load_recipe(later, ("hear_seconds=1",)).segment_seconds == 1
    assert "hear_seconds" not in save_recipe(load_recipe(base))
    tower = {"d_model": 16, "layers": 1, "heads": 2, "ffn_dim": 24}
    text = yaml.safe_dump({"stage": "recognise", "output": "a", "steps": 1, "data": {"train": ["c"]}, "tower": tower})
    once = load_recipe(write(text=text))
    assert once.stage == "ctc"
    assert once == load_recipe(write(text=text.replace("recognise", "ctc")))


def test_a_bundled_recipe_is_found_by_its_name(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    assert load_recipe("xy_tokenizer/debug.yaml") == load_recipe(CONFIG_FOLDER / "debug.yaml")
    mine = write(text="base: xy_tokenizer/debug.yaml\nsteps: 7\n")
    assert differing(load_recipe(mine), load_recipe("xy_tokenizer/debug.yaml")) == {"steps": 7}
    # A file of that path comes first.
    write("xy_tokenizer/debug.yaml", steps=9)
    assert load_recipe("xy_tokenizer/debug.yaml").steps == 9
    assert "nothing.yaml: cannot be read" in refusal("nothing.yaml")
