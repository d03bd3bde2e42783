"""The logits of every view of every video in a file, and averages over chosen views.

A view is one of num_clips clips of a video, cut by one of num_crops crops. View number = crop * num_clips + clip:

    2 clips, 3 crops  ->  left 0, left 1, right 0, right 1, centre 0, centre 1

(top, bottom, centre of a portrait video). A single crop is the centre.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import UserError
from .tensor_file import Pieces, read_header, read_tensors, write_tensors

Average = Literal["prob", "score"]

_FORMAT = "actionzoo views 1"
_BLOCK = 64
"""Videos that are in memory at once. One size everywhere, so that averages are the same to the last bit."""


@dataclass(frozen=True)
class ViewLogits:
    """The content of a file of view logits, of N videos."""

    video_ids: list[str]
    labels: Tensor
    """(N,) int64; -1 for a video without a label."""
    logits: Tensor
    """(N, num_crops * num_clips, num_classes) float32, mapped from the file."""
    num_clips: int
    num_crops: int
    classes: list[str]
    """Names of the classes, in the order of the logits."""
    about: dict[str, Any]
    """What the file says about the evaluation: model, dataset, split, list_sha256, precision, fingerprint,
    checkpoint_md5, and the numbers of listed, missing and undecodable clips."""

    @property
    def num_views(self) -> int:
        return self.num_clips * self.num_crops


@dataclass(frozen=True, kw_only=True)
class ViewsHeader:
    """What a file of view logits holds beside the logits, of N videos."""

    video_ids: Sequence[str]
    labels: Sequence[int]
    """-1 for a video without a label."""
    num_clips: int
    num_crops: int
    classes: Sequence[str]
    """Names of the classes, in the order of the logits."""
    about: Mapping[str, object]
    """As in ViewLogits."""


def write_views(path: Path, header: ViewsHeader, logits: Iterable[Tensor]) -> None:
    """Write the file whole or not at all.

    `logits` yields (num_crops * num_clips, num_classes) float32 for one video after the other, in the header's order.
    """
    known = {
        "num_clips": header.num_clips,
        "num_crops": header.num_crops,
        "classes": list(header.classes),
        "video_ids": list(header.video_ids),
        **header.about,
    }
    labels = torch.tensor(header.labels, dtype=torch.int64)
    shape = (len(header.video_ids), header.num_clips * header.num_crops, len(header.classes))
    write_tensors(
        path,
        {
            "labels": Pieces((len(labels),), torch.int64, [labels]),
            "logits": Pieces(shape, torch.float32, (clip.unsqueeze(0) for clip in logits)),
        },
        {"format": _FORMAT, "about": json.dumps(known, ensure_ascii=False)},
    )


def read_views(path: Path) -> ViewLogits:
    """Map the file. Raises UserError if it is missing, damaged, or of another kind."""
    try:
        tensors, texts = read_tensors(path)
    except FileNotFoundError:
        raise UserError(
            f"{path} is not there; `dvc repro evaluate@<model>` and `actionzoo evaluate --views` make it"
        ) from None
    if texts.get("format") != _FORMAT:
        raise UserError(f"{path} has no view logits; give a views.safetensors that `dvc repro evaluate@<model>` made")
    known = _about(texts)
    labels, logits = tensors.get("labels"), tensors.get("logits")
    names = (("video_ids", list), ("num_clips", int), ("num_crops", int), ("classes", list))
    faults = [name for name, kind in names if not isinstance(known.get(name), kind)]
    if labels is None or labels.dtype != torch.int64 or logits is None or logits.dtype != torch.float32:
        faults.append("labels or logits")
    elif not faults:
        count, views = len(known["video_ids"]), known["num_clips"] * known["num_crops"]
        if tuple(labels.shape) != (count,) or tuple(logits.shape) != (count, views, len(known["classes"])):
            faults.append("as many labels and logits as clips, views and classes")
        elif known["num_crops"] not in (1, 3) or views < 1:
            faults.append("one or three crops")
        elif count and not -1 <= int(labels.min()) <= int(labels.max()) < len(known["classes"]):
            faults.append("a class for each label")
    if faults:
        raise UserError(f"{path} is damaged: it lacks {', '.join(faults)}; evaluate the model again")
    assert labels is not None and logits is not None
    return ViewLogits(
        video_ids=known.pop("video_ids"),
        labels=labels,
        logits=logits,
        num_clips=known.pop("num_clips"),
        num_crops=known.pop("num_crops"),
        classes=known.pop("classes"),
        about=known,
    )


def _about(texts: Mapping[str, str]) -> dict[str, Any]:
    """Return what the file says about its evaluation; empty if that cannot be read."""
    try:
        known = json.loads(texts.get("about", ""))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(known, dict):
        return {}
    return {"model" if key == "row" else key: value for key, value in known.items()}  # row: as older versions wrote


def fingerprint_of(path: Path) -> str | None:
    """Return the fingerprint of the evaluation that made the file; None if there is no whole file."""
    try:
        texts = read_header(path)[1]
    except (FileNotFoundError, UserError):
        return None
    return _about(texts).get("fingerprint") if texts.get("format") == _FORMAT else None


def average_views(logits: Tensor, num_views: int, average_clips: Average) -> Tensor:
    """Average (N * num_views, num_classes) logits, views of a video adjacent, to (N, num_classes) float32.

    "prob" averages the softmax of each view, "score" the logits themselves.
    """
    views = torch.unflatten(logits.float(), 0, (-1, num_views))
    return (views.softmax(dim=2) if average_clips == "prob" else views).mean(dim=1)


def average(views: ViewLogits, average_clips: Average, chosen: Sequence[int] | None = None) -> Tensor:
    """Return each video's average over its views, or over the `chosen` view numbers: (N, num_classes) float32."""
    # allocated first: small results between large blocks that are freed would fragment the memory
    averages, end = torch.empty(len(views.video_ids), len(views.classes)), 0
    for block in blocks(views):
        block = block if chosen is None else block[:, list(chosen)]
        start, end = end, end + len(block)
        averages[start:end] = average_views(block.flatten(0, 1), block.shape[1], average_clips)
    return averages


