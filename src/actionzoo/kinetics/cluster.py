"""Parts on many machines: the only module that talks to Dask.

    stage --- scheduler --- worker    one part at a time, as many clips at once as the worker has threads
                        `-- worker    the same

Archives, shards and scratch are on storage that all machines see under the same paths; over the network go only the
order to make a part, and its record. A part is made in its own scratch folder and published by renaming. A worker that
the scheduler gave up but that is still alive does no harm: it makes the same bytes, or finds that the run is over.
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
import logging
import os
import shutil
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from ..errors import UserError
from .transcode import ffmpeg_version

_log = logging.getLogger(__name__)

CONNECT_SECONDS = 20.0
WORKERS_SECONDS = 300.0
"""How long a run waits while the scheduler has no worker: at its start, or after all were lost."""
ATTEMPTS = 3
"""Attempts to make a part before its error counts. Errors may be passing: a worker that is shut down kills its ffmpeg,
and shared storage fails at times."""

Part = TypeVar("Part")
Result = TypeVar("Result")
Made = Generator[tuple[str, Result | UserError], None, None]
"""(name of a part, its result or the error that kept it from being made)."""


def made_by_workers(
    scheduler: str, make: Callable[..., Result], parts: Mapping[str, Part], scratch: Path
) -> Made[Result]:
    """Make the parts on a scheduler's workers; yields (name, result of `make`) in the order in which they are finished.

    A worker calls `make(part, scratch=, jobs=, on_progress=)` with an empty folder, its own number of threads, and a
    function that `make` must call now and then; it raises once the run is over. `make` and the parts are pickled, and
    paths in them are absolute. The part of a lost worker goes to another one. A part that failed has the UserError in
    place of its result.

    Raises UserError if there is no such scheduler, if it has no workers, or if a worker is unfit: without this program,
    with another ffmpeg, or without the folder `scratch`. If the caller leaves early, by Ctrl-C too, the parts are
    cancelled.
    """
    run = _Run(scratch.absolute() / uuid.uuid4().hex, _versions())
    run.folder.mkdir(parents=True)
    run.token.touch()
    try:
        with _sigterm_as_exit(), _client(scheduler) as client:
            yield from _Parts(scheduler, client, functools.partial(_make, make, run), parts).made()
    finally:
        run.token.unlink(missing_ok=True)  # the workers check for it
        shutil.rmtree(run.folder, ignore_errors=True)


@dataclass(frozen=True)
class _Run:
    folder: Path
    versions: dict[str, str]

    @property
    def token(self) -> Path:
        """A file that exists as long as the run."""
        return self.folder / "wanted"


class _UnfitWorker(UserError):
    """A worker that can make no part; the message names the worker and the reason."""


@dataclass
class _Parts(Generic[Part, Result]):
    """The parts of a run, and the workers that make them."""

    scheduler: str
    client: Any
    """A distributed.Client, which has no types."""
    make: Callable[[Part], Result]
    parts: Mapping[str, Part]

    def made(self) -> Made[Result]:
        suspects = []
        for name, result in self._made(list(self.parts), at_once=None):
            if isinstance(result, _LostWorkers):
                suspects.append(name)
            else:
                yield name, result
        # Every part that was on a worker when it died is suspected. Run alone, only the one that kills workers is.
        for name, result in self._made(suspects, at_once=1):
            yield name, UserError(f"{name}: {result}") if isinstance(result, _LostWorkers) else result

    def _made(
        self, names: list[str], at_once: int | None
    ) -> Generator[tuple[str, "Result | UserError | _LostWorkers"], None, None]:
        """One part per worker at a time, in the order of `names`; at most `at_once` in all."""
        waiting: list[str] = list(reversed(names))
        running: dict[Any, str] = {}
        known: set[str] = set()
        last_seen = time.monotonic()
        try:
            while waiting or running:
                workers = self._workers(running)
                for gone in known - set(workers):
                    _log.warning("the worker %s is gone; if it had a part, another takes it", gone)
                self._check(set(workers) - known)
                known = set(workers)
                if workers:
                    last_seen = time.monotonic()
                elif time.monotonic() - last_seen > WORKERS_SECONDS:
                    raise UserError(
                        f"the Dask scheduler at {self.scheduler} has had no worker for {WORKERS_SECONDS:g} s; start "
                        f"some, as in `dask worker {self.scheduler}`, and run again: what is finished stays"
                    )
                free = [worker for worker, keys in workers.items() if not keys]
                while waiting and free and (at_once is None or len(running) < at_once):
                    name = waiting.pop()
                    running[self._submit(name, free.pop(0))] = name
                for future in self._finished(list(running)):
                    yield running.pop(future), self._result(future)
        finally:
            if running:
                with contextlib.suppress(Exception):  # the scheduler itself may be lost
                    self.client.cancel(list(running), force=True)

    def _workers(self, running: Mapping[Any, str]) -> dict[str, set[str]]:
        """Address of each worker -> keys of our parts on it."""
        ours = {future.key for future in running}
        try:
            return {worker: ours & set(keys) for worker, keys in self.client.processing().items()}
        except OSError as error:
            raise self._lost(error) from None

    def _check(self, new: set[str]) -> None:
        """Raises UserError for a new worker that lacks this program: a part would kill it, and only its log say why."""
        if not new:
            return
        try:
            found = self.client.run(importlib.util.find_spec, __name__, workers=list(new), on_error="return")
        except OSError as error:
            raise self._lost(error) from None
        for worker, spec in found.items():
            if spec is None or isinstance(spec, ImportError):
                raise self._without_program(f"the worker {worker}")

    def _submit(self, name: str, worker: str) -> Any:
        """The part's Future. Dask would choose by threads and pile up parts on few workers; a part uses all threads."""
        return self.client.submit(
            self.make,
            self.parts[name],
            key=f"{name}-{uuid.uuid4().hex}",
            workers=[worker],
            allow_other_workers=True,
            retries=ATTEMPTS - 1,
            pure=False,
        )

    def _finished(self, futures: list[Any]) -> list[Any]:
        """The futures that are done; waits for a second at most."""
        distributed = _distributed()

        if not futures:
            time.sleep(0.2)
            return []
        # Dask cancels when the scheduler is lost; the future's status says the same
        with self.client.as_current(), contextlib.suppress(TimeoutError, distributed.CancelledError):
            distributed.wait(futures, timeout=1, return_when="FIRST_COMPLETED")
        return [future for future in futures if future.done()]

    def _result(self, future: Any) -> "Result | UserError | _LostWorkers":
        """A part's result or its own error. Raises the errors that concern the whole run."""
        distributed = _distributed()

        if future.status == "finished":
            result: Result = future.result()
            return result
        if future.status != "error":  # cancelled, lost
            raise self._lost("the connection broke")
        error = future.exception()
        if isinstance(error, distributed.KilledWorker):
            return _LostWorkers(error)
        if isinstance(error, UserError) and not isinstance(error, _UnfitWorker):
            return error
        if "deserialization of the task graph" in str(error):
            raise self._without_program(f"the Dask scheduler at {self.scheduler}")
        raise error

    def _without_program(self, who: str) -> UserError:
        return UserError(
            f"{who} does not find {__name__}; install the same environment on all machines, the scheduler's too, and "
            "start it again"
        )

    def _lost(self, reason: object) -> UserError:
        return UserError(
            f"the Dask scheduler at {self.scheduler} is lost ({reason}); start it and its workers, and run again: what "
            "is finished stays"
        )


