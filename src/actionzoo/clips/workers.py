"""A pool of worker processes for tasks that may hang or kill their process.

    parent  -- a task and a slot -->  worker      through a pipe, a few bytes
    parent  <--- its answer --------  worker
               the slots                          shared memory: a worker writes where the parent reads

The parent enforces the time limit: it kills a worker that exceeds it. The task of a worker that was killed or died is
retried once while no other worker is busy, because the others may have used up memory or cores. If it fails again, the
task is lost; other tasks are not affected. Results come in the order of the tasks.
"""

import contextlib
import ctypes
import dataclasses
import gc
import mmap
import multiprocessing
import os
import signal
import sys
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing import connection
from typing import Any

import numpy as np

from ..errors import MachineFault, machine_fault
from ..process.supervisor import die_with_parent

Work = Callable[[Any, np.ndarray], Any]
"""(task, slot) -> answer."""


@dataclasses.dataclass(frozen=True)
class Lost:
    """Instead of an answer: the task was given up."""

    reason: str


class Pool:
    """`workers` processes that call `work(task, slot)`, where slot is a (slot_bytes,) uint8 array to write into.

    Tasks and answers are pickled and should be small. `slots` bounds the tasks in flight: waiting, at work, or done
    and not yet yielded. `workers=0` does the work in the calling process: no isolation, no timeout. Processes start
    with the first run and end with `close`, or with the parent, however it ends. A MachineFault in `work` is raised in
    the parent; any other exception is a bug, and is raised there as RuntimeError with the worker's traceback.
    """

    def __init__(
        self,
        work: Work,
        *,
        workers: int,
        slots: int,
        slot_bytes: int,
        timeout_seconds: float,
    ):
        self._timeout_seconds = timeout_seconds
        self._work, self._num_workers = work, workers
        self._shared = _Shared(workers, slots if workers else 1, slot_bytes)
        self._free = list(range(slots))
        self._workers: list[_Worker] = []
        self._jobs: deque[_Job] = deque()
        """Of the current run, in order: handed to a worker, and not yet yielded."""
        self._held: deque[_Job] = deque()
        """Taken back from a worker that died; to be given to others."""
        self._retries: deque[_Job] = deque()
        """Failed once; to be tried while all other workers are idle."""
        self._alone: _Job | None = None
        """The retry in progress."""
        self._num_jobs = 0
        self._end = weakref.finalize(self, _end_all, self._workers, os.getpid())

    def run(self, tasks: Iterable[Any]) -> Generator[tuple[Any, Any | Lost, np.ndarray], None, None]:
        """(task, answer or Lost, slot) for each task, in their order. A slot is valid until the next one is requested.

        Tasks are consumed ahead of the answers. The generator may be closed at any time; a new run ends the one before.
        """
        if not self._num_workers:
            for task in tasks:
                yield task, self._work(task, self._shared.slots[0]), self._shared.slots[0]
            return
        if not self._workers:
            self._workers += [_Worker(index, self._work, self._shared) for index in range(self._num_workers)]
        self._abandon()
        jobs, tasks = self._jobs, iter(tasks)
        try:
            while True:
                is_all = self._hand_out(tasks)
                if not jobs and is_all:
                    return
                if not jobs or jobs[0].answer is _NONE:  # no jobs yet: those of the run before hold all slots
                    self._wait()
                    continue
                job = jobs[0]
                if isinstance(job.answer, _Fault):
                    raise MachineFault(job.answer.reason)
                if isinstance(job.answer, _Failure):
                    raise RuntimeError(f"a worker failed at {job.task}:\n{job.answer.traceback}")
                yield job.task, job.answer, self._shared.slots[job.slot]
                if self._jobs is not jobs:
                    raise RuntimeError("another run of this pool has begun")
                self._free.append(jobs.popleft().slot)
        finally:
            if self._jobs is jobs:
                self._abandon()

    def close(self) -> None:
        """Kill the processes."""
        self._end()

    def _hand_out(self, tasks: Iterator[Any]) -> bool:
        """Make a job for each free slot and give it to the worker with the fewest jobs. True if no task is left."""
        self._give_again()
        while self._free and not self._retries and not self._alone:
            try:
                task = next(tasks)
            except StopIteration:
                return True
            self._num_jobs += 1
            job = _Job(self._num_jobs, int(self._shared.run[0]), task, self._free.pop())
            self._jobs.append(job)
            self._give(job)
        return False

    def _give_again(self) -> None:
        """Start a retry if all workers are idle; without retries, hand out the jobs that were taken back."""
        if self._retries and not self._alone and not any(worker.jobs for worker in self._workers):
            self._alone = self._retries.popleft()
            self._give(self._alone)
        while self._held and not self._retries and not self._alone:
            self._give(self._held.popleft())

    def _give(self, job: "_Job") -> None:
        min(self._workers, key=lambda worker: len(worker.jobs)).give(job)

    def _abandon(self) -> None:
        """Drop the rest of a run; workers skip its jobs that they have not begun."""
        for job in (*self._retries, *self._held):  # no worker will answer
            job.answer = None
        self._retries.clear()
        self._held.clear()
        self._alone = None
        for job in self._jobs:
            job.is_wanted = False
            if job.answer is not _NONE:
                self._free.append(job.slot)
        self._jobs = deque()
        self._shared.run[0] += 1

    def _wait(self) -> None:
        """Wait until a worker answers, dies or exceeds the time limit, and handle it."""
        busy: dict[Any, _Worker] = {worker.pipe: worker for worker in self._workers if worker.jobs}
        limit = min(worker.began() for worker in busy.values()) + self._timeout_seconds
        for pipe in connection.wait(list(busy), max(0.0, limit - time.monotonic())):
            if not self._receive(busy.pop(pipe)):
                return
        for worker in busy.values():
            if time.monotonic() - worker.began() > self._timeout_seconds and not worker.pipe.poll():
                worker.kill()
                worker.reap()
                self._fail(worker, f"took longer than {self._timeout_seconds:g} s")

    def _receive(self, worker: "_Worker") -> bool:
        """Take all answers of a worker. False if it has died and was replaced."""
        try:
            while worker.pipe.poll():
                number, answer = worker.pipe.recv()
                job = worker.jobs.popleft()
                assert job.number == number, (job.number, number)
                self._finish(job, answer)
                if worker.jobs:
                    worker.jobs[0].waits_since = time.monotonic()
            return True
        except (EOFError, OSError):
            why = worker.reap()
            self._fail(worker, f"its process died twice, {why}")
            return False

    def _fail(self, worker: "_Worker", reason: str) -> None:
        """Replace a worker that died. The job it was working on is retried, or lost for the `reason`."""
        jobs = list(worker.jobs)
        self._shared.number[worker.index] = 0  # else a retry would seem to have begun with the first try
        self._workers[worker.index] = _Worker(worker.index, self._work, self._shared)
        if jobs:
            job = jobs.pop(0)
            job.tries += 1
            if job.tries > 1 or not job.is_wanted:
                self._finish(job, Lost(reason))
            else:
                self._retries.append(job)
        for job in jobs:
            if job.is_wanted:
                self._held.append(job)
            else:
                self._finish(job, None)
        self._give_again()

    def _finish(self, job: "_Job", answer: Any) -> None:
        job.answer = answer
        if job is self._alone:
            self._alone = None
        if not job.is_wanted:
            self._free.append(job.slot)


