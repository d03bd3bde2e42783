"""Clips through a network in eval mode: the logits of their views, and scores averaged over them."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import UserError
from .distributed import World
from .metrics import accuracies
from .precision import Precision, computing_in
from .views import Average, average_views


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
        return accuracies(self.scores, self.labels, self.video_ids)


@dataclass
class ViewBatch:
    """What came of a batch of a loader."""

    video_ids: list[str]
    labels: Tensor
    """(N,) int64."""
    logits: Tensor
    """(N, num_views, num_classes) float32, on the CPU."""
    exact: Tensor | None
    """The same computed in fp32, where that was asked for."""
    undecodable: list[str]


def view_logits(
    model: nn.Module,
    loader: Iterable,
    to_input: Callable[[Sequence], Tensor],
    *,
    max_views: int = 10,
    precision: Precision | None = None,
    is_compared: Callable[[str], bool] = lambda video_id: False,
    on_text: Callable[[str], None] = lambda text: None,
) -> Iterator[ViewBatch]:
    """Run the model in eval mode over a loader of batches with views, labels and video_ids.

    A batch's views are a sequence, those of a clip side by side. At most max_views of them are cut and pass through the
    network at once; fewer, and on_text hears of it, once memory has run out. precision None leaves all as it is set.
    Batches with a clip that is_compared names are computed in fp32 as well. Leaves the model in the mode it was in.
    Raises UserError where the memory does not even hold one view.
    """
    was_training, forward = model.training, _Forward(model, to_input, max_views, on_text)
    model.eval()
    try:
        for batch in loader:
            logits = exact = torch.empty(0)
            if batch.video_ids:
                num_clips = len(batch.video_ids)
                logits = forward(batch.views, precision).unflatten(0, (num_clips, -1))
                if any(map(is_compared, batch.video_ids)):
                    exact = forward(batch.views, "fp32").unflatten(0, (num_clips, -1))
            yield ViewBatch(batch.video_ids, batch.labels, logits, exact if exact.numel() else None, batch.undecodable)
    finally:
        model.train(was_training)


def evaluate(
    model: nn.Module,
    loader: Iterable,
    to_input: Callable[[Sequence], Tensor],
    *,
    average_clips: Average = "prob",
    max_views: int = 10,
    on_batch: Callable[[int], None] = lambda done: None,
    world: World = World(),  # noqa: B008  # frozen
) -> Scores:
    """Scores of all clips of a loader, averaged over their views; of all processes, each clip once.

    As `view_logits` reads it; keeps no more than the averages.
    """
    video_ids, labels, scores, undecodable = [], [], [], []
    for batch in view_logits(model, loader, to_input, max_views=max_views):
        undecodable += batch.undecodable
        if batch.video_ids:
            num_views = batch.logits.shape[1]
            scores.append(average_views(batch.logits.flatten(0, 1), num_views, average_clips))
            labels.append(batch.labels)
            video_ids += batch.video_ids
        on_batch(len(video_ids) + len(undecodable))
    if not scores and world.size == 1:
        raise UserError("no clip decoded: " + "; ".join(undecodable[:3]))
    empty = torch.empty(0)
    mine = Scores(
        video_ids, torch.cat(labels) if labels else empty.long(), torch.cat(scores) if scores else empty, undecodable
    )
    return mine if world.size == 1 else _gather(mine, world)


class _Forward:
    """Views -> logits, so many at a time as fit."""

    def __init__(
        self, model: nn.Module, to_input: Callable[[Sequence], Tensor], size: int, on_text: Callable[[str], None]
    ):
        self._model, self._to_input, self._size, self._on_text = model, to_input, size, on_text
        self._device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def __call__(self, views: Sequence, precision: Precision | None) -> Tensor:
        """(len(views), num_classes) float32, on the CPU."""
        parts, start = [], 0
        while start < len(views):
            part, fault = views[start : start + self._size], ""
            try:
                parts.append(self._pass(part, precision))
                start += len(part)
            except torch.OutOfMemoryError as error:
                fault = str(error).splitlines()[0]
            if fault:  # outside of the except block, whose traceback holds what is to be freed
                self._take_fewer(len(part), fault)
        return torch.cat(parts)

    @torch.inference_mode()
    def _pass(self, views: Sequence, precision: Precision | None) -> Tensor:
        with computing_in(precision, self._device) if precision else contextlib.nullcontext():
            return self._model(self._to_input(views)).float().cpu()

    def _take_fewer(self, tried: int, fault: str) -> None:
        if tried == 1:
            raise UserError(
                f"the GPU's memory does not hold one view ({fault}); end what else runs there, or set "
                "runtime.precision to bf16. What is finished stays, run again"
            )
        self._size = tried // 2
        torch.cuda.empty_cache()
        self._on_text(f"the GPU's memory does not hold {tried} views ({fault}); {self._size} at a time from here on")


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
