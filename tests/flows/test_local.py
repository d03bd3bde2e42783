import http.server
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing

import pytest

from flows.server import client_settings

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
    assert order(log, "zoo/all").returncode == 0
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
    runs = server.post("/flow_runs/filter", json={}).json()
    assert sorted(run["state_name"] for run in runs) == ["Completed", "Crashed"]
    completed = next(run["id"] for run in runs if run["state_name"] == "Completed")

    def is_logged(words: str) -> bool:
        of_run = {"logs": {"flow_run_id": {"any_": [completed]}}, "limit": 200}
        return any(entry["message"] == words for entry in server.post("/logs/filter", json=of_run).json())

    wait_for(lambda: is_logged("learning from one"))

    # The same deployment takes its turn again, and is stopped in order, in the middle of its work.
    begun.unlink()
    nap.write_text("600")
    (project / "in.txt").write_text("two\n")
    assert order(log, "zoo/all").returncode == 0
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
