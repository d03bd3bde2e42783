"""Progress of long work: a moving bar on a terminal, elsewhere a line every few seconds.

A program that started this one, and names a folder in ACTIONZOO_PROGRESS, finds the progress there as well, in
progress.json: the flows show it on Prefect's page.
"""

import contextlib
import dataclasses
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

Progress = Callable[[str, int, int], None]
"""Called with (name of the work, amount done, total amount)."""

LINE_SECONDS = 15

FOLDER_VARIABLE = "ACTIONZOO_PROGRESS"
"""Environment variable with the folder for progress.json; without it, nothing is written."""

FILE_SECONDS = 1.0
"""The least time between two writes of progress.json, but for the end of the work."""


@contextlib.contextmanager
def progress(unit: str, *, lines: bool = True, per_epoch: int | None = None) -> Iterator[Progress]:
    """A callback that shows progress until the block ends. `unit`: `bytes`, or the name of what is counted (`clips`).

    `lines=False` prints nothing where there is no terminal: for work that logs its own progress. `per_epoch`: how many
    of the units are an epoch, for work that is divided into epochs.
    """
    with contextlib.ExitStack() as shown:
        if sys.stderr.isatty():
            show = shown.enter_context(_bar(unit))
        else:
            show = _lines(unit) if lines else lambda what, done, total: None
        folder = os.environ.get(FOLDER_VARIABLE)
        yield _both(show, _written(Path(folder), unit, per_epoch)) if folder else show


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """How far a piece of work is."""

    what: str
    """Name of the work."""
    done: int
    total: int
    unit: str
    """What is counted: `bytes`, `clips`, `steps`."""
    seconds_left: float | None
    """None while the speed is unknown."""
    per_epoch: int | None = None
    """How many units are an epoch; None for work without epochs."""

    @property
    def share(self) -> float:
        """0 to 1."""
        return min(1.0, self.done / self.total) if self.total > 0 else 0.0

    def amount(self) -> str:
        """`120 of 300 clips`, `3,100 of 43,600 MB`, `epoch 3 of 196`."""
        if self.per_epoch:
            epochs = -(-self.total // self.per_epoch)
            return f"epoch {min(self.done // self.per_epoch + 1, epochs):,} of {epochs:,}"
        if self.unit == "bytes":
            return f"{self.done / 1e6:,.0f} of {self.total / 1e6:,.0f} MB"
        return f"{self.done:,} of {self.total:,} {self.unit}"

    def left(self) -> str:
        """`120 of 300 clips, 3 min left`"""
        left = "" if self.seconds_left is None or self.done >= self.total else f", {_duration(self.seconds_left)} left"
        return f"{self.amount()}{left}"

    def text(self) -> str:
        """`resize to 256: 120 of 300 clips, 3 min left`"""
        return f"{self.what.removesuffix(f', {self.unit}')}: {self.left()}"


def read_progress(folder: Path) -> Snapshot | None:
    """What `progress` has left in `folder`; None if there is nothing sound."""
    try:
        found = Snapshot(**json.loads((folder / _FILE).read_text(encoding="utf-8")))
        found.text()
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None
    return found


def is_progress_line(text: str) -> bool:
    """Whether a line of output is one that `progress` printed."""
    return _LINE.fullmatch(text) is not None


_FILE = "progress.json"
_LINE = re.compile(r"(?!.*\berror\b).+: [0-9,]+ of [0-9,]+ \w+(, [0-9dhmins ]+ left)?")


class _Speed:
    """Estimates the time left from the speed since the first report: what was finished before counts for nothing."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[float, int]] = {}

    def seconds_left(self, what: str, done: int, total: int) -> float | None:
        """None if the speed is not known yet."""
        now = time.monotonic()
        began, before = self._first.setdefault(what, (now, done))
        return (now - began) / (done - before) * (total - done) if done > before else None


def _both(show: Progress, write: Progress) -> Progress:
    def on_progress(what: str, done: int, total: int) -> None:
        show(what, done, total)
        write(what, done, total)

    return on_progress


def _written(folder: Path, unit: str, per_epoch: int | None) -> Progress:
    """Writes progress.json in `folder`. A folder that is gone or full costs the file alone."""
    speed, lock, written = _Speed(), threading.Lock(), float("-inf")
    partial = folder / f".progress.{os.getpid()}.partial"

    def on_progress(what: str, done: int, total: int) -> None:
        nonlocal written
        with lock:
            left = speed.seconds_left(what, done, total)
            now = time.monotonic()
            if done < total and now - written < FILE_SECONDS:
                return
            written = now
            snapshot = Snapshot(what, done, total, unit, left, per_epoch)
            with contextlib.suppress(OSError):  # no fsync: after a power cut nobody asks for it
                partial.write_text(json.dumps(dataclasses.asdict(snapshot)), encoding="utf-8")
                os.replace(partial, folder / _FILE)

    return on_progress


@contextlib.contextmanager
def _bar(unit: str) -> Iterator[Progress]:
    from rich import progress as rich_progress
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    amounts = [DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else [MofNCompleteColumn(), TextColumn(unit)]
    columns = [TextColumn("{task.description}"), BarColumn(), *amounts, TimeRemainingColumn()]
    with rich_progress.Progress(*columns, console=Console(stderr=True)) as bar:
        tasks: dict[str, rich_progress.TaskID] = {}

        def on_progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield on_progress


def _lines(unit: str) -> Progress:
    speed, shown = _Speed(), time.monotonic()

    def on_progress(what: str, done: int, total: int) -> None:
        nonlocal shown
        left = speed.seconds_left(what, done, total)
        now = time.monotonic()
        if (done < total and now - shown < LINE_SECONDS) or not done:
            return
        shown = now
        print(Snapshot(what, done, total, unit, left).text(), flush=True)

    return on_progress


def _duration(seconds: float) -> str:
    """`50 s`, `41 min`, `2 h 10 min`, `3 d 4 h`"""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
