import http.server
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from contextlib import closing
from pathlib import Path

import pytest

from actionzoo.errors import UserError
from actionzoo.files.locks import try_lock
from flows import local
from flows.server.process import client_settings
from tests.processes import in_child

ROOT = Path(__file__).resolve().parents[2]
NOBODY = os.geteuid() or 65534

ROW = "slowfast_r50_video_4x16x1_256e_kinetics400_rgb"


@pytest.mark.slow
def test_one_command_serves_runs_whatever_became_of_the_last(
    project, serve, order, left_running, wait_for, key_of, api, port
):
    begun, nap = project / "begun", project / "nap"

    # Cut off in the middle of a run, as by a power failure. The user has settings of their own: they stay.
    nap.write_text("600")
    settings = project / "prefect.toml"
    settings.write_text("[logging]\nlevel = 'INFO'\n")
    local, log = serve(port)
    assert order(log, "zoo/row").returncode == 0
    wait_for(begun.exists)
    local.kill()
    local.wait()
    assert settings.read_text() == "[logging]\nlevel = 'INFO'\n"
    settings.unlink()
    assert left_running(apart_from="prefect") == []  # the flow itself may knock at the dead server for 30 s more

    # The next one does not take it for running; a run ends well, and its log has the words of the stage.
    nap.write_text("0")
    local, log = serve(port)
    ordered = order(log, "zoo/row", "--watch")
    assert ordered.returncode == 0, ordered.stdout + ordered.stderr + log.read_text()
    assert (project / f"top1_{ROW}.txt").exists()
    server = api(client_settings(port, key_of(project)))

    def runs(state: str) -> list[str]:
        found = server.post("/flow_runs/filter", json={"flow_runs": {"state": {"name": {"any_": [state]}}}}).json()
        return [run["id"] for run in found]

    def tasks(run: str) -> list[str]:
        found = server.post("/task_runs/filter", json={"flow_runs": {"id": {"any_": [run]}}}).json()
        return [task["state_type"] for task in found]

    (completed,) = runs("Completed")
    wait_for(lambda: runs("Crashed") and tasks(runs("Crashed")[0]) == ["CRASHED", "CRASHED"], 120)

    def is_logged(words: str) -> bool:
        of_run = {"logs": {"flow_run_id": {"any_": [completed]}}, "limit": 200}
        return any(entry["message"] == words for entry in server.post("/logs/filter", json=of_run).json())

    wait_for(lambda: is_logged("learning from one"))

    # The same deployment takes its turn again, and is stopped in order, in the middle of its work.
    begun.unlink()
    nap.write_text("600")
    (project / "in.txt").write_text("two\n")
    assert order(log, "zoo/row").returncode == 0
    wait_for(begun.exists)
    local.send_signal(signal.SIGTERM)
    assert local.wait(120) == 128 + signal.SIGTERM
    assert left_running() == []
    with closing(sqlite3.connect(project / ".prefect" / "prefect.db")) as prefect:
        states = [name for (name,) in prefect.execute("SELECT state_name FROM flow_run ORDER BY expected_start_time")]
    assert states == ["Crashed", "Completed", "Cancelled"]


def test_a_port_that_something_else_has_is_told_with_a_free_one(project, own_environment):
    other = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    port = other.server_address[1]
    said = subprocess.run(
        [sys.executable, "-m", "flows.local", "--port", str(port)],
        cwd=project,
        env=own_environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    other.shutdown()
    other.server_close()
    assert said.returncode == 1
    assert f"port {port} on 127.0.0.1 is taken; choose another with --port" in said.stderr
    assert "Traceback" not in said.stderr


@pytest.mark.parametrize("port", ["0", "-1", "65536", "x", "9" * 5000, "٤٢٠٠"])
def test_what_is_no_port_is_one_sentence(project, own_environment, port):
    said = subprocess.run(
        [sys.executable, "-m", "flows.local", f"--port={port}"],
        cwd=project,
        env=own_environment,
        capture_output=True,
        text=True,
    )
    assert said.returncode == 2
    assert "is no port; write a number from 1 to 65535" in said.stderr
    assert "Traceback" not in said.stderr


def started(project, environment, port, **options):
    command = [sys.executable, "-m", "flows.local", "--port", str(port)]
    said = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=300, **options)
    assert said.returncode == 1 and "Traceback" not in said.stdout + said.stderr
    return said.stderr


def test_a_database_of_a_newer_prefect_is_told(project, own_environment, port):
    (project / ".prefect").mkdir()
    with closing(sqlite3.connect(project / ".prefect" / "prefect.db")) as database, database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        database.execute("INSERT INTO alembic_version VALUES ('ffffffffffff')")
    said = started(project, own_environment, port)
    assert "its database is of a newer Prefect; install that one, or set PREFECT_HOME to another folder" in said
    assert str(project / ".prefect" / "prefect.db") in said


def test_a_damaged_database_is_told(project, own_environment, port):
    (project / ".prefect").mkdir()
    (project / ".prefect" / "prefect.db").write_text("this is no database\n" * 1000)
    said = started(project, own_environment, port)
    assert "its database is damaged; put a copy in its place, or set PREFECT_HOME to another folder" in said


def test_a_folder_of_prefect_that_is_a_file_is_told(project, own_environment, port, tmp_path):
    (tmp_path / "file").touch()
    said = started(project, own_environment | {"PREFECT_HOME": str(tmp_path / "file")}, port)
    assert f"Prefect's files cannot be kept in {tmp_path / 'file'}" in said
    assert "set PREFECT_HOME to another one" in said


@pytest.mark.parametrize(
    ("name", "mode"), [(".", 0o700), (".", 0o500), (".", 0), ("prefect.db", 0o400), ("profiles.toml", 0)]
)
def test_files_of_prefect_that_are_not_ours_are_told(name, mode):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to other users
        home, report = Path(folder) / "home", Path(folder) / "report"
        home.mkdir()
        for path in (home / "prefect.db", home / "profiles.toml", report):
            path.touch()
        (home / name).chmod(mode)
        for path in (Path(folder), home, *home.iterdir(), report):
            os.chown(path, NOBODY, NOBODY)

        def check() -> None:
            os.setuid(NOBODY)  # no mode keeps root away
            try:
                local._check_home(home)
                report.write_text("ours")
            except UserError as error:
                report.write_text(str(error))

        in_child(check)
        shown = "ours" if mode == 0o700 else f"Prefect's files cannot be kept in {home} ("
        assert report.read_text().startswith(shown)


def test_started_twice_the_second_names_the_port_of_the_first(project, own_environment, port):
    home = project / ".prefect"
    home.mkdir()
    with (home / "local.lock").open("a+") as lock:
        assert try_lock(lock)
        lock.write("4217")
        lock.flush()
        said = started(project, own_environment, port)
    assert said == f"flows.local already runs for {home}, on port 4217; use that one.\n"


def test_a_makefile_named_from_another_folder_says_where_to_run_it(tmp_path):
    command = ["make", "-f", str(ROOT / "Makefile"), "prefect"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert said.returncode == 2
    assert f"run this in the checkout: make -C {ROOT} prefect" in said.stderr
