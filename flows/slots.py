"""Who may use which device: one lock file per device, shared by all flows and terminals of this checkout.

The locks are flock(2) locks, so the kernel frees them at any death of their holders; no server is needed, and a slot
says which device it is. Who waits draws a ticket, and nobody takes a device that an older ticket wants: a stage that
needs four GPUs gets them, however many stages that need one come after it.
"""

import fcntl
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import quote

from flows.process import Stopped

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Taken:
    names: list[str]
    """Of the devices, in the order in which they were offered."""
    locks: list[int]
    """File descriptors. A process that has them open keeps the devices taken, also when who took them is dead."""


@contextmanager
def take(
    folder: Path,
    kind: str,
    names: Sequence[str],
    count: int,
    stop: threading.Event,
    on_wait: Callable[[], object] = lambda: None,
) -> Iterator[Taken]:
    """Hold `count` of the devices `names` of one kind ("gpu", "cpu", ...) until the block ends.

    Waits for its turn, first come first served, and calls `on_wait` once if it has to. Raises Stopped when `stop` is
    set before its turn has come. `folder` is made if need be; the files in it may be deleted when nothing runs.
    """
    assert 0 <= count <= len(names), f"{count} of {names}"
    folder.mkdir(parents=True, exist_ok=True)
    ticket = _draw_ticket(folder, kind, names)
    slots: dict[str, IO] = {}
    has_waited = False
    try:
        try:
            while len(slots) < count:
                if stop.is_set():
                    raise Stopped
                slots = _try_to_take(folder, kind, names, count, Path(ticket.name))
                if len(slots) < count:
                    if not has_waited:
                        on_wait()
                    has_waited = True
                    stop.wait(POLL_SECONDS)
        finally:
            with _gate(folder):
                Path(ticket.name).unlink()
                _unlock(ticket)
        yield Taken(list(slots), [slot.fileno() for slot in slots.values()])
    finally:
        for slot in slots.values():
            _unlock(slot)


def visible_gpus() -> list[str]:
    """The GPUs of this machine as CUDA_VISIBLE_DEVICES names them: those that it names if it is set, else all."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    if not shutil.which("nvidia-smi"):
        return []
    asked = subprocess.run(
        ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, timeout=60
    )
    return [line.strip() for line in asked.stdout.splitlines() if line.strip().isdigit()]


@contextmanager
def _gate(folder: Path) -> Iterator[None]:
    """One at a time, for a moment: so that tickets and slots are seen and taken in one piece."""
    with (folder / "gate").open("a") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        yield


def _draw_ticket(folder: Path, kind: str, names: Sequence[str]) -> IO:
    with _gate(folder):
        number = 1 + max((_number(path) for path in folder.glob(f"{kind}.*.ticket")), default=0)
        ticket = _lock(folder / f"{kind}.{number:06}.ticket")
        ticket.write("\n".join(names))
        ticket.flush()
        return ticket


def _try_to_take(folder: Path, kind: str, names: Sequence[str], count: int, ticket: Path) -> dict[str, IO]:
    """`count` slots, or none: whoever held some and waited for more could wait for another who does the same."""
    with _gate(folder):
        for older in folder.glob(f"{kind}.*.ticket"):
            if _number(older) < _number(ticket) and set(older.read_text().split("\n")) & set(names):
                if not (left := _lock(older)):
                    return {}
                older.unlink()  # its holder died
                left.close()
        slots: dict[str, IO] = {}
        for name in names:
            if len(slots) < count and (slot := _lock(folder / f"{kind}.{quote(name, safe='@')}.slot")):
                slots[name] = slot
        if len(slots) == count:
            return slots
        for slot in slots.values():
            _unlock(slot)
        return {}


def _number(ticket: Path) -> int:
    return int(ticket.name.split(".")[-2])


def _lock(path: Path) -> IO | None:
    """The file, opened and locked; None if somebody else has it."""
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _unlock(file: IO) -> None:
    fcntl.flock(file, fcntl.LOCK_UN)  # close() alone would wait for a child that is just being started with a copy
    file.close()
