"""The MLflow store: where it is, how it is opened, how files and values get into it."""

import contextlib
import json
import logging
import os
import re
import shlex
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files.addresses import without_secrets
from ..files.hashes import md5_of
from ..files.links import link_or_copy
from ..files.locks import locked
from ..params import find_project
from .names import Point

UI_ADDRESS = "http://127.0.0.1:5000"
"""Where `ui_command` opens MLflow's pages, if no other port is named."""

POINTS_PER_BATCH, _PARAMS_PER_BATCH = 1000, 100  # limits of MLflow's log_batch

_PARAM_LENGTH = 6000  # characters; ditto

_LINK_FROM_BYTES = 1 << 20

logger = logging.getLogger(__name__)


def tracking_uri(root: Path | None = None) -> str:
    """MLFLOW_TRACKING_URI, else mlflow.db in the project's folder; never one that depends on where a command runs."""
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    return f"sqlite:///{(root or find_project()).resolve() / 'mlflow.db'}"


def ui_command(root: Path | None = None, port: int = 5000) -> str:
    """The command line that shows what was recorded, to be typed in the project's folder."""
    uri = tracking_uri(root)
    if urllib.parse.urlparse(uri).scheme in ("http", "https"):
        return shlex.join([_in_project(Path(sys.executable), root), "-m", "webbrowser", "-t", without_secrets(uri)])
    if (database := database_of(uri)) is not None:
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


def find_run(experiment: str, recipe: str, checkpoint_md5: str) -> str | None:
    """Id of the newest run of that row that made that checkpoint; None if there is none, or no store to ask."""
    try:
        client, experiment_id, _ = connect(experiment)
        return find_run_id(client, experiment_id, recipe, checkpoint_md5)
    except Exception as error:
        logger.warning("tracking: could not look for %s in MLflow at %s (%s)", recipe, shown_uri(), one_line(error))
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
    if ((database := database_of(uri)) is not None and not database.exists()) or not checkpoints:
        return {}
    try:
        client, experiment_id, _ = connect(experiment, root)
        found = {recipe: find_run_id(client, experiment_id, recipe, md5) for recipe, md5 in checkpoints.items()}
    except Exception as error:
        logger.warning("tracking: could not look for runs in MLflow at %s (%s)", shown_uri(root), one_line(error))
        return {}
    base = f"{without_secrets(server).rstrip('/')}/#/experiments/{experiment_id}/runs"
    return {recipe: f"{base}/{id}" for recipe, id in found.items() if id is not None}


def connect(experiment: str, root: Path | None = None) -> tuple[Any, str, bool]:
    """A client, the experiment's id, and whether files can be kept. Makes what is not there yet."""
    uri = tracking_uri(root)
    mlflow = load_mlflow()
    database = database_of(uri)
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
        logger.warning(
            "tracking: %s was made in %s, and MLflow looks for files there. Values are recorded, files are not; "
            "remove it and the folder mlruns, then `actionzoo sync` makes both anew from the run folders.",
            database,
            home,
        )
    return client, found.experiment_id, home == str(database.parent)


def load_mlflow() -> Any:
    """The package, quiet and not too patient."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    # MLflow's own patience, 7 attempts of 2 minutes, would hold a training's end for a quarter of an hour
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    import mlflow

    return mlflow


def connect_or_explain(experiment: str, root: Path) -> tuple[Any, str, bool]:
    try:
        return connect(experiment, root)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"MLflow at {shown_uri(root)} cannot be opened ({one_line(error)}); start that server, or unset "
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
        logger.warning("tracking: experiment %s was deleted in MLflow; it is restored, with the runs it had", name)
        client.restore_experiment(found.experiment_id)
    return found


def known_run(client: Any, experiment_id: str, run_id: str) -> Any | None:
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    is_ours = found.info.experiment_id == experiment_id and found.info.lifecycle_stage == "active"
    return found if is_ours else None


def find_run_id(client: Any, experiment_id: str, recipe: str, md5: str) -> str | None:
    if not re.fullmatch(r"[0-9a-f]{32}", md5):
        raise ValueError(f"{md5!r} is no md5")
    # the row is compared here: its name may hold what MLflow's filter language cannot quote
    found = client.search_runs(
        [experiment_id], f"tags.`checkpoint.md5` = '{md5}'", order_by=["attributes.start_time DESC"]
    )
    return next((run.info.run_id for run in found if run.data.tags.get("recipe") == recipe), None)


def log_params(client: Any, run_id: str, params: Mapping[str, Any]) -> None:
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


def as_metrics(points: Iterable[Point]) -> list[Any]:
    from mlflow.entities import Metric

    return [Metric(name, value, timestamp, step) for name, step, value, timestamp in points]


def keep_file(client: Any, run_id: str, artifacts: str, source: Path, folder: str = "") -> None:
    """Put a file among the run's artifacts, which lie at the address `artifacts`; whole or not at all."""
    if (place := local_folder(artifacts)) is None:
        client.log_artifact(run_id, str(source), folder or None)
        return
    target = place / folder / source.name
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and target.samefile(source):
        return
    link_or_copy(source, target, link_from_bytes=_LINK_FROM_BYTES)  # a link to latest.pth keeps the file, not the link


def relink_file(artifacts: str, source: Path) -> None:
    """Replace the kept file of that name by a hard link to `source`, if both have the same content."""
    if (place := local_folder(artifacts)) is None or not source.is_file():
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


def database_of(uri: str) -> Path | None:
    """The file of a sqlite address; None for every other."""
    if not (match := re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]+)(?:\?.*)?", uri)) or match[1] == ":memory:":
        return None
    return Path(match[1]).resolve()


def local_folder(uri: str) -> Path | None:
    parts = urllib.parse.urlparse(uri)
    if parts.scheme == "file":
        return Path(urllib.request.url2pathname(parts.path))
    return Path(uri) if not parts.scheme else None


def _in_project(path: Path, root: Path | None) -> str:
    """Relative to the project's folder where it lies inside."""
    with contextlib.suppress(ValueError, UserError):
        return str(path.relative_to((root or find_project()).resolve()))
    return str(path)


def shown_uri(root: Path | None = None) -> str:
    with contextlib.suppress(UserError):
        return without_secrets(tracking_uri(root))
    return "an unknown place"


def one_line(error: BaseException) -> str:
    return without_secrets(" ".join(f"{type(error).__name__}: {error}".split()))[:300]


def milliseconds() -> int:
    return int(time.time() * 1000)
