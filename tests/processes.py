"""Processes that a test starts: waiting for them, and finding those that are left."""

import os
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

MARK = "ACTIONZOO_TEST_MARK"
"""An environment variable that all descendants of a test inherit; its value names one session of one worker."""


def wait_for(is_so: Callable[[], object], seconds: float = 60) -> None:
    """Return once the condition holds; fail after so many seconds."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, f"nothing happened in {seconds} s"
        time.sleep(0.02)


def in_child(work: Callable[[], object]) -> int:
    """Run `work` in a forked process; return the process's wait status."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def left_running(
    environment: Mapping[str, str], seconds: float = 20.0, apart_from: str = "flows.server.guarded"
) -> list[str]:
    """Command lines of the processes that carry the mark of `environment`, looked for until there are none or the time
    is over. Those that contain `apart_from` do not count."""
    mark = f"{MARK}={environment[MARK]}".encode()
    deadline = time.monotonic() + seconds
    while True:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (process / "environ").read_bytes():
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:  # it has ended meanwhile, or belongs to another user
                continue
        found = [command for command in found if command and apart_from not in command]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)
