"""Numbers from saved view logits, without reading the clips again: fewer views, several models fused, calibration."""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..engine.calibration import (
    BINS,
    Bin,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability,
    tempered,
)
from ..engine.metrics import accuracies, check_scores, top_k_hits
from ..engine.views import Average, ViewLogits, average, average_views, blocks, choose, choose_number, read_views
from ..errors import UserError
from ..metric_keys import wilson_interval


@dataclass(frozen=True, kw_only=True)
class ScoresRequest:
    """What `actionzoo scores` is asked for."""

    clips: int | None = None
    """Of each video, evenly spread; None: all, as for crops."""
    crops: int | None = None
    average_clips: Average = "prob"
    weights: Sequence[float] | None = None
    """Of the files; None: equal."""
    is_by_views: bool = False
    is_calibrated: bool = False


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The evaluation that made a file of view logits, as the file says."""

    model: str
    dataset: str
    split: str
    precision: str
    checkpoint_md5: str
    list_sha256: str
    missing: int
    """Number of clips, as in the next two."""
    undecodable: int
    listed: int


@dataclass(frozen=True, kw_only=True)
class Accuracies:
    """Shares of 1, with the 95 % interval of top1."""

    top1: float
    top5: float
    mean_class: float
    clips: int
    """Number of clips."""
    top1_low: float
    top1_high: float

    @classmethod
    def of(cls, scores: Tensor, labels: Tensor, video_ids: Sequence[str]) -> "Accuracies":
        """Raises UserError as engine.metrics.check_scores does."""
        found, clips = accuracies(scores, labels, video_ids), len(video_ids)
        low, high = wilson_interval(round(found["top1"] * clips), clips)
        return cls(**found, clips=clips, top1_low=low, top1_high=high)


@dataclass(frozen=True, kw_only=True)
class FileScores:
    """The numbers of one file alone."""

    file: str
    evaluation: Evaluation
    views: str
    """Clips x crops that are averaged."""
    of_views: str
    """Clips x crops in the file."""
    metrics: Accuracies

    def as_json(self) -> dict[str, Any]:
        """In one object, the evaluation's keys after the file."""
        plain = dataclasses.asdict(self)
        evaluation = plain.pop("evaluation")
        return {"file": self.file, **evaluation, **plain}


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """How far probabilities are from the accuracy that they promise."""

    expected_calibration_error: float
    nll: float
    """Mean negative log-likelihood, in nats."""
    reliability: list[Bin]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    bins: int = BINS
    temperature: float
    temperature_fitted_on: str = "these very clips"
    as_is: Reliability
    with_temperature: Reliability


@dataclass(frozen=True, kw_only=True)
class ViewScores:
    """What `actionzoo scores` prints. None for what was not asked for, or makes no sense for a single file."""

    average_clips: Average
    files: list[FileScores]
    weights: list[float] | None
    """By file; their sum is 1."""
    left_out: dict[str, list[str]] | None
    """File -> ids of its clips that another file lacks."""
    metrics: Accuracies
    """Of all files together."""
    by_views: list[dict[str, float]] | None
    calibration: Calibration | None


def measure(paths: Sequence[Path], request: ScoresRequest = ScoresRequest()) -> ViewScores:
    """The numbers of one file; of several, those of the weighted mean of their probabilities.

    Raises UserError where the files are of other splits, lists of clips or classes.
    """
    shares = _shares(request.weights, len(paths))
    files = [_read(path) for path in paths]
    chosen = [_chosen(file.views, request) for file in files]
    if len(files) > 1:
        _check_alike(files)
        if request.is_by_views:
            raise UserError(f"--by-views is of one file, {len(files)} are given; give one")
    pairs = zip(files, chosen, strict=True)
    alone = [average(file.views, request.average_clips, numbers) for file, numbers in pairs]
    for file, scores in zip(files, alone, strict=True):
        check_scores(scores, file.views.labels, file.views.video_ids)
    views, left_out = files[0].views, None
    if len(files) == 1:
        scores, labels, video_ids = alone[0], views.labels, views.video_ids
        log_probs = _log_probs(scores, request.average_clips)
    else:
        fused = _fuse(files, alone, shares, request.average_clips)
        scores, labels, video_ids = fused.probabilities, fused.labels, fused.video_ids
        log_probs, left_out = _log_probs(scores, "prob"), fused.left_out
    return ViewScores(
        average_clips=request.average_clips,
        files=[_of_file(file, request, scores) for file, scores in zip(files, alone, strict=True)],
        weights=shares if len(files) > 1 else None,
        left_out=left_out,
        metrics=Accuracies.of(scores, labels, video_ids),
        by_views=by_number_of_views(views, request.average_clips) if request.is_by_views else None,
        calibration=_calibration(log_probs, labels) if request.is_calibrated else None,
    )


