"""The mirror's archives, fetched whole: a mirror in the public layout -> archive/.

    400/train/k400_train_path.txt              a URL per line
    400/train/part_0.tar.gz                    ->  archive/train/part_0.tar.gz
    400/annotations/train.csv                  ->  archive/annotations/train.csv
    400/replacement_for_corrupted_k400.tgz     ->  archive/replacement_for_corrupted_k400.tgz
                                                   archive/inventory.json, what is here, with size, ETag and sha256

A file takes its place once it has been read from end to end; until then it grows in scratch, and a broken transfer goes
on where it ended, if the source still has the same version of it.
"""

import concurrent.futures
import contextlib
import dataclasses
import email.utils
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx

from actionzoo.errors import UserError

from .archives import BrokenArchive, check_archive
from .atomic import atomic_write, check_same_file_system, sync_folder
from .manifest import SPLITS

TERMS = (
    "Kinetics' annotations are CC BY 4.0 (Google). The videos belong to those who put them on YouTube, and CVDF passes "
    "them on for research: keep them to yourself, and do not publish clips or frames."
)
REPLACEMENTS = "replacement_for_corrupted_k400.tgz"


@dataclasses.dataclass(frozen=True)
class Inventory:
    """What archive/inventory.json says."""

    files: dict[str, dict]
    """Path below archive/ -> size, etag, sha256, members (of an archive)."""
    splits: dict[str, dict]
    """Split -> parts (numbers fetched), listed (how many parts the mirror lists)."""

    def part(self, split: str, number: int) -> str:
        """Path below archive/ of a part."""
        return next(name for name in self.files if re.fullmatch(rf"{split}/part_{number}\.(tar\.gz|tgz|tar)", name))


def download(
    source: str,
    archive: Path,
    *,
    splits: Sequence[str],
    parts: str,
    jobs: int,
    scratch: Path,
    retries: int = 6,
    backoff_seconds: float = 1.0,
    progress: Callable[[str, int, int], None] | None = None,
) -> str:
    """Fetch what is not there yet, `jobs` files at once; gives a line that says what is there now.

    `source` is an http(s) or file URL, or a folder: the mirror's root or its folder `400`. `parts` is `all`, or numbers
    like `0-9` or `0,3,5-7`. `retries` counts attempts in a row that brought nothing; the pause before them doubles from
    `backoff_seconds` on. `progress` is told bytes, from several threads, one at a time. Raises UserError; where some
    files cannot be had, after all others were fetched.
    """
    numbers = parse_parts(parts)
    check_same_file_system(scratch, archive)
    stop = threading.Event()
    with _open(source, splits[0], _Patience(retries, backoff_seconds, stop)) as mirror:
        listed = {split: _listed_parts(mirror, split) for split in splits}
        chosen = {split: _choose(mirror, split, listed[split], numbers) for split in splits}
        names = [name for split in splits for name in chosen[split].values()]
        # labels are numbered over all annotations, also of splits whose clips nobody asked for
        names += [f"annotations/{split}.csv" for split in SPLITS] + [REPLACEMENTS]
        optional = {f"annotations/{split}.csv" for split in SPLITS if split not in splits} | {REPLACEMENTS}

        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            try:
                looks = dict(zip(names, pool.map(functools.partial(_look, mirror), names), strict=True))
                seen = {name: found for name, found in looks.items() if isinstance(found, _Remote)}
                records = _Records(archive, scratch)
                todo = [name for name in seen if not records.hold(name, seen[name])]
                _check_space(mirror, scratch, {name: seen[name] for name in todo})
                if todo:
                    # from here on the folder is neither the old state nor the new one
                    records.take_over_inventory()
                tally = _Tally(sum(seen[name].size for name in todo), progress)
                fetches = {
                    name: pool.submit(
                        _fetch, mirror, name, seen[name], archive, scratch, records, functools.partial(tally.tell, name)
                    )
                    for name in todo
                }
                concurrent.futures.wait(fetches.values(), return_when=concurrent.futures.FIRST_EXCEPTION)
                failed = {name: reason for name, fetch in fetches.items() if (reason := fetch.result())}
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise
    failed |= {name: found for name, found in looks.items() if isinstance(found, str)}
    failed |= {name: "the mirror does not have it" for name in names if looks[name] is None and name not in optional}
    if failed:
        raise UserError(
            f"{len(failed)} of {len(names)} files could not be fetched from {source}; the others are kept, run again:"
            + "".join(f"\n  {name}: {reason}" for name, reason in sorted(failed.items()))
        )
    inventory = {
        "files": {name: records.public(name) for name in seen},
        "splits": {split: {"parts": sorted(chosen[split]), "listed": len(listed[split])} for split in splits},
    }
    with atomic_write(archive / "inventory.json") as file:
        file.write((json.dumps(inventory, indent=1, sort_keys=True) + "\n").encode())
    size = sum(file["size"] for file in inventory["files"].values())
    without = "" if REPLACEMENTS in seen else "; the mirror has no archive of replacements"
    return f"download: {len(seen)} files, {size / 1e9:.2f} GB, {len(todo)} of them fetched now{without} ({archive})"


