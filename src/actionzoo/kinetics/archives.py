"""Archives as streams: what is in a part, read from end to end, and never written anywhere by a name out of it.

A part may also be a list of videos that stay where they are, a CSV file with the columns of LISTED.
"""

import bz2
import contextlib
import csv
import gzip
import hashlib
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ..errors import UserError, machine_fault
from ..files.csv_cells import plain_cell


class BrokenArchive(UserError):
    """An archive that is not whole."""

    def __init__(self, path: Path, fault: str) -> None:
        what = path.name if path.suffix == ".csv" else "it"  # of a list and a video, it is the list
        super().__init__(f"{path} is not a whole archive: {fault}; delete {what} and run the stage `download`")
        self.fault = fault


MAX_MEMBER_BYTES = 256 * 2**20
"""Of a clip in an archive. Ten seconds are some megabytes; more than this is an accident or an attack."""

MAX_VIDEO_BYTES = 2**30
"""Of a video of one's own, which stays where it lies."""

MAX_MEMBERS = 200_000
"""Of an archive; a part of the mirror has about 1,000."""

MAX_RATIO = 20
"""Unpacked bytes for each packed one, beyond the first MAX_FREE_BYTES. Videos hardly shrink."""

MAX_FREE_BYTES = 64 * 2**20

LISTED = ("video_id", "sha256", "path")
"""Columns of a list of videos. Without a sha256 a video is only named: it is in no annotation, and nobody reads it."""


def read_archive(path: str | Path) -> Iterator[tuple[str, bytes]]:
    """(name, contents) of every file in a tar archive, in its order; name without folders and ending.

    How it is compressed is told from its first bytes, since a plain tar has been served as .tar.gz. Hidden files (`._x`
    of macOS), folders, links, devices and names that point outside are passed over. Raises BrokenArchive, perhaps after
    the last file: only a reader who came to the end knows that the archive is whole.
    """
    if Path(path).suffix == ".csv":
        yield from _listed_videos(Path(path))
        return
    with open(path, "rb") as file:
        yield from _members(Path(path), file)


def check_archive(path: str | Path) -> tuple[int, str]:
    """Read an archive through: number of files in it, and the sha256 of its own bytes. Raises BrokenArchive."""
    with open(path, "rb") as raw:
        file = _Hashing(raw)
        num_files = sum(1 for _ in _members(Path(path), file, with_contents=False))
    return num_files, file.sha256.hexdigest()


def _listed_videos(path: Path) -> Iterator[tuple[str, bytes]]:
    """What a list names, each video as it was when it was listed."""
    for video_id, sha256, video in _list_rows(path):
        data = b""
        if sha256:
            try:
                with open(video, "rb") as file:
                    data = file.read(MAX_VIDEO_BYTES + 1)
            except (OSError, ValueError) as error:  # a path with a zero byte
                if fault := machine_fault(error):
                    raise fault from None
                raise BrokenArchive(path, f"{video[:300]}: {getattr(error, 'strerror', None) or error}") from None
            if len(data) > MAX_VIDEO_BYTES or hashlib.sha256(data).hexdigest() != sha256:
                raise BrokenArchive(path, f"{video} has changed since it was listed")
        yield plain_cell(video_id), data


def _list_rows(path: Path) -> Iterator[list[str]]:
    """The cells of a list's lines. Raises BrokenArchive."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = csv.reader(file)
            if next(rows, None) != list(LISTED):
                raise BrokenArchive(path, f"it does not begin with {','.join(LISTED)}")
            for row in rows:
                if len(row) != len(LISTED):
                    raise BrokenArchive(path, f"line {rows.line_num} has {len(row)} columns instead of {len(LISTED)}")
                yield row
    except csv.Error as error:
        raise BrokenArchive(path, f"it is no CSV file: {error}") from None


def _members(path: Path, file: BinaryIO, with_contents: bool = True) -> Iterator[tuple[str, bytes]]:
    """The files in a tar archive; without contents they are passed over in pieces, and b"" stands for each."""
    packed = _Counting(file)
    try:
        with (
            contextlib.closing(_decompressed(packed)) as unpacked,
            tarfile.open(fileobj=(stream := _Bounded(unpacked, packed)), mode="r|", tarinfo=_Header) as archive,
        ):
            for number, member in enumerate(archive, 1):
                if number > MAX_MEMBERS:
                    raise _Broken(f"it holds more than {MAX_MEMBERS} members")
                _check_size(member)  # before anything is passed over: tarfile would read that far
                name = PurePosixPath(member.name)
                is_inside = not name.is_absolute() and ".." not in name.parts
                if not member.isreg() or not is_inside or not name.name or name.name.startswith("."):
                    continue
                stem = name.stem.encode(errors="backslashreplace").decode()  # names need not be UTF-8
                contents = archive.extractfile(member) if with_contents else None
                yield stem, contents.read() if contents else b""
            # checksums stand at the very end
            for rest in (stream, packed):
                while rest.read(2**20):
                    pass
    except (*_FAULTS, MemoryError) as error:
        if fault := machine_fault(error):
            raise fault from None
        raise BrokenArchive(path, str(error)) from None


class _Broken(Exception):
    """Becomes a BrokenArchive, with the file's name."""


# what tarfile itself does not expect in a header: words for numbers, values that are not there, chains without end
_UNEXPECTED = (ValueError, ArithmeticError, LookupError, RecursionError)
_FAULTS = (_Broken, tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, *_UNEXPECTED)

_ABOUT_NEXT = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
"""Members that say something of the next one, such as a long name."""
_MAX_ABOUT_BYTES = 2**20


def _check_size(member: tarfile.TarInfo) -> None:
    """Raises _Broken for a size that nothing in an archive of clips has."""
    largest = _MAX_ABOUT_BYTES if member.type in _ABOUT_NEXT else MAX_MEMBER_BYTES
    name = PurePosixPath(member.name).name[:100]
    if member.type == tarfile.GNUTYPE_SPARSE or member.sparse or "GNU.sparse.major" in member.pax_headers:
        raise _Broken(f"{name} in it is a sparse file, which takes no room there and any amount here")
    if not 0 <= member.size <= largest:
        raise _Broken(f"{name} in it claims {member.size} bytes; at most {largest} are read")


class _Header(tarfile.TarInfo):
    """tarfile takes a broken header after the first member for the archive's end, and believes any size. We do not."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
        try:
            member = super().frombuf(buf, encoding, errors)
            _check_size(member)
            return member
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise _Broken("it ends too early" if len(buf) < tarfile.BLOCKSIZE else str(error)) from None


class _Counting:
    """A file to read once from end to end, that knows how far it was read."""

    def __init__(self, file: BinaryIO) -> None:
        self.num_bytes = 0
        self._file = file

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.num_bytes += len(data)
        return data


class _Bounded:
    """What is unpacked, as long as it stands in some relation to what was packed. Raises _Broken beyond."""

    def __init__(self, unpacked: BinaryIO, packed: _Counting) -> None:
        self._unpacked, self._packed = unpacked, packed
        self._num_bytes = 0

    def read(self, size: int = -1) -> bytes:
        data = self._unpacked.read(size)
        self._num_bytes += len(data)
        if self._num_bytes > MAX_FREE_BYTES + MAX_RATIO * self._packed.num_bytes:
            raise _Broken(f"it unpacks to more than {MAX_RATIO} times its size, as no archive of videos does")
        return data


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
