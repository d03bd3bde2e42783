"""Small JSON files that say what was done: read as they are, written whole."""

import json
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


def write_json(path: Path, content: Any, indent: int | None = 2) -> None:
    try:
        data = json.dumps(content, indent=indent, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair, which another's JSON may hold, and no UTF-8
        data = json.dumps(content, indent=indent).encode()
    with atomic_write(path) as file:
        file.write(data + b"\n")
