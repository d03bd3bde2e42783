import math

import pytest
import torch
from torch import nn

from actionzoo.models.layers import BLOCKS, Bottleneck, ConvNorm, Head, initialise, max_pool


@pytest.mark.parametrize("kernel", [(1, 7, 7), (5, 7, 7), (3, 1, 1), (3, 3, 3)])
def test_a_convolution_of_stride_one_keeps_the_size(kernel):
    assert ConvNorm(2, 4, kernel)(torch.zeros(1, 2, 5, 9, 11)).shape == (1, 4, 5, 9, 11)


def test_relu_ends_a_convolution_unless_told_otherwise():
    x = torch.tensor([-1.0, 1.0]).view(1, 1, 2, 1, 1)
    with_relu, without = ConvNorm(1, 1, (1, 1, 1)).eval(), ConvNorm(1, 1, (1, 1, 1), relu=False).eval()
    for unit in (with_relu, without):
        nn.init.ones_(unit.conv.weight)

    assert with_relu(x).min() == 0
    assert without(x).min() < 0


@pytest.mark.parametrize("depth", BLOCKS)
def test_a_depth_counts_stem_classifier_and_three_layers_per_block(depth):
    assert 3 * sum(BLOCKS[depth]) + 2 == depth


def test_pool_halves_height_and_width_and_leaves_time():
    assert max_pool()(torch.zeros(1, 1, 5, 8, 10)).shape == (1, 1, 5, 4, 5)


def test_a_bottleneck_whose_last_norm_is_zero_gives_its_shortcut():
    block = Bottleneck(
        ConvNorm(4, 2, (1, 1, 1)), ConvNorm(2, 2, (3, 3, 3)), ConvNorm(2, 4, (1, 1, 1), relu=False), downsample=None
    )
    initialise(block, zero_last_norm=True)
    x = torch.randn(2, 4, 3, 5, 5)

    assert torch.equal(block(x), x.relu())


def test_a_bottleneck_leaves_what_came_in_as_it_was():
    block = Bottleneck(
        ConvNorm(4, 2, (1, 1, 1)), ConvNorm(2, 2, (3, 3, 3)), ConvNorm(2, 4, (1, 1, 1), relu=False), downsample=None
    )
    x = torch.randn(2, 4, 3, 5, 5)
    before = x.clone()

    block(x)

    assert torch.equal(x, before)


def test_head_joins_means_in_the_order_given():
    head = Head(3, num_classes=2, dropout=0.5)
    two, one = torch.ones(1, 2, 4, 3, 3), torch.full((1, 1, 2, 3, 3), 5.0)

    assert head.pool(two, one).tolist() == [[1, 1, 5]]
    assert head.pool(one, two).tolist() == [[5, 1, 1]]


def test_head_drops_in_training_only():
    torch.manual_seed(0)
    head = Head(64, num_classes=8, dropout=0.5)
    x = torch.randn(1, 64, 2, 2, 2)

    assert not torch.equal(head.train()(x), head.train()(x))
    assert torch.equal(head.eval()(x), head.eval()(x))


@pytest.mark.parametrize(
    ("conv", "fan_out"),
    [
        (nn.Conv3d(64, 128, (1, 3, 3), bias=False), 128 * 9),
        (nn.Conv3d(128, 128, (3, 3, 3), groups=128, bias=False), 128 * 27),
    ],
)
def test_convolutions_begin_kaiming_normal_over_the_fan_out(conv, fan_out):
    torch.manual_seed(0)

    initialise(conv, zero_last_norm=False)

    # 3456 samples or more: the measured deviation is within 1.2 % of the true one in two cases out of three.
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.05)


def test_a_classifier_begins_near_zero():
    torch.manual_seed(0)
    head = Head(256, num_classes=400, dropout=0.5)

    initialise(head, zero_last_norm=False)

    assert head.fc_cls.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert head.fc_cls.bias.count_nonzero() == 0
