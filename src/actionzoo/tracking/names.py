"""The names of parameters, metrics and artifact folders in MLflow."""

from collections.abc import Mapping
from typing import NamedTuple

METRIC_NAMES = {
    "train": {
        "loss": "train/loss",
        "top1_acc": "train/top1",
        "top5_acc": "train/top5",
        "lr": "train/lr",
        "grad_norm": "train/grad_norm",
        "data_time": "time/data",
        "time": "time/step",
        "memory": "memory_mb",
    },
    "val": {
        "top1_acc": "val/top1",
        "top5_acc": "val/top5",
        "mean_class_accuracy": "val/mean_class",
    },
    "test": {
        "top1": "test/top1:{protocol}",
        "top5": "test/top5:{protocol}",
        "mean_class": "test/mean_class:{protocol}",
        "top1_low": "test/top1_low:{protocol}",
        "top1_high": "test/top1_high:{protocol}",
        "top1_published": "test/top1_published",
        "top1_gap": "test/top1_gap",
    },
}
"""Mode of a line -> its key -> the name in MLflow. `train` and `val` are lines of log.json. `test` is a
result's metrics, and its names include the views: test/top1:10x3. MLflow does not allow @ in names, and
its pages group metrics by the part before the slash."""

RUN_PARAMS = ("dataset", "recipe", "batch", "lr", "overrides", "train_clips", "val_clips")
"""Keys of recipe.json that become a run's parameters; hashes and class names do not."""

ERROR_ANALYSIS = "error_analysis"
"""A run's artifact folder for its error analysis: tables, pictures, strips of clips."""

TEST_STEP = 0
"""The step of all evaluations of a run; the newest value counts."""


class Point(NamedTuple):
    """One value of a metric."""

    name: str
    """As in MLflow: train/loss."""
    step: int
    value: float
    milliseconds: int
    """Since 1970."""


def to_metrics(line: Mapping[str, object]) -> dict[str, float]:
    """The metrics of one line by their names in MLflow.

    Keys that are no metrics and values that are no numbers are left out; a line of an unknown mode has no metrics.
    """
    names = METRIC_NAMES.get(str(line.get("mode", "")), {})
    protocol = line.get("protocol", "unknown")
    return {
        names[key].format(protocol=protocol): float(value)
        for key, value in line.items()
        if key in names and isinstance(value, int | float)
    }


def run_params(record: Mapping[str, object]) -> dict[str, object]:
    """The parameters of a run in MLflow, from the content of a recipe.json."""
    return {key: record[key] for key in RUN_PARAMS if key in record}


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
