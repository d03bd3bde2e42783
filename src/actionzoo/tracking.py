"""The record: every training and evaluation as a run in MLflow. The only file that imports mlflow, and that late.

One experiment per data set, one flat run per trained row; the md5 of its checkpoint ties an evaluation to it.
MLflow is a copy for looking at. The truth lies in the run folders, and `sync` fills a store from them; so a store that
is away, full or broken is warned about and never stops a training.
"""

import contextlib
import dataclasses
import datetime
import json
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from actionzoo.errors import UserError
from actionzoo.process import sigterm_as_exit

from .addresses import without_secrets
from .files.hashes import md5_of
from .files.locks import locked

METRIC_NAMES = {
    "train": {
        "loss": "train/loss",
        "top1_acc": "train/top1",
        "top5_acc": "train/top5",
        "lr": "train/lr",
        "grad_norm": "train/grad_norm",
        "data_time": "time/data",
        "time": "time/step",
        "memory": "memory_mb",
    },
    "val": {
        "top1_acc": "val/top1",
        "top5_acc": "val/top5",
        "mean_class_accuracy": "val/mean_class",
    },
    "test": {
        "top1": "test/top1:{protocol}",
        "top5": "test/top5:{protocol}",
        "mean_class": "test/mean_class:{protocol}",
        "top1_low": "test/top1_low:{protocol}",
        "top1_high": "test/top1_high:{protocol}",
        "top1_published": "test/top1_published",
        "top1_gap": "test/top1_gap",
    },
}
"""Mode of a line -> its key -> the name in MLflow. `train` and `val` are lines of log.json, `test` is
metrics/<dataset>/<row>.json, and its names say of which views an accuracy is: test/top1:10x3. MLflow knows no @ in
names, and its pages group by what stands before the slash."""

RUN_PARAMS = ("dataset", "recipe", "batch", "lr", "overrides", "train_clips", "val_clips")
"""Keys of recipe.json that become a run's parameters; hashes and class names do not."""

LOOKS = "looks"
"""Folder of a run's files for what its test looks like: tables, pictures, strips of clips."""

TEST_STEP = 0
"""Evaluations have no course; all of them stand at this step, and the newest is the one that counts."""

UI_ADDRESS = "http://127.0.0.1:5000"
"""Where `ui_command` opens MLflow's pages, if no other port is named."""

_FLUSH_SECONDS = 3.0
_CLOSE_ATTEMPTS = 3
_MAX_PENDING = 200_000
_POINTS_PER_BATCH, _PARAMS_PER_BATCH = 1000, 100  # limits of MLflow's log_batch
_PARAM_LENGTH = 6000  # characters; ditto
_LINK_FROM_BYTES = 1 << 20

_log = logging.getLogger(__name__)

Point = tuple[str, int, float, int]
"""Metric's name, step, value, milliseconds since 1970."""


