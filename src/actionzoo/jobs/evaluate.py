"""A row tested: all views of every clip of a split through a checkpoint, and what comes of it.

Finished work is known by a fingerprint, as in training. What is under way lies in .scratch/evaluate/<dataset>/<row>/:
killed at any moment, a test goes on with the clips that are left.
"""

import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..accuracy import is_accuracy, with_interval, with_protocol
from ..devices import device_of, device_type
from ..errors import UserError
from ..files.atomic import atomic_write
from ..files.hashes import md5_of, sha256_of
from ..files.json_files import read_json, write_json
from ..job import RunFiles, data_folder
from ..kinetics.labels import places
from ..kinetics.manifest import Clip, label_map, list_sha256, read_manifest
from ..kinetics.published_list import Chosen, choose, fetch_list, read_published
from ..params import Params, digest
from ..process.progress import progress
from ..process.stage import sigterm_as_exit
from ..recipe import Recipe
from ..report.error_analysis import ClipScores, write_error_analysis
from ..tracking.live import recorded_run
from ..tracking.names import ERROR_ANALYSIS, TEST_STEP, run_params, to_metrics
from ..tracking.store import find_run
from ..weights.identity import record_beside
from ..zoo import build_model

if TYPE_CHECKING:
    from torch import Tensor

    from ..engine.views import Views

FORM = 3
"""Of what a test writes: another one is tested again."""

COMPARED = 8
"""The first so many clips are computed in fp32 too, where runtime.precision is another."""


@dataclass(frozen=True)
class Outcome:
    """Of a test, in the process that writes it down."""

    head: dict[str, Any]
    """split, protocol, average_clips, precision, metrics, undecodable (a sentence each)."""
    views: "Views"
    scores: "Tensor | None"
    """(N, num_classes), averaged over the views; None if average_clips is none."""
    scratch: Path
    """To be deleted once everything is written."""


def evaluate_row(params: Params, row: str, root: Path = Path()) -> str:
    """Test the best checkpoint of `row` on all views of the val split; gives the last line to print.

    Started by torchrun, every process calls this, and the first one alone has something to print.

    Raises UserError, engine's CheckpointError.
    """
    recipe, files = params.recipe(row), RunFiles(root, params.name, row)
    manifest = data_folder(params, recipe, root) / "manifest.csv"
    classes = label_map(read_manifest(manifest))
    if not files.best.is_file():
        raise UserError(f"{files.best} is not there; `dvc repro train@{row}` makes it")
    record_beside(files.best)
    checkpoint_md5 = md5_of(files.best)
    sections = (recipe.model, recipe.clips, recipe.augment, recipe.test)
    listed = list_fingerprint(params, "val", root)
    fingerprint = digest(FORM, *sections, sha256_of(manifest), checkpoint_md5, *listed)
    if (made := _finished(files, fingerprint)) is not None:
        if os.environ.get("RANK", "0") != "0":
            return ""
        _look(params, row, made, files, root)
        return f"evaluate: {row} is tested already, this very checkpoint on these very clips; {summary(made)}"

    from ..engine.checkpoint import load_checkpoint, load_trained
    from ..engine.distributed import joined

    checkpoint = load_checkpoint(files.best)
    model = build_model(recipe.model, len(classes))
    load_trained(model, checkpoint, files.best)
    about = {"row": row, "dataset": params.name, "fingerprint": fingerprint, "checkpoint_md5": checkpoint_md5}
    with joined(device_type(params.runtime)) as world:
        outcome = run_test(params, row, model, root, views=files.views, about=about, classes=classes, world=world)
    if outcome is None:
        return ""
    made = about | outcome.head | {"classes": classes}
    made["metrics"] |= {"epoch": checkpoint["meta"]["epoch"]}
    write_result(files.result, made, outcome)
    write_json(files.metrics(), with_protocol(made["metrics"]))
    shutil.rmtree(outcome.scratch)
    _record(params, row, made, files, _look(params, row, made, files, root))
    return f"evaluate: {summary(made)}; scores in {files.result}"


