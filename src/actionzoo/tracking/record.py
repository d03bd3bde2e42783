"""A run folder into MLflow: after a clone, a checkout, or with a lost store."""

import contextlib
import dataclasses
import datetime
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files.hashes import md5_of
from .names import ERROR_ANALYSIS, TEST_STEP, Point, global_step, run_params, to_metrics
from .store import (
    POINTS_PER_BATCH,
    as_metrics,
    connect_or_explain,
    find_run_id,
    keep_file,
    log_params,
    milliseconds,
    relink_file,
)


@dataclasses.dataclass(frozen=True)
class Synced:
    """What `sync` did for one run folder."""

    dataset: str
    row: str
    action: str
    """recorded: a new run; completed: something was added to a run; unchanged; skipped."""
    points: int = 0
    run_id: str | None = None
    reason: str = ""


def sync(root: Path, *, dataset: str | None = None, checkpoint: str = "best.pth") -> list[Synced]:
    """Fill MLflow from the folders runs/<dataset>/<row>/ and metrics/<dataset>/<row>.json below `root`.

    For runs that were made elsewhere, restored from DVC's cache, or recorded while the store was away. A folder whose
    `checkpoint` no run has becomes a run; a run that lacks values or files gets them. A second call changes nothing.
    Raises UserError where the store cannot be opened.
    """
    done = []
    for folder in sorted(path for path in (root / "runs").glob("*/*") if path.is_dir()):
        data, row = folder.parent.name, folder.name
        if dataset not in (None, data):
            continue
        try:
            done.append(sync_folder(root, folder, data, row, checkpoint))
        except UserError as error:
            done.append(Synced(data, row, "skipped", reason=str(error)))
    return done


def sync_folder(root: Path, folder: Path, dataset: str, row: str, checkpoint: str) -> Synced:
    if not (folder / checkpoint).is_file():
        return Synced(dataset, row, "skipped", reason=f"{folder / checkpoint} is not there")
    logs = sorted(folder.glob("*.log.json"))
    points = _points_of_logs(logs)
    metrics = root / "metrics" / dataset
    recipe, results = _read_json(folder / "recipe.json"), _read_json(metrics / f"{row}.json")
    md5 = md5_of(folder / checkpoint)
    names = (checkpoint, "latest.pth", "recipe.json", "result.json")
    analysis = [metrics / f"{row}.{kind}.csv" for kind in ("classes", "confusion", "views")]
    for ending in ("errors", "looks"):  # looks: written by older versions
        analysis += sorted((metrics / f"{row}.{ending}").glob("*"))
    files = {path: "" for path in [*(folder / name for name in names), *logs, *sorted(folder.glob("*.log"))]}
    files |= {path: ERROR_ANALYSIS for path in analysis}

    client, experiment_id, keeps_files = connect_or_explain(dataset, root)
    run_id = find_run_id(client, experiment_id, row, md5)
    is_new = run_id is None
    if is_new:
        started, ended = _course(folder, logs, checkpoint)
        tags = {"recipe": row, "phase": "train", "checkpoint.md5": md5, "train.recorded_by": "sync"}
        run_id = client.create_run(experiment_id, started, tags, row).info.run_id
        log_params(client, run_id, run_params(recipe))
    info = client.get_run(run_id)
    sent = _send_missing(client, run_id, info.data.metrics, points, to_metrics({"mode": "test", **results}))

    kept = _kept(client, run_id)
    missing = [path for path in files if path.is_file() and path.name not in kept] if keeps_files else []
    for path in missing:
        keep_file(client, run_id, info.info.artifact_uri, path, files[path])
    if keeps_files:
        for name in (checkpoint, "latest.pth"):
            relink_file(info.info.artifact_uri, folder / name)
    if is_new:
        client.set_terminated(run_id, "FINISHED", ended)
    action = "recorded" if is_new else "completed" if sent or missing else "unchanged"
    return Synced(dataset, row, action, sent, run_id)


def _send_missing(
    client: Any, run_id: str, latest: Mapping[str, float], points: Iterable[Point], results: Mapping[str, float]
) -> int:
    """Send the points whose name and step the run lacks, and results that are not the run's latest. How many."""
    points = list(points)
    known = {
        (name, metric.step)
        for name in {name for name, *_ in points} & latest.keys()
        for metric in client.get_metric_history(run_id, name)
    }
    now = milliseconds()
    new = [point for point in points if point[:2] not in known]
    new += [(name, TEST_STEP, value, now) for name, value in results.items() if latest.get(name) != value]
    for start in range(0, len(new), POINTS_PER_BATCH):
        client.log_batch(run_id, metrics=as_metrics(new[start : start + POINTS_PER_BATCH]))
    return len(new)


def _kept(client: Any, run_id: str, folder: str | None = None) -> set[str]:
    """Names of the files that the run has, in whichever folder."""
    names = set()
    for item in client.list_artifacts(run_id, folder):
        names |= _kept(client, run_id, item.path) if item.is_dir else {Path(item.path).name}
    return names


def _points_of_logs(paths: list[Path]) -> list[Point]:
    """Every value of the logs, in the order of name and step. A training that was interrupted has several logs; where
    they overlap, the later one counts."""
    values: dict[tuple[str, int], tuple[float, int]] = {}
    for path in paths:
        iters_per_epoch = None
        written = int(path.stat().st_mtime * 1000)
        for number, line in _json_lines(path):
            iters_per_epoch = line.get("iters_per_epoch", iters_per_epoch)
            if not (metrics := to_metrics(line)):
                continue
            if not iters_per_epoch:
                raise UserError(
                    f"{path}, line {number}: no line before it says iters_per_epoch, so its step is unknown; "
                    "add the key to the first line"
                )
            step = global_step(line, iters_per_epoch)
            values |= {(name, step): (value, written) for name, value in metrics.items()}
    return [(name, step, *values[name, step]) for name, step in sorted(values)]


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The file's objects with their line numbers. A last line that a kill cut off is left out."""
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                return
            raise UserError(f"{path}, line {number} is no JSON ({error.msg}); mend or delete the line") from None


def _read_json(path: Path) -> dict[str, Any]:
    """The file's object; an empty one where there is no file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is no JSON ({error.msg}); make it anew") from None


def _course(folder: Path, logs: list[Path], checkpoint: str) -> tuple[int, int]:
    """When a training began, by its first log's name, and ended, by its checkpoint; milliseconds since 1970."""
    ended = int((folder / checkpoint).stat().st_mtime * 1000)
    with contextlib.suppress(ValueError, IndexError):
        began = datetime.datetime.strptime(logs[0].name.split(".")[0], "%Y%m%d_%H%M%S")
        return min(int(began.timestamp() * 1000), ended), ended
    return ended, ended
