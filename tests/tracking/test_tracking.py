"""The record against real stores: sqlite files in the test's own folder, whose name has a space, and servers."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from actionzoo.engine.logs import RunLog
from actionzoo.files.hashes import md5_of
from actionzoo.records import Execution
from actionzoo.run_files import RunFiles
from actionzoo.tracking import live
from actionzoo.tracking.names import MAX_LINES, METRIC_NAMES, global_step, metrics_of_test, thinning, to_metrics
from actionzoo.tracking.pages import UI_PORT, run_page
from actionzoo.tracking.record import sync, sync_run
from actionzoo.tracking.run_link import RunLink, read_links
from actionzoo.tracking.sessions import this_session
from actionzoo.tracking.stages import recorded_training
from actionzoo.tracking.store import connect, runs_address, tracking_uri, ui_command
from tests.ports import reserved_port
from tests.processes import wait_for
from tests.small_run import write_result
from tests.tracking.small_training import (
    STAMP,
    TRAIN,
    evaluate,
    event,
    publish,
    record_of,
    train_and_evaluate,
    training,
)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """A store that MLflow made once; making one takes seconds, so that most tests start from a copy."""
    folder = tmp_path_factory.mktemp("store")
    connect("nothing", folder)
    # an experiment knows its folder, hence the tests' own is made in the copy
    return folder / "mlflow.db"


@pytest.fixture
def root(tmp_path, monkeypatch, empty_store):
    return new_project(tmp_path / "a project", monkeypatch, empty_store)


def new_project(root: Path, monkeypatch, empty_store: Path | None) -> Path:
    root.mkdir()
    (root / "params.yaml").touch()
    if empty_store:
        shutil.copy(empty_store, root / "mlflow.db")
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_STAGE", "ACTIONZOO_FLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def files(root):
    return RunFiles(root, "demo", "row")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, empty_store) -> Iterator[RunFiles]:
    """A training and its evaluation, recorded once for the tests that only look at the record."""
    with pytest.MonkeyPatch.context() as patch:
        root = new_project(tmp_path_factory.mktemp("recorded") / "a project", patch, empty_store)
        files = RunFiles(root, "demo", "row")
        train_and_evaluate(files)
        yield files


@pytest.fixture
def client_of_recorded(recorded, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(recorded.root)
    return client_of()


@pytest.fixture
def port():
    """A port on which no program listens."""
    with reserved_port() as number:
        yield number


def client_of(uri: str | None = None):
    import mlflow

    return mlflow.MlflowClient(uri or tracking_uri())


@pytest.fixture
def client(root):
    return client_of()


def runs_of(client, experiment="demo"):
    found = client.get_experiment_by_name(experiment)
    return client.search_runs([found.experiment_id]) if found else []


def only_run(client, experiment="demo"):
    (found,) = runs_of(client, experiment)
    return found


def history(client, run_id, name):
    return sorted((metric.step, metric.value) for metric in client.get_metric_history(run_id, name))


def artifacts(client, run_id, folder=None) -> dict[str, bytes]:
    """Path -> content."""
    found = {}
    for item in client.list_artifacts(run_id, folder):
        if item.is_dir:
            found |= artifacts(client, run_id, item.path)
        else:
            found[item.path] = Path(client.download_artifacts(run_id, item.path)).read_bytes()
    return found


def content(client, experiment="demo") -> list[dict[str, object]]:
    """All that the runs of an experiment hold, but for ids and times."""
    return [
        {
            "name": run.info.run_name,
            "status": run.info.status,
            "params": run.data.params,
            "tags": {key: value for key, value in run.data.tags.items() if key != "mlflow.runName"},
            "metrics": {name: history(client, run.info.run_id, name) for name in run.data.metrics},
            "files": artifacts(client, run.info.run_id),
        }
        for run in runs_of(client, experiment)
    ]


# --- where the record is


def test_the_store_lies_in_the_project_wherever_the_command_runs(root, monkeypatch):
    (root / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(root / "deep" / "er")
    assert tracking_uri() == f"sqlite:///{root}/mlflow.db"


def test_the_store_lies_beside_params_yaml_where_the_dvc_repository_is_larger(root, tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert tracking_uri() == f"sqlite:///{root}/mlflow.db"


def test_an_experiment_in_a_temporary_folder_records_in_the_store_of_its_workspace(root, monkeypatch):
    temporary = root / ".dvc/tmp/exps/tmpab12"
    temporary.mkdir(parents=True)
    (temporary / "params.yaml").touch()
    monkeypatch.chdir(temporary)
    assert tracking_uri() == f"sqlite:///{root}/mlflow.db"


def test_environment_names_another_store(root, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://example.org:5000")
    assert tracking_uri() == "http://example.org:5000"


def test_outside_of_a_project_the_store_is_that_of_the_checkout(tmp_path, root, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tracking_uri() == f"sqlite:///{Path(__file__).resolve().parents[2]}/mlflow.db"


def test_stages_do_not_import_mlflow():
    code = "import sys, actionzoo.tracking.stages, actionzoo.tracking.record; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.slow
def test_four_processes_may_open_a_new_store_at_once(root):
    fresh = root / "fresh"
    for model in ("row0", "row1", "row2", "row3"):
        write_old_run(fresh, model)
    (fresh / "params.yaml").touch()
    code = """if True:
        import sys
        from pathlib import Path
        from actionzoo.tracking.record import files_of, sync_run
        print(sync_run(files_of(Path(sys.argv[1]).absolute())).action)
    """
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", code, f"runs/demo/row{n}"],
            cwd=fresh,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for n in range(4)
    ]
    assert [starter.communicate(timeout=300) for starter in starters] == [("recorded\n", "")] * 4
    found = runs_of(client_of(tracking_uri(fresh)))
    assert sorted(run.data.tags["model"] for run in found) == ["row0", "row1", "row2", "row3"]
    assert {path.name for path in fresh.glob("mlflow*")} == {"mlflow.db", "mlflow.db.lock"}


# --- one record, however it is made


def test_live_after_an_outage_and_restored_elsewhere_it_is_the_same_record(
    recorded, client_of_recorded, tmp_path, monkeypatch
):
    root = recorded.root
    (live_one,) = content(client_of_recorded)
    assert live_one["status"] == "FINISHED"
    assert [step for step, _ in live_one["metrics"]["train/loss"]] == [1, 2, 3, 4]

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/new/mlflow.db")
    assert [done.action for done in sync(root)] == ["recorded"]
    assert content(client_of()) == [live_one]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")

    # `dvc pull` restores the outputs of stages, and no file whose name is a time
    elsewhere = tmp_path / "elsewhere"
    for kind in ("runs", "metrics", "plots"):
        if (root / kind).is_dir():
            shutil.copytree(root / kind, elsewhere / kind, ignore=shutil.ignore_patterns("2026*"))
    (elsewhere / "params.yaml").touch()
    monkeypatch.chdir(elsewhere)
    assert [done.action for done in sync(elsewhere)] == ["recorded"]
    (pulled,) = content(client_of(tracking_uri(elsewhere)))
    assert pulled["params"] == live_one["params"] and pulled["status"] == "FINISHED"
    measured_there = ("time/", "system/", "train/memory")
    assert pulled["metrics"] == {k: v for k, v in live_one["metrics"].items() if not k.startswith(measured_there)}
    of_the_execution = {"training", "host", "mlflow.user", "git.commit", "git.dirty", "mlflow.source.git.commit"}
    assert pulled["tags"] == {k: v for k, v in live_one["tags"].items() if k not in of_the_execution}
    assert pulled["files"] == {
        k: v for k, v in live_one["files"].items() if not k.startswith("2026") and k != "environment.txt"
    }


def test_twice_gives_the_same(recorded, client_of_recorded):
    before = [run.to_dictionary() for run in runs_of(client_of_recorded)]
    assert [(done.action, done.points, done.files) for done in sync(recorded.root)] == [("unchanged", 0, 0)]
    assert [run.to_dictionary() for run in runs_of(client_of_recorded)] == before


def test_a_newer_evaluation_replaces_values_and_files_of_the_same_name(root, client, files):
    train_and_evaluate(files)
    evaluate(files, top1=0.25)
    found = only_run(client)
    assert found.data.metrics["test/top1"] == found.data.metrics["test/top1:10x3"] == 0.25
    assert json.loads(artifacts(client, found.info.run_id)["result.json"])["metrics"]["top1"] == 0.25
    assert sync(root)[0].action == "unchanged"


def test_a_result_of_another_checkpoint_is_not_of_this_run(root, client, files):
    with training(files):
        write_result(files, {"top1": 0.1, "top5": 1.0, "clips": 40, "protocol": "10x3"}, "0" * 32)
    found = only_run(client)
    assert "test/top1" not in found.data.metrics
    assert "result.json" not in artifacts(client, found.info.run_id)


@pytest.mark.parametrize(
    "query",
    [
        "tags.family = 'csn'",
        "tags.short_side = '256' and tags.pretrain = 'none' and tags.backbone = 'ResNet50'",
        'metrics."test/top1" > 0.5',
        "tags.protocol = '10x3' and tags.comparable = 'false'",
        "params.batch = '8' and attributes.run_name LIKE '%CSN R50%'",
    ],
)
def test_what_people_search_for_is_found(client_of_recorded, query):
    experiment = client_of_recorded.get_experiment_by_name("demo").experiment_id
    assert len(client_of_recorded.search_runs([experiment], query)) == 1


def test_the_list_opens_on_trainings_with_the_columns_of_the_zoo(recorded, client_of_recorded):
    (experiment,) = [found for found in client_of_recorded.search_experiments() if found.name != "nothing"]
    assert experiment.name == "demo"  # and no Default
    address = runs_address("demo", recorded.root)
    assert address.startswith(f"http://127.0.0.1:{UI_PORT}/#/experiments/{experiment.experiment_id}/runs?")
    assert "workflowType=machine_learning" in address
    key = address.rpartition("viewStateShareKey=")[2]
    columns = json.loads(experiment.tags[f"mlflow.sharedViewState.{key}"])["selectedColumns"]
    assert {"metrics.`test/top1`", "tags.`comparable`", "tags.`family`"} <= set(columns)
    assert "not Kinetics-400" in experiment.tags["mlflow.note.content"]
    client_of_recorded.set_experiment_tag(experiment.experiment_id, "mlflow.note.content", "ours")
    connect("demo", recorded.root)
    assert client_of_recorded.get_experiment(experiment.experiment_id).tags["mlflow.note.content"] == "ours"


def test_a_run_has_its_data_sets_and_a_description(recorded, client_of_recorded):
    run = only_run(client_of_recorded)
    assert run.info.run_name == "ir-CSN R50 32x2 · frozen BN · video · 256"
    used = {each.tags[0].value: each.dataset for each in run.inputs.dataset_inputs}
    assert used.keys() == {"training", "validation", "evaluation"}
    assert used["training"].digest == "5a" * 16 and json.loads(used["training"].profile)["clips"] == 80
    note = run.data.tags["mlflow.note.content"]
    assert "Top-1 80.00 %" in note and "Not comparable" in note and "actionzoo predict runs/demo/row" in note


def test_what_people_write_above_the_description_stays(recorded, client_of_recorded):
    run = only_run(client_of_recorded)
    theirs = "Our best so far."
    ours = run.data.tags["mlflow.note.content"]
    client_of_recorded.set_tag(run.info.run_id, "mlflow.note.content", f"{theirs}\n\n{ours}")
    assert sync(recorded.root)[0].action == "unchanged"
    assert only_run(client_of_recorded).data.tags["mlflow.note.content"] == f"{theirs}\n\n{ours}"
    client_of_recorded.set_tag(run.info.run_id, "mlflow.note.content", ours)


def test_parameters_are_flat_names_and_no_json(client_of_recorded):
    params = only_run(client_of_recorded).data.params
    assert {
        "dataset": "demo",
        "batch": "8",
        "lr": "0.05",
        "optim.lr": "0.1",
        "schedule.milestones": "1, 2",
        "init.weights": "none",
        "model.norm_eval": "true",
        "changed.schedule.epochs": "256 -> 2",
    }.items() <= params.items()
    assert not [value for value in params.values() if value.startswith(("[", "{", '"'))]


def test_the_record_says_who_ran_the_training_and_from_which_commit(root, client, files, monkeypatch):
    for name, value in (("ID", "7"), ("NAME", "brave-crab"), ("URL", "http://127.0.0.1:4200/runs/flow-run/7")):
        monkeypatch.setenv(f"ACTIONZOO_FLOW_RUN_{name}", value)
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "params.yaml"], check=True)
    subprocess.run([*git, "commit", "-qm", "all"], check=True)
    (root / "dvc.lock").write_text("changes with every stage")
    with training(files):
        pass
    monkeypatch.setenv("ACTIONZOO_FLOW_RUN_ID", "8")
    evaluate(files)
    tags = only_run(client).data.tags
    assert len(tags["git.commit"]) == 40 and tags["git.dirty"] == "false"
    assert (tags["flow_run.id"], tags["flow_run.name"], tags["flow_runs"]) == ("8", "brave-crab", "7, 8")
    assert tags["flow_run.url"].endswith("/flow-run/7") and tags["mlflow.user"]
    assert tags["precision"] == "fp32" and tags["actionzoo"] == "1"


def test_the_flow_that_started_a_run_is_told_where_it_is_to_be_seen(root, client, files, monkeypatch, tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    monkeypatch.setenv("ACTIONZOO_PROGRESS", str(folder))
    with training(files):
        pass
    run = only_run(client)
    page = run_page(f"http://127.0.0.1:{UI_PORT}", run.info.experiment_id, run.info.run_id)
    assert read_links(folder) == [RunLink("row", "train", page, is_served=False)]
    (folder / "mlflow-damaged.json").write_text('{"name": 1}')
    assert len(read_links(folder)) == 1


# --- trainings that do not finish


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("bad\nluck"), "FAILED"), (KeyboardInterrupt(), "KILLED")],
)
def test_how_a_training_ends_is_the_status_of_its_run(root, client, files, error, status):
    with pytest.raises(type(error)), training(files) as log:
        log.event(event(1, 1.5))
        raise error
    found = only_run(client)
    assert found.info.status == status and found.data.metrics["train/loss"] == 1.5
    assert ("error" in found.data.tags) == (status == "FAILED")
    assert f"{STAMP}.log.json" in artifacts(client, found.info.run_id)
    assert sync(root)[0].action == "unchanged"


def test_a_resumed_training_goes_on_with_its_run_and_forgets_its_error(root, client, files):
    with pytest.raises(RuntimeError), training(files) as log:
        log.event(event(1, 1.5))
        raise RuntimeError("out of memory")
    log = RunLog(files.logs, STAMP)
    with recorded_training(files, STAMP, record_of(files), checkpoints="link"):
        for step in (2, 3):
            log.event(event(step, 1.0))
        publish(files, record_of(files), log)
    found = only_run(client)
    assert found.info.status == "FINISHED" and "error" not in found.data.tags
    assert history(client, found.info.run_id, "train/loss") == [(1, 1.5), (2, 1.0), (3, 1.0)]
    assert len(Execution.read(files.execution(STAMP)).sessions) == 2


def test_a_training_whose_process_is_gone_is_marked_as_failed(root, client, files):
    log = RunLog(files.logs, STAMP)
    log.begin({"seed": 0, "iters_per_epoch": 4}, 0)
    log.event(event(2, 3.0))
    session = this_session("train")
    execution = Execution(
        model="row", dataset="demo", status="running", began=1, sessions=(session,), record=record_of(files).as_json()
    )
    execution.write(files.execution(STAMP))
    assert [done.action for done in sync(root)] == ["skipped"]  # this very process goes on
    gone = dataclasses.replace(session, started=session.started - 1)  # a process before had its pid
    dataclasses.replace(execution, sessions=(gone,)).write(files.execution(STAMP))
    assert [done.action for done in sync(root)] == ["recorded"]
    found = only_run(client)
    assert found.info.status == "FAILED" and "gone" in found.data.tags["error"]
    assert history(client, found.info.run_id, "train/loss") == [(2, 3.0)]
    elsewhere = dataclasses.replace(session, host="another")
    dataclasses.replace(execution, sessions=(elsewhere,)).write(files.execution(STAMP))
    assert [done.action for done in sync(root)] == ["skipped"]  # nobody here can tell


@pytest.mark.slow
def test_a_killed_training_is_recorded_to_its_last_line(root, client, files):
    code = """if True:
        import os, signal, sys
        from pathlib import Path
        from actionzoo.run_files import RunFiles
        from tests.tracking.small_training import event, training
        with training(RunFiles(Path(sys.argv[1]), "demo", "row")) as log:
            for step in range(1, 30):
                log.event(event(step, 1.0))
            os.kill(os.getpid(), signal.SIGKILL)
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code, str(root)], env=environment).returncode == -signal.SIGKILL
    wait_for(lambda: [run for run in runs_of(client) if run.info.status == "FAILED"])
    assert len(history(client, only_run(client).info.run_id, "train/loss")) == 29
    assert sync(root)[0].action == "unchanged"