def run_test(
    params: Params,
    row: str,
    model,
    root: Path = Path(),
    *,
    views: Path | None,
    about: dict[str, Any],
    classes: Sequence[str],
    label_places: Sequence[int] | None = None,
    split: str = "val",
    average_clips: str | None = None,
    topk: Sequence[int] = (1, 5),
    world=None,
) -> Outcome | None:
    """All views of a split's clips through `model`, as the row's test says; of all processes of engine's `world`.

    Writes their logits to `views`, or into the scratch if None, with what `about` says of the checkpoint: its md5 at
    least. `classes` are the network's; `label_places` says which of them each label of the data set is, if it is not
    the same number. `average_clips` is the recipe's if None; `none` leaves the views as they are, and there are no
    accuracies.

    Gives metrics as accuracies by name; how many clips were evaluated, missing, undecodable, listed; the hash of the
    list. None in all processes but the first. Raises UserError.
    """
    from ..clips.loader import usable_clips
    from ..engine.distributed import World
    from ..engine.finished import Saved
    from ..engine.views import average, read_views, write_views

    world = world or World()
    recipe, average_clips = params.recipe(row), average_clips or params.recipe(row).test.average_clips
    folder = data_folder(params, recipe, root)
    clips = usable_clips(read_manifest(folder / "manifest.csv"), split, folder / "manifest.csv")
    chosen = _published_clips(params, split, folder, root)
    if chosen:
        clips = list(chosen.clips)
        if world.is_first:
            print(chosen.text(), flush=True)
    of_clips = [sha256_of(folder / "manifest.csv"), *list_fingerprint(params, split, root)]
    scratch = _scratch(params, row, root, about["checkpoint_md5"], of_clips, split)
    saved = Saved(scratch, world.rank)
    try:
        undecodable = _see_all(params, row, model, folder, clips, saved, scratch, world)
    finally:
        saved.close()
    undecodable = sorted(sentence for told in world.gather(undecodable) for sentence in told)
    if not world.is_first:
        return None

    rows, exact = saved.rows()
    tested = [clip for clip in clips if clip.video_id in rows]
    if not tested:
        raise UserError("no clip decoded: " + "; ".join(undecodable[:3]))
    if len(tested) + len(undecodable) != len(clips):
        raise UserError(
            f"{scratch} has {len(tested)} of {len(clips) - len(undecodable)} finished clips: the others' processes do "
            "not see this folder; several machines need a shared one"
        )
    listed = [clip for clip in read_manifest(folder / "manifest.csv") if clip.split == split and clip.is_listed]
    counts = {
        "clips": len(tested),
        "missing": len(listed) - len(clips),
        "undecodable": len(undecodable),
        "listed": len(listed),
        "protocol": recipe.test.protocol,
        "precision": params.runtime.precision,
        "list_sha256": list_sha256(listed, split),
    }
    if chosen:
        counts |= {
            "missing": len(chosen.missing),
            "listed": chosen.listed,
            "list_sha256": chosen.list_sha256,
            "published_list_sha256": chosen.sha256,
            "other_frames": len(chosen.other_frames),
            "other_label": len(chosen.other_label),
        }
    views = views or scratch / "views.safetensors"
    write_views(
        views,
        (rows[clip.video_id].read() for clip in tested),
        video_ids=[clip.video_id for clip in tested],
        labels=[_place(clip.label, label_places) for clip in tested],
        num_clips=recipe.test.num_clips,
        num_crops=recipe.test.num_crops,
        classes=list(classes),
        about=about | {"split": split} | counts,
    )
    made = read_views(views)
    head = {
        "split": split,
        "protocol": recipe.test.protocol,
        "average_clips": average_clips,
        "precision": params.runtime.precision,
    }
    if chosen:
        head["published_list"] = {
            "sha256": chosen.sha256,
            "label_map_sha256": chosen.label_map_sha256,
            "missing": list(chosen.missing),
            "other_frames": list(chosen.other_frames),
            "other_label": list(chosen.other_label),
        }
    if compared := [clip.video_id for clip in clips[:COMPARED] if clip.video_id in exact]:
        pairs = [(rows[video_id].read(), exact[video_id].read()) for video_id in compared]
        head["beside_fp32"] = beside_fp32(pairs, recipe.test.average_clips)
        print(_beside_fp32_text(pairs, recipe, params.runtime.precision), flush=True)
    scores, found = None, {}
    if average_clips != "none":
        scores = average(made, average_clips)
        if any(clip.label >= 0 for clip in tested):
            found = _accuracies(scores, made, topk)
    metrics = with_interval(found | counts)
    return Outcome(head | {"metrics": metrics, "undecodable": undecodable}, made, scores, scratch)


