"""Fetch a mirror's archives: a mirror in the public layout -> archive/.

    400/train/k400_train_path.txt              a URL per line
    400/train/part_0.tar.gz                    ->  archive/train/part_0.tar.gz
    400/annotations/train.csv                  ->  archive/annotations/train.csv
    400/replacement_for_corrupted_k400.tgz     ->  archive/replacement_for_corrupted_k400.tgz
                                                   archive/inventory.json (inventory.py)

A file is moved to its place once it has been read from end to end. Until then it grows in scratch; a broken transfer is
resumed if the source still has the same version of the file.
"""

import concurrent.futures
import dataclasses
import functools
import itertools
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..errors import MachineFault, TemporaryFault, UserError
from ..files.addresses import without_secrets
from ..files.atomic import atomic_write, check_same_file_system, sync_folder
from ..files.data_folder import DataFolder
from ..files.hashes import sha256_of
from ..files.json_files import read_json, write_json
from ..files.locks import locked
from ..process.progress import Progress
from .archives import BrokenArchive, check_archive
from .execution import Execution
from .inventory import ArchivedFile, FetchedSplit, Inventory, read_inventory
from .manifest import SPLITS
from .mirrors import Mirror, listed_parts, open_mirror, try_inspect
from .transfer import Failed, Gone, Patience, Remote, discard

TERMS = (
    "Kinetics' annotations are CC BY 4.0 (Google). The videos belong to those who put them on YouTube, and CVDF passes "
    "them on for research: keep them to yourself, and do not publish clips or frames."
)
REPLACEMENTS = "replacement_for_corrupted_k400.tgz"


def download(
    source: str,
    archive: DataFolder,
    execution: Execution,
    *,
    splits: Sequence[str],
    parts: str,
    patience: Patience | None = None,
) -> str:
    """Fetch the files that are not there yet; returns a line that says what is there now.

    `source` is an http(s) or file URL, or a folder: the mirror's root or its folder `400`. `parts` is `all`, or numbers
    such as `0-9` or `0,3,5-7`. `patience` is for this download alone: its `stop` is set if the download fails. Raises
    UserError; if some files cannot be fetched, after all others were.
    """
    numbers, scratch = parse_parts(parts), execution.scratch
    check_same_file_system(scratch, archive.stored)
    waiting = f"another run of `download` is at work in {scratch}; waiting for it to end"
    with locked(scratch / ".lock", waiting=waiting):
        try:
            return _download(source, archive, execution, splits, numbers, patience or Patience())
        except MachineFault:
            raise
        except UserError as error:  # messages must not hold the secrets of an address
            kind = TemporaryFault if isinstance(error, TemporaryFault) else UserError
            raise kind(without_secrets(str(error))) from None


def _download(
    source: str,
    archive: DataFolder,
    execution: Execution,
    splits: Sequence[str],
    numbers: set[int] | None,
    patience: Patience,
) -> str:
    scratch = execution.scratch
    with open_mirror(source, splits[0], patience) as mirror:
        listed = {split: listed_parts(mirror, split) for split in splits}
        chosen = {split: _choose(mirror, split, listed[split], numbers) for split in splits}
        names = [name for split in splits for name in chosen[split].values()]
        # labels are numbered over the annotations of all splits, whichever are fetched
        names += [f"annotations/{split}.csv" for split in SPLITS] + [REPLACEMENTS]
        optional = {f"annotations/{split}.csv" for split in SPLITS if split not in splits} | {REPLACEMENTS}

        with concurrent.futures.ThreadPoolExecutor(execution.jobs) as pool:
            try:
                inspected = dict(zip(names, pool.map(functools.partial(try_inspect, mirror), names), strict=True))
                seen = {name: found for name, found in inspected.items() if isinstance(found, Remote)}
                records = _Records(archive, scratch)
                todo = [name for name in seen if not records.hold(name, seen[name])]
                _check_space(mirror, scratch, {name: seen[name] for name in todo})
                if todo:
                    # until the end the folder is neither the old state nor the new one
                    records.take_over_inventory()
                tally = _Tally(sum(seen[name].size for name in todo), execution.on_progress)
                fetches = {
                    name: pool.submit(
                        _fetch, mirror, name, archive.stored, scratch, records, functools.partial(tally.report, name)
                    )
                    for name in todo
                }
                concurrent.futures.wait(fetches.values(), return_when=concurrent.futures.FIRST_EXCEPTION)
                failed = {name: reason for name, fetch in fetches.items() if (reason := fetch.result())}
            except BaseException:
                patience.stop.set()
                pool.shutdown(cancel_futures=True)
                raise
    failed |= {name: Failed(found) for name, found in inspected.items() if isinstance(found, str)}
    failed |= {
        name: Gone("the mirror does not have it") for name in names if inspected[name] is None and name not in optional
    }
    if failed:
        may_come_later = all(isinstance(reason, Failed) for reason in failed.values())
        raise (TemporaryFault if may_come_later else UserError)(
            f"{len(failed)} of {len(names)} files could not be fetched from {source}; the others are kept, run again:"
            + "".join(f"\n  {name}: {reason}" for name, reason in sorted(failed.items()))
        )
    inventory = Inventory(
        {name: records.public(name) for name in seen},
        {split: FetchedSplit(tuple(sorted(chosen[split])), len(listed[split])) for split in splits},
    )
    with atomic_write(archive.tracked / "inventory.json") as file:
        file.write(inventory.to_bytes())
    size = sum(file.size for file in inventory.files.values())
    without = "" if REPLACEMENTS in seen else "; the mirror has no archive of replacements"
    return (
        f"download: {len(seen)} files, {size / 1e9:.2f} GB, {len(todo)} of them fetched now{without} ({archive.stored})"
    )


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


