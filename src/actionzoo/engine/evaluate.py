"""Scores of every clip, averaged over its views."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from actionzoo.errors import UserError

from .distributed import World
from .metrics import check_scores, mean_class_accuracy, top_k_accuracy


@dataclass
class Scores:
    """One row per clip, in the order of the loader."""

    video_ids: list[str]
    labels: Tensor
    """(N,) int64."""
    scores: Tensor
    """(N, num_classes) float32, averaged over views."""
    undecodable: list[str]
    """One sentence for each clip that is missing here because it did not decode."""

    def accuracies(self) -> dict[str, float]:
        """top1, top5 and mean_class as fractions. Raises UserError that names a clip whose scores are no numbers."""
        check_scores(self.scores, self.labels, self.video_ids)
        top1, top5 = top_k_accuracy(self.scores, self.labels, (1, 5))
        return {"top1": top1, "top5": top5, "mean_class": mean_class_accuracy(self.scores, self.labels)}


def average_views(logits: Tensor, num_views: int, average_clips: Literal["prob", "score"]) -> Tensor:
    """(N x num_views, num_classes) logits, views of a video adjacent -> (N, num_classes).

    prob: softmax of each view, then their mean. score: mean of the raw scores.
    """
    views = logits.float().unflatten(0, (-1, num_views))
    return (views.softmax(dim=2) if average_clips == "prob" else views).mean(dim=1)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Iterable,
    to_input: Callable[[Sequence], Tensor],
    *,
    average_clips: Literal["prob", "score"] = "prob",
    max_views: int = 10,
    on_batch: Callable[[int], None] = lambda done: None,
    world: World = World(),  # noqa: B008  # frozen
) -> Scores:
    """Run the model in eval mode over a loader of batches with views, labels and video_ids.

    A batch's views are a sequence, those of a clip side by side. At most max_views of them are cut and pass through the
    network at once. Leaves the model in the mode it was in.
    """
    was_training, video_ids, labels, scores, undecodable = model.training, [], [], [], []
    model.eval()
    for batch in loader:
        undecodable += batch.undecodable
        if batch.video_ids:
            parts = [batch.views[start : start + max_views] for start in range(0, len(batch.views), max_views)]
            logits = torch.cat([model(to_input(part)).float() for part in parts]).cpu()
            scores.append(average_views(logits, len(batch.views) // len(batch.video_ids), average_clips))
            labels.append(batch.labels)
            video_ids += batch.video_ids
        on_batch(len(video_ids) + len(undecodable))
    model.train(was_training)
    if not scores and world.size == 1:
        raise UserError("no clip decoded: " + "; ".join(undecodable[:3]))
    empty = torch.empty(0)
    mine = Scores(
        video_ids, torch.cat(labels) if labels else empty.long(), torch.cat(scores) if scores else empty, undecodable
    )
    return mine if world.size == 1 else _gather(mine, world)


def _gather(mine: Scores, world: World) -> Scores:
    """The scores of all processes, in the order of the ids: each clip is in one process' share, and counts once."""
    everyone = [Scores(*parts) for parts in world.gather((mine.video_ids, mine.labels, mine.scores, mine.undecodable))]
    parts = [part for part in everyone if part.video_ids]
    undecodable = sorted(reason for part in everyone for reason in part.undecodable)
    if not parts:
        raise UserError("no clip decoded: " + "; ".join(undecodable[:3]))
    video_ids = [video_id for part in parts for video_id in part.video_ids]
    if len(set(video_ids)) < len(video_ids):
        raise RuntimeError("two processes evaluated the same clip")
    order = sorted(range(len(video_ids)), key=video_ids.__getitem__)
    labels, scores = torch.cat([part.labels for part in parts]), torch.cat([part.scores for part in parts])
    return Scores([video_ids[place] for place in order], labels[order], scores[order], undecodable)
