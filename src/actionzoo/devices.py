"""The device that a process computes on."""

from typing import TYPE_CHECKING, Literal

from .errors import UserError
from .params import Runtime

if TYPE_CHECKING:
    import torch


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
