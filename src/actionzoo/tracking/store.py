"""The MLflow store: where it is, how it is opened, and how files and values are written to it."""

from __future__ import annotations

import contextlib
import dataclasses
import filecmp
import logging
import os
import re
import shlex
import sys
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from ..errors import UserError
from ..files.addresses import without_secrets
from ..files.links import link_or_copy
from ..files.locks import locked
from ..params import find_project, workspace_of
from .pages import UI_PORT, experiment_tags, run_page, runs_page, ui_address

if TYPE_CHECKING:  # mlflow takes a second to import, and a command that records nothing does without
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

_LINK_FROM_BYTES = 1 << 20
"""Files from this size on are hard links in a store on this machine."""

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Store:
    """A store that is open, and an experiment in it."""

    client: MlflowClient
    experiment_id: str
    keeps_files: bool
    """False for a store that was copied from another folder: MLflow would put files into the original."""


def tracking_uri(root: Path | None = None) -> str:
    """MLFLOW_TRACKING_URI, else mlflow.db in the workspace, from whichever folder the command runs.

    The workspace is the project's folder; experiments that DVC runs in temporary folders share it. Raises UserError
    outside of a project.
    """
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    return f"sqlite:///{workspace_of((root or find_project()).resolve()) / 'mlflow.db'}"


