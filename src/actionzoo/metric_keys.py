"""Keys of a metrics file: which are accuracies, the interval of top-1, and names that tell the views."""

import math
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % interval of a share, in 0 to 1; (0, 1) without trials.

    Wilson 1927, without continuity correction: it holds near 0 and 1 and for few trials.
    """
    if trials == 0:
        return 0.0, 1.0
    z = 1.959963984540054
    share = successes / trials
    centre = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def with_protocol(metrics: Mapping[str, T]) -> dict[str, T]:
    """`metrics` with each accuracy added again under a name that tells its views: `test/top1@10x3`."""
    named = {f"test/{key}@{metrics['protocol']}": value for key, value in metrics.items() if is_accuracy(key)}
    return {**metrics, **named}


def is_accuracy(key: str) -> bool:
    """Whether the key of a metric is mean_class, top1, top5 or the like."""
    return key == "mean_class" or (key.startswith("top") and key[3:].isdigit())
