"""CSN: "Video Classification with Channel-Separated Convolutional Networks", arXiv 1904.02811, section 3 and Fig. 2.

A ResNet whose 3x3x3 convolutions are depthwise: each channel is filtered in space and time on its own, and channels
interact in 1x1x1 convolutions alone. Names and numbers are those of MMAction2 0.x, so that its released weights load:
https://download.openmmlab.com/mmaction/recognition/csn/ (those under vmz/ were converted from VMZ, the authors' code,
https://github.com/facebookresearch/VMZ).
"""

from typing import Literal

from torch import Tensor, nn

from .layers import BLOCKS, EXPANSION, Bottleneck, ConvNorm, Head, initialise, max_pool

WIDTH = 64  # channels of the stem
EPS = 1e-3  # of every batch norm, as in VMZ; torch's 1e-5 changes the logits of released weights by a percent


class CSN(nn.Module):
    """Computes the logits of a clip.

    depth: layers of the ResNet it is derived from: 50, 101 or 152.
    bottleneck: "ir" (interaction-reduced) or "ip" (interaction-preserved), see `_middle`.
    norm_eval: batch norm uses its stored statistics in training, too, and does not update them.
    bn_frozen: with norm_eval, batch norm's weight and bias take no gradient either; without it, no effect. `train()`
        switches the gradient off, as in the original: call it before reading `requires_grad`.
    dropout: probability, before the classifier.
    """

    def __init__(
        self,
        *,
        depth: int,
        bottleneck: Literal["ir", "ip"],
        norm_eval: bool,
        bn_frozen: bool,
        num_classes: int = 400,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.backbone = Backbone(depth, bottleneck, norm_eval=norm_eval, bn_frozen=bn_frozen)
        self.cls_head = Head(8 * EXPANSION * WIDTH, num_classes, dropout)  # 2048: the width doubles three times
        initialise(self, zero_last_norm=False)

    def forward(self, clip: Tensor) -> Tensor:  # (N, 3, T, H, W), normalised RGB
        logits: Tensor = self.cls_head(self.backbone(clip))  # (N, num_classes)
        return logits

    def features(self, clip: Tensor) -> Tensor:
        """Return the pooled vector before dropout and classifier, (N, 2048)."""
        return self.cls_head.pool(self.backbone(clip))


class Backbone(nn.Module):
    """Stem, pool and four stages; the last three halve time, height and width."""

    def __init__(self, depth: int, bottleneck: Literal["ir", "ip"], *, norm_eval: bool, bn_frozen: bool) -> None:
        super().__init__()
        self.norm_eval = norm_eval
        self.bn_frozen = bn_frozen
        blocks = BLOCKS[depth]
        self.conv1 = ConvNorm(3, WIDTH, (3, 7, 7), (1, 2, 2), eps=EPS)
        self.maxpool = max_pool()
        self.layer1 = _stage(blocks[0], 64, 64, bottleneck, stride=1)
        self.layer2 = _stage(blocks[1], 256, 128, bottleneck, stride=2)
        self.layer3 = _stage(blocks[2], 512, 256, bottleneck, stride=2)
        self.layer4 = _stage(blocks[3], 1024, 512, bottleneck, stride=2)

    def forward(self, clip: Tensor) -> Tensor:  # (N, 3, T, H, W)
        x: Tensor = self.maxpool(self.conv1(clip))  # (N, 64, T, H / 4, W / 4)
        x = self.layer1(x)  # (N, 256, T, H / 4, W / 4)
        x = self.layer2(x)  # (N, 512, T / 2, H / 8, W / 8)
        x = self.layer3(x)  # (N, 1024, T / 4, H / 16, W / 16)
        x = self.layer4(x)  # (N, 2048, T / 8, H / 32, W / 32)
        return x

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode)
        if mode and self.norm_eval:
            for norm in self.modules():
                if isinstance(norm, nn.BatchNorm3d):
                    norm.eval()
                    if self.bn_frozen:
                        norm.requires_grad_(False)
        return self


def _stage(blocks: int, in_channels: int, width: int, bottleneck: Literal["ir", "ip"], *, stride: int) -> nn.Sequential:
    """Build a stage of bottlenecks: 1x1x1, middle, 1x1x1. The first has the stride, in all three dimensions."""
    out_channels = EXPANSION * width
    stage = nn.Sequential()
    for block in range(blocks):
        first = block == 0
        strides = (stride, stride, stride) if first else (1, 1, 1)
        stage.append(
            Bottleneck(
                conv1=ConvNorm(in_channels, width, (1, 1, 1), eps=EPS),
                conv2=_middle(bottleneck, width, strides),
                conv3=ConvNorm(width, out_channels, (1, 1, 1), eps=EPS, relu=False),
                downsample=ConvNorm(in_channels, out_channels, (1, 1, 1), strides, eps=EPS, relu=False)
                if first
                else None,
            )
        )
        in_channels = out_channels
    return stage


def _middle(bottleneck: Literal["ir", "ip"], width: int, strides: tuple[int, int, int]) -> nn.Sequential:
    """Build what replaces a ResNet's 3x3x3 convolution (Fig. 2): a depthwise one, alone in ir; in ip behind a 1x1x1
    convolution that preserves the interactions between channels."""
    depthwise = ConvNorm(width, width, (3, 3, 3), strides, groups=width, eps=EPS)
    match bottleneck:
        case "ir":
            return nn.Sequential(depthwise)
        case "ip":
            # No ReLU in between: together they are one convolution, factorised.
            return nn.Sequential(ConvNorm(width, width, (1, 1, 1), eps=EPS, relu=False), depthwise)
        case _:
            raise ValueError(f"bottleneck must be 'ir' or 'ip': {bottleneck!r}")
