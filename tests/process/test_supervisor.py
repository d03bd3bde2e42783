"""What a supervisor leaves running: nothing, however the command or the parent ends."""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from actionzoo.process import supervisor
from actionzoo.process.supervisor import die_with_parent, end, supervised
from tests.processes import MARK, is_running, left_running, wait_for


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    return os.environ | {MARK: uuid.uuid4().hex}


def test_a_command_that_ignores_sigterm_is_killed_after_the_grace(environment):
    command = ["bash", "-c", "trap '' TERM; echo begun; while true; do sleep 0.1; done"]
    child = subprocess.Popen(supervised(command, 0.5), env=environment, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "begun\n"
    begun = time.monotonic()
    end(child)
    child.stdout.close()
    assert 0.5 <= time.monotonic() - begun < supervisor.GRACE_SECONDS
    assert left_running(environment, seconds=0) == []


def test_ctrl_c_reaches_the_command(environment):
    """The supervisor itself survives SIGINT, and the command does not inherit that."""
    program = """
import time
try:
    print("begun", flush=True)
    time.sleep(600)
except KeyboardInterrupt:
    exit(7)
"""
    command = [sys.executable, "-c", program]
    child = subprocess.Popen(
        supervised(command), env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert child.stdout.readline() == "begun\n"
    os.killpg(child.pid, signal.SIGINT)
    assert child.wait(60) == 7
    child.stdout.close()


def test_the_supervisor_needs_only_the_standard_library():
    """It runs with -I -S: it starts fast, and a user's environment cannot break it."""
    command = supervised(["true"])
    assert command[1:3] == ["-I", "-S"] and Path(command[3]) == Path(supervisor.__file__)
    assert subprocess.run(command).returncode == 0


PARENT = """
import os, signal, subprocess, sys
from functools import partial
from actionzoo.process.supervisor import die_with_parent
ask = partial(die_with_parent, signal.SIGKILL, {parent})
child = subprocess.Popen(["sleep", "600"], preexec_fn=ask)
print(child.pid, flush=True)
sys.exit(child.wait())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl(2) is Linux's")
def test_a_child_dies_with_a_parent_that_is_killed():
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(parent="os.getpid()")], stdout=subprocess.PIPE, text=True
    )
    child = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    wait_for(lambda: not is_running(child))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl(2) is Linux's")
def test_a_child_whose_parent_died_before_it_asked_dies_at_once():
    done = subprocess.run([sys.executable, "-c", PARENT.format(parent=1 << 22)], capture_output=True, timeout=60)
    assert done.returncode != 0


def test_without_linux_nothing_happens(monkeypatch):
    monkeypatch.setattr(supervisor, "_libc", None)
    die_with_parent(parent=1 << 22)
