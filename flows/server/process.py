"""A Prefect server on this machine, for its user only, for as long as it is needed.

It listens on loopback, answers only requests that carry its key (keys.py), and refuses requests of foreign pages
(guarded.py).

Prefect can start a temporary server itself. That one is in the flow's process group, so Ctrl-C ends it first and the
flow then retries for minutes; and it outlives a flow that is killed. This one has a session of its own and a supervisor
that ends it with the flow.
"""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path

from actionzoo.errors import UserError
from actionzoo.files.addresses import without_secrets
from actionzoo.process.supervisor import end, supervised

HOST = "127.0.0.1"
FILES = "/files"  # below it, the server shows the reports and runs of a checkout (flows/server/guarded.py)
START_SECONDS = 180.0  # the first start creates a database; 10 s is usual


class Answer(Enum):
    """How a port answers."""

    NONE = "no healthy Prefect server answers"
    OPEN = "a Prefect server that needs no key"
    LOCKED = "a Prefect server that refuses our key"
    OURS = "a Prefect server that accepts our key"


@contextmanager
def local_server(port: int, key: str, *, with_ui: bool, files: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Start a server on `port`, wait until it answers, and stop it when the block ends. Its log is
    PREFECT_HOME/server.log. `files`: a checkout whose reports and runs it shows. Raises UserError if the port is taken
    or the server does not start.
    """
    log = Path(os.environ.get("PREFECT_HOME", Path.home() / ".prefect")) / "server.log"
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # bound here: while the server is starting, which takes seconds, no other program can get the port
    with _bind(port) as bound, log.open("w") as output:
        fd, shown = bound.fileno(), ["--files", str(files)] if files else []
        server = subprocess.Popen(
            supervised([sys.executable, "-m", "flows.server.guarded", "--port", str(port), "--fd", str(fd), *shown]),
            pass_fds=[fd],
            env={**os.environ, **client_settings(port, key), **_server_settings(port, key, with_ui)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches only this process, which stops the server last
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while who_answers(port, key) is not Answer.OURS:
            if server.poll() is not None or time.monotonic() > deadline:
                raise UserError(f"the Prefect server on port {port} did not start: {_why(log, key)}")
            time.sleep(0.1)
        yield server
    finally:
        end(server)


def _why(log: Path, key: str) -> str:
    """Why a server did not start, from its log."""
    said = log.read_text(errors="replace")
    database = os.environ.get("PREFECT_API_DATABASE_CONNECTION_URL") or log.with_name("prefect.db")
    other = "set PREFECT_HOME to another folder for a new database"
    for words, reason in {
        "Can't locate revision": f"its database is of a newer Prefect; install that one, or {other}",
        "file is not a database": f"its database is damaged; put a copy in its place, or {other}",
        "malformed": f"its database is damaged; put a copy in its place, or {other}",
        "readonly database": f"its database cannot be written; make it writable, or {other}",
        "unable to open database": f"its database cannot be opened; make it readable and writable, or {other}",
        "disk is full": "the disk is full; free some space",
    }.items():
        if words in said:
            return without_secrets(f"{reason} ({database}). Its log is {log}.")
    last = "".join(said.splitlines(keepends=True)[-5:])
    return f"see {log}, which ends:\n{without_secrets(last).replace(key, '***')}"


def client_settings(port: int, key: str) -> dict[str, str]:
    """Environment variables with which Prefect's programs use the server of this machine."""
    return {"PREFECT_API_URL": api_url(port), "PREFECT_API_AUTH_STRING": key}


def _server_settings(port: int, key: str, with_ui: bool) -> dict[str, str]:
    """Environment variables of the server; they override what the user has set for other servers."""
    root = str(Path(__file__).resolve().parents[2])
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),  # where guarded.py is
        "PREFECT_SERVER_API_HOST": HOST,
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_API_AUTH_STRING": key,
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": ",".join(own_origins(port)),
        "PREFECT_SERVER_UI_API_URL": api_url(port),
        "PREFECT_SERVER_UI_ENABLED": str(with_ui),
    }


def api_url(port: int) -> str:
    return f"http://{HOST}:{port}/api"


def own_origins(port: int) -> tuple[str, ...]:
    """The origins of the server's own pages, as browsers write them in the Origin header."""
    suffix = "" if port == 80 else f":{port}"
    return f"http://{HOST}{suffix}", f"http://localhost{suffix}"


def who_answers(port: int, key: str | None = None) -> Answer:
    """Ask what listens on a port. The key is sent only to a server that demands one."""
    try:
        if _get(port, "health") is not True:
            return Answer.NONE
        if isinstance(_get(port, "admin/version"), str):
            return Answer.OPEN
        return Answer.OURS if key and isinstance(_get(port, "admin/version", key), str) else Answer.LOCKED
    except (OSError, ValueError, http.client.HTTPException):
        return Answer.NONE


def _get(port: int, path: str, key: str | None = None) -> object:
    """The API's answer, parsed; None if it demands a key."""
    # directly to loopback, not through a proxy that the environment names
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    headers = {"Authorization": f"Basic {b64encode(key.encode()).decode()}"} if key else {}
    try:
        with opener.open(urllib.request.Request(f"{api_url(port)}/{path}", headers=headers), timeout=5) as answer:
            return json.loads(answer.read(1000))
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 401:
                return None
        raise


def _bind(port: int) -> socket.socket:
    """A socket that is bound to the port and does not listen yet. Raises UserError if the port is taken."""
    bound = socket.socket()
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the port of a server that has just ended is free
        bound.bind((HOST, port))
    except OSError:
        bound.close()
        raise UserError(
            f"port {port} on {HOST} is taken; choose another with --port, as in --port {free_port()}."
        ) from None
    return bound


def free_port() -> int:
    """A port that no program listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
