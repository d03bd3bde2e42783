"""Who holds DVC's lock is told to those who wait for it."""

import subprocess
import sys
import threading

import pytest

from flows.graph import ask_dvc
from flows.stage.dvc_lock import lock_holder, waits_for
from flows.stage.dvc_process import DvcProcess

HOLD = """
import sys
from dvc.repo import Repo
with Repo() as repo, repo.lock:
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def repository(make_repository):
    return make_repository("stages: {copy: {cmd: cp in.txt out.txt, deps: [in.txt], outs: [out.txt]}}")


@pytest.fixture
def holder(repository):
    """A process that holds the lock until it reads a line."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], cwd=repository, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_holder_is_known_while_it_holds_the_lock(repository, holder):
    assert lock_holder(repository) == holder.pid
    holder.communicate("\n")
    assert lock_holder(repository) is None
    assert waits_for(holder.pid) == f"DVC's lock, which process {holder.pid} holds"


def test_a_question_to_dvc_says_whom_it_waits_for(repository, holder):
    told = []

    def on_wait(pid: int) -> None:
        told.append(pid)
        holder.communicate("\n")

    _, _, changes = ask_dvc(folder=repository, on_wait=on_wait)
    assert told == [holder.pid]
    assert changes["copy"] is not None


def test_a_stage_says_whom_it_waits_for(repository, holder, environment, monkeypatch):
    told = []

    def on_wait(pid: int) -> None:
        told.append(pid)
        holder.communicate("\n")

    monkeypatch.setenv("PYTHONPATH", environment["PYTHONPATH"])
    dvc = DvcProcess(
        ["dvc", "--wait-for-lock", "repro", "-s", "copy"],
        root=repository,
        environment={},
        on_line=lambda line: None,
        stop=threading.Event(),
        locks=[],
        grace_seconds=5,
        patience_seconds=None,
    )
    assert dvc.asks(on_wait)
    assert told == [holder.pid]
    dvc.answer({})
    dvc.wait_for_command()
    assert not dvc.asks()
    assert dvc.end() == 0
    assert (repository / "out.txt").exists()
