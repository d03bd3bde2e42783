"""Every configuration has the reference's entries, and its layers have the reference's settings."""

import pytest
import torch
from torch import nn

from tests.models.reference import CONFIGS, build, read_reference


@pytest.mark.parametrize("config", CONFIGS)
def test_state_dict_has_keys_order_and_shapes_of_released_weights(config):
    ours = [[key, list(tensor.shape)] for key, tensor in build(config).state_dict().items()]

    assert ours == read_reference(f"statedict/{config}.json")["state_dict"]


@pytest.mark.parametrize("config", CONFIGS)
def test_layers_have_names_and_settings_of_the_reference(config):
    ours = {name: settings for name, module in build(config).named_modules() if (settings := _settings(module))}

    kept = {key for settings in ours.values() for key in settings}
    assert ours == {
        module["name"]: {key: value for key, value in module.items() if key in kept}
        for module in _reference_layers(config)
    }


@pytest.mark.parametrize("config", CONFIGS)
def test_layers_give_the_shapes_of_the_reference(config):
    described = {
        module["name"]: module["out_shape_at_3x32x256x256"]
        for module in _reference_layers(config)
        if module["type"] in ("Conv3d", "BatchNorm3d", "MaxPool3d", "Linear")
    }
    model = build(config).eval()
    ours = {}
    for name in described:
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: ours.update({name: list(output.shape[1:])})
        )

    model(torch.empty(1, 3, 32, 256, 256, device="meta"))

    assert ours == described


def _reference_layers(config: str) -> list[dict]:
    """What the reference built and used. Its `pool2` is built and never called; we have none."""
    modules = read_reference(f"statedict/{config}.json")["modules"]
    return [module for module in modules if not module.get("never_called_in_forward")]


def _settings(module: nn.Module) -> dict | None:
    """A layer in the reference's words; None for a module that only holds others, or does nothing."""
    match module:
        case nn.Conv3d():
            return {
                "type": "Conv3d",
                "cin": module.in_channels,
                "cout": module.out_channels,
                "k": list(module.kernel_size),
                "s": list(module.stride),
                "p": list(module.padding),
                "dil": list(module.dilation),
                "g": module.groups,
                "bias": module.bias is not None,
            }
        case nn.BatchNorm3d():
            return {
                "type": "BatchNorm3d",
                "c": module.num_features,
                "eps": module.eps,
                "momentum": module.momentum,
                "affine": module.affine,
                "track": module.track_running_stats,
            }
        case nn.MaxPool3d():
            return {
                "type": "MaxPool3d",
                "k": list(module.kernel_size),
                "s": list(module.stride),
                "p": list(module.padding),
                "ceil": module.ceil_mode,
            }
        case nn.Linear():
            return {
                "type": "Linear",
                "cin": module.in_features,
                "cout": module.out_features,
                "bias": module.bias is not None,
            }
        case nn.Dropout():
            return {"type": "Dropout", "p": module.p}
        case nn.ReLU():
            return {"type": "ReLU", "inplace": module.inplace}
        case nn.AdaptiveAvgPool3d():
            return {"type": "AdaptiveAvgPool3d"}
    return None
