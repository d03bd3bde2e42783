"""Prefect on this machine in one command: server, work pool, deployments, worker. Ctrl-C stops them all.

    python -m flows.local                        then type what it prints in another terminal
    python -m flows.local --port 4201            when 4200 is taken

The server listens on 127.0.0.1 only, and Prefect's files are in .prefect/ of this checkout (or in PREFECT_HOME). The
server answers only requests with its key: type the key in .prefect/key on its page; `prefect` commands typed in the
checkout read it from prefect.toml. If a Prefect server already answers on the port, and PREFECT_API_AUTH_STRING holds
its key, that server is used and left running at the end. See docs/prefect.md.
"""

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from actionzoo.errors import UserError
from actionzoo.files.addresses import without_secrets
from actionzoo.files.locks import try_lock
from actionzoo.process.supervisor import GRACE_SECONDS, end, supervised
from flows.server.keys import KEY_FILE, key_file, new_key, settings_file
from flows.server.process import HOST, Answer, api_url, client_settings, free_port, local_server, who_answers
from flows.stage.grace import grace_seconds

POOL, QUEUE = "actionzoo", "default"  # as in prefect.yaml
ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m flows.local",
        description="Start a Prefect server, create the work pool and the deployments of prefect.yaml, and run a "
        "worker, all on this machine. Ctrl-C stops them.",
        epilog="example: python -m flows.local --port 4201",
    )
    parser.add_argument("--port", type=_port, default=4200, metavar="N", help="port of the server (%(default)s)")
    port = parser.parse_args().port
    os.environ["PREFECT_HOME"] = os.path.abspath(os.environ.get("PREFECT_HOME") or ROOT / ".prefect")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        with ExitStack() as running:
            sys.exit(_serve(port, running))
    except UserError as error:
        sys.exit(str(error))


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536):
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is no port; write a number from 1 to 65535, as in 4201")
    return int(text)


def _serve(port: int, running: ExitStack) -> str:
    """Run until the worker or the server ends by itself; returns a message that names it. `running` stops what was
    started, last first."""
    home = Path(os.environ["PREFECT_HOME"])
    _check_home(home)
    running.enter_context(_only_one(home, port))
    users_key = os.environ.get("PREFECT_API_AUTH_STRING")
    uses_existing = _is_usable(port, users_key)
    key = users_key if uses_existing and users_key else new_key()
    os.environ |= client_settings(port, key)
    from prefect.client.orchestration import get_client  # prefect reads the environment: not before it is complete

    from flows.server import runs
    from flows.server.pool import is_deployed, make_pool

    server = None
    if uses_existing:
        print(f"using the Prefect server that runs on port {port}", flush=True)
        prefix = ""
    else:
        path = running.enter_context(key_file(home, key))
        shown = f"cat {shlex.quote(str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path))}"
        prefix = "" if running.enter_context(settings_file(ROOT, key)) else f'PREFECT_API_AUTH_STRING="$({shown})" '
        print(f"starting a Prefect server on port {port}", flush=True)
        server = running.enter_context(local_server(port, key, with_ui=True, files=ROOT))
        with get_client(sync_client=True) as client:
            runs.bury_all(client, POOL)
    make_pool(POOL)
    menus = _deploy()
    if is_deployed("zoo/all"):
        print("zoo/all is of an older version, and still works; zoo/zoo replaces it: prefect deployment delete zoo/all")
    print(f"\nPrefect is at http://{HOST}:{port}; Ctrl-C stops it.", flush=True)
    if server:
        print(f"The page asks for a key, which this shows: {shown}")
    print(
        f"In another terminal, in {ROOT}:\n\n"
        f"    {prefix}PREFECT_API_URL={api_url(port)} {_prefect_command()} deployment run 'zoo/row' --watch\n",
        flush=True,
    )
    worker = subprocess.Popen(
        supervised(
            [*_PREFECT, "worker", "start", "--pool", POOL, "--work-queue", QUEUE, "--type", "process"],
            grace_seconds(ROOT) + 10,
        ),
        cwd=ROOT,
        env=os.environ | {"PROJECT_DIR": str(ROOT)},  # prefect.yaml: where this worker runs flows
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C reaches only this process, which stops the worker before the server
    )
    running.callback(end, worker)

    def cancel_runs() -> None:
        if who_answers(port, key) is Answer.OURS:
            runs.cancel(POOL, worker)

    running.callback(cancel_runs)
    running.enter_context(runs.watched())
    while worker.poll() is None:
        if server and server.poll() is not None:
            return f"the Prefect server ended by itself; see {home}/server.log"
        menus = _deploy(menus)
        time.sleep(0.2)
    return "the worker ended by itself; its last lines are above"


