"""SlowFast: "SlowFast Networks for Video Recognition", arXiv 1812.03982, section 3, Fig. 1 and Table 1.

A Slow pathway with many channels sees few frames, a Fast pathway with a fraction beta of the channels sees many;
lateral connections carry Fast into Slow. Names and numbers are those of MMAction2 0.x, so that its released weights
load: https://download.openmmlab.com/mmaction/recognition/slowfast/. Unlike in the paper, their lateral convolutions
have neither norm nor ReLU, and their classifier reads Fast's channels before Slow's.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .layers import BLOCKS, EXPANSION, Bottleneck, ConvNorm, Head, initialise, max_pool

WIDTH = 64  # channels of Slow's stem


class SlowFast(nn.Module):
    """Computes the logits of a clip. The network of Table 1 has both depths 50, alpha 8, beta 1/8, fusion_kernel 5.

    slow_depth, fast_depth: layers of the ResNet that each pathway is derived from: 50, 101 or 152.
    alpha: frame rate of Fast over that of Slow: Fast takes every frame of the clip, Slow every alpha-th. (The paper's
        tau, Slow's stride in frames of the video, is alpha x frame_interval.)
    beta: channels of Fast over those of Slow.
    fusion_kernel: frames that a lateral convolution spans, odd.
    dropout: probability, before the classifier.
    """

    def __init__(  # the knobs of the paper, section 3
        self,
        *,
        slow_depth: int,
        fast_depth: int,
        alpha: int,
        beta: float,
        fusion_kernel: int,
        num_classes: int = 400,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.backbone = Backbone(slow_depth, fast_depth, alpha, beta, fusion_kernel)
        slow_channels = 8 * EXPANSION * WIDTH  # 2048: the width doubles three times
        self.cls_head = Head(round(beta * slow_channels) + slow_channels, num_classes, dropout)
        initialise(self, zero_last_norm=True)

    def forward(self, clip: Tensor) -> Tensor:  # (N, 3, T, H, W), normalised RGB
        slow, fast = self.backbone(clip)
        logits: Tensor = self.cls_head(fast, slow)  # (N, num_classes); the released classifiers read Fast first
        return logits

    def features(self, clip: Tensor) -> Tensor:
        """Return the vector before dropout and classifier, (N, 2304): 256 channels of Fast, then 2048 of Slow."""
        slow, fast = self.backbone(clip)
        return self.cls_head.pool(fast, slow)


class Backbone(nn.Module):
    """Both pathways and the lateral connections; returns the last maps of Slow and of Fast."""

    def __init__(self, slow_depth: int, fast_depth: int, alpha: int, beta: float, fusion_kernel: int) -> None:
        super().__init__()
        self.alpha = alpha
        fast_width = round(beta * WIDTH)
        # Fast's channels after its stem and its first three stages are 1, 4, 8 and 16 times its width.
        laterals = [Lateral(scale * fast_width, fusion_kernel, alpha) for scale in (1, 4, 8, 16)]
        # Table 1: Slow convolves over time in its last two stages alone, Fast from the stem on.
        self.slow_path = Pathway(slow_depth, WIDTH, stem_kernel=1, temporal_kernels=(1, 1, 3, 3), laterals=laterals)
        self.fast_path = Pathway(fast_depth, fast_width, stem_kernel=5, temporal_kernels=(3, 3, 3, 3))

    def forward(self, clip: Tensor) -> tuple[Tensor, Tensor]:  # (N, 3, T, H, W)
        # Every alpha-th frame, not a linspace over the clip: the released weights were trained so.
        slow = self.slow_path.stem(clip[:, :, :: self.alpha])  # (N, 64, T / alpha, H / 4, W / 4)
        fast = self.fast_path.stem(clip)  # (N, 8, T, H / 4, W / 4)
        for lateral, slow_stage, fast_stage in zip(
            self.slow_path.laterals(), self.slow_path.stages(), self.fast_path.stages(), strict=True
        ):
            slow = torch.cat([slow, lateral(fast)], dim=1)  # Fig. 1: time-strided lateral connection
            slow, fast = slow_stage(slow), fast_stage(fast)
        return slow, fast  # (N, 2048, T / alpha, H / 32, W / 32), (N, 256, T, H / 32, W / 32)


class Pathway(nn.Module):
    """A 3D ResNet without temporal stride: stem, pool and four stages. Slow also holds the laterals that enter it."""

    conv1_lateral: nn.Module
    layer1_lateral: nn.Module
    layer2_lateral: nn.Module
    layer3_lateral: nn.Module

    def __init__(
        self,
        depth: int,
        width: int,
        *,
        stem_kernel: int,
        temporal_kernels: tuple[int, int, int, int],
        laterals: Sequence["Lateral"] = (),
    ) -> None:
        super().__init__()
        self.conv1 = ConvNorm(3, width, (stem_kernel, 7, 7), (1, 2, 2))
        self.maxpool = max_pool()
        joining = [lateral.conv.out_channels for lateral in laterals] or [0, 0, 0, 0]
        blocks, kernels = BLOCKS[depth], temporal_kernels
        self.layer1 = _stage(blocks[0], width + joining[0], width, kernels[0], stride=1)
        self.layer2 = _stage(blocks[1], 4 * width + joining[1], 2 * width, kernels[1], stride=2)
        self.layer3 = _stage(blocks[2], 8 * width + joining[2], 4 * width, kernels[2], stride=2)
        self.layer4 = _stage(blocks[3], 16 * width + joining[3], 8 * width, kernels[3], stride=2)
        # Named after the module that they follow in Fast, as in the released weights.
        for source, lateral in zip(("conv1", "layer1", "layer2", "layer3"), laterals, strict=False):
            self.add_module(f"{source}_lateral", lateral)

    def stem(self, frames: Tensor) -> Tensor:  # (N, 3, T, H, W)
        x: Tensor = self.maxpool(self.conv1(frames))  # (N, width, T, H / 4, W / 4)
        return x

    def stages(self) -> list[nn.Module]:
        return [self.layer1, self.layer2, self.layer3, self.layer4]

    def laterals(self) -> list[nn.Module]:
        return [self.conv1_lateral, self.layer1_lateral, self.layer2_lateral, self.layer3_lateral]


class Lateral(nn.Module):
    """Fast to Slow (section 3.4, time-strided convolution): every alpha-th frame, twice the channels."""

    def __init__(self, channels: int, kernel: int, alpha: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(
            channels, 2 * channels, (kernel, 1, 1), stride=(alpha, 1, 1), padding=(kernel // 2, 0, 0), bias=False
        )

    def forward(self, fast: Tensor) -> Tensor:  # (N, C, alpha T, H, W)
        x: Tensor = self.conv(fast)  # (N, 2C, T, H, W)
        return x


def _stage(blocks: int, in_channels: int, width: int, temporal_kernel: int, *, stride: int) -> nn.Sequential:
    """Build a stage of Table 1's bottlenecks: kx1x1, 1x3x3, 1x1x1. The first has the stride, over height and width."""
    out_channels = EXPANSION * width
    stage = nn.Sequential()
    for block in range(blocks):
        first = block == 0
        strides = (1, stride, stride) if first else (1, 1, 1)
        stage.append(
            Bottleneck(
                conv1=ConvNorm(in_channels, width, (temporal_kernel, 1, 1)),
                conv2=ConvNorm(width, width, (1, 3, 3), strides),
                conv3=ConvNorm(width, out_channels, (1, 1, 1), relu=False),
                downsample=ConvNorm(in_channels, out_channels, (1, 1, 1), strides, relu=False) if first else None,
            )
        )
        in_channels = out_channels
    return stage
