"""Any checkpoint of a row tested: a run's, a saved state, a published one. As MMAction2's tools/test.py does it."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import UserError
from .files.atomic import atomic_write
from .files.hashes import md5_of
from .files.json_files import read_json
from .kinetics.manifest import Clip, label_map, read_manifest
from .params import Params
from .progress import progress
from .run_files import data_folder, device_type
from .testing import Outcome, find_label_places, run_test, summary, write_result

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
    """Test any checkpoint of `row`, a path or URL; gives the lines to print, in the first process alone.

    `measures` are top_k_accuracy and mean_class_accuracy, both if None and there is an average. `out` gets result.json,
    or with `is_plain` MMAction2's list; `views` the logits of every view. Raises UserError.
    """
    average_clips = average_clips or params.recipe(row).test.average_clips
    manifest = read_manifest(data_folder(params, params.recipe(row), root) / "manifest.csv")
    measures = _what_to_measure(measures, average_clips, split, out, views, manifest)
    if out and out.suffix != ".json":
        raise UserError(f"--out {out} is no .json; that is the one format of results here")

    from .engine.distributed import joined
    from .weights import CACHE, fetch_weights, open_model

    with progress("bytes") as tell:
        file = fetch_weights(source, root / CACHE, tell=tell)
    model, report, known = open_model(_model_section(params, row, file), file, cache=root / CACHE)
    known = known or _classes_beside(file, model)
    classes = label_map(manifest)
    with joined(device_type(params)) as world:
        if world.is_first:
            print(report.text(), flush=True)
        about = {"row": row, "dataset": params.name, "checkpoint_md5": md5_of(file), "file": file.name}
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
    left_out = [clip for clip in left_out if clip.video_id not in set(outcome.views.video_ids)]
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
    manifest: list[Clip],
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
    if not any(clip.label >= 0 for clip in manifest if clip.split == split):
        if measures:
            raise UserError(
                f"--eval needs labels, and the clips of {split} have none; leave it away to write scores alone"
            )
        return ()
    return MEASURES if measures is None else measures


def _model_section(params: Params, row: str, file: Path):
    """The recipe's network; that of the published file where this is it, and it was trained as another."""
    published, model = params.recipes[row].published, params.recipe(row).model
    if published.ckpt and published.ckpt_model and file.name == published.ckpt.rsplit("/", 1)[-1]:
        return dataclasses.replace(model, **published.ckpt_model)
    return model


def _classes_beside(file: Path, model) -> list[str]:
    """The class names of a run's own checkpoint, which stand in its recipe.json."""
    classes = read_json(file.with_name("recipe.json")).get("classes", [])
    return classes if len(classes) == model.state_dict()["cls_head.fc_cls.weight"].shape[0] else []


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
