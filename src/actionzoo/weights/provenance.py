"""What a training came from and DVC does not see: the versions of the programs, the bytes behind init.weights."""

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..files.hashes import sha256_of
from ..records import RunRecord
from .download import weights_here
from .initial import InitialWeights


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

    def changes(self, init: InitialWeights | None, cache: Path) -> list[str]:
        """What is different now, as clauses. A file is compared if it is on this machine; nothing is downloaded."""
        now = versions()
        clauses = [
            f"it ran with {name} {known}, and {now[name]} is installed"
            for name, known in self.versions.items()
            if name in now and known != now[name]
        ]
        if init and self.init_sha256 and init.source == self.init_source and (path := _file_here(init, cache)):
            sha256 = sha256_of(path)
            if sha256 != self.init_sha256:
                clauses.append(
                    f"it started from init.weights with sha256 {self.init_sha256[:8]}…, and {path} has {sha256[:8]}…"
                )
        return clauses

    def notes(self, model: str, init: InitialWeights | None, cache: Path, remedy: str = "") -> list[str]:
        """A line for each of `changes`: what it is of, and how to train anew. `remedy` says how, if it takes more."""
        remedy = remedy or f"`dvc repro -f train@{model}` trains it anew"
        return [
            f"the training of {model} is of before a change that DVC does not see: {clause}; {remedy}"
            for clause in self.changes(init, cache)
        ]


def init_source(recipe: Mapping[str, object]) -> str | None:
    """The init.weights of a recipe as plain values."""
    init = recipe.get("init")
    source = init.get("weights") if isinstance(init, dict) else None
    return source if isinstance(source, str) else None


def _file_here(init: InitialWeights, cache: Path) -> Path | None:
    """The file that a training would start from, if it is on this machine."""
    if init.published:
        return weights_here(init.published.address, cache, is_published=True)
    return weights_here(init.source, cache, is_published=bool(init.mirrors))