def read_inventory(archive: Path) -> Inventory:
    """Raises UserError if the download has not been finished."""
    try:
        said = json.loads((archive / "inventory.json").read_text())
        return Inventory(files=said["files"], splits=said["splits"])
    except FileNotFoundError:
        raise UserError(f"{archive}/inventory.json is not there: run the stage `download` to its end") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{archive}/inventory.json cannot be read ({error}); delete it, run `download` again") from None


def parse_parts(text: str) -> set[int] | None:
    """`all` -> None, `0,3,5-7` -> {0, 3, 5, 6, 7}. Raises UserError."""
    if text.strip() == "all":
        return None
    numbers: set[int] = set()
    for item in text.split(","):
        ends = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", item)
        if ends is None or int(ends[2] or ends[1]) < int(ends[1]):
            raise UserError(f"parts is {text!r}; write all, or numbers like 0-9 or 0,3,5-7")
        numbers.update(range(int(ends[1]), int(ends[2] or ends[1]) + 1))
    return numbers


@dataclasses.dataclass(frozen=True)
class _Remote:
    """One version of a file at the source."""

    size: int
    etag: str = ""
    modified: str = ""
    """Last-Modified; of a file in a folder, its time of change in nanoseconds."""

    @property
    def validator(self) -> str:
        """What If-Range takes: a strong ETag, or a date. '' if there is none, and a transfer cannot be resumed."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified


class _Gone(Exception):
    """The source says that it has no such file."""


class _Failed(Exception):
    """An attempt that may be worth another."""


@dataclasses.dataclass(frozen=True)
class _Patience:
    """How often and how soon to try again."""

    retries: int
    backoff_seconds: float
    stop: threading.Event

    def attempt(self, action: Callable[[], object], measure: Callable[[], int] = lambda: 0) -> object:
        """Repeat `action` until it does not raise _Failed. What `measure` gives grows as long as there is progress."""
        failures, reached = 0, measure()
        while True:
            try:
                return action()
            except _Failed:
                now = measure()
                failures = 1 if now > reached else failures + 1
                reached = now
                if failures > self.retries or self.stop.is_set():
                    raise
                self.stop.wait(min(self.backoff_seconds * 2 ** (failures - 1), 60))


class _Web:
    """A mirror behind http(s)."""

    copies = True

    def __init__(self, root: str, patience: _Patience) -> None:
        self.root = root.rstrip("/")
        self.patience = patience
        # TLS is verified: httpx's default, and no way here to switch it off
        self._client = httpx.Client(
            timeout=httpx.Timeout(60, connect=20),
            follow_redirects=True,
            # archives as they are: some servers call .tar.gz an encoding of .tar
            headers={"Accept-Encoding": "identity"},
            limits=httpx.Limits(max_connections=None),
        )

    def close(self) -> None:
        self._client.close()

    def look(self, name: str) -> _Remote | None:
        """Size and version of a file, None if there is no such file. Raises _Failed."""

        def ask() -> _Remote:
            with self._stream("HEAD", name) as response:
                if response.status_code not in (405, 501):
                    self._judge(response)
                    return _remote(response)
            with self._stream("GET", name) as response:
                self._judge(response)
                return _remote(response)

        try:
            return self.patience.attempt(ask)
        except _Gone:
            return None

    def read(self, name: str) -> bytes | None:
        """A small file's contents, None if there is no such file. Raises _Failed."""

        def ask() -> bytes:
            with self._stream("GET", name) as response:
                self._judge(response)
                return b"".join(response.iter_raw())

        try:
            return self.patience.attempt(ask)
        except _Gone:
            return None

    def fetch(self, name: str, remote: _Remote, partial: Path, tell: Callable[[int], None]) -> _Remote:
        """Complete `partial`; gives the version that it is of now. `tell` hears how many bytes are here.

        Raises _Gone or _Failed."""

        def go_on() -> _Remote:
            version = _partial_version(partial)
            if version is None or not version.validator:
                # nothing, or nothing that could be told from another version's bytes
                _discard(partial)
                version = None
            start = partial.stat().st_size if version and partial.exists() else 0
            tell(start)
            if version and start == version.size > 0:
                return version
            headers = {"Range": f"bytes={start}-", "If-Range": version.validator} if version and start else {}
            with self._stream("GET", name, headers) as response:
                self._judge(response)
                if response.status_code == 206:
                    if not _continues(response, start, version):
                        _discard(partial)
                        raise _Failed("the answer does not continue what is here; starting over")
                else:
                    # the whole file: asked for, or since the source has another version now
                    _discard(partial)
                    version = _remote(response)
                    _write_json(_version_file(partial), dataclasses.asdict(version))
                with open(partial, "ab") as file:
                    for chunk in response.iter_raw():  # as they come: what is here is never fetched again
                        file.write(chunk)
                        tell(file.tell())
                        if self.patience.stop.is_set():
                            raise _Failed("stopped")
            size = partial.stat().st_size
            if version.size and size != version.size:
                raise _Failed(f"{size} of {version.size} bytes came")
            return version

        return self.patience.attempt(go_on, lambda: partial.stat().st_size if partial.exists() else 0)

    @contextlib.contextmanager
    def _stream(self, method: str, name: str, headers: dict[str, str] | None = None):
        try:
            with self._client.stream(method, f"{self.root}/{urllib.parse.quote(name)}", headers=headers) as response:
                yield response
        except (httpx.TransportError, httpx.TooManyRedirects) as error:
            raise _Failed(str(error) or type(error).__name__) from None

    @staticmethod
    def _judge(response: httpx.Response) -> None:
        status = f"{response.status_code} {response.reason_phrase}"
        # S3 says 403 instead of 404 to those who may not list a folder
        if response.status_code in (401, 403, 404, 410):
            raise _Gone(status)
        if response.status_code not in (200, 206):
            raise _Failed(status)