def _choose(mirror: Mirror, split: str, listed: dict[int, str], numbers: set[int] | None) -> dict[int, str]:
    chosen = {number: name for number, name in listed.items() if numbers is None or number in numbers}
    if not chosen:
        raise UserError(f"none of the parts asked for is among the {len(listed)} of {split} at {mirror.root}")
    return chosen


def _fetch(
    mirror: Mirror,
    name: str,
    archive: Path,
    scratch: Path,
    records: "_Records",
    on_progress: Callable[[int], None],
) -> Gone | Failed | None:
    """Fetch one file to its place; returns None or the reason why that failed."""
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
                return Gone(f"not a whole archive, fetched twice: {error.error}")
        except (Gone, Failed) as error:
            return error
    records.forget(name)
    (archive / name).parent.mkdir(parents=True, exist_ok=True)
    os.replace(partial, archive / name)
    sync_folder((archive / name).parent)
    size = (archive / name).stat().st_size
    records.keep(name, dataclasses.replace(facts, size=size, etag=version.etag, modified=version.modified))
    # its version; and the file itself, since renaming one of a file's two names to the other does nothing
    discard(partial)
    return None


def _check(path: Path) -> ArchivedFile:
    """Read the file through. Raises BrokenArchive."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    size = path.stat().st_size
    if path.name.endswith(".csv"):
        return ArchivedFile(size=size, sha256=sha256_of(path))
    members, sha256 = check_archive(path)
    return ArchivedFile(size=size, sha256=sha256, members=members)


class _Records:
    """What is known of finished files: a small file each in scratch; and, if it is there, the last run's inventory.

    DVC deletes the inventory before it runs the stage: the files in scratch are enough.
    """

    def __init__(self, archive: DataFolder, scratch: Path) -> None:
        self._archive, self._folder = archive, scratch / "records"
        self._inventory: Mapping[str, ArchivedFile]
        try:
            self._inventory = read_inventory(archive.tracked).files
        except UserError:
            self._inventory = {}

    def hold(self, name: str, remote: Remote) -> bool:
        """Whether the file in its place is this version."""
        record, path = self._get(name), self._archive.stored / name
        if record is None or not path.is_file() or path.stat().st_size != record.size:
            return False
        # some servers do not report the size
        if remote.size not in (0, record.size):
            return False
        # an equal ETag is enough: mirrors and their copies differ in dates
        if record.etag:
            return record.etag == remote.etag
        return not record.modified or record.modified == remote.modified

    def take_over_inventory(self) -> None:
        """Make the records in scratch the only truth, and the folder one that is not finished."""
        for name, record in self._inventory.items():
            if not self._path(name).exists():
                self.keep(name, record)
        (self._archive.tracked / "inventory.json").unlink(missing_ok=True)
        self._inventory = {}

    def keep(self, name: str, record: ArchivedFile) -> None:
        write_json(self._path(name), record.to_json(), indent=None)

    def forget(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    def public(self, name: str) -> ArchivedFile:
        """What the inventory says of it: the same whenever and from wherever it came."""
        record = self._get(name)
        assert record is not None
        return dataclasses.replace(record, modified=None)

    def _get(self, name: str) -> ArchivedFile | None:
        try:
            return ArchivedFile.from_json(read_json(self._path(name)))
        except ValueError:
            return self._inventory.get(name)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name.replace('/', '_')}.json"


class _Tally:
    """Sums up the bytes of all transfers."""

    def __init__(self, total: int, on_progress: Progress | None) -> None:
        self._here: dict[str, int] = {}
        self._total, self._on_progress = total, on_progress
        self._lock = threading.Lock()
        self._reported = 0.0

    def report(self, name: str, num_bytes: int) -> None:
        """`num_bytes` of this file are here now."""
        with self._lock:
            self._here[name] = num_bytes
            done, now = sum(self._here.values()), time.monotonic()
            if self._on_progress and (now - self._reported > 0.1 or done >= self._total):
                self._reported = now
                self._on_progress("download, bytes", done, self._total)


def _check_space(mirror: Mirror, scratch: Path, todo: dict[str, Remote]) -> None:
    if not mirror.copies:
        return
    here = sum(path.stat().st_size for name in todo if (path := scratch / name.replace("/", "_")).exists())
    needed, free = sum(remote.size for remote in todo.values()) - here, shutil.disk_usage(scratch).free
    if needed > free:
        raise UserError(
            f"{needed / 1e9:.1f} GB are to be fetched, and {free / 1e9:.1f} GB are free at {scratch}; "
            "make room, or ask for fewer splits or parts"
        )
