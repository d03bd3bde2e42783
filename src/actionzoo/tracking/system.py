"""How busy the machine is while it trains: CPU, memory and disk by MLflow's own monitors, GPUs by nvidia-smi."""

import json
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

_LEAST_SECONDS, _SHARE = 10.0, 0.005
"""Between two samples: at least so long, and at least this share of the time that has passed. A week has 1,300."""

_GPU_QUERY = ("index", "utilization.gpu", "memory.used", "memory.total", "power.draw")


def sample_regularly(path: Path, is_ending: threading.Event) -> None:
    """Append a line of JSON to `path` every few seconds, until the event is set.

    Keys are those of MLflow's system metrics, without `system/`. What cannot be measured is left out.
    """
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor

    monitors: list[Any] = [CPUMonitor(), DiskMonitor()]  # type: ignore[no-untyped-call]  # MLflow has no types
    began, has_gpus = time.monotonic(), True
    while not is_ending.is_set():
        values: dict[str, float] = {}
        for monitor in monitors:
            monitor.collect_metrics()
            values |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        if has_gpus:
            gpus = gpu_metrics()
            has_gpus = bool(gpus)
            values |= gpus
        if not is_ending.is_set():
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
        is_ending.wait(max(_LEAST_SECONDS, _SHARE * (time.monotonic() - began)))


def gpu_metrics() -> dict[str, float]:
    """Utilization, memory and power of each NVIDIA GPU, by MLflow's names; empty without one.

    MLflow's own monitor of GPUs needs a package more, and gives the same.
    """
    line = ["nvidia-smi", f"--query-gpu={','.join(_GPU_QUERY)}", "--format=csv,noheader,nounits"]
    try:
        text = subprocess.run(line, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(pair for each in text.splitlines() for pair in parse_gpu(each).items())


def parse_gpu(line: str) -> dict[str, float]:
    """A line of nvidia-smi: `0, 97, 31000, 81559, 612.34`. What the GPU does not tell, `[N/A]`, is left out."""
    index, *texts = [text.strip() for text in line.split(",")]
    numbers = [float(text) if text.replace(".", "", 1).isdigit() else None for text in texts]
    if len(numbers) != len(_GPU_QUERY) - 1:
        return {}
    utilization, used, total, power = numbers
    values = {
        "utilization_percentage": utilization,
        "memory_usage_megabytes": None if used is None else round(used * 1.048576, 1),  # nvidia-smi counts MiB
        "memory_usage_percentage": round(100 * used / total, 1) if used is not None and total else None,
        "power_usage_watts": power,
    }
    return {f"gpu_{index}_{key}": value for key, value in values.items() if value is not None}