class _Folder:
    """A mirror that lies in a folder, perhaps mounted."""

    copies = False

    def __init__(self, root: Path, patience: _Patience) -> None:
        self.root = root
        self.patience = patience

    def close(self) -> None:
        pass

    def look(self, name: str) -> _Remote | None:
        path = self.root / name
        if not path.is_file():
            return None
        status = path.stat()
        return _Remote(size=status.st_size, modified=str(status.st_mtime_ns))

    def read(self, name: str) -> bytes | None:
        path = self.root / name
        return path.read_bytes() if path.is_file() else None

    def fetch(self, name: str, remote: _Remote, partial: Path, tell: Callable[[int], None]) -> _Remote:
        _discard(partial)
        try:
            # one file under two names: half a terabyte need not lie here twice. We replace files, never write into one
            os.link(self.root / name, partial)
        except OSError:
            shutil.copyfile(self.root / name, partial)
        tell(remote.size)
        return remote


@contextlib.contextmanager
def _open(source: str, split: str, patience: _Patience):
    """The mirror, whether `source` is its root or its folder `400`."""
    url = urllib.parse.urlsplit(source)
    if url.scheme in ("http", "https"):
        root, mirror_at = source.rstrip("/"), lambda root: _Web(root, patience)
    else:
        folder = urllib.request.url2pathname(url.path) if url.scheme == "file" else source
        root, mirror_at = folder, lambda root: _Folder(Path(root), patience)
        if not Path(folder).is_dir():
            raise UserError(f"data source {source} is no folder; give a mirror's folder, or its URL with https://")
    for candidate in (f"{root}/400", root):
        mirror = mirror_at(candidate)
        with contextlib.closing(mirror):
            found = _look(mirror, f"{split}/k400_{split}_path.txt")
            if isinstance(found, str):
                raise UserError(f"data source {source}: {found}; check the network and the source, then run again")
            if found:
                yield mirror
                return
    name = f"{split}/k400_{split}_path.txt"
    raise UserError(f"data source {source} has neither 400/{name} nor {name}; it must be a mirror in the public layout")


