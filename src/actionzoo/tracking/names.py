"""What a run's parameters and metrics are called in MLflow."""

from collections.abc import Mapping
from typing import Any

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
"""Mode of a line -> its key -> the name in MLflow. `train` and `val` are lines of log.json, `test` is
metrics/<dataset>/<row>.json, and its names say of which views an accuracy is: test/top1:10x3. MLflow knows no @ in
names, and its pages group by what stands before the slash."""

RUN_PARAMS = ("dataset", "recipe", "batch", "lr", "overrides", "train_clips", "val_clips")
"""Keys of recipe.json that become a run's parameters; hashes and class names do not."""

ERROR_ANALYSIS = "error_analysis"
"""A run's artifact folder for its error analysis: tables, pictures, strips of clips."""

TEST_STEP = 0
"""Evaluations have no course; all of them stand at this step, and the newest is the one that counts."""

Point = tuple[str, int, float, int]
"""Metric's name, step, value, milliseconds since 1970."""


def to_metrics(line: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of one line, named as in MLflow. Keys that are no metrics, and lines of no known mode, give none."""
    names = METRIC_NAMES.get(line.get("mode", ""), {})
    protocol = line.get("protocol", "unknown")
    return {
        names[key].format(protocol=protocol): float(value)
        for key, value in line.items()
        if key in names and value is not None
    }


def run_params(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What of a recipe.json, or of what will be one, is recorded as parameters."""
    return {key: recipe[key] for key in RUN_PARAMS if key in recipe}


def global_step(line: Mapping[str, Any], iters_per_epoch: int) -> int:
    """Where a line of log.json stands: steps since the start of training. Validation stands at its epoch's end."""
    if line["mode"] == "val":
        return line["epoch"] * iters_per_epoch
    return (line["epoch"] - 1) * iters_per_epoch + line["iter"]
