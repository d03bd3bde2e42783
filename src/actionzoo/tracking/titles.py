"""What tells the runs of the zoo apart: the name that is displayed, and tags to filter, sort and group by."""

import re
from collections.abc import Mapping
from typing import Any

from ..accuracy import Comparison, Reason
from ..records import Benchmark, RunRecord, TestResult

REASONS: Mapping[Reason, str] = {"data": "another data set", "recipe": "changed recipe", "part": "too few clips"}
"""Why an accuracy does not compare with the published one."""

_PRETRAINED = ("IG65M", "Sports1M", "Kinetics", "ImageNet")
"""Data sets that files of weights are named after."""


def display_name(model: str, record: RunRecord | None) -> str:
    """A name that people can tell from others: SlowFast R50 4x16 · video · 256. The model's own, if it has no recipe.

    4x16: frames of a clip in the Slow pathway x video frames from one to the next.
    """
    network, clips = _section(record, "model"), _section(record, "clips")
    try:
        length, interval = int(clips["clip_len"]), int(clips["frame_interval"])
        match network.get("family"):
            case "slowfast":
                slow, fast = network["slow_depth"], network["fast_depth"]
                depths = f"R{slow}" if slow == fast else f"R{slow}+R{fast}"
                parts = [f"SlowFast {depths} {length // int(network['alpha'])}x{interval * int(network['alpha'])}"]
            case "csn":
                parts = [f"{network['bottleneck']}-CSN R{network['depth']} {length}x{interval}"]
                parts += ["frozen BN"] if network.get("bn_frozen") else []
            case _:
                return model
    except (KeyError, TypeError, ValueError, ZeroDivisionError):  # the recipe of another version
        return model
    if (pretrained := pretraining(record)) != "none":
        parts.append(pretrained)
    return " · ".join([*parts, _form(clips), str(clips.get("short_side", ""))])


def pretraining(record: RunRecord | None) -> str:
    """The data set that the initial weights are of, by the name of their file; none for random weights."""
    weights = _section(record, "init").get("weights")
    if not isinstance(weights, str):
        return "none"
    file = re.split(r"[/\\]", weights)[-1]
    return next((name for name in _PRETRAINED if name.lower() in file.lower()), file)


def recipe_tags(record: RunRecord) -> dict[str, str]:
    """family, backbone, pretrain, form, short_side, frames, crop, seed, epochs; and how it was executed."""
    network, clips = _section(record, "model"), _section(record, "clips")
    depths = [network[key] for key in ("depth", "slow_depth", "fast_depth") if key in network]
    tags = {
        "family": network.get("family"),
        "backbone": " + ".join(f"ResNet{depth}" for depth in dict.fromkeys(depths)),
        "pretrain": pretraining(record),
        "form": _form(clips),
        "short_side": clips.get("short_side"),
        "frames": f"{clips.get('clip_len')}x{clips.get('frame_interval')}" if clips else None,
        "crop": _section(record, "test").get("crop_size"),
        "seed": record.recipe.get("seed"),
        "epochs": record.epochs,
    }
    if how := record.circumstances:
        tags |= {
            "precision": how.precision,
            "device": how.device_name or how.device,
            "gpus": how.processes if how.device == "cuda" else 0,
        }
    return {key: str(value) for key, value in tags.items() if value not in (None, "")}


def comparison_tags(comparison: Comparison, result: TestResult | None) -> dict[str, str]:
    """Whether the accuracy compares with the published one, and why not."""
    tags = {"comparable": str(comparison.is_comparable).lower()}
    if comparison.published_top1 is not None:
        tags["published.top1"] = str(comparison.published_top1)
    if not comparison.is_comparable:
        reasons = [REASONS[reason] for reason in comparison.reasons]
        reasons += [] if result else ["not evaluated yet"]
        reasons += [] if comparison.published_top1 is not None else ["nothing was published"]
        tags["not_comparable"] = ", ".join(reasons)
    return tags


def benchmark_metrics(benchmark: Benchmark) -> dict[str, float]:
    """Speed, memory and size. Multiply-adds are those of all views of a video."""
    macs, parameters = benchmark.macs_per_view, benchmark.parameters
    values = {
        "videos_per_second": benchmark.videos_per_second,
        "videos_per_second_with_decoding": benchmark.end_to_end_videos_per_second,
        "test_memory_mb": benchmark.test_memory_mb,
        "train_memory_mb": benchmark.train_memory_mb,
        "parameters_millions": None if parameters is None else parameters / 1e6,
        "gmacs_per_view": None if macs is None else macs / 1e9,
        "gmacs_per_video": None if macs is None or not benchmark.views else macs * benchmark.views / 1e9,
    }
    return {f"benchmark/{key}": float(value) for key, value in values.items() if value is not None}


def _form(clips: Mapping[str, Any]) -> str:
    return {"videos": "video"}.get(str(clips.get("form")), str(clips.get("form", "")))


def _section(record: RunRecord | None, name: str) -> Mapping[str, Any]:
    section = record.recipe.get(name) if record else None
    return section if isinstance(section, dict) else {}
