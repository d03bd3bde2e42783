"""Where the MLflow runs of a stage are to be seen, told to the flow that started the stage.

The flow names a folder in ACTIONZOO_PROGRESS, reads the links, and deletes the folder: MLflow alone keeps the record.
"""

import contextlib
import dataclasses
import json
import os
import urllib.parse
from pathlib import Path

from ..files.json_files import read_json
from ..process.progress import FOLDER_VARIABLE


@dataclasses.dataclass(frozen=True)
class RunLink:
    """The page of a run in MLflow."""

    name: str
    """Of the run: the model; for published weights also which of its files."""
    phase: str
    """What the stage did: train or evaluate."""
    page: str
    """Its address."""
    is_served: bool
    """False: the store is a file, and the page is there only while `make ui` runs."""


def leave_link(link: RunLink) -> None:
    """Write the link for the flow that started this process, if one did. Does not fail."""
    if folder := os.environ.get(FOLDER_VARIABLE):
        path = Path(folder) / f"mlflow-{urllib.parse.quote(link.name, safe='')}.json"
        partial = path.with_suffix(".partial")
        with contextlib.suppress(OSError):
            partial.write_text(json.dumps(dataclasses.asdict(link)), encoding="utf-8")
            os.replace(partial, path)


def read_links(folder: Path) -> list[RunLink]:
    """The links that a stage left in `folder`; those that are not sound are left out."""
    links = []
    for path in sorted(folder.glob("mlflow-*.json")):
        with contextlib.suppress(OSError, TypeError):
            link = RunLink(**read_json(path))
            if all(isinstance(text, str) for text in (link.name, link.phase, link.page)):
                links.append(link)
    return links
