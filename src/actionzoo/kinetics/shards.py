"""Shards: plain tar files with an index beside them, so that one pread gets any member.

    val/part_007-1a2b3c4d.tar        members in a fixed order, uncompressed, readable by any tar tool
    val/part_007-1a2b3c4d.idx.npy    int64 (num_members, 2): byte offset of each member's data, and its size

The name ends in the first 8 hex digits of the key (part_records.py): a part that is encoded with other settings is
another file. Equal members in equal order give equal bytes: a shard holds no clock, user or machine.
"""

import io
import os
import re
import tarfile
import tokenize
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from ..errors import UserError, machine_fault
from ..files.atomic import atomic_write

Spans = npt.NDArray[np.int64]
"""(n, 2): byte offset in the shard and size of each member's data."""


class ShardWriter:
    """Writes a shard. A context manager: shard and index take their names when the block ends without an exception.

        with ShardWriter(Path("part_007.tar")) as shard:
            offset, size = shard.add("abc.mp4", data)

    Until then the bytes are in `scratch` (same file system), or hidden beside `path`.
    """

    def __init__(self, path: Path, scratch: Path | None = None) -> None:
        self.path = path
        self._scratch = scratch
        self._spans: list[tuple[int, int]] = []

    def __enter__(self) -> "ShardWriter":
        self._writing = atomic_write(self.path, self._scratch)
        self._file = self._writing.__enter__()
        return self

    def add(self, name: str, data: bytes) -> tuple[int, int]:
        """Append a member; returns its data's byte offset in the shard, and its size."""
        member = tarfile.TarInfo(name)
        member.size = len(data)
        # every other field at its default is the same everywhere: mode 0644, uid, gid and mtime 0
        self._file.write(member.tobuf(tarfile.PAX_FORMAT))
        span = (self._file.tell(), len(data))
        self._file.write(data)
        self._file.write(bytes(-len(data) % tarfile.BLOCKSIZE))
        self._spans.append(span)
        return span

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            # two empty blocks end an archive, and tar fills its last record
            end = self._file.tell() + 2 * tarfile.BLOCKSIZE
            self._file.write(bytes(2 * tarfile.BLOCKSIZE + -end % tarfile.RECORDSIZE))
            # index first: a shard that is there has its index
            _write_index(index_path(self.path), self._spans, self._scratch)
        self._writing.__exit__(kind, error, traceback)


def read_member(path: str | Path, offset: int, size: int) -> bytes:
    """The shard's `size` bytes from `offset` on. Raises UserError if the shard is absent or ends before."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise UserError(f"{path} is not there, yet the manifest names it; {remedy(Path(path).parents[1])}") from None
    try:
        return pread(descriptor, path, offset, size)
    finally:
        os.close(descriptor)


def remedy(form: Path) -> str:
    """What to do if shards are not in `form`, a folder <data root>/<data set>/videos_256: a clause."""
    kind, _, short_side = form.name.partition("_")
    stage = f"{'frames' if kind == 'frames' else 'resize'}@{short_side}"
    return (
        "set the environment variable ACTIONZOO_DATA or data.root in params.yaml to a data root that has it, or run "
        f"`dvc repro -f {stage}`, which makes what is missing and keeps the rest"
    )


def pread(descriptor: int, path: str | Path, offset: int, size: int) -> bytes:
    """The same from an open file; `path` is for the error message. Raises UserError."""
    num_bytes = os.fstat(descriptor).st_size
    # checked before reading: an edited manifest may ask for any number of bytes
    if not (_is_count(offset) and _is_count(size) and offset + size <= num_bytes):
        end = offset + size if _is_count(offset) and _is_count(size) else "?"
        raise UserError(
            f"{path} is {num_bytes} bytes, but the manifest puts a clip at bytes {offset} to {end}; delete it and run "
            "the stage that made it"
        )
    data = os.pread(descriptor, size, offset)
    while len(data) < size:  # Linux gives at most 2 GiB at once
        more = os.pread(descriptor, size - len(data), offset + len(data))
        if not more:
            raise UserError(f"{path} became shorter while it was read; run the stage that makes it")
        data += more
    return data


def _is_count(value: object) -> bool:
    return isinstance(value, int | np.integer) and int(value) >= 0


def keyed(shard: str, key: str) -> str:
    """("val/part_007.tar", "1a2b3c4d5e...") -> "val/part_007-1a2b3c4d.tar"""
    return f"{shard.removesuffix('.tar')}-{key[:8]}.tar"


def without_key(shard: str) -> str:
    """val/part_007-1a2b3c4d.tar -> val/part_007.tar, which is also the name that older versions gave it."""
    return re.sub(r"-[0-9a-f]{8}(?=\.tar$)", "", shard)


FILE_NAME = re.compile(r"((?:part_[0-9]{3,}|replacement)(?:-[0-9a-f]{8})?)\.(?:tar|idx\.npy|json)")
"""Name of a shard, its index or its record; group 1 is what the three have in common."""


def index_path(shard: str | Path) -> Path:
    """val/part_007-1a2b3c4d.tar -> val/part_007-1a2b3c4d.idx.npy"""
    return Path(shard).with_suffix(".idx.npy")


def read_index(shard: str | Path) -> Spans:
    """int64 (num_members, 2), read-only: byte offset and size of each member's data, in the shard's order.

    Memory-mapped and shared between processes: a part's frames are 300,000 members, 5 MB, and each process of a loader
    has many parts open. Raises UserError if the index is absent or damaged, MachineFault for errors of the disk.
    """
    path = index_path(shard)
    try:
        index: Spans = np.lib.format.open_memmap(path, mode="r")
        if index.dtype != np.int64 or index.ndim != 2 or index.shape[1] != 2:
            raise ValueError(f"it holds {index.dtype} of shape {index.shape}, not int64 (members, 2)")
        return index
    except FileNotFoundError:
        raise UserError(f"{path} is not there; delete {shard} and run the stage that made it") from None
    except (*_DAMAGED, OSError) as error:
        if fault := machine_fault(error):
            raise fault from None
        what = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be read ({what}); delete {shard} and run the stage that made it") from None


# what numpy raises for a damaged header: it parses headers as Python literals, and trusts the shape in them
_DAMAGED = (
    ValueError,
    EOFError,
    SyntaxError,
    tokenize.TokenError,
    TypeError,
    OverflowError,
    LookupError,
    RecursionError,
)


def _write_index(path: Path, spans: Iterable[tuple[int, int]], scratch: Path | None) -> None:
    array = io.BytesIO()
    np.save(array, np.array(list(spans), dtype=np.int64).reshape(-1, 2))
    with atomic_write(path, scratch) as file:
        file.write(array.getvalue())
