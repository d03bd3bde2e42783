"""A Dask cluster for the stages that can use one: one that is there, or one on this machine while the flow runs.

Prefect's runner for Dask hosts or joins the cluster. The flow's own tasks stay threads beside it: each holds device
locks and a child process of this machine. It is their stages that send parts to the workers.
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

from actionzoo.errors import UserError
from actionzoo.files.addresses import without_secrets
from actionzoo.names import did_you_mean

LOCAL = "local"
CONNECT_SECONDS = 20.0
_ADDRESS = re.compile(r"(?:([a-z]+)://)?([\w.-]+|\[[0-9A-Fa-f:.%]+\]):([0-9]{1,5})")


@contextmanager
def joined(dask: str | None) -> Iterator[dict[str, str]]:
    """Environment variables by which a stage finds the cluster; none if `dask` is empty.

    `dask` is the address of a scheduler, or `local`: then workers on all cores of this machine live until the block
    ends. They and their scheduler listen on loopback, show no pages, and obey only who has the key that is made here.
    Raises UserError if no scheduler answers.
    """
    if not dask:
        yield {}
    elif dask == LOCAL:
        with _workers_here() as variables:
            yield variables
    else:
        check_address(dask)
        _check_that_something_listens(dask)
        from prefect_dask import DaskTaskRunner

        try:
            with DaskTaskRunner(address=dask, client_kwargs={"timeout": CONNECT_SECONDS}) as runner:
                address = runner.client.scheduler_info(n_workers=0)["address"]
        except (OSError, ValueError, TypeError) as error:
            raise _no_scheduler(dask, error) from None
        yield {"DASK_SCHEDULER_ADDRESS": address}


def check_address(dask: str | None) -> None:
    """Raises UserError if `dask` is neither an address as Dask writes them nor `local` nor empty.

    Such an address holds no password. What may hold one is refused before Prefect keeps it as a parameter of the flow.
    """
    if dask and dask != LOCAL and not _ADDRESS.fullmatch(dask):
        shown = "no address" if "@" in dask and "://" not in dask else without_secrets(dask)
        raise UserError(
            f"dask is {shown}{did_you_mean(dask, [LOCAL])}; write the address that `dask scheduler` prints, as in "
            f"tcp://10.0.0.1:8786, or `{LOCAL}` for workers on this machine"
        )


def _check_that_something_listens(dask: str) -> None:
    """Ask first without Dask: its client, once it has failed, speaks up again when the program ends."""
    scheme, host, port = _ADDRESS.fullmatch(dask).groups()
    if scheme in (None, "tcp", "tls"):
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
        except (OSError, OverflowError, UnicodeError) as error:
            raise _no_scheduler(dask, error) from None


def _no_scheduler(dask: str, error: Exception) -> UserError:
    return UserError(
        f"no Dask scheduler answers at {dask} ({error}); start one with `dask scheduler`, and give the address that it "
        f"prints, as in tcp://10.0.0.1:8786, or `{LOCAL}` for workers on this machine"
    )


def stage_path() -> str:
    """PATH for stages and workers: programs of this environment first."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def dask_setup(_) -> None:
    """For Dask to call in a worker on this machine: Ctrl-C reaches it too, and it is the flow that decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _dask_settings(settings: dict[str, object]) -> Iterator[None]:
    """Dask's settings, for the block alone; the defaults of what is imported meanwhile outlive it."""
    import dask

    try:
        with dask.config.set(settings):
            yield
    finally:
        dask.config.refresh()


@contextmanager
def _workers_here() -> Iterator[dict[str, str]]:
    # Read when distributed is imported, here and by the workers: what concerns the user, the stages say.
    quiet = {
        "logging.distributed": "critical",
        "distributed.nanny.pre-spawn-environ.DASK_LOGGING__DISTRIBUTED": "critical",
    }
    no_pages = {"distributed.scheduler.http.routes": [], "distributed.worker.http.routes": []}
    with _dask_settings(quiet | no_pages):
        from distributed.security import Security
        from prefect_dask import DaskTaskRunner

        logging.getLogger("prefect.task_runner.dask").setLevel(logging.WARNING)  # it praises a dashboard
        # Whoever may talk to a worker can run anything as its user, and loopback is open to all users of the machine.
        security = Security.temporary()
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
