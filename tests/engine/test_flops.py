import functools

import pytest
import torch
from torch import nn

from actionzoo.engine.flops import count_macs, count_parameters
from tests.models.reference import CONFIGS, build, read_reference

# parameters, multiply-adds of a 32-frame clip at 224 x 224 and at 256 x 256. Published: the parameters.
SIZES = {
    "slowfast_r50_4x16x1_256e_kinetics400_rgb": (34_479_288, 27_638_665_216, 36_099_198_976),
    "slowfast_r50_8x8x1_256e_kinetics400_rgb": (34_565_560, 50_308_583_424, 65_708_888_064),
    "slowfast_r101_r50_4x16x1_256e_kinetics400_rgb": (62_384_312, 49_475_260_416, 64_620_466_176),
    "slowfast_r101_8x8x1_256e_kinetics400_rgb": (62_912_312, 96_711_348_224, 126_316_580_864),
    "slowfast_r152_r50_4x16x1_256e_kinetics400_rgb": (84_843_704, 69_667_688_448, 90_994_249_728),
    "ircsn_bnfrozen_r50_32x2x1_180e_kinetics400_rgb": (13_131_152, 42_308_519_936, 55_259_856_896),
    "ircsn_bnfrozen_r152_32x2x1_180e_kinetics400_rgb": (29_703_568, 74_046_244_864, 96_713_211_904),
    "ipcsn_bnfrozen_r152_32x2x1_180e_kinetics400_rgb": (33_016_592, 83_294_685_184, 108_792_807_424),
}


@functools.cache
def sizes(config: str) -> tuple[int, int, int]:
    """Parameters, multiply-adds at 224 and at 256."""
    model = build(config)
    return count_parameters(model), *(count_macs(model, (1, 3, 32, size, size)) for size in (224, 256))


@pytest.mark.slow
@pytest.mark.parametrize("config", SIZES)
def test_every_network_has_its_published_size(config):
    assert sizes(config) == SIZES[config]


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_every_row_of_the_zoo_has_the_size_of_the_reference(config):
    rows = [row for row in read_reference("zoo.json")["entries"] if row["config"] == config]

    assert rows
    for row in rows:
        complexity = [
            row["complexity"][key] for key in ("params_total", "macs_conv_linear_224", "macs_conv_linear_256")
        ]
        assert sizes(config) == tuple(complexity)


def test_a_convolution_costs_its_kernel_times_its_input_channels_per_output_value():
    conv = nn.Conv3d(2, 4, kernel_size=3, padding=1, bias=False)

    assert count_macs(conv, (1, 2, 3, 5, 7)) == (4 * 3 * 5 * 7) * (2 * 27)


def test_a_depthwise_convolution_costs_its_kernel_per_output_value():
    conv = nn.Conv3d(4, 4, kernel_size=3, padding=1, groups=4, bias=False)

    assert count_macs(conv, (1, 4, 3, 5, 7)) == (4 * 3 * 5 * 7) * 27


def test_a_batch_costs_as_many_clips():
    model = build("ircsn_bnfrozen_r50_32x2x1_180e_kinetics400_rgb")

    assert count_macs(model, (3, 3, 16, 64, 64)) == 3 * count_macs(model, (1, 3, 16, 64, 64))


def test_counting_leaves_a_network_in_training_as_it_was():
    model = nn.Sequential(nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 2))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}

    macs = count_macs(model, (2, 3, 4, 5, 6))

    assert macs == 2 * (4 * 2 * 3 * 4) * (3 * 27) + 2 * 4 * 2
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_parameters_count_where_frozen_and_statistics_do_not():
    model = nn.Sequential(nn.Conv3d(2, 3, 1, bias=False), nn.BatchNorm3d(3)).requires_grad_(False)

    assert count_parameters(model) == 2 * 3 + 2 * 3
