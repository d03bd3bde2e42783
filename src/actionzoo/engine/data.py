"""Batches and loaders, as training and evaluation need them; `actionzoo.clips` has such loaders."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

ToInput = Callable[[Sequence[Any]], Tensor]
"""Turns N views of a batch into the network's input, (N, 3, T, H, W) on its device."""


class Batch(Protocol):
    """Clips that pass through a network together."""

    @property
    def views(self) -> Sequence[Any]:
        """All views of all clips, the views of a clip adjacent. `ToInput` takes slices of it."""

    @property
    def labels(self) -> Tensor:
        """(N,) int64."""

    @property
    def video_ids(self) -> list[str]:
        """Of the N clips; empty if none of the batch decoded."""

    @property
    def undecodable(self) -> list[str]:
        """A sentence for each clip that belongs here and did not decode."""


class Loader(Protocol):
    """This process's share of the batches."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


class TrainingLoader(Loader, Protocol):
    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the 0-based epoch of the next pass, which leaves out the first `start` batches."""


@dataclass(frozen=True)
class TrainingData:
    """What a training reads."""

    training: TrainingLoader
    validation: Loader
    to_input: ToInput
    advice: str = ""
    """Logged after an epoch that waited for clips too long: what to change."""
