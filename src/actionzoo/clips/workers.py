"""Work that may hang or kill its process, done by processes that can be spared.

    parent  -- a task and a slot -->  worker      through a pipe, a few words
    parent  <--- its answer --------  worker
               the slots                          shared memory: what a worker makes lies where the parent reads it

The parent keeps the time. A worker that is over it is killed. Its task, or that of a worker that died, is tried once
more while no other worker works: memory and cores may have been short through the neighbours. If it fails again, the
task is lost. Other tasks know nothing of it. Results come in the order of the tasks.
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


@dataclasses.dataclass(frozen=True)
class Lost:
    """In the place of an answer: the task was given up."""

    reason: str


class Pool:
    """`workers` processes that do `work(task, slot)`, where slot is a (slot_bytes,) uint8 array to write into.

    Tasks and answers are pickled and should be small. `slots` is how many tasks are under way at once, done ones that
    nobody took yet included. With 0 workers the caller does the work: nothing can hang alone then, and there is no
    time limit. Processes start with the first run and last until `close`, or until the parent dies, however it dies.
    MachineFault in `work` is raised in the parent as it is; any other exception is a mistake of ours and is raised
    there with its traceback.
    """

    def __init__(
        self,
        work: Callable[[Any, np.ndarray], Any],
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
        """Of the run that is under way, in order: handed out, and not given to the caller yet."""
        self._held: deque[_Job] = deque()
        """Taken back from a worker that is gone; to be given to others."""
        self._retries: deque[_Job] = deque()
        """Failed once, and to be tried alone."""
        self._alone: _Job | None = None
        """The retry that is under way."""
        self._num_jobs = 0
        self._end = weakref.finalize(self, _end_all, self._workers, os.getpid())

    def run(self, tasks: Iterable) -> Generator[tuple[Any, Any | Lost, np.ndarray], None, None]:
        """(task, answer or Lost, slot) of each task, in their order. The slot is valid until the next one is asked for.

        Tasks are taken ahead of what is given. May be closed at any time; another run ends the one before.
        """
        if not self._num_workers:
            for task in tasks:
                yield task, self._work(task, self._shared.slots[0]), self._shared.slots[0]
            return
        if not self._workers:
            self._workers += [_Worker(place, self._work, self._shared) for place in range(self._num_workers)]
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
        """End the processes, whatever they do."""
        self._end()

    def _hand_out(self, tasks: Iterator) -> bool:
        """Make a job for each free slot and give it to the worker that has the fewest. True if no task is left."""
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
        """Begin a retry when all workers are idle; give what was taken back when there is none."""
        if self._retries and not self._alone and not any(worker.jobs for worker in self._workers):
            self._alone = self._retries.popleft()
            self._give(self._alone)
        while self._held and not self._retries and not self._alone:
            self._give(self._held.popleft())

    def _give(self, job: "_Job") -> None:
        min(self._workers, key=lambda worker: len(worker.jobs)).give(job)

    def _abandon(self) -> None:
        """Nobody wants what is left of a run; workers pass over what they did not begin."""
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
        """Until a worker answers, dies or is over its time; and deal with that."""
        busy = {worker.pipe: worker for worker in self._workers if worker.jobs}
        limit = min(worker.began() for worker in busy.values()) + self._timeout_seconds
        for pipe in connection.wait(list(busy), max(0.0, limit - time.monotonic())):
            if not self._receive(busy.pop(pipe)):
                return
        for worker in busy.values():
            if time.monotonic() - worker.began() > self._timeout_seconds and not worker.pipe.poll():
                worker.kill()
                worker.bury()
                self._fail(worker, f"took longer than {self._timeout_seconds:g} s")

    def _receive(self, worker: "_Worker") -> bool:
        """Take all its answers. False if it has died, and was replaced."""
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
            why = worker.bury()
            self._fail(worker, f"its process died twice, {why}")
            return False

    def _fail(self, worker: "_Worker", reason: str) -> None:
        """Replace a worker that is gone. The job it was at is tried again, or lost for the `reason`."""
        jobs = list(worker.jobs)
        self._shared.number[worker.place] = 0  # a retry in this place has not begun when the first try did
        self._workers[worker.place] = _Worker(worker.place, self._work, self._shared)
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
    """Have the C library keep what this process frees: it asks for the same megabytes with every clip, and the system
    takes up to a third of a clip's time to hand them out anew."""
    if sys.platform.startswith("linux"):
        trim_threshold, mmap_threshold = -1, -3
        with contextlib.suppress(AttributeError):  # other libraries than GNU's know no mallopt
            ctypes.CDLL(None).mallopt(mmap_threshold, 32 * 2**20)
            ctypes.CDLL(None).mallopt(trim_threshold, 256 * 2**20)


