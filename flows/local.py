"""Prefect on this machine, in one command: server, work pool, deployments, worker. Ctrl-C stops all of it.

    python -m flows.local                        then, in another terminal, what it prints
    python -m flows.local --port 4201            when 4200 is taken

Everything listens on 127.0.0.1 only, and what Prefect writes is in .prefect/ of this checkout (or in PREFECT_HOME).
If a Prefect server already answers on the port, that one is used, and left running at the end.
"""

import argparse
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from actionzoo.errors import UserError
from flows import process
from flows.server import HOST, api_url, is_prefect, local_server

POOL = "actionzoo"  # as in prefect.yaml
ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m flows.local",
        description="Start a Prefect server, make the work pool and the deployments of prefect.yaml, and run a worker, "
        "all on this machine. Ctrl-C stops them.",
        epilog="example: python -m flows.local --port 4201",
    )
    parser.add_argument("--port", type=int, default=4200, metavar="N", help="port of the server (%(default)s)")
    port = parser.parse_args().port
    os.environ.setdefault("PREFECT_HOME", str(ROOT / ".prefect"))
    os.environ["PREFECT_API_URL"] = api_url(port)
    os.environ["PROJECT_DIR"] = str(ROOT)  # prefect.yaml: where the flows run
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        with ExitStack() as running:
            sys.exit(_serve(port, running))
    except UserError as error:
        sys.exit(str(error))


def _serve(port: int, running: ExitStack) -> str:
    """Run until something ends by itself; gives the sentence that says what. Stopped in the opposite order."""
    from flows import runs  # prefect reads the environment when it is imported: not before main() has set it

    running.enter_context(_only_one(port))
    server = None
    if is_prefect(port):
        print(f"using the Prefect server that runs on port {port}", flush=True)
    else:
        print(f"starting a Prefect server on port {port}", flush=True)
        server = running.enter_context(local_server(port, with_ui=True))
        runs.bury(POOL)
    if not _prefect("work-pool", "inspect", POOL, must_succeed=False):
        _prefect("work-pool", "create", POOL, "--type", "process")
    _prefect("--no-prompt", "deploy", "--all")
    print(
        f"\nPrefect is at http://{HOST}:{port}; Ctrl-C stops it. In another terminal:\n\n"
        f"    PREFECT_API_URL={api_url(port)} {_prefect_command()} deployment run 'zoo/row' --watch\n",
        flush=True,
    )
    worker = subprocess.Popen(
        process.kept([*_PREFECT, "worker", "start", "--pool", POOL, "--type", "process"], process.GRACE_SECONDS + 10),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C in the terminal is for us: the worker goes first, while its server lives
    )
    running.callback(process.end, worker)
    running.callback(lambda: is_prefect(port) and runs.cancel(POOL, worker))
    while worker.poll() is None:
        if server and server.poll() is not None:
            return f"the Prefect server ended by itself; see {os.environ['PREFECT_HOME']}/server.log"
        time.sleep(0.2)
    return "the worker ended by itself; its last lines are above"


@contextmanager
def _only_one(port: int) -> Iterator[None]:
    """Two on one data base would take each other's runs for dead."""
    path = Path(os.environ["PREFECT_HOME"]) / "local.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UserError(f"flows.local already runs for {path.parent}, on port {lock.read()}; use that.") from None
        lock.truncate(0)
        lock.write(str(port))
        lock.flush()
        yield


_PREFECT = [sys.executable, "-m", "prefect"]  # of this environment, whatever PATH says


def _prefect(*arguments: str, must_succeed: bool = True) -> bool:
    done = subprocess.run([*_PREFECT, *arguments], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode and must_succeed:
        raise UserError(f"prefect {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
    return done.returncode == 0


def _prefect_command() -> str:
    """What to type for `prefect`: the bare word where PATH leads to the one beside our interpreter."""
    ours = Path(sys.executable).with_name("prefect")
    return "prefect" if shutil.which("prefect") == str(ours) else str(ours)


def _leave(number: int, _) -> None:
    for repeated in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(repeated, signal.SIG_IGN)  # once is enough: what we started must be stopped in order
    print("\nstopping: what runs, the worker, the server", flush=True)
    sys.exit(0 if number == signal.SIGINT else 128 + number)


if __name__ == "__main__":
    main()
