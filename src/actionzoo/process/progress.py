"""Progress of long work: a moving bar on a terminal, elsewhere a line every few seconds."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

Progress = Callable[[str, int, int], None]
"""Called with (name of the work, amount done, total amount)."""

LINE_SECONDS = 15


@contextlib.contextmanager
def progress(unit: str, *, lines: bool = True) -> Iterator[Progress]:
    """A callback that shows progress until the block ends. `unit`: `bytes`, or the name of what is counted (`clips`).

    `lines=False` prints nothing where there is no terminal: for work that logs its own progress.
    """
    if sys.stderr.isatty():
        with _bar(unit) as on_progress:
            yield on_progress
    else:
        yield _lines(unit) if lines else lambda what, done, total: None


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
    began = shown = time.monotonic()

    def on_progress(what: str, done: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if (done < total and now - shown < LINE_SECONDS) or not done:
            return
        shown = now
        left = (now - began) / done * (total - done)
        amount = f"{done / 1e6:.0f} of {total / 1e6:.0f} MB" if unit == "bytes" else f"{done:,} of {total:,} {unit}"
        print(f"{what}: {amount}, {left / 60:.1f} minutes left" if done < total else f"{what}: {amount}", flush=True)

    return on_progress
