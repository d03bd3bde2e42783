"""Processes, read from /proc: this one, the DVC that started a stage, and whether one is still alive. Linux only, but
for is_alive."""

import os
import select
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_POLL_SECONDS = 0.5
"""Between two checks, where the kernel cannot report the end of a process (before Linux 5.3)."""


@dataclass(frozen=True)
class Process:
    """An entry of /proc."""

    pid: int
    parent: int
    group: int
    started: int
    """Start time in clock ticks since boot. Pids are reused; a pid with its start time is not."""


def dvc_above(stage: str) -> Process | None:
    """The DVC process that started the stage `stage`, to which this process belongs; None if it has ended.

    DVC sets DVC_STAGE for all its descendants: shells, torchrun and its workers. So DVC is the nearest ancestor that
    lacks this value. If DVC was killed, that ancestor is the process that adopted the orphans, and not a DVC.
    """
    below = _read(os.getpid())
    for process in _above():
        if _is_dvc(process.pid):
            return process
        if f"DVC_STAGE={stage}" not in _words(process.pid, "environ"):
            # a script that uses DVC as a library is a Python process in the process group of the stage
            is_script = process.pid != 1 and below is not None and process.group == below.group
            return process if is_script and _program(process.pid).startswith(("python", "pypy")) else None
        below = process
    return None


def this_process() -> Process | None:
    """None where there is no /proc."""
    return _read(os.getpid())


def is_alive(pid: int, started: int) -> bool:
    """Whether the process of this pid that started then still exists on this machine; a zombie does not.

    Without /proc, or with `started` 0, any process with the pid counts.
    """
    if started and Path("/proc/self/stat").exists():
        now = _read(pid)
        return now is not None and now.started == started
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def wait_for_end(process: Process) -> None:
    """Return when the process has ended."""
    try:
        end = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    except (AttributeError, OSError):  # not in this kernel, or not permitted
        while _lives(process):
            time.sleep(_POLL_SECONDS)
        return
    try:
        if _lives(process):  # else another process has its pid by now
            poll = select.poll()
            poll.register(end, select.POLLIN)
            poll.poll()
    finally:
        os.close(end)


def dvc_lives_in(root: Path) -> bool:
    """Whether a DVC process of this machine, other than this process, has its working directory in `root`."""
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid() and _is_dvc(int(entry)):
            try:
                folder = Path(os.readlink(f"/proc/{entry}/cwd"))
            except OSError:  # it has ended, or is another user's
                continue
            if folder.is_relative_to(root.resolve()):
                return True
    return False


def lives(pid: int) -> bool:
    """Whether there is a process with this pid on this machine, and it is no zombie."""
    return _read(pid) is not None


def _above() -> Iterator[Process]:
    """The parent, its parent, and so on."""
    process = _read(os.getpid())
    while process is not None and process.parent > 0:
        process = _read(process.parent)
        if process is not None:
            yield process


def _read(pid: int) -> Process | None:
    """None for a process that does not exist or is a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, parent, group, *rest = text.rpartition(")")[2].split()  # the name in parentheses may hold anything
    return None if state in "ZX" else Process(pid, int(parent), int(group), int(rest[16]))


def _lives(process: Process) -> bool:
    return is_alive(process.pid, process.started)


def _is_dvc(pid: int) -> bool:
    """Whether it is `dvc`, `python -m dvc` or the like; False for a shell or a supervisor with dvc in its arguments."""
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
    """Name of the program file; empty if it cannot be read."""
    try:
        return Path(os.readlink(f"/proc/{pid}/exe")).name
    except OSError:
        return ""


def _words(pid: int, file: str) -> list[str]:
    """The entries of /proc/<pid>/cmdline or environ; none if it cannot be read."""
    try:
        return Path(f"/proc/{pid}/{file}").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return []
