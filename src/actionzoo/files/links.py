"""One file under two names: checkpoints and archives are large, and the disk should hold them once."""

import os
import shutil
from pathlib import Path

from .atomic import partial_beside


def link_or_copy(source: Path, target: Path, *, link_from_bytes: int = 0) -> None:
    """Make or replace `target` by a hard link to `source`, whole or not at all.

    The file is copied where the file system has no links, or if it is smaller than `link_from_bytes`. A symbolic link
    is followed first. Raises OSError.
    """
    source, partial = source.resolve(), partial_beside(target)
    partial.unlink(missing_ok=True)
    place_link(source, partial, link_from_bytes=link_from_bytes)
    os.replace(partial, target)


def place_link(source: Path, target: Path, *, link_from_bytes: int = 0) -> None:
    """The same for a `target` that does not exist, without a detour by a hidden name. Raises OSError."""
    if source.stat().st_size >= link_from_bytes:
        try:
            os.link(source, target)
            return
        except OSError:  # another file system, or one without links
            pass
    shutil.copyfile(source, target)
