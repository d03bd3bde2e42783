"""Locks between processes of one machine. The kernel releases them however a process ends."""

import contextlib
import fcntl
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ..errors import UserError

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(path: Path, busy: str | None = None, waiting: str | None = None) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`, which is created and stays; its contents mean nothing.

    Waits for the process that holds it, and logs `waiting` first if it has to. With `busy`, raises UserError(busy)
    instead of waiting.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        if not try_lock(file):
            if busy is not None:
                raise UserError(busy)
            if waiting is not None:
                _log.warning(waiting)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def try_lock(file: IO[Any]) -> bool:
    """Take the exclusive lock on an open file; False if another process, or another open of the file, holds it.

    It is released when the last descriptor of this open file is closed: a child process that inherits one keeps it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(file: IO[Any]) -> None:
    """Release the lock at once, also if a child process has inherited the descriptor; then close the file."""
    fcntl.flock(file, fcntl.LOCK_UN)
    file.close()
