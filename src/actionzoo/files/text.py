"""Untrusted text files: lists, CSVs, label maps, settings. Reading is bounded, and takes the encoding from the file."""

import codecs
from pathlib import Path

from ..errors import UserError

MAX_TEXT_BYTES = 256 * 2**20
"""Kinetics-700's longest list has 40 MB."""

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is the beginning of this one
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path, remedy: str, max_bytes: int = MAX_TEXT_BYTES, keep_line_ends: bool = False) -> str:
    """The file's text without a byte order mark; lines end in \\n. UTF-8, or UTF-16 and UTF-32 with their mark.

    With `keep_line_ends` lines end as they do in the file, for readers of CSV. `remedy` ends each error: what to do
    about a file that is not there, too large, or not text. Raises UserError.
    """
    return decode_text(_read(path, remedy, max_bytes, is_line=False), str(path), remedy, keep_line_ends)


def read_line(path: Path, remedy: str, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """The file's first line, as read_text reads the whole. Raises UserError."""
    return decode_text(_read(path, remedy, max_bytes, is_line=True), str(path), remedy)


def _read(path: Path, remedy: str, max_bytes: int, is_line: bool) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.readline(max_bytes + 1) if is_line else file.read(max_bytes + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} is not there; {remedy}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, not a file; {remedy}") from None
    except OSError as error:
        raise UserError(f"{str(path)[:200]} cannot be read ({error.strerror}); {remedy}") from None
    if len(data) > max_bytes:
        raise UserError(f"{path} is larger than {max_bytes // 2**20} MiB, the most that is read; {remedy}")
    return data


def decode_text(data: bytes, name: str, remedy: str, keep_line_ends: bool = False) -> str:
    """`data` as text, as read_text does it; `name` is what errors call it. Raises UserError."""
    encoding = next((encoding for mark, encoding in _MARKS if data.startswith(mark)), "utf-8-sig")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not text in UTF-8 (byte {error.start} of {len(data)}); {remedy}") from None
    if "\0" in text:
        raise UserError(f"{name} is not text: it holds zero bytes; save it as UTF-8; {remedy}")
    return text if keep_line_ends else text.replace("\r\n", "\n").replace("\r", "\n")
