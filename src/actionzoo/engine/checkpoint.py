"""Checkpoint files: whole or not at all, and never more than tensors and plain values."""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from actionzoo.errors import UserError
from actionzoo.files.atomic import atomic_write


class CheckpointError(UserError):
    """A file that is damaged or holds more than tensors and plain values; names the file and the next step."""


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write beside, then rename. Equal content gives equal bytes, whatever the file is called."""
    with atomic_write(path) as file:
        torch.save(content, file)


def trained_weights(model: nn.Module, epoch: int, top1: float) -> dict[str, Any]:
    """What a finished checkpoint holds. No clock, no run id: equal trainings give equal files."""
    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    return {"meta": {"epoch": epoch, "val_top1": top1}, "state_dict": weights}


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Raises CheckpointError; FileNotFoundError if there is none."""
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors and plain values, or is damaged; it was not loaded ({_first_line(error)})"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged ({_first_line(error)}); delete it and run again") from None


def _first_line(error: Exception) -> str:
    """Some errors say nothing, others a page."""
    return (str(error) or type(error).__name__).splitlines()[0]
