"""Finished work that DVC may not have in its cache yet.

DVC deletes the outputs of a stage before it starts the stage's command, and takes them into its cache after the command
has ended. A stage that was killed in between would do hours of work again. So hard links to its finished files stay in
a scratch folder, and the next start publishes them again. Once DVC's cache has all of them, they are of no use: then a
stage that starts nevertheless was forced to (`dvc repro -f`).

    finished/index.json   path relative to the run's base folder -> md5
    finished/<md5>        the file
"""

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from .dvc_cache import cached_file
from .hashes import md5_of
from .json_files import read_json, write_json
from .links import link_or_copy

_FOLDER, _INDEX = "finished", "index.json"


def keep(scratch: Path, base: Path, paths: Iterable[Path]) -> None:
    """Keep the files, and those in the folders, among `paths`; then delete everything else in `scratch`."""
    folder, partial = scratch / _FOLDER, scratch / f".{_FOLDER}.partial"
    for old in (partial, folder):
        shutil.rmtree(old, ignore_errors=True)
    partial.mkdir(parents=True)
    index = {}
    for path in _files(paths):
        md5 = index[path.relative_to(base).as_posix()] = md5_of(path)
        link_or_copy(path, partial / md5)
    write_json(partial / _INDEX, index)
    os.replace(partial, folder)
    for other in scratch.iterdir():
        if other.is_dir() and other != folder:
            shutil.rmtree(other)
        elif other != folder:
            other.unlink()


def is_due(scratch: Path, project: Path) -> bool:
    """Whether there is finished work in `scratch` that the cache of the project's DVC does not have."""
    index = _index(scratch)
    return bool(index) and not _is_cached(index, project)


def publish_again(scratch: Path, base: Path) -> None:
    """Put the kept files in their places, which they keep in `scratch`, too. Raises OSError."""
    for name, md5 in _index(scratch).items():
        path = base / name
        path.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(scratch / _FOLDER / md5, path)


def drop_cached(unfinished: Path, project: Path) -> None:
    """Delete the scratch folders in `unfinished` whose finished work DVC's cache has."""
    for folder in unfinished.glob(f"*/{_FOLDER}"):
        if (index := _index(folder.parent)) and _is_cached(index, project):
            shutil.rmtree(folder.parent, ignore_errors=True)


def _index(scratch: Path) -> Mapping[str, str]:
    """Empty unless all files of the index are there."""
    index = read_json(scratch / _FOLDER / _INDEX)
    return index if all((scratch / _FOLDER / md5).is_file() for md5 in index.values()) else {}


def _is_cached(index: Mapping[str, str], project: Path) -> bool:
    return all(cached_file(project, md5) for md5 in index.values())


def _files(paths: Iterable[Path]) -> list[Path]:
    return [
        file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*"))) if file.is_file()
    ]
