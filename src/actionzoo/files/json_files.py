"""Small JSON files that say what was done: read as they are, written whole."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import UserError
from .atomic import atomic_write
from .text import read_text


def read_json(path: Path) -> dict[str, Any]:
    """The file's object; empty where there is none, or none that is whole."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def require_json(path: Path, remedy: str) -> dict[str, Any]:
    """The file's object. Raises UserError, ending with `remedy`, if it is not there or is no JSON object."""
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


def write_json(path: Path, content: Any, indent: int | None = 2) -> None:
    try:
        data = json.dumps(content, indent=indent, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair, which another's JSON may hold, and no UTF-8
        data = json.dumps(content, indent=indent).encode()
    with atomic_write(path) as file:
        file.write(data + b"\n")
