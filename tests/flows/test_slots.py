import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from actionzoo.errors import UserError
from flows.stage import slots
from flows.stage.command import Stopped

ZERO, TWO, THREE = ({str(number): str(number) for number in range(count)} for count in (1, 2, 3))

HOLD = """
import sys, threading, time
from pathlib import Path
from flows.stage import slots
folder, count, *names = sys.argv[1:]
def on_wait(users):
    print("waiting", flush=True)

with slots.acquire(Path(folder), "gpu", dict(zip(names, names)), int(count), threading.Event(), on_wait) as acquired:
    print(*acquired.held, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def hold(tmp_path, environment):
    """Start a process that acquires `count` of `names` and holds them; returns it once it has printed a line."""
    started = []

    def start(count: int, *names: str) -> tuple[subprocess.Popen, str]:
        command = [sys.executable, "-c", HOLD, str(tmp_path), str(count), *names]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        started.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_two_processes_never_hold_the_same_device(tmp_path, hold):
    _, first = hold(1, "0", "1", "2")
    _, second = hold(1, "0", "1", "2")
    with slots.acquire(tmp_path, "gpu", THREE, 1, threading.Event()) as third:
        assert [first, second, *third.held] == ["0", "1", "2"]


def test_devices_of_a_killed_process_are_free_again(tmp_path, hold):
    holder, names = hold(2, "0", "1")
    assert names == "0 1"
    holder.send_signal(signal.SIGKILL)
    with slots.acquire(tmp_path, "gpu", TWO, 2, threading.Event()) as acquired:
        assert acquired.held == ("0", "1")


def test_devices_of_a_killed_flow_stay_taken_while_its_stage_still_goes_down(
    tmp_path, left_running, environment, wait_for
):
    program = f"""
import os, threading
from pathlib import Path
from actionzoo.process import supervisor
from flows.stage import command, slots
supervisor.GRACE_SECONDS = 3.0
never = threading.Event()
words = ["bash", "-c", "trap '' TERM; touch {tmp_path}/begun; while true; do sleep 0.1; done"]
with slots.acquire(Path({str(tmp_path)!r}), "gpu", {{"0": "0"}}, 1, never) as acquired:
    command.run(words, cwd=Path("/"), env=os.environ, on_line=print, stop=never, locks=acquired.descriptors)
