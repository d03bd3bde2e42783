"""Saved states of an unfinished training in DVC's remote, from which another machine goes on with it.

    actionzoo/unfinished/<data set>/<model>/<training>/state-00004-0000120.pth   as in .scratch
                                                       best-00003.pth           best weights up to that state, by epoch

The flow asks for it on machines that share a remote (ACTIONZOO_SHARES_STATES), and runtime.share_minutes says how
often. A state is uploaded by a thread of the first process, whole or not at all; the training does not wait for it, and
a remote that is away only means a warning. A state that comes from the remote is trusted as little as any checkpoint.
"""

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..errors import UserError
from ..files.dvc_remote import RemoteFolder, remote_folder
from ..files.links import link_or_copy
from ..job import Job
from ..records import RunRecord
from .resume import take_state

if TYPE_CHECKING:
    from ..engine.state import State

SHARES = "ACTIONZOO_SHARES_STATES"
"""Environment variable: `1` where another machine may go on with an unfinished training."""

RETRY_SECONDS: Sequence[float] = (5, 20, 60)
"""Before each further attempt to look for states at the start."""

_STATE = re.compile(r"state-\d{5}-\d{7}\.pth")

_LAST_UPLOAD_SECONDS = 3600.0
"""For the state that a stopped training leaves; whoever stopped it ends it earlier than that."""


