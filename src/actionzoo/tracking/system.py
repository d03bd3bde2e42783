"""How busy the machine is while it trains: CPU, memory, disk and GPUs, as MLflow's own monitors see them."""

import contextlib
import json
import threading
import time
from pathlib import Path
from typing import Any

_LEAST_SECONDS, _SHARE = 10.0, 0.005
"""Between two samples: at least so long, and at least this share of the time that has passed. A week has 1,300."""


def sample_regularly(path: Path, is_ending: threading.Event) -> None:
    """Append a line of JSON to `path` every few seconds, until the event is set.

    Keys are those of MLflow's system metrics, without `system/`. What cannot be measured is left out.
    """
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

    monitors: list[Any] = [CPUMonitor(), DiskMonitor()]  # type: ignore[no-untyped-call]  # MLflow has no types
    with contextlib.suppress(Exception):  # no GPU, or no nvidia-ml-py
        monitors.append(GPUMonitor())  # type: ignore[no-untyped-call]
    began = time.monotonic()
    while not is_ending.is_set():
        for monitor in monitors:
            monitor.collect_metrics()
        values: dict[str, float] = {}
        for monitor in monitors:
            values |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        if not is_ending.is_set():
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
        is_ending.wait(max(_LEAST_SECONDS, _SHARE * (time.monotonic() - began)))