# --- files


def test_checkpoints_are_hard_links_and_become_links_again(root, client, files):
    train_and_evaluate(files)
    kept = root / "mlruns/demo" / only_run(client).info.run_id / "artifacts"
    assert (kept / "best.pth").samefile(files.best) and not (kept / "recipe.json").samefile(files.recipe)
    data = files.best.read_bytes()
    files.best.unlink()
    files.best.write_bytes(data)  # as a commit of DVC does
    assert sync(root)[0].action == "unchanged"
    assert (kept / "best.pth").samefile(files.best)
    assert not list(kept.rglob(".*"))


def test_checkpoints_may_be_left_to_dvc(root, client, files):
    train_and_evaluate(files)
    shutil.rmtree(root / "mlruns")
    assert sync(root, checkpoints="reference")[0].action == "completed"
    found = only_run(client)
    assert "best.pth" not in artifacts(client, found.info.run_id)
    assert found.data.tags["checkpoint.md5"] == md5_of(files.best)


def test_a_copied_project_does_not_write_into_the_original(root, files, tmp_path, monkeypatch):
    train_and_evaluate(files)
    shutil.rmtree(root / "mlruns")
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    monkeypatch.chdir(copy)
    (done,) = sync(copy)
    assert "files are not" in done.reason and not (root / "mlruns").exists()


