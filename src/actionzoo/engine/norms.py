"""Batch norm whose batch is not what one process holds: the clips of all processes, or a few clips at a time.

The published networks were trained with a few clips per GPU, and each GPU's batch norm saw its own clips alone. How
many it sees is part of a recipe. One large GPU reproduces it with ghost norms, many small GPUs with synchronised norms.

    8 GPUs x 8 clips, as published     one norm per GPU over  8 clips
    1 GPU  x 64 clips, ghost of 8      8 norms side by side over 8 clips each
    8 GPUs x 1 clip, synchronised      one norm over 8 clips

Norms in eval mode, frozen ones among them, compute as before. Names and shapes of the state do not change.
"""

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from .distributed import all_reduce_with_gradient


def synchronise_norms(model: nn.Module) -> None:
    """Make every batch norm, in place, see the clips of all processes of the default group."""
    _convert(model, SyncBatchNorm3d)


def split_norms(model: nn.Module, ghost_batch: int) -> None:
    """Make every batch norm, in place, see `ghost_batch` clips at a time (ghost batch norm, arXiv 1705.08741)."""
    for norm in _convert(model, GhostBatchNorm3d):
        norm.ghost_batch = ghost_batch


class SyncBatchNorm3d(nn.BatchNorm3d):
    """Statistics over the batches of all processes, whose sizes may differ. Runs on any device."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or dist.get_world_size() == 1:
            return super().forward(input)
        dims = (0, 2, 3, 4)
        values = input.float()
        count = values.new_full((1,), values.numel() / values.shape[1])
        sums = all_reduce_with_gradient(torch.cat([values.sum(dims), count]))
        total = sums[-1].detach()
        mean = sums[:-1] / total
        # two passes: the mean of squares minus the square of the mean loses digits
        centred = values - mean.view(1, -1, 1, 1, 1)
        variance = all_reduce_with_gradient(centred.square().sum(dims)) / total
        _update_running(self, mean, variance * total / (total - 1))
        scale = torch.rsqrt(variance + self.eps) * self.weight
        return (centred * scale.view(1, -1, 1, 1, 1) + self.bias.view(1, -1, 1, 1, 1)).to(input.dtype)


class GhostBatchNorm3d(nn.BatchNorm3d):
    """Statistics over `ghost_batch` clips at a time; the running statistics take the mean over these groups."""

    ghost_batch: int

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or len(input) <= self.ghost_batch:
            return super().forward(input)
        # a last group of one clip joins the one before it: its variance would rest on few values
        groups = list(torch.split(input, self.ghost_batch))
        if len(groups[-1]) == 1:
            groups[-2:] = [torch.cat(groups[-2:])]
        normed, means, variances = [], [], []
        for group in groups:
            normed.append(F.batch_norm(group, None, None, self.weight, self.bias, training=True, eps=self.eps))
            with torch.no_grad():
                variance, mean = torch.var_mean(group.float(), dim=(0, 2, 3, 4))
                means.append(mean)
                variances.append(variance)
        _update_running(self, torch.stack(means).mean(0), torch.stack(variances).mean(0))
        return torch.cat(normed)


@torch.no_grad()
def _update_running(norm: nn.BatchNorm3d, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics towards those of a batch, (C,) each; the variance is unbiased."""
    assert norm.running_mean is not None and norm.running_var is not None
    assert norm.num_batches_tracked is not None and norm.momentum is not None
    norm.num_batches_tracked.add_(1)
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(variance, norm.momentum)


_Norm = TypeVar("_Norm", bound=nn.BatchNorm3d)


def _convert(model: nn.Module, kind: type[_Norm]) -> list[_Norm]:
    """Change the class of every plain batch norm. The objects stay the same, so that references to them stay valid."""
    converted: list[_Norm] = []
    for module in model.modules():
        if type(module) is nn.BatchNorm3d:
            module.__class__ = kind
            assert isinstance(module, kind)
            converted.append(module)
    return converted
