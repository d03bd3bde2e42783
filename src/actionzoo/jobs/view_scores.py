"""Numbers from kept view logits, without another look at the clips: fewer views, several rows together, calibration."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..engine.calibration import (
    BINS,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability,
    tempered,
)
from ..engine.metrics import accuracies, check_scores, top_k_hits
from ..engine.views import Average, ViewLogits, average, average_views, blocks, choose, choose_number, read_views
from ..errors import UserError
from ..metric_keys import with_interval


def measure(
    paths: Sequence[Path],
    *,
    clips: int | None = None,
    crops: int | None = None,
    average_clips: Average = "prob",
    weights: Sequence[float] | None = None,
    is_by_views: bool = False,
    is_calibrated: bool = False,
) -> dict[str, Any]:
    """What `actionzoo scores` tells; plain values. Of several files: the weighted mean of their probabilities.

    `clips` x `crops` views of each file are averaged, all if None. Raises UserError where the files are of other
    questions.
    """
    shares = _shares(weights, len(paths))
    files = [read_views(path) for path in paths]
    for path, views in zip(paths, files, strict=True):
        if lacking := [key for key in _ABOUT if key not in views.about]:
            raise UserError(f"{path} is damaged: it lacks {', '.join(lacking)}; test the row again")
    chosen = [_chosen(views, clips, crops) for views in files]
    if len(files) > 1:
        _check_alike(paths, files)
        if is_by_views:
            raise UserError(f"--by-views is of one file, {len(files)} are given; give one")
    alone = [average(views, average_clips, views_chosen) for views, views_chosen in zip(files, chosen, strict=True)]
    for views, scores in zip(files, alone, strict=True):
        check_scores(scores, views.labels, views.video_ids)
    made: dict[str, Any] = {
        "average_clips": average_clips,
        "files": [
            _of_file(path, views, clips, crops, scores) for path, views, scores in zip(paths, files, alone, strict=True)
        ],
    }
    if len(files) == 1:
        scores, labels, video_ids = alone[0], files[0].labels, files[0].video_ids
        log_probs = _log_probs(scores, average_clips)
    else:
        probs, labels, video_ids, left_out = _fused(files, alone, shares, average_clips)
        scores, log_probs = probs, _log_probs(probs, "prob")
        made |= {"weights": shares, "left_out": dict(zip(map(str, paths), left_out, strict=True))}
    made["metrics"] = with_interval({**accuracies(scores, labels, video_ids), "clips": len(video_ids)})
    if is_by_views:
        made["by_views"] = by_number_of_views(files[0], average_clips)
    if is_calibrated:
        made["calibration"] = _calibration(log_probs, labels)
    return made


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


def as_text(made: dict[str, Any]) -> str:
    """For people, what `measure` gave."""
    lines = [_file_line(file, number, made) for number, file in enumerate(made["files"])]
    for path, names in made.get("left_out", {}).items():
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            lines.append(
                f"left out, for another file lacks them: {len(names)} clips of {path}: {', '.join(names[:5])}{more}"
            )
    metrics = made["metrics"]
    lines += [
        *([f"together, {metrics['clips']} clips that all have:"] if len(made["files"]) > 1 else []),
        f"top1_acc: {metrics['top1']:.4f} (95 %: {metrics['top1_low']:.4f}-{metrics['top1_high']:.4f})",
        f"top5_acc: {metrics['top5']:.4f}",
        f"mean_class_accuracy: {metrics['mean_class']:.4f}",
    ]
    if by_views := made.get("by_views"):
        lines += ["", "views    top1    top5"]
        lines += [f"{line['views']:>5}  {line['top1']:.4f}  {line['top5']:.4f}" for line in by_views]
    if calibration := made.get("calibration"):
        lines += ["", *_calibration_lines(calibration)]
    return "\n".join(lines)


def as_json(made: dict[str, Any]) -> str:
    return json.dumps(made, indent=1, ensure_ascii=False)


def _chosen(views: ViewLogits, clips: int | None, crops: int | None) -> list[int] | None:
    if clips is None and crops is None:
        return None
    clips = views.num_clips if clips is None else clips
    return choose(views, clips, views.num_crops if crops is None else crops)


_ABOUT = (
    *("model", "dataset", "split", "precision", "checkpoint_md5", "list_sha256"),
    *("missing", "undecodable", "listed"),
)


def _of_file(path: Path, views: ViewLogits, clips: int | None, crops: int | None, scores: Tensor) -> dict[str, Any]:
    about = {key: views.about[key] for key in _ABOUT}
    of = f"{views.num_clips}x{views.num_crops}"
    used = f"{clips or views.num_clips}x{crops or views.num_crops}"
    metrics = with_interval({**accuracies(scores, views.labels, views.video_ids), "clips": len(views.video_ids)})
    return {"file": str(path), **about, "views": used, "of_views": of, "metrics": metrics}


def _check_alike(paths: Sequence[Path], files: Sequence[ViewLogits]) -> None:
    """Raises UserError if scores of one file mean something else in another."""
    first = files[0]
    for path, views in zip(paths[1:], files[1:], strict=True):
        for key, what in (("split", "another split"), ("list_sha256", "another list of clips")):
            if views.about[key] != first.about[key]:
                raise UserError(
                    f"{path} is of {what} than {paths[0]} ({views.about[key]}, not {first.about[key]}); their scores "
                    "cannot be taken together. Test both rows on one data set"
                )
        if views.classes != first.classes:
            strange = [name for name in views.classes if name not in first.classes]
            what = f"{len(strange)} of its {len(views.classes)} are none of the {len(first.classes)} there"
            what = what if strange else f"{len(views.classes)} of {len(first.classes)}, or in another order"
            raise UserError(f"{path} has other classes than {paths[0]}: {what}; their scores cannot be taken together")
        labels = dict(zip(first.video_ids, first.labels.tolist(), strict=True))
        for video_id, label in zip(views.video_ids, views.labels.tolist(), strict=True):
            if labels.get(video_id, label) != label:
                raise UserError(f"{video_id} has label {label} in {path} and {labels[video_id]} in {paths[0]}")


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    """The weights, so that they add up to 1."""
    weights = [1.0] * count if weights is None else list(weights)
    if len(weights) != count:
        raise UserError(f"--weights has {len(weights)} numbers for {count} files; give one for each")
    if not all(0 <= weight < math.inf for weight in weights) or not 0 < sum(weights) < math.inf:
        raise UserError(f"--weights {' '.join(f'{weight:g}' for weight in weights)}: none below 0, and not all 0")
    return [weight / sum(weights) for weight in weights]


def _fused(
    files: Sequence[ViewLogits], alone: Sequence[Tensor], shares: Sequence[float], average_clips: Average
) -> tuple[Tensor, Tensor, list[str], list[list[str]]]:
    """Probabilities, labels and ids of the clips that all files have; and of each file the clips that others lack."""
    common = set(files[0].video_ids).intersection(*(views.video_ids for views in files[1:]))
    if not common:
        raise UserError("the files have no clip in common")
    video_ids = [video_id for video_id in files[0].video_ids if video_id in common]
    probs = torch.zeros(len(video_ids), len(files[0].classes), dtype=torch.float64)
    for views, scores, share in zip(files, alone, shares, strict=True):
        place = {video_id: number for number, video_id in enumerate(views.video_ids)}
        own = scores if average_clips == "prob" else scores.softmax(dim=1)
        probs += share * own[[place[video_id] for video_id in video_ids]].double()
    labels = dict(zip(files[0].video_ids, files[0].labels.tolist(), strict=True))
    left_out = [[video_id for video_id in views.video_ids if video_id not in common] for views in files]
    return probs, torch.tensor([labels[video_id] for video_id in video_ids]), video_ids, left_out


def _log_probs(scores: Tensor, average_clips: Average) -> Tensor:
    if average_clips == "score":
        return scores.double().log_softmax(dim=1)
    return scores.double().clamp(min=torch.finfo(torch.float32).tiny).log()  # far classes are 0 in float32


def _calibration(log_probs: Tensor, labels: Tensor) -> dict[str, Any]:
    temperature = fit_temperature(log_probs, labels)
    found = {}
    for name, some in (("as_is", log_probs), ("with_temperature", tempered(log_probs, temperature))):
        bins = reliability(some, labels)
        found[name] = {
            "expected_calibration_error": expected_calibration_error(bins),
            "nll": negative_log_likelihood(some, labels),
            "reliability": [dataclasses.asdict(bin) for bin in bins],
        }
    return {"bins": BINS, "temperature": temperature, "temperature_fitted_on": "these very clips", **found}


def _file_line(file: dict[str, Any], number: int, made: dict[str, Any]) -> str:
    views = file["views"] if file["views"] == file["of_views"] else f"{file['views']} of {file['of_views']}"
    metrics = file["metrics"]
    line = (
        f"{file['file']}: {file['model']} on {file['split']} of {file['dataset']}, {metrics['clips']} of "
        f"{file['listed']} listed clips, {views} views, average {made['average_clips']}"
    )
    if "weights" in made:
        line += f", weight {made['weights'][number]:.3g}: top1_acc: {metrics['top1']:.4f}"
    return line


def _calibration_lines(calibration: dict[str, Any]) -> list[str]:
    as_is, with_temperature = calibration["as_is"], calibration["with_temperature"]
    lines = [
        f"expected calibration error: {as_is['expected_calibration_error']:.4f} ({calibration['bins']} bins), "
        f"NLL {as_is['nll']:.4f}",
        "best probability  clips   mean  right",
    ]
    for bin in as_is["reliability"]:
        means = f"{bin['confidence']:.3f}  {bin['accuracy']:.3f}" if bin["clips"] else "    -      -"
        lines.append(f"{bin['low']:.3f} to {bin['high']:.3f}  {bin['clips']:>7}  {means}")
    lines.append(
        f"temperature {calibration['temperature']:.3g}, fitted by NLL on these very clips, which flatters it: expected "
        f"calibration error {with_temperature['expected_calibration_error']:.4f}, NLL {with_temperature['nll']:.4f}"
    )
    return lines
