"""Parts on many machines: the one place that talks to Dask.

    stage --- scheduler --- worker    one part at a time, as many clips at once as the worker has threads
                        `-- worker    the same

Archives, shards and scratch lie on storage that all machines see under the same paths; what travels is the order to
make a part, and its record. A part is made in a scratch folder of its own and published by renaming, so a worker that
was given up but lives on does no harm: it makes the same bytes, or finds that nobody waits for them any more.
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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from .transcode import ffmpeg_version

_log = logging.getLogger(__name__)

CONNECT_SECONDS = 20.0
WORKERS_SECONDS = 300.0
"""How long a run waits while the scheduler has no worker: at its start, or when all were lost."""
ATTEMPTS = 3
"""Of a part that ends in an error: a worker being shut down takes its ffmpeg along, and shared storage has its days."""


def made_by_workers(
    scheduler: str, make: Callable[..., Any], parts: Mapping[str, Any], scratch: Path
) -> Iterator[tuple[str, Any]]:
    """(name, what `make` gave) of every part, in the order in which they are finished.

    On a worker `make(part, scratch=, jobs=, on_progress=)` is called, with an empty folder, the worker's number of
    threads, and a function that it must call now and then: it raises when nobody waits for the part any more. `make`
    and the parts are pickled, and paths in them are absolute. The part of a worker that is lost goes to another. In
    place of the result of a part that failed there is the UserError that says why.

    Raises UserError if there is no such scheduler, it has no workers, or a worker is unfit: without the program, with
    another ffmpeg, or without the folder `scratch`. Left early, by Ctrl-C too, it calls the parts back.
    """
    run = _Run(scratch.absolute() / uuid.uuid4().hex, _versions())
    run.folder.mkdir(parents=True)
    run.token.touch()
    try:
        with _told_to_stop_is_an_exception(), _client(scheduler) as client:
            yield from _Parts(scheduler, client, functools.partial(_make, make, run), parts).made()
    finally:
        run.token.unlink(missing_ok=True)  # it is what the workers look at
        shutil.rmtree(run.folder, ignore_errors=True)


@dataclass(frozen=True)
class _Run:
    folder: Path
    versions: dict[str, str]

    @property
    def token(self) -> Path:
        """A file that is there as long as somebody waits for the parts."""
        return self.folder / "wanted"


class _UnfitWorker(UserError):
    """No part can be made there; the message says why, and names the worker."""


@dataclass
class _Parts:
    """The parts of a run, and where they are."""

    scheduler: str
    client: Any
    make: Callable[[Any], Any]
    parts: Mapping[str, Any]

    def made(self) -> Iterator[tuple[str, Any]]:
        suspects = []
        for name, result in self._made(list(self.parts), at_once=None):
            if isinstance(result, _LostWorkers):
                suspects.append(name)
            else:
                yield name, result
        # Whatever was on a worker when it died is suspected, guilty or not. Alone, only the guilty are.
        for name, result in self._made(suspects, at_once=1):
            yield name, UserError(f"{name}: {result}") if isinstance(result, _LostWorkers) else result

    def _made(self, names: list[str], at_once: int | None) -> Iterator[tuple[str, Any]]:
        """One part per worker at a time, in the order of `names`; no more than `at_once` altogether."""
        waiting, running = list(reversed(names)), {}
        known, last_seen = set(), time.monotonic()
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
                with contextlib.suppress(Exception):  # the scheduler may be what is lost
                    self.client.cancel(list(running), force=True)

    def _workers(self, running: dict) -> dict[str, set[str]]:
        """Address -> keys of those of our parts that are there."""
        ours = {future.key for future in running}
        try:
            return {worker: ours & set(keys) for worker, keys in self.client.processing().items()}
        except OSError as error:
            raise self._lost(error) from None

    def _check(self, new: set[str]) -> None:
        """A part would kill a worker that cannot import what it is to do, and only the worker's log would say why."""
        if not new:
            return
        try:
            found = self.client.run(importlib.util.find_spec, __name__, workers=list(new), on_error="return")
        except OSError as error:
            raise self._lost(error) from None
        for worker, spec in found.items():
            if spec is None or isinstance(spec, ImportError):
                raise self._without_program(f"the worker {worker}")

    def _submit(self, name: str, worker: str):
        # By Dask's own choice the parts would heap up on some workers: it sees threads, of which a part uses all.
        return self.client.submit(
            self.make,
            self.parts[name],
            key=f"{name}-{uuid.uuid4().hex}",
            workers=[worker],
            allow_other_workers=True,
            retries=ATTEMPTS - 1,
            pure=False,
        )

    def _finished(self, futures: list) -> list:
        """Those that are done, after a second at most."""
        from distributed import CancelledError, wait

        if not futures:
            time.sleep(0.2)
            return []
        # cancelled by Dask, when the scheduler is lost: the future says so too
        with self.client.as_current(), contextlib.suppress(TimeoutError, CancelledError):
            wait(futures, timeout=1, return_when="FIRST_COMPLETED")
        return [future for future in futures if future.done()]

    def _result(self, future) -> Any:
        """What came of a part; a part's own misfortunes are given, what concerns the whole run is raised."""
        from distributed import KilledWorker

        if future.status == "finished":
            return future.result()
        if future.status != "error":  # cancelled, lost
            raise self._lost("the connection broke")
        error = future.exception()
        if isinstance(error, KilledWorker):
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
    """Too many workers died with a part; the message is for the user."""

    def __init__(self, error: Any) -> None:
        super().__init__(
            f"every worker that took it was lost, again when nothing else was running, the last of them "
            f"{error.last_worker.address}; see that worker's log. Perhaps a clip needs more memory than a worker has"
        )


