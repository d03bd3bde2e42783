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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from ..errors import MachineFault, UserError
from ..files.addresses import without_secrets
from ..files.atomic import atomic_write, check_same_file_system, sync_folder
from ..files.json_files import read_json, require_json
from ..files.links import place_link
from ..files.locks import locked
from ..files.text import MAX_TEXT_BYTES, decode_text
from ..process.progress import Progress
from .archives import BrokenArchive, check_archive
from .manifest import SPLITS
from .transfer import Failed, Gone, Patience, Remote, Web, discard

TERMS = (
    "Kinetics' annotations are CC BY 4.0 (Google). The videos belong to those who put them on YouTube, and CVDF passes "
    "them on for research: keep them to yourself, and do not publish clips or frames."
)
REPLACEMENTS = "replacement_for_corrupted_k400.tgz"


@dataclasses.dataclass(frozen=True)
class Inventory:
    """What archive/inventory.json says."""

    files: dict[str, dict]
    """Path below archive/ -> size, etag, sha256, members (of an archive). A list of videos has the sha256 of what it
    lists, wherever that lies."""
    splits: dict[str, dict]
    """Split -> parts (numbers fetched), listed (how many parts the mirror lists)."""

    def part(self, split: str, number: int) -> str:
        """Path below archive/ of a part."""
        return next(_part_names(self.files, split, number))


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
    on_progress: Progress | None = None,
) -> str:
    """Fetch what is not there yet, `jobs` files at once; gives a line that says what is there now.

    `source` is an http(s) or file URL, or a folder: the mirror's root or its folder `400`. `parts` is `all`, or numbers
    like `0-9` or `0,3,5-7`. `retries` counts attempts in a row that brought nothing; the pause before them doubles from
    `backoff_seconds` on. `on_progress` is told bytes, from several threads, one at a time. Raises UserError; where some
    files cannot be had, after all others were fetched.
    """
    numbers = parse_parts(parts)
    check_same_file_system(scratch, archive)
    waiting = f"another run of `download` is at work in {scratch}; waiting for it to end"
    with locked(scratch / ".lock", waiting=waiting):
        try:
            return _download(source, archive, splits, numbers, jobs, scratch, retries, backoff_seconds, on_progress)
        except MachineFault:
            raise
        except UserError as error:  # of addresses nothing leaves that opens them
            raise UserError(without_secrets(str(error))) from None


