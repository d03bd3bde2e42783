"""Links that change from run to run, in runs.js beside the page."""

import json
import shutil
from pathlib import Path

import pytest

from actionzoo.params import load_params
from actionzoo.records import FileRecord, RunRecord
from actionzoo.report.run_links import write_run_links
from actionzoo.tracking.store import connect

PROJECT = Path(__file__).resolve().parents[2]
ROW = "slowfast_r50_video_4x16x1_256e_kinetics400_rgb"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project in which one row was trained twice to other weights, and recorded both times."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_bytes((PROJECT / "params.yaml").read_bytes())
    shutil.copy(PROJECT / "published.yaml", tmp_path)
    run = tmp_path / "runs/demo" / ROW
    run.mkdir(parents=True)
    checkpoint = FileRecord(md5="b" * 32, size=10)
    RunRecord(model=ROW, dataset="demo", recipe={}, files={"best.pth": checkpoint}).write(run / "recipe.json")
    for name in ("20260101_120000.log", "20260102_120000.log", "20260102_120000.log.json"):
        (run / name).write_text("")
    return tmp_path


def trained(md5):
    store = connect("demo")
    return store.client.create_run(store.experiment_id, tags={"model": ROW, "checkpoint.md5": md5}).info.run_id


def links(path):
    text = path.read_text()
    assert text.startswith("actionzooRuns(") and text.endswith(");\n")
    return json.loads(text.removeprefix("actionzooRuns(").removesuffix(");\n"))


def test_a_row_leads_to_the_run_of_its_very_checkpoint_and_to_its_newest_logs(project):
    mine = trained("b" * 32)
    trained("c" * 32)
    path = write_run_links(load_params(), project)
    assert path == project / "report/demo/runs.js"
    (row,) = links(path).items()
    assert row[0] == ROW
    assert row[1].pop("mlflow") == f"http://127.0.0.1:5000/#/experiments/1/runs/{mine}?workflowType=machine_learning"
    assert set(row[1]) == {"log", "json"}
    for kind, ending in (("log", "20260102_120000.log"), ("json", "20260102_120000.log.json")):
        assert row[1][kind].endswith(ending) and (path.parent / row[1][kind]).is_file()


def test_logs_are_those_of_the_training_that_dvc_restored_not_the_newest(project):
    run = project / "runs/demo" / ROW
    files = {"best.pth": FileRecord(md5="b" * 32, size=10)}
    RunRecord(model=ROW, dataset="demo", recipe={}, files=files, fingerprint="mine", versions={"actionzoo": "1"}).write(
        run / "recipe.json"
    )
    for name, fingerprint in (("20260103_120000", "mine"), ("20260104_120000", "another's")):
        (run / f"{name}.log").write_text("")
        (run / f"{name}.log.json").write_text(json.dumps({"seed": 0, "fingerprint": fingerprint}) + "\n")
    found = links(write_run_links(load_params(), project))[ROW]
    assert found["log"].endswith("20260103_120000.log") and found["json"].endswith("20260103_120000.log.json")

    RunRecord(model=ROW, dataset="demo", recipe={}, files=files, fingerprint="older").write(run / "recipe.json")
    found = links(write_run_links(load_params(), project))[ROW]
    assert found["json"].endswith("20260102_120000.log.json")  # the newest that does not say whose it is


def test_pages_lie_where_they_are_opened(project):
    trained("b" * 32)
    path = write_run_links(load_params(), project, server="http://127.0.0.1:5001")
    assert links(path)[ROW]["mlflow"].startswith("http://127.0.0.1:5001/#/experiments/1/runs/")


def test_a_damaged_run_record_costs_only_the_link_to_mlflow(project):
    (project / "runs/demo" / ROW / "recipe.json").write_text("{")
    assert set(links(write_run_links(load_params(), project))[ROW]) == {"log", "json"}


def test_without_a_store_logs_are_linked_and_no_store_is_made(project):
    path = write_run_links(load_params(), project)
    assert set(links(path)[ROW]) == {"log", "json"}
    assert not (project / "mlflow.db").exists()


def test_a_store_that_does_not_answer_stops_nothing(project, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    path = write_run_links(load_params(), project)
    assert set(links(path)[ROW]) == {"log", "json"}
    assert "could not search MLflow at http://127.0.0.1:9" in caplog.text
