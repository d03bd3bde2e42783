import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from flows import process


@pytest.fixture
def run(tmp_path, environment):
    """Run a shell command as the flow does; gives its exit status and its lines."""

    def start(command: str, stop: threading.Event | None = None, on_line=lambda line: None) -> tuple[int, list[str]]:
        lines = []

        def say(line: str) -> None:
            lines.append(line)
            on_line(line)

        stop = stop or threading.Event()
        return process.run(["bash", "-c", command], cwd=tmp_path, env=environment, say=say, stop=stop), lines

    return start


def test_lines_of_both_streams_and_the_exit_status_come_back(run):
    assert run("echo one; echo two >&2; exit 3") == (3, ["one", "two"])


def test_a_line_is_passed_on_while_the_command_still_runs(run):
    stop = threading.Event()
    with pytest.raises(process.Stopped):
        run("echo begun; sleep 600", stop, on_line=lambda line: stop.set())


def test_a_command_ended_by_a_signal_gives_128_plus_its_number(run):
    assert run("kill -KILL $$")[0] == 128 + signal.SIGKILL


def test_a_command_that_is_not_there_gives_127(tmp_path, environment):
    lines = []
    status = process.run(["no-such-command"], cwd=tmp_path, env=environment, say=lines.append, stop=threading.Event())
    assert (status, lines) == (127, ["no-such-command: No such file or directory"])


def test_what_a_command_leaves_behind_is_ended_with_it(run, left_running):
    assert run("sleep 600 & setsid sleep 601 & echo done") == (0, ["done"])
    assert left_running() == []


def test_stop_ends_the_command_and_its_orphans(run, left_running):
    """The shell in the middle dies at once, as DVC does; the one that it had started goes on, and is found."""
    stop = threading.Event()
    with pytest.raises(process.Stopped):
        run("bash -c 'setsid sleep 600 & echo begun; exec sleep 601'", stop, on_line=lambda line: stop.set())
    assert left_running(seconds=0) == []


def test_nothing_is_started_after_stop(run, tmp_path):
    stop = threading.Event()
    stop.set()
    with pytest.raises(process.Stopped):
        run("touch begun", stop)
    assert not (tmp_path / "begun").exists()


def test_who_ignores_sigterm_is_killed_after_the_grace(environment, left_running):
    command = ["bash", "-c", "trap '' TERM; echo begun; while true; do sleep 0.1; done"]
    child = subprocess.Popen(process.kept(command, 0.5), env=environment, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "begun\n"
    begun = time.monotonic()
    process.end(child)
    child.stdout.close()
    assert 0.5 <= time.monotonic() - begun < 5
    assert left_running(seconds=0) == []


def test_ctrl_c_reaches_the_command(environment):
    """The keeper itself lets SIGINT pass, and does not make the command deaf to it."""
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
        process.kept(command), env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert child.stdout.readline() == "begun\n"
    os.killpg(child.pid, signal.SIGINT)
    assert child.wait(10) == 7
    child.stdout.close()


def test_all_ends_when_the_parent_is_killed(tmp_path, environment, left_running):
    program = f"""
import threading, os
from pathlib import Path
from flows import process
process.run(["bash", "-c", "bash -c 'touch begun; sleep 600; true'; true"], cwd=Path({str(tmp_path)!r}),
            env=os.environ, say=print, stop=threading.Event())
"""
    parent = subprocess.Popen([sys.executable, "-c", program], env=environment)
    while not (tmp_path / "begun").exists():
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    assert left_running() == []


def test_the_keeper_needs_nothing_but_the_standard_library():
    """It is started with -I -S, for speed and so that nothing of a user's environment can break it."""
    kept = process.kept(["true"])
    assert kept[1:3] == ["-I", "-S"] and Path(kept[3]) == Path(process.__file__)
    assert subprocess.run(kept).returncode == 0