def by_number_of_views(views: ViewLogits, average_clips: Average = "prob") -> list[dict[str, float]]:
    """views, top1, top5 for 1 view, 2 views, … all. Few views are clips spread over the video, at the centre."""
    numbers = range(1, views.num_views + 1)
    chosen = [choose_number(views, number) for number in numbers]
    hits = torch.zeros(len(numbers), 2, dtype=torch.int64)
    start = 0
    for block in blocks(views):
        labels = views.labels[start : start + len(block)]
        start += len(block)
        for place, some in enumerate(chosen):
            scores = average_views(block[:, some].flatten(0, 1), len(some), average_clips)
            check_scores(scores, labels, views.video_ids[start - len(block) : start])
            hits[place] += top_k_hits(scores, labels, (1, 5)).sum(dim=0)
    shares = (hits.double() / len(views.video_ids)).tolist()
    return [{"views": number, "top1": top1, "top5": top5} for number, (top1, top5) in zip(numbers, shares, strict=True)]


def as_text(found: ViewScores) -> str:
    """The numbers as lines for people."""
    lines = [_file_line(file, number, found) for number, file in enumerate(found.files)]
    for path, names in (found.left_out or {}).items():
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            lines.append(
                f"left out, for another file lacks them: {len(names)} clips of {path}: {', '.join(names[:5])}{more}"
            )
    metrics = found.metrics
    lines += [
        *([f"together, {metrics.clips} clips that all have:"] if len(found.files) > 1 else []),
        f"top1_acc: {metrics.top1:.4f} (95 %: {metrics.top1_low:.4f}-{metrics.top1_high:.4f})",
        f"top5_acc: {metrics.top5:.4f}",
        f"mean_class_accuracy: {metrics.mean_class:.4f}",
    ]
    if found.by_views:
        lines += ["", "views    top1    top5"]
        lines += [f"{line['views']:>5}  {line['top1']:.4f}  {line['top5']:.4f}" for line in found.by_views]
    if found.calibration:
        lines += ["", *_calibration_lines(found.calibration)]
    return "\n".join(lines)


def as_json(found: ViewScores) -> str:
    """One object; without the keys that are None."""
    plain = dataclasses.asdict(found) | {"files": [file.as_json() for file in found.files]}
    return json.dumps({key: value for key, value in plain.items() if value is not None}, indent=1, ensure_ascii=False)


@dataclass(frozen=True)
class _File:
    path: Path
    views: ViewLogits
    evaluation: Evaluation


def _read(path: Path) -> _File:
    """Raises UserError for a file that is damaged, or does not say all of its evaluation."""
    views, kinds = read_views(path), {"missing": int, "undecodable": int, "listed": int}
    names = [field.name for field in dataclasses.fields(Evaluation)]
    if lacking := [name for name in names if not isinstance(views.about.get(name), kinds.get(name, str))]:
        raise UserError(f"{path} is damaged: it lacks {', '.join(lacking)}; evaluate the model again")
    return _File(path, views, Evaluation(**{name: views.about[name] for name in names}))


def _chosen(views: ViewLogits, request: ScoresRequest) -> list[int] | None:
    """Numbers of the views that are averaged; None for all. Raises UserError if the file has fewer."""
    if request.clips is None and request.crops is None:
        return None
    clips = views.num_clips if request.clips is None else request.clips
    return choose(views, clips, views.num_crops if request.crops is None else request.crops)


def _of_file(file: _File, request: ScoresRequest, scores: Tensor) -> FileScores:
    views = file.views
    return FileScores(
        file=str(file.path),
        evaluation=file.evaluation,
        views=f"{request.clips or views.num_clips}x{request.crops or views.num_crops}",
        of_views=f"{views.num_clips}x{views.num_crops}",
        metrics=Accuracies.of(scores, views.labels, views.video_ids),
    )


