import signal
import subprocess
import sys
import threading

import pytest

from flows import command


@pytest.fixture
def run(tmp_path, environment):
    """Run a shell command as the flow does; returns its exit status and its lines."""

    def start(words: str, stop: threading.Event | None = None, on_line=lambda line: None) -> tuple[int, list[str]]:
        lines = []

        def collect(line: str) -> None:
            lines.append(line)
            on_line(line)

        stop = stop or threading.Event()
        return command.run(["bash", "-c", words], cwd=tmp_path, env=environment, on_line=collect, stop=stop), lines

    return start


def test_lines_of_both_streams_and_the_exit_status_come_back(run):
    assert run("echo one; echo two >&2; exit 3") == (3, ["one", "two"])


def test_a_line_is_passed_on_while_the_command_still_runs(run):
    stop = threading.Event()
    with pytest.raises(command.Stopped):
        run("echo begun; sleep 600", stop, on_line=lambda line: stop.set())


def test_a_command_ended_by_a_signal_gives_128_plus_its_number(run):
    assert run("kill -KILL $$")[0] == 128 + signal.SIGKILL


def test_a_command_that_is_not_there_gives_127(tmp_path, environment):
    lines = []
    status = command.run(
        ["no-such-command"], cwd=tmp_path, env=environment, on_line=lines.append, stop=threading.Event()
    )
    assert (status, lines) == (127, ["no-such-command: No such file or directory"])


def test_what_a_command_leaves_behind_is_ended_with_it(run, left_running):
    assert run("sleep 600 & setsid sleep 601 & echo done") == (0, ["done"])
    assert left_running() == []


def test_stop_ends_the_command_and_its_orphans(run, left_running):
    """The shell in the middle dies at once, as DVC does; the process that it started goes on and is ended too."""
    stop = threading.Event()
    with pytest.raises(command.Stopped):
        run("bash -c 'setsid sleep 600 & echo begun; exec sleep 601'", stop, on_line=lambda line: stop.set())
    assert left_running(seconds=0) == []


def test_nothing_is_started_after_stop(run, tmp_path):
    stop = threading.Event()
    stop.set()
    with pytest.raises(command.Stopped):
        run("touch begun", stop)
    assert not (tmp_path / "begun").exists()


def test_all_ends_when_the_parent_is_killed(tmp_path, environment, left_running, wait_for):
    program = f"""
import threading, os
from pathlib import Path
from flows import command
command.run(["bash", "-c", "bash -c 'touch begun; sleep 600; true'; true"], cwd=Path({str(tmp_path)!r}),
            env=os.environ, on_line=print, stop=threading.Event())
"""
    parent = subprocess.Popen([sys.executable, "-c", program], env=environment)
    wait_for(lambda: (tmp_path / "begun").exists() or parent.poll() is not None)
    assert parent.poll() is None
    parent.kill()
    parent.wait()
    assert left_running() == []


def test_a_stage_that_saves_for_longer_than_the_flow_waits_is_left_to_its_supervisor(tmp_path, environment, wait_for):
    program = """
import signal, sys, time
from pathlib import Path
def save(*_):
    time.sleep(2)
    Path("saved").touch()
    sys.exit()
signal.signal(signal.SIGTERM, save)
print("begun", flush=True)
time.sleep(600)
"""
    begun = threading.Event()
    left = command.Command(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        on_line=lambda line: begun.set(),
        stop=threading.Event(),
        patience_seconds=0.2,
    )
    assert begun.wait(60)
    assert left.end() == 128 + signal.SIGTERM
    assert not (tmp_path / "saved").exists()
    wait_for(lambda: (tmp_path / "saved").exists())


def test_a_stage_whose_flow_was_killed_can_print_while_it_saves(tmp_path, environment, wait_for, left_running):
    saves = (
        f"trap 'echo saving || exit; touch {tmp_path}/saved; exit' TERM; touch begun; while true; do sleep 0.1; done"
    )
    program = f"""
import threading, os
from pathlib import Path
from flows import command
command.run(["bash", "-c", {saves!r}], cwd=Path({str(tmp_path)!r}), env=os.environ, on_line=print,
            stop=threading.Event())
"""
    flow = subprocess.Popen([sys.executable, "-c", program], env=environment)
    wait_for(lambda: (tmp_path / "begun").exists() or flow.poll() is not None)
    flow.kill()
    flow.wait()
    assert left_running() == []
    assert (tmp_path / "saved").exists()
