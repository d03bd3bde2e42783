"""Many machines: each model goes to the next machine that has a free worker, as a flow run of its own.

    zoo/zoo, on the queue `default`        reads the graph, gives models away, waits, ends with the page
      └ zoo/machine for each model         on the queue `machines`, which the workers of all machines poll

Every machine has its own clone of the project, and all share what they build through DVC's default remote
(flows/share.py). A machine that dies stops sending the heartbeats of its flow runs. An automation of the Prefect server
then marks them as crashed, and the flow run that gave the model away gives it to another machine, which goes on from
the last saved state in the remote (src/actionzoo/jobs/shared_states.py).

A training on several machines (`nodes`) is as many flow runs. The first one builds the stage with DVC, and tells the
others through its flow run's inputs where torchrun's processes meet. The others run the stage's command beside it.
"""

import datetime
import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import yaml
from prefect import flow, get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId, FlowRunFilterId, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.deployments import run_deployment
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelling, Failed

from actionzoo.errors import UserError
from actionzoo.files.addresses import without_secrets
from actionzoo.jobs.shared_states import SHARES
from flows import data_set, share
from flows.graph import Stage, read_graph
from flows.pipeline import THREADS, build
from flows.request import Outcome, Request
from flows.run_labels import show_begun, show_waiting
from flows.runs import announce

DEPLOYMENT = "zoo/machine"
QUEUE = "machines"
TAG = "machine"
"""Of the flow runs that build a model on a machine."""

HEARTBEAT_SECONDS = 30
"""Prefect's shortest."""

LOST_SECONDS = 120
"""Without a heartbeat, after which a machine is given up. The environment variable ACTIONZOO_LOST_SECONDS replaces it
for the flow run that gives models away."""

_DATA_NAME = "data.name of params.yaml"
_POLL_SECONDS = 2.0
_SERVER_AWAY_SECONDS = 900.0
"""How long the flow run waits for a Prefect server that does not answer."""


@flow(name="zoo", task_runner=THREADS)  # type: ignore[arg-type]  # Prefect's TaskRunner is invariant in its future
def build_here(targets: list[str], project: dict[str, str] | None = None, force: bool = False) -> State[Any]:
    """Build stages on the machine whose worker took this flow run, and share them.

    Args:
        targets: names of stages, built with what they need unless another machine has built it.
        project: what the machine's checkout has to agree with, from the flow run that gives models away.
        force: build the targets even if they are up to date.
    """
    logger = get_run_logger()
    announce()
    logger.info(f"on {os.uname().nodename}, in {Path.cwd()}")
    try:
        with data_set.held(Path.cwd(), (project or {}).get(_DATA_NAME), show_waiting) as data:
            show_begun(data, [])
            return _build_here(targets, project or {}, force, logger.info)
    except UserError as error:
        return Failed(message=str(error))


def _build_here(
    targets: list[str], project: Mapping[str, str], force: bool, log: Callable[[str], object]
) -> State[Any]:
    root, stages = read_graph(targets)
    check_project(root, project)
    if not share.has_remote(root):
        raise UserError(f"{root} has no default DVC remote, through which machines share; {ADD_REMOTE}")
    anew = share.lacking_data(root, [stage.name for stage in stages])
    os.environ[SHARES] = "1"
    with _ends_with_its_flow_run():
        state = build(Request(targets=tuple(targets), force=force, shares=True, anew=tuple(anew)))
        if not state.is_completed():
            return state
        # also what was up to date: another machine may have pushed none of it
        if not share.push(root, [stage.name for stage in stages], threading.Event(), log):
            return Failed(
                message=f"built on {os.uname().nodename}, but not in DVC's remote yet; make the remote reachable from "
                "there and start again: the machine pushes it and repeats nothing"
            )
        return state


ADD_REMOTE = "add one that all machines reach, such as `dvc remote add --default team ssh://host/zoo`"