def list_fingerprint(params: Params, split: str, root: Path) -> list[str]:
    """The hashes of what params.yaml gives as the split's published list and label map; empty if it gives none.

    What is behind a URL is fetched. Raises UserError.
    """
    return [sha256_of(path) for path in _list_files(params, split, root)]


def _list_files(params: Params, split: str, root: Path) -> list[Path]:
    given = params.dataset.published_lists.get(split)
    addresses = [address for address in (given.list, given.label_map) if address] if given else []
    return [fetch_list(address, root / "data" / params.name / "lists", root) for address in addresses]


def _published_clips(params: Params, split: str, folder: Path, root: Path) -> Chosen | None:
    """What of the split's published list is here; None if params.yaml gives none."""
    if not (files := _list_files(params, split, root)):
        return None
    manifest = read_manifest(folder / "manifest.csv")
    return choose(read_published(*files), [clip for clip in manifest if clip.split == split], label_map(manifest))


def write_result(path: Path, head: dict[str, Any], outcome: Outcome) -> None:
    """result.json: one JSON object. Its first line has all but the clips, which follow line by line:

    video_id -> label, scores; with average_clips none, scores has a list for every view.
    """
    views, last = outcome.views, len(outcome.views.video_ids) - 1
    with atomic_write(path) as file:
        file.write(f'{json.dumps(head, ensure_ascii=False)[:-1]}, "clips": {{\n'.encode())
        for number, (video_id, label) in enumerate(zip(views.video_ids, views.labels.tolist(), strict=True)):
            scores = views.logits[number] if outcome.scores is None else outcome.scores[number]
            clip = json.dumps({"label": label, "scores": scores.tolist()})
            file.write(f"{json.dumps(video_id, ensure_ascii=False)}: {clip}{',' if number < last else ''}\n".encode())
        file.write(b"}}\n")


def summary(made: dict[str, Any]) -> str:
    """A row's accuracies and what they are of, in a line; of the head of result.json."""
    metrics = made["metrics"]
    gone = metrics["missing"] + metrics["undecodable"]
    names = {key: "mean class" if key == "mean_class" else f"top-{key[3:]}" for key in filter(is_accuracy, metrics)}
    bounds = {"top1": f" (95 %: {metrics['top1_low']:.4f}-{metrics['top1_high']:.4f})"} if "top1" in metrics else {}
    accuracies = ", ".join(f"{name} {metrics[key]:.4f}{bounds.get(key, '')}" for key, name in names.items())
    return (
        f"{made['row']}: {accuracies or 'no accuracy'} ({made['protocol']} views, {metrics['clips']} of "
        f"{metrics['listed']} listed clips, {gone} missing or undecodable)"
    )


def find_label_places(
    file: Path, classes: Sequence[str], known: Sequence[str], model, *, is_told: bool = True
) -> list[int] | None:
    """Which class of the network each label of the data set is; None if they have the same numbers.

    `classes` are the data set's, `known` the network's if its file names them. Raises UserError where they do not go
    together.
    """
    if known:
        try:
            return places(classes, known)
        except UserError as error:
            raise UserError(f"{file} cannot be tested on this data set: {error}") from None
    num_classes = model.state_dict()["cls_head.fc_cls.weight"].shape[0]
    if num_classes != len(classes):
        raise UserError(
            f"{file} knows {num_classes} classes without naming them, and the data set has {len(classes)}; test it on "
            "the data set that it was trained on"
        )
    if is_told:
        print(f"warning: {file} names no classes; they are taken to be the data set's, in its order", flush=True)
    return None


