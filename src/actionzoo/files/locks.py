"""Locks between processes of one machine. The kernel releases them however a process ends."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from actionzoo.errors import UserError


@contextlib.contextmanager
def locked(path: Path, busy: str | None = None) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`, which is created and stays; its contents mean nothing.

    Waits for whoever holds it. With `busy`, raises UserError(busy) instead of waiting.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if busy is None else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(busy or "") from None
        yield