def to_metrics(line: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of one line, named as in MLflow. Keys that are no metrics, and lines of no known mode, give none."""
    names = METRIC_NAMES.get(line.get("mode", ""), {})
    protocol = line.get("protocol", "unknown")
    return {
        names[key].format(protocol=protocol): float(value)
        for key, value in line.items()
        if key in names and value is not None
    }


def run_params(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What of a recipe.json, or of what will be one, is recorded as parameters."""
    return {key: recipe[key] for key in RUN_PARAMS if key in recipe}


def global_step(line: Mapping[str, Any], iters_per_epoch: int) -> int:
    """Where a line of log.json stands: steps since the start of training. Validation stands at its epoch's end."""
    if line["mode"] == "val":
        return line["epoch"] * iters_per_epoch
    return (line["epoch"] - 1) * iters_per_epoch + line["iter"]


def tracking_uri(root: Path | None = None) -> str:
    """MLFLOW_TRACKING_URI, else mlflow.db in the project's folder; never one that depends on where a command runs."""
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    return f"sqlite:///{(root or _project_root()).resolve() / 'mlflow.db'}"


def ui_command(root: Path | None = None, port: int = 5000) -> str:
    """The command line that shows what was recorded, to be typed in the project's folder."""
    uri = tracking_uri(root)
    if urllib.parse.urlparse(uri).scheme in ("http", "https"):
        return shlex.join([_in_project(Path(sys.executable), root), "-m", "webbrowser", "-t", without_secrets(uri)])
    if (database := _database(uri)) is not None:
        uri = f"sqlite:///{_in_project(database, root)}"
    program = [_in_project(Path(sys.executable), root), "-m", "mlflow"]
    if (mlflow := Path(sys.executable).with_name("mlflow")).exists():
        program = [_in_project(mlflow, root)]
    # without the job runner the server is 2 processes and not 10
    settings = "MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false"
    if without_secrets(uri) == uri:
        store = ["--backend-store-uri", uri]
    else:  # arguments are seen by all users of a machine, and the environment by one's own processes
        store = []
        settings += ' MLFLOW_BACKEND_STORE_URI="$MLFLOW_TRACKING_URI"'
    options = [*store, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return f"{settings} {shlex.join([*program, 'server', *options])}"


class Run:
    """An open run. None of its methods raises because of the store."""

    def __init__(self, client: Any, id: str | None, *, artifacts: str | None, is_resumed: bool) -> None:
        self.id = id
        """None where the store could not be opened: then nothing is recorded, and the run's end says so."""
        self._client = client
        self._artifacts = artifacts
        self._has_past = is_resumed
        self._past: dict[str, tuple[int, float] | None] = {}
        self._pending: list[Point] = []
        self._tags: dict[str, str] = {}
        self._dropped = 0
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._is_warned = False
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._send_now_and_then, name="tracking", daemon=True)
        if id is not None:
            self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record values at a step. Returns at once; a thread sends them every few seconds, any thread may call."""
        now = _milliseconds()
        points = [(name, int(step), float(value), now) for name, value in metrics.items()]
        with self._lock:
            if self.id is None or len(self._pending) + len(points) > _MAX_PENDING:
                self._dropped += len(points)
            else:
                self._pending += points

    def tag(self, key: str, value: object) -> None:
        """Set a tag, replacing one of the same name; sent with the next values."""
        with self._lock:
            self._tags[key] = str(value)

    def artifact(self, path: Path, folder: str = "") -> None:
        """Keep a file with the run, under its own name in `folder`.

        In a store on this machine a big file is a hard link: no second copy of a checkpoint. Small ones are copied, so
        that a log which grows later does not change the record.
        """
        if self.id is None or self._artifacts is None:
            return
        try:
            _keep(self._client, self.id, self._artifacts, Path(path), folder)
        except Exception as error:
            self._warn(f"MLflow could not keep {path}", error)

    def relink(self, path: Path) -> None:
        """Make the kept copy of a big file a hard link to it again: DVC puts another file of the same content in the
        place of what a stage made. Files of other content stay as they are."""
        if self.id is None or self._artifacts is None:
            return
        try:
            _relink(self._artifacts, Path(path))
        except OSError as error:
            self._warn(f"MLflow's copy of {path} could not become a link", error)

    def flush(self) -> bool:
        """Send what is waiting; False if the store did not take it, in which case it keeps waiting."""
        with self._sending:
            while True:
                with self._lock:
                    points, tags = self._pending[:_POINTS_PER_BATCH], dict(self._tags)
                if not points and not tags:
                    return True
                try:
                    self._send([point for point in points if self._is_news(point)], tags)
                except Exception as error:
                    self._warn("MLflow did not take values; they are kept and sent again", error)
                    return False
                with self._lock:
                    del self._pending[: len(points)]
                    for key in [key for key, value in tags.items() if self._tags.get(key) == value]:
                        del self._tags[key]

    def _send(self, points: list[Point], tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        # A batch that arrived although its answer did not may be sent again: equal points are one point to MLflow.
        self._client.log_batch(
            self.id, metrics=_as_metrics(points), tags=[RunTag(key, value[:8000]) for key, value in tags.items()]
        )

    def _is_news(self, point: Point) -> bool:
        """Whether the run does not have the point. Resumed a little before its end, a training passes steps again;
        MLflow would keep and draw both."""
        if not self._has_past:
            return True
        name, step, value, _ = point
        if name not in self._past:
            history = self._client.get_metric_history(self.id, name)
            last = max(history, key=lambda metric: (metric.step, metric.timestamp), default=None)
            self._past[name] = last and (last.step, last.value)
        past = self._past[name]
        return past is None or step > past[0] or (step == past[0] and value != past[1])

    def _send_now_and_then(self) -> None:
        while not self._is_closing.wait(_FLUSH_SECONDS):
            self.flush()

    def _close(self, phase: str, status: str, error: BaseException | None) -> None:
        """Send the rest and end the run, if it is this phase's own: a finished training stays finished when its
        evaluation fails."""
        self._is_closing.set()
        if self.id is not None:
            self._thread.join()
            self.tag(f"{phase}.status", status)
            if error is not None and status != "FINISHED":
                self.tag(f"{phase}.error", f"{type(error).__name__}: {error}"[:500])
            for attempt in range(_CLOSE_ATTEMPTS):
                if self.flush():
                    break
                time.sleep(attempt + 1 if attempt + 1 < _CLOSE_ATTEMPTS else 0)
            try:
                if self._client.get_run(self.id).data.tags.get("phase") == phase:
                    self._client.set_terminated(self.id, status)
            except Exception as failure:
                self._warn(f"MLflow does not know that the run is {status}", failure)
        if lost := self._dropped + len(self._pending):
            _log.warning(
                "tracking: %d values did not reach MLflow; the run's files have them, `actionzoo sync` sends them", lost
            )

    def _warn(self, what: str, error: Exception) -> None:
        if not self._is_warned:
            self._is_warned = True
            _log.warning("tracking: %s (%s); further failures of this run are not shown", what, _one_line(error))


@contextlib.contextmanager
def run(
    *,
    experiment: str,
    name: str,
    phase: str = "train",
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, object] | None = None,
    run_id: str | None = None,
) -> Iterator[Run]:
    """A run for the length of the block: finished if it ends well, KILLED by Ctrl-C or SIGTERM, else FAILED.

    `run_id` goes on with that run; one that the store does not know makes a new one. `params`, nested as they are, are
    recorded with new runs only, because MLflow refuses to change them. `phase` says who writes (train, evaluate): it
    prefixes tags such as `train.git_rev`, and only the phase that made a run ends it.
    A store that cannot be opened is warned about; the block runs all the same, with `.id` None.
    """
    active = _open(experiment, name, phase, params or {}, tags or {}, run_id)
    with sigterm_as_exit():
        try:
            yield active
        except BaseException as error:
            active._close(phase, _status_after(error), error)
            raise
        active._close(phase, "FINISHED", None)


def find_run(experiment: str, recipe: str, checkpoint_md5: str) -> str | None:
    """Id of the newest run of that row that made that checkpoint; None if there is none, or no store to ask."""
    try:
        client, experiment_id, _ = _connect(experiment)
        return _find(client, experiment_id, recipe, checkpoint_md5)
    except Exception as error:
        _log.warning("tracking: could not look for %s in MLflow at %s (%s)", recipe, _shown_uri(), _one_line(error))
        return None


def run_pages(
    experiment: str, checkpoints: Mapping[str, str], root: Path | None = None, server: str | None = None
) -> dict[str, str]:
    """Recipe -> address of MLflow's page on the newest run that made the checkpoint of that md5, as far as there are.

    `server` is where the pages are; without it the store, if that is a server, else where `ui_command` opens them.
    Nothing is made: without a store there are none.
    """
    uri = tracking_uri(root)
    if server is None:
        server = uri if urllib.parse.urlparse(uri).scheme in ("http", "https") else UI_ADDRESS
    if ((database := _database(uri)) is not None and not database.exists()) or not checkpoints:
        return {}
    try:
        client, experiment_id, _ = _connect(experiment, root)
        found = {recipe: _find(client, experiment_id, recipe, md5) for recipe, md5 in checkpoints.items()}
    except Exception as error:
        _log.warning("tracking: could not look for runs in MLflow at %s (%s)", _shown_uri(root), _one_line(error))
        return {}
    base = f"{without_secrets(server).rstrip('/')}/#/experiments/{experiment_id}/runs"
    return {recipe: f"{base}/{id}" for recipe, id in found.items() if id is not None}


def register(run: Path, file: Path, *, name: str, alias: str | None = None, tags: Mapping[str, object]) -> str:
    """Make `file`, weights of the folder `run`, a version of the registered model `name`; gives models:/NAME/VERSION.

    The file is kept with the run's record in MLflow, which is made or completed first. A file that is a version already
    stays that one. `alias` is a name that one version has at a time. Raises UserError.
    """
    folder = run.resolve()
    root, dataset = folder.parents[2], folder.parent.name
    done = _sync_folder(root, folder, dataset, folder.name, "best.pth")
    if done.run_id is None:
        raise UserError(f"{run} cannot be registered: {done.reason}")
    client, _, keeps_files = _connect_or_explain(dataset, root)
    if not keeps_files:
        raise UserError(
            f"MLflow at {_shown_uri(root)} was made in another folder and keeps its files there; remove it and the "
            "folder mlruns, then `actionzoo sync`, and register anew"
        )
    from mlflow.exceptions import MlflowException

    kept = f"registered-{md5_of(file)[:8]}"  # a folder for it alone, as MLflow wants
    try:
        artifacts = client.get_run(done.run_id).info.artifact_uri
        _keep(client, done.run_id, artifacts, file, kept)
        with contextlib.suppress(MlflowException):  # it is there
            client.create_registered_model(name)
        source = f"{artifacts.rstrip('/')}/{kept}"
        versions = client.search_model_versions(f"name = '{name}'") if "'" not in name else []
        version = next((found.version for found in versions if found.source == source), None)
        if version is None:
            texts = {key: str(value) for key, value in tags.items()}
            version = client.create_model_version(name, source, done.run_id, tags=texts).version
        if alias:
            client.set_registered_model_alias(name, alias, version)
    except MlflowException as error:
        raise UserError(f"MLflow does not take {name}{f'@{alias}' if alias else ''}: {_one_line(error)}") from None
    return f"models:/{name}/{version}"


def fetch_registered(address: str, cache: Path, root: Path) -> Path:
    """The weights of a version that `register` made, models:/NAME/VERSION or models:/NAME@ALIAS: the store's own file
    where it lies on this machine, else a copy in `cache`. Raises UserError."""
    if not (parts := re.fullmatch(r"models:/([^/@]+)(?:/(\d+)|@([^/@]+))", address)):
        raise UserError(f"{address} is no model of MLflow's; write models:/NAME/VERSION or models:/NAME@ALIAS")
    name, number, alias = parts.groups()
    uri = tracking_uri(root)
    if (database := _database(uri)) is not None and not database.exists():
        raise UserError(f"{database} is not there, so nothing is registered; `actionzoo register RUN` does that")
    mlflow = _mlflow()
    try:
        client = mlflow.MlflowClient(uri)
        version = number or client.get_model_version_by_alias(name, alias).version
        source = client.get_model_version_download_uri(name, str(version))
        listed = mlflow.artifacts.list_artifacts(artifact_uri=source, tracking_uri=uri)
        paths = [found.path for found in listed if found.path.endswith((".safetensors", ".pth"))]
        if len(paths) != 1:
            raise UserError(
                f"{address} has {len(paths)} weights files in {source}; `actionzoo register` makes versions with one"
            )
        file = Path(paths[0]).name
        if (place := _local_folder(source)) is not None:
            return place / file
        if not (cache / file).is_file():  # its name has its hash, which is checked when it is read
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache, prefix=".registered-") as folder:
                mlflow.artifacts.download_artifacts(f"{source.rstrip('/')}/{file}", dst_path=folder, tracking_uri=uri)
                os.replace(Path(folder) / file, cache / file)
        return cache / file
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{address} cannot be had from MLflow at {_shown_uri(root)}: {_one_line(error)}") from None


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
            done.append(_sync_folder(root, folder, data, row, checkpoint))
        except UserError as error:
            done.append(Synced(data, row, "skipped", reason=str(error)))
    return done


def _sync_folder(root: Path, folder: Path, dataset: str, row: str, checkpoint: str) -> Synced:
    if not (folder / checkpoint).is_file():
        return Synced(dataset, row, "skipped", reason=f"{folder / checkpoint} is not there")
    logs = sorted(folder.glob("*.log.json"))
    points = _points_of_logs(logs)
    metrics = root / "metrics" / dataset
    recipe, results = _read_json(folder / "recipe.json"), _read_json(metrics / f"{row}.json")
    md5 = md5_of(folder / checkpoint)
    names = (checkpoint, "latest.pth", "recipe.json", "result.json")
    looks = [metrics / f"{row}.{kind}.csv" for kind in ("classes", "confusion", "views")]
    looks += sorted((metrics / f"{row}.looks").glob("*"))
    files = {path: "" for path in [*(folder / name for name in names), *logs, *sorted(folder.glob("*.log"))]}
    files |= {path: LOOKS for path in looks}

    client, experiment_id, keeps_files = _connect_or_explain(dataset, root)
    run_id = _find(client, experiment_id, row, md5)
    is_new = run_id is None
    if is_new:
        started, ended = _course(folder, logs, checkpoint)
        tags = {"recipe": row, "phase": "train", "checkpoint.md5": md5, "train.recorded_by": "sync"}
        run_id = client.create_run(experiment_id, started, tags, row).info.run_id
        _log_params(client, run_id, run_params(recipe))
    info = client.get_run(run_id)
    sent = _send_missing(client, run_id, info.data.metrics, points, to_metrics({"mode": "test", **results}))

    kept = _kept(client, run_id)
    missing = [path for path in files if path.is_file() and path.name not in kept] if keeps_files else []
    for path in missing:
        _keep(client, run_id, info.info.artifact_uri, path, files[path])
    if keeps_files:
        for name in (checkpoint, "latest.pth"):
            _relink(info.info.artifact_uri, folder / name)
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
    now = _milliseconds()
    new = [point for point in points if point[:2] not in known]
    new += [(name, TEST_STEP, value, now) for name, value in results.items() if latest.get(name) != value]
    for start in range(0, len(new), _POINTS_PER_BATCH):
        client.log_batch(run_id, metrics=_as_metrics(new[start : start + _POINTS_PER_BATCH]))
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


def _open(
    experiment: str, name: str, phase: str, params: Mapping[str, Any], tags: Mapping[str, object], run_id: str | None
) -> Run:
    all_tags = {key: str(value) for key, value in {"recipe": name, **_circumstances(phase), **tags}.items()}
    try:
        client, experiment_id, keeps_files = _connect(experiment)
        found = _known_run(client, experiment_id, run_id) if run_id else None
        is_resumed = found is not None
        if found is None:
            found = client.create_run(experiment_id, tags={"phase": phase, **all_tags}, run_name=name)
        elif found.data.tags.get("phase") == phase:
            client.update_run(found.info.run_id, status="RUNNING")
        artifacts = found.info.artifact_uri if keeps_files else None
        active = Run(client, found.info.run_id, artifacts=artifacts, is_resumed=is_resumed)
    except Exception as error:
        _log.warning(
            "tracking: MLflow at %s cannot be used, this run is not recorded (%s); "
            "its files are complete all the same, and `actionzoo sync` records them later",
            _shown_uri(),
            _one_line(error),
        )
        return Run(None, None, artifacts=None, is_resumed=False)
    if is_resumed:
        for key, value in all_tags.items():
            active.tag(key, value)
        return active
    try:
        _log_params(client, active.id, params)
    except Exception as error:
        active._warn("MLflow did not take the parameters", error)
    return active


def _connect(experiment: str, root: Path | None = None) -> tuple[Any, str, bool]:
    """A client, the experiment's id, and whether files can be kept. Makes what is not there yet."""
    uri = tracking_uri(root)
    mlflow = _mlflow()
    database = _database(uri)
    if database is None:
        client = mlflow.MlflowClient(uri)
        return client, _experiment(client, experiment, None).experiment_id, True
    # Two processes that open a new sqlite store at once ruin it for good.
    database.parent.mkdir(parents=True, exist_ok=True)
    with locked(database.with_name(f"{database.name}.lock")):
        if not database.exists():
            _make_store(database)
        client = mlflow.MlflowClient(uri)
        found = _experiment(client, experiment, database.parent)
    home = found.tags.get("actionzoo.folder", str(database.parent))
    if home != str(database.parent):
        # MLflow keeps absolute paths: files of a copied project would land in the original
        _log.warning(
            "tracking: %s was made in %s, and MLflow looks for files there. Values are recorded, files are not; "
            "remove it and the folder mlruns, then `actionzoo sync` makes both anew from the run folders.",
            database,
            home,
        )
    return client, found.experiment_id, home == str(database.parent)


def _mlflow() -> Any:
    """The package, quiet and not too patient."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    # MLflow's own patience, 7 attempts of 2 minutes, would hold a training's end for a quarter of an hour
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    import mlflow

    return mlflow


def _connect_or_explain(experiment: str, root: Path) -> tuple[Any, str, bool]:
    try:
        return _connect(experiment, root)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"MLflow at {_shown_uri(root)} cannot be opened ({_one_line(error)}); start that server, or unset "
            "MLFLOW_TRACKING_URI to use mlflow.db in the project's folder"
        ) from error


def _make_store(database: Path) -> None:
    """A new store, which bears its name once it is complete: killed half-way, MLflow could never open it again."""
    import mlflow

    partial = database.with_name(f"{database.name}.partial")
    for leftover in database.parent.glob(f"{partial.name}*"):
        leftover.unlink()
    mlflow.MlflowClient(f"sqlite:///{partial}").search_experiments(max_results=1)
    os.replace(partial, database)


def _experiment(client: Any, name: str, folder: Path | None) -> Any:
    """The experiment, made if it is not there; with a store of ours in `folder`, files go to folder/mlruns/<name>."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        location = (folder / "mlruns" / urllib.parse.quote(name, safe="")).as_uri() if folder else None
        try:
            id = client.create_experiment(name, location, {"actionzoo.folder": str(folder)} if folder else None)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return client.get_experiment_by_name(name)  # a server's other client was faster
        return client.get_experiment(id)
    if found.lifecycle_stage == "deleted":
        _log.warning("tracking: experiment %s was deleted in MLflow; it is restored, with the runs it had", name)
        client.restore_experiment(found.experiment_id)
    return found


def _known_run(client: Any, experiment_id: str, run_id: str) -> Any | None:
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    is_ours = found.info.experiment_id == experiment_id and found.info.lifecycle_stage == "active"
    return found if is_ours else None


def _find(client: Any, experiment_id: str, recipe: str, md5: str) -> str | None:
    if not re.fullmatch(r"[0-9a-f]{32}", md5):
        raise ValueError(f"{md5!r} is no md5")
    # the row is compared here: its name may hold what MLflow's filter language cannot quote
    found = client.search_runs(
        [experiment_id], f"tags.`checkpoint.md5` = '{md5}'", order_by=["attributes.start_time DESC"]
    )
    return next((run.info.run_id for run in found if run.data.tags.get("recipe") == recipe), None)


def _log_params(client: Any, run_id: str, params: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    flat = [Param(key, value) for key, value in _flatten(params)]
    for start in range(0, len(flat), _PARAMS_PER_BATCH):
        client.log_batch(run_id, params=flat[start : start + _PARAMS_PER_BATCH])


def _flatten(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """{'optim': {'lr': 0.1}}  ->  ('optim.lr', '0.1')"""
    for key, value in params.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            yield f"{prefix}{key}", text[:_PARAM_LENGTH]


def _as_metrics(points: Iterable[Point]) -> list[Any]:
    from mlflow.entities import Metric

    return [Metric(name, value, timestamp, step) for name, step, value, timestamp in points]


def _circumstances(phase: str) -> dict[str, str]:
    """Which code ran, and who started it, as tags of this phase."""
    tags = {"dvc_stage": os.environ.get("DVC_STAGE"), "prefect_flow_run_id": os.environ.get("ACTIONZOO_FLOW_RUN_ID")}
    if torch := sys.modules.get("torch"):
        tags["torch"] = torch.__version__
    if rev := _git("rev-parse", "HEAD"):
        tags["git_rev"] = rev
        # dvc.lock changes with every stage that ends, without anybody having touched the code
        tags["git_dirty"] = str(bool(_git("status", "--porcelain", "--", ":(top)", ":(top,exclude)dvc.lock"))).lower()
    return {f"{phase}.{key}": value for key, value in tags.items() if value}


def _git(*arguments: str) -> str:
    """What git prints, nothing where there is no git or no repository."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=60, check=True)
        return answer.stdout.strip()
    return ""


def _status_after(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        if error.code in (None, 0):
            return "FINISHED"
        return "KILLED" if error.code in (128 + signal.SIGINT, 128 + signal.SIGTERM) else "FAILED"
    return "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"


def _keep(client: Any, run_id: str, artifacts: str, source: Path, folder: str = "") -> None:
    """Put a file among the run's artifacts, which lie at the address `artifacts`; whole or not at all."""
    if (place := _local_folder(artifacts)) is None:
        client.log_artifact(run_id, str(source), folder or None)
        return
    target = place / folder / source.name
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and target.samefile(source):
        return
    partial = target.with_name(f".{target.name}.partial")
    partial.unlink(missing_ok=True)
    source = source.resolve()  # a link to latest.pth shall keep the file, not the link
    try:
        if source.stat().st_size < _LINK_FROM_BYTES:
            shutil.copyfile(source, partial)
        else:
            os.link(source, partial)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, partial)
    os.replace(partial, target)


def _relink(artifacts: str, source: Path) -> None:
    """Replace the kept file of that name by a hard link to `source`, if both have the same content."""
    if (place := _local_folder(artifacts)) is None or not source.is_file():
        return
    source, target = source.resolve(), place / source.name
    if not target.is_file() or target.is_symlink():
        return
    ours, theirs = source.stat(), target.stat()
    if ours.st_size < _LINK_FROM_BYTES or (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino):
        return
    if ours.st_dev != theirs.st_dev or ours.st_size != theirs.st_size or md5_of(source) != md5_of(target):
        return
    partial = target.with_name(f".{target.name}.partial")
    partial.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # a file system without links
        os.link(source, partial)
        os.replace(partial, target)


def _database(uri: str) -> Path | None:
    """The file of a sqlite address; None for every other."""
    if not (match := re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]+)(?:\?.*)?", uri)) or match[1] == ":memory:":
        return None
    return Path(match[1]).resolve()


def _local_folder(uri: str) -> Path | None:
    parts = urllib.parse.urlparse(uri)
    if parts.scheme == "file":
        return Path(urllib.request.url2pathname(parts.path))
    return Path(uri) if not parts.scheme else None


def _project_root() -> Path:
    if root := os.environ.get("DVC_ROOT"):
        return Path(root)
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "params.yaml").is_file():
            return folder
    raise UserError(f"no params.yaml in {here} or above; run inside the project's folder, or set MLFLOW_TRACKING_URI")


def _in_project(path: Path, root: Path | None) -> str:
    """Relative to the project's folder where it lies inside."""
    with contextlib.suppress(ValueError, UserError):
        return str(path.relative_to((root or _project_root()).resolve()))
    return str(path)


def _shown_uri(root: Path | None = None) -> str:
    with contextlib.suppress(UserError):
        return without_secrets(tracking_uri(root))
    return "an unknown place"


def _one_line(error: BaseException) -> str:
    return without_secrets(" ".join(f"{type(error).__name__}: {error}".split()))[:300]


def _milliseconds() -> int:
    return int(time.time() * 1000)
