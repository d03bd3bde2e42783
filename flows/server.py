"""A Prefect server on this machine, loopback only, for as long as somebody needs it.

Prefect can start a temporary server by itself. That one is in our process group, so Ctrl-C ends it first and the flow
then spends minutes knocking at its door; and it outlives a flow that is killed. Ours stands apart, and goes with us.
"""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from actionzoo.errors import UserError
from flows import process

HOST = "127.0.0.1"
START_SECONDS = 180.0  # it makes its data base first; 10 s is usual


@contextmanager
def local_server(port: int, *, with_ui: bool) -> Iterator[subprocess.Popen]:
    """Start a server on `port`, wait until it answers, stop it at the end. What it says is in PREFECT_HOME/server.log.

    Raises UserError if the port is taken or the server does not come up.
    """
    if is_taken(port):
        raise UserError(f"port {port} on {HOST} is taken; choose another with --port, as in --port {free_port()}.")
    log = Path(os.environ.get("PREFECT_HOME", Path.home() / ".prefect")) / "server.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    options = ["--host", HOST, "--port", str(port), "--ui" if with_ui else "--no-ui"]
    with log.open("w") as output:
        server = subprocess.Popen(
            process.kept([sys.executable, "-m", "prefect", "server", "start", *options]),
            env={**os.environ, "PREFECT_API_URL": api_url(port)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the terminal is for us: the server goes last
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not is_prefect(port):
            if server.poll() is not None or time.monotonic() > deadline:
                last = "".join(log.read_text(errors="replace").splitlines(keepends=True)[-5:])
                raise UserError(f"the Prefect server on port {port} did not start; see {log}, which ends:\n{last}")
            time.sleep(0.1)
        yield server
    finally:
        process.end(server)


def api_url(port: int) -> str:
    return f"http://{HOST}:{port}/api"


def is_prefect(port: int) -> bool:
    """Whether a healthy Prefect server answers there."""
    try:
        # Straight to loopback: a proxy of the environment has no business here.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{api_url(port)}/health", timeout=5) as answer:
            healthy = json.load(answer) is True
        with opener.open(f"{api_url(port)}/admin/version", timeout=5) as answer:
            return healthy and isinstance(json.load(answer), str)
    except (OSError, ValueError, http.client.HTTPException):
        return False


def is_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: a port just left is free
        try:
            probe.bind((HOST, port))
        except OSError:
            return True
    return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]
