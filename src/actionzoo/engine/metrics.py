"""Accuracies of (N, num_classes) scores and (N,) int64 labels, as fractions from 0 to 1, exact down to ties.

MMAction2 sorts with numpy's default sort, whose order of equal scores depends on numpy's version and on the CPU. Here
the sort is stable, so that ties are decided alike everywhere.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import UserError


def accuracies(
    scores: Tensor, labels: Tensor, video_ids: Sequence[str] = (), topk: Sequence[int] = (1, 5)
) -> dict[str, float]:
    """Return top1, top5 (or top<k> of the given k) and mean_class. Raises UserError as `check_scores` does."""
    check_scores(scores, labels, video_ids)
    best = dict(zip((f"top{k}" for k in topk), top_k_accuracy(scores, labels, topk), strict=True))
    return best | {"mean_class": mean_class_accuracy(scores, labels)}


def top_k_accuracy(scores: Tensor, labels: Tensor, topk: Sequence[int] = (1, 5)) -> list[float]:
    """Return the share of clips whose label is among the k best scores, for each k.

    Of equal scores the later class wins. With fewer than k classes, all are among the k best. Raises UserError as
    `check_scores` does.
    """
    check_scores(scores, labels)
    shares: list[float] = top_k_hits(scores, labels, topk).double().mean(dim=0).tolist()
    return shares


def top_k_hits(scores: Tensor, labels: Tensor, topk: Sequence[int]) -> Tensor:
    """Return whether a clip's label is among its k best scores, (N, len(topk)) bool."""
    order = scores.argsort(dim=1, stable=True).flip(1)
    hits = order == labels[:, None]
    return torch.stack([hits[:, :k].any(dim=1) for k in topk], dim=1)


def mean_class_accuracy(scores: Tensor, labels: Tensor) -> float:
    """Return the mean over classes of the share of a class's clips that is right.

    As in MMAction2, the mean is over the classes that occur as a label or as a prediction, and a class that is only
    predicted counts 0. Of equal scores the earlier class wins. Raises UserError as `check_scores` does.
    """
    check_scores(scores, labels)
    predictions = scores.argsort(dim=1, descending=True, stable=True)[:, 0]
    num_classes = scores.shape[1]
    seen = torch.bincount(labels, minlength=num_classes)
    right = torch.bincount(labels[predictions == labels], minlength=num_classes)
    occurs = (seen + torch.bincount(predictions, minlength=num_classes)) > 0
    return (right.double() / seen.clamp(min=1))[occurs].mean().item()


def check_scores(scores: Tensor, labels: Tensor | None = None, video_ids: Sequence[str] = ()) -> None:
    """Raise UserError if there is no clip, or if a clip has NaN scores or a label that is no class; names the clip.

    `scores` may have dimensions between the first and the last, such as views. Without this check, such input would
    yield an accuracy that looks valid.
    """
    if not len(scores):
        raise UserError("there is no clip to compute an accuracy of")
    bad = scores.isnan().flatten(1).any(dim=1)
    if bad.any():
        raise UserError(
            f"{_names(bad, video_ids)}: scores are NaN, so the network's weights or its input are NaN or infinite; "
            "look at the clip, set runtime.precision to fp32, or use another checkpoint"
        )
    if labels is None:
        return
    invalid = (labels < 0) | (labels >= scores.shape[-1])
    if invalid.any():
        label = int(labels[invalid.nonzero()[0, 0]])
        raise UserError(
            f"{_names(invalid, video_ids)}: label {label} is none of the {scores.shape[-1]} classes scored"
            + ("; a split without labels has no accuracy" if label == -1 else "")
        )


def _names(which: Tensor, video_ids: Sequence[str]) -> str:
    """Name the first of the clips, and how many there are."""
    numbers = which.nonzero()[:, 0].tolist()
    first = video_ids[numbers[0]] if video_ids else f"clip number {numbers[0]}"
    return f"{first} ({len(numbers)} of {len(which)} clips)" if len(numbers) > 1 else first