# --- runs of the version before


def write_old_run(root: Path, row: str = "row", dataset: str = "demo") -> Path:
    """Two epochs of 4 steps, interrupted after the first and begun again at step 4, which the second log overrides."""
    folder = root / "runs" / dataset / row
    folder.mkdir(parents=True)
    first = {"env_info": "", "seed": 0, "iters_per_epoch": 4}
    logs = {
        "20260101_120000.log.json": [first, event(2, 3.0), event(4, 2.0)],
        "20260102_120000.log.json": [
            first,
            event(4, 1.5),
            {"mode": "val", "epoch": 1, "iter": 8, "lr": 0.1, "top1_acc": 0.5, "mean_class_accuracy": 0.4},
            event(2, 1.0, epoch=2) | {"memory": 6203},
        ],
    }
    for name, lines in logs.items():
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = {"row": row, "dataset": dataset, "recipe": {"optim": {"lr": 0.1}}, "batch": 8, "lr": 0.05, "files": {}}
    (folder / "recipe.json").write_text(json.dumps(record))
    (folder / "latest.pth").write_bytes(b"weights of the last epoch")
    (folder / "best.pth").write_bytes(row.encode() * (1 << 20))
    metrics = {"top1": 0.8, "top5": 1.0, "mean_class": 0.7, "clips": 40, "protocol": "10x3"}
    write_result(RunFiles(root, dataset, row), metrics, md5_of(folder / "best.pth"))
    return folder