"""
    flow = subprocess.Popen([sys.executable, "-c", program], env=environment)
    wait_for(lambda: (tmp_path / "begun").exists() or flow.poll() is not None)
    assert flow.poll() is None
    flow.kill()
    flow.wait()
    waited = []
    with slots.acquire(tmp_path, "gpu", ZERO, 1, threading.Event(), lambda _: waited.extend(left_running(seconds=0))):
        assert left_running(seconds=0) == []
    assert waited


def test_devices_are_free_again_after_an_error_in_their_use(tmp_path):
    with pytest.raises(ZeroDivisionError), slots.acquire(tmp_path, "gpu", ZERO, 1, threading.Event()):
        1 / 0  # noqa: B018  the error is what is wanted
    with slots.acquire(tmp_path, "gpu", ZERO, 1, threading.Event()) as acquired:
        assert acquired.held == ("0",)


def test_kinds_do_not_share_names(tmp_path):
    never = threading.Event()
    with slots.acquire(tmp_path, "gpu", ZERO, 1, never), slots.acquire(tmp_path, "cpu", ZERO, 1, never) as acquired:
        assert acquired.held == ("0",)


def test_who_waits_for_two_devices_is_not_overtaken_by_who_waits_for_one(tmp_path):
    """0 is held; B waits for both; C, later, wants one, and 1 is free: C gets it only after B."""
    order = []
    never = threading.Event()

    def take(name: str, count: int) -> threading.Thread:
        waits = threading.Event()

        def work() -> None:
            with slots.acquire(tmp_path, "gpu", TWO, count, never, lambda _: waits.set()):
                order.append(name)

        thread = threading.Thread(target=work)
        thread.start()
        assert waits.wait(60)
        return thread

    with slots.acquire(tmp_path, "gpu", ZERO, 1, never):
        b = take("B", 2)
        c = take("C", 1)
    b.join(60)
    c.join(60)
    assert order == ["B", "C"]


def test_a_killed_process_does_not_keep_its_place_in_the_queue(tmp_path, hold):
    never = threading.Event()
    with slots.acquire(tmp_path, "gpu", ZERO, 1, never):
        waiter, printed = hold(2, "0", "1")
        assert printed == "waiting"
        waiter.kill()
        with slots.acquire(tmp_path, "gpu", TWO, 1, never) as acquired:
            assert acquired.held == ("1",)


def test_who_waits_for_one_device_does_not_hold_up_who_wants_another(tmp_path, hold):
    never = threading.Event()
    with slots.acquire(tmp_path, "gpu", ZERO, 1, never):
        _, printed = hold(1, "0")
        assert printed == "waiting"
        with slots.acquire(tmp_path, "gpu", {"1": "1"}, 1, never) as acquired:
            assert acquired.held == ("1",)


def test_stop_ends_the_wait_and_gives_up_the_place(tmp_path):
    never, stop = threading.Event(), threading.Event()
    with slots.acquire(tmp_path, "gpu", ZERO, 1, never):
        with pytest.raises(Stopped), slots.acquire(tmp_path, "gpu", ZERO, 1, stop, lambda _: stop.set()):
            pass
        assert not list(tmp_path.glob("*.ticket"))


def test_who_waits_is_told_who_uses_the_devices(tmp_path):
    stop = threading.Event()
    heard = []

    def on_wait(users):
        heard.append(users)
        stop.set()

    first, second = (slots.Slots(tmp_path, "gpu", TWO) for _ in range(2))
    with contextlib.closing(first), contextlib.closing(second):
        first.acquire(1, "train@a of flow run x", stop)
        assert second.users() == {"0": "train@a of flow run x"}
        with pytest.raises(Stopped):
            second.acquire(2, "train@b of flow run y", stop, on_wait)
        first.release()
        assert second.users() == {}
    assert heard == [{"0": "train@a of flow run x"}]


def test_a_device_is_one_device_whatever_it_is_called(tmp_path):
    """As `0` and by its UUID."""
    first, second = slots.Slots(tmp_path, "gpu", {"0": "GPU-8f"}), slots.Slots(tmp_path, "gpu", {"GPU-8f": "GPU-8f"})
    with contextlib.closing(first), contextlib.closing(second):
        first.acquire(1, "first", threading.Event())
        assert second.users() == {"GPU-8f": "first"}


def test_a_child_keeps_devices_that_were_acquired_after_it_had_started(tmp_path, environment):
    opened = slots.Slots(tmp_path, "gpu", ZERO)
    child = subprocess.Popen(["sleep", "600"], pass_fds=opened.descriptors, env=environment)
    other = slots.Slots(tmp_path, "gpu", ZERO)
    with contextlib.closing(other):
        try:
            opened.acquire(1, "the child", threading.Event())
            opened._opened.close()  # as when this process is killed: nothing is released
            assert other.users() == {"0": "the child"}
        finally:
            child.kill()
            child.wait()
        assert other.users() == {}


def test_released_devices_are_free_although_a_child_has_inherited_them(tmp_path, environment):
    opened, other = slots.Slots(tmp_path, "gpu", ZERO), slots.Slots(tmp_path, "gpu", ZERO)
    child = subprocess.Popen(["sleep", "600"], pass_fds=opened.descriptors, env=environment)
    with contextlib.closing(opened), contextlib.closing(other):
        try:
            opened.acquire(1, "the stage", threading.Event())
            opened.release()
            assert other.users() == {}
        finally:
            child.kill()
            child.wait()


def test_machines_that_share_a_folder_have_slots_of_their_own(monkeypatch):
    kinds = set()
    for name in ("one", "two"):
        monkeypatch.setattr(socket, "gethostname", lambda name=name: name)
        kinds.add(slots.machine_kind("gpu"))
    assert kinds == {"one.gpu", "two.gpu"}


def test_the_folder_of_locks_is_the_users_own(tmp_path, monkeypatch):
    monkeypatch.setenv("ACTIONZOO_SLOTS", str(tmp_path / "slots"))
    assert slots.machine_folder() == tmp_path / "slots"
    assert (tmp_path / "slots").stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("ACTIONZOO_SLOTS", "")
    assert str(slots.machine_folder()) == f"/tmp/actionzoo-{os.getuid()}"


def test_a_folder_of_locks_that_others_can_change_is_refused(tmp_path, monkeypatch):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("open", "link"):
        monkeypatch.setenv("ACTIONZOO_SLOTS", str(tmp_path / name))
        with pytest.raises(UserError, match="the folder of device locks, can be changed by others"):
            slots.machine_folder()
