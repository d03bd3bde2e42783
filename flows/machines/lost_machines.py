"""What becomes of a flow run whose machine is gone: the Prefect server declares it dead by missing heartbeats. If the
machine still lives, it gives up by itself."""

import datetime
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run

HEARTBEAT_SECONDS = 30
"""Prefect's shortest."""

LOST_SECONDS = 120
"""Without a heartbeat, after which a machine is given up. The environment variable ACTIONZOO_LOST_SECONDS replaces it
for the flow run that gives models away."""

START_SECONDS = 600
"""After which a flow run that a worker took has begun, or never will."""


def watch(client: SyncPrefectClient, deployment: UUID) -> None:
    """Let the server mark flow runs of the deployment as crashed when their machine is gone; replaces older rules.

    Two automations: for flow runs whose heartbeat stops, and for those that a worker took and never started.
    """
    seconds = float(os.environ.get("ACTIONZOO_LOST_SECONDS", LOST_SECONDS))
    ends = {
        f"prefect.flow-run.{end}" for end in ("Completed", "Failed", "Crashed", "Cancelled", "Cancelling", "stopped")
    }
    related = ResourceSpecification(
        {"prefect.resource.role": "deployment", "prefect.resource.id": f"prefect.deployment.{deployment}"}
    )
    beat, pending = "prefect.flow-run.heartbeat", "prefect.flow-run.Pending"
    rules = {
        "actionzoo: machines that are gone": (beat, ends | {beat}, seconds, "its machine sends no heartbeat any more"),
        "actionzoo: flow runs that never started": (
            pending,
            ends | {"prefect.flow-run.Running", beat},
            max(START_SECONDS, seconds),
            "a worker took it and did not start it",
        ),
    }
    for name, (after, expect, within, message) in rules.items():
        rule = AutomationCore(
            name=name,
            description="Made by actionzoo (flows/machines/lost_machines.py).",
            trigger=EventTrigger(
                match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
                match_related=related,
                for_each={"prefect.resource.id"},
                after={after},
                expect=expect,
                posture=Posture.Proactive,
                threshold=1,
                within=datetime.timedelta(seconds=within),
            ),
            actions=[ChangeFlowRunState(name=None, state=StateType.CRASHED, message=message, force=False)],
        )
        found = client.read_automations_by_name(name)
        if found:
            client.update_automation(found[0].id, rule)
            for double in found[1:]:
                client.delete_automation(double.id)
        else:
            client.create_automation(rule)


@contextmanager
def ends_with_its_flow_run() -> Iterator[None]:
    """Within the block, end this process, in order, if its flow run is declared dead: another machine has its work.

    That happens to a machine that could not reach the server for some minutes.
    """
    done, run_id = threading.Event(), UUID(str(flow_run.id))

    def look() -> None:
        with get_client(sync_client=True) as client:
            while not done.wait(HEARTBEAT_SECONDS):
                try:
                    state = client.read_flow_run(run_id).state
                except (httpx.HTTPError, ObjectNotFound):
                    continue
                if state is not None and state.is_final() and not done.is_set():
                    os.kill(os.getpid(), signal.SIGTERM)
                    return

    threading.Thread(target=look, name="declared-dead", daemon=True).start()
    try:
        yield
    finally:
        done.set()
