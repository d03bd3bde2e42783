"""Work on parts: all cores at once without a change of what comes out, and shards that appear whole or not at all.

A shard is made in scratch and published when it is whole, its record last (part_records.py).
"""

import collections
import concurrent.futures
import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from ..errors import MachineFault
from ..files.atomic import sync_folder
from ..files.locks import locked
from .part_records import forget_record, record_path
from .shards import index_path

Tag = TypeVar("Tag")
Result = TypeVar("Result")


def in_order(
    tasks: Iterable[tuple[Tag, Callable[[], Result] | None]], pool: concurrent.futures.Executor, ahead: int
) -> Iterator[tuple[Tag, Result | None]]:
    """Do the tasks in `pool`; yields (tag, result) in the order of the tasks, whichever ends first.

    At most `ahead` tasks are taken beyond the one that is yielded next, since their data are in memory. A task that is
    None has the result None.
    """
    pending: collections.deque[tuple[Tag, concurrent.futures.Future[Result] | None]] = collections.deque()

    def next_result() -> tuple[Tag, Result | None]:
        tag, future = pending.popleft()
        return tag, future.result() if future else None

    for tag, work in tasks:
        pending.append((tag, _submit(pool, work) if work else None))
        while len(pending) > ahead:
            yield next_result()
    while pending:
        yield next_result()


def _submit(pool: concurrent.futures.Executor, work: Callable[[], Result]) -> concurrent.futures.Future[Result]:
    try:
        return pool.submit(work)
    except RuntimeError as error:  # can't start new thread
        raise MachineFault(f"{error}; lower runtime.jobs or raise the limit (ulimit -u), and run again") from None


@contextlib.contextmanager
def scratch_folder(scratch: Path, lock: Path) -> Iterator[None]:
    """A folder for unfinished work, empty at the start and gone at the end. One run of a stage has it at a time."""
    with locked(lock, waiting=f"another run of this stage is at work in {scratch}; waiting for it to end"):
        shutil.rmtree(scratch, ignore_errors=True)  # what a killed run left
        scratch.mkdir(parents=True, exist_ok=True)  # its workers may still be writing
        try:
            yield
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def publish(made: Path, shard: Path) -> None:
    """Move a shard that was made in scratch, its index and its record to their names: the shard is finished.

    If another worker has published the same meanwhile, its files stay untouched, since they may be being read. Raises
    OSError if the scratch folder is gone, as it is once the run that wanted the shard is over.
    """
    new = record_path(made).read_bytes()
    try:
        is_there = record_path(shard).read_bytes() == new and index_path(shard).is_file()
        is_there = is_there and shard.stat().st_size == made.stat().st_size
    except FileNotFoundError:
        is_there = False
    if is_there:
        return
    shard.parent.mkdir(parents=True, exist_ok=True)
    forget_record(shard)
    # index first: a shard that is there has its index
    os.replace(index_path(made), index_path(shard))
    os.replace(made, shard)
    sync_folder(shard.parent)
    os.replace(record_path(made), record_path(shard))
    sync_folder(shard.parent)
