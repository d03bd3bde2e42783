"""A row tested: all views of every clip of a split through a checkpoint, and what comes of it.

Finished work is known by a fingerprint, as in training.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import tracking
from .accuracy import list_sha256, with_interval, with_protocol
from .errors import UserError
from .json_files import read_json, write_json
from .kinetics.manifest import label_map, read_manifest
from .params import Params, digest
from .run_files import RowFiles, data_folder, device_of, device_type, sha256
from .zoo import build_model

FORM = 2
"""Of what a test writes: another one is tested again."""


def evaluate_row(params: Params, row: str, root: Path = Path()) -> str:
    """Test the best checkpoint of `row` on all views of the val split; gives the last line to print.

    Started by torchrun, every process calls this, and the first one alone has something to print.

    Raises UserError, engine's CheckpointError.
    """
    recipe, files = params.recipe(row), RowFiles(root, params.name, row)
    folder = data_folder(params, recipe, root)
    clips = read_manifest(folder / "manifest.csv")
    classes = label_map(clips)
    if not files.best.is_file():
        raise UserError(f"{files.best} is not there; `dvc repro train@{row}` makes it")

    from .engine.checkpoint import load_checkpoint

    checkpoint_md5 = tracking.checkpoint_md5(files.best)
    sections = (recipe.model, recipe.clips, recipe.augment, recipe.test)
    fingerprint = digest(FORM, *sections, sha256(folder / "manifest.csv"), checkpoint_md5)
    made = read_json(files.result)
    if made.get("fingerprint") == fingerprint and read_json(files.metrics()).get("top1") == made["metrics"]["top1"]:
        done = f"evaluate: {row} is tested already, this very checkpoint on these very clips; {_test_summary(made)}"
        return done if os.environ.get("RANK", "0") == "0" else ""

    from .engine.distributed import joined

    checkpoint = load_checkpoint(files.best)
    model = build_model(recipe.model, len(classes))
    model.load_state_dict(checkpoint["state_dict"])
    with joined(device_type(params)) as world:
        tested = run_test(params, row, model, root, world=world)
    if not world.is_first:
        return ""
    metrics = tested["metrics"] | {"epoch": checkpoint["meta"]["epoch"]}
    made = {
        "row": row,
        "dataset": params.name,
        "fingerprint": fingerprint,
        "checkpoint_md5": checkpoint_md5,
        **tested,
        "metrics": metrics,
        "classes": classes,
    }
    write_json(files.metrics(), with_protocol(metrics))
    write_json(files.result, made, indent=None)

    published = params.recipes[row].published.top1[0] / 100
    run_id = tracking.find_run(params.name, row, checkpoint_md5)
    with tracking.run(
        experiment=params.name,
        name=row,
        phase="evaluate",
        run_id=run_id,
        params=tracking.run_params(made),
        tags={
            "recipe": row,
            "dataset": params.name,
            "checkpoint.md5": checkpoint_md5,
            "test.protocol": recipe.test.protocol,
            "test.list_sha256": metrics["list_sha256"],
        },
    ) as record:
        line = metrics | {"mode": "test", "top1_published": published, "top1_gap": metrics["top1"] - published}
        record.log(tracking.TEST_STEP, tracking.to_metrics(line))
        record.artifact(files.result)
    return f"evaluate: {_test_summary(made)}; scores in {files.result}"


def run_test(
    params: Params, row: str, model, root: Path = Path(), *, label_places: Sequence[int] | None = None, world=None
) -> dict[str, Any]:
    """All views of the row's val clips through `model`, as the row's test says; of all processes of engine's `world`.

    `label_places` says which of the network's classes each label of the data set is, if it is not the same number.
    Gives protocol, average_clips, metrics (top1 with its 95 % interval, top5, mean_class; how many clips were
    evaluated, missing, undecodable, listed, and the hash of the list), undecodable (a sentence each) and clips:
    video_id -> label, scores. Raises UserError.
    """
    import torch

    from .clips.inputs import ToInput
    from .clips.loader import view_loader
    from .engine.distributed import World
    from .engine.evaluate import evaluate

    world = world or World()
    recipe, device = params.recipe(row), device_of(params, world.local_rank)
    folder = data_folder(params, recipe, root)
    clips = read_manifest(folder / "manifest.csv")
    listed = sum(clip.split == "val" and clip.is_listed for clip in clips)
    loader = view_loader(
        folder,
        recipe.clips,
        recipe.augment,
        split="val",
        num_clips=recipe.test.num_clips,
        num_crops=recipe.test.num_crops,
        crop_size=recipe.test.crop_size,
        batch_size=1,
        workers=params.runtime.num_workers,
        timeout_seconds=params.runtime.clip_timeout_seconds,
        rank=world.rank,
        world_size=world.size,
        device=device,
    )
    if world.is_first:
        views = f"{recipe.test.protocol} views of {recipe.test.crop_size} pixels"
        print(f"{row}: {len(loader.clips)} clips, {views}, {world.size} x {device.type}; {loader.text()}", flush=True)
    scores = evaluate(
        model.to(device),
        loader,
        ToInput(mean=recipe.augment.mean, std=recipe.augment.std, device=device),
        average_clips=recipe.test.average_clips,
        on_batch=_progress("evaluate", len(loader)) if world.is_first else lambda done: None,
        world=world,
    )
    if label_places is not None:
        scores.labels = torch.tensor(label_places)[scores.labels]
    metrics = with_interval(
        scores.accuracies()
        | {
            "clips": len(scores.video_ids),
            "missing": listed - len(loader.clips),
            "undecodable": len(scores.undecodable),
            "listed": listed,
            "protocol": recipe.test.protocol,
            "list_sha256": list_sha256(clips, "val"),
        }
    )
    return {
        "protocol": recipe.test.protocol,
        "average_clips": recipe.test.average_clips,
        "metrics": metrics,
        "undecodable": scores.undecodable,
        "clips": {
            video_id: {"label": label, "scores": row_scores}
            for video_id, label, row_scores in zip(
                scores.video_ids, scores.labels.tolist(), scores.scores.tolist(), strict=True
            )
        },
    }


def _test_summary(made: dict[str, Any]) -> str:
    metrics = made["metrics"]
    gone = metrics["missing"] + metrics["undecodable"]
    return (
        f"{made['row']}: top-1 {metrics['top1']:.4f}, top-5 {metrics['top5']:.4f}, mean class "
        f"{metrics['mean_class']:.4f} ({made['protocol']} views, {metrics['clips']} of {metrics['listed']} listed "
        f"clips, {gone} missing or undecodable)"
    )


def _progress(what: str, total: int):
    """A line at every tenth."""
    shown = -1

    def on_batch(done: int) -> None:
        nonlocal shown
        if (tenth := done * 10 // max(total, 1)) > shown:
            shown = tenth
            print(f"{what}: {done} of {total} clips", flush=True)

    return on_batch
