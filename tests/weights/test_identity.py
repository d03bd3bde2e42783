"""The settings of a network that the shapes of its tensors tell."""

import pytest
import torch

from actionzoo.recipe import as_dict
from actionzoo.weights.identity import architecture
from actionzoo.zoo import build_model


@pytest.mark.parametrize(
    "model",
    [
        "ircsn_bnfrozen_r50_32x2x1_180e_kinetics400_rgb",
        "ipcsn_bnfrozen_r152_32x2x1_180e_kinetics400_rgb",
        "slowfast_r50_4x16x1_256e_kinetics400_rgb",
        "slowfast_r101_8x8x1_256e_kinetics400_rgb",
        "slowfast_r152_r50_4x16x1_256e_kinetics400_rgb",
    ],
)
def test_shapes_of_tensors_tell_the_architecture(params, model):
    section = params.recipes[model].model
    with torch.device("meta"):
        state = build_model(section, 3).state_dict()
    found = architecture({name: tuple(tensor.shape) for name, tensor in state.items()})
    assert len(found) >= 3 and found.items() <= as_dict(section).items()


@pytest.mark.parametrize("shapes", [{}, {"conv1.weight": (64, 3, 7, 7)}, {"backbone.conv1.conv.weight": (64,)}])
def test_another_kind_of_network_has_no_architecture_here(shapes):
    assert architecture(shapes) == {}
