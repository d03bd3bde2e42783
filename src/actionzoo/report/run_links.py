"""The report's links that change from run to run: to runs in MLflow, and to logs named by their time.

They are in runs.js beside the page. It is no output of a stage: outputs are equal however they were made.
"""

import json
import os
from pathlib import Path

from ..errors import UserError
from ..files.atomic import atomic_write
from ..params import Params, workspace_of
from ..records import RunRecord
from ..run_files import RunFiles, newest_logs
from ..tracking.store import run_pages


def write_run_links(params: Params, root: Path | None = None, *, server: str | None = None) -> Path:
    """Write report/<dataset>/runs.js, model -> mlflow, log, json -> address, and return its path.

    `server` is the address of MLflow's pages; by default the one at which `actionzoo ui` opens them.
    """
    root = root or params.root
    out = params.folder("report", root)
    models = {model: RunFiles(root, params.name, model, workspace=workspace_of(root)) for model in params.models()}
    records = {model: record for model, files in models.items() if (record := _record(files))}
    checkpoint_md5s = {
        model: record.files["best.pth"].md5 for model, record in records.items() if "best.pth" in record.files
    }
    pages = run_pages(params.name, checkpoint_md5s, root, server)
    links = {}
    for model, files in models.items():
        logs = newest_logs(files.logs, records[model].log_mark if model in records else "")
        addresses = {kind: Path(os.path.relpath(path, out)).as_posix() for kind, path in logs.items()}
        if model in pages:
            addresses["mlflow"] = pages[model]
        if addresses:
            links[model] = addresses
    path = out / "runs.js"
    with atomic_write(path) as file:
        file.write(f"actionzooRuns({json.dumps(links, indent=1, sort_keys=True)});\n".encode())
    return path


def _record(files: RunFiles) -> RunRecord | None:
    """None without a sound run record, which costs only the links."""
    try:
        return RunRecord.read_if_there(files.recipe)
    except UserError:
        return None
