"""The report's links to what is called otherwise each time it is made: runs in MLflow, and logs with their time's name.

They stand in runs.js beside the page, which belongs to no stage's outputs: these are the same however they were made.
"""

import json
import os
from pathlib import Path

from ..files.atomic import atomic_write
from ..files.json_files import read_json
from ..params import Params
from ..records import RunFiles, newest_logs
from ..tracking.store import run_pages


def write_run_links(params: Params, root: Path = Path(), *, server: str | None = None) -> Path:
    """Write report/<dataset>/runs.js: row -> mlflow, log, json -> address; gives its path.

    `server` is where MLflow's pages will be; without it where `actionzoo ui` opens them.
    """
    out = params.folder("report", root)
    rows = {row: RunFiles(root, params.name, row) for row in params.models()}
    md5s = {
        row: md5
        for row, files in rows.items()
        if (md5 := read_json(files.recipe).get("files", {}).get("best.pth", {}).get("md5"))
    }
    pages = run_pages(params.name, md5s, root, server)
    links = {}
    for row, files in rows.items():
        there = {kind: Path(os.path.relpath(path, out)).as_posix() for kind, path in newest_logs(files.run).items()}
        if row in pages:
            there["mlflow"] = pages[row]
        if there:
            links[row] = there
    path = out / "runs.js"
    with atomic_write(path) as file:
        file.write(f"actionzooRuns({json.dumps(links, indent=1, sort_keys=True)});\n".encode())
    return path
