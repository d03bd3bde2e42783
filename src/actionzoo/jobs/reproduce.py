"""Published weights, tested on the clips at hand: measured beside published, with a verdict.

weights/<file>                                 as fetched, its hash checked
released/results/<dataset>/<row>/<kind>.json   scores of every clip; kind is ckpt or infer_ckpt. Beside it,
                                               <kind>.views.safetensors
released/metrics/<dataset>/<row>.json          kind -> accuracies, 95 % intervals, published numbers, verdict
released/report/<dataset>/released.*           the table of all rows, as .md, .html and .json
"""

import shutil
from pathlib import Path
from typing import Any

from ..accuracy import judge, wilson_interval
from ..errors import UserError
from ..files.hashes import md5_of
from ..files.json_files import write_json
from ..job import data_folder
from ..kinetics.manifest import label_map, read_manifest
from ..params import Params, digest
from ..records import Metrics
from ..tracking.live import recorded_run
from ..tracking.names import TEST_STEP, to_metrics
from ..weights.checkpoints import open_checkpoint
from ..weights.published import CACHE, PublishedFile, fetch_published, published_files
from .evaluate import FORM, find_label_places, list_fingerprint, read_head, run_test, write_result


def evaluate_released(params: Params, row: str, root: Path = Path()) -> str:
    """Test what was published for `row` on all views of the val split; gives the last line to print.

    A file that was tested by the same protocol on the same clips is not tested again. Raises UserError.
    """
    recipe = params.recipe(row)
    manifest = data_folder(params, recipe, root) / "manifest.csv"
    if not manifest.is_file():
        stage = f"{'resize' if recipe.clips.form == 'videos' else 'frames'}@{recipe.clips.short_side}"
        raise UserError(f"{manifest} is not there; `dvc repro {stage}` makes it")
    classes = label_map(read_manifest(manifest))
    metrics = {
        kind: _evaluate(params, published, classes, manifest, root)
        for kind, published in published_files(params, row).items()
    }
    path = root / "released" / "metrics" / params.name / f"{row}.json"
    write_json(path, metrics)
    said = [
        f"{kind} top-1 {100 * made['top1']:.2f} ({100 * made['top1_low']:.2f}-{100 * made['top1_high']:.2f}), "
        f"published {made['published_top1']}: {made['verdict']}"
        for kind, made in metrics.items()
    ]
    return f"released: {row}: {'; '.join(said)} ({path})"


def _evaluate(
    params: Params, published: PublishedFile, classes: list[str], manifest: Path, root: Path
) -> dict[str, Any]:
    """Metrics of one published file."""
    from ..process.progress import progress

    row, kind, recipe = published.row, published.kind, params.recipe(published.row)
    with progress("bytes") as tell:
        file = fetch_published(published, root / CACHE, tell=tell)
    checkpoint_md5 = md5_of(file)
    sections = (published.model, recipe.clips, recipe.augment, recipe.test)
    fingerprint = digest(
        FORM, *sections, manifest.read_text(encoding="utf-8"), checkpoint_md5, *list_fingerprint(params, "val", root)
    )
    path = root / "released" / "results" / params.name / row / f"{kind}.json"
    made = read_head(path)
    if made.get("fingerprint") != fingerprint:
        opened = open_checkpoint(file, params=params, row=row, root=root)
        model, report, known = opened.network, opened.report, opened.identity.classes
        print(report.text(), flush=True)
        about = {
            "row": row,
            "dataset": params.name,
            "fingerprint": fingerprint,
            "checkpoint_md5": checkpoint_md5,
            "file": file.name,
            "sha256": report.sha256,
        }
        outcome = run_test(
            params,
            row,
            model,
            root,
            views=path.with_name(f"{kind}.views.safetensors"),
            about=about,
            classes=known or classes,
            label_places=find_label_places(file, classes, known, model),
        )
        made = about | outcome.head
        write_result(path, made, outcome)
        shutil.rmtree(outcome.scratch)
        _record(params, row, kind, made, checkpoint_md5, path)
    metrics = made["metrics"]
    verdict, why = judge(params.name, params.overrides(row), Metrics.from_json(metrics, path), published.top1)
    bounds = {}
    for name in ("top1", "top5"):
        bounds[f"{name}_low"], bounds[f"{name}_high"] = _interval(metrics[name], metrics["clips"])
    numbers = {"published_top1": published.top1, "published_top5": published.top5}
    return metrics | bounds | numbers | {"verdict": verdict, "why": why, "file": made["file"], "sha256": made["sha256"]}


def _record(params: Params, row: str, kind: str, made: dict[str, Any], checkpoint_md5: str, path: Path) -> None:
    """In an experiment of its own: these runs trained nothing."""
    with recorded_run(
        experiment=f"{params.name}-released",
        name=f"{row} {kind}",
        phase="evaluate",
        params={"row": row, "kind": kind, "file": made["file"], "sha256": made["sha256"], "test": made["protocol"]},
        tags={"recipe": row, "dataset": params.name, "checkpoint.md5": checkpoint_md5},
    ) as record:
        record.log(TEST_STEP, to_metrics(made["metrics"] | {"mode": "test"}))
        record.artifact(path)


def _interval(share: float, clips: int) -> tuple[float, float]:
    return wilson_interval(round(share * clips), clips)
