"""The names of metrics and artifact folders in MLflow."""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from ..metric_keys import is_accuracy

METRIC_NAMES = {
    "train": {
        "loss": "train/loss",
        "top1_acc": "train/top1",
        "top5_acc": "train/top5",
        "lr": "train/lr",
        "grad_norm": "train/grad_norm",
        "epoch": "train/epoch",
        "data_time": "time/data",
        "time": "time/step",
        "memory": "train/memory_mb",
    },
    "val": {
        "top1_acc": "val/top1",
        "top5_acc": "val/top5",
        "mean_class_accuracy": "val/mean_class",
    },
}
"""Mode of a line of log.json -> its key -> the name in MLflow, which groups metrics by what is before the slash."""

COUNTS = ("clips", "missing", "undecodable")
"""Keys of a result's metrics that are recorded beside its accuracies."""

ERROR_ANALYSIS = "error_analysis"
"""A run's artifact folder for its error analysis: tables, pictures, strips of clips."""

TEST_STEP = 0
"""The step of what is measured once for a training: evaluation and benchmark. The newest value counts."""

MAX_LINES = 4000
"""Of a training's log, so many lines at most become values in MLflow, evenly spread. MLflow stores some 270 bytes for
each value in SQLite; all lines of 256 epochs would take 100 MB."""


class Point(NamedTuple):
    """One value of a metric."""

    name: str
    """As in MLflow: train/loss."""
    step: int
    value: float


def to_metrics(line: Mapping[str, object]) -> dict[str, float]:
    """The metrics of one line of log.json by their names in MLflow.

    Keys that are no metrics and values that are no numbers are left out; a line of an unknown mode has no metrics.
    """
    names = METRIC_NAMES.get(str(line.get("mode", "")), {})
    return {names[key]: float(value) for key, value in line.items() if key in names and isinstance(value, int | float)}


def metrics_of_test(counts: Mapping[str, object], protocol: str) -> dict[str, float]:
    """The metrics of an evaluation: accuracies and counts of clips.

    Each accuracy is there as test/top1, which people search and sort by, and as test/top1:10x3, which says of which
    views it is: MLflow allows no @ in names.
    """
    values = {key: float(value) for key, value in counts.items() if isinstance(value, int | float)}
    accuracies = {key: value for key, value in values.items() if is_accuracy(re.sub("_(low|high)$", "", key))}
    named = {f"test/{key}": value for key, value in accuracies.items()}
    named |= {f"test/{key}:{protocol}": value for key, value in accuracies.items()}
    return named | {f"test/{key}": values[key] for key in COUNTS if key in values}


def global_step(line: Mapping[str, object], iters_per_epoch: int) -> int:
    """The step of a line of log.json, counted from the start of the training; for validation, the end of its epoch.

    Raises ValueError for a line without epoch or iter.
    """
    epoch, iteration = line.get("epoch"), line.get("iter")
    if line.get("mode") == "val":
        iteration = iters_per_epoch
    if not isinstance(epoch, int) or not isinstance(iteration, int):
        raise ValueError("it has no epoch or no iter")
    return (epoch - 1) * iters_per_epoch + iteration


def thinning(epochs: int, iters_per_epoch: int, log_interval: int) -> int:
    """Of how many lines of the log one is recorded, so that a whole training has at most MAX_LINES."""
    return max(1, math.ceil(epochs * max(1, iters_per_epoch // max(1, log_interval)) / MAX_LINES))
