"""Work on parts: done once, kept, and by all cores at once without changing what comes out.

Beside a shard lies a record of what it was made from and what is in it:

    val/part_007.tar, val/part_007.idx.npy, val/part_007.json

A shard is made in scratch and published when it is whole, its record last. A shard with a record of the same key needs
no work; one without is made anew.
"""

import collections
import concurrent.futures
import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from ..errors import MACHINE_ERRNOS, MachineFault, UserError, speaks_of_machine
from ..files.atomic import atomic_write, sync_folder
from ..files.hashes import sha256_of
from ..files.locks import locked
from .ffmpeg_process import TIMED_OUT
from .shards import index_path

Tag = TypeVar("Tag")


def in_order(
    tasks: Iterable[tuple[Tag, Callable[[], Any] | None]], pool: concurrent.futures.Executor, ahead: int
) -> Iterator[tuple[Tag, Any]]:
    """Do the tasks in `pool`; gives (tag, result) in the order of the tasks, whichever ends first.

    No more than `ahead` tasks are taken beyond the one that is given next: their data are in memory. A task that is
    None has the result None.
    """
    pending: collections.deque = collections.deque()

    def next_result() -> tuple[Tag, Any]:
        tag, future = pending.popleft()
        return tag, future and future.result()

    for tag, work in tasks:
        pending.append((tag, work and _submit(pool, work)))
        while len(pending) > ahead:
            yield next_result()
    while pending:
        yield next_result()


def _submit(pool: concurrent.futures.Executor, work: Callable[[], Any]) -> concurrent.futures.Future:
    try:
        return pool.submit(work)
    except RuntimeError as error:  # can't start new thread
        raise MachineFault(f"{error}; lower runtime.jobs or raise the limit (ulimit -u), and run again") from None


def make_key(*facts: Any) -> str:
    """One short word for everything that a shard's bytes depend on."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def read_record(shard: Path, key: str, clip_timeout_seconds: float) -> dict | None:
    """The record of a finished shard, None if it has to be made (anew): also if clips may do better with more time."""
    try:
        record = json.loads(_record_path(shard).read_text())
        is_whole = record["key"] == key and record["size"] == shard.stat().st_size and index_path(shard).is_file()
        is_hasty = record.get("clip_timeout_seconds", clip_timeout_seconds) < clip_timeout_seconds
        if not all(map(_is_clip, record["clips"])):
            return None
        is_whole = is_whole and all(isinstance(clip["video_id"], str) for clip in record["clips"])
        is_doubtful = "judged" not in record and any(_blames_machine(clip.get("fault", "")) for clip in record["clips"])
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return record if not is_doubtful and is_whole and not is_hasty else None


def write_record(made: Path, key: str, clip_timeout_seconds: float, clips: list[dict], **facts: Any) -> dict:
    """Describe a shard that was made in scratch; gives the record. A clip without pictures has a `fault`, which says
    why."""
    record = {
        "key": key,
        "size": made.stat().st_size,
        "sha256": sha256_of(made),
        "index_sha256": sha256_of(index_path(made)),
        "judged": _JUDGED,
        "clips": clips,
        **facts,
    }
    if any(clip.get("fault", "").startswith(TIMED_OUT) for clip in clips):
        record["clip_timeout_seconds"] = clip_timeout_seconds
    with atomic_write(_record_path(made)) as file:
        file.write((json.dumps(record, indent=0) + "\n").encode())
    return record


@contextlib.contextmanager
def scratch_folder(scratch: Path, lock: Path) -> Iterator[None]:
    """The folder for what is unfinished, empty at the start and gone at the end; for one run of a stage at a time."""
    with locked(lock, waiting=f"another run of this stage is at work in {scratch}; waiting for it to end"):
        shutil.rmtree(scratch, ignore_errors=True)  # what a killed run left
        scratch.mkdir(parents=True, exist_ok=True)  # its workers may still be writing
        try:
            yield
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def publish(made: Path, shard: Path) -> None:
    """Give a shard that was made in scratch, its index and its record, their names: the shard is finished.

    If meanwhile another worker has published the same, that stays untouched: somebody may read it. Raises OSError if
    the scratch is gone, as it is once the run is over that the work was for.
    """
    new = _record_path(made).read_bytes()
    try:
        is_there = _record_path(shard).read_bytes() == new and index_path(shard).is_file()
        is_there = is_there and shard.stat().st_size == made.stat().st_size
    except FileNotFoundError:
        is_there = False
    if is_there:
        return
    shard.parent.mkdir(parents=True, exist_ok=True)
    forget_record(shard)
    # index first: who sees the shard may count on its index
    os.replace(index_path(made), index_path(shard))
    os.replace(made, shard)
    sync_folder(shard.parent)
    os.replace(_record_path(made), _record_path(shard))
    sync_folder(shard.parent)


def key_of(shard: Path) -> str:
    """The key that a shard was made with. Raises UserError if there is no such shard."""
    try:
        key = json.loads(_record_path(shard).read_text())["key"]
        if not isinstance(key, str):
            raise ValueError("the key is no text")
        return key
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{shard} is not finished, yet the manifest names it; run the stage `resize`") from None


def _is_clip(clip: object) -> bool:
    """Whether an entry of a record is one that the stages write: where the clip's bytes are, or why there are none."""
    match clip:
        case {"video_id": str(), "fault": fault}:
            return isinstance(fault, str)
        case {"video_id": str(), "offset": offset, "size": size}:
            return type(offset) is int and type(size) is int and offset >= 0 and size >= 0
    return False


def forget_record(shard: Path) -> None:
    """Declare a shard unfinished."""
    _record_path(shard).unlink(missing_ok=True)


_JUDGED = 2
"""What a fault in a record is worth: since 2 it is the clip's. Before, a full disk could be called a clip's fault."""


def _blames_machine(fault: str) -> bool:
    status = re.fullmatch(r"ffmpeg ended with status (\d+)", fault)
    return speaks_of_machine(fault) or (status is not None and 256 - int(status[1]) in MACHINE_ERRNOS)


def _record_path(shard: Path) -> Path:
    return shard.with_suffix(".json")
