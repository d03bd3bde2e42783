"""Addresses of MLflow's pages, and what the list of runs looks like when it is opened there."""

import json
from collections.abc import Mapping

from .story import experiment_story

UI_PORT = 5000
"""Where `actionzoo ui` opens MLflow's pages, on 127.0.0.1, unless it is told another port."""

_VIEW = "zoo"
"""Name of the list's columns, as MLflow stores shared views: in a tag of the experiment."""

_COLUMNS = {
    "metrics": ("test/top1", "test/top5", "val/top1", "benchmark/videos_per_second"),
    "tags": (
        *("comparable", "not_comparable", "protocol", "family", "backbone", "pretrain", "form", "short_side"),
        *("precision", "gpus", "flow_run.name"),
    ),
    "attributes": ("User",),
}


def ui_address(port: int = UI_PORT) -> str:
    return f"http://127.0.0.1:{port}"


def runs_page(server: str, experiment_id: str) -> str:
    """Address of the list of trainings. Without its query, MLflow 3 opens a page for language models."""
    query = f"?workflowType=machine_learning&viewStateShareKey={_VIEW}"
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs{query}"


def run_page(server: str, experiment_id: str, run_id: str) -> str:
    """Address of one run."""
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


def experiment_tags(dataset: str) -> Mapping[str, str]:
    """The description of the experiment, and the columns of its list."""
    columns = [f"{kind}.`{name}`" for kind, names in _COLUMNS.items() for name in names]
    view = {"selectedColumns": columns, "runsHiddenMode": "FIRST_20_RUNS"}
    return {
        "mlflow.note.content": experiment_story(dataset),
        f"mlflow.sharedViewState.{_VIEW}": json.dumps(view),
        "mlflow.experimentKind": "custom_model_development",
    }