_NONE = object()
_FORK = multiprocessing.get_context("fork")  # a worker has the clip list without a copy
# The parent's ends of all pipes: a worker closes its copies, so that the last end goes with the parent
_parent_ends: "weakref.WeakSet[connection.Connection]" = weakref.WeakSet()


@dataclasses.dataclass(frozen=True)
class _Failure:
    traceback: str


@dataclasses.dataclass(frozen=True)
class _Fault:
    """The machine failed, not the work."""

    reason: str


@dataclasses.dataclass
class _Job:
    number: int
    """Counts the pool's jobs."""
    run: int
    task: Any
    slot: int
    answer: Any = _NONE
    is_wanted: bool = True
    tries: int = 0
    """How often its worker died or ran out of time over it."""
    waits_since: float = 0.0
    """When it became its worker's next one, as far as the parent could see; time.monotonic()."""


class _Shared:
    """One anonymous mapping, made before the processes: it has no name that could be left behind."""

    def __init__(self, workers: int, slots: int, slot_bytes: int):
        head = 8 * (1 + 2 * workers)
        # pages that nobody touches cost nothing
        memory = mmap.mmap(-1, head + slots * slot_bytes)
        self.run = np.frombuffer(memory, np.int64, 1)
        """The run that is under way."""
        self.number = np.frombuffer(memory, np.int64, workers, offset=8)
        """What each worker is at: the job's number,"""
        self.began = np.frombuffer(memory, np.float64, workers, offset=8 * (1 + workers))
        """and since when, on the clock of time.monotonic(), which all processes share."""
        self.slots = np.frombuffer(memory, np.uint8, slots * slot_bytes, offset=head).reshape(slots, slot_bytes)


class _Worker:
    """The parent's side of a process."""

    def __init__(self, place: int, work: Callable, shared: _Shared):
        self.place, self._shared = place, shared
        self.jobs: deque[_Job] = deque()
        """Given to it and not answered; it is at the first."""
        self.pipe, theirs = _FORK.Pipe()
        _parent_ends.add(self.pipe)
        self._process = _FORK.Process(
            target=_serve, args=(place, work, shared, theirs, os.getpid()), name=f"clips-{place}", daemon=True
        )
        self._process.start()
        theirs.close()

    def give(self, job: _Job) -> None:
        job.waits_since = time.monotonic()
        self.jobs.append(job)
        with contextlib.suppress(OSError):  # a dead one is noticed when its answer is waited for
            self.pipe.send((job.number, job.run, job.task, job.slot))

    def began(self) -> float:
        """When it began the job it is at."""
        job = self.jobs[0]
        is_begun = self._shared.number[self.place] == job.number
        return float(self._shared.began[self.place]) if is_begun else job.waits_since

    def kill(self) -> None:
        self._process.kill()

    def bury(self) -> str:
        """See the process off, which is dead or dying; gives in a few words what it died of. Its jobs stay listed."""
        self._process.join(1)
        self._process.kill()
        self._process.join(5)  # the kernel may hold it for a disk that does not answer; it runs no more all the same
        self.pipe.close()
        code = self._process.exitcode
        if code is None:
            return "and the kernel holds it"
        if code == -signal.SIGKILL:
            return "killed from outside: did the memory run out?"
        return f"of {signal.Signals(-code).name}" if code < 0 else f"with status {code}"


def _end_all(workers: list[_Worker], owner: int) -> None:
    if os.getpid() != owner:  # a fork of the parent has no say in this
        return
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.bury()
    workers.clear()


def _serve(place: int, work: Callable, shared: _Shared, pipe: connection.Connection, parent: int) -> None:
    """A worker's life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # must work in the midst of a decoder, too
    die_with_parent()
    if os.getppid() != parent:
        return
    for end in list(_parent_ends):
        end.close()
    gc.freeze()  # what the parent made is not ours to collect
    keep_memory()
    with contextlib.suppress(EOFError, OSError):
        while True:
            number, run, task, slot = pipe.recv()
            shared.began[place] = time.monotonic()
            shared.number[place] = number
            answer = None
            if run == shared.run[0]:
                try:
                    answer = work(task, shared.slots[slot])
                except Exception as error:
                    fault = machine_fault(error)
                    answer = _Fault(str(fault)) if fault else _Failure(traceback.format_exc())
            pipe.send((number, answer))