def _check_alike(files: Sequence[_File]) -> None:
    """Raises UserError if scores of one file mean something else in another."""
    first, told = files[0], files[0].evaluation
    for file in files[1:]:
        path, views = file.path, file.views
        for ours, theirs, what in (
            (file.evaluation.split, told.split, "another split"),
            (file.evaluation.list_sha256, told.list_sha256, "another list of clips"),
        ):
            if ours != theirs:
                raise UserError(
                    f"{path} is of {what} than {first.path} ({ours}, not {theirs}); their scores cannot be fused. "
                    "Evaluate both models on one data set"
                )
        if views.classes != first.views.classes:
            known = first.views.classes
            strange = [name for name in views.classes if name not in known]
            what = f"{len(strange)} of its {len(views.classes)} are none of the {len(known)} there"
            what = what if strange else f"{len(views.classes)} of {len(known)}, or in another order"
            raise UserError(f"{path} has other classes than {first.path}: {what}; their scores cannot be fused")
        labels = dict(zip(first.views.video_ids, first.views.labels.tolist(), strict=True))
        for video_id, label in zip(views.video_ids, views.labels.tolist(), strict=True):
            if labels.get(video_id, label) != label:
                raise UserError(f"{video_id} has label {label} in {path} and {labels[video_id]} in {first.path}")


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    """The weights, so that they add up to 1."""
    weights = [1.0] * count if weights is None else list(weights)
    if len(weights) != count:
        raise UserError(f"--weights has {len(weights)} numbers for {count} files; give one for each")
    if not all(0 <= weight < math.inf for weight in weights) or not 0 < sum(weights) < math.inf:
        raise UserError(f"--weights {' '.join(f'{weight:g}' for weight in weights)}: none below 0, and not all 0")
    return [weight / sum(weights) for weight in weights]


@dataclass(frozen=True)
class _Fused:
    """The clips that all files have."""

    probabilities: Tensor
    """(N, num_classes) float64."""
    labels: Tensor
    """(N,) int64."""
    video_ids: list[str]
    left_out: dict[str, list[str]]
    """File -> ids of its clips that another file lacks."""


def _fuse(files: Sequence[_File], alone: Sequence[Tensor], shares: Sequence[float], average_clips: Average) -> _Fused:
    """The weighted mean of the files' probabilities. Raises UserError if they have no clip in common."""
    first = files[0].views
    common = set(first.video_ids).intersection(*(file.views.video_ids for file in files[1:]))
    if not common:
        raise UserError("the files have no clip in common")
    video_ids = [video_id for video_id in first.video_ids if video_id in common]
    probs = torch.zeros(len(video_ids), len(first.classes), dtype=torch.float64)
    for file, scores, share in zip(files, alone, shares, strict=True):
        place = {video_id: number for number, video_id in enumerate(file.views.video_ids)}
        own = scores if average_clips == "prob" else scores.softmax(dim=1)
        probs += share * own[[place[video_id] for video_id in video_ids]].double()
    labels = dict(zip(first.video_ids, first.labels.tolist(), strict=True))
    left_out = {
        str(file.path): [video_id for video_id in file.views.video_ids if video_id not in common] for file in files
    }
    return _Fused(probs, torch.tensor([labels[video_id] for video_id in video_ids]), video_ids, left_out)


def _log_probs(scores: Tensor, average_clips: Average) -> Tensor:
    if average_clips == "score":
        return scores.double().log_softmax(dim=1)
    return scores.double().clamp(min=torch.finfo(torch.float32).tiny).log()  # far classes are 0 in float32


def _calibration(log_probs: Tensor, labels: Tensor) -> Calibration:
    def reliability_of(log_probs: Tensor) -> Reliability:
        bins = reliability(log_probs, labels)
        return Reliability(
            expected_calibration_error=expected_calibration_error(bins),
            nll=negative_log_likelihood(log_probs, labels),
            reliability=bins,
        )

    temperature = fit_temperature(log_probs, labels)
    return Calibration(
        temperature=temperature,
        as_is=reliability_of(log_probs),
        with_temperature=reliability_of(tempered(log_probs, temperature)),
    )


def _file_line(file: FileScores, number: int, found: ViewScores) -> str:
    views = file.views if file.views == file.of_views else f"{file.views} of {file.of_views}"
    evaluation, metrics = file.evaluation, file.metrics
    line = (
        f"{file.file}: {evaluation.model} on {evaluation.split} of {evaluation.dataset}, {metrics.clips} of "
        f"{evaluation.listed} listed clips, {views} views, average {found.average_clips}"
    )
    if found.weights:
        line += f", weight {found.weights[number]:.3g}: top1_acc: {metrics.top1:.4f}"
    return line


def _calibration_lines(calibration: Calibration) -> list[str]:
    as_is, with_temperature = calibration.as_is, calibration.with_temperature
    lines = [
        f"expected calibration error: {as_is.expected_calibration_error:.4f} ({calibration.bins} bins), "
        f"NLL {as_is.nll:.4f}",
        "best probability  clips   mean  right",
    ]
    for bin in as_is.reliability:
        means = f"{bin.confidence:.3f}  {bin.accuracy:.3f}" if bin.clips else "    -      -"
        lines.append(f"{bin.low:.3f} to {bin.high:.3f}  {bin.clips:>7}  {means}")
    lines.append(
        f"temperature {calibration.temperature:.3g}, fitted by NLL on these very clips, which flatters it: expected "
        f"calibration error {with_temperature.expected_calibration_error:.4f}, NLL {with_temperature.nll:.4f}"
    )
    return lines
