"""Run a command for a flow: its lines as they come, and an end in order when the flow is stopped or killed."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from actionzoo.process.supervisor import supervised


class Stopped(Exception):
    """The flow is being stopped: the work at hand was not finished, and no new work may begin."""


class Command:
    """A command under a supervisor, in a process group of its own: what stops the flow does not reach it past the
    supervisor, which gives it `grace_seconds` from SIGTERM to SIGKILL.

    The thread that makes this must live as long as the command.
    """

    def __init__(
        self,
        words: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        on_line: Callable[[str], object],
        stop: threading.Event,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        locks: Sequence[int] = (),
        grace_seconds: float | None = None,
        patience_seconds: float | None = None,
    ) -> None:
        """Start it. Raises Stopped if `stop` is set.

        `on_line` gets each line of stdout and stderr at once, without its line end, called from another thread. `locks`
        are file descriptors: if this process is killed, what they lock stays locked until the command's descendants
        have ended. See `end` for `patience_seconds`.
        """
        if stop.is_set():
            raise Stopped
        self._stop, self._patience = stop, patience_seconds
        output, theirs = os.pipe()
        try:
            self._child = subprocess.Popen(
                supervised(words, grace_seconds),
                cwd=cwd,
                env=env,
                stdin=stdin,
                stdout=theirs,
                stderr=subprocess.STDOUT,
                # With the end that we read: if this process is killed, a stage that saves its work can still print.
                pass_fds=[*locks, output],
                process_group=0,
            )
        except BaseException:
            os.close(output)
            raise
        finally:
            os.close(theirs)

        def read_lines() -> None:
            with os.fdopen(output, errors="replace") as lines:
                for line in lines:
                    on_line(line.rstrip())

        self._reader = threading.Thread(target=read_lines, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Of the supervisor."""
        return self._child.pid

    def has_ended(self, seconds: float) -> bool:
        """Whether the command has ended, after waiting for that for up to `seconds`. Raises Stopped at once if the flow
        is being stopped; the command still runs then."""
        if self._child.poll() is None:
            self._stop.wait(seconds)
        if self._stop.is_set():
            raise Stopped
        return self._child.poll() is not None

    def end(self) -> int:
        """End the command with its descendants, if it still runs (SIGTERM, then SIGKILL after the grace), and return
        its exit status: 128 + n when signal n ended it. All its lines have been passed on.

        If it still runs after `patience_seconds`, it is left to its supervisor.
        """
        if self._child.poll() is None:
            self._child.terminate()
        try:
            status = self._child.wait(self._patience)
        except subprocess.TimeoutExpired:
            return 128 + signal.SIGTERM
        self._reader.join()
        return status


def run(
    words: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    on_line: Callable[[str], object],
    stop: threading.Event,
    locks: Sequence[int] = (),
    grace_seconds: float | None = None,
) -> int:
    """Run a command to its end and return its exit status. Arguments as for Command. When `stop` is set, the command is
    ended and Stopped is raised."""
    command = Command(words, cwd=cwd, env=env, on_line=on_line, stop=stop, locks=locks, grace_seconds=grace_seconds)
    try:
        while not command.has_ended(0.1):
            pass
    finally:
        status = command.end()
    return status
