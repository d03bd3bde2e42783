"""Processes that train one network together: torchrun starts them, this is what they say to each other.

Everything here also holds for one process alone, where nothing is sent.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class World:
    rank: int = 0
    """0 is the one that logs and writes."""
    size: int = 1
    local_rank: int = 0
    """Among the processes on this machine; the number of its GPU."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def gather_numbers(self, values: list[float]) -> list[list[float]]:
        """What every process gave, by rank; equally many of each."""
        if self.size == 1:
            return [values]
        mine = torch.tensor(values, dtype=torch.float64, device=_device())
        heard = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(heard, mine)
        return [told.tolist() for told in heard]

    def gather(self, value: Any) -> list[Any]:
        """What every process gave, by rank; to all of them. Plain values and CPU tensors."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast_buffers(self, model: nn.Module) -> None:
        """The first process' batch norm statistics to all: each has seen other clips."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()


@contextlib.contextmanager
def joined(device_type: str) -> Iterator[World]:
    """The world that torchrun's environment describes, for the length of the block; one process without it."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    world = World(int(os.environ["RANK"]), size, int(os.environ["LOCAL_RANK"]))
    if device_type == "cuda":
        torch.cuda.set_device(world.local_rank)
    dist.init_process_group("nccl" if device_type == "cuda" else "gloo")
    try:
        yield world
    finally:
        dist.destroy_process_group()


def all_reduce_with_gradient(values: Tensor) -> Tensor:
    """The sum over all processes; gradients flow back the same way."""
    return _AllReduce.apply(values)


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(context, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


def _device() -> torch.device:
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
