"""Downloads weights files, and checks their bytes against the hash in their name."""

import hashlib
import os
import re
import shutil
import threading
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from ..files.addresses import without_secrets
from ..files.atomic import atomic_write
from ..files.hashes import sha256_of
from ..files.locks import locked
from ..kinetics.single_file import complete
from ..kinetics.transfer import Patience, discard
from ..process.progress import Progress

CACHE = Path("weights")
"""Where downloaded and imported weights lie, below the project."""


def fetch_weights(
    source: str | Path,
    cache: Path = CACHE,
    *,
    mirrors: Sequence[str] | None = None,
    retries: int = 4,
    backoff_seconds: float = 1.0,
    on_progress: Progress | None = None,
) -> Path:
    """The path of a weights file on this machine: `source` itself if it is a path; an http(s) URL is downloaded into
    `cache`.

    A name that ends in eight hex digits, as in `…_20200826-f85b90c5.pth`, promises that the sha256 of the bytes begins
    with them. This is checked, and such a file is downloaded once. A file with another name is downloaded each time,
    because it may have changed. `retries` counts attempts in a row that transferred nothing.

    The sources of a URL's file, in order: `cache`; its base name in ACTIONZOO_WEIGHTS, a folder or URL; the URL; the
    `mirrors`, URLs or paths. Its bytes must match the URL's name wherever it comes from. `mirrors` is None for a file
    that was not published; then a name without digits is not taken from ACTIONZOO_WEIGHTS.

    Raises UserError that names every address that was tried. A download that does not match its name is kept under
    another name, for inspection.
    """
    url = urllib.parse.urlsplit(str(source))
    is_remote = url.scheme in ("http", "https")
    if not is_remote and mirrors is None:
        return _checked_path(source)
    name = _plain_name(url.path if is_remote else Path(url.path).name)
    path = _cached_path(source, name, cache)
    if _promised(name) and path.is_file() and _matches_its_name(path):
        return path
    addresses = [*_own_address(name, is_published=mirrors is not None), str(source), *(mirrors or ())]
    faults = []
    for number, address in enumerate(addresses, 1):
        # no minutes are spent on an address that does not answer while there is another one
        patience = Patience(
            retries if number == len(addresses) else min(retries, 1), backoff_seconds, threading.Event()
        )
        try:
            return _fetch_one(address, path, name, patience, on_progress)
        except UserError as fault:
            faults.append(str(fault))
    own_place = "a folder (or behind a URL) that the environment variable ACTIONZOO_WEIGHTS names"
    if not is_remote:
        remedy = ""
    elif _promised(name):
        remedy = f". Without the internet: put {name} into {cache}/, or into {own_place}"
    elif mirrors is not None:
        remedy = f". Without the internet: put {name} into {own_place}"
    else:
        remedy = ". Without the internet: name a file of this machine instead"
    raise UserError("; ".join(faults) + remedy)


def weights_here(source: str | Path, cache: Path = CACHE, *, is_published: bool = False) -> Path | None:
    """The file on this machine that `fetch_weights` would load, or loaded last; None if there is none.

    `is_published`: fetch_weights gets mirrors for it.
    """
    url = urllib.parse.urlsplit(str(source))
    is_remote = url.scheme in ("http", "https")
    places = [] if is_remote else [_as_path(source)]
    if is_remote or is_published:
        name = _plain_name(url.path if is_remote else Path(url.path).name)
        own = [Path(address) for address in _own_address(name, is_published) if "://" not in address]
        places = [*own, _cached_path(source, name, cache), *places]
    return next((path for path in places if path.is_file()), None)


def _cached_path(source: str | Path, name: str, cache: Path) -> Path:
    """Where a downloaded file lies. A name like best.pth, which many files have, gets a folder of its own."""
    folder = cache if _promised(name) else cache / f"from-{hashlib.sha256(str(source).encode()).hexdigest()[:8]}"
    return folder / name