def keep_memory() -> None:
    """Let the C library keep memory that this process frees. Every clip needs the same megabytes, and getting them from
    the system again takes up to a third of a clip's time."""
    if sys.platform.startswith("linux"):
        trim_threshold, mmap_threshold = -1, -3
        with contextlib.suppress(AttributeError):  # only GNU's C library has mallopt
            ctypes.CDLL(None).mallopt(mmap_threshold, 32 * 2**20)
            ctypes.CDLL(None).mallopt(trim_threshold, 256 * 2**20)


_NONE = object()
_FORK = multiprocessing.get_context("fork")  # workers share the list of clips without a copy
# The parent's ends of all pipes: a worker closes its copies, so that a pipe ends with the parent
_parent_ends: "weakref.WeakSet[connection.Connection]" = weakref.WeakSet()


@dataclasses.dataclass(frozen=True)
class _Failure:
    traceback: str


@dataclasses.dataclass(frozen=True)
class _Fault:
    """The machine failed, not the work on this task."""

    reason: str


@dataclasses.dataclass
class _Job:
    number: int
    """Number among the pool's jobs, from 1."""
    run: int
    task: Any
    slot: int
    answer: Any = _NONE
    is_wanted: bool = True
    tries: int = 0
    """How often its worker died or exceeded the time limit."""
    waits_since: float = 0.0
    """When the parent saw it become its worker's next job; time.monotonic()."""