def test_an_old_run_is_recorded_with_the_later_of_its_logs(root, client):
    write_old_run(root)
    (done,) = sync(root)
    assert done.action == "recorded"
    assert history(client, done.run_id, "train/loss") == [(2, 3.0), (4, 1.5), (6, 1.0)]
    assert history(client, done.run_id, "train/epoch") == [(2, 1), (4, 1), (6, 2)]
    assert history(client, done.run_id, "val/top1") == [(4, 0.5)]
    assert history(client, done.run_id, "train/memory_mb") == [(6, 6203.0)]
    assert history(client, done.run_id, "test/top1") == [(0, 0.8)]
    assert {"20260101_120000.log.json", "best.pth", "result.json"} <= artifacts(client, done.run_id).keys()


def test_a_run_that_the_version_before_recorded_is_completed(root, client):
    folder = write_old_run(root)
    experiment = connect("demo", root).experiment_id
    tags = {"recipe": "row", "checkpoint.md5": md5_of(folder / "best.pth"), "phase": "train"}
    old = client.create_run(experiment, tags=tags, run_name="row").info.run_id
    client.log_metric(old, "train/loss", 3.0, step=2)
    (done,) = sync(root)
    assert (done.action, done.run_id) == ("completed", old)
    assert history(client, old, "train/loss") == [(2, 3.0), (4, 1.5), (6, 1.0)]


