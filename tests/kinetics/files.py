"""All files of a folder, hidden ones too, by their path in it."""

import hashlib
import re
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


def file_of(form: Path, name: str) -> Path:
    """The file of a shard, whose name ends in a key: val/part_001.tar -> <form>/val/part_001-1a2b3c4d.tar."""
    stem, _, ending = name.partition(".")
    (path,) = form.glob(f"{stem}-{'[0-9a-f]' * 8}.{ending}")
    return path


def without_key(name: str) -> str:
    """val/part_001-1a2b3c4d.idx.npy -> val/part_001.idx.npy"""
    return re.sub(r"-[0-9a-f]{8}(?=\.)", "", name)
