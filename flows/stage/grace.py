"""How long a stage that is stopped has to save its work."""

import os
from pathlib import Path

from actionzoo.errors import UserError
from actionzoo.files.yaml_files import read_yaml
from actionzoo.process.supervisor import GRACE_SECONDS

WORKERS_PATIENCE_SECONDS = 25.0
"""How long a flow that a worker runs waits for stages that it has stopped: Prefect kills it 30 s after a cancel. A
stage with a longer grace is then left to its supervisor, which keeps its devices."""


def is_run_by_worker() -> bool:
    """Whether this is the process of a flow run that a worker has started."""
    return "PREFECT__FLOW_RUN_ID" in os.environ


def grace_seconds(root: Path) -> float:
    """Seconds from SIGTERM to SIGKILL for the stages of the DVC repository `root`: runtime.grace_seconds of its
    params.yaml, or of the one in the folder above; GRACE_SECONDS if neither says. Raises UserError.
    """
    for path in (root / "params.yaml", root.parent / "params.yaml"):
        if path.is_file():
            runtime = read_yaml(path, "correct it").get("runtime")
            value = runtime.get("grace_seconds", GRACE_SECONDS) if isinstance(runtime, dict) else GRACE_SECONDS
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
                raise UserError(f"{path}: runtime.grace_seconds is {value!r}; write a number above 0, as in 25")
            return float(value)
    return GRACE_SECONDS
