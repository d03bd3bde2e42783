"""The size of a network: what one clip costs, and how many numbers it holds."""

from itertools import chain

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode


def count_macs(model: nn.Module, clip_shape: tuple[int, ...]) -> int:
    """Multiply-adds of the convolutions and the classifier for one forward of (N, 3, T, H, W) `clip_shape`.

    Norms, ReLUs, pools and sums are not counted. Nothing is computed and nothing of `model` changes: it runs on shapes.
    """
    shapes = {
        name: torch.empty_like(tensor, device="meta")
        for name, tensor in chain(model.named_parameters(), model.named_buffers())
    }
    dtype = next(model.parameters()).dtype
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        functional_call(model, shapes, torch.empty(clip_shape, dtype=dtype, device="meta"))
    return counter.get_total_flops() // 2  # the counter takes a multiply-add for two operations


def count_parameters(model: nn.Module) -> int:
    """Numbers that training may change, frozen ones included; running statistics are not among them."""
    return sum(parameter.numel() for parameter in model.parameters())
