"""A Dask cluster for the stages that can use one: an existing one, or one on this machine while the flow runs.

Prefect's Dask task runner hosts or joins the cluster. The flow's own tasks remain threads of this process, because each
holds device locks and a child process of this machine. Their stages send parts to the workers.
"""

import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from actionzoo.errors import UserError
from actionzoo.files.addresses import without_secrets
from actionzoo.names import did_you_mean

LOCAL = "local"
CONNECT_SECONDS = 20.0
ADDRESS = re.compile(r"(?:([a-z]+)://)?([\w.-]+|\[[0-9A-Fa-f:.%]+\]):([0-9]{1,5})")


@contextmanager
def joined(dask: str | None) -> Iterator[dict[str, str]]:
    """Environment variables with which a stage finds the cluster; none if `dask` is empty.

    `dask` is the address of a scheduler, or `local`: workers on all cores of this machine until the block ends. These
    workers and their scheduler listen on loopback, serve no pages, and accept only clients with the key made here.
    Raises UserError if no scheduler answers.
    """
    if not dask:
        yield {}
    elif dask == LOCAL:
        with _workers_here() as variables:
            yield variables
    else:
        _check_that_something_listens(dask)
        from prefect_dask.task_runners import DaskTaskRunner

        try:
            with DaskTaskRunner(address=dask, client_kwargs={"timeout": CONNECT_SECONDS}) as runner:
                address = runner.client.scheduler_info(n_workers=0)["address"]
        except (OSError, ValueError, TypeError) as error:
            raise _no_scheduler(dask, error) from None
        yield {"DASK_SCHEDULER_ADDRESS": address}


def check_address(dask: str | None) -> None:
    """Raise UserError if `dask` is not empty, not `local`, and not an address as Dask writes it.

    A valid address holds no password. Text that may hold one is refused before Prefect stores it as a flow parameter.
    """
    if dask and dask != LOCAL:
        _split_address(dask)


def _split_address(dask: str) -> tuple[str | None, str, int]:
    """(scheme, host, port). Raises UserError."""
    if not (match := ADDRESS.fullmatch(dask)):
        shown = "no address" if "@" in dask and "://" not in dask else without_secrets(dask)
        raise UserError(
            f"dask is {shown}{did_you_mean(dask, [LOCAL])}; write the address that `dask scheduler` prints, as in "
            f"tcp://10.0.0.1:8786, or `{LOCAL}` for workers on this machine"
        )
    scheme, host, port = match.groups()
    return scheme, host, int(port)


def _check_that_something_listens(dask: str) -> None:
    """Try a plain connection first: Dask's client, once it has failed, prints more errors when the program ends."""
    scheme, host, port = _split_address(dask)
    if scheme in (None, "tcp", "tls"):
        try:
            socket.create_connection((host.strip("[]"), port), timeout=CONNECT_SECONDS).close()
        except (OSError, OverflowError, UnicodeError) as error:
            raise _no_scheduler(dask, error) from None


def _no_scheduler(dask: str, error: Exception) -> UserError:
    return UserError(
        f"no Dask scheduler answers at {dask} ({error}); start one with `dask scheduler` and give the address that it "
        f"prints, as in tcp://10.0.0.1:8786, or `{LOCAL}` for workers on this machine"
    )


def stage_path() -> str:
    """PATH for stages and workers, with the programs of this environment first."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def dask_setup(_worker: object) -> None:
    """Dask calls this in each worker on this machine. Ctrl-C reaches the workers too, but the flow ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _dask_settings(settings: dict[str, object]) -> Iterator[None]:
    """Set Dask's settings for the block only; defaults that an import adds meanwhile stay."""
    import dask

    try:
        with dask.config.set(settings):
            yield
    finally:
        dask.config.refresh()


@contextmanager
def _workers_here() -> Iterator[dict[str, str]]:
    # Read when distributed is imported, here and in the workers: the stages report what concerns the user.
    quiet: dict[str, object] = {
        "logging.distributed": "critical",
        "distributed.nanny.pre-spawn-environ.DASK_LOGGING__DISTRIBUTED": "critical",
    }
    no_pages: dict[str, object] = {"distributed.scheduler.http.routes": [], "distributed.worker.http.routes": []}
    with _dask_settings(quiet | no_pages):
        from distributed.security import Security
        from prefect_dask.task_runners import DaskTaskRunner

        logging.getLogger("prefect.task_runner.dask").setLevel(logging.WARNING)  # it advertises a dashboard
        # A client of a worker can run any code as its user, and loopback is open to all users of the machine.
        security: Any = Security.temporary()  # type: ignore[no-untyped-call]
        keys = security.get_tls_config_for_role("client")
        options = {
            "host": "127.0.0.1",
            "protocol": "tls",
            "security": security,
            "scheduler_kwargs": {"dashboard": False, "dashboard_address": "127.0.0.1:0"},
            "env": {"PATH": stage_path()},
            "preload": __name__,  # see dask_setup
        }
        with DaskTaskRunner(cluster_class="distributed.LocalCluster", cluster_kwargs=options) as runner:
            yield {
                "DASK_SCHEDULER_ADDRESS": runner.client.scheduler_info(n_workers=0)["address"],
                "DASK_DISTRIBUTED__COMM__TLS__CA_FILE": keys["ca_file"],
                "DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT": keys["cert"],
                "DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY": keys["key"],
            }
