"""Files that appear whole or not at all, whatever is pulled out of the wall meanwhile."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from ..errors import UserError


@contextlib.contextmanager
def atomic_write(path: Path, scratch: Path | None = None, mode: int | None = None) -> Iterator[BinaryIO]:
    """A binary file to write; it bears the name `path` once the block has ended without an exception.

    Until then it lies in `scratch` (same file system), or hidden beside `path`, under a name that the next
    attempt takes again: a killed process leaves at most one such file and never two. `mode` holds from the first
    moment, for a file that other users must not read; without it, the process's umask decides.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    (scratch or path.parent).mkdir(parents=True, exist_ok=True)
    partial = partial_beside(path, scratch)
    try:
        with open(partial, "wb", opener=None if mode is None else _opener(mode)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def partial_beside(path: Path, scratch: Path | None = None) -> Path:
    """Where a file is written until it is whole: hidden beside `path`, or in `scratch`."""
    return (scratch or path.parent) / f".{path.name}.partial"


def _opener(mode: int) -> Callable[[str, int], int]:
    def opened(name: str, flags: int) -> int:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)  # what a killed process left may be open to others
        return os.open(name, flags | os.O_EXCL | os.O_NOFOLLOW, mode)

    return opened


def check_same_file_system(scratch: Path, folder: Path) -> None:
    """Make both folders. Raises UserError if a file could not be renamed from one into the other."""
    for path in (scratch, folder):
        path.mkdir(parents=True, exist_ok=True)
    if scratch.stat().st_dev != folder.stat().st_dev:
        raise UserError(f"{scratch} and {folder} lie on two file systems; scratch must lie where the data lie")


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
