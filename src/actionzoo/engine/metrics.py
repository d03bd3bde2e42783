"""Accuracies over (N, num_classes) scores and (N,) labels, exact down to ties."""

import torch
from torch import Tensor


def top_k_accuracy(scores: Tensor, labels: Tensor, topk: tuple[int, ...] = (1, 5)) -> list[float]:
    """Share of clips whose label is among the k best scores, for each k. Of equal scores the later class wins."""
    order = scores.argsort(dim=1, stable=True).flip(1)
    hits = order == labels[:, None]
    return [hits[:, :k].any(dim=1).double().mean().item() for k in topk]


def mean_class_accuracy(scores: Tensor, labels: Tensor) -> float:
    """Mean over classes of the share of their clips that is right. Of equal scores the earlier class wins.

    Averages over the classes that occur as a label or as a prediction, as MMAction2 does: a class that is only
    predicted counts 0.
    """
    predictions = scores.argsort(dim=1, descending=True, stable=True)[:, 0]
    num_classes = scores.shape[1]
    seen = torch.bincount(labels, minlength=num_classes)
    right = torch.bincount(labels[predictions == labels], minlength=num_classes)
    occurs = (seen + torch.bincount(predictions, minlength=num_classes)) > 0
    return (right.double() / seen.clamp(min=1))[occurs].mean().item()
