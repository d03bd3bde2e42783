"""Every row has the reference's entries and size, and its layers have the reference's settings."""

import pytest
import torch
from torch import nn

from actionzoo.engine.flops import count_parameters
from actionzoo.zoo import create_model
from tests.models.parity import CLIP_256, count_operations, reference_entries
from tests.models.reference import CONFIGS, PUBLISHED, RECIPES, build, read_reference


@pytest.mark.parametrize("row", RECIPES)
def test_state_dict_has_keys_order_and_shapes_of_released_weights(row):
    config = PUBLISHED[row].config

    ours = [[key, list(tensor.shape)] for key, tensor in _create(row).state_dict().items()]

    assert ours == read_reference(f"statedict/{config}.json")["state_dict"]


@pytest.mark.slow
@pytest.mark.parametrize("row", RECIPES)
def test_size_is_the_references_and_the_published_one(row):
    known, model = reference_entries()[row]["complexity"], _create(row)

    parameters, operations = count_parameters(model), count_operations(model, CLIP_256)

    assert parameters == known["params_total"]
    assert operations == known["mmcv_flops_tool_256"]
    if row != "slowfast_r50_256p_8x8x1_256e_kinetics400_rgb":  # withdrawn, and its published numbers with it
        assert (parameters, operations) == (known["published_params"], known["published_flops"])


def test_the_256p_8x8_weights_have_the_size_of_the_network_they_were_trained_as():
    row = "slowfast_r50_256p_8x8x1_256e_kinetics400_rgb"

    assert count_parameters(build(PUBLISHED[row].config, **PUBLISHED[row].ckpt_model)) == 34_479_288
    assert count_parameters(build(PUBLISHED[row].config)) == 34_565_560


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


def _create(row: str) -> nn.Module:
    with torch.device("meta"):
        return create_model(row)


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
