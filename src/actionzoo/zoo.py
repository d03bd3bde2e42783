"""Models by name, and the networks that their recipes describe."""

import re
from typing import TYPE_CHECKING

from .params import load_params
from .recipe import CSNModel, SlowFastModel

if TYPE_CHECKING:
    from torch import nn  # takes seconds to import; a stage that finds its work done does without it


def list_models() -> list[str]:
    """Names of all models, in the order of params.yaml."""
    return load_params().models()


def create_model(model: str, num_classes: int = 400) -> "nn.Module":
    """The model's network with random weights: (N, 3, T, H, W) float clips -> (N, num_classes) logits.

    Follows the recipe as written, whatever data set is chosen. Raises UserError for an unknown model.
    """
    params = load_params()
    params.check_model(model)
    return build_model(params.recipes[model].model, num_classes)


def build_model(model: SlowFastModel | CSNModel, num_classes: int) -> "nn.Module":
    """The network that a recipe's model section describes."""
    from .models.csn import CSN
    from .models.slowfast import SlowFast

    match model:
        case SlowFastModel():
            return SlowFast(
                slow_depth=model.slow_depth,
                fast_depth=model.fast_depth,
                alpha=model.alpha,
                beta=model.beta,
                fusion_kernel=model.fusion_kernel,
                num_classes=num_classes,
                dropout=model.dropout,
            )
        case CSNModel():
            return CSN(
                depth=model.depth,
                bottleneck=model.bottleneck,
                norm_eval=model.norm_eval,
                bn_frozen=model.bn_frozen,
                num_classes=num_classes,
                dropout=model.dropout,
            )


def freeze(model: "nn.Module", frozen_stages: int) -> "list[nn.Module]":
    """Exclude the first of a backbone's five stages (stem, layer1 ... layer4) from training, in both pathways, with the
    lateral connections behind them. Returns their modules, which the caller keeps in eval mode."""
    names = ["conv1", "layer1", "layer2", "layer3", "layer4"][:frozen_stages]
    pattern = rf"backbone\.(?:\w+_path\.)?(?:{'|'.join(names)})(?:_lateral)?"
    modules = [module for name, module in model.named_modules() if names and re.fullmatch(pattern, name)]
    for module in modules:
        module.requires_grad_(False)
    return modules
