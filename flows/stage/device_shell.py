"""The shell in which DVC runs a stage's command for a flow: it waits for devices, then becomes the user's own shell.

    flow --- supervisor --- dvc --- this, later: sh -c COMMAND

So a device is taken when the command starts: not while DVC starts, waits for its lock, or compares hashes. Standard
input is a socket to the flow. This sends the process id, and the flow answers with environment variables, which name
the devices, as soon as it holds these for us. The flow sees the process end, and releases them.

Runs with -I -S: it imports nothing but the standard library.
"""

import json
import os
import signal
import socket
import sys

SHELL = "ACTIONZOO_SHELL"
"""Environment variable: the user's SHELL."""
PYTHON = "ACTIONZOO_PYTHON"
"""Environment variable: the interpreter."""
_OPTIONS = {"bash": ["--noprofile", "--norc"], "zsh": ["--no-rcs"]}
"""With which DVC starts a shell."""


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with socket.socket(fileno=os.dup(0)) as flow:
        flow.sendall(f"{os.getpid()}\n".encode())
        answer = flow.makefile().readline()
    if not answer:
        sys.exit("the flow has ended, so the stage was not started")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    environment = os.environ | json.loads(answer)
    environment.pop(PYTHON, None)
    shell = environment.pop(SHELL, "")
    environment.pop("SHELL", None)
    if shell:
        environment["SHELL"] = shell
    options = _OPTIONS.get(os.path.basename(shell), [])
    os.execvpe(shell or "/bin/sh", [shell or "sh", *options, *sys.argv[1:]], environment)


if __name__ == "__main__":
    main()
