"""What a training came from and DVC does not see: the versions of the programs, the bytes behind init.weights."""

import importlib.metadata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..files.hashes import sha256_of
from ..records import RunRecord


def versions() -> dict[str, str]:
    """The installed versions of actionzoo and torch. Imports neither."""
    return {name: importlib.metadata.version(name) for name in ("actionzoo", "torch")}


@dataclass(frozen=True)
class Provenance:
    """What a training says that it came from."""

    versions: Mapping[str, str] = field(default_factory=dict)
    """Empty if it does not say."""
    init_source: str | None = None
    """Its init.weights."""
    init_sha256: str = ""
    """Of the file that it loaded; empty if it loaded none, or does not say."""

    @classmethod
    def of(cls, record: RunRecord) -> "Provenance":
        return cls(record.versions, init_source(record.recipe), record.init_sha256)

    def notes(self, model: str, source: str | None, file: Path | None, remedy: str = "") -> list[str]:
        """A line for each difference to what is there now, with the way to train anew.

        `source` is the recipe's init.weights, and `file` the file behind it, if it is on this machine. `remedy` says
        how to train anew where `dvc repro -f` is not enough.
        """
        remedy = remedy or f"`dvc repro -f train@{model}` trains it anew"
        return [f"DVC does not see that {clause}; {remedy}" for clause in self._changes(model, source, file)]

    def _changes(self, model: str, source: str | None, file: Path | None) -> Iterator[str]:
        now = versions()
        for name, known in self.versions.items():
            if name in now and known != now[name]:
                yield f"{model} was trained with {name} {known}, and {now[name]} is installed"
        if file and self.init_sha256 and source == self.init_source and (sha256 := sha256_of(file)) != self.init_sha256:
            yield f"{model} started from weights with sha256 {self.init_sha256[:8]}…, and {file} has {sha256[:8]}…"


def init_source(recipe: Mapping[str, object]) -> str | None:
    """The init.weights of a recipe as plain values."""
    init = recipe.get("init")
    source = init.get("weights") if isinstance(init, dict) else None
    return source if isinstance(source, str) else None
