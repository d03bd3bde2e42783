"""The flow runs of this machine, as their Prefect server lists them: which are alive, and what became of the others.

Each flow run has a file in PREFECT_HOME/runs that its process keeps locked. The kernel unlocks the file however the
process ends, so a run whose file is unlocked has no process any more, whatever the server says of its state.
"""

import contextlib
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TextIO
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterEndTime,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.runtime import flow_run
from prefect.settings import PREFECT_HOME
from prefect.states import Cancelled, Cancelling, Crashed

from actionzoo.files.locks import try_lock
from actionzoo.process.supervisor import GRACE_SECONDS, descendants

FLOW = "zoo"
QUEUE = "default"
"""The work queue of the worker of flows.local. Workers of other machines have queues of their own."""
WORKER_LABEL = "prefect.worker.name"
SWEEP_SECONDS = 15.0
SETTLED = timedelta(seconds=15)
"""The server may hear of the last states of a run's tasks some seconds after it has heard of the run's own."""
KEPT = timedelta(days=30)
"""For files of runs that belong to another server."""
_ACTIVE = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
_held: dict[str, TextIO] = {}


def announce() -> None:
    """Lock the current flow run's file for as long as this process lives; then `bury`. For the beginning of a flow."""
    run_id = flow_run.id
    if not run_id or run_id in _held:
        return
    folder = _folder()
    unnamed = folder / f".{run_id}"  # a file with its own name is locked from the first moment
    file = unnamed.open("w")
    try_lock(file)
    file.write(socket.gethostname())
    file.flush()
    unnamed.rename(folder / run_id)
    _held[run_id] = file  # not only while the flow function runs: the final state is set after it
    with _without_server_errors(), get_client(sync_client=True) as client:
        bury(client)


def bury(client: SyncPrefectClient, since: timedelta = timedelta(hours=1)) -> None:
    """Give flow runs whose process has ended their final state: Cancelled if that was asked for, else Crashed. And the
    same to tasks of flow runs that ended within `since`."""
    dead = {path.name: path for path in _folder().iterdir() if _is_dead(path)}
    if dead:
        ids = FlowRunFilterId(any_=[UUID(name) for name in dead])
        found = client.read_flow_runs(flow_run_filter=FlowRunFilter(id=ids))
        for run in found:
            _end(client, run)
            dead.pop(str(run.id)).unlink(missing_ok=True)
        for path in dead.values():
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > KEPT.total_seconds():
                    path.unlink()
    _end_tasks(client, since)


def bury_all(client: SyncPrefectClient, pool: str) -> None:
    """`bury`, and all active runs of the pool's queue without a living process. For a server that has just started and
    has no worker for this queue yet: also a run that was killed before its flow began would stay active forever."""
    bury(client, since=timedelta(days=3650))
    for run in active(client, pool):
        if run.work_queue_name == QUEUE and not _is_alive(_folder() / str(run.id)):
            _end(client, run)


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """`bury` every SWEEP_SECONDS until the block ends."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(SWEEP_SECONDS):
            with _without_server_errors(), get_client(sync_client=True) as client:
                bury(client)

    threading.Thread(target=watch, name="bury", daemon=True).start()
    try:
        yield
    finally:
        stop.set()


def cancel(pool: str, worker: subprocess.Popen[bytes], name: str | None = None) -> None:
    """Cancel the runs of a worker and wait until they have ended: a worker that is stopped kills its runs, but does not
    report that to the server. `name`: of the worker, where workers of other machines have runs in this pool, too, whose
    process ids may be the same as ours."""
    deadline = time.monotonic() + GRACE_SECONDS + 10
    ours: set[UUID] = set()
    with get_client(sync_client=True) as client:
        while worker.poll() is None and time.monotonic() < deadline:
            pids = {str(pid) for pid in descendants(worker.pid)}
            # a run whose process has ended still belongs to the worker, which has yet to report the end
            runs = [
                run
                for run in active(client, pool)
                if run.id in ours or (run.infrastructure_pid in pids and name in (None, _worker_of(run)))
            ]
            if not runs:
                break
            ours |= {run.id for run in runs}
            for run in runs:
                if run.state is None or not run.state.is_cancelling():
                    client.set_flow_run_state(run.id, Cancelling(message="its worker is being stopped"))
            time.sleep(0.5)
        bury(client)


def _folder() -> Path:
    folder: Path = PREFECT_HOME.value() / "runs"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def _is_dead(path: Path) -> bool:
    """Whether the file is a run's of this machine, and its process has ended."""
    try:
        UUID(path.name)
        with path.open("r+") as file:
            return file.read() == socket.gethostname() and try_lock(file)
    except (ValueError, OSError):  # another file, or one that was removed meanwhile
        return False


def _is_alive(path: Path) -> bool:
    return path.exists() and not _is_dead(path)


def _worker_of(run: FlowRun) -> str:
    return str(run.labels.get(WORKER_LABEL, ""))


def active(client: SyncPrefectClient, pool: str) -> list[FlowRun]:
    return client.read_flow_runs(
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_ACTIVE))),
    )


def _end(client: SyncPrefectClient, run: FlowRun) -> None:
    if run.state is None or run.state.is_final():
        return
    state: State[Any] = (
        Cancelled(message="stopped as asked for")
        if run.state.is_cancelling()
        else Crashed(message="its process ended without a word: it was killed, or the machine stopped; start it again")
    )
    client.set_flow_run_state(run.id, state, force=True)


def _end_tasks(client: SyncPrefectClient, since: timedelta) -> None:
    """Tasks that were still to end when their flow run ended have the same end."""
    now = datetime.now(UTC)
    for kind, make in ((StateType.CANCELLED, Cancelled), (StateType.CRASHED, Crashed)):
        ended = FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[kind])),
            end_time=FlowRunFilterEndTime.model_validate({"after_": now - since, "before_": now - SETTLED}),
        )
        unended = TaskRunFilterState(type=TaskRunFilterStateType(any_=[*_ACTIVE, StateType.SCHEDULED]))
        tasks = client.read_task_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[FLOW])),
            flow_run_filter=ended,
            task_run_filter=TaskRunFilter(state=unended),
            limit=200,
        )
        for task in tasks:
            client.set_task_run_state(task.id, make(message=f"its flow run {kind.value.lower()}"), force=True)


@contextlib.contextmanager
def _without_server_errors() -> Iterator[None]:
    """The next sweep will do it, if the server does not answer now."""
    with contextlib.suppress(httpx.HTTPError, PrefectHTTPStatusError, ObjectNotFound, OSError):
        yield
