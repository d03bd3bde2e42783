"""The size of a network: multiply-adds per clip, and parameters."""

from itertools import chain

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode


def count_macs(model: nn.Module, clip_shape: tuple[int, ...]) -> int:
    """Return the multiply-adds of convolutions and classifier in one forward pass of (N, 3, T, H, W) `clip_shape`.

    Norms, ReLUs, pools and sums are not counted. The pass runs on shapes alone and leaves `model` as it was.
    """
    shapes = {
        name: torch.empty_like(tensor, device="meta")
        for name, tensor in chain(model.named_parameters(), model.named_buffers())
    }
    dtype = next(model.parameters()).dtype
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        functional_call(model, shapes, torch.empty(clip_shape, dtype=dtype, device="meta"))
    flops: int = counter.get_total_flops()
    return flops // 2  # the counter takes a multiply-add for two operations


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, frozen ones included, running statistics not."""
    return sum(parameter.numel() for parameter in model.parameters())