def build_on_machines(request: Request, *, restarts: int = 3) -> State[Any]:
    """Build what a request asks for, each model on the next free machine; returns the final state of the flow run
    inside which it is called. The flow needs the task runner THREADS.

    A model whose machine dies is given to another one, at most `restarts` times.
    """
    logger = get_run_logger()
    stop = threading.Event()
    try:
        root, stages = read_graph(request.targets)
        models = stages_of_models(stages)
        if request.folder or not models or request.dry_run:
            return build(request)
        if not share.has_remote(root):
            raise UserError(f"{root} has no default DVC remote, through which machines share; {ADD_REMOTE}")
        needed = [stage.name for stage in stages if stage.name in _needed(stages, models)]
        share.push_kept_back(root, stop, logger.info)
        known = set() if request.force else set(share.fetch(root, needed, stop, logger.info, commit=True))
        given = {model: names for model, names in models.items() if not known.issuperset(names)}
        for model in models.keys() - given.keys():
            logger.info(f"{model}: every stage was built before, and fetched")
        failures = _give_away(given, project_of(root), request.force, restarts, logger.info)
        known |= set(share.fetch(root, needed, stop, logger.info, commit=True))
    except UserError as error:
        return Failed(message=str(error))
    lost = _outcomes(models, failures, known)
    missing = {outcome.stage for outcome in lost}
    targets = tuple(stage.name for stage in stages if not missing & _needed(stages, {"": [stage.name]}))
    lost += [Outcome(stage.name, "not run") for stage in stages if stage.name not in {*targets, *missing}]
    if not targets:
        return Failed(message="\n".join(outcome.message for outcome in lost if outcome.message))
    return build(Request(targets, gpus=request.gpus, cpu_slots=request.cpu_slots, dask=request.dask), lost)


def stages_of_models(stages: Sequence[Stage]) -> dict[str, list[str]]:
    """Model -> its stages among `stages`, in their order. A model is what stands after the @ in the name of a stage
    that uses GPUs."""
    models = dict.fromkeys(key for stage in stages if stage.gpus and (key := stage.name.partition("@")[2]))
    return {key: [stage.name for stage in stages if stage.name.partition("@")[2] == key] for key in models}


def _needed(stages: Sequence[Stage], models: Mapping[str, Sequence[str]]) -> set[str]:
    """Names of the models' stages and of all that they need."""
    by_name = {stage.name: stage for stage in stages}
    found: set[str] = set()
    unseen = [name for names in models.values() for name in names]
    while unseen:
        name = unseen.pop()
        if name not in found:
            found.add(name)
            unseen += by_name[name].needs
    return found


def _outcomes(models: Mapping[str, Sequence[str]], failures: Mapping[str, str], known: set[str]) -> list[Outcome]:
    """Outcomes of the stages that no machine built, or that did not come back."""
    lost: list[Outcome] = []
    for model, names in models.items():
        missing = [name for name in names if name not in known]
        reason = failures.get(model, "a machine built it, but it is not in DVC's remote; start again")
        lost += [Outcome(name, "failed", message=reason) for name in missing[:1]]
        lost += [Outcome(name, "not run") for name in missing[1:]]
    return lost


def project_of(root: Path) -> dict[str, str]:
    """What the checkouts of all machines must have in common, by name: hashes of files and of sections of params.yaml.

    How a machine runs its work may differ: `runtime`, but for the number of processes, and `data.root`.
    """
    found = {}
    for name in ("dvc.yaml", "published.yaml"):
        if (root / name).is_file():
            found[name] = _hash((root / name).read_text(encoding="utf-8"))
    if (root / "params.yaml").is_file():
        params = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
        for section in ("recipes", "datasets", "prepare"):
            found[f"{section} of params.yaml"] = _hash(params.get(section))
        found[_DATA_NAME] = str(params.get("data", {}).get("name"))
        found["runtime.gpus of params.yaml"] = str(params.get("runtime", {}).get("gpus"))
    return found


def check_project(root: Path, expected: Mapping[str, str]) -> None:
    """Raise UserError if the checkout at `root` does not agree with `expected`."""
    here = project_of(root)
    if other := [name for name, value in expected.items() if here.get(name) != value]:
        raise UserError(
            f"{', '.join(other)} in {root} on {os.uname().nodename} differ from those of the flow run that gives "
            "models away; bring both to the same commit (`git pull`), with the same changes, and start again"
        )


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass
class _Given:
    """A model that was given away."""

    model: str
    targets: list[str]
    run: FlowRun
    starts: int = 1
    shown: str = field(default="")
    """The state that was logged last."""


def _give_away(
    models: Mapping[str, list[str]], project: Mapping[str, str], force: bool, restarts: int, log: Any
) -> dict[str, str]:
    """Have all models built; returns the reason for each that was not. Cancels what still runs if it is interrupted."""
    failures: dict[str, str] = {}
    with get_client(sync_client=True) as client:
        deployment = _deployment_id(client)
        watch(client, deployment)
        given = [_give(client, deployment, model, names, project, force) for model, names in models.items()]
        try:
            _warn_of_an_unpolled_queue(client, log)
            while given:
                time.sleep(_POLL_SECONDS)
                _read(client, given)
                for one in list(given):
                    state = one.run.state
                    if state is None or state.name == one.shown:
                        continue
                    one.shown = state.name or ""
                    log(f"{one.model}, flow run {one.run.name}: {state.name}")
                    if not state.is_final():
                        continue
                    if state.is_crashed() and one.starts <= restarts:
                        log(f"{one.model} goes to another machine: {state.message}")
                        one.run = _start(one.model, one.targets, project, force, one.starts + 1)
                        one.starts += 1
                        continue
                    given.remove(one)
                    if not state.is_completed():
                        failures[one.model] = f"flow run {one.run.name} ended as {state.name}: {state.message}"
        except BaseException:
            _cancel(client, [one.run for one in given])
            raise
    return failures


