"""Communication between the processes that train or evaluate one network together, as torchrun starts them.

A single process may call everything here; then nothing is sent.
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
    """This process among all those that work together; by default the only one."""

    rank: int = 0
    """0 to size - 1; rank 0 logs and writes."""
    size: int = 1
    """Number of processes."""
    local_rank: int = 0
    """Rank among the processes on this machine, which is the number of its GPU."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def gather_numbers(self, values: list[float]) -> list[list[float]]:
        """Return the values of every process, by rank, in all processes; each must give equally many."""
        if self.size == 1:
            return [values]
        mine = torch.tensor(values, dtype=torch.float64, device=_device())
        gathered = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(gathered, mine)
        return [theirs.tolist() for theirs in gathered]

    def gather(self, value: Any) -> list[Any]:
        """Return the value of every process, by rank, in all processes. For plain values and CPU tensors."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast_buffers(self, model: nn.Module) -> None:
        """Copy the first process's buffers to all: each process's batch norm statistics come from its own clips."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def wait(self) -> None:
        """Return once every process has called it."""
        if self.size > 1:
            dist.barrier()


@contextlib.contextmanager
def joined(device_type: str) -> Iterator[World]:
    """Join the processes that torchrun's environment describes, for the length of the block.

    Without that environment, the world is this process alone. `device_type` is "cuda" or "cpu".
    """
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
    """Return the sum over all processes; gradients are summed over all processes, too."""
    total: Tensor = _AllReduce.apply(values)  # type: ignore[no-untyped-call]  # torch has no type
    return total


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


def _device() -> torch.device:
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