def _make(make: Callable[..., Any], run: _Run, part: Any) -> Any:
    """Make a part: this is what runs on a worker."""
    from distributed import get_worker

    worker = get_worker()
    if run.versions != (here := _versions()):
        theirs, ours = (", ".join(f"{name} {version}" for name, version in of.items()) for of in (here, run.versions))
        raise _UnfitWorker(f"the worker {worker.address} has {theirs}, and this machine {ours}; make them the same")
    scratch = run.folder / f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex}"

    def still_wanted(*_) -> None:
        if not run.token.exists():
            raise _UnfitWorker(f"{run.folder} is gone: the run is over that wanted this")

    try:
        still_wanted()
        scratch.mkdir()
    except (OSError, UserError):
        raise _UnfitWorker(
            f"the worker {worker.address} on {socket.gethostname()} does not see {run.folder}; the project's folder "
            "must lie on storage that all machines share, under the same path, and be writable there"
        ) from None
    try:
        return make(part, scratch=scratch, jobs=worker.state.nthreads, on_progress=still_wanted)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        with contextlib.suppress(OSError):
            run.folder.rmdir()  # it is empty if the run was over while we worked on


@functools.cache
def _versions() -> dict[str, str]:
    """What the bytes of a part depend on."""
    return {"actionzoo": importlib.metadata.version("actionzoo"), "ffmpeg": ffmpeg_version()}


@contextlib.contextmanager
def _client(scheduler: str) -> Iterator[Any]:
    import distributed

    try:
        client = distributed.Client(
            scheduler, name="actionzoo", timeout=CONNECT_SECONDS, set_as_default=False, direct_to_workers=False
        )
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"no Dask scheduler answers at {scheduler} ({error}); start one with `dask scheduler`, and give the "
            "address that it prints, as in tcp://10.0.0.1:8786"
        ) from None
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # what is to be said, we say
    try:
        yield client
    finally:
        client.close(timeout=5)


@contextlib.contextmanager
def _told_to_stop_is_an_exception() -> Iterator[None]:
    """SIGTERM ends the block like Ctrl-C does, so that the workers are told."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
