"""Any checkpoint of a row tested: a run's, a saved state, a published one. As MMAction2's tools/test.py does it."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..devices import device_type
from ..errors import UserError
from ..files.atomic import atomic_write
from ..files.hashes import md5_of
from ..job import data_folder
from ..kinetics.manifest import Clip, label_map, read_manifest
from ..params import Params, as_dict, network_of
from ..process.progress import progress
from ..weights.checkpoints import open_checkpoint
from ..weights.identity import Identity
from .evaluate import Outcome, find_label_places, run_test, summary, write_result

MEASURES = ("top_k_accuracy", "mean_class_accuracy")


def evaluate_checkpoint(
    params: Params,
    row: str,
    source: str,
    root: Path = Path(),
    *,
    measures: Sequence[str] | None = None,
    topk: Sequence[int] = (1, 5),
    average_clips: str | None = None,
    split: str = "val",
    out: Path | None = None,
    is_plain: bool = False,
    views: Path | None = None,
) -> str:
    """Test any checkpoint of `row`, named as for predict; gives the lines to print, in the first process alone.

    What predict refuses is refused here too. A checkpoint with a recipe of its own is tested with its settings, and
    that is said; any other with those that params.yaml has for `row` on the chosen data set.

    `measures` are top_k_accuracy and mean_class_accuracy, both if None and there is an average. `out` gets result.json,
    or with `is_plain` MMAction2's list; `views` the logits of every view. Raises UserError.
    """
    manifest = read_manifest(data_folder(params, params.recipe(row), root) / "manifest.csv")
    average = average_clips or params.recipe(row).test.average_clips
    is_labelled = split in params.dataset.published_lists or any(
        clip.label >= 0 for clip in manifest if clip.split == split
    )
    measures = _what_to_measure(measures, average, split, out, views, is_labelled)
    if out and out.suffix != ".json":
        raise UserError(f"--out {out} is no .json; that is the one format of results here")

    from ..engine.distributed import joined

    with progress("bytes") as tell:
        opened = open_checkpoint(source, params=params, row=row, root=root, tell=tell)
    model, file, known = opened.network, opened.identity.file, opened.identity.classes
    params, settings = _as_the_file_says(params, row, opened.identity)
    if settings:
        manifest = read_manifest(data_folder(params, params.recipe(row), root) / "manifest.csv")
    average_clips = average_clips or params.recipe(row).test.average_clips
    classes = label_map(manifest)
    with joined(device_type(params.runtime)) as world:
        if world.is_first:
            print(
                "\n".join([opened.report.text(), *_settings_lines(params, row, opened.identity, settings)]), flush=True
            )
        about = {"row": row, "dataset": params.name, "checkpoint_md5": md5_of(file), "file": file.name}
        if settings:
            about["settings"] = settings
        outcome = run_test(
            params,
            row,
            model,
            root,
            views=views,
            about=about,
            classes=known or classes,
            label_places=find_label_places(file, classes, known, model, is_told=world.is_first),
            split=split,
            average_clips=average_clips,
            topk=topk,
            world=world,
        )
    if outcome is None:
        return ""
    head = about | outcome.head | {"classes": known or classes}
    left_out = [clip for clip in manifest if clip.split == split and clip.is_listed]
    tested = set(outcome.views.video_ids)
    # what a published list lacks is said already, clip by clip
    left_out = [] if "published_list" in outcome.head else [clip for clip in left_out if clip.video_id not in tested]
    lines = _metric_lines(outcome.head["metrics"], measures, topk)
    lines.append(f"test: {summary(head)}")
    if out and is_plain:
        lines += _write_plain(out, outcome, manifest, left_out)
    elif out:
        write_result(out, head, outcome)
    lines += [f"{what} in {path}" for what, path in (("scores", out), ("view logits", views)) if path]
    shutil.rmtree(outcome.scratch)
    return "\n".join(lines)


def _what_to_measure(
    measures: Sequence[str] | None,
    average_clips: str,
    split: str,
    out: Path | None,
    views: Path | None,
    is_labelled: bool,
) -> Sequence[str]:
    """Raises UserError where nothing can be measured, before hours have gone by."""
    if average_clips == "none":
        if measures:
            raise UserError(
                "--eval needs one score a class for each clip, and --average-clips none leaves those of every view; "
                "take prob or score, or leave --eval away and write them with --out"
            )
        if not (out or views):
            raise UserError(
                "--average-clips none has no accuracy to print; name a file for the scores: --out result.json"
            )
        return ()
    if not is_labelled:
        if measures:
            raise UserError(
                f"--eval needs labels, and the clips of {split} have none; leave it away to write scores alone"
            )
        return ()
    return MEASURES if measures is None else measures


_SECTIONS = {
    "clips": ("form", "short_side", "clip_len", "frame_interval"),
    "augment": ("resize", "mean", "std"),
    "test": ("num_clips", "num_crops", "crop_size", "average_clips"),
}


def _as_the_file_says(params: Params, row: str, identity: Identity) -> tuple[Params, list[str]]:
    """Params that look at videos as the file's own recipe does, and what that changes: `clips.clip_len: 32 -> 64`.

    A file without a recipe is tested as params.yaml says for `row` on this data set.
    """
    if not identity.has_own_recipe:
        return params, []
    _, expected = network_of(as_dict(params.recipe(row)), params.path)
    changes: dict[str, dict[str, Any]] = {}
    lines = []
    for section, names in _SECTIONS.items():
        for name in names:
            before, after = getattr(expected, name), getattr(identity.viewing, name)
            if before != after:
                changes.setdefault(section, {})[name] = list(after) if isinstance(after, tuple) else after
                lines.append(f"{section}.{name}: {before} -> {after}")
    return params.changed(row, **changes), lines


def _settings_lines(params: Params, row: str, identity: Identity, settings: list[str]) -> list[str]:
    """What is said of the settings before the test begins."""
    if settings:
        return [f"tested with the settings of the file's own recipe, not those of {params.path}: {'; '.join(settings)}"]
    sections = tuple(f"{section}." for section in _SECTIONS)
    overrides = [line for line in params.overrides(row) if line.startswith(sections)]
    if identity.has_own_recipe or not overrides:
        return []
    return [f"tested with the settings of {row} on {params.name}, which overrides {'; '.join(overrides)}"]


def _metric_lines(metrics: dict[str, Any], measures: Sequence[str], topk: Sequence[int]) -> list[str]:
    """As MMAction2 prints them."""
    lines = [f"top{k}_acc: {metrics[f'top{k}']:.4f}" for k in topk] if "top_k_accuracy" in measures else []
    return lines + ([f"mean_class_accuracy: {metrics['mean_class']:.4f}"] if "mean_class_accuracy" in measures else [])


def _write_plain(out: Path, outcome: Outcome, manifest: list[Clip], left_out: list[Clip]) -> list[str]:
    """The bare list that MMAction2's tools read, and the list of clips that has its order; gives what to say."""
    views = outcome.views
    with atomic_write(out) as file:
        for number in range(len(views.video_ids)):
            rows = [outcome.scores[number]] if outcome.scores is not None else views.logits[number]
            text = ", ".join(json.dumps(row.tolist()) for row in rows)
            file.write(f"{', ' if number else '['}{text}".encode())
        file.write(b"]")
    frames = {clip.video_id: clip.num_frames for clip in manifest if clip.split == views.about["split"]}
    order = out.with_suffix(".txt")
    with atomic_write(order) as file:
        for video_id, label in zip(views.video_ids, views.labels.tolist(), strict=True):
            file.write(f"{video_id} {frames[video_id]} {label}\n".encode())
    lines = [f"{out} has the clips in the order of {order} (video_id num_frames label)"]
    if left_out:
        lines.append(f"{out} leaves out {len(left_out)} of {len(left_out) + len(views.video_ids)} listed clips:")
        lines += [f"  {clip.video_id}: {clip.state if not clip.is_usable else 'did not decode'}" for clip in left_out]
    return lines
