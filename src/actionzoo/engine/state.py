"""How far a training has come, and the folder that keeps it.

state-<epochs>-<steps>.pth   everything that the next step depends on, after so many finished epochs and steps
best.pth                     weights of the best validation so far
latest.pth                   weights of the last epoch
"""

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .distributed import World

_STATE_NAME = re.compile(r"state-\d{5}-\d{7}\.pth")


@dataclass
class State:
    """What a training knows besides weights and optimizer."""

    finished_epochs: int = 0
    finished_steps: int = 0
    """Finished steps of the epoch that is under way."""
    best_top1: float = -1.0
    """Best top-1 accuracy of a validation, 0 to 1; -1 before the first."""
    best_epoch: int = 0
    train_curve: list[dict[str, float]] = field(default_factory=list)
    """One line per epoch: epoch, lr, loss, top1, top5."""
    val_curve: list[dict[str, float]] = field(default_factory=list)
    """One line per validation: epoch, top1, top5, mean_class."""
    undecodable: list[str] = field(default_factory=list)
    """A sentence for each training clip that did not decode, each once."""


@dataclass
class Meter:
    """Sums of named values over clips."""

    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0

    def add(self, means: Mapping[str, float], count: int) -> None:
        """Add values that are means over `count` clips."""
        for key, value in means.items():
            self.sums[key] = self.sums.get(key, 0.0) + value * count
        self.count += count

    def means(self, world: World) -> dict[str, float]:
        """Return the means over the clips of all processes, empty if there were none. Every process must call it."""
        gathered = world.gather_numbers([float(self.count), *self.sums.values()])
        count, *sums = (sum(values) for values in zip(*gathered, strict=True))
        return {key: value / count for key, value in zip(self.sums, sums, strict=True)}


@dataclass(frozen=True)
class StateFolder:
    """The folder of one unfinished training."""

    path: Path
    about: Mapping[str, Any] = field(default_factory=dict)
    """What the training was made of; plain values, stored with each state."""
    on_saved: Callable[[Path, State], None] = lambda path, state: None
    """Called in the first process after each saved state, with its file."""

    def state_path(self, state: State) -> Path:
        return self.path / f"state-{state.finished_epochs:05d}-{state.finished_steps:07d}.pth"

    def saved_states(self) -> list[Path]:
        return saved_states(self.path)

    def keep_newest(self, count: int) -> None:
        """Delete all but the `count` newest states."""
        for path in self.saved_states()[count:]:
            path.unlink(missing_ok=True)


def saved_states(folder: Path) -> list[Path]:
    """Return the saved states in `folder`, the newest first."""
    return sorted((path for path in folder.glob("state-*.pth") if _STATE_NAME.fullmatch(path.name)), reverse=True)


def rng_state() -> dict[str, Any]:
    """Return the state of this process's random generators, as plain values and CPU tensors."""
    version, numbers, gauss = random.getstate()
    cuda = torch.cuda.get_rng_state().cpu() if torch.cuda.is_available() else None
    return {"torch": torch.get_rng_state(), "python": [version, list(numbers), gauss], "cuda": cuda}


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Restore what `rng_state` returned."""
    torch.set_rng_state(state["torch"].cpu())
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    if torch.cuda.is_available() and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"].cpu())