def beside_fp32(pairs: "Sequence[tuple[Tensor, Tensor]]", average_clips: str) -> dict[str, Any]:
    """How far a precision is from fp32, over the (views, classes) logits of some clips in both."""
    import torch

    from ..engine.views import average_views

    found, exact = (
        torch.cat([average_views(pair[side], len(pair[side]), average_clips) for pair in pairs]) for side in (0, 1)
    )
    changes = int((found.argmax(1) != exact.argmax(1)).sum())
    if average_clips == "score":
        found, exact = found.softmax(1), exact.softmax(1)
    difference = (found - exact).abs().max().item()
    return {"clips": len(pairs), "largest_probability_difference": difference, "top1_changes": changes}


def _see_all(params: Params, row: str, model, folder: Path, clips: list[Clip], saved, scratch: Path, world):
    """This process' share of what is left to do; gives a sentence for each of its clips that did not decode."""
    import torch

    from ..clips.inputs import ToInput
    from ..clips.loader import Loading, view_loader
    from ..engine.evaluate import view_logits
    from ..engine.metrics import check_scores

    recipe, runtime, device = params.recipe(row), params.runtime, device_of(params.runtime, world.local_rank)
    group_size = max(1, runtime.max_views // (recipe.test.num_clips * recipe.test.num_crops))
    done: set[str] = set()
    if world.is_first:
        done = saved.begin()
        _share_quarantine(scratch, world.size)
    done = set(world.gather(sorted(done))[0])
    left = [
        group
        for group in range(math.ceil(len(clips) / group_size))
        if any(clip.video_id not in done for clip in clips[group * group_size : (group + 1) * group_size])
    ]
    mine = left[world.rank :: world.size]
    loading = Loading(
        batch_size=group_size,
        workers=runtime.num_workers,
        timeout_seconds=runtime.clip_timeout_seconds,
        device=device,
        quarantine=_quarantine(scratch, world.rank),
    )
    loader = view_loader(folder, clips, recipe.test_spec, loading=loading, groups=mine)

    def say(text: str) -> None:
        print(text, flush=True)

    if world.is_first:
        pixels = f"{recipe.test.protocol} views of {recipe.test.crop_size} pixels"
        say(f"{row}: {len(clips)} clips, {pixels}, {world.size} x {device.type}, {runtime.precision}; {loader.text()}")
        if done:
            say(f"going on with an interrupted test: {len(done)} of {len(clips)} clips are finished")
    layout = torch.channels_last_3d if runtime.channels_last else torch.contiguous_format
    to_input = ToInput(mean=recipe.augment.mean, std=recipe.augment.std, device=device, layout=layout)
    first = {clip.video_id for clip in clips[:COMPARED]} if runtime.precision != "fp32" else set()
    results = view_logits(
        model.to(device, memory_format=layout) if runtime.channels_last else model.to(device),
        loader,
        to_input,
        max_views=runtime.max_views,
        precision=runtime.precision,
        is_compared=first.__contains__,
        on_text=say,
    )
    undecodable: list[str] = []
    is_told = False
    total, seen = sum(len(clips[group * group_size : (group + 1) * group_size]) for group in mine), 0
    with sigterm_as_exit(), progress("clips") as tell:
        try:
            for group, batch in zip(mine, results, strict=True):
                if batch.video_ids:
                    check_scores(batch.logits, None, batch.video_ids)
                if batch.exact is not None and not is_told and world.is_first:
                    is_told = True
                    say(_beside_fp32_text(list(zip(batch.logits, batch.exact, strict=True)), recipe, runtime.precision))
                saved.add(group, batch)
                undecodable += batch.undecodable
                seen += len(batch.video_ids) + len(batch.undecodable)
                if world.is_first:
                    tell("evaluate", seen, total)
            saved.end()
        finally:
            saved.save()
            loader.close()
    return undecodable


def _finished(files: RunFiles, fingerprint: str) -> dict[str, Any] | None:
    """The head of result.json, if all three files are there and of this very test."""
    from ..engine.views import fingerprint_of

    made = read_head(files.result)
    if made.get("fingerprint") != fingerprint or read_json(files.metrics()) != with_protocol(made["metrics"]):
        return None
    return made if fingerprint_of(files.views) == fingerprint else None


def read_head(path: Path) -> dict[str, Any]:
    """All of a result.json but its clips; empty where there is none, or none of ours."""
    try:
        with open(path, encoding="utf-8") as file:
            head = json.loads(f"{file.readline()}}}}}")
    except (FileNotFoundError, IsADirectoryError, ValueError, RecursionError):
        return {}
    if not isinstance(head, dict) or "clips" not in head:
        return {}
    del head["clips"]
    return head


def _look(params: Params, row: str, made: dict[str, Any], files: RunFiles, root: Path) -> list[Path]:
    """The files that show where the row errs, made if they are not of this test."""
    from ..engine.views import average, read_views
    from .view_scores import by_number_of_views

    def scored() -> ClipScores:
        views = read_views(files.views)
        scores = average(views, made["average_clips"])
        shares = scores if made["average_clips"] == "prob" else scores.softmax(dim=1)
        by_views = by_number_of_views(views, made["average_clips"])
        return ClipScores(views.video_ids, views.labels.numpy(), shares.double().numpy(), views.classes, by_views)

    folder = data_folder(params, params.recipe(row), root)
    clips = read_manifest(folder / "manifest.csv")
    return write_error_analysis(scored, clips, folder, files.metrics(), fingerprint=made["fingerprint"])


def _record(params: Params, row: str, made: dict[str, Any], files: RunFiles, analysis: list[Path]) -> None:
    published = params.recipes[row].published.top1[0] / 100
    metrics = made["metrics"]
    with recorded_run(
        experiment=params.name,
        name=row,
        phase="evaluate",
        run_id=find_run(params.name, row, made["checkpoint_md5"]),
        params=run_params(made),
        tags={
            "recipe": row,
            "dataset": params.name,
            "checkpoint.md5": made["checkpoint_md5"],
            "test.protocol": made["protocol"],
            "test.list_sha256": metrics["list_sha256"],
            "test.precision": made["precision"],
        },
    ) as record:
        line = metrics | {"mode": "test", "top1_published": published, "top1_gap": metrics["top1"] - published}
        record.log(TEST_STEP, to_metrics(line))
        record.artifact(files.result)
        record.artifact(files.metrics())
        for path in (files.best, files.latest):  # DVC has replaced them since their training kept them
            record.relink(path)
        for path in analysis:
            record.artifact(path, ERROR_ANALYSIS)


def _scratch(params: Params, row: str, root: Path, checkpoint_md5: str, of_clips: list[str], split: str) -> Path:
    """Of an unfinished test: another one for whatever could change a bit of the logits."""
    recipe, runtime = params.recipe(row), params.runtime
    views = (recipe.test.num_clips, recipe.test.num_crops, recipe.test.crop_size)
    how = (runtime.precision, runtime.max_views, runtime.channels_last, device_type(params.runtime))
    sections = (recipe.model, recipe.clips, recipe.augment)
    fingerprint = digest(FORM, *sections, *views, *how, *of_clips, checkpoint_md5, split)
    return root / ".scratch" / "evaluate" / params.name / row / fingerprint[:16]


def _quarantine(scratch: Path, rank: int) -> Path:
    return scratch / f"quarantine-{rank}.json"


def _share_quarantine(scratch: Path, num_processes: int) -> None:
    """What hung one process is known to all: shares change from start to start."""
    known: dict[str, Any] = {}
    for path in sorted(scratch.glob("quarantine-*.json")):
        known |= read_json(path)
    if known:
        for rank in range(num_processes):
            write_json(_quarantine(scratch, rank), known)


def _accuracies(scores, views, topk: Sequence[int]) -> dict[str, float]:
    from ..engine.metrics import accuracies

    return accuracies(scores, views.labels, views.video_ids, topk)


def _place(label: int, label_places: Sequence[int] | None) -> int:
    return label if label < 0 or label_places is None else label_places[label]


def _beside_fp32_text(pairs, recipe: Recipe, precision: str) -> str:
    found = beside_fp32(pairs, recipe.test.average_clips)
    return (
        f"{precision} beside fp32, on {found['clips']} clips: probabilities differ by at most "
        f"{found['largest_probability_difference']:.2g}, the top-1 of {found['top1_changes']}"
    )
