"""Run a command so that nothing of it is left: not when it ends, not when it is stopped, not when its parent is killed.

    flow --- supervisor --- dvc --- shell --- stage --- loader workers

DVC dies of SIGTERM and leaves its stage running, which holds the GPU; a flow that is killed with SIGKILL cannot clean
up at all. So each command runs under a supervisor, which is this file, run as a script. The kernel tells the supervisor
when its parent dies, and makes it the parent of orphaned descendants (prctl(2): PR_SET_PDEATHSIG,
PR_SET_CHILD_SUBREAPER). The supervisor ends only when all its descendants have ended. All processes stay in the process
group of the flow, as Prefect's cancel expects. Linux only, but for the import and `die_with_parent`.

The script runs with -I -S, so this file imports nothing but the standard library.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

GRACE_SECONDS = 25.0
"""From SIGTERM to SIGKILL. Prefect itself kills the whole process group 30 s after a cancel."""

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform.startswith("linux") else None


def die_with_parent(signal_number: int = signal.SIGTERM, parent: int | None = None) -> None:
    """Ask Linux to send this process a signal when its parent dies; does nothing on other systems.

    `parent` is the pid that the parent should have: the signal is sent at once if that process died before this call.
    The kernel counts the thread that started this process as its parent. Safe between fork and exec (`preexec_fn`).
    """
    if _libc is None:
        return
    _libc.prctl(_PR_SET_PDEATHSIG, int(signal_number), 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal_number)


def supervised(command: Sequence[str], grace_seconds: float | None = None) -> list[str]:
    """The command line that runs `command` under a supervisor; its exit status is 128 + n when signal n ended it.

    `grace_seconds` is the time from SIGTERM to SIGKILL, GRACE_SECONDS if None. The thread that starts the command line
    must live as long as the command.
    """
    seconds = GRACE_SECONDS if grace_seconds is None else grace_seconds
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(seconds), *command]


def end(child: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    """Stop a supervised child, if it still runs, with all that it started; returns when they have ended."""
    if child.poll() is None:
        child.terminate()
    child.wait()


def descendants(ancestor: int) -> set[int]:
    """Pids of all living descendants of the process `ancestor`."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as stat:
                    text = stat.read()
            except OSError:  # it has ended meanwhile
                continue
            state, parent = text.rpartition(")")[2].split()[:2]  # the name in parentheses may hold anything
            if state not in "ZX":
                children.setdefault(int(parent), []).append(int(entry))
    found: set[int] = set()
    unseen = [ancestor]
    while unseen:
        new = children.get(unseen.pop(), [])
        found.update(new)
        unseen.extend(new)
    return found


def _supervise(parent: int, grace_seconds: float, command: list[str]) -> int:
    """Run `command` until it ends, a signal stops us, or `parent` dies; end its descendants; return its exit status."""
    received: list[int] = []
    # SIGINT gets a handler that does nothing: the command would inherit SIG_IGN. Ctrl-C reaches the flow too, which
    # decides what to stop.
    signal.signal(signal.SIGINT, lambda *_: None)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: received.append(number))
    assert _libc is not None, "the supervisor needs Linux"
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    die_with_parent(parent=parent)
    if received:
        return 128 + received[0]

    main = os.fork()
    if main == 0:
        die_with_parent()
        try:
            os.execvp(command[0], command)
        except OSError as error:
            print(f"{command[0]}: {error.strerror}", file=sys.stderr, flush=True)
            os._exit(127)

    status: int | None = None
    deadline: float | None = None
    warned: set[int] = set()
    while True:
        for pid, code in _ended_children():
            status = code if pid == main else status
        if received or status is not None:
            deadline = deadline or time.monotonic() + grace_seconds
            left = descendants(os.getpid())
            if not left:
                break
            is_over = time.monotonic() > deadline
            for pid in left if is_over else left - warned:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL if is_over else signal.SIGTERM)
            warned |= left
        time.sleep(0.05)
    if status is None:
        return 128 + received[0]
    return status if status >= 0 else 128 - status


def _ended_children() -> Iterator[tuple[int, int]]:
    """(pid, exit status) of each child that has ended since the last call; -n when signal n ended it."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(_supervise(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
