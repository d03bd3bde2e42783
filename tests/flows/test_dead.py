"""Flow runs and their tasks whose process was killed: what the server says of them. Cancelled ones: test_page.py."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from actionzoo.process.supervisor import descendants
from flows.server.process import client_settings

pytestmark = pytest.mark.slow


def child_of(local: subprocess.Popen, words: str) -> int:
    """The process below flows.local whose command line has the words, and which is not a supervisor."""
    for pid in descendants(local.pid):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().replace("\0", " ")
        except OSError:
            continue
        if words in command and "supervisor" not in command:
            return pid
    raise AssertionError(f"no process has {words}")


def test_what_was_killed_is_crashed_tasks_too(
    project, serve, order, own_environment, key_of, api, wait_for, left_running, port
):
    (project / "nap").write_text("600")
    begun = project / "begun"
    local, log = serve(port)
    server = api(client_settings(port, key_of(project)))

    def begin() -> dict:
        """A new flow run in the middle of its training."""
        begun.unlink(missing_ok=True)
        assert order(log, "zoo/row").returncode == 0
        wait_for(begun.exists, 120)
        return server.post("/flow_runs/filter", json={"sort": "EXPECTED_START_TIME_DESC", "limit": 1}).json()[0]

    def states(run: dict) -> list[str]:
        """Types of the states of a flow run and of its two tasks, of which one has begun."""
        tasks = server.post("/task_runs/filter", json={"flow_runs": {"id": {"any_": [run["id"]]}}}).json()
        found = server.get(f"/flow_runs/{run['id']}").json()
        return [found["state_type"], *(task["state_type"] for task in tasks)]

    # kill -9 of the flow: the worker says so of the flow run, and the tasks follow.
    run = begin()
    os.kill(int(server.get(f"/flow_runs/{run['id']}").json()["infrastructure_pid"]), signal.SIGKILL)
    wait_for(lambda: states(run) == ["CRASHED"] * 3, 90)

    # kill -9 of the worker: flows.local ends, and has the last word.
    killed_worker = begin()
    os.kill(child_of(local, "prefect worker start"), signal.SIGKILL)
    assert local.wait(120) == 1
    assert "the worker ended by itself" in log.read_text()
    assert left_running() == []

    # kill -9 of the server: the next start says what became of the run.
    local, log = serve(port)
    server = api(client_settings(port, key_of(project)))
    killed_server = begin()
    os.kill(child_of(local, "flows.server.guarded"), signal.SIGKILL)
    assert local.wait(120) == 1
    assert "the Prefect server ended by itself" in log.read_text()
    assert left_running() == []

    local, log = serve(port)
    server = api(client_settings(port, key_of(project)))
    wait_for(lambda: states(killed_server) == ["CRASHED"] * 3, 60)
    # without its worker, the flow itself was told to stop: it stopped its training, and could still say so
    wait_for(lambda: sorted(states(killed_worker)) == ["CANCELLED", "CRASHED", "CRASHED"], 60)
    assert states(killed_worker)[0] == "CRASHED"