class _Shared:
    """One anonymous mapping, made before the processes. It has no name, so nothing is left behind."""

    def __init__(self, workers: int, slots: int, slot_bytes: int):
        head = 8 * (1 + 2 * workers)
        # pages that are never written take no memory
        memory = mmap.mmap(-1, head + slots * slot_bytes)
        self.run = np.frombuffer(memory, np.int64, 1)
        """(1,) int64: number of the current run."""
        self.number = np.frombuffer(memory, np.int64, workers, offset=8)
        """(workers,) int64: the job that each worker is working on,"""
        self.began = np.frombuffer(memory, np.float64, workers, offset=8 * (1 + workers))
        """(workers,) float64: and since when; time.monotonic(), whose clock all processes share."""
        self.slots = np.frombuffer(memory, np.uint8, slots * slot_bytes, offset=head).reshape(slots, slot_bytes)


class _Worker:
    """A worker process, as the parent sees it."""

    def __init__(self, index: int, work: Work, shared: _Shared):
        self.index, self._shared = index, shared
        self.jobs: deque[_Job] = deque()
        """Given to it and not answered; it works on the first."""
        self.pipe, theirs = _FORK.Pipe()
        _parent_ends.add(self.pipe)
        self._process = _FORK.Process(
            target=_serve, args=(index, work, shared, theirs, os.getpid()), name=f"clips-{index}", daemon=True
        )
        self._process.start()
        theirs.close()

    def give(self, job: _Job) -> None:
        job.waits_since = time.monotonic()
        self.jobs.append(job)
        with contextlib.suppress(OSError):  # a dead worker is noticed while waiting for its answer
            self.pipe.send((job.number, job.run, job.task, job.slot))

    def began(self) -> float:
        """When it began its current job; time.monotonic()."""
        job = self.jobs[0]
        is_begun = self._shared.number[self.index] == job.number
        return float(self._shared.began[self.index]) if is_begun else job.waits_since

    def kill(self) -> None:
        self._process.kill()

    def reap(self) -> str:
        """Reap the process, which is dead or dying; returns a clause on what it died of. Its jobs stay listed."""
        self._process.join(1)
        self._process.kill()
        self._process.join(5)  # the kernel may keep it while a disk does not answer; it does not run any more
        self.pipe.close()
        code = self._process.exitcode
        if code is None:
            return "and the kernel holds it"
        if code == -signal.SIGKILL:
            return "killed from outside: did the memory run out?"
        return f"of {signal.Signals(-code).name}" if code < 0 else f"with status {code}"


def _end_all(workers: list[_Worker], owner: int) -> None:
    if os.getpid() != owner:  # a fork of the parent does not own the workers
        return
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.reap()
    workers.clear()


def _serve(index: int, work: Work, shared: _Shared, pipe: connection.Connection, parent: int) -> None:
    """The main function of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # ends the process even inside a decoder
    die_with_parent()
    if os.getppid() != parent:
        return
    for end in list(_parent_ends):
        end.close()
    gc.freeze()  # the garbage collector leaves the parent's objects, and so their shared pages, alone
    keep_memory()
    with contextlib.suppress(EOFError, OSError):
        while True:
            number, run, task, slot = pipe.recv()
            shared.began[index] = time.monotonic()
            shared.number[index] = number
            answer = None
            if run == shared.run[0]:
                try:
                    answer = work(task, shared.slots[slot])
                except Exception as error:
                    fault = machine_fault(error)
                    answer = _Fault(str(fault)) if fault else _Failure(traceback.format_exc())
            pipe.send((number, answer))
