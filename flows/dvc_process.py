"""A running `dvc repro` whose commands ask the flow for devices before they start: see device_shell.py."""

import contextlib
import json
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from actionzoo.process.stage import repair_rwlock
from actionzoo.process.supervisor import descendants
from flows import cluster, device_shell
from flows.command import Command
from flows.dvc_lock import lock_holder

POLL_SECONDS, LOOK_SECONDS = 0.1, 3.0
_SHELL = Path(__file__).with_name("device_shell")
SECRET = ("PREFECT_API_AUTH_STRING", "PREFECT_API_KEY", "PREFECT_SERVER_API_AUTH_STRING")  # hidden from stages


class DvcProcess:
    """`python -m ARGUMENTS`, which is `dvc repro` or flows/beside.py. To be used by the thread that makes it."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        root: Path,
        environment: Mapping[str, str],
        on_line: Callable[[str], object],
        stop: threading.Event,
        locks: Sequence[int],
        grace_seconds: float,
        patience_seconds: float | None,
    ) -> None:
        """Start it in `root`; `environment` is added to ours. The rest is as for `Command`."""
        inherited = {name: value for name, value in os.environ.items() if name not in SECRET}
        variables = {
            "PATH": cluster.stage_path(),
            "PYTHONUNBUFFERED": "1",  # else lines are seen long after they were printed
            "SHELL": str(_SHELL),
            device_shell.SHELL: os.environ.get("SHELL", ""),
            device_shell.PYTHON: sys.executable,
        }
        words = [sys.executable, "-m", *arguments]
        self._root = root
        repair_rwlock(root)
        self._socket, theirs = socket.socketpair()
        self._requests = self._socket.makefile()
        self._shell = 0
        with theirs:
            self._command = Command(
                words,
                cwd=root,
                env={**inherited, **variables, **environment},
                on_line=on_line,
                stop=stop,
                stdin=theirs.fileno(),
                locks=locks,
                grace_seconds=grace_seconds,
                patience_seconds=patience_seconds,
            )

    def asks(self, on_wait: Callable[[int], object] = lambda holder: None) -> bool:
        """Wait until a command asks for devices: True; False if DVC has ended. Raises Stopped.

        `on_wait` is called every few seconds with the process that holds DVC's lock, while one does.
        """
        looked = time.monotonic()
        while not self._command.has_ended(POLL_SECONDS):
            if self._is_asked():
                self._shell = int(self._requests.readline())
                return True
            if time.monotonic() - looked > LOOK_SECONDS:
                looked = time.monotonic()
                holder = lock_holder(self._root)
                if holder is not None and holder not in descendants(self._command.pid):
                    on_wait(holder)
        return False

    def answer(self, environment: Mapping[str, str]) -> None:
        """Let the command start, with these variables added to its environment."""
        with contextlib.suppress(BrokenPipeError):  # it was killed meanwhile, and DVC will say so
            self._socket.sendall(f"{json.dumps(dict(environment))}\n".encode())

    def wait_for_command(self) -> None:
        """Wait until the command that was answered has ended, with all that it started. Raises Stopped."""
        while not self._command.has_ended(POLL_SECONDS):
            if self._is_asked():  # by the next command
                return
            if not os.path.exists(f"/proc/{self._shell}") and len(descendants(self._command.pid)) <= 1:  # DVC itself
                return

    def end(self) -> int:
        """End it, if it still runs, and return its exit status. See `Command.end`."""
        status = self._command.end()
        self._requests.close()
        self._socket.close()
        return status

    def _is_asked(self) -> bool:
        """False, too, when DVC has just ended and closed the socket."""
        return bool(select.select([self._socket], [], [], 0)[0]) and bool(self._socket.recv(1, socket.MSG_PEEK))
