"""Batch norm over other batches than what one process holds: all processes' clips, or a few of its own.

The published networks were trained with a few clips per GPU, and each GPU's batch norm saw its own clips alone. How
many it sees is part of a recipe. One big GPU keeps it with ghost norms, many small ones with synchronised norms.

    8 GPUs x 8 clips, as published     one norm per GPU over  8 clips
    1 GPU  x 64 clips, ghost of 8      8 norms side by side over 8 clips each
    8 GPUs x 1 clip, synchronised      one norm over 8 clips

Frozen norms and those in eval mode stay what they are. Names and shapes of the state do not change.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from .distributed import all_reduce_with_gradient


def synchronise_norms(model: nn.Module) -> None:
    """Let every batch norm see the clips of all processes of the default group."""
    _become(model, SyncBatchNorm3d)


def split_norms(model: nn.Module, ghost_batch: int) -> None:
    """Let every batch norm see `ghost_batch` clips at a time (ghost batch norm, arXiv 1705.08741)."""
    for norm in _become(model, GhostBatchNorm3d):
        norm.ghost_batch = ghost_batch


class SyncBatchNorm3d(nn.BatchNorm3d):
    """Statistics over the batches of all processes, which may be of different size. On any device."""

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
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * total / (total - 1), self.momentum)
        scale = torch.rsqrt(variance + self.eps) * self.weight
        return (centred * scale.view(1, -1, 1, 1, 1) + self.bias.view(1, -1, 1, 1, 1)).to(input.dtype)


class GhostBatchNorm3d(nn.BatchNorm3d):
    """Statistics over `ghost_batch` clips at a time; the running ones take the mean of what these saw."""

    ghost_batch: int

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or len(input) <= self.ghost_batch:
            return super().forward(input)
        # a rest of one joins the group before it: its variance may rest on few values
        groups = list(input.split(self.ghost_batch))
        if len(groups[-1]) == 1:
            groups[-2:] = [torch.cat(groups[-2:])]
        normed, means, variances = [], [], []
        for group in groups:
            normed.append(F.batch_norm(group, None, None, self.weight, self.bias, training=True, eps=self.eps))
            with torch.no_grad():
                variance, mean = torch.var_mean(group.float(), dim=(0, 2, 3, 4))
                means.append(mean)
                variances.append(variance)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(torch.stack(means).mean(0), self.momentum)
            self.running_var.lerp_(torch.stack(variances).mean(0), self.momentum)
        return torch.cat(normed)


def _become(model: nn.Module, kind: type[nn.BatchNorm3d]) -> list[nn.BatchNorm3d]:
    norms = [module for module in model.modules() if type(module) is nn.BatchNorm3d]
    for norm in norms:
        norm.__class__ = kind  # the same object: whoever holds it, an optimiser or a list of frozen norms, still does
    return norms
