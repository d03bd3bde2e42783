"""Run a command for a flow: its lines as they come, and an end in order when the flow is stopped or killed."""

import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from actionzoo.process.supervisor import end, supervised


class Stopped(Exception):
    """The flow is being stopped: the work at hand was not finished, and no new work may begin."""


def run(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    on_line: Callable[[str], object],
    stop: threading.Event,
    locks: Sequence[int] = (),
) -> int:
    """Run `command` under a supervisor and return its exit status (128 + n when signal n ended it).

    `on_line` gets each line of stdout and stderr at once, without its line end, called from another thread. When `stop`
    is set, the command and its descendants are ended (SIGTERM, then SIGKILL after GRACE_SECONDS) and Stopped is raised.
    `locks` are file descriptors: if this process is killed, what they lock stays locked until the descendants have
    ended.
    """
    if stop.is_set():
        raise Stopped
    child = subprocess.Popen(
        supervised(command),
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        pass_fds=locks,
    )
    assert child.stdout is not None
    output = child.stdout

    def read_lines() -> None:
        for line in output:
            on_line(line.rstrip())

    reader = threading.Thread(target=read_lines, daemon=True)
    reader.start()
    try:
        while child.poll() is None and not stop.wait(0.1):
            pass
    finally:
        end(child)
        reader.join()
        output.close()
    if stop.is_set():
        raise Stopped
    return child.returncode
