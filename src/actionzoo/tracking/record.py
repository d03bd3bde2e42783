"""Brings MLflow's runs up to date with run folders: the only writer of the record.

It compares what a folder says (describe) with what the store has, and sends the difference. So it can be called at any
time and any number of times: every few seconds while a training goes on, or once after a clone or an outage.
"""

import contextlib
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import UserError
from ..files.hashes import md5_of
from ..files.json_files import read_json, write_json
from ..files.links import link_or_copy
from ..files.locks import locked
from ..params import load_params, workspace_of
from ..recipe import Published
from ..run_files import ReproductionFiles, RunFiles
from .describe import CHECKPOINTS, Description, describe, describe_reproductions, unfinished_stamps
from .store import Store, connect, find_run_id, find_stamped, known_run, local_folder, one_line, place_file, shown_uri

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run

Checkpoints = Literal["link", "upload", "reference"]
"""How checkpoints come into the record: as hard links, in a store on this machine; uploaded to a server as well;
or not at all: the run names their md5, by which DVC has them."""

_POINTS_PER_BATCH, _PARAMS_PER_BATCH = 1000, 100
"""Limits of MLflow's log_batch; the second one holds for tags, too."""

_PARAM_LENGTH, _TAG_LENGTH = 6000, 8000
"""In characters; limits of MLflow."""

_INDEX = "files.json"
"""An artifact of runs on a server: artifact -> md5 of its content, which MLflow does not tell."""

_NOTE_BEGINS = "<!-- What follows is written by actionzoo, again and again. Write above this line. -->"

_TEMPORARY_TAGS = ("error", "not_comparable")
"""Tags that go when what they tell has passed. All others stay: another machine may know more of a training."""


@dataclasses.dataclass
class Known:
    """What the store has of one run. Kept between calls, it saves reading the store again."""

    run_id: str = ""
    points: dict[str, dict[int, float]] = dataclasses.field(default_factory=dict)
    """Name -> step -> newest value."""
    files: dict[str, tuple[int, int, int]] = dataclasses.field(default_factory=dict)
    """Artifact -> size, time and inode of the file that it is a copy of."""
    index: dict[str, str] | None = None
    """Content of _INDEX; None: not read yet."""


@dataclasses.dataclass(frozen=True)
class Written:
    """What one call has changed."""

    run_id: str
    experiment_id: str
    is_new: bool
    points: int
    """Values that were sent."""
    files: int
    """Files that were sent."""


@dataclasses.dataclass(frozen=True)
class Synced:
    """What `sync` did for one training."""

    dataset: str
    model: str
    action: str
    """recorded: a new run; completed: values or files were added to a run; unchanged; skipped."""
    points: int = 0
    """Values that were sent."""
    files: int = 0
    """Files that were sent."""
    run_id: str | None = None
    """None if it was skipped."""
    reason: str = ""
    """Why it was skipped."""


def write(
    description: Description,
    root: Path,
    *,
    checkpoints: Checkpoints = "link",
    with_files: bool = True,
    known: Known | None = None,
) -> Written:
    """Make MLflow's run what the description says, and create it if there is none.

    Raises MLflow's errors, OSError, and UserError if the store takes values alone.

    `root`: the project's folder. `with_files`: also send files. `known`: of the calls before for the same training.
    """
    known = Known() if known is None else known
    store = connect(description.experiment, root)
    run, is_new = _find_or_create(store, description, known)
    _write_params(store, run, description)
    _write_tags(store, run, description)
    _write_inputs(store, run, description)
    points = _write_points(store, run, description, known)
    files = _write_files(store, run, description, known, checkpoints) if with_files and store.keeps_files else 0
    _write_status(store, run, description)
    if with_files and description.files and not store.keeps_files:
        # MLflow stores absolute paths: files of a copied project would go into the original
        raise UserError(
            f"MLflow at {shown_uri(root)} was created in another folder, and keeps its files there. Values are stored, "
            "files are not; remove it and the folder mlruns, then run `actionzoo sync`, which rebuilds both"
        )
    return Written(run.info.run_id, store.experiment_id, is_new, points, files)


def sync(root: Path, *, dataset: str | None = None, checkpoints: Checkpoints = "link") -> list[Synced]:
    """Record all trainings in the project `root`, unfinished and failed ones too, and evaluations of published weights.

    A second call changes nothing. A training that goes on is left to the process that records it; if its own process
    is gone, its run is marked as FAILED. What cannot be recorded is skipped with a reason.
    """
    done = []
    for folder in _folders(root / "runs", dataset):
        files = files_of(folder)
        try:
            stamps = unfinished_stamps(files)
            if files.recipe.is_file() or files.best.is_file() or not stamps:
                done.append(sync_run(files, checkpoints))
            done += [sync_run(files, checkpoints, stamp) for stamp in stamps]
        except UserError as error:
            done.append(Synced(files.dataset, files.model, "skipped", reason=str(error)))
    for folder in _folders(root / "reproduction" / "results", dataset):
        reproduction = ReproductionFiles(root, folder.parent.name, folder.name)
        try:
            done += [_sync(description, root, "link") for description in describe_reproductions(reproduction)]
        except UserError as error:
            done.append(Synced(reproduction.dataset, reproduction.model, "skipped", reason=str(error)))
    return done


