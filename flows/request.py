"""What a flow run is asked for, where its stages run, and what became of each: the types that the flows share."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from flows.stage.gpus import Gpus

CPU_SLOTS = 2
"""Stages without a GPU at once; each of them uses several processes of its own."""


@dataclass(frozen=True)
class Request:
    """What a flow run builds, and with what."""

    targets: tuple[str, ...] = ()
    """Stages or groups of stages (`train` is every `train@...`), built with all that they need; empty: all."""
    force: bool = False
    """Build the targets, though not what they need, even if they are up to date."""
    dry_run: bool = False
    """Say what would be built; start nothing."""
    gpus: tuple[str, ...] | None = None
    """Names as in CUDA_VISIBLE_DEVICES: index, UUID or MIG device. None: all visible; (): none."""
    cpu_slots: int = CPU_SLOTS
    """How many stages that use no GPU run at once."""
    dask: str | None = None
    """Address of a Dask scheduler whose workers prepare the data, or `local`; None: the stages do it themselves."""
    folder: Path | None = None
    """A DVC repository below the project, such as reproduction/; None: the one around the working directory."""
    shares: bool = False
    """Share what is built with other machines, through DVC's remote (flows/machines/share.py)."""
    machines: bool = False
    """Give each model to the next machine that has a free worker (flows/machines/coordinator.py)."""
    nodes: int = 1
    """With `machines`: how many of them train each model together."""
    beside: tuple[str, ...] = ()
    """Stages whose command runs without DVC: another machine builds them, and this one takes part in its work."""
    anew: tuple[str, ...] = ()
    """Stages to run even if they are up to date: data stages whose shards are not on this machine."""


@dataclass(frozen=True)
class Machine:
    """Where stages run, and the devices that they share."""

    root: Path
    """The root of the DVC repository."""
    devices: Gpus
    """The GPUs to use. Without any, a stage that asks for GPUs gets a CPU slot."""
    hides_gpus: bool
    """Whether a stage sees only the GPUs that it holds. False where none was found: there may be devices of a kind that
    `visible_gpus` does not know."""
    cpu_slots: int
    slots: Path
    """The folder of the locks of devices, of all flows of this user."""
    grace_seconds: float
    """From SIGTERM to SIGKILL when a stage is stopped."""
    patience_seconds: float | None
    """How long the flow waits for the end of a stage that it has stopped; None: until it has ended."""
    stop: threading.Event
    cluster: Mapping[str, str] = field(repr=False)
    """Environment variables with which stages find a Dask cluster; they may hold its key."""
    shares: bool = False
    """Request.shares."""
    beside: tuple[str, ...] = ()
    """Request.beside."""

    @property
    def gpus(self) -> tuple[str, ...]:
        """As CUDA_VISIBLE_DEVICES names them."""
        return tuple(gpu.name for gpu in self.devices.found)


What = Literal["built", "restored", "up to date", "failed", "stopped", "not run", "would be built"]


@dataclass(frozen=True)
class Outcome:
    """What became of a stage in a flow run."""

    stage: str
    what: What
    """`restored`: from DVC's run cache. `not run`: a stage that it needs was not built."""
    seconds: float | None = None
    """Of work with a device, without waiting; None if it did no work."""
    waited: float | None = None
    """Seconds of waiting for a device or for another flow run; None if it had no need of one."""
    message: str = ""
    """Of a failure: the last lines, with their remedy."""
