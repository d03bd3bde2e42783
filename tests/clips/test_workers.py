"""The pool, with work that really hangs, crashes and is killed."""

import ctypes
import errno
import faulthandler
import gc
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from actionzoo.clips.workers import Lost, Pool
from actionzoo.errors import MachineFault

SLOT_BYTES = 1000


def fill(task, slot):
    """Fills the slot with the task's number; a task (number, seconds) takes that long."""
    number, seconds = task if isinstance(task, tuple) else (task, 0)
    time.sleep(seconds)
    slot[:] = number % 256
    return number * 10


def make_pool(work=fill, workers=2, slots=4, timeout_seconds=30):
    return Pool(work, workers=workers, slots=slots, slot_bytes=SLOT_BYTES, timeout_seconds=timeout_seconds)


@pytest.fixture
def pools():
    """Pools made through it are closed, and leave nobody behind."""
    made = []

    def make(*args, **kwargs):
        made.append(make_pool(*args, **kwargs))
        return made[-1]

    yield make
    for pool in made:
        pool.close()
    assert multiprocessing.active_children() == []


def answers(pool, tasks):
    return [answer for _, answer, _ in pool.run(tasks)]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_the_order_of_the_tasks_with_their_slots(pools, workers):
    tasks = [(number, 0.02 if number % 5 == 0 else 0) for number in range(40)]
    seen = []
    for task, answer, slot in pools(workers=workers).run(tasks):
        assert (slot == task[0]).all() and len(slot) == SLOT_BYTES
        seen.append((task, answer))
    assert seen == [(task, task[0] * 10) for task in tasks]


def hang_at_3(task, slot):
    if task == 3:
        ctypes.PyDLL(None).sleep(3600)  # in C, with Python's lock held: no signal handler, no thread gets through
    return fill(task, slot)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_task_that_hangs_for_ever_is_lost_and_no_other(pools, workers):
    began = time.monotonic()
    got = answers(pools(hang_at_3, workers, timeout_seconds=1), range(12))
    assert got[3] == Lost("took longer than 1 s")
    assert [answer for number, answer in enumerate(got) if number != 3] == [n * 10 for n in range(12) if n != 3]
    assert time.monotonic() - began < 20


def die_at_3(task, slot):
    if task == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if task == 5:
        faulthandler.disable()  # pytest's, whose many lines would look like a failure of ours
        ctypes.string_at(0)  # a segmentation fault
    return fill(task, slot)


@pytest.mark.parametrize("workers", [1, 2])
def test_tasks_that_kill_their_process_are_lost_and_no_other(pools, workers):
    got = answers(pools(die_at_3, workers), range(12))
    assert got[3] == Lost("its process died twice, killed from outside: did the memory run out?")
    assert got[5] == Lost("its process died twice, of SIGSEGV")
    assert [got[number] for number in (0, 1, 2, 4, 6, 7, 8, 9, 10, 11)] == [0, 10, 20, 40, 60, 70, 80, 90, 100, 110]


def test_a_task_whose_process_is_killed_once_is_done_all_the_same(pools, tmp_path):
    def work(task, slot):
        with (tmp_path / "tries").open("a") as file:
            file.write(f"{task}\n")
        if task == 2 and (tmp_path / "tries").read_text().split().count("2") == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return fill(task, slot)

    assert answers(pools(work, workers=1), range(5)) == [0, 10, 20, 30, 40]
    assert (tmp_path / "tries").read_text().split() == ["0", "1", "2", "2", "3", "4"]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("fault", ["killed", "too slow"])
def test_a_task_that_fails_beside_others_is_tried_again_while_no_other_is_worked_at(pools, tmp_path, workers, fault):
    """Memory and cores may have been short through the neighbours."""

    def work(task, slot):
        busy = tmp_path / f"busy-{os.getpid()}"
        busy.touch()
        if task == 2:
            is_first = not (tmp_path / "tried").exists()
            (tmp_path / "tried").touch()
            if is_first:
                busy.unlink()
                os.kill(os.getpid(), signal.SIGKILL) if fault == "killed" else time.sleep(3600)
            (tmp_path / "beside").write_text(str(len(list(tmp_path.glob("busy-*"))) - 1))
        else:
            time.sleep(0.05)
        answer = fill(task, slot)
        busy.unlink()
        return answer

    pool = pools(work, workers, slots=9, timeout_seconds=5)  # a busy machine needs a while to begin
    assert answers(pool, range(20)) == [number * 10 for number in range(20)]
    assert (tmp_path / "beside").read_text() == "0"


def test_a_run_that_is_broken_off_during_a_retry_loses_no_slot(pools):
    pool = pools(die_at_3, workers=2, slots=6)
    for _ in range(5):
        assert [answer for _, answer, _ in itertools.islice(pool.run(range(12)), 3)] == [0, 10, 20]
    assert answers(pool, range(20, 40)) == [number * 10 for number in range(20, 40)]


def lack_memory_at_3(task, slot):
    if task == 3:
        raise MemoryError
    return fill(task, slot)


