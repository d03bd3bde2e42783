"""Clips through a network in eval mode: the logits of their views, and scores averaged over the views."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from .data import Batch, ToInput
from .distributed import World
from .metrics import accuracies
from .precision import Precision, computing_in
from .views import Average, average_views


@dataclass(frozen=True)
class Inference:
    """How views pass through a network."""

    to_input: ToInput
    max_views: int = 10
    """Views that pass through the network at once, at most; fewer once memory has run out."""
    precision: Precision | None = None
    """None computes as torch is set up."""


@dataclass
class Scores:
    """Scores of N clips, in the order of the loader; gathered from several processes, in the order of the ids."""

    video_ids: list[str]
    labels: Tensor
    """(N,) int64."""
    scores: Tensor
    """(N, num_classes) float32, averaged over views."""
    undecodable: list[str]
    """A sentence for each clip that is missing here because it did not decode."""

    def accuracies(self) -> dict[str, float]:
        """Return top1, top5 and mean_class, 0 to 1. Raises UserError that names a clip whose scores are NaN."""
        return accuracies(self.scores, self.labels, self.video_ids)


@dataclass
class BatchLogits:
    """The logits of a batch of N clips; N is 0 if none of them decoded."""

    video_ids: list[str]
    labels: Tensor
    """(N,) int64."""
    logits: Tensor
    """(N, num_views, num_classes) float32, on the CPU."""
    fp32_logits: Tensor | None
    """The same computed in fp32, for the fp32 comparison; None if the batch is not compared."""
    undecodable: list[str]
    """A sentence for each clip of the batch that did not decode."""


def view_logits(
    model: nn.Module,
    loader: Iterable[Batch],
    inference: Inference,
    *,
    is_compared: Callable[[str], bool] = lambda video_id: False,
    on_text: Callable[[str], None] = lambda text: None,
) -> Iterator[BatchLogits]:
    """Run the model in eval mode over a loader; yield the logits of one batch after another.

    Batches with a clip for which `is_compared(video_id)` holds are computed in fp32 as well. `on_text` is called if
    memory runs out and fewer views pass from there on. Every module is left in the mode that it was in. Raises
    UserError if the memory does not hold a single view.
    """
    forward = _Forward(model, inference, on_text)
    with _eval_mode(model):
        for batch in loader:
            logits, fp32_logits = torch.empty(0), None
            if batch.video_ids:
                logits = forward(batch, inference.precision)
                if any(map(is_compared, batch.video_ids)):
                    fp32_logits = forward(batch, "fp32")
            yield BatchLogits(batch.video_ids, batch.labels, logits, fp32_logits, batch.undecodable)


def evaluate(
    model: nn.Module,
    loader: Iterable[Batch],
    inference: Inference,
    *,
    average_clips: Average = "prob",
    on_batch: Callable[[int], None] = lambda done: None,
    world: World = World(),  # noqa: B008  # frozen
) -> Scores:
    """Return the scores of a loader's clips, averaged over their views; over all processes, each clip once.

    Keeps the averages alone, not the logits. `on_batch` is called with the number of clips that this process has seen.
    Raises UserError if no clip decodes, and as `view_logits` does.
    """
    video_ids: list[str] = []
    labels: list[Tensor] = []
    scores: list[Tensor] = []
    undecodable: list[str] = []
    for batch in view_logits(model, loader, inference):
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


@contextlib.contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Switch to eval mode, and back to the mode of each module: in training, frozen modules are in eval mode too."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, is_training in modes:
            module.training = is_training


class _Forward:
    """Computes logits, as many views at a time as fit into memory."""

    def __init__(self, model: nn.Module, inference: Inference, on_text: Callable[[str], None]):
        self._model, self._to_input, self._on_text = model, inference.to_input, on_text
        self._max_views = inference.max_views
        self._device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def __call__(self, batch: Batch, precision: Precision | None) -> Tensor:
        """Return the logits of a batch that has clips, (N, num_views, num_classes) float32 on the CPU."""
        views, parts, start = batch.views, [], 0
        while start < len(views):
            part, fault = views[start : start + self._max_views], ""
            try:
                parts.append(self._pass(part, precision))
                start += len(part)
            except torch.OutOfMemoryError as error:
                fault = str(error).splitlines()[0]
            if fault:  # outside the except block, whose traceback keeps alive what is to be freed
                self._lower_max_views(len(part), fault)
        return torch.unflatten(torch.cat(parts), 0, (len(batch.video_ids), -1))

    @torch.inference_mode()
    def _pass(self, views: Sequence[Any], precision: Precision | None) -> Tensor:
        with computing_in(precision, self._device) if precision else contextlib.nullcontext():
            logits: Tensor = self._model(self._to_input(views))
            return logits.float().cpu()

    def _lower_max_views(self, tried: int, fault: str) -> None:
        if tried == 1:
            raise UserError(
                f"the GPU's memory does not hold one view ({fault}); end what else runs there, or set "
                "runtime.precision to bf16. What is finished stays, run again"
            )
        self._max_views = tried // 2
        torch.cuda.empty_cache()
        self._on_text(
            f"the GPU's memory does not hold {tried} views ({fault}); {self._max_views} at a time from here on"
        )


def _gather(mine: Scores, world: World) -> Scores:
    """Return the scores of all processes, sorted by video id. Each clip is in one process's share."""
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
    return Scores([video_ids[number] for number in order], labels[order], scores[order], undecodable)
