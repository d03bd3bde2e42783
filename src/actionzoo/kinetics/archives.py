"""Read the files of an archive as a stream. No name in an archive ever becomes a path.

A part may also be a list of videos that stay where they are: a CSV file with the columns of LISTED.
"""

import bz2
import contextlib
import csv
import gzip
import hashlib
import lzma
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol, cast

from ..errors import UserError, machine_fault
from ..files.csv_cells import plain_cell
from ..files.hashes import sha256_of


class _Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class BrokenArchive(UserError):
    """An archive that is not whole, or a list with a video that is not as it was."""

    def __init__(self, path: Path, error: str) -> None:
        what = path.name if path.suffix == ".csv" else "it"  # the list, not the video that the error names
        super().__init__(f"{path} is not a whole archive: {error}; delete {what} and run the stage `download`")
        self.error = error


MAX_MEMBER_BYTES = 256 * 2**20
"""Limit for a clip in an archive. Ten seconds are some megabytes; more than this is an accident or an attack."""

MAX_VIDEO_BYTES = 2**30
"""Limit for one's own video in a folder."""

MAX_MEMBERS = 200_000
"""Limit for an archive; a part of the mirror has about 1,000."""

MAX_RATIO = 20
"""Limit for unpacked bytes per packed byte, beyond the first MAX_FREE_BYTES. Videos hardly compress."""

MAX_FREE_BYTES = 64 * 2**20

LISTED = ("video_id", "sha256", "path")
"""Columns of a list of videos. A line without a sha256 is a video that no annotation lists; it is not read."""


class _Expected(Protocol):
    """What is known of an archive: ArchivedFile."""

    @property
    def size(self) -> int: ...

    @property
    def sha256(self) -> str: ...


class OtherArchive(BrokenArchive):
    """An archive that is absent, or is not the one that the inventory names."""

    def __init__(self, path: Path, error: str) -> None:
        UserError.__init__(
            self,
            f"{path} is not the file that inventory.json names: {error}; delete it if it is there, and fetch it with "
            "`dvc repro -f download`",
        )
        self.error = error


def check_file(path: Path, expected: _Expected) -> None:
    """Raises OtherArchive unless the file has the expected size and sha256."""
    _check_bytes(path, expected)
    if expected.sha256 and (found := sha256_of(path)) != expected.sha256:
        raise _other_sha256(path, found, expected)


def _check_bytes(path: Path, expected: _Expected) -> None:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise OtherArchive(path, "it is not there") from None
    if size != expected.size:
        raise OtherArchive(path, f"it has {size} bytes instead of {expected.size}")


def _other_sha256(path: Path, found: str, expected: _Expected) -> OtherArchive:
    return OtherArchive(path, f"its sha256 is {found[:8]}… instead of {expected.sha256[:8]}…")


def read_archive(path: str | Path, expected: _Expected | None = None) -> Iterator[tuple[str, bytes]]:
    """(name, contents) of every file in a tar archive, in its order; the name without folders and ending.

    The compression follows from the first bytes, since some servers send a plain tar as .tar.gz. Hidden files (`._x` of
    macOS), folders, links, devices and names that point outside are skipped. Raises BrokenArchive, perhaps only after
    the last file: the archive is whole if the iteration ends without it. Raises MachineFault for errors of the disk.

    With `expected`, raises OtherArchive for a file of another size before the first name, for one of another sha256
    after the last: the bytes are hashed as they are read. The sha256 expected of a list is that of `content_sha256`; ''
    is not compared.
    """
    path = Path(path)
    if path.suffix == ".csv":
        if expected and expected.sha256 and (found := _content_of(path)) != expected.sha256:
            raise _other_sha256(path, found, expected)
        yield from _listed_videos(path)
        return
    if expected is None:
        with open(path, "rb") as file:
            yield from _members(path, file)
        return
    _check_bytes(path, expected)
    with open(path, "rb") as raw:
        hashing = _Hashing(raw)
        yield from _members(path, hashing)
    if expected.sha256 and (found := hashing.sha256.hexdigest()) != expected.sha256:
        raise _other_sha256(path, found, expected)


def check_archive(path: str | Path) -> tuple[int, str]:
    """(number of files, sha256 of the archive's bytes), after reading it to its end. Raises BrokenArchive."""
    with open(path, "rb") as raw:
        file = _Hashing(raw)
        num_files = len([name for name, _ in _members(Path(path), file, with_contents=False)])
    return num_files, file.sha256.hexdigest()


def content_sha256(members: Iterable[tuple[str, str]]) -> str:
    """One hash of everything that a list names, wherever that lies; `members` are (video_id, sha256)."""
    lines = (f"{sha256} {video_id}\n" for video_id, sha256 in members)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _content_of(path: Path) -> str:
    try:
        return content_sha256((plain_cell(video_id), sha256) for video_id, sha256, _ in _list_rows(path))
    except FileNotFoundError:
        raise OtherArchive(path, "it is not there") from None


def _listed_videos(path: Path) -> Iterator[tuple[str, bytes]]:
    """(video_id, contents) of each video on a list. Raises BrokenArchive for one that changed since it was listed."""
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


