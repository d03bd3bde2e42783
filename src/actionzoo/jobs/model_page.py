"""A model's part of the report as a page of its own, for its run in MLflow."""

import contextlib
import dataclasses
import os

from ..errors import UserError
from ..params import load_params
from ..records import RunRecord
from ..report.page import write_page
from ..report.results import ZooReport, model_entries, read_report
from ..run_files import RunFiles


def write_model_page(files: RunFiles) -> None:
    """Write files.page anew if the run's results are newer: accuracies, speed, curves, errors with the worst clips.

    Nothing is written of a model that was not evaluated, that params.yaml does not have, or that has damaged files.
    """
    sources = (files.result, files.benchmark, files.recipe, files.errors / "errors.json", files.root / "published.yaml")
    times = [path.stat().st_mtime for path in sources if path.is_file()]
    if files.work_dir or not files.result.is_file():
        return
    if files.page.is_file() and files.page.stat().st_mtime >= max(times):
        return
    with contextlib.suppress(UserError, OSError):  # the record does without
        record, params = RunRecord.read_if_there(files.recipe), load_params(files.root / "params.yaml")
        entries = [entry for entry in model_entries(params) if entry.name == files.model]
        if record:  # the training's, whatever params.yaml says now
            entries = [dataclasses.replace(entry, overrides=record.overrides) for entry in entries]
        folder = files.page.parent
        folder.mkdir(parents=True, exist_ok=True)
        report = read_report(dataset=files.dataset, entries=entries, root=files.root, out=folder)
        # links to files beside the report lead nowhere from MLflow, which has the files themselves
        models = [dataclasses.replace(model, files={}) for model in report.models]
        if models:
            write_page(ZooReport(dataset=files.dataset, models=models), folder)
            os.replace(folder / "zoo.html", files.page)
