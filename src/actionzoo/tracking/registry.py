"""Registered models in MLflow: weights files under a name and a version."""

import contextlib
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ..errors import UserError
from ..files.hashes import md5_of
from .record import files_of, sync_run
from .store import (
    connect_or_explain,
    database_of,
    load_mlflow,
    local_folder,
    one_line,
    place_file,
    shown_uri,
    tracking_uri,
)


def register(run: Path, file: Path, *, name: str, alias: str | None = None, tags: Mapping[str, object]) -> str:
    """Make `file` a version of the registered model `name` and return its address, models:/NAME/VERSION.

    `run` is the folder of the run whose weights `file` holds. The run is recorded in MLflow first, and its artifacts
    get the file. Registering the same file again returns its existing version. `alias`: a movable label, e.g. champion.
    Raises UserError.
    """
    folder = run.resolve()
    root = folder.parents[2]
    done = sync_run(files_of(folder))
    if done.run_id is None:
        raise UserError(f"{run} cannot be registered: {done.reason}")
    store = connect_or_explain(done.dataset, root)
    client = store.client
    if not store.keeps_files:
        raise UserError(
            f"MLflow at {shown_uri(root)} was created in another folder and keeps its files there; remove it and the "
            "folder mlruns, run `actionzoo sync`, and register again"
        )
    from mlflow.exceptions import MlflowException

    kept = f"registered-{md5_of(file)[:8]}"  # MLflow expects a folder for each version
    try:
        artifacts: str = client.get_run(done.run_id).info.artifact_uri
        if (place := local_folder(artifacts)) is not None:
            place_file(file, place / kept / file.name)
        else:
            client.log_artifact(done.run_id, str(file), kept)
        with contextlib.suppress(MlflowException):  # it exists
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
        raise UserError(f"MLflow does not accept {name}{f'@{alias}' if alias else ''}: {one_line(error)}") from None
    return f"models:/{name}/{version}"


def fetch_registered(address: str, cache: Path, root: Path) -> Path:
    """The weights file of a registered version, models:/NAME/VERSION or models:/NAME@ALIAS.

    Returns the store's own file if it is on this machine, else a copy in `cache`. Raises UserError.
    """
    if not (parts := re.fullmatch(r"models:/([^/@]+)(?:/(\d+)|@([^/@]+))", address)):
        raise UserError(f"{address} is no registered model; write models:/NAME/VERSION or models:/NAME@ALIAS")
    name, number, alias = parts.groups()
    uri = tracking_uri(root)
    if (database := database_of(uri)) is not None and not database.exists():
        raise UserError(f"{database} is not there, so no model is registered; run `actionzoo register RUN` first")
    mlflow = load_mlflow()
    try:
        client = mlflow.MlflowClient(uri)
        version = number or client.get_model_version_by_alias(name, alias).version
        source = client.get_model_version_download_uri(name, str(version))
        listed = mlflow.artifacts.list_artifacts(artifact_uri=source, tracking_uri=uri)
        paths = [found.path for found in listed if found.path.endswith((".safetensors", ".pth"))]
        if len(paths) != 1:
            raise UserError(f"{address} has {len(paths)} weights files in {source}, not one; register it again")
        file = Path(paths[0]).name
        if (place := local_folder(source)) is not None:
            return place / file
        if not (cache / file).is_file():  # its name holds its hash, which is checked when it is read
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache, prefix=".registered-") as folder:
                mlflow.artifacts.download_artifacts(f"{source.rstrip('/')}/{file}", dst_path=folder, tracking_uri=uri)
                os.replace(Path(folder) / file, cache / file)
        return cache / file
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{address} cannot be fetched from MLflow at {shown_uri(root)}: {one_line(error)}") from None
