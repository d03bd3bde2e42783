"""The flow runs of a worker on this machine, as its Prefect server has them."""

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

from flows import process


def bury(pool: str) -> None:
    """Mark all that runs in a pool as crashed: for a server that has just been started, and has no worker yet.

    What a power cut ended would stand as running for ever, and the next run would wait for it.
    """
    with get_client(sync_client=True) as client:
        for run in _active(client, pool):
            client.set_flow_run_state(run.id, Crashed(message="its worker is gone"), force=True)


def cancel(pool: str, worker: subprocess.Popen) -> None:
    """Cancel what a worker runs, and wait for that: told to stop, a worker kills its runs and does not say so."""
    deadline = time.monotonic() + process.GRACE_SECONDS + 10
    ours: set[UUID] = set()
    with get_client(sync_client=True) as client:
        while worker.poll() is None and time.monotonic() < deadline:
            pids = {str(pid) for pid in process.descendants(worker.pid)}
            # Its process gone, a run is of the worker still, which has yet to report the end.
            runs = [run for run in _active(client, pool) if run.infrastructure_pid in pids or run.id in ours]
            if not runs:
                return
            ours |= {run.id for run in runs}
            for run in runs:
                if not run.state.is_cancelling():
                    client.set_flow_run_state(run.id, Cancelling(message="its worker is being stopped"))
            time.sleep(0.5)


def _active(client: SyncPrefectClient, pool: str) -> list[FlowRun]:
    active = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
    return client.read_flow_runs(
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=active))),
    )