class _LostWorkers(Exception):
    """Too many workers died while they made a part; the message is for the user."""

    def __init__(self, error: Any) -> None:
        super().__init__(
            f"every worker that took it was lost, again when nothing else was running, the last of them "
            f"{error.last_worker.address}; see that worker's log. Perhaps a clip needs more memory than a worker has"
        )


def _make(make: Callable[..., Result], run: _Run, part: Part) -> Result:
    """Make a part. Runs on a worker."""
    worker = _distributed().get_worker()
    if run.versions != (here := _versions()):
        theirs, ours = (", ".join(f"{name} {version}" for name, version in of.items()) for of in (here, run.versions))
        raise _UnfitWorker(f"the worker {worker.address} has {theirs}, and this machine {ours}; make them the same")
    scratch = run.folder / f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex}"

    def check_run(*_: object) -> None:
        if not run.token.exists():
            raise _UnfitWorker(f"{run.folder} is gone: the run that wanted this part is over")

    try:
        check_run()
        scratch.mkdir()
    except (OSError, UserError):
        raise _UnfitWorker(
            f"the worker {worker.address} on {socket.gethostname()} does not see {run.folder}; the project's folder "
            "must lie on storage that all machines share, under the same path, and be writable there"
        ) from None
    try:
        return make(part, scratch=scratch, jobs=worker.state.nthreads, on_progress=check_run)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        with contextlib.suppress(OSError):
            run.folder.rmdir()  # empty if the run ended while this worker was busy


@functools.cache
def _versions() -> dict[str, str]:
    """Versions of the programs that a part's bytes depend on."""
    return {"actionzoo": importlib.metadata.version("actionzoo"), "ffmpeg": ffmpeg_version()}


def _distributed() -> Any:
    """The package, imported late. Its functions have no types."""
    import distributed

    module: Any = distributed
    return module


@contextlib.contextmanager
def _client(scheduler: str) -> Iterator[Any]:
    distributed = _distributed()
    try:
        client = distributed.Client(
            scheduler, name="actionzoo", timeout=CONNECT_SECONDS, set_as_default=False, direct_to_workers=False
        )
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"no Dask scheduler answers at {scheduler} ({error}); start one with `dask scheduler`, and give the "
            "address that it prints, as in tcp://10.0.0.1:8786"
        ) from None
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # errors are raised here, in our words
    try:
        yield client
    finally:
        client.close(timeout=5)


@contextlib.contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """SIGTERM ends the block with SystemExit, so that the parts are cancelled as by Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