def test_logs_are_those_of_the_training_that_dvc_restored(root, client):
    folder = write_old_run(root)
    for stamp, fingerprint in (("20260103_120000", "mine"), ("20260104_120000", "another's")):
        first = json.dumps({"seed": 0, "iters_per_epoch": 4, "fingerprint": fingerprint})
        (folder / f"{stamp}.log.json").write_text(f"{first}\n{json.dumps(event(2, 7.0))}\n")
    record = json.loads((folder / "recipe.json").read_text())
    record |= {"fingerprint": "mine", "versions": {"actionzoo": "1"}}
    (folder / "recipe.json").write_text(json.dumps(record))
    (done,) = sync(root)
    assert history(client, done.run_id, "train/loss") == [(2, 7.0)]
    logs = {name for name in artifacts(client, done.run_id) if name.endswith(".log.json")}
    assert logs == {"20260103_120000.log.json"}


def test_sync_says_which_folder_it_could_not_read_and_why(root):
    write_old_run(root, "fine")
    for name in ("best.pth", "recipe.json"):
        (root / "runs/demo/fine" / name).rename(root / name)
    empty = sync(root)
    assert empty[0].action == "skipped" and "`dvc pull` restores it" in empty[0].reason
    for name in ("best.pth", "recipe.json"):
        (root / name).rename(root / "runs/demo/fine" / name)
    broken = write_old_run(root, "broken") / "20260101_120000.log.json"
    broken.write_text('{"iters_per_epoch": 4}\n{"mode": tra\n{"mode": "train"}\n')
    stepless = write_old_run(root, "stepless") / "20260102_120000.log.json"
    stepless.write_text('{"mode": "val", "epoch": 1, "iter": 8, "top1_acc": 0.5}\n')
    done = {entry.model: entry for entry in sync(root)}
    assert done["fine"].action == "recorded"
    assert f"{broken}, line 2, is no JSON object" in done["broken"].reason
    assert "iters_per_epoch" in done["stepless"].reason