def sync_unfinished(root: Path, checkpoints: Checkpoints = "link") -> list[Synced]:
    """`sync` for the trainings that have not finished alone: those whose process is gone are marked as FAILED."""
    done = []
    for files in map(files_of, _folders(root / "runs", None)):
        with contextlib.suppress(UserError):
            done += [sync_run(files, checkpoints, stamp) for stamp in unfinished_stamps(files)]
    return done


def sync_run(files: RunFiles, checkpoints: Checkpoints = "link", stamp: str = "") -> Synced:
    """`sync` for the training whose files are in the folder, or the one that began at `stamp`. Raises UserError."""
    description = describe(files, stamp, published_of(files))
    if description is None:
        reason = f"{files.recipe} is not there: `dvc pull` restores it, or `dvc repro train@{files.model}` makes it"
        return Synced(files.dataset, files.model, "skipped", reason=reason)
    if description.status == "RUNNING":
        reason = "it is being trained, and that process records it"
        return Synced(files.dataset, files.model, "skipped", reason=reason)
    with locked(files.record_lock):
        return _sync(description, files.root, checkpoints)


def files_of(folder: Path) -> RunFiles:
    """Of a folder <project>/runs/<dataset>/<model>."""
    root = folder.parents[2]
    return RunFiles(root, folder.parent.name, folder.name, workspace=workspace_of(root))


def published_of(files: RunFiles) -> Published | None:
    """What was published for the model; None also where the project's files cannot be read."""
    with contextlib.suppress(UserError, OSError):
        return load_params(files.root / "params.yaml").published.get(files.model)
    return None


def _folders(parent: Path, dataset: str | None) -> list[Path]:
    return sorted(path for path in parent.glob("*/*") if path.is_dir() and dataset in (None, path.parent.name))


def _sync(description: Description, root: Path, checkpoints: Checkpoints) -> Synced:
    try:
        written = write(description, root, checkpoints=checkpoints)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"MLflow at {shown_uri(root)} cannot be used ({one_line(error)}); start that server, or unset "
            "MLFLOW_TRACKING_URI to use mlflow.db in the project's folder"
        ) from error
    action = "recorded" if written.is_new else "completed" if written.points or written.files else "unchanged"
    return Synced(description.dataset, description.model, action, written.points, written.files, written.run_id)


def _find_or_create(store: Store, description: Description, known: Known) -> "tuple[Run, bool]":
    run_id = known.run_id if known.run_id and known_run(store, known.run_id) else ""
    if not run_id and description.checkpoint_md5:
        run_id = find_run_id(store, description.model, description.checkpoint_md5) or ""
    if not run_id and description.stamp:
        run_id = find_stamped(store, description.model, description.stamp) or ""
    if not run_id and description.known_id and known_run(store, description.known_id):
        run_id = description.known_id
    is_new = not run_id
    if is_new:
        # mlflow.user counts here alone for the column User
        tags = {key: value[:_TAG_LENGTH] for key, value in description.tags.items()}
        tags |= {"training": description.stamp} if description.stamp else {}
        run_id = store.client.create_run(
            store.experiment_id, description.began, tags, run_name=description.name
        ).info.run_id
    run = store.client.get_run(run_id)
    if known.run_id != run_id:
        known.run_id, known.files, known.index = run_id, {}, {} if is_new else None
        known.points = {
            name: {metric.step: metric.value for metric in _oldest_first(store, run_id, name)}
            for name in run.data.metrics
        }
    return run, is_new


def _oldest_first(store: Store, run_id: str, name: str) -> "list[Metric]":
    return sorted(store.client.get_metric_history(run_id, name), key=lambda metric: metric.timestamp)


def _write_params(store: Store, run: "Run", description: Description) -> None:
    """Those that are new: MLflow refuses to change a parameter."""
    from mlflow.entities import Param

    new = [
        Param(key[:250], value[:_PARAM_LENGTH])
        for key, value in description.params.items()
        if key[:250] not in run.data.params
    ]
    for start in range(0, len(new), _PARAMS_PER_BATCH):
        store.client.log_batch(run.info.run_id, params=new[start : start + _PARAMS_PER_BATCH])


