"""The flow runs to which models were given: started, watched, started again elsewhere if a machine dies."""

import datetime
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId, FlowRunFilterId, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling

from actionzoo.errors import UserError
from flows.machines.lost_machines import watch
from flows.server.runs import WORKER_LABEL

DEPLOYMENT = "zoo/machine"
TAG = "machine"
"""Of the flow runs that build a model on a machine."""

HANDED_BACK = "handed-back"
"""Tag of a flow run whose worker was stopped: its model goes to another machine, as if the machine had died."""

POLL_SECONDS = 2.0
AWAY_SECONDS = 900.0
"""How long a Prefect server that does not answer is waited for."""


@dataclass
class Given:
    """A model that was given away."""

    model: str
    targets: list[str]
    nodes: int
    """Machines that train it together."""
    runs: list[FlowRun] = field(default_factory=list)
    """One for each machine; the first one builds the stages. Empty before it was given away."""
    starts: int = 0
    shown: dict[UUID, str] = field(default_factory=dict)
    """Flow run -> the state that was logged last."""
    is_ending: bool = False
    """Whether a flow run has ended badly, and the others were told to end."""


class GivenModels:
    """Models that are built by flow runs of their own."""

    def __init__(
        self,
        client: SyncPrefectClient,
        project: Mapping[str, str],
        *,
        force: bool,
        restarts: int,
        log: Callable[[str], object],
    ) -> None:
        """`project` is what the checkouts of all machines must agree with; `restarts`: how often a model is given to
        another machine. Raises UserError if the server lacks the deployment."""
        self._client, self._project, self._force, self._restarts = client, dict(project), force, restarts
        self._log = log
        try:
            self._deployment = client.read_deployment_by_name(DEPLOYMENT)
        except ObjectNotFound:
            raise UserError(
                f"the Prefect server has no deployment {DEPLOYMENT}; run `prefect --no-prompt deploy --all`, or start "
                "`python -m flows.local` again"
            ) from None
        watch(client, self._deployment.id)

    def build(self, models: Mapping[str, list[str]], nodes: int) -> dict[str, str]:
        """Have the stages of all models built; returns the reason for each model that was not.

        Trainings on several machines take turns: each could otherwise hold half of the machines that it needs. What
        still runs is cancelled if this is interrupted. Raises UserError if the server stays away.
        """
        failures: dict[str, str] = {}
        waiting = [Given(model, names, nodes if _training(names) else 1) for model, names in models.items()]
        given: list[Given] = []
        try:
            self._warn_of_an_unpolled_queue()
            while waiting or given:
                for one in list(waiting):
                    if one.nodes == 1 or not any(other.nodes > 1 for other in given):
                        waiting.remove(one)
                        given.append(one)
                        one.runs = self._taken_over(one) or self._start(one)
                time.sleep(POLL_SECONDS)
                self._read(given)
                for one in list(given):
                    self._show(one)
                    if (reason := self._judge(one)) is not None:
                        given.remove(one)
                        if reason:
                            failures[one.model] = reason
        except BaseException:
            self._cancel([run for one in given for run in one.runs], "the flow run that gave it away was stopped")
            raise
        return failures

    def _judge(self, one: Given) -> str | None:
        """None while the model is being built; '' when it was; else the reason why not. Starts it again if a machine
        has died."""
        states = [run.state for run in one.runs if run.state]
        lost = [run for run in one.runs if run.state and (run.state.is_crashed() or HANDED_BACK in run.tags)]
        if one.runs[0].state and one.runs[0].state.is_completed():
            self._cancel(one.runs[1:], "the training has ended")
            return ""
        bad = [state for state in states if state.is_final() and not state.is_completed()]
        if not bad:
            return None
        if not one.is_ending:
            one.is_ending = True
            self._cancel(one.runs, "another machine of this training has stopped")
        if not all(state.is_final() for state in states):
            return None
        if lost and one.starts <= self._restarts:
            why = lost[0].state.message if lost[0].state and lost[0].state.is_crashed() else "its worker was stopped"
            self._log(f"{one.model} goes to another machine: {why}")
            one.is_ending = False
            one.runs = self._start(one)
            return None
        failed = next((state for state in bad if state.is_failed()), bad[0])
        return f"its flow run ended as {failed.name}: {failed.message}"

    def _start(self, one: Given) -> list[FlowRun]:
        """Start the flow runs of a model, one for each machine."""
        one.starts += 1
        runs: list[FlowRun] = []
        for node in range(one.nodes):
            name = one.model + (f" · machine {node + 1} of {one.nodes}" if one.nodes > 1 else "")
            run = run_deployment(
                self._deployment.id,
                parameters={
                    "targets": _training(one.targets) if node else one.targets,
                    "project": self._project,
                    "force": self._force,
                    "nodes": one.nodes,
                    "first": str(runs[0].id) if node else None,
                },
                flow_run_name=name + (f" · start {one.starts}" if one.starts > 1 else ""),
                tags=[TAG, f"model:{one.model}"],
                timeout=0,
                as_subflow=True,
            )
            assert isinstance(run, FlowRun)
            runs.append(run)
        return runs

    def _taken_over(self, one: Given) -> list[FlowRun]:
        """The flow run of this model that an interrupted flow run has left behind; none if there is none."""
        active = (StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING)
        found = self._client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                deployment_id=FlowRunFilterDeploymentId(any_=[self._deployment.id]),
                tags=FlowRunFilterTags(all_=[TAG, f"model:{one.model}"]),
            )
        )
        for run in found:
            given = run.parameters
            same = given.get("project") == self._project and set(one.targets) <= set(given.get("targets", ()))
            if same and one.nodes == given.get("nodes", 1) == 1 and run.state and run.state.type in active:
                self._log(f"{one.model} is being built already, by flow run {run.name}")
                one.starts = 1
                return [run]
        return []

    def _read(self, given: Iterable[Given]) -> None:
        """Read the states of all flow runs. Raises UserError if the server stays away."""
        deadline = time.monotonic() + AWAY_SECONDS
        ids = [run.id for one in given for run in one.runs]
        while True:
            try:
                found = {
                    run.id: run
                    for start in range(0, len(ids), 100)
                    for run in self._client.read_flow_runs(
                        flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=ids[start : start + 100]))
                    )
                }
                break
            except httpx.HTTPError as error:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"the Prefect server does not answer ({type(error).__name__}); start again"
                    ) from None
                time.sleep(5)
        for one in given:
            one.runs = [found.get(run.id, run) for run in one.runs]

    def _show(self, one: Given) -> None:
        for run in one.runs:
            state = run.state.name if run.state else None
            if state and one.shown.get(run.id) != state:
                one.shown[run.id] = state
                worker = run.labels.get(WORKER_LABEL)
                self._log(f"{run.name}: {state}" + (f" on {worker}" if worker and state == "Running" else ""))

    def _cancel(self, runs: Iterable[FlowRun], why: str) -> None:
        for run in runs:
            if run.state is None or not (run.state.is_final() or run.state.is_cancelling()):
                self._client.set_flow_run_state(run.id, Cancelling(message=why))

    def _warn_of_an_unpolled_queue(self) -> None:
        queue, pool = self._deployment.work_queue_name, self._deployment.work_pool_name
        try:
            found = self._client.read_work_queue_by_name(queue or "", work_pool_name=pool)
        except ObjectNotFound:
            return
        last = found.last_polled
        if last is None or datetime.datetime.now(datetime.UTC) - last > datetime.timedelta(minutes=1):
            self._log(f"no worker polls the queue {queue}: start `python -m flows.worker` on each machine")


def _training(names: Sequence[str]) -> list[str]:
    """The stage among `names` that several machines can run together."""
    return [name for name in names if name.startswith("train@")]