def _is_usable(port: int, key: str | None) -> bool:
    """Whether a server that the user runs answers on the port; False if a server has to be started.

    Raises UserError if a server answers that needs no key, or refuses `key`.
    """
    deadline = time.monotonic() + GRACE_SECONDS + 5
    was_killed = (Path(os.environ["PREFECT_HOME"]) / KEY_FILE).exists()
    while True:
        answer = who_answers(port, key)
        if answer is not Answer.LOCKED or not was_killed or time.monotonic() > deadline:
            break
        time.sleep(0.2)  # flows.local was killed, and its server is still shutting down
    match answer:
        case Answer.NONE:
            return False
        case Answer.OURS:
            return True
        case Answer.OPEN:
            raise UserError(
                f"the Prefect server on port {port} asks for no key, so any web page and any user of this machine "
                f"could run commands through a worker of it. Stop it and start this again, or choose another port, as "
                f"in --port {free_port()}; docs/prefect.md describes how to give a server of your own a key."
            )
        case Answer.LOCKED:
            raise UserError(
                f"the Prefect server on port {port} wants a key, and not the one in PREFECT_API_AUTH_STRING. Set it "
                f"there, or choose another port, as in --port {free_port()}."
                if key
                else f"the Prefect server on port {port} wants a key. Set PREFECT_API_AUTH_STRING to it, or choose "
                f"another port, as in --port {free_port()}."
            )


def _check_home(home: Path) -> None:
    """Create the folder of Prefect's files. Raises UserError if it, or what lies there, cannot be read and written."""
    paths = (
        home,
        *(home / name for name in ("profiles.toml", "prefect.db", "local.lock", "server.log", "key", "runs")),
    )
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        faults = [f"{path} is not yours to read and write" for path in paths if path.exists() and not _is_ours(path)]
        fault = next(iter(faults), None)
    except OSError as error:
        fault = f"{error.filename}: {error.strerror}"
    if fault:
        raise UserError(
            f"Prefect's files cannot be kept in {home} ({fault}). Give the folder to your user, or set PREFECT_HOME to "
            "another one, as in PREFECT_HOME=~/prefect."
        )


def _is_ours(path: Path) -> bool:
    return os.access(path, os.R_OK | os.W_OK | (os.X_OK if path.is_dir() else 0))


@contextmanager
def _only_one(home: Path, port: int) -> Iterator[None]:
    """Raise UserError if flows.local already runs on this PREFECT_HOME: each would mark the other's runs as crashed."""
    with (home / "local.lock").open("a+") as lock:
        if not try_lock(lock):
            lock.seek(0)
            raise UserError(f"flows.local already runs for {home}, on port {lock.read()}; use that one.")
        lock.truncate(0)
        lock.write(str(port))
        lock.flush()
        yield


_PREFECT = [sys.executable, "-m", "prefect"]  # of this environment, whatever PATH says


@dataclass(frozen=True)
class Menus:
    """What the deployments' forms list, and when params.yaml was written from which it was read."""

    written: float | None
    names: tuple[str, ...] = ()


def _deploy(known: Menus | None = None) -> Menus:
    """Create or update the deployments, but not if `known` is what params.yaml lists; returns what they list."""
    from flows.choices import PARAMS, listed

    written = PARAMS.stat().st_mtime if PARAMS.exists() else None
    if known and written == known.written:
        return known
    names = (*listed("recipes"), *listed("datasets"))
    if known and names in ((), known.names):  # nothing new, or cannot be read now: a flow run says why
        return Menus(written, known.names)
    try:
        _prefect("--no-prompt", "deploy", "--all")
    except UserError as error:
        if not known:
            raise
        print(f"the forms do not list what params.yaml has now: {error}", flush=True)
    else:
        if known:
            print("the forms list the models and data sets that params.yaml has now", flush=True)
    return Menus(written, names)


def _prefect(*arguments: str) -> None:
    # PROJECT_DIR would become part of the deployments, for all workers
    own = {name: value for name, value in os.environ.items() if name != "PROJECT_DIR"}
    command = [*_PREFECT, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=own, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise UserError(without_secrets(f"prefect {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}"))


def _prefect_command() -> str:
    """What to type for `prefect`: the bare word if PATH finds the program beside our interpreter, else its path."""
    ours = Path(sys.executable).with_name("prefect")
    return "prefect" if shutil.which("prefect") == str(ours) else shlex.quote(str(ours))


def _leave(number: int, _frame: object) -> None:
    for repeated in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(repeated, signal.SIG_IGN)  # a second signal must not interrupt the orderly stop
    print("\nstopping the runs, the worker and the server", flush=True)
    sys.exit(0 if number == signal.SIGINT else 128 + number)


if __name__ == "__main__":
    main()