class SharedStates:
    """The states of one training, in the remote and on this machine."""

    def __init__(self, remote: RemoteFolder, scratch: Path, seconds: float):
        self._remote, self._scratch, self._seconds = remote, scratch, seconds
        self._folder = scratch / "outgoing"
        self._changed = threading.Condition()
        self._waiting: tuple[Path, Path | None] | None = None
        self._uploaded_at = time.monotonic()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._upload_each, name="share-states", daemon=True)
        self._thread.start()

    def take_newest(self, record: RunRecord, on_text: Callable[[str], None]) -> None:
        """Put the newest valid state of the remote into the scratch folder, if it is newer than those there.

        Raises UserError if the remote cannot be read.
        """
        own = max((path.name for path in self._scratch.glob("state-*.pth")), default="")
        names = _patiently(self._remote.names, on_text)
        for name in sorted((name for name in names if _STATE.fullmatch(name) and name > own), reverse=True):
            incoming = self._scratch / "incoming"
            incoming.mkdir(parents=True, exist_ok=True)
            try:
                self._fetch(name, incoming / name, on_text)
                best = self._fetch_best(incoming / name, incoming, names, on_text)
                take_state(incoming / name, self._scratch, record)
            except (UserError, FileNotFoundError) as error:
                on_text(f"warning: not going on from {name} of {self._remote}: {error}")
                continue
            finally:
                for path in incoming.glob("state-*.pth"):
                    path.unlink()
            if best:
                best.replace(self._scratch / "best.pth")
            on_text(f"going on from {name} of {self._remote}, which another machine saved")
            return

    def _fetch(self, name: str, target: Path, on_text: Callable[[str], None]) -> None:
        _patiently(lambda: self._remote.fetch(name, target), on_text)

    def _fetch_best(
        self, state: Path, incoming: Path, names: Sequence[str], on_text: Callable[[str], None]
    ) -> Path | None:
        """The best weights that belong to a state; None if it has none yet. Raises UserError if they are not valid."""
        from ..engine.checkpoint import load_checkpoint

        saved = load_checkpoint(state).get("state")
        epoch = saved.get("best_epoch") if isinstance(saved, dict) else None
        if not isinstance(epoch, int) or epoch < 0:
            raise UserError(f"{state.name} does not say which epoch was the best")
        if epoch == 0:
            return None
        name, path = _best_name(epoch), incoming / "best.pth"
        if name not in names:
            raise UserError(f"{name}, the best weights up to then, is not there")
        self._fetch(name, path, on_text)
        if load_checkpoint(path).get("meta", {}).get("epoch") != epoch:
            raise UserError(f"{name} is not of epoch {epoch}")
        return path

    def offer(self, path: Path, state: "State") -> None:
        """Upload a state that was just saved, with the best weights so far, as soon as it is time to.

        Returns at once. The files are linked, so that they outlive what the training does next; only the newest wait.
        A disk that cannot take the links, a full one for instance, only means a warning.
        """
        try:
            self._line_up(path, state)
        except OSError as error:
            print(f"warning: {path.name} is not shared: {error}; the training goes on", flush=True)

    def _line_up(self, path: Path, state: "State") -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._changed:
            if self._waiting:
                self._waiting[0].unlink(missing_ok=True)
                self._waiting = None
            link = self._folder / path.name
            link_or_copy(path, link)
            best = self._folder / _best_name(state.best_epoch) if state.best_epoch else None
            if best:
                link_or_copy(self._scratch / "best.pth", best)
            for old in self._folder.glob("best-*.pth"):
                if old != best:
                    old.unlink()
            self._waiting = (link, best)
            self._changed.notify()

    def _upload_each(self) -> None:
        while True:
            with self._changed:
                while not self._waiting or not (self._is_stopping or self._is_due()):
                    if self._is_stopping:
                        return
                    left = self._seconds - (time.monotonic() - self._uploaded_at)
                    self._changed.wait(max(0.1, left) if self._waiting else None)
                state, best = self._waiting
                self._waiting = None
            self._uploaded_at = time.monotonic()
            try:
                self._upload(state, best)
            except (UserError, OSError) as error:
                print(f"warning: {state.name} is not shared: {error}; the training goes on", flush=True)
            finally:
                state.unlink(missing_ok=True)

    def _upload(self, state: Path, best: Path | None) -> None:
        """Best weights first: a state in the remote has what belongs to it. Then delete what is older."""
        before = self._remote.names()
        if best and best.name not in before:
            self._remote.put(best, best.name)
        self._remote.put(state, state.name)
        kept = {state.name} | ({best.name} if best else set())
        self._remote.delete([name for name in before if name not in kept and name < max(kept)])
        print(f"shared {state.name} in {self._remote}", flush=True)

    def _is_due(self) -> bool:
        return time.monotonic() - self._uploaded_at >= self._seconds

    def stop(self) -> None:
        """Upload the state that still waits, then end the thread."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        self._thread.join(_LAST_UPLOAD_SECONDS)

    def delete(self) -> None:
        """Delete all states of the training from the remote: it has ended."""
        with self._changed:
            self._waiting = None
        self.stop()
        try:
            self._remote.delete(self._remote.names())
        except UserError as error:
            print(f"warning: states of the finished training remain: {error}", flush=True)


@contextlib.contextmanager
def shared_states(job: Job, scratch: Path) -> Iterator[SharedStates | None]:
    """The states that this training shares; None if it shares none. Raises UserError if DVC's remote cannot be opened.

    When the block ends, however it ends, the newest state is uploaded.
    """
    minutes = job.runtime.share_minutes
    if os.environ.get(SHARES) != "1" or not minutes:
        yield None
        return
    remote = remote_folder(job.root, f"unfinished/{job.dataset}/{job.model}/{scratch.name}")
    if remote is None:
        yield None
        return
    shared = SharedStates(remote, scratch, 60 * minutes)
    try:
        yield shared
    finally:
        shared.stop()


def _best_name(epoch: int) -> str:
    return f"best-{epoch:05d}.pth"


_T = TypeVar("_T")


def _patiently(action: Callable[[], _T], on_text: Callable[[str], None]) -> _T:
    """Repeat an action that needs the remote, with pauses; raises the last UserError."""
    for seconds in (*RETRY_SECONDS, None):
        try:
            return action()
        except UserError as error:
            if seconds is None:
                raise UserError(
                    f"{error}. Make the remote reachable and start again, or set runtime.share_minutes to 0 to train "
                    "without looking for states of other machines"
                ) from None
            on_text(f"warning: {error}; trying again in {seconds:.0f} s")
            time.sleep(seconds)
    raise AssertionError
