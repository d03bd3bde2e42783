"""Several processes for one command: it starts itself again under torchrun."""

import dataclasses
import os
import sys

from ..errors import UserError
from ..params.settings import Runtime

NODES, RENDEZVOUS = "ACTIONZOO_NODES", "ACTIONZOO_RENDEZVOUS"
"""Environment variables that replace runtime.nodes and runtime.rendezvous for a training: a flow sets them."""

JOIN_SECONDS = 7 * 24 * 3600
"""How long the first machine waits for the others, whose devices may be in use."""


def training_runtime(runtime: Runtime) -> Runtime:
    """The runtime of a training, with the machines that a flow has chosen."""
    nodes, rendezvous = os.environ.get(NODES), os.environ.get(RENDEZVOUS)
    return dataclasses.replace(runtime, nodes=int(nodes), rendezvous=rendezvous) if nodes and rendezvous else runtime


def launch_torchrun(runtime: Runtime) -> None:
    """Replace this process by torchrun and `runtime.gpus` copies of this command, on each of `runtime.nodes` machines.

    Returns if one process is enough, or if this is one of the copies, or was started by torchrun or the like.
    Raises UserError if there are several machines and no place for them to meet.
    """
    if runtime.num_processes == 1 or "WORLD_SIZE" in os.environ:
        return
    if runtime.nodes > 1 and not runtime.rendezvous:
        raise UserError(
            f"runtime.nodes is {runtime.nodes}, and runtime.rendezvous names no place to meet: set it to host:port of "
            "the first machine, and give the same command on every machine"
        )
    meeting = ["--standalone"]
    if runtime.nodes > 1 and runtime.rendezvous:
        meeting = ["--nnodes", str(runtime.nodes), "--rdzv-backend", "c10d", "--rdzv-endpoint", runtime.rendezvous]
        meeting += ["--rdzv-conf", f"join_timeout={JOIN_SECONDS}"]
    command = [sys.executable, "-m", "torch.distributed.run", *meeting, "--nproc-per-node", str(runtime.gpus)]
    threads = max(1, (os.cpu_count() or 1) // runtime.gpus)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # torchrun would warn, and take 1
    sys.stdout.flush()
    # the same process: a signal to it reaches torchrun, which stops the copies
    os.execv(sys.executable, [*command, *sys.argv])
