"""Evaluate any checkpoint of a model: a run's, a saved state, a published one. As MMAction2's tools/test.py does it."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import UserError
from ..files.atomic import atomic_write
from ..files.hashes import md5_of
from ..job import Job
from ..kinetics.manifest import Manifest
from ..params import Params
from ..process.progress import progress
from ..recipe import Split
from ..records import Metrics
from ..weights.checkpoints import open_checkpoint
from ..weights.identity import Identity

if TYPE_CHECKING:
    from .measure import Outcome

MEASURES = ("top_k_accuracy", "mean_class_accuracy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """What `actionzoo evaluate` is asked for."""

    measures: Sequence[str] | None = None
    """Of MEASURES; None: both, if there is an average and there are labels."""
    topk: Sequence[int] = (1, 5)
    average_clips: Literal["prob", "score", "none"] | None = None
    """None: as the recipe says."""
    split: Split = "val"
    out: Path | None = None
    """Gets result.json, or with `is_plain` MMAction2's list."""
    is_plain: bool = False
    views: Path | None = None
    """Gets the logits of every view."""


def evaluate_checkpoint(params: Params, model: str, source: str, wanted: Wanted, root: Path | None = None) -> str:
    """Evaluate any checkpoint of `model`, named as for predict; returns the lines to print, in the first process alone.

    It is refused if predict refuses it. A checkpoint with a recipe of its own is evaluated with that recipe's settings,
    and the differences are printed; any other with those of params.yaml on the chosen data set. Raises UserError.
    """
    job = Job.of(params, model, root)
    split, out = wanted.split, wanted.out
    average_clips = wanted.average_clips or job.recipe.test.average_clips
    is_labelled = split in job.published_lists or any(clip.label >= 0 for clip in job.manifest.of_split(split))
    measures = _what_to_measure(wanted, average_clips, is_labelled)
    if out and out.suffix != ".json":
        raise UserError(f"--out {out} does not end in .json; results are written as JSON alone")

    from ..engine.distributed import joined
    from .evaluated_clips import evaluated_clips
    from .measure import Request, Subject, find_label_mapping, measure

    with progress("bytes") as on_progress:
        opened = open_checkpoint(source, params=params, model=model, root=job.root, on_progress=on_progress)
    file, known = opened.identity.file, opened.identity.classes
    job, settings = _as_the_file_says(params, job, opened.identity)
    classes = job.manifest.classes
    with joined(job.device_type) as world:
        if world.is_first:
            lines = [opened.report.text(), *_settings_lines(params, job, opened.identity, settings)]
            print("\n".join(lines), flush=True)
        mapping = find_label_mapping(file, classes, known, opened.num_classes, is_quiet=not world.is_first)
        checkpoint_md5 = md5_of(file)
        subject = Subject(
            network=opened.network,
            classes=known or classes,
            checkpoint_md5=checkpoint_md5,
            label_mapping=mapping,
            file=file.name,
            settings=tuple(settings) or None,
        )
        request = Request(
            clips=evaluated_clips(job, split),
            scratch=job.evaluation_scratch(checkpoint_md5, split),
            average_clips=wanted.average_clips or job.recipe.test.average_clips,
            topk=wanted.topk,
            views=wanted.views,
        )
        outcome = measure(job, subject, request, world)
    if outcome is None:
        return ""
    lines = _metric_lines(outcome.result.metrics, measures, wanted.topk)
    lines.append(f"evaluate: {outcome.result.summary()}")
    if out and wanted.is_plain:
        lines += _write_plain(out, outcome, job.manifest)
    elif out:
        outcome.write(out)
    lines += [f"{what} in {path}" for what, path in (("scores", out), ("view logits", wanted.views)) if path]
    shutil.rmtree(outcome.scratch)
    return "\n".join(lines)


