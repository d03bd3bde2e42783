"""Parts of both families: convolution with batch norm, bottleneck, head, and the initial weights.

Sub-modules have the names of MMAction2's, so that its released weights load unchanged.
"""

import torch
from torch import Tensor, nn

# Bottlenecks per stage, by depth of the ResNet; arXiv 1512.03385, Table 1.
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}

# Channels that leave a bottleneck over those of its middle convolution; ResNet, arXiv 1512.03385, Table 1.
EXPANSION = 4


class ConvNorm(nn.Module):
    """A convolution without bias, batch norm and, unless `relu=False`, a ReLU.

    Kernels are odd, and padded so that stride 1 keeps every size.
    """

    def __init__(  # the parameters of Conv3d and BatchNorm3d that differ between the papers' layers
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int, int],  # time, height, width
        stride: tuple[int, int, int] = (1, 1, 1),
        *,
        groups: int = 1,
        eps: float = 1e-5,
        relu: bool = True,
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm3d(out_channels, eps=eps)
        self.activate = nn.ReLU(inplace=True) if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activate(self.bn(self.conv(x)))
        return out


class Bottleneck(nn.Module):
    """A residual block (arXiv 1512.03385, Fig. 5): reduce, convolve, expand, then add the input.

    The families differ in the parts they pass. `conv3` and `downsample` have no ReLU, because the ReLU follows the sum.
    `downsample` gives the shortcut the shape of the sum at the beginning of a stage.
    """

    def __init__(self, conv1: nn.Module, conv2: nn.Module, conv3: ConvNorm, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = conv1
        self.conv2 = conv2
        self.conv3 = conv3
        self.downsample = downsample
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(self.conv3(self.conv2(self.conv1(x))) + shortcut)
        return out


class Head(nn.Module):
    """Mean over time and space, dropout and the classifier."""

    def __init__(self, in_channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.fc_cls = nn.Linear(in_channels, num_classes)
        self.avg_pool = nn.AdaptiveAvgPool3d(1)

    def pool(self, *maps: Tensor) -> Tensor:
        """Return the classifier's input, (N, in_channels): the means of `maps`, concatenated in the order given."""
        return torch.cat([self.avg_pool(x).flatten(1) for x in maps], dim=1)

    def forward(self, *maps: Tensor) -> Tensor:  # each (N, C, T, H, W), the channels adding up to in_channels
        logits: Tensor = self.fc_cls(self.dropout(self.pool(*maps)))  # (N, num_classes)
        return logits


def max_pool() -> nn.MaxPool3d:
    """Return the pool behind either family's stem: halves height and width, keeps time."""
    return nn.MaxPool3d(kernel_size=(1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))


def initialise(network: nn.Module, *, zero_last_norm: bool) -> None:
    """Set the initial weights of a training from scratch, in place.

    Convolutions: Kaiming normal over the fan-out (arXiv 1502.01852); torch takes C x 27 as the fan-out of a depthwise
    3x3x3 convolution of C channels, and so did the published trainings. Batch norm: weight 1, bias 0. Classifier:
    normal with deviation 0.01, bias 0. With `zero_last_norm` every bottleneck starts as its shortcut alone (arXiv
    1706.02677, section 5.1).
    """
    for module in network.modules():
        match module:
            case nn.Conv3d():
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            case nn.BatchNorm3d():
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            case nn.Linear():
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)
    if zero_last_norm:
        for module in network.modules():
            if isinstance(module, Bottleneck):
                nn.init.zeros_(module.conv3.bn.weight)
