"""Which stage may use which device: one lock file per device, shared by all flows and terminals of this checkout.

The locks are flock(2) locks: the kernel releases them however their holder dies, no server is needed, and each slot
names its device. A stage that waits draws a numbered ticket, and a device that an older ticket asks for is not given to
a newer one. So a stage that needs four GPUs gets them, however many stages that need one GPU come after it.
"""

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO
from urllib.parse import quote

from actionzoo.files.locks import locked, try_lock, unlock
from flows.command import Stopped

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Acquired:
    """Devices that are held."""

    names: list[str]
    """Of the devices, in the order in which they were offered."""
    locks: list[int]
    """File descriptors. A child process that inherits them holds the devices even after this process has died."""


@contextmanager
def acquire(
    folder: Path,
    kind: str,
    names: Sequence[str],
    count: int,
    stop: threading.Event,
    on_wait: Callable[[], object] = lambda: None,
) -> Iterator[Acquired]:
    """Hold `count` of the devices `names` of one kind ("gpu", "cpu", ...) until the block ends.

    First come, first served; `on_wait` is called once if no slot is free at once. Raises Stopped when `stop` is set
    while it waits. `folder` is created; its files may be deleted when no flow is running.
    """
    assert 0 <= count <= len(names), f"{count} of {names}"
    folder.mkdir(parents=True, exist_ok=True)
    ticket = _draw_ticket(folder, kind, names)
    slots: dict[str, TextIO] = {}
    has_waited = False
    try:
        try:
            while len(slots) < count:
                if stop.is_set():
                    raise Stopped
                slots = _try_to_acquire(folder, kind, names, count, Path(ticket.name))
                if len(slots) < count:
                    if not has_waited:
                        on_wait()
                    has_waited = True
                    stop.wait(POLL_SECONDS)
        finally:
            with _gate(folder):
                Path(ticket.name).unlink()
                unlock(ticket)
        yield Acquired(list(slots), [slot.fileno() for slot in slots.values()])
    finally:
        for slot in slots.values():
            unlock(slot)


def visible_gpus() -> list[str]:
    """The GPUs of this machine, named as in CUDA_VISIBLE_DEVICES: those that it lists if it is set, else all."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return [name.strip() for name in listed.split(",") if name.strip() not in ("", "-1")]
    if not shutil.which("nvidia-smi"):
        return []
    query = subprocess.run(
        ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, timeout=60
    )
    return [line.strip() for line in query.stdout.splitlines() if line.strip().isdigit()]


@contextmanager
def _gate(folder: Path) -> Iterator[None]:
    """Held briefly around each change, so that tickets and slots are read and acquired as one step."""
    with locked(folder / "gate"):
        yield


def _draw_ticket(folder: Path, kind: str, names: Sequence[str]) -> TextIO:
    with _gate(folder):
        number = 1 + max((_number(path) for path in folder.glob(f"{kind}.*.ticket")), default=0)
        ticket = _open_locked(folder / f"{kind}.{number:06}.ticket")
        assert ticket is not None, "a ticket of a new number belongs to no other process"
        ticket.write("\n".join(names))
        ticket.flush()
        return ticket


def _try_to_acquire(folder: Path, kind: str, names: Sequence[str], count: int, ticket: Path) -> dict[str, TextIO]:
    """All or nothing: taking slots one by one could deadlock two waiting stages."""
    with _gate(folder):
        for older in folder.glob(f"{kind}.*.ticket"):
            if _number(older) < _number(ticket) and set(older.read_text().split("\n")) & set(names):
                if not (abandoned := _open_locked(older)):
                    return {}
                older.unlink()  # its holder died
                abandoned.close()
        slots: dict[str, TextIO] = {}
        for name in names:
            if len(slots) < count and (slot := _open_locked(folder / f"{kind}.{quote(name, safe='@')}.slot")):
                slots[name] = slot
        if len(slots) == count:
            return slots
        for slot in slots.values():
            unlock(slot)
        return {}


def _number(ticket: Path) -> int:
    return int(ticket.name.split(".")[-2])


def _open_locked(path: Path) -> TextIO | None:
    """The file, opened and locked; None if another holder has it."""
    file = path.open("a")
    if try_lock(file):
        return file
    file.close()
    return None
