"""How far a precision is from fp32, on the first clips of an evaluation."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..engine.views import Average, average_views
from ..records import Fp32Comparison


def compare_with_fp32(pairs: Sequence[tuple[Tensor, Tensor]], average_clips: Average) -> Fp32Comparison:
    """`pairs` are the (views, classes) logits of a clip each: in the precision, and in fp32."""
    found, exact = (
        torch.cat([average_views(pair[side], len(pair[side]), average_clips) for pair in pairs]) for side in (0, 1)
    )
    changes = int((found.argmax(1) != exact.argmax(1)).sum())
    if average_clips == "score":
        found, exact = found.softmax(1), exact.softmax(1)
    difference = (found - exact).abs().max().item()
    return Fp32Comparison(clips=len(pairs), largest_probability_difference=difference, top1_changes=changes)


def comparison_text(comparison: Fp32Comparison, precision: str) -> str:
    return (
        f"fp32 comparison: on {comparison.clips} clips, {precision} changes probabilities by at most "
        f"{comparison.largest_probability_difference:.2g} and the top-1 of {comparison.top1_changes}"
    )
