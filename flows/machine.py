"""What one machine does about a model that was given to it: build it, and share it. See flows/machines.py."""

import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import httpx
import yaml
from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from prefect.states import Failed

from actionzoo.errors import UserError
from actionzoo.jobs.shared_states import SHARES
from actionzoo.jobs.torchrun import NODES, RENDEZVOUS
from flows import data_set, share
from flows.graph import Stage, read_graph
from flows.lost_machines import ends_with_its_flow_run
from flows.pipeline import THREADS, build
from flows.request import Request
from flows.run_labels import show_begun, show_waiting
from flows.runs import announce
from flows.server import free_port

ADD_REMOTE = "add one that all machines reach, such as `dvc remote add --default team ssh://host/zoo`"

ADDRESS = "ACTIONZOO_ADDRESS"
"""Environment variable: this machine's address for other machines; the one it reaches the server from if not set."""

_DATA_NAME = "data.name of params.yaml"
_MEETING = "rendezvous"
"""Key of the first flow run's input that tells the others where torchrun's processes meet."""


@flow(name="zoo", task_runner=THREADS)  # type: ignore[arg-type]  # Prefect's TaskRunner is invariant in its future
def build_here(
    targets: list[str],
    project: dict[str, str] | None = None,
    force: bool = False,
    nodes: int = 1,
    first: str | None = None,
) -> State[Any]:
    """Build stages on the machine whose worker took this flow run, and share them.

    Args:
        targets: names of stages, built with what they need unless another machine has built it.
        project: what the machine's checkout has to agree with, from the flow run that gives models away.
        force: build the targets even if they are up to date.
        nodes: how many machines train together; each has a flow run.
        first: id of the flow run that builds the stages; the others only take part in the training.
    """
    announce()
    log = get_run_logger().info
    log(f"on {os.uname().nodename}, in {Path.cwd()}")
    os.environ[SHARES] = "1"
    try:
        with data_set.held(Path.cwd(), (project or {}).get(_DATA_NAME), show_waiting) as data, ends_with_its_flow_run():
            show_begun(data, [])
            root, stages = read_graph(targets)
            check_project(root, project or {})
            if not share.has_remote(root):
                raise UserError(f"{root} has no default DVC remote, through which machines share; {ADD_REMOTE}")
            anew = tuple(share.lacking_data(root, [stage.name for stage in stages]))
            request = Request(tuple(targets), force=force, shares=True, anew=anew)
            if first:
                return _take_part(request, stages, nodes, first, data)
            if nodes > 1:
                _invite(nodes)
            return _build_and_push(request, root, stages, log)
    except UserError as error:
        return Failed(message=str(error))


def _build_and_push(request: Request, root: Path, stages: list[Stage], log: Callable[[str], object]) -> State[Any]:
    state = build(request)
    if not state.is_completed():
        return state
    # also what was up to date: no machine may have pushed it
    if not share.push(root, [stage.name for stage in stages], threading.Event(), log):
        return Failed(
            message=f"built on {os.uname().nodename}, but not in DVC's remote yet; make the remote reachable from "
            "there and start again: the machine pushes it and repeats nothing"
        )
    return state


def _invite(nodes: int) -> None:
    """Tell the other machines of a training where its processes meet: on this machine."""
    meeting = f"{(address := own_address())}:{free_port()}"
    if address.startswith("127."):
        get_run_logger().warning(
            f"other machines cannot reach {address}; where they are not processes of this one, set {ADDRESS} to this "
            "machine's address in their network"
        )
    with get_client(sync_client=True) as client:
        client.create_flow_run_input(UUID(str(flow_run.id)), _MEETING, json.dumps(meeting))
    os.environ |= {NODES: str(nodes), RENDEZVOUS: meeting}


def _take_part(request: Request, stages: list[Stage], nodes: int, first: str, data: str) -> State[Any]:
    """Train on this machine, too, as soon as the first machine does; it alone publishes and shares the result."""
    needed = tuple(stage.name for stage in stages if stage.name not in request.targets)
    if needed:
        prepared = build(Request(needed, shares=True, anew=request.anew))
        if not prepared.is_completed():
            return prepared
    show_waiting("the first machine of the training, which has to have its devices")
    meeting = _meeting_of(UUID(first))
    show_begun(data, [])
    os.environ |= {NODES: str(nodes), RENDEZVOUS: meeting}
    return build(Request(request.targets, shares=True, anew=request.targets, beside=request.targets))


def _meeting_of(first: UUID) -> str:
    """host:port at which the first machine's processes listen, as soon as they do."""
    meeting = ""
    with get_client(sync_client=True) as client:
        while True:
            with suppress(httpx.HTTPError, ObjectNotFound, OSError, ValueError):
                meeting = meeting or json.loads(client.read_flow_run_input(first, _MEETING))
                host, _, port = meeting.rpartition(":")
                socket.create_connection((host, int(port)), timeout=5).close()
                return meeting
            time.sleep(1)


def own_address() -> str:
    """The address under which other machines reach this one."""
    if given := os.environ.get(ADDRESS):
        return given
    server = urlsplit(PREFECT_API_URL.value() or "")
    family, kind, _, _, address = socket.getaddrinfo(server.hostname, server.port or 80, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)  # of a datagram socket: sends nothing
        return str(probe.getsockname()[0])


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