def _look(mirror: _Web | _Folder, name: str) -> _Remote | str | None:
    """The file's version, None if there is none, or the reason why that cannot be told."""
    try:
        return mirror.look(name)
    except _Failed as error:
        return str(error)


def _listed_parts(mirror: _Web | _Folder, split: str) -> dict[int, str]:
    """Part number -> its path at the source, from the split's list. Its URLs' host does not count: `source` does."""
    name = f"{split}/k400_{split}_path.txt"
    try:
        text = mirror.read(name)
    except _Failed as error:
        raise UserError(f"{mirror.root}/{name}: {error}; check the network, then run again") from None
    if text is None:
        raise UserError(f"{mirror.root}/{name} is not there; without it nobody knows the parts of {split}")
    parts = {}
    for line in text.decode(errors="replace").split():
        part = re.search(rf"(?:^|/)({split}/part_(\d+)\.(?:tar\.gz|tgz|tar))$", line)
        if part is None:
            raise UserError(
                f"{mirror.root}/{name}: {line[:200]!r} is no part; expected a URL like …/{split}/part_0.tar.gz"
            )
        parts[int(part[2])] = part[1]
    return parts


def _choose(mirror: _Web | _Folder, split: str, listed: dict[int, str], numbers: set[int] | None) -> dict[int, str]:
    chosen = {number: name for number, name in listed.items() if numbers is None or number in numbers}
    if not chosen:
        raise UserError(f"none of the parts asked for is among the {len(listed)} of {split} at {mirror.root}")
    return chosen


def _fetch(
    mirror: _Web | _Folder,
    name: str,
    remote: _Remote,
    archive: Path,
    scratch: Path,
    records: "_Records",
    tell: Callable[[int], None],
) -> str:
    """Bring one file to its place; gives '' or the reason why that could not be done."""
    partial = scratch / name.replace("/", "_")
    partial.parent.mkdir(parents=True, exist_ok=True)
    for attempt in itertools.count(1):
        try:
            version = mirror.fetch(name, remote, partial, tell)
            facts = _check(partial)
            break
        except BrokenArchive as error:
            _discard(partial)
            if attempt == 2:
                return f"not a whole archive, fetched twice: {error.fault}"
        except (_Gone, _Failed) as error:
            return str(error)
    records.forget(name)
    (archive / name).parent.mkdir(parents=True, exist_ok=True)
    os.replace(partial, archive / name)
    sync_folder((archive / name).parent)
    records.keep(name, facts | dataclasses.asdict(version) | {"size": (archive / name).stat().st_size})
    _discard(partial)  # its version; and itself, for renaming one of two names of a file to the other does nothing
    return ""


