"""Digests of files: the one place that decides how a file's contents are named."""

import hashlib
from pathlib import Path


def sha256_of(path: Path) -> str:
    """The file's sha256 as 64 hex digits, read in pieces. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def md5_of(path: Path) -> str:
    """The file's md5 as 32 hex digits, which is how DVC names it. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
