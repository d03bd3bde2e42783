"""Build the zoo: run each stage of the DVC graph as soon as its dependencies are built and a device is free.

    python -m flows.pipeline                     everything
    python -m flows.pipeline evaluate@<model>    one model, with the stages it needs
    python -m flows.pipeline --dask tcp://...    a Dask cluster prepares the data
    prefect deployment run zoo/all               the same on a Prefect server (`python -m flows.local` starts one)

DVC decides what is up to date: the flow builds a stage with `dvc repro -s`, and only if `dvc status` reports a change.
So the flow has nothing to resume and no retries: start it again, and it continues where it ended. Several flows may run
at the same time; if one is building a stage, the others wait for it.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture, wait
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import opaque

from actionzoo.errors import UserError
from actionzoo.files.addresses import without_secrets
from actionzoo.process.stage import repair_rwlock
from actionzoo.process.supervisor import GRACE_SECONDS, supervised
from flows import cluster, command, page, share, slots
from flows.command import Stopped
from flows.graph import Stage, is_target, locked_stages, read_graph, sort_lock
from flows.keys import new_key
from flows.request import CPU_SLOTS, Machine, What
from flows.request import Outcome as Outcome
from flows.request import Request as Request
from flows.server import client_settings, free_port, local_server

PREFECT_KEYS = ("PREFECT_API_AUTH_STRING", "PREFECT_API_KEY", "PREFECT_SERVER_API_AUTH_STRING")  # hidden from stages

THREADS: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=1000)  # a stage that waits occupies a thread


@flow(name="zoo", task_runner=THREADS)  # type: ignore[arg-type]  # Prefect's TaskRunner is invariant in its future
def build_zoo(
    targets: list[str] | None = None,
    gpus: list[int | str] | None = None,
    cpu_slots: int = CPU_SLOTS,
    dask: str | None = None,
) -> State[Any]:
    """Build DVC stages in the order of the graph, as many at once as there are devices.

    Args:
        targets: names of stages or groups (`train` is every `train@...`), built with what they need; all if not set.
        gpus: the GPUs to use, as CUDA_VISIBLE_DEVICES names them; all visible ones if not set, none if empty.
        cpu_slots: how many stages that use no GPU run at once.
        dask: address of a Dask scheduler whose workers prepare the data (tcp://10.0.0.1:8786), or `local` for workers
            on this machine; if not set, the stages prepare the data themselves.
    """
    names = None if gpus is None else tuple(map(str, gpus))
    return build(Request(targets=tuple(targets or ()), gpus=names, cpu_slots=cpu_slots, dask=dask))


def build(request: Request, elsewhere: Sequence[Outcome] = ()) -> State[Any]:
    """Build what a request asks for; returns the final state of the flow run inside which it is called. The flow needs
    the task runner THREADS. `elsewhere` is what became of other stages on other machines."""
    logger = get_run_logger()
    with ExitStack() as running:
        try:
            root, stages = read_graph(request.targets, request.folder)
            before = locked_stages(root)
            machine = _machine(root, request, running.enter_context(cluster.joined(request.dask)))
        except UserError as error:
            return Failed(message=str(error))
        devices = f"GPUs {', '.join(machine.gpus)}" if machine.gpus else "no GPU"
        workers = f", Dask at {machine.cluster['DASK_SCHEDULER_ADDRESS']}" if machine.cluster else ""
        logger.info(f"{len(stages)} stages; {devices}, {machine.cpu_slots} CPU slots{workers}")

        futures: dict[str, PrefectFuture[State[Any]]] = {}
        try:
            for stage in stages:
                futures[stage.name] = build_stage.submit(
                    stage.name,
                    opaque(stage),
                    opaque(machine),
                    opaque(request),
                    wait_for=[futures[name] for name in stage.needs],
                    return_state=False,
                )
            wait(list(futures.values()))
        except BaseException:  # a cancel or Ctrl-C: stages that wait must not start in the slots that become free
            machine.stop.set()
            raise
        finally:
            if not request.dry_run:
                sort_lock(root, before, stages)
        outcomes = [*(_outcome(name, future.state) for name, future in futures.items()), *elsewhere]
        page.publish(outcomes, request, machine)
        return _conclude(outcomes)


@task(name="stage", task_run_name="{name}", cache_policy=NO_CACHE, retries=0)  # no timeout: Prefect's kills no process
def build_stage(name: str, stage: Stage, machine: Machine, request: Request) -> State[Any]:
    """Bring one stage up to date; the stages that it needs are."""
    logger = get_run_logger()
    folder = machine.root / ".dvc" / "tmp" / "slots"
    begun = time.monotonic()
    try:
        with slots.acquire(
            folder, "stage", [name], 1, machine.stop, lambda: logger.info(f"{name} waits: another flow is building it")
        ) as own:
            forced = name in request.anew or (request.force and is_target(name, request.targets))
            changes = _changes(name, machine)
            if not changes and not forced:
                logger.info(f"{name} is up to date")
                return Completed(name="up to date")
            logger.info(f"{name} has changed: {changes}" if changes else f"{name} is built again, as asked for")
            if request.dry_run:
                return Completed(name="would be built")
            share.before(stage, machine)
            with _devices(stage, machine, folder) as devices:
                begun = time.monotonic()
                lines: list[str] = []

                def on_line(line: str) -> None:
                    if line:
                        shown = without_secrets(line)
                        logger.info(shown)
                        lines.append(shown)

                words = ["repro", *(["-f"] if forced else []), "-s", name]
                status = _dvc(words, machine, on_line, devices.gpus, [*own.locks, *devices.locks])
    except Stopped:
        return Cancelled(name="stopped", message="stopped before it was finished")
    except UserError as error:
        return Failed(name="failed", message=str(error), data=time.monotonic() - begun)
    seconds = time.monotonic() - begun
    if status:
        return Failed(name="failed", message=" / ".join(lines[-2:]) or f"dvc ended with status {status}", data=seconds)
    share.after(stage, machine)
    return Completed(name="built", message=f"built in {seconds:.0f} s", data=seconds)


def _machine(root: Path, request: Request, cluster: Mapping[str, str]) -> Machine:
    if request.cpu_slots < 1:
        raise UserError(f"cpu_slots is {request.cpu_slots}; it must be at least 1")
    gpus = request.gpus
    if gpus and (unknown := sorted(set(gpus) - set(slots.visible_gpus()))):
        seen = ", ".join(slots.visible_gpus()) or "none"
        raise UserError(f"gpus names {', '.join(unknown)}, but this machine shows {seen}; leave it out to use all")
    names = tuple(slots.visible_gpus() if gpus is None else dict.fromkeys(gpus))
    return Machine(
        root, names, request.cpu_slots, bool(names) or gpus is not None, threading.Event(), cluster, request.shares
    )


@dataclass(frozen=True)
class Devices:
    """Devices that a stage holds."""

    gpus: list[str] | None
    """The GPUs that the stage may see; None for no restriction."""
    locks: list[int]
    """See `slots.Acquired.locks`."""


@contextmanager
def _devices(stage: Stage, machine: Machine, folder: Path) -> Iterator[Devices]:
    """Wait for the devices that the stage needs, and hold them until the block ends."""
    logger = get_run_logger()
    uses_gpus = bool(stage.gpus and machine.gpus)
    kind = "gpu" if uses_gpus else "cpu"
    names = machine.gpus if uses_gpus else [str(number) for number in range(machine.cpu_slots)]
    count = min(stage.gpus, len(names)) if uses_gpus else 1
    if uses_gpus and count < stage.gpus:
        logger.warning(f"{stage.name} asks for {stage.gpus} GPUs, but there are {count}: it gets all of them")
    with slots.acquire(
        folder, kind, names, count, machine.stop, lambda: logger.info(f"{stage.name} waits for {count} {kind}")
    ) as acquired:
        logger.info(f"{stage.name} gets {kind} {', '.join(acquired.names)}")
        if uses_gpus:
            yield Devices(acquired.names, acquired.locks)
        else:
            yield Devices([] if machine.hides_gpus else None, acquired.locks)


def _changes(name: str, machine: Machine) -> str:
    """The changes of a stage, in the words of `dvc status`; empty if it is up to date."""
    lines: list[str] = []
    status = _dvc(["status", "--json", name], machine, lines.append)
    found = [line for line in lines if line.startswith("{")]
    if status or not found:
        raise UserError(without_secrets(f"dvc status {name} ended with status {status}: {' '.join(lines)}"))
    return without_secrets(", ".join(json.dumps(change) for change in json.loads(found[-1]).get(name, [])))


def _dvc(
    arguments: list[str],
    machine: Machine,
    on_line: Callable[[str], object],
    gpus: list[str] | None = None,
    locks: Sequence[int] = (),
) -> int:
    """Run DVC and return its exit status. `gpus`: those that its stage may see; None for no restriction."""
    environment = {
        **{name: value for name, value in os.environ.items() if name not in PREFECT_KEYS},
        **machine.cluster,
        "PATH": cluster.stage_path(),
        "PYTHONUNBUFFERED": "1",  # else lines are seen long after they were printed
        "ACTIONZOO_FLOW_RUN_ID": flow_run.id or "",
        "ACTIONZOO_FLOW_RUN_NAME": flow_run.name or "",
    }
    if gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # the order in which nvidia-smi numbers them
    # The flag stands before the command. Without it, DVC gives up if another stage holds its lock for three seconds.
    words = [sys.executable, "-m", "dvc", "--wait-for-lock", *arguments]
    repair_rwlock(machine.root)
    return command.run(words, cwd=machine.root, env=environment, on_line=on_line, stop=machine.stop, locks=locks)


def _outcome(name: str, state: State[Any]) -> Outcome:
    what: What
    match state.name:
        case "built" | "up to date" | "failed" | "stopped" | "would be built" as what:
            pass
        case _:
            what = "failed" if state.is_failed() or state.is_crashed() else "not run"
    seconds = state.result(raise_on_failure=False) if what in ("built", "failed") else None
    message = state.message or "" if what == "failed" else ""
    return Outcome(name, what, seconds if isinstance(seconds, float) else None, message=message)


def _conclude(outcomes: Sequence[Outcome]) -> State[Any]:
    """The flow's final state: failed if a stage failed."""

    def named(what: What) -> list[str]:
        return [outcome.stage for outcome in outcomes if outcome.what == what]

    if failed := [outcome for outcome in outcomes if outcome.what == "failed"]:
        reasons = "".join(f"\n  {outcome.stage}: {outcome.message}" for outcome in failed)
        missed = f"\n  not run, because they need these: {', '.join(named('not run'))}" if named("not run") else ""
        return Failed(
            message=f"{len(failed)} of {len(outcomes)} stages failed; remove the cause and start again: "
            f"finished stages are not repeated.{reasons}{missed}"
        )
    if would := named("would be built"):
        return Completed(message=f"{len(would)} stages would be built: {', '.join(would)}")
    return Completed(message=f"{len(named('built'))} stages built, {len(named('up to date'))} were up to date")


def main() -> None:
    import argparse

    parser = argparse.ArgumentParser(
        prog="python -m flows.pipeline",
        description="Build the zoo, or parts of it, on this machine: DVC stages as Prefect tasks. Reports to the "
        "server in PREFECT_API_URL; without it, to one that runs as long as the flow.",
        epilog="example: python -m flows.pipeline evaluate@slowfast_r50_video_4x16x1_256e_kinetics400_rgb --gpus 0,1",
    )
    parser.add_argument(
        "targets", nargs="*", help="stages or groups of stages to build, with all that they need; default: all"
    )
    parser.add_argument("--gpus", metavar="N,N", help='GPUs to use, by number or UUID; default: all; "" for none')
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
    gpus = None
    if arguments.gpus is not None:
        gpus = [name.strip() for name in arguments.gpus.split(",") if name.strip()]
    try:
        read_graph(arguments.targets)  # report a misspelt name before starting a server
        cluster.check_address(arguments.dask)
    except UserError as error:
        sys.exit(str(error))

    if not PREFECT_API_URL.value():
        sys.exit(_run_with_server())
    if problem := _server_problem():
        sys.exit(problem)

    # Prefect handles SIGTERM, then raises it again for the previous handler: exit in order, so that logs are sent.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        state = build_zoo(arguments.targets or None, gpus, arguments.cpu_slots, arguments.dask, return_state=True)
    except KeyboardInterrupt:
        sys.exit("stopped; start again to continue: finished stages are not repeated.")
    print(state.message)
    sys.exit(0 if state.is_completed() else 1)


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


def _run_with_server() -> int | str:
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
                supervised([sys.executable, "-m", "flows.pipeline", *sys.argv[1:]], GRACE_SECONDS + 5),
                env=os.environ | client_settings(port, key),
            )
            return child.wait()
    except UserError as error:
        return str(error)


if __name__ == "__main__":
    main()