def _write_tags(store: Store, run: "Run", description: Description) -> None:
    from mlflow.entities import RunTag

    wanted = dict(description.tags)
    wanted["mlflow.note.content"] = _note(run.data.tags.get("mlflow.note.content", ""), description.note)
    if description.stamp:
        wanted["training"] = description.stamp
    if flow_runs := description.flow_runs:
        earlier = [id for id in run.data.tags.get("flow_runs", "").split(", ") if id]
        last = flow_runs[-1]
        wanted |= {"flow_run.id": last.id, "flow_run.name": last.name, "flow_run.url": last.url}
        wanted["flow_runs"] = ", ".join(dict.fromkeys([*earlier, *(each.id for each in flow_runs)]))
    new = [
        RunTag(key, value[:_TAG_LENGTH])
        for key, value in wanted.items()
        if value and run.data.tags.get(key) != value[:_TAG_LENGTH]
    ]
    for start in range(0, len(new), _PARAMS_PER_BATCH):
        store.client.log_batch(run.info.run_id, tags=new[start : start + _PARAMS_PER_BATCH])
    for key in _TEMPORARY_TAGS:
        if key in run.data.tags and key not in wanted:
            store.client.delete_tag(run.info.run_id, key)


def _note(known: str, ours: str) -> str:
    """The description of a run: what people have written above our part stays."""
    theirs = known.partition(_NOTE_BEGINS)[0].rstrip()
    return f"{theirs}\n\n{_NOTE_BEGINS}\n\n{ours}".lstrip()


def _write_inputs(store: Store, run: "Run", description: Description) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    known = {(each.dataset.name, each.dataset.digest) for each in (run.inputs.dataset_inputs if run.inputs else ())}
    new = [each for each in description.inputs if (each.name, each.digest) not in known]
    if new:
        store.client.log_inputs(
            run.info.run_id,
            [
                DatasetInput(
                    Dataset(
                        name=each.name,
                        digest=each.digest,
                        source_type="local",
                        source=json.dumps({"uri": each.source}),
                        profile=json.dumps({"clips": each.clips, **each.details}),
                    ),
                    [InputTag("mlflow.data.context", each.context)],
                )
                for each in new
            ],
        )


def _write_points(store: Store, run: "Run", description: Description, known: Known) -> int:
    """Values that the run lacks, or whose newest value is another one. Returns how many."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    new = [point for point in description.points if known.points.get(point.name, {}).get(point.step) != point.value]
    for start in range(0, len(new), _POINTS_PER_BATCH):
        batch = new[start : start + _POINTS_PER_BATCH]
        metrics = [Metric(point.name, point.value, now, point.step) for point in batch]
        store.client.log_batch(run.info.run_id, metrics=metrics)
        for point in batch:
            known.points.setdefault(point.name, {})[point.step] = point.value
    return len(new)


def _write_files(store: Store, run: "Run", description: Description, known: Known, checkpoints: Checkpoints) -> int:
    """Files that the run lacks, or has with other content. Returns how many."""
    folder = local_folder(run.info.artifact_uri)
    sent = 0
    for artifact, path in description.files.items():
        if artifact in CHECKPOINTS and (checkpoints == "reference" or (folder is None and checkpoints == "link")):
            continue
        try:
            status = path.stat()
        except FileNotFoundError:  # DVC has moved it meanwhile
            continue
        signature = (status.st_size, status.st_mtime_ns, status.st_ino)
        if known.files.get(artifact) == signature:
            continue
        if folder is not None:
            sent += place_file(path, folder / artifact)
        else:
            sent += _upload(store, run.info.run_id, path, artifact, known)
        known.files[artifact] = signature
    return sent


def _upload(store: Store, run_id: str, path: Path, artifact: str, known: Known) -> bool:
    """Send a file to the server; False if it has it."""
    if known.index is None:
        known.index = _read_index(store, run_id)
    md5 = md5_of(path)
    if known.index.get(artifact) == md5:
        return False
    with tempfile.TemporaryDirectory(prefix="actionzoo-") as name:
        parent, _, base = artifact.rpartition("/")
        if path.name == base:
            store.client.log_artifact(run_id, str(path), parent or None)
        else:
            link_or_copy(path, Path(name) / base)
            store.client.log_artifact(run_id, str(Path(name) / base), parent or None)
        known.index[artifact] = md5
        write_json(Path(name) / _INDEX, known.index)
        store.client.log_artifact(run_id, str(Path(name) / _INDEX))
    return True


def _read_index(store: Store, run_id: str) -> dict[str, str]:
    if not any(item.path == _INDEX for item in store.client.list_artifacts(run_id)):
        return {}
    with tempfile.TemporaryDirectory(prefix="actionzoo-") as name:
        return read_json(Path(store.client.download_artifacts(run_id, _INDEX, name)))


def _write_status(store: Store, run: "Run", description: Description) -> None:
    """Last, so that a run that MLflow calls FINISHED is complete."""
    if run.info.run_name == description.model != description.name:  # the name that the version before gave
        store.client.update_run(run.info.run_id, name=description.name)
    if run.info.status == description.status:
        return
    if description.status == "RUNNING":
        store.client.update_run(run.info.run_id, status="RUNNING")
    else:
        store.client.set_terminated(run.info.run_id, description.status, description.ended)
