"""Child processes of which nothing is left: not when they end, not when they are stopped, not when we are killed.

    flow --- keeper --- dvc --- shell --- stage --- loader workers

DVC answers SIGTERM by dying and leaves its stage to run on, holding the GPU; a flow that is killed with SIGKILL cannot
tell anybody anything. So every child runs under a keeper (this file, run as a script): the kernel tells it when its
parent dies, and gives it the orphans among its descendants (prctl(2): PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER). It
ends only when all of them have. Everything stays in the process group of the flow, as Prefect's cancel expects. Linux.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

GRACE_SECONDS = 25.0  # from SIGTERM to SIGKILL; Prefect itself kills the whole group 30 s after a cancel


class Stopped(Exception):
    """The flow is being stopped: what was waited for was not done, and nothing new may begin."""


def run(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    say: Callable[[str], object],
    stop: threading.Event,
    locks: Sequence[int] = (),
) -> int:
    """Run `command` and give its exit status (128 + n when signal n ended it).

    Each line it prints, on either stream, goes to `say` at once, from a thread of its own. When `stop` is set the
    command and all it started are ended (SIGTERM, after GRACE_SECONDS SIGKILL) and Stopped is raised. If we are killed,
    the file descriptors `locks` stay open, and what they lock stays locked, until the same has been done.
    """
    if stop.is_set():
        raise Stopped
    child = subprocess.Popen(
        kept(command),
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        pass_fds=locks,
    )

    def pass_on() -> None:
        for line in child.stdout:
            say(line.rstrip())

    listener = threading.Thread(target=pass_on, daemon=True)
    listener.start()
    try:
        while child.poll() is None and not stop.wait(0.1):
            pass
    finally:
        end(child)
        listener.join()
        child.stdout.close()
    if stop.is_set():
        raise Stopped
    return child.returncode


def kept(command: Sequence[str], grace_seconds: float | None = None) -> list[str]:
    """The command line that runs `command` under a keeper. The thread that starts it must live as long as it does."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(grace_seconds or GRACE_SECONDS), *command]


def end(child: subprocess.Popen) -> None:
    """Stop a kept child, if it still runs, and all it started; returns when they are gone."""
    if child.poll() is None:
        child.terminate()
    child.wait()


def descendants(ancestor: int) -> set[int]:
    """Process ids of all living descendants."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as stat:
                    state, parent = stat.read().rpartition(")")[2].split()[:2]  # the name before it may hold anything
            except OSError:  # it ended meanwhile
                continue
            if state not in "ZX":
                children.setdefault(int(parent), []).append(int(entry))
    found: set[int] = set()
    unseen = [ancestor]
    while unseen:
        new = children.get(unseen.pop(), [])
        found.update(new)
        unseen.extend(new)
    return found


_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def _keep(parent: int, grace_seconds: float, command: list[str]) -> int:
    """Run `command` until it ends, we are told to stop, or `parent` dies; end its descendants; give its exit status."""
    told: list[int] = []
    # Handlers that do nothing more, rather than SIG_IGN, which the command would inherit. Ctrl-C reaches the flow too,
    # and the flow decides.
    signal.signal(signal.SIGINT, lambda *_: None)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: told.append(number))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it died before the kernel knew that we care
        return 128 + signal.SIGTERM

    main = os.fork()
    if main == 0:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        try:
            os.execvp(command[0], command)
        except OSError as error:
            print(f"{command[0]}: {error.strerror}", file=sys.stderr, flush=True)
            os._exit(127)

    status, deadline, warned = None, None, set()
    while True:
        for pid, code in _reaped():
            status = code if pid == main else status
        if told or status is not None:
            deadline = deadline or time.monotonic() + grace_seconds
            left = descendants(os.getpid())
            if not left:
                break
            for pid in left if time.monotonic() > deadline else left - warned:
                _send(pid, signal.SIGKILL if time.monotonic() > deadline else signal.SIGTERM)
            warned |= left
        time.sleep(0.05)
    if status is None:
        return 128 + told[0]
    return status if status >= 0 else 128 - status


def _reaped() -> Iterator[tuple[int, int]]:
    """(pid, exit status) of every child that has ended since the last look; minus n when signal n ended it."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, os.waitstatus_to_exitcode(status)


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


if __name__ == "__main__":
    sys.exit(_keep(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
