"""All files of a folder, hidden ones too, by their path in it."""

import hashlib
from pathlib import Path


def contents(folder: Path) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in _files(folder).items()}


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of each file."""
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in _files(folder).items()}


def versions(folder: Path) -> dict[str, tuple[int, int]]:
    """(inode, time of change in nanoseconds) of each file: both stay as long as the file is not written again."""
    statuses = {name: path.stat() for name, path in _files(folder).items()}
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in statuses.items()}


def _files(folder: Path) -> dict[str, Path]:
    return {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
