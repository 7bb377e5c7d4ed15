"""Weight norm folded into plain weights, for inference."""

from torch import nn
from torch.nn.utils import parametrize


def fold_weight_norms(module: nn.Module) -> None:
    """Turn every weight-normed map of `module` into a plain one, which can be pickled."""
    for part in list(module.modules()):
        if parametrize.is_parametrized(part, "weight"):
            parametrize.remove_parametrizations(part, "weight")
            # torch leaves its reader of old checkpoints behind, a local function, which cannot be pickled.
            part._load_state_dict_pre_hooks.clear()
