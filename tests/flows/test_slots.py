import signal
import subprocess
import sys
import threading

import pytest

from flows import slots
from flows.command import Stopped

HOLD = """
import sys, threading, time
from pathlib import Path
from flows import slots
folder, count, *names = sys.argv[1:]
def on_wait():
    print("waiting", flush=True)

with slots.acquire(Path(folder), "gpu", names, int(count), threading.Event(), on_wait) as acquired:
    print(*acquired.names, flush=True)
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
    with slots.acquire(tmp_path, "gpu", ["0", "1", "2"], 1, threading.Event()) as third:
        assert [first, second, *third.names] == ["0", "1", "2"]


def test_devices_of_a_killed_process_are_free_again(tmp_path, hold):
    holder, names = hold(2, "0", "1")
    assert names == "0 1"
    holder.send_signal(signal.SIGKILL)
    with slots.acquire(tmp_path, "gpu", ["0", "1"], 2, threading.Event()) as acquired:
        assert acquired.names == ["0", "1"]


def test_devices_of_a_killed_flow_stay_taken_while_its_stage_still_goes_down(
    tmp_path, left_running, environment, wait_for
):
    program = f"""
import os, threading
from pathlib import Path
from actionzoo.process import supervisor
from flows import command, slots
supervisor.GRACE_SECONDS = 3.0
never = threading.Event()
words = ["bash", "-c", "trap '' TERM; touch {tmp_path}/begun; while true; do sleep 0.1; done"]
with slots.acquire(Path({str(tmp_path)!r}), "gpu", ["0"], 1, never) as acquired:
    command.run(words, cwd=Path("/"), env=os.environ, on_line=print, stop=never, locks=acquired.locks)
"""
    flow = subprocess.Popen([sys.executable, "-c", program], env=environment)
    wait_for(lambda: (tmp_path / "begun").exists() or flow.poll() is not None)
    assert flow.poll() is None
    flow.kill()
    flow.wait()
    waited = []
    with slots.acquire(tmp_path, "gpu", ["0"], 1, threading.Event(), lambda: waited.extend(left_running(seconds=0))):
        assert left_running(seconds=0) == []
    assert waited


def test_devices_are_free_again_after_an_error_in_their_use(tmp_path):
    with pytest.raises(ZeroDivisionError), slots.acquire(tmp_path, "gpu", ["0"], 1, threading.Event()):
        1 / 0  # noqa: B018  the error is what is wanted
    with slots.acquire(tmp_path, "gpu", ["0"], 1, threading.Event()) as acquired:
        assert acquired.names == ["0"]


def test_kinds_do_not_share_names(tmp_path):
    never = threading.Event()
    with slots.acquire(tmp_path, "gpu", ["0"], 1, never), slots.acquire(tmp_path, "cpu", ["0"], 1, never) as acquired:
        assert acquired.names == ["0"]


def test_who_waits_for_two_devices_is_not_overtaken_by_who_waits_for_one(tmp_path):
    """0 is held; B waits for both; C, later, wants one, and 1 is free: C gets it only after B."""
    order = []
    never = threading.Event()

    def take(name: str, count: int) -> threading.Thread:
        waits = threading.Event()

        def work() -> None:
            with slots.acquire(tmp_path, "gpu", ["0", "1"], count, never, waits.set):
                order.append(name)

        thread = threading.Thread(target=work)
        thread.start()
        assert waits.wait(60)
        return thread

    with slots.acquire(tmp_path, "gpu", ["0"], 1, never):
        b = take("B", 2)
        c = take("C", 1)
    b.join(60)
    c.join(60)
    assert order == ["B", "C"]


def test_a_killed_process_does_not_keep_its_place_in_the_queue(tmp_path, hold):
    never = threading.Event()
    with slots.acquire(tmp_path, "gpu", ["0"], 1, never):
        waiter, printed = hold(2, "0", "1")
        assert printed == "waiting"
        waiter.kill()
        with slots.acquire(tmp_path, "gpu", ["0", "1"], 1, never) as acquired:
            assert acquired.names == ["1"]


def test_who_waits_for_one_device_does_not_hold_up_who_wants_another(tmp_path, hold):
    never = threading.Event()
    with slots.acquire(tmp_path, "gpu", ["0"], 1, never):
        _, printed = hold(1, "0")
        assert printed == "waiting"
        with slots.acquire(tmp_path, "gpu", ["1"], 1, never) as acquired:
            assert acquired.names == ["1"]


def test_stop_ends_the_wait_and_gives_up_the_place(tmp_path):
    never, stop = threading.Event(), threading.Event()
    with slots.acquire(tmp_path, "gpu", ["0"], 1, never):
        with pytest.raises(Stopped), slots.acquire(tmp_path, "gpu", ["0"], 1, stop, stop.set):
            pass
        assert not list(tmp_path.glob("*.ticket"))


def test_gpus_are_those_that_the_environment_names(monkeypatch):
    for value, gpus in {"": [], "-1": [], "2": ["2"], "0, 3": ["0", "3"], "GPU-8f2a": ["GPU-8f2a"]}.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert slots.visible_gpus() == gpus


@pytest.mark.gpu
def test_gpus_are_all_of_the_machine_where_the_environment_names_none(monkeypatch):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert slots.visible_gpus() == [str(number) for number in range(torch.cuda.device_count())]