def _members(path: Path, file: _Readable, with_contents: bool = True) -> Iterator[tuple[str, bytes]]:
    """(name, contents) of the files in a tar archive; b"" in place of the contents if they are not wanted."""
    packed = _Counting(file)
    try:
        with (
            contextlib.closing(_decompressed(packed)) as unpacked,
            tarfile.open(
                fileobj=cast(BinaryIO, stream := _Bounded(unpacked, packed)), mode="r|", tarinfo=_Header
            ) as archive,
        ):
            for number, member in enumerate(archive, 1):
                if number > MAX_MEMBERS:
                    raise _Broken(f"it holds more than {MAX_MEMBERS} members")
                _check_size(member)  # before tarfile skips the contents, which reads that far
                name = PurePosixPath(member.name)
                is_inside = not name.is_absolute() and ".." not in name.parts
                if not member.isreg() or not is_inside or not name.name or name.name.startswith("."):
                    continue
                stem = name.stem.encode(errors="backslashreplace").decode()  # names need not be UTF-8
                contents = archive.extractfile(member) if with_contents else None
                yield stem, contents.read() if contents else b""
            # checksums are at the very end
            rest: _Readable
            for rest in (stream, packed):
                while rest.read(2**20):
                    pass
    except (*_ERRORS, MemoryError) as error:
        if fault := machine_fault(error):
            raise fault from None
        raise BrokenArchive(path, str(error)) from None


class _Broken(Exception):
    """Becomes a BrokenArchive, with the file's name."""


# what tarfile raises for a malformed header: words in place of numbers, absent values, endless chains
_UNEXPECTED = (ValueError, ArithmeticError, LookupError, RecursionError)
_ERRORS = (_Broken, tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, *_UNEXPECTED)

_ABOUT_NEXT = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
"""Members that describe the next one, for example its long name."""
_MAX_ABOUT_BYTES = 2**20


def _check_size(member: tarfile.TarInfo) -> None:
    """Raises _Broken for a size that no member of an archive of clips has."""
    largest = _MAX_ABOUT_BYTES if member.type in _ABOUT_NEXT else MAX_MEMBER_BYTES
    name = PurePosixPath(member.name).name[:100]
    if member.type == tarfile.GNUTYPE_SPARSE or member.sparse or "GNU.sparse.major" in member.pax_headers:
        raise _Broken(f"{name} in it is a sparse file, which may unpack to any size")
    if not 0 <= member.size <= largest:
        raise _Broken(f"{name} in it claims {member.size} bytes; at most {largest} are read")


class _Header(tarfile.TarInfo):
    """A header with stricter checks: tarfile takes a broken one for the archive's end, and believes any size."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        try:
            member = super().frombuf(buf, encoding, errors)
            _check_size(member)
            return member
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # typeshed lacks it
            raise
        except tarfile.HeaderError as error:
            raise _Broken("it ends too early" if len(buf) < tarfile.BLOCKSIZE else str(error)) from None


class _Counting:
    """A file that counts the bytes read from it."""

    def __init__(self, file: _Readable) -> None:
        self.num_bytes = 0
        self._file = file

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.num_bytes += len(data)
        return data


class _Bounded:
    """The unpacked stream. Raises _Broken when it grows beyond MAX_RATIO."""

    def __init__(self, unpacked: _Readable, packed: _Counting) -> None:
        self._unpacked, self._packed = unpacked, packed
        self._num_bytes = 0

    def read(self, size: int = -1) -> bytes:
        data = self._unpacked.read(size)
        self._num_bytes += len(data)
        if self._num_bytes > MAX_FREE_BYTES + MAX_RATIO * self._packed.num_bytes:
            raise _Broken(f"it unpacks to more than {MAX_RATIO} times its size, as no archive of videos does")
        return data


class _Hashing:
    """A file that hashes the bytes read from it."""

    def __init__(self, file: BinaryIO) -> None:
        self.sha256 = hashlib.sha256()
        self._file = file

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.sha256.update(data)
        return data


def _decompressed(file: _Readable) -> "gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile | _Ahead":
    start = _Ahead(file, file.read(6))
    stream = cast(BinaryIO, start)  # read and close are all that the decompressors call
    match start.head:
        case head if head.startswith(b"\x1f\x8b"):
            return gzip.GzipFile(fileobj=stream, mode="rb")
        case head if head.startswith(b"BZh"):
            return bz2.BZ2File(stream)
        case head if head.startswith(b"\xfd7zXZ\0"):
            return lzma.LZMAFile(stream)
        case _:
            return start


class _Ahead:
    """A stream whose first bytes were read already and are returned again."""

    def __init__(self, file: _Readable, head: bytes) -> None:
        self.head = head
        self._rest, self._file = head, file

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            first, self._rest = self._rest, b""
            return first + self._file.read()
        first, self._rest = self._rest[:size], self._rest[size:]
        return first + self._file.read(size - len(first)) if len(first) < size else first

    def close(self) -> None:
        """Does nothing: the function that opened the file closes it."""
