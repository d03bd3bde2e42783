"""archive/inventory.json: which files of the mirror are here, and which parts they are.

The stage `download` writes it last. DVC tracks it in place of the files, which lie under the data root: a clone that
has it may still lack them.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import UserError
from ..files.json_files import require_json
from .manifest import SPLITS


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ArchivedFile:
    """One file below archive/."""

    size: int
    """Bytes."""
    sha256: str = ""
    """Of its bytes; of a list of videos, of the contents that it lists, wherever they lie. '' if not known."""
    etag: str | None = None
    """As the server gave it; None for a file that this machine made."""
    modified: str | None = None
    """Last-Modified, or the time of change in nanoseconds of a file in a folder. Not in the inventory: a mirror and its
    copies differ in it."""
    members: int | None = None
    """Files in an archive, or videos in a list; None for an annotation."""

    def to_json(self) -> dict[str, object]:
        return {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if value is not None and (name, value) != ("sha256", "")
        }

    @classmethod
    def from_json(cls, content: Any) -> "ArchivedFile":
        """Raises ValueError with what is wrong."""
        if not isinstance(content, dict) or not _is_count(content.get("size")):
            raise ValueError("has no size")
        for name in ("sha256", "etag", "modified"):
            if not isinstance(content.get(name, ""), str):
                raise ValueError(f"has a {name} that is no text")
        if not _is_count(content.get("members", 0)):
            raise ValueError("has a number of members that is none")
        return cls(
            size=content["size"],
            sha256=content.get("sha256", ""),
            etag=content.get("etag"),
            modified=content.get("modified"),
            members=content.get("members"),
        )


@dataclasses.dataclass(frozen=True)
class FetchedSplit:
    """Which parts of a split are here."""

    parts: tuple[int, ...]
    """Their numbers, ascending."""
    listed: int
    """How many parts the mirror lists."""

    @property
    def is_complete(self) -> bool:
        return len(self.parts) == self.listed


@dataclasses.dataclass(frozen=True)
class Inventory:
    """The contents of inventory.json."""

    files: Mapping[str, ArchivedFile]
    """Path below archive/ -> its facts."""
    splits: Mapping[str, FetchedSplit]

    def part(self, split: str, number: int) -> str:
        """Path below archive/ of a part."""
        return next(self._names(split, number))

    def _names(self, split: str, number: int) -> Iterator[str]:
        names = (f"{split}/part_{number}.{ending}" for ending in ("tar.gz", "tgz", "tar", "csv"))
        return (name for name in names if name in self.files)

    def to_bytes(self) -> bytes:
        """The file's bytes: the same for the same contents."""
        files = {name: file.to_json() for name, file in self.files.items()}
        splits = {name: {"parts": list(split.parts), "listed": split.listed} for name, split in self.splits.items()}
        return (json.dumps({"files": files, "splits": splits}, indent=1, sort_keys=True) + "\n").encode()


def read_inventory(archive: Path) -> Inventory:
    """Raises UserError if the download is not finished, or the file was edited into something else.

    Later stages read the files that it names, and `data check` removes them: no name leads out of archive/.
    """
    path = archive / "inventory.json"
    if not path.is_file():
        raise UserError(f"{path} is not there: run the stage `download` to its end")
    content = require_json(path, _REMEDY)
    try:
        return _parse(content)
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error}); {_REMEDY}") from None


_REMEDY = "delete it, run `download` again"


def _parse(content: dict[str, Any]) -> Inventory:
    files, splits = content.get("files"), content.get("splits")
    if not isinstance(files, dict) or not isinstance(splits, dict) or not (files and splits):
        raise ValueError("files and splits are needed")
    inventory = Inventory({name: _file(name, facts) for name, facts in files.items()}, {})
    fetched = {split: _split(split, facts, inventory) for split, facts in splits.items()}
    return dataclasses.replace(inventory, splits=fetched)


def _file(name: str, content: object) -> ArchivedFile:
    path = PurePosixPath(name)
    is_inside = path.parts and not path.is_absolute() and ".." not in path.parts and name.isprintable()
    if not is_inside or any(len(part.encode()) > 255 for part in path.parts):
        raise ValueError(f"{name[:100]!r} is no file below it")
    try:
        return ArchivedFile.from_json(content)
    except ValueError as error:
        raise ValueError(f"{name[:100]!r} {error}") from None


def _split(name: str, content: object, inventory: Inventory) -> FetchedSplit:
    if name not in SPLITS:
        raise ValueError(f"{name[:40]!r} is none of {', '.join(SPLITS)}")
    numbers = content.get("parts") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(numbers, list) or not all(map(_is_count, numbers)):
        raise ValueError(f"the parts of {name} are no numbers")
    if not _is_count(content.get("listed")):
        raise ValueError(f"it does not say how many parts of {name} are listed")
    if absent := [number for number in numbers if not [*inventory._names(name, number)]]:
        raise ValueError(f"part {absent[0]} of {name} is not among its files")
    return FetchedSplit(tuple(numbers), content["listed"])


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63