def _check(path: Path) -> dict:
    """Read the file through."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        if path.name.endswith(".csv"):
            return {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    members, sha256 = check_archive(path)
    return {"sha256": sha256, "members": members}


class _Records:
    """What is known of finished files: a small file each in scratch, and the inventory of the last finished run."""

    def __init__(self, archive: Path, scratch: Path) -> None:
        self._archive, self._folder = archive, scratch / "records"
        try:
            self._inventory = read_inventory(archive).files
        except UserError:
            self._inventory = {}

    def hold(self, name: str, remote: _Remote) -> bool:
        """Whether the file in its place is this version."""
        record, path = self._get(name), self._archive / name
        if record is None or not path.is_file() or path.stat().st_size != record["size"]:
            return False
        same = {key: record[key] == getattr(remote, key) for key in ("etag", "modified") if record.get(key)}
        # an equal ETag is enough: mirrors and their copies differ in dates
        return record["size"] == remote.size and (same.get("etag", False) or all(same.values()))

    def take_over_inventory(self) -> None:
        """Make scratch the one that knows, and the folder one that is not finished."""
        for name, record in self._inventory.items():
            if not self._path(name).exists():
                self.keep(name, record)
        (self._archive / "inventory.json").unlink(missing_ok=True)
        self._inventory = {}

    def keep(self, name: str, record: dict) -> None:
        _write_json(self._path(name), record)

    def forget(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    def public(self, name: str) -> dict:
        """What the inventory says of it: the same whenever and from wherever it came."""
        record = self._get(name)
        return {key: record[key] for key in ("size", "etag", "sha256", "members") if key in record}

    def _get(self, name: str) -> dict | None:
        return _read_json(self._path(name)) or self._inventory.get(name)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name.replace('/', '_')}.json"


class _Tally:
    """Adds up the bytes of all transfers."""

    def __init__(self, total: int, progress: Callable[[str, int, int], None] | None) -> None:
        self._here: dict[str, int] = {}
        self._total, self._progress = total, progress
        self._lock = threading.Lock()
        self._told = 0.0

    def tell(self, name: str, num_bytes: int) -> None:
        """So many bytes of this file are here now."""
        with self._lock:
            self._here[name] = num_bytes
            done, now = sum(self._here.values()), time.monotonic()
            if self._progress and (now - self._told > 0.1 or done >= self._total):
                self._told = now
                self._progress("download, bytes", done, self._total)


def _remote(response: httpx.Response) -> _Remote:
    modified = response.headers.get("Last-Modified", "")
    return _Remote(
        size=int(response.headers.get("Content-Length", 0)),
        etag=response.headers.get("ETag", ""),
        modified=modified if email.utils.parsedate(modified) else "",
    )


def _continues(response: httpx.Response, start: int, version: _Remote | None) -> bool:
    """Whether a partial answer is the rest, from `start` on, of the version that is here."""
    content_range = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    return (
        version is not None
        and content_range is not None
        and (int(content_range[1]), int(content_range[2])) == (start, version.size)
        and response.headers.get("ETag", version.etag) == version.etag
    )


def _version_file(partial: Path) -> Path:
    return partial.with_name(partial.name + ".version")


def _partial_version(partial: Path) -> _Remote | None:
    """The version that a partial file's bytes are of, None if unknown."""
    said = _read_json(_version_file(partial))
    return _Remote(**said) if said else None


def _discard(partial: Path) -> None:
    partial.unlink(missing_ok=True)
    _version_file(partial).unlink(missing_ok=True)


def _check_space(mirror: _Web | _Folder, scratch: Path, todo: dict[str, _Remote]) -> None:
    if not mirror.copies:
        return
    here = sum(path.stat().st_size for name in todo if (path := scratch / name.replace("/", "_")).exists())
    needed, free = sum(remote.size for remote in todo.values()) - here, shutil.disk_usage(scratch).free
    if needed > free:
        raise UserError(
            f"{needed / 1e9:.1f} GB are to be fetched, and {free / 1e9:.1f} GB are free at {scratch}; "
            "make room, or ask for fewer splits or parts"
        )


def _read_json(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


def _write_json(path: Path, contents: dict) -> None:
    with atomic_write(path) as file:
        file.write(json.dumps(contents).encode())
