"""What a stage's task run shows while the stage waits, works, and ends."""

import itertools
import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

ON_A_GPU = """
    stages:
      train:
        cmd: touch begun; until test -e go; do sleep 0.1; done; cp in.txt out.txt
        deps: [in.txt]
        outs: [out.txt]
        meta: {gpus: 1}
    """

LINES = """
    stages:
      train:
        cmd:
          - echo $SHELL $CUDA_VISIBLE_DEVICES > shell.txt; env | grep -c ACTIONZOO_SHELL >> shell.txt; readlink /proc/self/fd/0 >> shell.txt
          - test $((1 + 1)) = 2 &&
            [[ $CUDA_VISIBLE_DEVICES == 0 ]]
          - cp in.txt out.txt
        deps: [in.txt]
        outs: [out.txt]
        meta: {gpus: 1}
      after:
        cmd: cp out.txt after.txt
        deps: [out.txt]
        outs: [after.txt]
    """  # noqa: E501


@pytest.fixture
def flow(with_server, start, tmp_path):
    """Start a flow in a repository; its lines are in the file that is returned with it."""

    numbers = itertools.count()

    def run(repository, *arguments: str, **more: str):
        log = tmp_path / f"{repository.name} {next(numbers)}.log"
        with log.open("w") as output:
            process = start(
                [sys.executable, "-m", "flows.pipeline", *arguments],
                cwd=repository,
                env=with_server | more,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        return process, log

    return run


@pytest.fixture
def task_runs(with_server, api):
    """A function: log of a flow -> its task runs by name, as the server has them."""
    server = api(with_server)

    def of(log) -> dict[str, dict]:
        wanted = {"flow_runs": {"id": {"any_": [log.read_text().split("/runs/flow-run/")[1].split()[0]]}}}
        return {run["name"]: run for run in server.post("/task_runs/filter", json=wanted).json()}

    return of


@pytest.fixture
def states(with_server, api):
    """A function: task run -> its states, oldest first."""
    server = api(with_server)
    return lambda run: server.get("/task_run_states/", params={"task_run_id": run["id"]}).json()


def test_a_stage_without_a_device_is_pending_and_says_who_has_it(make_repository, flow, task_runs, states, wait_for):
    """In two checkouts. The stage's work begins with the device, and its commands run in the user's own shell."""
    first, second = make_repository(ON_A_GPU, "first"), make_repository(LINES, "second")
    holder, holders_log = flow(first, CUDA_VISIBLE_DEVICES="0")
    wait_for(lambda: (first / "begun").exists() or holder.poll() is not None)
    waiter, log = flow(second, CUDA_VISIBLE_DEVICES="0", SHELL="/bin/bash")
    wait_for(lambda: "waits for 1 GPU" in log.read_text() or waiter.poll() is not None)
    wait_for(lambda: task_runs(log)["train"]["state"]["name"].startswith("Waiting"))
    waiting = task_runs(log)
    of_holder = holders_log.read_text().split("Beginning flow run '")[1].split("'")[0]
    assert waiting["train"]["state"]["type"] == "PENDING"
    assert waiting["train"]["state"]["name"] == "Waiting for 1 GPU"
    assert waiting["train"]["state"]["message"] == f"0 is used by train of flow run {of_holder}"
    assert waiting["train"]["start_time"] is None
    assert "Running stage 'train'" in log.read_text()  # DVC has started before

    (first / "go").touch()
    assert (holder.wait(120), waiter.wait(120)) == (0, 0), log.read_text()
    done = task_runs(log)
    assert [state["name"] for state in states(done["train"])] == [
        "Pending", "Starting", "Waiting for 1 GPU", "Running", "built"
    ]  # fmt: skip
    assert [state["name"] for state in states(done["after"])] == ["Pending", "Starting", "Running", "built"]
    assert (second / "shell.txt").read_text() == "/bin/bash 0\n0\n/dev/null\n"


def test_a_stage_that_waits_for_a_device_ends_at_once_when_the_flow_is_stopped(
    make_repository, flow, task_runs, wait_for, left_running
):
    repository, other = make_repository(ON_A_GPU, "first"), make_repository(ON_A_GPU, "second")
    holder, _ = flow(repository, CUDA_VISIBLE_DEVICES="0")
    wait_for(lambda: (repository / "begun").exists() or holder.poll() is not None)
    waiter, log = flow(other, CUDA_VISIBLE_DEVICES="0")
    wait_for(lambda: "waits for 1 GPU" in log.read_text() or waiter.poll() is not None)
    waiter.send_signal(signal.SIGINT)
    assert waiter.wait(15) == 130
    assert "stopped; start again to continue" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert not (other / "begun").exists()
    wait_for(lambda: task_runs(log)["train"]["state"]["type"] == "CANCELLED")
    assert holder.poll() is None


def test_a_stage_waits_for_files_that_another_flow_run_reads(make_repository, flow, task_runs, wait_for):
    """DVC itself would fail: a stage that was changed again, while a training reads what it made."""
    repository = make_repository(
        """
        stages:
          resize:
            cmd: cp in.txt clips.txt
            deps: [in.txt]
            outs: [clips.txt]
          train:
            cmd: touch begun; until test -e go; do sleep 0.1; done; cp clips.txt out.txt
            deps: [clips.txt]
            outs: [out.txt]
        """
    )
    trains, _ = flow(repository)
    wait_for(lambda: (repository / "begun").exists() or trains.poll() is not None)
    (repository / "in.txt").write_text("two\n")
    waiter, log = flow(repository, "resize")
    wait_for(lambda: "waits for files" in log.read_text() or waiter.poll() is not None)
    (run,) = (run for run in task_runs(log).values() if run["name"] == "resize")
    assert run["start_time"] is None
    (repository / "go").touch()
    assert (trains.wait(120), waiter.wait(120)) == (0, 0), log.read_text()
    assert (repository / "clips.txt").read_text() == "two\n"
    assert (repository / "out.txt").read_text() == "one\n"
