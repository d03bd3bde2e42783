"""How a data stage is executed: unfinished work, parallelism, time limit, cluster, progress."""

import dataclasses
from pathlib import Path

from ..process.progress import Progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
    """How a data stage does its work. Nothing in it changes the bytes that are made from a clip."""

    scratch: Path
    """Folder for unfinished work, on the same file system as the results."""
    jobs: int = 1
    """Files fetched, or clips processed, at once on this machine. A worker of a cluster processes one per thread."""
    clip_timeout_seconds: float = 120.0
    """Limit for ffmpeg's work on one clip. A clip that exceeds it is corrupt until the limit is raised. Downloads do
    not use it."""
    scheduler: str | None = None
    """Address of a Dask scheduler whose workers make the parts, such as tcp://10.0.0.1:8786 (cluster.py). None: this
    machine makes them. Downloads do not use it."""
    force: bool = False
    """Make finished shards anew, too. Downloads do not use it."""
    on_progress: Progress | None = None
    """Called by one thread at a time. `download` and `list_folder` count bytes, the other stages clips."""
