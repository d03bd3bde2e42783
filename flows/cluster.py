"""A Dask cluster for the stages that can use one: one that is there, or one on this machine while the flow runs.

Prefect's runner for Dask hosts or joins the cluster. The flow's own tasks stay threads beside it: each holds device
locks and a child process of this machine. It is their stages that send parts to the workers.
"""

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from actionzoo.errors import UserError

LOCAL = "local"
CONNECT_SECONDS = 20.0


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
        from prefect_dask import DaskTaskRunner

        try:
            with DaskTaskRunner(address=dask, client_kwargs={"timeout": CONNECT_SECONDS}) as runner:
                address = runner.client.scheduler_info(n_workers=0)["address"]
        except (OSError, ValueError, TypeError) as error:
            raise UserError(
                f"no Dask scheduler answers at {dask} ({error}); start one with `dask scheduler`, and give the address "
                f"that it prints, as in tcp://10.0.0.1:8786, or `{LOCAL}` for workers on this machine"
            ) from None
        yield {"DASK_SCHEDULER_ADDRESS": address}


def stage_path() -> str:
    """PATH for stages and workers: programs of this environment first."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def dask_setup(_) -> None:
    """For Dask to call in a worker on this machine: Ctrl-C reaches it too, and it is the flow that decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _workers_here() -> Iterator[dict[str, str]]:
    import dask

    # Read when distributed is imported, here and by the workers: what concerns the user, the stages say.
    quiet = {
        "logging.distributed": "critical",
        "distributed.nanny.pre-spawn-environ.DASK_LOGGING__DISTRIBUTED": "critical",
    }
    no_pages = {"distributed.scheduler.http.routes": [], "distributed.worker.http.routes": []}
    with dask.config.set(quiet | no_pages):
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
