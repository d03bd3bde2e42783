"""Small JSON files that say what was done: read as they are, written whole."""

import json
from pathlib import Path
from typing import Any

from .atomic import atomic_write


def read_json(path: Path) -> dict[str, Any]:
    """Empty where there is none, or none that is whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def write_json(path: Path, content: Any, indent: int | None = 2) -> None:
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=indent, ensure_ascii=False) + "\n").encode())