def _what_to_measure(wanted: Wanted, average_clips: str, is_labelled: bool) -> Sequence[str]:
    """Raises UserError where nothing can be measured, before hours have gone by."""
    measures = wanted.measures
    if average_clips == "none":
        if measures:
            raise UserError(
                "--eval needs one score a class for each clip, and --average-clips none leaves those of every view; "
                "take prob or score, or leave --eval away and write them with --out"
            )
        if not (wanted.out or wanted.views):
            raise UserError(
                "--average-clips none has no accuracy to print; name a file for the scores: --out result.json"
            )
        return ()
    if not is_labelled:
        if measures:
            raise UserError(
                f"--eval needs labels, and the clips of {wanted.split} have none; leave it away to write scores alone"
            )
        return ()
    return MEASURES if measures is None else measures


_SECTIONS = {
    "clips": ("form", "short_side", "clip_len", "frame_interval"),
    "augment": ("resize", "mean", "std"),
    "test": ("num_clips", "num_crops", "crop_size", "average_clips"),
}


def _as_the_file_says(params: Params, job: Job, identity: Identity) -> tuple[Job, list[str]]:
    """The job with the settings of the file's own recipe, and what these change: `clips.clip_len: 32 -> 64`.

    For a file without a recipe, the job as it is.
    """
    if not identity.has_own_recipe:
        return job, []
    expected = job.recipe.test_spec
    changes: dict[str, dict[str, object]] = {}
    lines = []
    for section, names in _SECTIONS.items():
        for name in names:
            before, after = getattr(expected, name), getattr(identity.test_spec, name)
            if before != after:
                changes.setdefault(section, {})[name] = list(after) if isinstance(after, tuple) else after
                lines.append(f"{section}.{name}: {before} -> {after}")
    if not changes:
        return job, []
    return Job.of(params.changed(job.model, seed=None, **changes), job.model, job.root), lines


def _settings_lines(params: Params, job: Job, identity: Identity, settings: list[str]) -> list[str]:
    """What is said of the settings before the evaluation begins."""
    if settings:
        changes = "; ".join(settings)
        return [f"evaluated with the settings of the file's own recipe, not those of {params.path}: {changes}"]
    sections = tuple(f"{section}." for section in _SECTIONS)
    overrides = [line for line in job.overrides if line.startswith(sections)]
    if identity.has_own_recipe or not overrides:
        return []
    return [f"evaluated with the settings of {job.model} on {job.dataset}, which overrides {'; '.join(overrides)}"]


def _metric_lines(metrics: Metrics, measures: Sequence[str], topk: Sequence[int]) -> list[str]:
    """As MMAction2 prints them."""
    accuracies = metrics.accuracies
    lines = [f"top{k}_acc: {accuracies[f'top{k}']:.4f}" for k in topk] if "top_k_accuracy" in measures else []
    return lines + ([f"mean_class_accuracy: {metrics.mean_class:.4f}"] if "mean_class_accuracy" in measures else [])


def _write_plain(out: Path, outcome: "Outcome", manifest: Manifest) -> list[str]:
    """The bare list that MMAction2's tools read, and the list of clips that has its order; gives what to say."""
    views = outcome.views
    with atomic_write(out) as file:
        for number in range(len(views.video_ids)):
            rows = [outcome.scores[number]] if outcome.scores is not None else views.logits[number]
            text = ", ".join(json.dumps(row.tolist()) for row in rows)
            file.write(f"{', ' if number else '['}{text}".encode())
        file.write(b"]")
    clips = manifest.of_split(outcome.result.split)
    frames = {clip.video_id: clip.num_frames for clip in clips}
    order = out.with_suffix(".txt")
    with atomic_write(order) as file:
        for video_id, label in zip(views.video_ids, views.labels.tolist(), strict=True):
            file.write(f"{video_id} {frames[video_id]} {label}\n".encode())
    measured = set(views.video_ids)
    # the clips that a published list lacks were printed already, one by one
    is_complete = outcome.result.published_list is not None
    left_out = [] if is_complete else [clip for clip in clips if clip.is_listed and clip.video_id not in measured]
    lines = [f"{out} has the clips in the order of {order} (video_id num_frames label)"]
    if left_out:
        lines.append(f"{out} leaves out {len(left_out)} of {len(left_out) + len(views.video_ids)} listed clips:")
        lines += [f"  {clip.video_id}: {clip.state if not clip.is_usable else 'did not decode'}" for clip in left_out]
    return lines