def ui_command(root: Path | None = None, port: int = UI_PORT) -> str:
    """The command line that opens MLflow's pages; to be typed in the project's folder."""
    uri = tracking_uri(root)
    if is_server(root):
        return shlex.join([_in_project(Path(sys.executable), root), "-m", "webbrowser", "-t", without_secrets(uri)])
    if (database := database_of(uri)) is not None:
        uri = f"sqlite:///{_in_project(database, root)}"
    program = [_in_project(Path(sys.executable), root), "-m", "mlflow"]
    if (mlflow := Path(sys.executable).with_name("mlflow")).exists():
        program = [_in_project(mlflow, root)]
    # without the job runner, the server has 2 processes instead of 10
    settings = "MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false"
    if without_secrets(uri) == uri:
        store = ["--backend-store-uri", uri]
    else:  # all users of a machine can read arguments, but not the environment
        store = []
        settings += ' MLFLOW_BACKEND_STORE_URI="$MLFLOW_TRACKING_URI"'
    options = [*store, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return f"{settings} {shlex.join([*program, 'server', *options])}"


def run_pages(
    experiment: str, checkpoints: Mapping[str, str], root: Path | None = None, server: str | None = None
) -> dict[str, str]:
    """Model -> address of the MLflow page of the newest run that made its checkpoint, for models that have one.

    `checkpoints`: model -> md5 of its checkpoint. `server`: address of the pages; default: the store, if it is a
    server, else where `actionzoo ui` opens them. Creates nothing: without a store the answer is empty.
    """
    uri = tracking_uri(root)
    if ((database := database_of(uri)) is not None and not database.exists()) or not checkpoints:
        return {}
    try:
        store = connect(experiment, root)
        found = {model: find_run_id(store, model, md5) for model, md5 in checkpoints.items()}
    except Exception as error:
        logger.warning("tracking: could not search MLflow at %s for runs (%s)", shown_uri(root), one_line(error))
        return {}
    pages = server or pages_address(root)
    return {model: run_page(pages, store.experiment_id, id) for model, id in found.items() if id is not None}


def pages_address(root: Path | None = None) -> str:
    """Where MLflow's pages are: at the store, if it is a server, else where `actionzoo ui` opens them."""
    return without_secrets(tracking_uri(root)) if is_server(root) else ui_address()


def runs_address(experiment: str, root: Path | None = None, server: str | None = None) -> str:
    """Address of the list of the experiment's runs, with the zoo's columns; of the pages alone if the store fails.

    The experiment is created if need be.
    """
    server = server or pages_address(root)
    try:
        return runs_page(server, connect(experiment, root).experiment_id)
    except Exception as error:
        logger.warning("tracking: MLflow at %s cannot be used (%s)", shown_uri(root), one_line(error))
        return server


def is_server(root: Path | None = None) -> bool:
    """Whether the store is a server, which shows its own pages; others are shown by `ui_command`."""
    return urllib.parse.urlparse(tracking_uri(root)).scheme in ("http", "https")


def connect(experiment: str, root: Path | None = None) -> Store:
    """Open the store and the experiment; both are created if need be. Raises MLflow's and the system's errors."""
    uri = tracking_uri(root)
    mlflow = load_mlflow()
    database = database_of(uri)
    if database is None:
        client = mlflow.MlflowClient(uri)
        return Store(client, _experiment(client, experiment, None).experiment_id, keeps_files=True)
    # two processes that create an sqlite store at once would damage it for good
    database.parent.mkdir(parents=True, exist_ok=True)
    with locked(database.with_name(f"{database.name}.lock")):
        if not database.exists():
            _make_store(database)
        client = mlflow.MlflowClient(uri)
        found = _experiment(client, experiment, database.parent)
    home = found.tags.get("actionzoo.folder", str(database.parent))
    return Store(client, found.experiment_id, keeps_files=home == str(database.parent))


def load_mlflow() -> ModuleType:
    """Import mlflow with its telemetry and its messages off, and with short timeouts."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    # MLflow's default, 7 attempts of 2 minutes, would delay the end of a training by a quarter of an hour
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    import mlflow

    return mlflow


def connect_or_explain(experiment: str, root: Path) -> Store:
    """The same, but raises UserError."""
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
    """Create a store under another name and rename it when it is complete: MLflow can never open an incomplete one."""
    import mlflow

    partial = database.with_name(f"{database.name}.partial")
    for leftover in database.parent.glob(f"{partial.name}*"):
        leftover.unlink()
    client = mlflow.MlflowClient(f"sqlite:///{partial}")
    client.delete_experiment("0")  # MLflow's own, Default, which would stay empty
    os.replace(partial, database)


def _experiment(client: MlflowClient, name: str, folder: Path | None) -> Experiment:
    """The experiment, created if need be. Files of the project's own store, in `folder`, go to folder/mlruns/<name>."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        location = (folder / "mlruns" / urllib.parse.quote(name, safe="")).as_uri() if folder else None
        try:
            id = client.create_experiment(name, location, {"actionzoo.folder": str(folder)} if folder else None)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another client of the server has created it
            if found is None:
                raise
            return found
        found = client.get_experiment(id)
    if found.lifecycle_stage == "deleted":
        logger.warning("tracking: experiment %s was deleted in MLflow; it is restored with its runs", name)
        client.restore_experiment(found.experiment_id)
    for key, value in experiment_tags(name).items():
        # people may have written a description of their own
        if found.tags.get(key) != value and (key != "mlflow.note.content" or key not in found.tags):
            client.set_experiment_tag(found.experiment_id, key, value)
    return found


def known_run(store: Store, run_id: str) -> Run | None:
    """The run with that id; None if the experiment has no such run, or if it was deleted."""
    from mlflow.exceptions import MlflowException

    try:
        found = store.client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    is_ours = found.info.experiment_id == store.experiment_id and found.info.lifecycle_stage == "active"
    return found if is_ours else None


def find_run_id(store: Store, model: str, md5: str) -> str | None:
    """Id of the newest run of the model that made the checkpoint of that md5."""
    if not re.fullmatch(r"[0-9a-f]{32}", md5):
        raise ValueError(f"{md5!r} is no md5")
    return _find(store, model, f"tags.`checkpoint.md5` = '{md5}'")


def find_stamped(store: Store, model: str, stamp: str) -> str | None:
    """Id of the newest run of the model whose training began at `stamp`."""
    return _find(store, model, f"tags.training = '{stamp}'") if re.fullmatch(r"\w+", stamp) else None


def _find(store: Store, model: str, query: str) -> str | None:
    # the model is compared here: its name may hold characters that MLflow's filter language cannot quote
    runs = store.client.search_runs([store.experiment_id], query, order_by=["attributes.start_time DESC"])
    tags = ((run.info.run_id, run.data.tags) for run in runs)
    # the version before wrote `recipe`
    return next((id for id, known in tags if known.get("model", known.get("recipe")) == model), None)


def place_file(source: Path, target: Path) -> bool:
    """Make `target`, in a store on this machine, have the content of `source`; False if it has it already.

    A large file becomes a hard link, so that a checkpoint takes its space once, and becomes one again after DVC has
    replaced it by another file of the same content. A small one is copied, so that a log that grows does not change
    the record. Raises OSError.
    """
    source = source.resolve()
    if target.is_file() and not target.is_symlink():
        ours, theirs = source.stat(), target.stat()
        if (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino):
            return False
        if ours.st_size == theirs.st_size and filecmp.cmp(source, target, shallow=False):
            if ours.st_size >= _LINK_FROM_BYTES and ours.st_dev == theirs.st_dev:
                link_or_copy(source, target, link_from_bytes=_LINK_FROM_BYTES)
            return False
    target.parent.mkdir(parents=True, exist_ok=True)
    link_or_copy(source, target, link_from_bytes=_LINK_FROM_BYTES)
    return True


def database_of(uri: str) -> Path | None:
    """The file of an sqlite address; None for other addresses."""
    if not (match := re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]+)(?:\?.*)?", uri)) or match[1] == ":memory:":
        return None
    return Path(match[1]).resolve()


def local_folder(uri: str) -> Path | None:
    """The folder of an artifact address on this machine; None for other addresses."""
    parts = urllib.parse.urlparse(uri)
    if parts.scheme == "file":
        return Path(urllib.request.url2pathname(parts.path))
    return Path(uri) if not parts.scheme else None


def _in_project(path: Path, root: Path | None) -> str:
    """The path, relative to the project's folder if it is inside."""
    with contextlib.suppress(ValueError, UserError):
        return str(path.relative_to((root or find_project()).resolve()))
    return str(path)


def shown_uri(root: Path | None = None) -> str:
    """The address of the store for messages, without passwords."""
    with contextlib.suppress(UserError):
        return without_secrets(tracking_uri(root))
    return "an unknown place"


def one_line(error: BaseException) -> str:
    """An error for messages: one line, without passwords, at most 300 characters."""
    return without_secrets(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
