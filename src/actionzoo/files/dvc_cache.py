"""Where DVC keeps the contents of its outputs, found without DVC: a stage runs while DVC waits for it."""

import configparser
import json
import os
from pathlib import Path


def cache_folder(project: Path) -> Path:
    """The folder whose files are named by the md5 of their content: <2 digits>/<30 digits>.

    It is .dvc/cache/files/md5, unless a configuration file of DVC names another cache; of several, .dvc/config.local
    counts. DVC sets it there for the temporary folders of experiments.
    """
    folder = Path(".dvc", "cache")
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    for path in (home / "dvc" / "config", project / ".dvc" / "config", project / ".dvc" / "config.local"):
        config = configparser.ConfigParser(interpolation=None, strict=False)
        try:
            config.read(path, encoding="utf-8")
            named = config.get("cache", "dir", fallback="")
        except (configparser.Error, OSError, UnicodeDecodeError):
            continue
        if named := named.strip().strip("\"'"):
            folder = path.parent / Path(named).expanduser()
    return project / folder / "files" / "md5"


def cached_file(project: Path, md5: str) -> Path | None:
    """The file of that content in DVC's cache; None if it is not there."""
    path = cache_folder(project) / md5[:2] / md5[2:]
    return path if path.is_file() else None


def cached_folder(project: Path, md5: str) -> dict[str, Path]:
    """Relative path -> file of a folder output, whose hash ends in .dir; empty unless all of it is in DVC's cache."""
    listing = cached_file(project, md5)
    if listing is None:
        return {}
    try:
        files = {entry["relpath"]: cached_file(project, entry["md5"]) for entry in json.loads(listing.read_text())}
    except (ValueError, KeyError, TypeError):
        return {}
    found = {name: path for name, path in files.items() if path is not None}
    return found if len(found) == len(files) else {}
