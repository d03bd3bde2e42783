"""Build the zoo: every stage of the DVC graph as soon as what it needs is there and a device is free for it.

    python -m flows.pipeline                     everything
    python -m flows.pipeline evaluate@<row>      one row, with what it needs
    python -m flows.pipeline --dask tcp://...    the data are prepared by the workers of a Dask scheduler
    prefect deployment run zoo/all               the same on a Prefect server (`python -m flows.local` starts one)

DVC stays the judge of what is done: a stage is built by `dvc repro -s`, and not at all if `dvc status` finds nothing
changed. So there is nothing to resume here, and no retries: start the flow again, and it goes on where it ended. Flows
may run at the same time, beside each other; what one of them is building, the other waits for.
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
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.futures import wait
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Completed, Failed, State
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import opaque

from actionzoo.errors import UserError
from actionzoo.files.addresses import without_secrets
from actionzoo.process.stage import repair_rwlock
from flows import cluster, process, slots
from flows.graph import Stage, read_graph
from flows.keys import new_key
from flows.process import Stopped
from flows.server import client_settings, free_port, local_server

CPU_SLOTS = 2  # stages without a GPU at once; each of them uses several processes of its own
PREFECT_KEYS = ("PREFECT_API_AUTH_STRING", "PREFECT_API_KEY", "PREFECT_SERVER_API_AUTH_STRING")  # not for stages
UP_TO_DATE, BUILT, FAILED, STOPPED, NOT_RUN = "up to date", "built", "failed", "stopped", "not run"


@dataclass(frozen=True)
class Machine:
    """Where stages run, and the devices that they share."""

    root: Path
    """Of the DVC repository."""
    gpus: tuple[str, ...]
    """As CUDA_VISIBLE_DEVICES names them; with none, a stage that asks for GPUs takes a CPU slot."""
    cpu_slots: int
    hides_gpus: bool
    """Whether a stage sees only the GPUs that it took. Not where we found none: there may be a kind we do not know."""
    stop: threading.Event
    cluster: Mapping[str, str] = field(repr=False)
    """Environment variables by which stages find a Dask cluster; they may hold its key."""


@flow(name="zoo", task_runner=ThreadPoolTaskRunner(max_workers=1000))  # a stage that waits holds a thread
def build_zoo(
    targets: list[str] | None = None,
    gpus: list[int] | None = None,
    cpu_slots: int = CPU_SLOTS,
    dask: str | None = None,
) -> State:
    """Build DVC stages, in their order and as many at once as there are devices.

    Args:
        targets: names of stages or of groups (`train` is every `train@...`), built with what they need; all if not set.
        gpus: the GPUs to use, by number; all that this process sees if not set, none if empty.
        cpu_slots: how many stages that use no GPU run at once.
        dask: address of a Dask scheduler whose workers prepare the data (tcp://10.0.0.1:8786), or `local` for workers
            on this machine; if not set, the stages do it themselves.
    """
    logger = get_run_logger()
    with ExitStack() as running:
        try:
            root, stages = read_graph(targets)
            machine = _machine(root, gpus, cpu_slots, running.enter_context(cluster.joined(dask)))
        except UserError as error:
            return Failed(message=str(error))
        devices = f"GPUs {', '.join(machine.gpus)}" if machine.gpus else "no GPU"
        workers = f", Dask at {machine.cluster['DASK_SCHEDULER_ADDRESS']}" if machine.cluster else ""
        logger.info(f"{len(stages)} stages; {devices}, {cpu_slots} CPU slots{workers}")

        futures = {}
        try:
            for stage in stages:
                futures[stage.name] = build_stage.submit(
                    stage.name, opaque(stage), opaque(machine), wait_for=[futures[name] for name in stage.needs]
                )
            wait(list(futures.values()))
        except BaseException:  # a cancel, Ctrl-C: freed slots must not start what was waiting for them
            machine.stop.set()
            raise
        return _conclude({name: future.state for name, future in futures.items()})


@task(name="stage", task_run_name="{name}", cache_policy=NO_CACHE, retries=0)  # and no timeout: it kills no process
def build_stage(name: str, stage: Stage, machine: Machine) -> State:
    """Bring one stage up to date, all it needs being so."""
    logger = get_run_logger()
    folder = machine.root / ".dvc" / "tmp" / "slots"
    begun = time.monotonic()
    try:
        with slots.take(
            folder, "stage", [name], 1, machine.stop, lambda: logger.info(f"{name} is in another flow's hands: waiting")
        ) as own:
            changes = _changes(name, machine)
            if not changes:
                logger.info(f"{name} is up to date")
                return Completed(name=UP_TO_DATE, data=0.0)
            logger.info(f"{name} has changed: {changes}")
            with _devices(stage, machine, folder) as devices:
                begun = time.monotonic()
                lines: list[str] = []

                def say(line: str) -> None:
                    if line:
                        shown = without_secrets(line)
                        logger.info(shown)
                        lines.append(shown)

                status = _dvc(["repro", "-s", name], machine, say, devices.gpus, [*own.locks, *devices.locks])
    except Stopped:
        return Cancelled(name=STOPPED, message="stopped before it was done")
    except UserError as error:
        return Failed(name=FAILED, message=str(error), data=time.monotonic() - begun)
    seconds = time.monotonic() - begun
    if status:
        return Failed(name=FAILED, message=" / ".join(lines[-2:]) or f"dvc ended with status {status}", data=seconds)
    return Completed(name=BUILT, message=f"built in {seconds:.0f} s", data=seconds)


def _machine(root: Path, gpus: list[int] | None, cpu_slots: int, cluster: Mapping[str, str]) -> Machine:
    if cpu_slots < 1:
        raise UserError(f"cpu_slots is {cpu_slots}; it takes at least 1 to build anything.")
    if gpus and (unknown := sorted(set(map(str, gpus)) - set(slots.visible_gpus()))):
        seen = ", ".join(slots.visible_gpus()) or "none"
        raise UserError(f"gpus names {', '.join(unknown)}, and this machine shows {seen}; leave it out to use all.")
    names = tuple(slots.visible_gpus() if gpus is None else dict.fromkeys(map(str, gpus)))
    return Machine(root, names, cpu_slots, bool(names) or gpus is not None, threading.Event(), cluster)


@dataclass(frozen=True)
class Devices:
    gpus: list[str] | None
    """Those that the stage may see; None for no restriction."""
    locks: list[int]


@contextmanager
def _devices(stage: Stage, machine: Machine, folder: Path) -> Iterator[Devices]:
    """Wait for what the stage needs, and hold it."""
    logger = get_run_logger()
    uses_gpus = bool(stage.gpus and machine.gpus)
    kind = "gpu" if uses_gpus else "cpu"
    names = machine.gpus if uses_gpus else [str(number) for number in range(machine.cpu_slots)]
    count = min(stage.gpus, len(names)) if uses_gpus else 1
    if uses_gpus and count < stage.gpus:
        logger.warning(f"{stage.name} asks for {stage.gpus} GPUs and there are {count}: it takes them all")
    with slots.take(
        folder, kind, names, count, machine.stop, lambda: logger.info(f"{stage.name} waits for {count} {kind}")
    ) as taken:
        logger.info(f"{stage.name} takes {kind} {', '.join(taken.names)}")
        without = [] if machine.hides_gpus else None
        yield Devices(taken.names if uses_gpus else without, taken.locks)


def _changes(name: str, machine: Machine) -> str:
    """What DVC finds changed about a stage, as it says it; empty if nothing."""
    lines: list[str] = []
    status = _dvc(["status", "--json", name], machine, lines.append)
    found = [line for line in lines if line.startswith("{")]
    if status or not found:
        raise UserError(without_secrets(f"dvc status {name} ended with status {status}: {' '.join(lines)}"))
    return without_secrets(", ".join(json.dumps(change) for change in json.loads(found[-1]).get(name, [])))


def _dvc(
    arguments: list[str],
    machine: Machine,
    say: Callable[[str], object],
    gpus: list[str] | None = None,
    locks: Sequence[int] = (),
) -> int:
    environment = {
        **{name: value for name, value in os.environ.items() if name not in PREFECT_KEYS},
        **machine.cluster,
        "PATH": cluster.stage_path(),
        "PYTHONUNBUFFERED": "1",  # or a line would be seen when thousands have followed it
        "ACTIONZOO_FLOW_RUN_ID": flow_run.id or "",
        "ACTIONZOO_FLOW_RUN_NAME": flow_run.name or "",
    }
    if gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # the order in which nvidia-smi numbers them
    # The flag before the command: without it DVC gives up when another stage holds its lock for three seconds.
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", *arguments]
    repair_rwlock(machine.root)
    return process.run(command, cwd=machine.root, env=environment, say=say, stop=machine.stop, locks=locks)


def _conclude(states: dict[str, State]) -> State:
    """Put up the table of stages; fail if one of them did."""
    known = (UP_TO_DATE, BUILT, FAILED, STOPPED)
    table = []
    for name, state in states.items():
        outcome = state.name if state.name in known else FAILED if state.is_failed() or state.is_crashed() else NOT_RUN
        seconds = state.result(raise_on_failure=False) if state.name in (UP_TO_DATE, BUILT, FAILED) else None
        table.append({"stage": name, "state": outcome, "seconds": round(seconds, 1) if seconds is not None else ""})
    create_table_artifact(key="stages", table=table, description="The stages of this flow, in the order of the graph")

    def named(outcome: str) -> list[str]:
        return [row["stage"] for row in table if row["state"] == outcome]

    if failed := named(FAILED):
        reasons = "".join(f"\n  {name}: {states[name].message}" for name in failed)
        missed = f"\n  not run, as they need these: {', '.join(named(NOT_RUN))}" if named(NOT_RUN) else ""
        return Failed(
            message=f"{len(failed)} of {len(table)} stages failed; mend the cause and start again, "
            f"what is done is not repeated.{reasons}{missed}"
        )
    return Completed(message=f"{len(named(BUILT))} stages built, {len(named(UP_TO_DATE))} were up to date")


def main() -> None:
    import argparse

    parser = argparse.ArgumentParser(
        prog="python -m flows.pipeline",
        description="Build the zoo, or parts of it, on this machine: DVC stages as Prefect tasks. Reports to the "
        "server in PREFECT_API_URL; without it, to one that lives as long as the flow.",
        epilog="example: python -m flows.pipeline evaluate@slowfast_r50_video_4x16x1_256e_kinetics400_rgb --gpus 0,1",
    )
    parser.add_argument(
        "targets", nargs="*", help="stages or groups of stages to build with what they need; all if none"
    )
    parser.add_argument("--gpus", metavar="N,N", help='numbers of the GPUs to use; all if not given, none if ""')
    parser.add_argument(
        "--cpu-slots", type=int, default=CPU_SLOTS, metavar="N", help="stages without a GPU at once (%(default)s)"
    )
    parser.add_argument(
        "--dask",
        metavar="ADDRESS",
        help="of a Dask scheduler whose workers prepare the data (tcp://10.0.0.1:8786), or `local` for workers on this "
        "machine; without it the stages do it themselves",
    )
    arguments = parser.parse_args()
    gpus = None
    if arguments.gpus is not None:
        try:
            gpus = [int(number) for number in arguments.gpus.split(",") if number]
        except ValueError:
            parser.error(f"--gpus is {arguments.gpus}; write numbers with commas between them, as in --gpus 0,1")
    try:
        read_graph(arguments.targets)  # a misspelt name is told before a server is started
        cluster.check_address(arguments.dask)
    except UserError as error:
        sys.exit(str(error))

    if not PREFECT_API_URL.value():
        sys.exit(_run_with_server())
    if fault := _fault_of_server():
        sys.exit(fault)

    # Prefect answers SIGTERM, then sends it again to whoever handled it before: leave in order, its logs sent.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        state = build_zoo(arguments.targets or None, gpus, arguments.cpu_slots, arguments.dask, return_state=True)
    except KeyboardInterrupt:
        sys.exit("stopped; start again to go on, what is done is not repeated.")
    print(state.message)
    sys.exit(0 if state.is_completed() else 1)


def _fault_of_server() -> str | None:
    """Why the server in PREFECT_API_URL cannot be used; None if it can."""
    address = without_secrets(PREFECT_API_URL.value())
    try:
        with get_client(sync_client=True) as client:
            client.read_flows(limit=1)
    except httpx.HTTPStatusError as error:
        if error.response.status_code in (401, 403):
            return (
                f"the Prefect server at {address} refuses our key: set PREFECT_API_AUTH_STRING to its own, as "
                f"docs/prefect.md tells, or unset PREFECT_API_URL to build without a server."
            )
        return f"the Prefect server at {address} answers with status {error.response.status_code}; see its log."
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError) as error:
        return (
            f"no Prefect server answers at {address} ({type(error).__name__}); unset PREFECT_API_URL to build without "
            "one, or start one with `python -m flows.local`."
        )
    return None


def _run_with_server() -> int | str:
    """This same command, in a process that ends before the server it reports to; gives what to leave with."""
    port, key = free_port(), new_key()
    child = None

    def leave(number: int, _) -> None:
        if child is None:
            sys.exit(128 + number)
        if number == signal.SIGTERM:  # Ctrl-C has reached the child by itself
            child.terminate()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    try:
        with local_server(port, key, with_ui=False):
            child = subprocess.Popen(
                process.kept([sys.executable, "-m", "flows.pipeline", *sys.argv[1:]], process.GRACE_SECONDS + 5),
                env=os.environ | client_settings(port, key),
            )
            return child.wait()
    except UserError as error:
        return str(error)


if __name__ == "__main__":
    main()