def _download(
    source: str,
    archive: Path,
    splits: Sequence[str],
    numbers: set[int] | None,
    jobs: int,
    scratch: Path,
    retries: int,
    backoff_seconds: float,
    on_progress: Progress | None,
) -> str:
    stop = threading.Event()
    with _open(source, splits[0], Patience(retries, backoff_seconds, stop)) as mirror:
        listed = {split: _listed_parts(mirror, split) for split in splits}
        chosen = {split: _choose(mirror, split, listed[split], numbers) for split in splits}
        names = [name for split in splits for name in chosen[split].values()]
        # labels are numbered over all annotations, also of splits whose clips nobody asked for
        names += [f"annotations/{split}.csv" for split in SPLITS] + [REPLACEMENTS]
        optional = {f"annotations/{split}.csv" for split in SPLITS if split not in splits} | {REPLACEMENTS}

        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            try:
                looks = dict(zip(names, pool.map(functools.partial(_look, mirror), names), strict=True))
                seen = {name: found for name, found in looks.items() if isinstance(found, Remote)}
                records = _Records(archive, scratch)
                todo = [name for name in seen if not records.hold(name, seen[name])]
                _check_space(mirror, scratch, {name: seen[name] for name in todo})
                if todo:
                    # from here on the folder is neither the old state nor the new one
                    records.take_over_inventory()
                tally = _Tally(sum(seen[name].size for name in todo), on_progress)
                fetches = {
                    name: pool.submit(
                        _fetch, mirror, name, archive, scratch, records, functools.partial(tally.tell, name)
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
        file.write(inventory_text(**inventory))
    size = sum(file["size"] for file in inventory["files"].values())
    without = "" if REPLACEMENTS in seen else "; the mirror has no archive of replacements"
    return f"download: {len(seen)} files, {size / 1e9:.2f} GB, {len(todo)} of them fetched now{without} ({archive})"


def read_inventory(archive: Path) -> Inventory:
    """Raises UserError if the download has not been finished, or the file was edited into something else."""
    path = archive / "inventory.json"
    if not path.is_file():
        raise UserError(f"{path} is not there: run the stage `download` to its end")
    said = require_json(path, _INVENTORY_ANEW)
    inventory = Inventory(files=said.get("files", {}), splits=said.get("splits", {}))
    if fault := _inventory_fault(inventory):
        raise UserError(f"{path} cannot be read ({fault}); {_INVENTORY_ANEW}")
    return inventory


_INVENTORY_ANEW = "delete it, run `download` again"


def _inventory_fault(inventory: Inventory) -> str:
    """What makes it no inventory, '' for nothing: later stages read, and the check removes, the files that it names."""
    files, splits = inventory.files, inventory.splits
    if not isinstance(files, dict) or not isinstance(splits, dict) or not (files and splits):
        return "files and splits are needed"
    for name, facts in files.items():
        path = PurePosixPath(name)
        is_inside = path.parts and not path.is_absolute() and ".." not in path.parts and name.isprintable()
        if not is_inside or any(len(part.encode()) > 255 for part in path.parts):
            return f"{name[:100]!r} is no file below it"
        if not isinstance(facts, dict) or not _is_count(facts.get("size")):
            return f"{name[:100]!r} has no size"
        if not all(isinstance(facts.get(key, ""), str) for key in ("sha256", "etag", "modified")):
            return f"the sha256, etag or modified of {name[:100]!r} is no text"
    for split, said in splits.items():
        if split not in SPLITS:
            return f"{split[:40]!r} is none of {', '.join(SPLITS)}"
        numbers = said.get("parts") if isinstance(said, dict) else None
        if not isinstance(numbers, list) or not all(_is_count(number) for number in numbers):
            return f"the parts of {split} are no numbers"
        if not _is_count(said.get("listed")):
            return f"it does not say how many parts of {split} are listed"
        parts = {number: [*_part_names(files, split, number)] for number in numbers}
        if lacking := [number for number, names in parts.items() if not names]:
            return f"part {lacking[0]} of {split} is not among its files"
    return ""


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _part_names(files: dict[str, dict], split: str, number: int) -> Iterator[str]:
    """Of the files those that are this part, in one of its forms."""
    names = (f"{split}/part_{number}.{ending}" for ending in ("tar.gz", "tgz", "tar", "csv"))
    return (name for name in names if name in files)


def inventory_text(files: dict[str, dict], splits: dict[str, dict]) -> bytes:
    """What stands in archive/inventory.json; the file is written last, for it says that all others are there."""
    return (json.dumps({"files": files, "splits": splits}, indent=1, sort_keys=True) + "\n").encode()


def parse_parts(text: str) -> set[int] | None:
    """`all` -> None, `0,3,5-7` -> {0, 3, 5, 6, 7}. Raises UserError."""
    if text.strip() == "all":
        return None
    numbers: set[int] = set()
    for item in text.split(","):
        ends = re.fullmatch(r"\s*([0-9]{1,6})(?:\s*-\s*([0-9]{1,6}))?\s*", item)
        if ends is None or int(ends[2] or ends[1]) < int(ends[1]):
            raise UserError(f"parts is {text[:100]!r}; write all, or numbers like 0-9 or 0,3,5-7")
        numbers.update(range(int(ends[1]), int(ends[2] or ends[1]) + 1))
    return numbers


class _Folder:
    """A mirror that lies in a folder, perhaps mounted."""

    copies = False

    def __init__(self, root: Path, patience: Patience) -> None:
        self.root = root
        self.patience = patience

    def close(self) -> None:
        pass

    def look(self, name: str) -> Remote | None:
        path = self.root / name
        if not path.is_file():
            return None
        status = path.stat()
        return Remote(size=status.st_size, modified=str(status.st_mtime_ns))

    def read(self, name: str) -> bytes | None:
        path = self.root / name
        if not path.is_file():
            return None
        with path.open("rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
        if len(data) > MAX_TEXT_BYTES:
            raise Failed(f"it is larger than {MAX_TEXT_BYTES // 2**20} MiB, as no list of parts is")
        return data

    def fetch(self, name: str, partial: Path, on_progress: Callable[[int], None]) -> Remote:
        discard(partial)
        version = self.look(name)
        if version is None:
            raise Gone("it is not there any more")
        place_link(
            self.root / name, partial
        )  # half a terabyte need not lie here twice. We replace files, never write into one
        on_progress(version.size)
        return version


@contextlib.contextmanager
def _open(source: str, split: str, patience: Patience):
    """The mirror, whether `source` is its root or its folder `400`."""
    url = urllib.parse.urlsplit(source)
    if url.scheme in ("http", "https"):
        root, mirror_at, own = source.rstrip("/"), lambda root: Web(root, patience), ""
    else:
        folder = urllib.request.url2pathname(url.path) if url.scheme == "file" else source
        root, mirror_at = folder, lambda root: _Folder(Path(root), patience)
        own = f"; a folder of one's own videos is written folder:{folder}"
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
    raise UserError(
        f"data source {source} has neither 400/{name} nor {name}; it must be a mirror in the public layout{own}"
    )


def _look(mirror: Web | _Folder, name: str) -> Remote | str | None:
    """The file's version, None if there is none, or the reason why that cannot be told."""
    try:
        return mirror.look(name)
    except Failed as error:
        return str(error)


def _listed_parts(mirror: Web | _Folder, split: str) -> dict[int, str]:
    """Part number -> its path at the source, from the split's list. Its URLs' host does not count: `source` does."""
    name = f"{split}/k400_{split}_path.txt"
    try:
        text = mirror.read(name)
    except Failed as error:
        raise UserError(f"{mirror.root}/{name}: {error}; check the network, then run again") from None
    if text is None:
        raise UserError(f"{mirror.root}/{name} is not there; without it nobody knows the parts of {split}")
    parts = {}
    lines = decode_text(text, f"{mirror.root}/{name}", "it should have a part's URL in each line")
    for line in lines.split():
        part = re.search(rf"(?:^|/)({split}/part_([0-9]{{1,6}})\.(?:tar\.gz|tgz|tar))$", line)
        if part is None:
            raise UserError(
                f"{mirror.root}/{name}: {line[:200]!r} is no part; expected a URL like …/{split}/part_0.tar.gz"
            )
        parts[int(part[2])] = part[1]
    return parts


def _choose(mirror: Web | _Folder, split: str, listed: dict[int, str], numbers: set[int] | None) -> dict[int, str]:
    chosen = {number: name for number, name in listed.items() if numbers is None or number in numbers}
    if not chosen:
        raise UserError(f"none of the parts asked for is among the {len(listed)} of {split} at {mirror.root}")
    return chosen


def _fetch(
    mirror: Web | _Folder,
    name: str,
    archive: Path,
    scratch: Path,
    records: "_Records",
    on_progress: Callable[[int], None],
) -> str:
    """Bring one file to its place; gives '' or the reason why that could not be done."""
    partial = scratch / name.replace("/", "_")
    partial.parent.mkdir(parents=True, exist_ok=True)
    for attempt in itertools.count(1):
        try:
            version = mirror.fetch(name, partial, on_progress)
            facts = _check(partial)
            break
        except BrokenArchive as error:
            discard(partial)
            if attempt == 2:
                return f"not a whole archive, fetched twice: {error.fault}"
        except (Gone, Failed) as error:
            return str(error)
    records.forget(name)
    (archive / name).parent.mkdir(parents=True, exist_ok=True)
    os.replace(partial, archive / name)
    sync_folder((archive / name).parent)
    records.keep(name, facts | dataclasses.asdict(version) | {"size": (archive / name).stat().st_size})
    discard(partial)  # its version; and itself, for renaming one of two names of a file to the other does nothing
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

    def hold(self, name: str, remote: Remote) -> bool:
        """Whether the file in its place is this version."""
        record, path = self._get(name), self._archive / name
        if record is None or not path.is_file() or path.stat().st_size != record["size"]:
            return False
        same = {key: record[key] == getattr(remote, key) for key in ("etag", "modified") if record.get(key)}
        # an equal ETag is enough: mirrors and their copies differ in dates. Some servers do not tell the size
        return remote.size in (0, record["size"]) and (same.get("etag", False) or all(same.values()))

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
        record = read_json(self._path(name))
        return record if _is_count(record.get("size")) else self._inventory.get(name)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name.replace('/', '_')}.json"


class _Tally:
    """Adds up the bytes of all transfers."""

    def __init__(self, total: int, on_progress: Progress | None) -> None:
        self._here: dict[str, int] = {}
        self._total, self._on_progress = total, on_progress
        self._lock = threading.Lock()
        self._told = 0.0

    def tell(self, name: str, num_bytes: int) -> None:
        """So many bytes of this file are here now."""
        with self._lock:
            self._here[name] = num_bytes
            done, now = sum(self._here.values()), time.monotonic()
            if self._on_progress and (now - self._told > 0.1 or done >= self._total):
                self._told = now
                self._on_progress("download, bytes", done, self._total)


def _check_space(mirror: Web | _Folder, scratch: Path, todo: dict[str, Remote]) -> None:
    if not mirror.copies:
        return
    here = sum(path.stat().st_size for name in todo if (path := scratch / name.replace("/", "_")).exists())
    needed, free = sum(remote.size for remote in todo.values()) - here, shutil.disk_usage(scratch).free
    if needed > free:
        raise UserError(
            f"{needed / 1e9:.1f} GB are to be fetched, and {free / 1e9:.1f} GB are free at {scratch}; "
            "make room, or ask for fewer splits or parts"
        )


def _write_json(path: Path, contents: dict) -> None:
    with atomic_write(path) as file:
        file.write(json.dumps(contents).encode())
