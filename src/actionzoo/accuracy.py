"""When an accuracy compares with a published one, and whether published weights reproduce theirs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .recipe import Published
from .records import Metrics

KINETICS400 = "kinetics400"
"""Name of the data set that the published accuracies were measured on."""

PUBLISHED_CLIPS = 19_796
"""Validation clips behind the published accuracies."""

MIN_SHARE_OF_CLIPS = 0.9
"""An accuracy is compared with a published one if at least this share of PUBLISHED_CLIPS was evaluated."""

Reason = Literal["data", "recipe", "part"]
"""Why an accuracy is not comparable with the published one: another data set, a changed recipe, too few clips."""

Verdict = Literal["reproduced", "not reproduced", "different data"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A top-1 accuracy beside the published one."""

    is_comparable: bool
    """Measured on Kinetics-400, by the unchanged recipe, on nearly all of the published clips."""
    reasons: tuple[Reason, ...]
    """What forbids the comparison. Without an evaluation, what would forbid it."""
    published_top1: float | None
    """Per cent, as published; None if nothing was published for the model."""
    gap_points: float | None
    """Measured minus published, in percentage points; None if the two are not comparable."""


def compare(
    dataset: str, overrides: Sequence[str], metrics: Metrics | None, published_top1: float | None
) -> Comparison:
    """Compare an evaluation with a published top-1 accuracy in per cent (`comparable_top1` gives a model's).

    `overrides` is what the data set changes of the recipe. Without an evaluation, `metrics` is None.
    """
    checks: dict[Reason, bool] = {
        "data": dataset != KINETICS400,
        "recipe": bool(overrides),
        "part": dataset == KINETICS400 and metrics is not None and metrics.clips < MIN_SHARE_OF_CLIPS * PUBLISHED_CLIPS,
    }
    reasons = tuple(reason for reason, holds in checks.items() if holds)
    top1 = None if metrics is None else metrics.top1
    gap = None if reasons or top1 is None or published_top1 is None else 100 * top1 - published_top1
    return Comparison(is_comparable=gap is not None, reasons=reasons, published_top1=published_top1, gap_points=gap)


def comparable_top1(published: Published | None) -> float | None:
    """The published top-1, in per cent, that a network trained by the recipe is compared with.

    That is the number of `ckpt`, else of `infer_ckpt`. Where one file has two numbers, the second corrects the first
    and counts. None if nothing was published.
    """
    if published is None:
        return None
    numbers = {kind: top1 for kind, (_, top1, _) in published.released.items()}
    first = published.top1[0] if published.top1 else None
    return numbers.get("ckpt", numbers.get("infer_ckpt", first))


def judge(dataset: str, overrides: Sequence[str], metrics: Metrics, published_top1: float) -> tuple[Verdict, str]:
    """Whether published weights reproduce their published top-1 (in per cent) here, and why.

    Stricter than `compare`: a verdict needs every clip of the published list. Reproduced: the published number lies in
    the 95 % interval of the measured one.
    """
    comparison = compare(dataset, overrides, metrics, published_top1)
    if "data" in comparison.reasons:
        return "different data", f"this is {dataset}"
    if "recipe" in comparison.reasons:
        return "different data", f"changed recipe: {', '.join(overrides)}"
    if not metrics.published_list_sha256:
        return "different data", (
            f"{metrics.clips:,} clips, and not those of the published list: "
            f"datasets.{dataset}.published_lists.val does not give it"
        )
    if metrics.num_listed != PUBLISHED_CLIPS:
        return "different data", f"the given list has {metrics.num_listed:,} clips, the published {PUBLISHED_CLIPS:,}"
    if gone := metrics.num_listed - metrics.clips:
        return "different data", f"{gone:,} of the {metrics.num_listed:,} listed clips are missing or did not decode"
    low, high = (100 * bound for bound in metrics.interval())
    why = f"{comparison.gap_points:+.2f} points"
    for count, difference in (
        (metrics.other_frames, "another number of frames"),
        (metrics.other_label, "another label"),
    ):
        if count:
            why += f"; {count:,} clips have {difference}"
    return ("reproduced" if low <= published_top1 <= high else "not reproduced"), why
