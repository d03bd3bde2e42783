"""The flow runs of this machine's worker, as its Prefect server lists them."""

import subprocess
import time
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Cancelling, Crashed

from actionzoo.process.supervisor import GRACE_SECONDS, descendants


def mark_crashed(pool: str) -> None:
    """Mark all active runs of a pool as crashed. For a server that has just started and has no worker yet.

    A run that a power cut ended would stay "running" forever, and the next run would wait for it.
    """
    with get_client(sync_client=True) as client:
        for run in _active(client, pool):
            client.set_flow_run_state(run.id, Crashed(message="its worker has died"), force=True)


def cancel(pool: str, worker: subprocess.Popen[bytes]) -> None:
    """Cancel the runs of a worker and wait until they have ended: a worker that is stopped kills its runs, but does not
    report that to the server."""
    deadline = time.monotonic() + GRACE_SECONDS + 10
    ours: set[UUID] = set()
    with get_client(sync_client=True) as client:
        while worker.poll() is None and time.monotonic() < deadline:
            pids = {str(pid) for pid in descendants(worker.pid)}
            # a run whose process has ended still belongs to the worker, which has yet to report the end
            runs = [run for run in _active(client, pool) if run.infrastructure_pid in pids or run.id in ours]
            if not runs:
                return
            ours |= {run.id for run in runs}
            for run in runs:
                if run.state is None or not run.state.is_cancelling():
                    client.set_flow_run_state(run.id, Cancelling(message="its worker is being stopped"))
            time.sleep(0.5)


def _active(client: SyncPrefectClient, pool: str) -> list[FlowRun]:
    active = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
    return client.read_flow_runs(
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=active))),
    )
