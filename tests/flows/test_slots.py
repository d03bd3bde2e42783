import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from flows import slots
from flows.process import Stopped

HOLD = """
import sys, threading, time
from pathlib import Path
from flows import slots
folder, count, *names = sys.argv[1:]
def say_so():
    print("waiting", flush=True)

with slots.take(Path(folder), "gpu", names, int(count), threading.Event(), say_so) as taken:
    print(*taken.names, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def hold(tmp_path):
    """Start a process that takes `count` of `names` and holds them; gives it once it has printed something."""
    started = []

    def start(count: int, *names: str) -> tuple[subprocess.Popen, str]:
        command = [sys.executable, "-c", HOLD, str(tmp_path), str(count), *names]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": ROOT})
        started.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


ROOT = str(Path(__file__).resolve().parents[2])


def test_two_processes_never_hold_the_same_device(tmp_path, hold):
    _, first = hold(1, "0", "1", "2")
    _, second = hold(1, "0", "1", "2")
    with slots.take(tmp_path, "gpu", ["0", "1", "2"], 1, threading.Event()) as third:
        assert [first, second, *third.names] == ["0", "1", "2"]


def test_devices_of_a_killed_process_are_free_again(tmp_path, hold):
    holder, taken = hold(2, "0", "1")
    assert taken == "0 1"
    holder.send_signal(signal.SIGKILL)
    with slots.take(tmp_path, "gpu", ["0", "1"], 2, threading.Event()) as taken:
        assert taken.names == ["0", "1"]


def test_devices_of_a_killed_flow_stay_taken_while_its_stage_still_goes_down(tmp_path, left_running, environment):
    program = f"""
import os, threading
from pathlib import Path
from flows import process, slots
process.GRACE_SECONDS = 1.0
never = threading.Event()
command = ["bash", "-c", "trap '' TERM; touch {tmp_path}/begun; while true; do sleep 0.1; done"]
with slots.take(Path({str(tmp_path)!r}), "gpu", ["0"], 1, never) as taken:
    process.run(command, cwd=Path("/"), env=os.environ, say=print, stop=never, locks=taken.locks)
"""
    flow = subprocess.Popen([sys.executable, "-c", program], env=environment)
    while not (tmp_path / "begun").exists():
        assert flow.poll() is None
        time.sleep(0.05)
    flow.kill()
    flow.wait()
    waited = []
    with slots.take(tmp_path, "gpu", ["0"], 1, threading.Event(), lambda: waited.extend(left_running(seconds=0))):
        assert left_running(seconds=0) == []
    assert waited


def test_devices_are_free_again_after_an_error_in_their_use(tmp_path):
    with pytest.raises(ZeroDivisionError), slots.take(tmp_path, "gpu", ["0"], 1, threading.Event()):
        1 / 0  # noqa: B018  the error is what is wanted
    with slots.take(tmp_path, "gpu", ["0"], 1, threading.Event()) as taken:
        assert taken.names == ["0"]


def test_kinds_do_not_share_names(tmp_path):
    never = threading.Event()
    with slots.take(tmp_path, "gpu", ["0"], 1, never), slots.take(tmp_path, "cpu", ["0"], 1, never) as taken:
        assert taken.names == ["0"]


def test_who_waits_for_two_devices_is_not_overtaken_by_who_waits_for_one(tmp_path):
    """0 is held; B waits for both; C, later, wants one, and 1 is free: C gets it only after B."""
    order = []
    never = threading.Event()

    def take(name: str, count: int) -> threading.Thread:
        waits = threading.Event()

        def work() -> None:
            with slots.take(tmp_path, "gpu", ["0", "1"], count, never, waits.set):
                order.append(name)

        thread = threading.Thread(target=work)
        thread.start()
        assert waits.wait(10)
        return thread

    with slots.take(tmp_path, "gpu", ["0"], 1, never):
        b = take("B", 2)
        c = take("C", 1)
    b.join(10)
    c.join(10)
    assert order == ["B", "C"]


def test_a_killed_process_does_not_keep_its_place_in_the_queue(tmp_path, hold):
    never = threading.Event()
    with slots.take(tmp_path, "gpu", ["0"], 1, never):
        waiter, said = hold(2, "0", "1")
        assert said == "waiting"
        waiter.kill()
        with slots.take(tmp_path, "gpu", ["0", "1"], 1, never) as taken:
            assert taken.names == ["1"]


def test_who_waits_for_one_device_does_not_hold_up_who_wants_another(tmp_path, hold):
    never = threading.Event()
    with slots.take(tmp_path, "gpu", ["0"], 1, never):
        _, said = hold(1, "0")
        assert said == "waiting"
        with slots.take(tmp_path, "gpu", ["1"], 1, never) as taken:
            assert taken.names == ["1"]


def test_stop_ends_the_wait_and_gives_up_the_place(tmp_path):
    never, stop = threading.Event(), threading.Event()
    with slots.take(tmp_path, "gpu", ["0"], 1, never):
        with pytest.raises(Stopped), slots.take(tmp_path, "gpu", ["0"], 1, stop, stop.set):
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
