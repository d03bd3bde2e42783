"""The device that a process computes on."""

from typing import TYPE_CHECKING, Literal

from .errors import UserError
from .params.settings import Runtime

if TYPE_CHECKING:
    import torch
    from torch import nn


def device_type(runtime: Runtime) -> Literal["cuda", "cpu"]:
    """What `runtime.device` means on this machine. Raises UserError if it asks for a GPU that torch does not see."""
    import torch

    if runtime.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"params.yaml: runtime.device is cuda, but torch {torch.__version__} sees no GPU; "
            "set it to auto or cpu, or install a CUDA build of torch"
        )
    return "cuda" if runtime.device != "cpu" and torch.cuda.is_available() else "cpu"


def device_of(runtime: Runtime, local_rank: int = 0) -> "torch.device":
    """The device of a process; `local_rank` is its number among those on this machine. Raises UserError."""
    import torch

    return torch.device("cuda", local_rank) if device_type(runtime) == "cuda" else torch.device("cpu")


def layout_of(runtime: Runtime) -> "torch.memory_format":
    """The memory format of a network's weights and inputs."""
    import torch

    return torch.channels_last_3d if runtime.channels_last else torch.contiguous_format


def place(network: "nn.Module", runtime: Runtime, device: "torch.device") -> "nn.Module":
    """Move the network to the device, in the layout that runtime asks for; returns it."""
    import torch

    network.to(device)
    if runtime.channels_last:
        network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # torch's stubs lack it
    return network