def test_sync_with_a_store_that_is_away_is_an_error_for_the_user(root, monkeypatch):
    write_old_run(root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://here")
    assert "MLFLOW_TRACKING_URI" in sync(root)[0].reason


# --- a store that fails


def test_a_store_that_is_away_costs_a_sentence_and_what_is_missing_is_named(root, files, monkeypatch, caplog, port):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{port}")
    with training(files) as log:
        log.event(event(1, 2.0))
    first, last = [entry.getMessage() for entry in caplog.records if entry.name == live.__name__]
    assert f"***@127.0.0.1:{port} does not take this run now" in first and "secret" not in first + last
    assert "Missing: " in last and " values and " in last and "recipe.json" in last and "best.pth" not in last


def test_a_store_that_comes_back_gets_everything(root, files, monkeypatch, caplog):
    """Its disk is mounted late."""
    disk = root / "disk"
    disk.write_text("not mounted")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{disk}/mlflow.db")
    with training(files) as log:
        log.event(event(1, 2.0))
        wait_for(lambda: "does not take this run now" in caplog.text)
        disk.unlink()
        disk.mkdir()
        shutil.copy(root / "mlflow.db", disk)
        client = client_of()
        wait_for(lambda: runs_of(client) and "train/loss" in only_run(client).data.metrics)
        log.event(event(2, 1.0))
    assert "Missing" not in caplog.text
    assert history(client, only_run(client).info.run_id, "train/loss") == [(1, 2.0), (2, 1.0)]


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[subprocess.Popen]:
    """An MLflow server for the tests that need one, as `actionzoo ui` starts it; `.port` is its port."""
    root = tmp_path_factory.mktemp("server")
    (root / "params.yaml").touch()
    with reserved_port() as port, pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(root)
        connect("demo", root)
        command = ui_command(root, port=port)
        assert "sqlite:///mlflow.db" in command  # short, and right in the project's folder
        process = subprocess.Popen(command, shell=True, cwd=root, start_new_session=True, stderr=subprocess.DEVNULL)
        process.port, process.root = port, root
        try:
            wait_for(lambda: _answers(port), 180)
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGCONT)
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=120)


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError):
        return b"<html" in urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60).read().lower()
    return False


