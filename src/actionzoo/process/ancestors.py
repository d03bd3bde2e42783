"""The processes above this one, as /proc tells them: whether the DVC that started a stage still lives. Linux."""

import os
import select
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_POLL_SECONDS = 0.5
"""Between two looks, where the kernel does not report a process' end by itself (before Linux 5.3)."""


@dataclass(frozen=True)
class Process:
    pid: int
    parent: int
    group: int
    started: int
    """Clock ticks since boot: with the pid, it names one process for good."""


def dvc_above(stage: str) -> Process | None:
    """The DVC that started the stage of that name, which this process is or belongs to; None if it is gone.

    DVC gives the stage's name to all that runs below it, as DVC_STAGE: shells, torchrun and its copies. So it is the
    first process above whose DVC_STAGE is another one. That of a stage whose DVC was killed is no DVC, but whoever
    takes in orphans.
    """
    below = _read(os.getpid())
    for process in _above():
        if _is_dvc(process.pid):
            return process
        if f"DVC_STAGE={stage}" not in _words(process.pid, "environ"):
            # a script may use DVC as a library: then it is Python, and of the stage's process group
            is_script = process.pid != 1 and below is not None and process.group == below.group
            return process if is_script and _program(process.pid).startswith(("python", "pypy")) else None
        below = process
    return None


def wait_for_end(process: Process) -> None:
    """Return when it has ended."""
    try:
        end = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    except (AttributeError, OSError):  # an old kernel, or one that does not let us
        while _lives(process):
            time.sleep(_POLL_SECONDS)
        return
    try:
        if _lives(process):  # else its number is another's by now
            poll = select.poll()
            poll.register(end, select.POLLIN)
            poll.poll()
    finally:
        os.close(end)


def _above() -> Iterator[Process]:
    """Parent, its parent, and so on."""
    process = _read(os.getpid())
    while process is not None and process.parent > 0:
        process = _read(process.parent)
        if process is not None:
            yield process


def _read(pid: int) -> Process | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, parent, group, *rest = text.rpartition(")")[2].split()  # the name before it may hold anything
    return None if state in "ZX" else Process(pid, int(parent), int(group), int(rest[16]))


def _lives(process: Process) -> bool:
    now = _read(process.pid)
    return now is not None and now.started == process.started


def _is_dvc(pid: int) -> bool:
    """`dvc`, `python -m dvc` and the like; no shell and no keeper that was told to start it."""
    program, words = _program(pid), _words(pid, "cmdline")
    if program.startswith("dvc"):  # the binary package
        return True
    if program and not program.startswith(("python", "pypy")):
        return False
    command = words[1:]
    while command and command[0].startswith("-") and command[0] != "-m":
        command = command[2 if command[0] in ("-W", "-X") else 1 :]
    if command[:1] == ["-m"]:
        return command[1:2] != [] and command[1].partition(".")[0] == "dvc"
    return bool(command) and Path(command[0]).name == "dvc"


def _program(pid: int) -> str:
    """Name of the file that runs; empty if we may not know."""
    try:
        return Path(os.readlink(f"/proc/{pid}/exe")).name
    except OSError:
        return ""


def _words(pid: int, file: str) -> list[str]:
    """The command line's or the environment's; none if we may not know."""
    try:
        return Path(f"/proc/{pid}/{file}").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return []
