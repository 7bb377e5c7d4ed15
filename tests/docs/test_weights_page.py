"""The tables of docs/weights.md against the tensors of models of every kind and size."""

import re
from itertools import product
from types import SimpleNamespace

import pytest
from tests.documents import ROOT
from tests.exporting import CODECS

from xycodec.checkpoints.build import empty_codec
from xycodec.models.presets import NAMED_CONFIGS
from xycodec.nn.folding import built_folded

CONFIGS = {
    **CODECS,
    **{name: NAMED_CONFIGS[name] for name in ("xy-mini", "xy-tokenizer-24k")},
}


def tables():
    """Rows (tensor, shape, counts, what) of each section."""
    found = {}
    for section in (ROOT / "docs" / "weights.md").read_text(encoding="utf-8").split("\n## ")[1:]:
        rows = [
            re.split(r" *\| *", line.strip(" |\n"), maxsplit=3)
            for line in section.splitlines()
            if line.startswith("| `")
        ]
        found[section.partition("\n")[0]] = [[cell.strip() for cell in row] + [""] * (4 - len(row)) for row in rows]
    return found


TABLES = tables()


def namespace(value):
    if isinstance(value, dict):
        return SimpleNamespace(**{key: namespace(item) for key, item in value.items()})
    return value


def words(config):
    """What the shapes' words stand for: keys of config.json, and the page's own."""
    known = {key: namespace(value) for key, value in config.model_dump().items()} | {"len": len}
    if config.model_type == "x-codec":
        return known | {"latent": config.latent_dim}
    semantic = config.semantic_encoder.d_model if config.semantic_encoder else 0
    return known | {
        "hop": config.output_sample_rate // 100,
        "factor": config.downsample_factor,
        "latent": config.pre_rvq_adapter.d_model * config.downsample_factor,
        "joint": config.acoustic_encoder.d_model + semantic,
        "positions": config.window_frames * config.downsample_factor,
    }


def shape_of(cell, known):
    made = eval(cell.strip("`"), {}, known)
    return made if isinstance(made, tuple) else (made,)


def expanded(rows, known):
    """Every tensor of some rows with its shape, all counts counted."""
    found, dropped = {}, ""
    for tensor, shape, counts, what in rows:
        name, limits = tensor.strip("`"), re.findall(r"(\w) < ([^,`]+)", counts)
        for values in product(*(range(eval(limit, {}, known)) for _, limit in limits)):
            index = dict(zip((letter for letter, _ in limits), values, strict=True))
            local = known | index
            if "N" in index and "encoder_width" in known:
                local |= {
                    "width": known["encoder_width"] * 2 ** index["N"],
                    "wide": known["decoder_width"] // 2 ** index["N"],
                }
            size = shape_of(shape, local)
            if "only if both differ" in what:
                dropped = name.removesuffix("weight") if size[0] == size[1] else ""
            if dropped and name.startswith(dropped):
                continue
            found[re.sub(r"\b[NM]\b", lambda match, index=index: str(index[match[0]]), name)] = size
    return found


def documented(config):
    known = words(config)
    rows = TABLES["X-Codec" if config.model_type == "x-codec" else "XY-Tokenizer"]
    semantic = known.get("semantic", known.get("semantic_encoder"))
    missing = () if semantic else ("semantic_", "fusion", "acoustic_proj")
    kept = [row for row in rows if not row[0].strip("`").startswith(missing or " ")]
    if getattr(known.get("semantic"), "kind", "tower") != "tower":
        kept = [row for row in kept if not row[0].startswith("`semantic_model.tower")]
    plain = [row for row in kept if "ransformer" not in row[1]]
    found = expanded(plain, known)
    for name, part, _, _ in kept:
        if match := re.match(r"transformer `(\w+)` of `([\w.]+)`", part):
            size = known[match[1]]
            local = {"D": size.d_model, "F": size.ffn_dim, "L": size.layers, "P": eval(match[2], {}, known)}
            tensors = expanded(TABLES["Transformer"], local)
            found |= {f"{name.strip('`')}.{key}": shape for key, shape in tensors.items()}
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_every_tensor_is_documented_with_its_shape(name):
    with built_folded():
        codec = empty_codec(CONFIGS[name])
    codec.fold_weight_norm()
    tensors = {key: tuple(value.shape) for key, value in codec.state_dict().items()}
    own = {key: shape for key, shape in tensors.items() if not key.startswith("semantic_model.model.")}
    assert documented(CONFIGS[name]) == own