def find_the_disk_failing_at_3(task, slot):
    if task == 3:
        raise OSError(errno.EIO, "Input/output error", "film.mp4")
    return fill(task, slot)


@pytest.mark.parametrize(
    ("work", "message"),
    [(lack_memory_at_3, "no memory left"), (find_the_disk_failing_at_3, "Input/output error: 'film.mp4'")],
)
def test_faults_of_the_machine_are_raised_as_such(pools, work, message):
    results, pool = [], pools(work)
    with pytest.raises(MachineFault, match=message):
        results.extend(answer for _, answer, _ in pool.run(range(9)))
    assert results == [0, 10, 20]
    assert answers(pool, range(4, 9)) == [40, 50, 60, 70, 80]


def test_workers_that_die_while_nobody_waits_for_them_are_replaced(pools):
    pool = pools()
    assert answers(pool, range(4)) == [0, 10, 20, 30]
    for process in multiprocessing.active_children():
        os.kill(process.pid, signal.SIGKILL)
    assert answers(pool, range(4)) == [0, 10, 20, 30]


def test_time_while_the_caller_is_busy_elsewhere_does_not_count_against_a_task(pools):
    results = pools(timeout_seconds=0.5).run(range(12))
    for number in range(12):
        assert next(results)[1] == number * 10
        if number % 4 == 0:
            time.sleep(0.7)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_may_be_broken_off_at_any_place(pools, workers):
    pool = pools(workers=workers)
    for stop in range(9):
        for number, (task, answer, slot) in enumerate(pool.run((n, 0.002) for n in range(100, 140))):
            assert (task[0], answer) == (100 + number, 1000 + 10 * number) and (slot == 100 + number).all()
            if number == stop:
                break
    assert answers(pool, range(8)) == [n * 10 for n in range(8)]


def test_tasks_that_nobody_waits_for_any_more_are_passed_over(pools, tmp_path):
    def work(task, slot):
        time.sleep(0.05)
        with (tmp_path / "done").open("a") as file:
            file.write(f"{task}\n")

    pool = pools(work, workers=1, slots=20)
    next(pool.run(range(20)))
    assert answers(pool, [77]) == [None]
    done = (tmp_path / "done").read_text().split()
    assert len(done) <= 3 and done[-1] == "77"


def test_one_run_at_a_time(pools):
    pool = pools()
    first = pool.run(range(9))
    next(first)
    assert answers(pool, range(3)) == [0, 10, 20]
    with pytest.raises(RuntimeError, match="another run"):
        next(first)
    assert answers(pool, range(3)) == [0, 10, 20]


def fail_at_3(task, slot):
    return fill(task, slot) / (task - 3)


def test_a_mistake_in_the_work_is_raised_with_its_place(pools):
    with pytest.raises(RuntimeError, match=r"failed at 3:\n(.*\n)+.*in fail_at_3(.*\n)+ZeroDivisionError"):
        answers(pools(fail_at_3), range(9))


def mappings() -> int:
    return Path("/proc/self/maps").read_text().count("/dev/zero (deleted)")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_a_forgotten_pool_leaves_no_process_and_no_memory():
    before, files = mappings(), set(os.listdir("/dev/shm"))
    pool = make_pool()
    results = pool.run(range(20))
    next(results)
    pids = [process.pid for process in multiprocessing.active_children()]
    assert len(pids) == 2 and mappings() == before + 1 and set(os.listdir("/dev/shm")) == files
    del pool, results
    gc.collect()
    assert mappings() == before
    for pid in pids:
        with pytest.raises(ProcessLookupError):  # not even as a zombie
            os.kill(pid, 0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the kernel is not asked to end children")
def test_workers_die_with_their_parent_even_those_that_hang():
    code = """
        import multiprocessing, sys
        from tests.clips.test_workers import hang_at_3, make_pool
        pools = [make_pool(hang_at_3, workers=2, timeout_seconds=1000) for _ in range(2)]
        for pool in pools:
            results = pool.run(range(3 if pool is pools[0] else 9))
            [next(results) for _ in range(3)]
        print(*[process.pid for process in multiprocessing.active_children()], flush=True)
        next(results)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 4 and all(is_running(pid) for pid in pids)
    time.sleep(0.5)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    limit = time.monotonic() + 10
    while any(is_running(pid) for pid in pids) and time.monotonic() < limit:
        time.sleep(0.05)
    assert [pid for pid in pids if is_running(pid)] == []


def is_running(pid: int) -> bool:
    """An orphan that nobody reaps is a zombie here, and is over all the same."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_slots_are_shared_and_not_sent():
    """A task's answer is a few bytes however large its slot is."""
    pool = Pool(lambda task, slot: slot.fill(task), workers=1, slots=2, slot_bytes=2**24, timeout_seconds=30)
    for task, answer, slot in pool.run(range(6)):
        assert answer is None and slot.nbytes == 2**24 and (slot[:: 2**16] == task).all()
        assert isinstance(slot, np.ndarray) and slot.base is not None
    pool.close()
