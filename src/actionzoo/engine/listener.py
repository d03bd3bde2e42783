"""Reports of a training in progress, for logs and progress bars."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .state import State

Event = dict[str, str | int | float]
"""A line of the JSON log, with MMAction2's keys."""


class Listener:
    """Receives what a training reports; each method does nothing unless a subclass overrides it.

    Only the first process of a distributed training calls its listener.
    """

    def on_start(self, state: "State") -> None:
        """Called before the first step, with the state that was resumed, or a new one."""

    def on_event(self, event: Event, step: int) -> None:
        """Called with each line of the JSON log; `step` counts the finished steps of all epochs."""

    def on_text(self, text: str) -> None:
        """Called with each line of the readable log."""

    def on_step(self, done: int, total: int) -> None:
        """Called after each step, with the finished steps and those of the whole training."""