@pytest.mark.slow
def test_a_server_that_hangs_holds_neither_a_training_nor_its_end(root, files, server, monkeypatch, caplog):
    """Bounds that the product promises: 5 s in all amid a training, 30 s at its end."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.port}")
    remote = client_of(f"http://127.0.0.1:{server.port}")
    files = dataclasses.replace(files, model="held")
    held = 0.0
    with training(files) as log:
        wait_for(lambda: runs_of(remote))
        os.killpg(server.pid, signal.SIGSTOP)
        began = time.monotonic()
        for step in (1, 2, 3):
            log.event(event(step, 1.0))
        held, ends = time.monotonic() - began, time.monotonic()
    took = time.monotonic() - ends
    os.killpg(server.pid, signal.SIGCONT)
    assert held < 5 and took < 30
    assert "did not answer" in caplog.text and "Missing: " in caplog.text
    assert sync(root)[0].action == "completed"
    found = only_run(remote)
    assert found.info.status == "FINISHED" and len(history(remote, found.info.run_id, "train/loss")) == 3


@pytest.mark.slow
def test_a_server_gets_checkpoints_once_and_only_with_upload(root, files, server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.port}")
    remote = client_of(f"http://127.0.0.1:{server.port}")
    files = dataclasses.replace(files, dataset="team")
    train_and_evaluate(files)
    found = only_run(remote, "team")
    kept = artifacts(remote, found.info.run_id)
    assert "best.pth" not in kept and {"recipe.json", "result.json", "error_analysis/errors.json"} <= kept.keys()
    assert sync_run(files, "upload").files == 2
    assert artifacts(remote, found.info.run_id)["best.pth"] == files.best.read_bytes()
    assert sync_run(files, "upload").action == "unchanged"


@pytest.mark.slow
def test_recording_is_quiet(root):
    code = """if True:
        import sys
        from pathlib import Path
        from actionzoo.run_files import RunFiles
        from tests.tracking.small_training import train_and_evaluate
        train_and_evaluate(RunFiles(Path(sys.argv[1]), "demo", "row"))
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.run(
        [sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=True, env=environment
    )
    assert (said.stdout, said.stderr) == ("", "")


# --- names and sizes


def test_lines_of_the_log_have_their_names_in_mlflow():
    train = TRAIN | {"epoch": 2, "iter": 20, "memory": 100, "top1_acc": 0.5, "loss": 3.0}
    assert to_metrics(train) == {
        "train/lr": 0.1,
        "train/epoch": 2.0,
        "time/data": 0.5,
        "train/top5": 1.0,
        "train/grad_norm": 2.0,
        "time/step": 1.0,
        "train/memory_mb": 100.0,
        "train/top1": 0.5,
        "train/loss": 3.0,
    }
    assert global_step(train, iters_per_epoch=100) == 120
    val = {"mode": "val", "epoch": 2, "iter": 7, "lr": 0.1, "top1_acc": 0.5, "mean_class_accuracy": 0.4}
    assert to_metrics(val) == {"val/top1": 0.5, "val/mean_class": 0.4}
    assert global_step(val, iters_per_epoch=100) == 200
    assert to_metrics({"env_info": "", "seed": 0}) == {}


def test_an_accuracy_has_a_plain_name_and_one_that_says_its_views():
    counts = {"top1": 0.5, "top1_low": 0.4, "clips": 40, "protocol": "10x3", "list_sha256": "ab"}
    assert metrics_of_test(counts, "10x3") == {
        "test/top1": 0.5,
        "test/top1:10x3": 0.5,
        "test/top1_low": 0.4,
        "test/top1_low:10x3": 0.4,
        "test/clips": 40,
    }


def test_log_keys_are_those_of_the_reference():
    reference = Path(__file__).resolve().parents[2].parent / "shared" / "reference" / "evaluation" / "formats.json"
    if not reference.exists():
        pytest.skip(f"{reference} is not there")
    formats = json.loads(reference.read_text())["log_json"]
    for mode in ("train", "val"):
        keys = {entry.split()[0] for entry in formats[f"{mode}_line_keys_in_order"]}
        assert METRIC_NAMES[mode].keys() - {"epoch"} <= keys


def test_the_longest_training_stays_below_20_mb(root, client, files):
    """256 epochs of 187 lines: the published schedule of SlowFast on 32 GPUs, a line every 20 steps."""
    schedule = {"epochs": 256, "log_interval": 20}
    record = record_of(files, recipe={"schedule": schedule})
    lines = [json.dumps({"seed": 0, "iters_per_epoch": 3740, "fingerprint": "mine"})]
    for epoch in range(1, 257):
        lines += [json.dumps(event(20 * n, 1.0, epoch)) for n in range(1, 188)]
        lines.append(json.dumps({"mode": "val", "epoch": epoch, "iter": 9, "top1_acc": 0.5, "top5_acc": 1.0}))
    files.logs.mkdir(parents=True)
    (files.logs / f"{STAMP}.log.json").write_text("\n".join(lines) + "\n")
    files.system(STAMP).write_text(json.dumps({f"gpu_{n}_utilization_percentage": 99.0 for n in range(14)}) + "\n")
    execution = Execution(model="row", dataset="demo", status="failed", began=1, record=record.as_json())
    execution.write(files.execution(STAMP))
    empty = (root / "mlflow.db").stat().st_size
    assert thinning(256, 3740, 20) == 12
    (done,) = sync(root)
    assert done.points > 2 * MAX_LINES
    assert len(history(client, done.run_id, "train/loss")) == 256 * 187 // 12
    assert (root / "mlflow.db").stat().st_size - empty < 20e6


def test_with_a_server_the_page_is_the_servers(root, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://example.org:5000")
    assert ui_command().endswith("-m webbrowser -t http://example.org:5000")
