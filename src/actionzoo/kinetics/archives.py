"""Archives as streams: what is in a part, read from end to end, and never written anywhere by a name out of it."""

import bz2
import contextlib
import gzip
import hashlib
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from actionzoo.errors import UserError


class BrokenArchive(UserError):
    """An archive that is not whole."""

    def __init__(self, path: Path, fault: str) -> None:
        super().__init__(f"{path} is not a whole archive: {fault}; delete it and run the stage `download`")
        self.fault = fault


MAX_MEMBER_BYTES = 2**30
"""A clip of ten seconds is some megabytes; more than this is an accident or an attack."""


def read_archive(path: str | Path) -> Iterator[tuple[str, bytes]]:
    """(name, contents) of every file in a tar archive, in its order; name without folders and ending.

    How it is compressed is told from its first bytes, since a plain tar has been served as .tar.gz. Hidden files (`._x`
    of macOS), folders, links, devices and names that point outside are passed over. Raises BrokenArchive, perhaps after
    the last file: only a reader who came to the end knows that the archive is whole.
    """
    with open(path, "rb") as file:
        yield from _members(Path(path), file)


def check_archive(path: str | Path) -> tuple[int, str]:
    """Read an archive through: number of files in it, and the sha256 of its own bytes. Raises BrokenArchive."""
    with open(path, "rb") as raw:
        file = _Hashing(raw)
        num_files = sum(1 for _ in _members(Path(path), file))
    return num_files, file.sha256.hexdigest()


def _members(path: Path, file: BinaryIO) -> Iterator[tuple[str, bytes]]:
    try:
        with (
            contextlib.closing(_decompressed(file)) as stream,
            tarfile.open(fileobj=stream, mode="r|", tarinfo=_Header) as archive,
        ):
            for member in archive:
                name = PurePosixPath(member.name)
                is_inside = not name.is_absolute() and ".." not in name.parts
                if not member.isreg() or not is_inside or name.name.startswith("."):
                    continue
                if member.size > MAX_MEMBER_BYTES:
                    raise _Broken(f"{name.name} in it claims {member.size} bytes")
                stem = name.stem.encode(errors="backslashreplace").decode()  # names need not be UTF-8
                yield stem, archive.extractfile(member).read()
            # checksums stand at the very end
            for rest in (stream, file):
                while rest.read(2**20):
                    pass
    except _FAULTS as error:
        raise BrokenArchive(path, str(error)) from None


class _Broken(Exception):
    """Becomes a BrokenArchive, with the file's name."""


_FAULTS = (_Broken, tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError)


class _Header(tarfile.TarInfo):
    """tarfile takes a broken header after the first member for the end of the archive. We do not."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise _Broken("it ends too early" if len(buf) < tarfile.BLOCKSIZE else str(error)) from None


class _Hashing:
    """A file to read once from end to end, that knows its sha256 then."""

    def __init__(self, file: BinaryIO) -> None:
        self.sha256 = hashlib.sha256()
        self._file = file

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.sha256.update(data)
        return data


def _decompressed(file: BinaryIO) -> BinaryIO:
    start = _Ahead(file, file.read(6))
    match start.head:
        case head if head.startswith(b"\x1f\x8b"):
            return gzip.GzipFile(fileobj=start, mode="rb")
        case head if head.startswith(b"BZh"):
            return bz2.BZ2File(start)
        case head if head.startswith(b"\xfd7zXZ\0"):
            return lzma.LZMAFile(start)
        case _:
            return start


class _Ahead:
    """A stream whose first bytes were looked at and are given again."""

    def __init__(self, file: BinaryIO, head: bytes) -> None:
        self.head = head
        self._rest, self._file = head, file

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            first, self._rest = self._rest, b""
            return first + self._file.read()
        first, self._rest = self._rest[:size], self._rest[size:]
        return first + self._file.read(size - len(first)) if len(first) < size else first

    def close(self) -> None:
        """The file itself is closed by who opened it."""
