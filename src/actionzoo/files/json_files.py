"""Small JSON files, written whole or not at all. A damaged file is either read as empty or refused with a remedy."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import UserError
from .atomic import atomic_write
from .text import read_text


def read_json(path: Path) -> dict[str, Any]:
    """The file's object; empty if there is no such file, or none that holds a JSON object. Raises OSError."""
    content = _load(path)
    return content if isinstance(content, dict) else {}


def read_json_list(path: Path) -> list[Any]:
    """The file's array; empty if there is no such file, or none that holds a JSON array. Raises OSError."""
    content = _load(path)
    return content if isinstance(content, list) else []


def _load(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError, RecursionError):
        return None


def require_json(path: Path, remedy: str) -> dict[str, Any]:
    """The file's object. Raises UserError, which ends with `remedy`, if the file is absent or holds no JSON object."""
    text = read_text(path, remedy)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        why = str(error) if isinstance(error, ValueError) else "nested too deeply"
        raise UserError(f"{path} is damaged, it is no JSON ({why}); {remedy}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged, it holds no JSON object but a {type(content).__name__}; {remedy}")
    return content


def json_lines(path: Path, remedy: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file with one JSON object per line, each with its line number from 1.

    Empty lines are skipped, and so is a last line that is incomplete, as a killed writer leaves it. Raises UserError,
    ending with `remedy`, if the file is absent or another line holds no JSON object.
    """
    lines = read_text(path, remedy).split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines):
                return
            content = None
        if not isinstance(content, dict):
            raise UserError(f"{path}, line {number}, is no JSON object; {remedy}")
        yield number, content


def write_json(path: Path, content: object, indent: int | None = 2) -> None:
    """Write or replace the file: UTF-8, and a line feed at its end. `indent=None` writes one line. Raises OSError."""
    try:
        data = json.dumps(content, indent=indent, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair, which another's JSON may hold, and no UTF-8
        data = json.dumps(content, indent=indent).encode()
    with atomic_write(path) as file:
        file.write(data + b"\n")
