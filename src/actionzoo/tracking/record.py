"""Records run folders in MLflow: after a clone, after a checkout, or when the store was lost."""

import contextlib
import dataclasses
import datetime
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..errors import UserError
from ..files.hashes import md5_of
from ..files.json_files import json_lines
from ..records import RunRecord, TestResult
from ..run_files import Plot, RunFiles, logs_of
from .names import ERROR_ANALYSIS, TEST_STEP, Point, global_step, run_params, to_metrics
from .store import (
    POINTS_PER_BATCH,
    Store,
    as_metrics,
    connect_or_explain,
    find_run_id,
    keep_file,
    log_params,
    milliseconds,
    relink_file,
)

_TABLES: tuple[Plot, ...] = ("classes", "confusion", "views")
"""Plots of the error analysis."""


@dataclasses.dataclass(frozen=True)
class Synced:
    """What `sync` did for one run folder."""

    dataset: str
    model: str
    action: str
    """recorded: a new run; completed: values or files were added to a run; unchanged; skipped."""
    points: int = 0
    """Values that were sent."""
    run_id: str | None = None
    """None if the folder was skipped."""
    reason: str = ""
    """Why it was skipped."""


def sync(root: Path, *, dataset: str | None = None, checkpoint: str = "best.pth") -> list[Synced]:
    """Record the folders runs/<dataset>/<model>/ below `root` in MLflow.

    For runs that were made elsewhere, restored from DVC's cache, or made while the store was unreachable. If no run has
    the folder's `checkpoint`, a run is created; a run that lacks values or files gets them. A second call changes
    nothing. A folder that cannot be recorded is skipped with a reason.
    """
    done = []
    for folder in sorted(path for path in (root / "runs").glob("*/*") if path.is_dir()):
        if dataset not in (None, folder.parent.name):
            continue
        try:
            done.append(sync_folder(folder, checkpoint))
        except UserError as error:
            done.append(Synced(folder.parent.name, folder.name, "skipped", reason=str(error)))
    return done


def sync_folder(folder: Path, checkpoint: str = "best.pth") -> Synced:
    """`sync` for one folder, <project>/runs/<dataset>/<model>. Raises UserError."""
    root, dataset, model = folder.parents[2], folder.parent.name, folder.name
    if not (folder / checkpoint).is_file():
        return Synced(dataset, model, "skipped", reason=f"{folder / checkpoint} is not there")
    run_files = RunFiles(root, dataset, model)
    record, result = RunRecord.read_if_there(run_files.recipe), TestResult.read_if_there(run_files.result)
    logs = logs_of(folder, record.log_mark if record else "")
    points = _points_of_logs(logs)
    md5 = md5_of(folder / checkpoint)
    files = _files(run_files, logs, checkpoint)

    store = connect_or_explain(dataset, root)
    client = store.client
    run_id = find_run_id(store, model, md5)
    is_new = run_id is None
    began, ended = _times(folder, logs, checkpoint)
    if run_id is None:
        tags = {"recipe": model, "phase": "train", "checkpoint.md5": md5, "train.recorded_by": "sync"}
        created: str = client.create_run(store.experiment_id, began, tags, model).info.run_id
        run_id = created
        log_params(client, run_id, run_params(record.as_json()) if record else {})
    run = client.get_run(run_id)
    accuracies = to_metrics(result.metrics.counts() | {"mode": "test"}) if result else {}
    sent = _send_missing(store, run_id, run.data.metrics, points, accuracies)

    missing: list[Path] = []
    if store.keeps_files:
        artifacts: str = run.info.artifact_uri
        kept = _artifact_names(store, run_id)
        missing = [path for path in files if path.is_file() and path.name not in kept]
        for path in missing:
            keep_file(client, run_id, artifacts, path, files[path])
        for name in (checkpoint, "latest.pth"):
            relink_file(artifacts, folder / name)
    if is_new:
        client.set_terminated(run_id, "FINISHED", ended)
    action = "recorded" if is_new else "completed" if sent or missing else "unchanged"
    return Synced(dataset, model, action, sent, run_id)


def _files(run: RunFiles, logs: Iterable[Path], checkpoint: str) -> dict[Path, str]:
    """The files of a run and of its evaluation, which need not exist -> their artifact folder."""
    texts = [log.with_suffix("") for log in logs]
    of_run = [run.run / checkpoint, run.latest, run.recipe, run.result, *logs, *texts]
    analysis = [*(run.plot(kind) for kind in _TABLES), *sorted(run.errors.glob("*"))]
    return dict.fromkeys(of_run, "") | dict.fromkeys(analysis, ERROR_ANALYSIS)


def _send_missing(
    store: Store,
    run_id: str,
    latest: Mapping[str, float],
    points: Sequence[Point],
    accuracies: Mapping[str, float],
) -> int:
    """Send the points that the run lacks (by name and step) and the accuracies that differ from its latest values.
    Returns how many were sent."""
    known = {
        (name, metric.step)
        for name in {point.name for point in points} & latest.keys()
        for metric in store.client.get_metric_history(run_id, name)
    }
    now = milliseconds()
    new = [point for point in points if (point.name, point.step) not in known]
    new += [Point(name, TEST_STEP, value, now) for name, value in accuracies.items() if latest.get(name) != value]
    for start in range(0, len(new), POINTS_PER_BATCH):
        store.client.log_batch(run_id, metrics=as_metrics(new[start : start + POINTS_PER_BATCH]))
    return len(new)


def _artifact_names(store: Store, run_id: str, folder: str | None = None) -> set[str]:
    """Base names of all artifacts of the run: older versions put some into other folders."""
    names: set[str] = set()
    for item in store.client.list_artifacts(run_id, folder):
        names |= _artifact_names(store, run_id, item.path) if item.is_dir else {Path(item.path).name}
    return names


def _points_of_logs(paths: Iterable[Path]) -> list[Point]:
    """All values of the logs, ordered by name and step. An interrupted training has several logs; where they overlap,
    the later one counts."""
    values: dict[tuple[str, int], tuple[float, int]] = {}
    for path in paths:
        iters_per_epoch = None
        written = int(path.stat().st_mtime * 1000)
        for number, line in json_lines(path, "correct or delete the line"):
            iters_per_epoch = line.get("iters_per_epoch", iters_per_epoch)
            if not (metrics := to_metrics(line)):
                continue
            if not iters_per_epoch:
                raise UserError(
                    f"{path}, line {number}: no line before it has iters_per_epoch, so its step is unknown; add the "
                    "key to the first line"
                )
            try:
                step = global_step(line, iters_per_epoch)
            except ValueError as error:
                raise UserError(f"{path}, line {number}: {error}; correct or delete the line") from None
            values |= {(name, step): (value, written) for name, value in metrics.items()}
    return [Point(name, step, *values[name, step]) for name, step in sorted(values)]


def _times(folder: Path, logs: Sequence[Path], checkpoint: str) -> tuple[int, int]:
    """When a training began (by the name of its first log) and ended (by its checkpoint), in ms since 1970."""
    ended = int((folder / checkpoint).stat().st_mtime * 1000)
    with contextlib.suppress(ValueError, IndexError):
        began = datetime.datetime.strptime(logs[0].name.split(".")[0], "%Y%m%d_%H%M%S")
        return min(int(began.timestamp() * 1000), ended), ended
    return ended, ended
