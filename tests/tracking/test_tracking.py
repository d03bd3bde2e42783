"""Against real sqlite stores, made in the test's own folder; its name has a space, like many a home folder."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from actionzoo.files.hashes import md5_of
from actionzoo.run_files import RunFiles
from actionzoo.tracking import live
from actionzoo.tracking.live import recorded_run
from actionzoo.tracking.names import METRIC_NAMES, TEST_STEP, global_step, to_metrics
from actionzoo.tracking.record import sync
from actionzoo.tracking.run_link import RunLink, read_links
from actionzoo.tracking.store import connect, find_run, tracking_uri, ui_command
from tests.ports import reserved_port
from tests.small_run import write_result


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """A store that MLflow made once; making one takes seconds, so that most tests start from a copy."""
    folder = tmp_path_factory.mktemp("store")
    connect("nothing", folder)
    # an experiment knows its folder, hence the tests' own is made in the copy
    return folder / "mlflow.db"


@pytest.fixture
def root(tmp_path, monkeypatch, empty_store):
    root = tmp_path / "a project"
    root.mkdir()
    (root / "params.yaml").touch()
    shutil.copy(empty_store, root / "mlflow.db")
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_STAGE", "ACTIONZOO_FLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def port():
    """A port on which no program listens."""
    with reserved_port() as number:
        yield number


@pytest.fixture
def client(root):
    import mlflow

    return mlflow.MlflowClient(tracking_uri())


def history(client, run_id, name):
    return sorted((metric.step, metric.value) for metric in client.get_metric_history(run_id, name))


def only_run(client, experiment="demo"):
    (found,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return found


# --- where the record is


@pytest.mark.slow
def test_store_lies_in_the_project_wherever_the_command_runs(root, monkeypatch):
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


def test_importing_tracking_does_not_import_mlflow():
    code = "import sys, actionzoo.tracking.live, actionzoo.tracking.record; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.slow
def test_four_processes_may_open_a_new_store_at_once(root, client):
    fresh = root / "fresh"
    fresh.mkdir()
    (fresh / "params.yaml").touch()
    code = """if True:
        import sys
        from actionzoo.tracking.live import recorded_run
        with recorded_run(experiment="demo", name=sys.argv[1], params={"n": 1}) as active:
            for step in range(50):
                active.log(step, {"train/loss": step})
    """
    starters = [
        subprocess.Popen([sys.executable, "-c", code, f"row{n}"], cwd=fresh, stderr=subprocess.PIPE, text=True)
        for n in range(4)
    ]
    complaints = [starter.communicate(timeout=300)[1] for starter in starters]
    assert complaints == ["", "", "", ""]
    import mlflow

    store = mlflow.MlflowClient(tracking_uri(fresh))
    runs = store.search_runs([store.get_experiment_by_name("demo").experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["row0", "row1", "row2", "row3"]
    assert [len(history(store, run.info.run_id, "train/loss")) for run in runs] == [50] * 4
    assert sorted(path.name for path in fresh.iterdir()) == ["mlflow.db", "mlflow.db.lock", "params.yaml"]


# --- a run


def test_every_value_is_there_by_its_step(root, client):
    with recorded_run(experiment="demo", name="row") as active:
        for step in range(2500):  # more than one batch
            active.log(step, {"train/loss": step / 2, "train/lr": 0.1})
    assert history(client, active.id, "train/loss") == [(step, step / 2) for step in range(2500)]
    assert len(history(client, active.id, "train/lr")) == 2500


def test_values_arrive_while_the_run_goes_on(root, client, monkeypatch):
    monkeypatch.setattr(live, "_FLUSH_SECONDS", 0.05)
    with recorded_run(experiment="demo", name="row") as active:
        active.log(1, {"val/top1": 0.5})
        deadline = time.monotonic() + 60
        while not history(client, active.id, "val/top1") and time.monotonic() < deadline:
            time.sleep(0.05)
        assert history(client, active.id, "val/top1") == [(1, 0.5)]
        assert client.get_run(active.id).info.status == "RUNNING"
    assert client.get_run(active.id).info.status == "FINISHED"


def test_parameters_are_flat_names_and_tags_say_where_the_run_comes_from(root, client, monkeypatch):
    monkeypatch.setenv("DVC_STAGE", "train@row")
    monkeypatch.setenv("ACTIONZOO_FLOW_RUN_ID", "flow-7")
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    (root / ".gitignore").write_text("mlflow.db*\nmlruns\n")
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "all"], check=True)
    (root / "dvc.lock").write_text("changes with every stage")
    params = {"optim": {"lr": 1.0e-4, "milestones": [32, 48]}, "model": {"family": "csn", "bn_frozen": True}}
    with recorded_run(experiment="demo", name="row", params=params, tags={"data": "abc"}) as active:
        pass
    data = client.get_run(active.id).data
    assert data.params == {
        "optim.lr": "0.0001",
        "optim.milestones": "[32, 48]",
        "model.family": "csn",
        "model.bn_frozen": "true",
    }
    assert data.tags["recipe"] == "row" and data.tags["data"] == "abc"
    assert data.tags["train.dvc_stage"] == "train@row" and data.tags["train.prefect_flow_run_id"] == "flow-7"
    assert len(data.tags["train.git_rev"]) == 40 and data.tags["train.git_dirty"] == "false"


def test_a_run_names_every_flow_run_that_worked_on_it(root, client, monkeypatch):
    """Started by one, stopped, gone on with by a second, which a retry repeats; evaluated by a third."""
    run_id = None
    for id, name, url in [("id-1", "train row", "http://127.0.0.1:4200/runs/flow-run/id-1"), ("id-2", "all; again", ""),
                          ("id-2", "all; again", "")]:  # fmt: skip
        monkeypatch.setenv("ACTIONZOO_FLOW_RUN_ID", id)
        monkeypatch.setenv("ACTIONZOO_FLOW_RUN_NAME", name)
        monkeypatch.setenv("ACTIONZOO_FLOW_RUN_URL", url)
        with recorded_run(experiment="demo", name="row", run_id=run_id) as active:
            pass
        run_id = active.id
    monkeypatch.setenv("ACTIONZOO_FLOW_RUN_ID", "id-3")
    with recorded_run(experiment="demo", name="row", phase="evaluate", run_id=run_id):
        pass
    tags = client.get_run(run_id).data.tags
    first = "train row http://127.0.0.1:4200/runs/flow-run/id-1"
    assert tags["train.prefect_flow_runs"] == f"{first}; all, again id-2"
    assert tags["train.prefect_flow_run_id"] == "id-2" and tags["train.prefect_flow_run_name"] == "all; again"
    assert tags["train.prefect_flow_run_url"] == first.split()[-1]
    assert tags["evaluate.prefect_flow_runs"] == "all, again id-3"


def test_the_flow_that_started_a_run_is_told_where_it_is_to_be_seen(root, client, monkeypatch, tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    monkeypatch.setenv("ACTIONZOO_PROGRESS", str(folder))
    with recorded_run(experiment="demo", name="row ckpt") as active:
        experiment = client.get_run(active.id).info.experiment_id
        page = f"http://127.0.0.1:5000/#/experiments/{experiment}/runs/{active.id}"
        assert read_links(folder) == [RunLink("row ckpt", "train", page, is_served=False)]
    (folder / "mlflow-damaged.json").write_text('{"name": 1}')
    assert len(read_links(folder)) == 1


def test_more_parameters_than_mlflow_takes_at_once_are_all_there(root, client):
    with recorded_run(experiment="demo", name="row", params={f"p{n}": n for n in range(230)}) as active:
        pass
    assert len(client.get_run(active.id).data.params) == 230


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("bad\nluck"), "FAILED"),
        (SystemExit(1), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(0), "FINISHED"),
    ],
)
def test_how_the_block_ends_is_the_status_of_the_run(root, client, error, status):
    with pytest.raises(type(error)), recorded_run(experiment="demo", name="row") as active:
        active.log(3, {"train/loss": 1.5})
        raise error
    assert client.get_run(active.id).info.status == status
    assert history(client, active.id, "train/loss") == [(3, 1.5)]


def test_sigterm_ends_the_run_as_killed_with_its_last_values(root, client):
    code = """if True:
        import time
        from actionzoo.tracking.live import recorded_run
        with recorded_run(experiment="demo", name="row") as active:
            active.log(1, {"train/loss": 4.0})
            print(flush=True)
            time.sleep(60)
    """
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    child.stdout.readline()
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=120) == 128 + signal.SIGTERM
    found = only_run(client)
    assert found.info.status == "KILLED" and found.data.metrics == {"train/loss": 4.0}


def test_resumed_run_goes_on_where_it_was_and_keeps_each_step_once(root, client):
    with pytest.raises(RuntimeError), recorded_run(experiment="demo", name="row", params={"seed": 0}) as first:
        for step in (1, 2, 3):
            first.log(step, {"train/loss": 1.0 / step})
        raise RuntimeError("power cut")
    with recorded_run(experiment="demo", name="row", params={"seed": 1}, run_id=first.id) as second:
        for step in (2, 3, 4):  # its checkpoint was older than its last values
            second.log(step, {"train/loss": 1.0 / step})
    assert second.id == first.id
    assert history(client, first.id, "train/loss") == [(1, 1.0), (2, 1 / 2), (3, 1 / 3), (4, 1 / 4)]
    assert client.get_run(first.id).info.status == "FINISHED"
    assert client.get_run(first.id).data.params == {"seed": "0"}


@pytest.mark.parametrize("run_id", ["0" * 32, "not an id"])
def test_run_id_that_the_store_does_not_know_makes_a_new_run(root, client, run_id):
    with recorded_run(experiment="demo", name="row", run_id=run_id) as active:
        pass
    assert active.id != run_id and client.get_run(active.id).info.status == "FINISHED"


def test_failed_evaluation_leaves_the_training_finished(root, client):
    with recorded_run(experiment="demo", name="row") as training:
        pass
    ended = client.get_run(training.id).info.end_time
    evaluation = recorded_run(experiment="demo", name="row", phase="evaluate", run_id=training.id)
    with pytest.raises(ValueError), evaluation as active:
        raise ValueError("no such clip")
    found = client.get_run(active.id)
    assert (found.info.status, found.info.end_time) == ("FINISHED", ended)
    assert found.data.tags["evaluate.status"] == "FAILED" and found.data.tags["train.status"] == "FINISHED"
    assert found.data.tags["evaluate.error"] == "ValueError: no such clip"


def test_second_evaluation_is_the_one_that_counts(root, client):
    with recorded_run(experiment="demo", name="row") as training:
        pass
    for top1 in (0.5, 0.75, 0.25):
        with recorded_run(experiment="demo", name="row", phase="evaluate", run_id=training.id) as active:
            active.log(TEST_STEP, {"test/top1:10x3": top1})
        time.sleep(0.002)  # MLflow's clock has milliseconds
        assert client.get_run(training.id).data.metrics["test/top1:10x3"] == top1


# --- files


def test_big_file_is_kept_as_a_hard_link_and_listed(root, client):
    checkpoint = root / "best.pth"
    checkpoint.write_bytes(os.urandom(1 << 20))
    with recorded_run(experiment="demo", name="row") as active:
        active.artifact(checkpoint, "checkpoints")
        active.artifact(checkpoint, "checkpoints")  # a second time is no fault
    (listed,) = client.list_artifacts(active.id, "checkpoints")
    assert (listed.path, listed.file_size) == ("checkpoints/best.pth", 1 << 20)
    kept = root / "mlruns" / "demo" / active.id / "artifacts" / "checkpoints" / "best.pth"
    assert kept.stat().st_ino == checkpoint.stat().st_ino
    assert [path.name for path in kept.parent.iterdir()] == ["best.pth"]
    assert Path(client.download_artifacts(active.id, "checkpoints/best.pth")).read_bytes() == checkpoint.read_bytes()


def test_small_file_is_a_copy_that_does_not_change_with_its_source(root, client):
    log = root / "now.log"
    log.write_text("first line\n")
    with recorded_run(experiment="demo", name="row") as active:
        active.artifact(log)
        with open(log, "a") as file:
            file.write("second line\n")
    assert Path(client.download_artifacts(active.id, "now.log")).read_text() == "first line\n"


def test_file_that_is_not_there_is_a_warning(root, caplog):
    with recorded_run(experiment="demo", name="row") as active:
        active.artifact(root / "nowhere.pth")
    assert "could not keep" in caplog.text and "nowhere.pth" in caplog.text


def test_copied_project_does_not_write_into_the_original(root, client, tmp_path, monkeypatch, caplog):
    with recorded_run(experiment="demo", name="row"):
        pass
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    (copy / "recipe.json").write_text("{}")
    monkeypatch.chdir(copy)
    with recorded_run(experiment="demo", name="row") as active:
        active.artifact(copy / "recipe.json")
        active.log(1, {"val/top1": 1.0})
    assert "files are not" in caplog.text
    assert not list(root.glob("mlruns/**/recipe.json"))
    import mlflow

    assert history(mlflow.MlflowClient(tracking_uri()), active.id, "val/top1") == [(1, 1.0)]


# --- a store that fails


def test_store_that_is_away_does_not_stop_the_block(root, monkeypatch, caplog, port):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{port}")
    assert find_run("demo", "row", "0" * 32) is None
    with recorded_run(experiment="demo", name="row") as active:
        active.log(1, {"train/loss": 1.0, "train/lr": 0.1})
        active.artifact(root / "params.yaml")
    assert active.id is None
    warnings = [record.getMessage() for record in caplog.records if record.name == "actionzoo.tracking.store"]
    assert len(warnings) == 3
    assert f"***@127.0.0.1:{port} cannot be used" in warnings[1] and "secret" not in warnings[1]
    assert warnings[2].startswith("tracking: 2 values did not reach MLflow")


def test_values_wait_until_the_store_is_back(root, client, monkeypatch, caplog):
    import sqlite3

    monkeypatch.setattr(live, "_FLUSH_SECONDS", 0.05)
    with recorded_run(experiment="demo", name="row") as active:
        active.flush()
        away = sqlite3.connect(root / "mlflow.db")
        away.execute("ALTER TABLE metrics RENAME TO elsewhere")
        active.log(1, {"train/loss": 1.0})
        deadline = time.monotonic() + 60
        while "did not accept values" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.05)
        away.execute("ALTER TABLE elsewhere RENAME TO metrics")
        away.close()
        active.log(2, {"train/loss": 0.5})
    assert caplog.text.count("did not accept values") == 1
    assert history(client, active.id, "train/loss") == [(1, 1.0), (2, 0.5)]


def test_lost_values_are_counted(root, monkeypatch, caplog):
    import sqlite3

    monkeypatch.setattr(live, "_CLOSE_ATTEMPTS", 1)
    with recorded_run(experiment="demo", name="row") as active:
        with sqlite3.connect(root / "mlflow.db") as away:
            away.execute("DROP TABLE metrics")
        away.close()
        for step in range(7):
            active.log(step, {"train/loss": 1.0})
    assert "7 values did not reach MLflow" in caplog.text


# --- finding and filling


def test_find_run_gives_the_newest_run_of_that_row_and_checkpoint(root):
    ids = []
    for name, md5 in [("row", "a" * 32), ("row", "a" * 32), ("other's row", "a" * 32), ("row", "b" * 32)]:
        with recorded_run(experiment="demo", name=name) as active:
            active.tag("checkpoint.md5", md5)
        ids.append(active.id)
        time.sleep(0.002)  # MLflow's clock has milliseconds
    assert find_run("demo", "row", "a" * 32) == ids[1]
    assert find_run("demo", "other's row", "a" * 32) == ids[2]
    assert find_run("demo", "row", "c" * 32) is None
    assert find_run("kinetics400", "row", "a" * 32) is None


TRAIN = {"mode": "train", "lr": 0.1, "data_time": 0.5, "top5_acc": 1.0, "loss_cls": 9.0, "grad_norm": 2.0, "time": 1.0}


def write_run(root, row="row", dataset="demo"):
    """Two epochs of 4 steps, interrupted after the first and begun again at step 4, which the second log overrides."""
    folder = root / "runs" / dataset / row
    folder.mkdir(parents=True)
    logs = {
        "20260101_120000.log.json": [
            {"env_info": "", "seed": 0, "iters_per_epoch": 4},
            TRAIN | {"epoch": 1, "iter": 2, "top1_acc": 0.25, "loss": 3.0},
            TRAIN | {"epoch": 1, "iter": 4, "top1_acc": 0.5, "loss": 2.0},
        ],
        "20260102_120000.log.json": [
            {"env_info": "", "seed": 0, "iters_per_epoch": 4},
            TRAIN | {"epoch": 1, "iter": 4, "top1_acc": 0.5, "loss": 1.5},
            {
                "mode": "val",
                "epoch": 1,
                "iter": 8,
                "lr": 0.1,
                "top1_acc": 0.5,
                "top5_acc": 1.0,
                "mean_class_accuracy": 0.4,
            },
            TRAIN | {"epoch": 2, "iter": 2, "top1_acc": 0.75, "loss": 1.0, "memory": 6203},
        ],
    }
    for name, lines in logs.items():
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = {"row": row, "dataset": dataset, "recipe": {"optim": {"lr": 0.1}}, "batch": 8, "lr": 0.05, "files": {}}
    (folder / "recipe.json").write_text(json.dumps(record))
    (folder / "latest.pth").write_bytes(b"weights of the last epoch")
    (folder / "best.pth").write_bytes(row.encode() * (1 << 20))
    metrics = {"top1": 0.8, "top5": 1.0, "mean_class": 0.7, "clips": 40, "protocol": "10x3"}
    write_result(RunFiles(root, dataset, row), metrics)
    return folder


def test_sync_makes_a_run_that_says_what_the_folder_says(root, client):
    folder = write_run(root)
    (done,) = sync(root)
    found = only_run(client)
    assert (done.action, done.model, done.run_id) == ("recorded", "row", found.info.run_id)
    assert history(client, done.run_id, "train/loss") == [(2, 3.0), (4, 1.5), (6, 1.0)]
    assert history(client, done.run_id, "train/top1") == [(2, 0.25), (4, 0.5), (6, 0.75)]
    assert history(client, done.run_id, "val/top1") == [(4, 0.5)]
    assert history(client, done.run_id, "memory_mb") == [(6, 6203.0)]
    assert history(client, done.run_id, "test/top1:10x3") == [(TEST_STEP, 0.8)]
    assert found.info.status == "FINISHED" and found.info.run_name == "row"
    assert {
        "dataset": "demo",
        "recipe.optim.lr": "0.1",
        "batch": "8",
        "lr": "0.05",
    }.items() <= found.data.params.items()
    assert found.data.tags["checkpoint.md5"] == md5_of(folder / "best.pth")
    files = ["20260101_120000.log.json", "20260102_120000.log.json", "best.pth", "latest.pth", "recipe.json"]
    files.append("result.json")
    assert sorted(item.path for item in client.list_artifacts(done.run_id)) == files


def test_sync_reads_the_logs_of_the_training_that_dvc_restored(root, client):
    folder = write_run(root)
    line = json.dumps(TRAIN | {"epoch": 1, "iter": 2, "top1_acc": 0.25, "loss": 7.0})
    for stamp, fingerprint in (("20260103_120000", "mine"), ("20260104_120000", "another's")):
        first = json.dumps({"seed": 0, "iters_per_epoch": 4, "fingerprint": fingerprint})
        (folder / f"{stamp}.log.json").write_text(f"{first}\n{line}\n")
    record = json.loads((folder / "recipe.json").read_text())
    record |= {"fingerprint": "mine", "versions": {"actionzoo": "1"}}
    (folder / "recipe.json").write_text(json.dumps(record))
    (done,) = sync(root)
    assert history(client, done.run_id, "train/loss") == [(2, 7.0)]
    logs = {item.path for item in client.list_artifacts(done.run_id) if item.path.endswith(".log.json")}
    assert logs == {"20260103_120000.log.json"}


def test_second_sync_changes_nothing(root, client):
    write_run(root)
    write_run(root, "other row")
    first = sync(root)
    before = [run.to_dictionary() for run in client.search_runs(["0", "1", "2"])]
    second = sync(root)
    assert [done.action for done in first] == ["recorded", "recorded"]
    assert [(done.action, done.points) for done in second] == [("unchanged", 0), ("unchanged", 0)]
    assert [run.to_dictionary() for run in client.search_runs(["0", "1", "2"])] == before


def test_sync_completes_a_run_that_lost_values_and_takes_a_newer_evaluation(root, client):
    folder = write_run(root)
    with recorded_run(experiment="demo", name="row") as active:
        active.log(2, {"train/loss": 3.0})
        active.log(TEST_STEP, {"test/top1:10x3": 0.1})
        active.tag("checkpoint.md5", md5_of(folder / "best.pth"))
    time.sleep(0.002)  # MLflow's clock has milliseconds
    (done,) = sync(root)
    assert (done.action, done.run_id) == ("completed", active.id)
    assert history(client, active.id, "train/loss") == [(2, 3.0), (4, 1.5), (6, 1.0)]
    assert client.get_run(active.id).data.metrics["test/top1:10x3"] == 0.8
    assert sync(root)[0].action == "unchanged"


def test_sync_heals_a_deleted_store(root):
    write_run(root)
    sync(root)
    fresh = root.parent / "moved"
    root.rename(fresh)
    (fresh / "mlflow.db").unlink()
    (done,) = sync(fresh)
    assert done.action == "recorded"
    assert (fresh / "mlruns" / "demo" / done.run_id / "artifacts" / "best.pth").exists()


def test_sync_says_which_folder_it_could_not_read_and_why(root):
    write_run(root, "fine")
    (write_run(root, "unfinished") / "best.pth").unlink()
    broken = write_run(root, "broken") / "20260101_120000.log.json"
    broken.write_text('{"iters_per_epoch": 4}\n{"mode": tra\n{"mode": "train"}\n')
    stepless = write_run(root, "stepless") / "20260102_120000.log.json"
    stepless.write_text('{"mode": "val", "epoch": 1, "iter": 8, "top1_acc": 0.5}\n')
    done = {entry.model: entry for entry in sync(root)}
    assert done["fine"].action == "recorded"
    assert "best.pth is not there" in done["unfinished"].reason
    assert f"{broken}, line 2, is no JSON object" in done["broken"].reason
    assert "iters_per_epoch" in done["stepless"].reason


def test_last_line_that_a_kill_cut_off_is_left_out(root, client):
    log = write_run(root) / "20260102_120000.log.json"
    log.write_text(log.read_text() + '{"mode": "train", "epo')
    assert sync(root)[0].action == "recorded"
    assert len(history(client, only_run(client).info.run_id, "train/loss")) == 3


def test_sync_of_a_store_that_is_away_is_an_error_for_the_user(root, monkeypatch):
    write_run(root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://here")
    assert "MLFLOW_TRACKING_URI" in sync(root)[0].reason


# --- names, and the page


def test_lines_of_the_log_have_their_names_in_mlflow():
    train = TRAIN | {"epoch": 2, "iter": 20, "memory": 100, "top1_acc": 0.5, "loss": 3.0}
    assert to_metrics(train) == {
        "train/lr": 0.1,
        "time/data": 0.5,
        "train/top5": 1.0,
        "train/grad_norm": 2.0,
        "time/step": 1.0,
        "memory_mb": 100.0,
        "train/top1": 0.5,
        "train/loss": 3.0,
    }
    assert global_step(train, iters_per_epoch=100) == 120
    val = {
        "mode": "val",
        "epoch": 2,
        "iter": 7,
        "lr": 0.1,
        "top1_acc": 0.5,
        "top5_acc": 1.0,
        "mean_class_accuracy": 0.4,
    }
    assert to_metrics(val) == {"val/top1": 0.5, "val/top5": 1.0, "val/mean_class": 0.4}
    assert global_step(val, iters_per_epoch=100) == 200
    assert to_metrics({"env_info": "", "seed": 0}) == {}


def test_log_keys_are_those_of_the_reference():
    reference = Path(__file__).resolve().parents[2].parent / "shared" / "reference" / "evaluation" / "formats.json"
    if not reference.exists():
        pytest.skip(f"{reference} is not there")
    formats = json.loads(reference.read_text())["log_json"]
    for mode in ("train", "val"):
        keys = {entry.split()[0] for entry in formats[f"{mode}_line_keys_in_order"]}
        assert METRIC_NAMES[mode].keys() <= keys


@pytest.mark.slow
def test_page_shows_what_was_recorded_and_its_server_takes_runs(root, client, monkeypatch, port):
    import mlflow

    with recorded_run(experiment="demo", name="row") as active:
        active.log(1, {"val/top1": 0.5})
        active.artifact(root / "params.yaml")
    command = ui_command(port=port)
    assert "sqlite:///mlflow.db" in command  # short, and right in the project's folder
    server = subprocess.Popen(command, shell=True, cwd=root, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}/api/2.0/mlflow/artifacts/list?run_id={active.id}"
        deadline = time.monotonic() + 180
        while True:
            try:
                answer = json.load(urllib.request.urlopen(address, timeout=60))
                break
            except OSError:
                assert time.monotonic() < deadline, "the server did not start"
                time.sleep(0.3)
        assert [file["path"] for file in answer["files"]] == ["params.yaml"]
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60).read()
        assert b"<html" in page.lower()

        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        with recorded_run(experiment="team", name="row", params={"n": 1}) as active:
            active.log(1, {"val/top1": 0.25})
            active.artifact(root / "params.yaml", "files")
        remote = mlflow.MlflowClient(f"http://127.0.0.1:{port}")
        assert remote.get_run(active.id).info.status == "FINISHED"
        assert history(remote, active.id, "val/top1") == [(1, 0.25)]
        assert [file.path for file in remote.list_artifacts(active.id, "files")] == ["files/params.yaml"]
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=120)


def test_with_a_server_the_page_is_the_servers(root, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://example.org:5000")
    assert ui_command().endswith("-m webbrowser -t http://example.org:5000")


@pytest.mark.slow
def test_recording_is_quiet(root):
    code = "from actionzoo.tracking.live import recorded_run\nwith recorded_run(experiment='demo', name='row'): pass"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (said.stdout, said.stderr) == ("", "")


def test_checkpoints_that_dvc_replaced_become_links_again_and_others_stay(root):
    folder = write_run(root)
    for name in ("best.pth", "latest.pth"):
        (folder / name).write_bytes(name.encode() * 2**18)
    (done,) = sync(root)
    kept = root / "mlruns" / "demo" / done.run_id / "artifacts"
    content = (folder / "best.pth").read_bytes()
    (folder / "best.pth").unlink()
    (folder / "best.pth").write_bytes(content)  # as a commit of DVC does
    (kept / "latest.pth").unlink()
    (kept / "latest.pth").write_bytes(b"x" * (folder / "latest.pth").stat().st_size)
    assert not (kept / "best.pth").samefile(folder / "best.pth")
    assert sync(root)[0].action == "unchanged"
    assert (kept / "best.pth").samefile(folder / "best.pth")
    assert (kept / "latest.pth").read_bytes().startswith(b"xxx")
    assert not list(kept.glob(".*"))
