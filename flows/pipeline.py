"""Build the zoo: run each stage of the DVC graph as soon as its dependencies are built and a device is free.

    python -m flows.pipeline                     everything
    python -m flows.pipeline evaluate@<model>    one model, with the stages it needs
    python -m flows.pipeline --dask tcp://...    a Dask cluster prepares the data
    prefect deployment run zoo/row               the same on a Prefect server (`python -m flows.local` starts one)

DVC decides what is up to date: the flow builds a stage with `dvc repro -s`, and only if `dvc status` reports a change.
So the flow has nothing to resume and no retries: start it again, and it continues where it ended. Several flows may run
at the same time; if one is building a stage, the others wait for it.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.events.worker import EventsWorker
from prefect.exceptions import TerminationSignal
from prefect.futures import PrefectFuture, wait
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import opaque

from actionzoo.errors import UserError
from actionzoo.files.addresses import without_secrets
from actionzoo.names import did_you_mean
from actionzoo.params import load_params
from actionzoo.process.supervisor import supervised
from flows import cluster, data_set, page
from flows.choices import STEPS, DataSet, chosen_models, targets_of
from flows.graph import Stage, ask_dvc, is_target, locked_stages, read_graph, sort_lock
from flows.request import CPU_SLOTS, Machine, What
from flows.request import Outcome as Outcome
from flows.request import Request as Request
from flows.run_labels import name_by_targets, show_begun, show_running, show_waiting
from flows.server.keys import new_key
from flows.server.process import client_settings, free_port, local_server
from flows.server.runs import announce
from flows.stage import slots
from flows.stage.dvc_lock import waits_for
from flows.stage.gpus import Gpus, visible_gpus
from flows.stage.grace import WORKERS_PATIENCE_SECONDS, grace_seconds, is_run_by_worker
from flows.stage.stage_run import Beginning, Places, StageRun

SEND_SECONDS = 5.0
STOPPED = "stopped; start again to continue: finished stages are not repeated."
THREADS: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=1000)  # a stage that waits occupies a thread


# Prefect's TaskRunner is invariant in its future
@flow(name="zoo", flow_run_name=name_by_targets, task_runner=THREADS)  # type: ignore[arg-type]
def build_zoo(
    targets: list[str] | None = None,
    gpus: list[int | str] | None = None,
    cpu_slots: int = CPU_SLOTS,
    dask: str | None = None,
    data: DataSet = None,
    force: bool = False,
    dry_run: bool = False,
) -> State[Any]:  # more than six parameters: they are the fields of its form
    """Build DVC stages in the order of the graph, as many at once as there are devices.

    Args:
        targets: names of stages or groups (`train` is every `train@...`), built with what they need; all if not set.
        gpus: the GPUs to use, as CUDA_VISIBLE_DEVICES names them; all visible ones if not set, none if empty.
        cpu_slots: how many stages that use no GPU run at once.
        dask: address of a Dask scheduler whose workers prepare the data (tcp://10.0.0.1:8786), or `local` for workers
            on this machine; if not set, the stages prepare the data themselves.
        data: another data set than params.yaml names (data.name): it is written there as soon as no other run builds.
        force: build the targets, though not what they need, even if they are up to date.
        dry_run: say what would be built, and start nothing.
    """
    names = None if gpus is None else tuple(map(str, gpus))
    request = Request(tuple(targets or ()), force, dry_run, names, cpu_slots, dask)
    announce()
    try:
        with data_set.held(Path.cwd(), data, show_waiting, put_back=dry_run) as name:
            show_begun(name, [key for _, _, key in (target.partition("@") for target in request.targets) if key])
            return build(request)
    except UserError as error:
        return Failed(message=str(error))


def build(request: Request, elsewhere: Sequence[Outcome] = ()) -> State[Any]:
    """Build what a request asks for; returns the final state of the flow run inside which it is called. The flow needs
    the task runner THREADS. `elsewhere` is what became of stages on other machines.

    Ctrl-C and SIGTERM end it as cancelled. In a worker's process they are raised again: Prefect knows what they mean.
    """
    try:
        with ExitStack() as running:
            return _build(request, elsewhere, running)
    except UserError as error:
        return Failed(message=str(error))
    except (KeyboardInterrupt, TerminationSignal):
        EventsWorker.drain_all(timeout=SEND_SECONDS)  # states of task runs: the signal may end this process at once
        APILogWorker.drain_all(timeout=SEND_SECONDS)
        if is_run_by_worker():
            raise
        return Cancelled(message=STOPPED)


def _build(request: Request, elsewhere: Sequence[Outcome], running: ExitStack) -> State[Any]:
    """Each stage is a task that waits for those that it needs, and is pending until its command has devices."""
    root, stages, changes = ask_dvc(request.targets, request.folder, lambda holder: show_waiting(waits_for(holder)))
    show_running()
    before = locked_stages(root)
    machine = _machine(root, request, running.enter_context(cluster.joined(None if request.dry_run else request.dask)))
    if request.dry_run:
        return _end(_would_build(stages, changes, request), request, machine)
    devices = f"GPUs {', '.join(machine.gpus)}" if machine.gpus else "no GPU"
    workers = f", Dask at {machine.cluster['DASK_SCHEDULER_ADDRESS']}" if machine.cluster else ""
    get_run_logger().info(f"{len(stages)} stages; {devices}, {machine.cpu_slots} CPU slots{workers}")

    runs: dict[str, StageRun] = {}
    futures: dict[str, PrefectFuture[State[Any]]] = {}
    places = Places(machine)
    try:
        for stage in stages:
            needed = [runs[name] for name in stage.needs]
            forced = _is_forced(stage, request)
            runs[stage.name] = StageRun(stage, machine, places, needed, changes=changes[stage.name], forced=forced)
            named = build_stage.with_options(name=stage.name)  # for the page, until the task run begins
            futures[stage.name] = named.submit(
                stage.name,
                opaque(runs[stage.name]),
                wait_for=[*(futures[name] for name in stage.needs), Beginning(runs[stage.name])],
                return_state=False,
            )
        wait(list(futures.values()))
    except BaseException:  # a cancel or Ctrl-C: stages that wait must not start in the slots that become free
        machine.stop.set()
        wait(list(futures.values()))
        raise
    finally:
        sort_lock(root, before, stages)
    outcomes = [run.outcome or Outcome(name, "not run") for name, run in runs.items()]
    return _end([*outcomes, *elsewhere], request, machine)


def _end(outcomes: Sequence[Outcome], request: Request, machine: Machine) -> State[Any]:
    """Publish what became of the stages; returns the flow's final state."""
    page.publish(outcomes, request, machine)
    return _conclude(outcomes)


@task(name="stage", task_run_name="{name}", cache_policy=NO_CACHE, retries=0)  # no timeout: Prefect's kills no process
def build_stage(name: str, run: StageRun) -> State[Any]:
    """Bring one stage up to date; the stages that it needs are. `run` has begun, before this was called."""
    outcome = run.finish()
    match outcome.what:
        case "failed":
            return Failed(name="failed", message=outcome.message)
        case "stopped":
            return Cancelled(name="stopped", message="stopped before it was finished")
    seconds = "" if outcome.seconds is None else f" in {outcome.seconds:.0f} s"
    return Completed(name=outcome.what, message=f"{outcome.what}{seconds}", data=True)  # Prefect looks for one


def _machine(root: Path, request: Request, cluster: Mapping[str, str]) -> Machine:
    if request.cpu_slots < 1:
        raise UserError(f"cpu_slots is {request.cpu_slots}; it must be at least 1")
    gpus = Gpus(()) if request.gpus == () else visible_gpus().chosen(request.gpus)
    return Machine(
        root,
        gpus,
        hides_gpus=bool(gpus.found) or request.gpus is not None,
        cpu_slots=request.cpu_slots,
        slots=slots.machine_folder(),
        grace_seconds=grace_seconds(root),
        patience_seconds=WORKERS_PATIENCE_SECONDS if is_run_by_worker() else None,
        stop=threading.Event(),
        cluster=cluster,
        shares=request.shares,
        beside=request.beside,
    )


def _would_build(stages: Sequence[Stage], changes: Mapping[str, str | None], request: Request) -> list[Outcome]:
    """The outcomes of a dry run. Stages below those that would be built may turn out to be up to date."""
    outcomes: dict[str, Outcome] = {}
    for stage in stages:
        would = (
            changes[stage.name] is not None
            or _is_forced(stage, request)
            or any(outcomes[name].what == "would be built" for name in stage.needs)
        )
        outcomes[stage.name] = Outcome(stage.name, "would be built" if would else "up to date")
    return list(outcomes.values())


def _is_forced(stage: Stage, request: Request) -> bool:
    return stage.name in request.anew or (request.force and is_target(stage.name, request.targets))


def _conclude(outcomes: Sequence[Outcome]) -> State[Any]:
    """The flow's final state: failed if a stage failed."""

    def named(what: What) -> list[str]:
        return [outcome.stage for outcome in outcomes if outcome.what == what]

    if failed := [outcome for outcome in outcomes if outcome.what == "failed"]:
        messages = {outcome.stage: outcome.message.replace("\n", "\n    ") for outcome in failed}
        reasons = "".join(f"\n  {stage}: {message}" for stage, message in messages.items())
        missed = f"\n  not run, because they need these: {', '.join(named('not run'))}" if named("not run") else ""
        return Failed(
            message=f"{len(failed)} of {len(outcomes)} stages failed; remove the cause and start again: "
            f"finished stages are not repeated.{reasons}{missed}"
        )
    if would := named("would be built"):
        return Completed(message=f"{len(would)} stages would be built: {', '.join(would)}")
    built, restored, rest = (len(named(what)) for what in ("built", "restored", "up to date"))
    cached = f"{restored} restored from DVC's run cache, " if restored else ""
    return Completed(message=f"{built} stages built, {cached}{rest} were up to date")


def main() -> None:
    import argparse

    parser = argparse.ArgumentParser(
        prog="python -m flows.pipeline",
        description="Build the zoo, or parts of it, on this machine: DVC stages as Prefect tasks. Reports to the "
        "server in PREFECT_API_URL; without it, to one that runs as long as the flow.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  python -m flows.pipeline                                                 everything
  python -m flows.pipeline train --models 'slowfast_*' --gpus 0,1          trainings of a family
  python -m flows.pipeline --models slowfast_r50_video --dry-run           what would be built for a model
  python -m flows.pipeline evaluate --models r50_video --data kinetics400  on another data set
  python -m flows.pipeline evaluate@slowfast_r50_video_4x16x1_256e_kinetics400_rgb""",
    )
    parser.add_argument(
        "targets", nargs="*", help="stages or groups of stages to build, with all that they need; default: all"
    )
    parser.add_argument(
        "--models",
        type=_words,
        metavar="NAME,NAME",
        help="models by name, part of a name or pattern; TARGETS are then steps: " + ", ".join(STEPS),
    )
    parser.add_argument("--data", metavar="NAME", help="data set, written to params.yaml; default: the one named there")
    parser.add_argument("--force", action="store_true", help="build the targets even if they are up to date")
    parser.add_argument("--dry-run", action="store_true", help="say what would be built, and start nothing")
    parser.add_argument(
        "--gpus", type=_words, metavar="N,N", help='GPUs to use, by number or UUID; default: all; "" for none'
    )
    parser.add_argument(
        "--cpu-slots", type=int, default=CPU_SLOTS, metavar="N", help="stages without a GPU at once (%(default)s)"
    )
    parser.add_argument(
        "--dask",
        metavar="ADDRESS",
        help="address of a Dask scheduler whose workers prepare the data (tcp://10.0.0.1:8786), or `local` for workers "
        "on this machine; default: the stages prepare the data themselves",
    )
    arguments = parser.parse_args()
    try:  # report a misspelt name before starting a server
        targets = _targets(arguments.targets, arguments.models)
        if arguments.data is not None:
            data_set.check(Path("params.yaml"), arguments.data)
        root, _ = read_graph(targets)
        grace = grace_seconds(root)
        cluster.check_address(arguments.dask)
    except UserError as error:
        sys.exit(str(error))

    if not PREFECT_API_URL.value():
        sys.exit(_run_with_server(grace))
    if problem := _server_problem():
        sys.exit(problem)

    received: list[int] = []

    def interrupt(number: int, _frame: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)  # while the flow runs, Prefect handles it
    try:
        state = build_zoo(
            targets or None,
            arguments.gpus,
            arguments.cpu_slots,
            arguments.dask,
            arguments.data,
            arguments.force,
            arguments.dry_run,
            return_state=True,
        )
    except KeyboardInterrupt:
        print(STOPPED)
        sys.exit(128 + received[-1])
    print(state.message)
    if state.is_cancelled():
        sys.exit(128 + (received[-1] if received else signal.SIGTERM))
    sys.exit(0 if state.is_completed() else 1)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _targets(targets: list[str], models: list[str] | None) -> list[str]:
    """The targets as they are, or those of the models if there are some. Raises UserError."""
    if not models:
        return targets
    if wrong := [target for target in targets if target not in STEPS]:
        raise UserError(
            f"{wrong[0]} is no step for --models{did_you_mean(wrong[0], STEPS)}; there are {', '.join(STEPS)}"
        )
    params = load_params(Path("params.yaml"))
    return list(targets_of(params, chosen_models(params, models), [step for step in STEPS if step in targets]))


def _server_problem() -> str | None:
    """Why the server in PREFECT_API_URL cannot be used; None if it can."""
    address = without_secrets(PREFECT_API_URL.value())
    try:
        with get_client(sync_client=True) as client:
            client.read_flows(limit=1)
    except httpx.HTTPStatusError as error:
        if error.response.status_code in (401, 403):
            return (
                f"the Prefect server at {address} refuses our key: set PREFECT_API_AUTH_STRING to its own, as "
                f"docs/prefect.md describes, or unset PREFECT_API_URL to build without a server."
            )
        return f"the Prefect server at {address} answers with status {error.response.status_code}; see its log."
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError) as error:
        return (
            f"no Prefect server answers at {address} ({type(error).__name__}); unset PREFECT_API_URL to build without "
            "one, or start one with `python -m flows.local`."
        )
    return None


def _run_with_server(grace_seconds: float) -> int | str:
    """Run this command again in a child process, with a server that outlives it; returns the exit status or message."""
    port, key = free_port(), new_key()
    child: subprocess.Popen[bytes] | None = None

    def leave(number: int, _frame: object) -> None:
        if child is None:
            sys.exit(128 + number)
        if number == signal.SIGTERM:  # Ctrl-C reaches the child without us
            child.terminate()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    try:
        with local_server(port, key, with_ui=False):
            child = subprocess.Popen(
                supervised([sys.executable, "-m", "flows.pipeline", *sys.argv[1:]], grace_seconds + 5),
                env=os.environ | client_settings(port, key),
            )
            return child.wait()
    except UserError as error:
        return str(error)


if __name__ == "__main__":
    main()