def blocks(views: ViewLogits) -> Iterator[Tensor]:
    """Yield the logits of successive videos, (n, num_views, num_classes) with n up to 64."""
    for start in range(0, len(views.video_ids), _BLOCK):
        yield views.logits[start : start + _BLOCK]


def choose(views: ViewLogits, clips: int, crops: int) -> list[int]:
    """Return the view numbers of `clips` clips, evenly spread over the video, each with `crops` crops.

    One crop is the centre, two are the outer ones. Raises UserError if the file has fewer.
    """
    if not (1 <= clips <= views.num_clips and 1 <= crops <= views.num_crops):
        raise UserError(
            f"{clips}x{crops} views are asked for, there are {views.num_clips}x{views.num_crops} (clips x crops); ask "
            "for as many or fewer"
        )
    return [crop * views.num_clips + clip for crop in _crops(views)[crops] for clip in _evenly(clips, views.num_clips)]


def choose_number(views: ViewLogits, number: int) -> list[int]:
    """Return `number` view numbers, evenly spread over the video: of the centre crop first, then of the others, too."""
    centre = _crops(views)[1][0] * views.num_clips
    if number <= views.num_clips:
        return [centre + clip for clip in _evenly(number, views.num_clips)]
    others = [view for view in range(views.num_views) if not centre <= view < centre + views.num_clips]
    # in the order of time, so that the chosen ones are evenly spread as well
    others.sort(key=lambda view: (view % views.num_clips, view))
    more = [others[index] for index in _evenly(number - views.num_clips, len(others))]
    return sorted([*range(centre, centre + views.num_clips), *more])


def _crops(views: ViewLogits) -> dict[int, list[int]]:
    """Number of crops -> which crops."""
    return {1: [0]} if views.num_crops == 1 else {1: [2], 2: [0, 1], 3: [0, 1, 2]}


def _evenly(count: int, total: int) -> list[int]:
    """Return `count` indices below `total`, each in the middle of its share: 2 of 10  ->  2, 7"""
    return [int((number + 0.5) * total / count) for number in range(count)]