def _deployment_id(client: SyncPrefectClient) -> UUID:
    try:
        return client.read_deployment_by_name(DEPLOYMENT).id
    except ObjectNotFound:
        raise UserError(
            f"the Prefect server has no deployment {DEPLOYMENT}; run `prefect --no-prompt deploy --all`, or start "
            "`python -m flows.local` again"
        ) from None


def _give(
    client: SyncPrefectClient,
    deployment: UUID,
    model: str,
    targets: list[str],
    project: Mapping[str, str],
    force: bool,
) -> _Given:
    """Start a flow run for a model, or take over one that an interrupted flow run has started."""
    active = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING]
    for run in client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[deployment]),
            tags=FlowRunFilterTags(all_=[TAG, f"model:{model}"]),
        )
    ):
        if run.state and run.state.type in active and run.parameters.get("project") == project:
            return _Given(model, targets, run)
    return _Given(model, targets, _start(model, targets, project, force, 1))


def _start(model: str, targets: list[str], project: Mapping[str, str], force: bool, start: int) -> FlowRun:
    run = run_deployment(
        DEPLOYMENT,
        parameters={"targets": targets, "project": dict(project), "force": force},
        flow_run_name=model if start == 1 else f"{model} · start {start}",
        tags=[TAG, f"model:{model}"],
        timeout=0,
        as_subflow=True,
    )
    assert isinstance(run, FlowRun)
    return run


def _read(client: SyncPrefectClient, given: Iterable[_Given]) -> None:
    """Read the states of flow runs. A server that restarts is waited for; raises UserError if it stays away."""
    deadline = time.monotonic() + _SERVER_AWAY_SECONDS
    ids = [one.run.id for one in given]
    while True:
        try:
            runs = {
                run.id: run
                for start in range(0, len(ids), 100)
                for run in client.read_flow_runs(
                    flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=ids[start : start + 100]))
                )
            }
            break
        except httpx.HTTPError as error:
            if time.monotonic() > deadline:
                raise UserError(f"the Prefect server does not answer ({type(error).__name__}); start again") from None
            time.sleep(5)
    for one in given:
        one.run = runs.get(one.run.id, one.run)


def _cancel(client: SyncPrefectClient, runs: Iterable[FlowRun]) -> None:
    for run in runs:
        if run.state is None or not run.state.is_final():
            client.set_flow_run_state(run.id, Cancelling(message="the flow run that gave it away was stopped"))


def _warn_of_an_unpolled_queue(client: SyncPrefectClient, log: Any) -> None:
    try:
        status = client.read_work_queue_status(_queue_id(client))
    except ObjectNotFound:
        return
    polled = status.last_polled
    if polled is None or datetime.datetime.now(datetime.UTC) - polled > datetime.timedelta(minutes=1):
        log(f"no worker polls the queue {QUEUE}: start `python -m flows.worker` on each machine")


def _queue_id(client: SyncPrefectClient) -> UUID:
    deployment = client.read_deployment_by_name(DEPLOYMENT)
    return client.read_work_queue_by_name(
        deployment.work_queue_name or QUEUE, work_pool_name=deployment.work_pool_name
    ).id


def check_pool(pool: str) -> None:
    """Raise UserError if the Prefect server cannot be used or has no such work pool."""
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
            max(600.0, seconds),
            "a worker took it and did not start it",
        ),
    }
    for name, (after, expect, within, message) in rules.items():
        rule = AutomationCore(
            name=name,
            description="Made by actionzoo (flows/machines.py).",
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


class _ends_with_its_flow_run:  # used like a function
    """End this process, in order, if its flow run is declared dead: another machine has its work by then.

    That happens when the machine could not reach the server for some minutes.
    """

    def __init__(self) -> None:
        self._done = threading.Event()
        self._id = UUID(str(flow_run.id))
        self._thread = threading.Thread(target=self._watch, name="declared-dead", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()

    def _watch(self) -> None:
        with get_client(sync_client=True) as client:
            while not self._done.wait(HEARTBEAT_SECONDS):
                try:
                    state = client.read_flow_run(self._id).state
                except (httpx.HTTPError, ObjectNotFound):
                    continue
                if state is not None and state.is_final() and not self._done.is_set():
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