def _own_address(name: str, is_published: bool) -> list[str]:
    """The file's address in ACTIONZOO_WEIGHTS, if any; only for published names, as others are too common."""
    place = os.environ.get("ACTIONZOO_WEIGHTS", "").strip()
    if not place or not (is_published or _promised(name)):
        return []
    if place.startswith(("http://", "https://")):
        folder, query, words = place.partition("?")
        return [f"{folder.rstrip('/')}/{urllib.parse.quote(name)}{query}{words}"]
    own_folder = _as_path(place)
    if not own_folder.is_dir():
        raise UserError(f"the environment variable ACTIONZOO_WEIGHTS is {place}, which is neither a folder nor a URL")
    return [str(own_folder / name)] if (own_folder / name).is_file() else []


def _as_path(source: str | Path) -> Path:
    url = urllib.parse.urlsplit(str(source))
    return Path(urllib.request.url2pathname(url.path)) if url.scheme == "file" else Path(source).expanduser()


def _checked_path(source: str | Path, promised: str = "") -> Path:
    """A file of this machine whose sha256 begins with `promised`, by default with what its name promises.

    Raises UserError.
    """
    path = _as_path(source)
    if path.is_dir():
        raise UserError(f"{source} is a folder, not a file; name the weights file in it")
    if not path.is_file():
        raise UserError(f"{source} is no file; give a path, or a URL with https://")
    if not (wanted := promised or _promised(path.name)):
        return path
    found = sha256_of(path)
    if not found.startswith(wanted):
        raise UserError(
            f"{path} has sha256 {found[:8]}…, its name promises {wanted}: it is damaged. "
            "Fetch it again; if you know it to be right, give it a name without those digits"
        )
    return path


def _fetch_one(
    address: str,
    path: Path,
    name: str,
    patience: Patience,
    on_progress: Progress | None,
) -> Path:
    """The file at one address, downloaded to `path` if it is remote; its bytes must match `name`. Raises UserError."""
    url = urllib.parse.urlsplit(address)
    if url.scheme not in ("http", "https"):
        found = _checked_path(address, _promised(name))
        if found.name == name:
            return found
        with found.open("rb") as source, atomic_write(path) as copy:  # the copy has the name that its bytes must match
            shutil.copyfileobj(source, copy)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(f".{name}.lock")):
        if _promised(name) and path.is_file():
            if _matches_its_name(path):
                return path
            _refuse(path)
        partial = path.with_name(f".{name}.partial")
        on_bytes = (lambda here, size: on_progress(name, here, size)) if on_progress else None
        complete(address, partial, patience, on_progress=on_bytes)
        os.replace(partial, path)
        discard(partial)
        if not _matches_its_name(path):
            kept, sha256 = _refuse(path)
            raise UserError(
                f"{without_secrets(url.geturl())} has sha256 {sha256[:8]}…, its name promises {_promised(name)}; it "
                f"was not loaded and is kept as {kept}. Run again to fetch it anew; if you know it to be right, load "
                "that file"
            )
    return path


def _plain_name(path: str) -> str:
    """The file name at the end of a URL's path, safe to use in a folder."""
    name = re.split(r"[/\\]", urllib.parse.unquote(path))[-1]
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".-")[-150:] or "weights.pth"


def _promised(name: str) -> str:
    """The first eight hex digits of a sha256 that a file name ends with; '' if it has none."""
    digits = re.search(r"-([0-9a-f]{8})\.(?:pth|pt|safetensors)$", name)
    return digits[1] if digits else ""


def _matches_its_name(path: Path) -> bool:
    """Whether the sha256 of the bytes is the promised one; True for a name without digits."""
    promised = _promised(path.name)
    return not promised or sha256_of(path).startswith(promised)


def _refuse(path: Path) -> tuple[Path, str]:
    """Rename a file that does not match its name; returns the new path, with the right digits, and the sha256."""
    found = sha256_of(path)
    kept = path.with_name(f"{path.stem}.refused-{found[:8]}{path.suffix}")
    os.replace(path, kept)
    return kept, found
