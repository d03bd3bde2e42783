"""Let this machine build models for a Prefect server that runs elsewhere. Ctrl-C stops the worker and its runs.

    export PREFECT_API_URL=http://10.0.0.1:4200/api PREFECT_API_AUTH_STRING=...
    python -m flows.worker                       as many models at once as the GPUs suffice for
    python -m flows.worker --limit 1 --name left

The worker polls the queue `machines` of the work pool. Its flow runs build in this checkout, which is this machine's
own, and share what they build through DVC's default remote. See docs/machines.md.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from actionzoo.errors import UserError
from actionzoo.files.addresses import without_secrets
from actionzoo.files.locks import try_lock
from actionzoo.process.supervisor import end, supervised
from flows.stage.grace import grace_seconds

POOL = "actionzoo"
QUEUE = "machines"
ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m flows.worker",
        description="Run a worker of a Prefect server on this machine: it builds models in this checkout and shares "
        "them through DVC's default remote. PREFECT_API_URL and PREFECT_API_AUTH_STRING name the server and its key.",
        epilog="example: PREFECT_API_URL=http://10.0.0.1:4200/api python -m flows.worker --limit 2",
    )
    parser.add_argument("--pool", default=POOL, help="work pool (%(default)s)")
    parser.add_argument("--queue", default=QUEUE, help="work queue (%(default)s)")
    parser.add_argument(
        "--limit", type=_limit, metavar="N", help="models at once (default: the GPUs / runtime.gpus, at least 1)"
    )
    parser.add_argument("--name", default=socket.gethostname(), help="of the worker (default: the host's name)")
    arguments = parser.parse_args()
    os.environ["PROJECT_DIR"] = str(ROOT)  # prefect.yaml: where the flows run
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    os.environ.setdefault("PREFECT_HOME", str(ROOT / ".prefect"))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        with ExitStack() as running:
            sys.exit(_work(arguments, running))
    except UserError as error:
        sys.exit(str(error))


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text[:9]) < 10_000):
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is no number of models; write a whole number from 1")
    return int(text)


def _work(arguments: argparse.Namespace, running: ExitStack) -> str:
    """Run until the worker ends by itself; returns a message. `running` stops what was started, last first."""
    if not os.environ.get("PREFECT_API_URL"):
        raise UserError(
            "PREFECT_API_URL is not set: set it to the server's address, as in http://10.0.0.1:4200/api, and "
            "PREFECT_API_AUTH_STRING to its key"
        )
    if not (ROOT / ".dvc").is_dir():
        raise UserError(f"{ROOT} is no DVC repository: a worker builds in a clone of the project (`git clone`)")
    running.enter_context(_own_checkout())
    from flows.machines import share  # imports prefect, which reads the environment: not before it is complete
    from flows.machines.lost_machines import HEARTBEAT_SECONDS
    from flows.machines.machine import ADD_REMOTE
    from flows.server import runs

    _check_pool(arguments.pool)
    limit = arguments.limit or _models_at_once()
    os.environ["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] = str(HEARTBEAT_SECONDS)
    if not share.has_remote(ROOT):
        print(f"warning: {ROOT} has no default DVC remote, so flow runs will fail; {ADD_REMOTE}", flush=True)
    elif kept := share.kept_back(ROOT):
        print(f"pushing what was built here and is not in DVC's remote yet: {', '.join(kept)}", flush=True)
        share.push_kept_back(ROOT, threading.Event(), print)
    print(
        f"worker {arguments.name} of {os.environ['PREFECT_API_URL']}, queue {arguments.queue}: "
        f"{limit} {'models' if limit > 1 else 'model'} at once, in {ROOT}; Ctrl-C stops it",
        flush=True,
    )
    words = [sys.executable, "-m", "prefect", "worker", "start", "--type", "process"]
    words += ["--pool", arguments.pool, "--work-queue", arguments.queue]
    words += ["--name", arguments.name, "--limit", str(limit)]
    worker = subprocess.Popen(
        supervised(words, grace_seconds(ROOT) + 10),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C reaches only this process, which cancels the runs first
    )
    running.callback(end, worker)
    running.callback(runs.cancel, arguments.pool, worker, arguments.name)
    running.callback(_hand_back, arguments.pool, arguments.name)
    while worker.poll() is None:
        time.sleep(0.2)
    return "the worker ended by itself; its last lines are above"


def _check_pool(pool: str) -> None:
    """Raise UserError if the Prefect server cannot be used or has no such work pool."""
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound
    from prefect.settings import PREFECT_API_URL

    address = without_secrets(PREFECT_API_URL.value() or "")
    try:
        with get_client(sync_client=True) as client:
            client.read_work_pool(pool)
    except ObjectNotFound:
        raise UserError(
            f"the Prefect server at {address} has no work pool {pool}; `python -m flows.local`, or the commands at the "
            "top of prefect.yaml, create it there"
        ) from None
    except httpx.HTTPStatusError as error:
        if error.response.status_code in (401, 403):
            raise UserError(
                f"the Prefect server at {address} refuses our key: set PREFECT_API_AUTH_STRING to its own, as "
                "docs/machines.md describes"
            ) from None
        raise UserError(
            f"the Prefect server at {address} answers with status {error.response.status_code}; see its log"
        ) from None
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError) as error:
        raise UserError(
            f"no Prefect server answers at {address} ({type(error).__name__}); check PREFECT_API_URL, which ends in "
            "/api, and that the server listens on an address that this machine reaches"
        ) from None


def _hand_back(pool: str, worker: str) -> None:
    """Mark the flow runs of the worker, so that their models go to other machines when they have ended."""
    from prefect.client.orchestration import get_client

    from flows.machines.given_models import HANDED_BACK
    from flows.server import runs

    with get_client(sync_client=True) as client:
        for run in runs.active(client, pool):
            if run.labels.get(runs.WORKER_LABEL) == worker:
                client.update_flow_run(run.id, tags=[*run.tags, HANDED_BACK])


def _models_at_once() -> int:
    """GPUs of this machine / GPUs of a training; 1 if it has none."""
    from actionzoo.params import load_params
    from flows.stage.gpus import visible_gpus

    return max(1, len(visible_gpus().found) // load_params(ROOT / "params.yaml").runtime.gpus)


@contextmanager
def _own_checkout() -> Iterator[None]:
    """Raise UserError if a worker on another machine uses this checkout, which both see on a shared file system.

    DVC notes who uses a file by process ids, which mean nothing on another machine: it would take a living process for
    a dead one and remove its mark. A second worker on this machine is welcome.
    """
    path, host = ROOT / ".dvc" / "tmp" / "worker.host", socket.gethostname()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        if try_lock(file):
            file.truncate(0)
            file.write(host)
            file.flush()
        else:
            file.seek(0)
            if (other := file.read()) and other != host:
                raise UserError(
                    f"a worker on {other} uses this checkout, {ROOT}; give each machine a clone of its own, on its own "
                    "disk. Archives and shards may be shared: set ACTIONZOO_DATA to the same folder on all"
                )
        yield


def _leave(number: int, _frame: object) -> None:
    for repeated in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(repeated, signal.SIG_IGN)  # a second signal must not interrupt the orderly stop
    print("\nstopping the runs and the worker", flush=True)
    sys.exit(0 if number == signal.SIGINT else 128 + number)


if __name__ == "__main__":
    main()
