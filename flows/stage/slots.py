"""Which stage may use which device: one lock file per device, shared by all flows of this user on this machine.

The locks are flock(2) locks: the kernel releases them however their holder dies, no server is needed, and each slot
names its device. A stage that waits draws a numbered ticket, and a device that an older ticket asks for is not given to
a newer one. So a stage that needs four GPUs gets them, however many stages that need one GPU come after it.
"""

import fcntl
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO
from urllib.parse import quote

from actionzoo.errors import UserError
from actionzoo.files.locks import locked, try_lock, unlock
from flows.stage.command import Stopped

POLL_SECONDS = 0.2


def machine_folder() -> Path:
    """The folder of this user's locks of devices, which is created: ACTIONZOO_SLOTS if set, else one in /tmp.

    Not in TMPDIR or XDG_RUNTIME_DIR: these differ from session to session, or end with a login. Raises UserError if the
    folder is not this user's alone.
    """
    path = Path(os.environ.get("ACTIONZOO_SLOTS") or f"/tmp/actionzoo-{os.getuid()}")
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise UserError(
            f"{path} cannot be made ({error.strerror}); name a folder of yours in ACTIONZOO_SLOTS"
        ) from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise UserError(
            f"{path}, the folder of device locks, can be changed by others. It must be yours, no link, of "
            "mode 0700; remove it, or name another in ACTIONZOO_SLOTS"
        )
    return path


def machine_kind(kind: str) -> str:
    """The kind of this machine's devices: where machines share a folder of locks, each has slots of its own."""
    return f"{quote(socket.gethostname(), safe='')}.{kind}"


class Slots:
    """The devices of one kind ("gpu", "cpu", ...) of which a stage may get some.

    Their lock files are open from the start, and not locked. flock(2) locks belong to the open file: a child process
    that inherits `descriptors` keeps what is acquired later, too, even after this process has died.
    """

    def __init__(self, folder: Path, kind: str, names: Mapping[str, str]) -> None:
        """`names`: of each device, and its key, which is the same for all names of a device.

        `folder` is created; its files may be deleted when no flow is running.
        """
        self._folder, self._kind, self._keys = folder, kind, dict(names)
        self._held: list[str] = []
        self._busy: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as opened:
            guard = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
            opened.callback(os.close, guard)
            fcntl.flock(guard, fcntl.LOCK_SH)  # systemd's cleaner of /tmp leaves a locked folder alone
            self._files = {
                name: opened.enter_context((folder / f"{kind}.{quote(key, safe='@')}.slot").open("a+b", buffering=0))
                for name, key in names.items()
            }
            self._opened = opened.pop_all()

    @property
    def descriptors(self) -> list[int]:
        """Of the lock files, for a child process to inherit."""
        return [file.fileno() for file in self._files.values()]

    @property
    def held(self) -> tuple[str, ...]:
        """Names of the devices that are held, in the order in which they were given."""
        return tuple(self._held)

    def acquire(
        self,
        count: int,
        holder: str,
        stop: threading.Event,
        on_wait: Callable[[Mapping[str, str]], object] = lambda users: None,
    ) -> None:
        """Wait until `count` of the devices are free, and hold them. First come, first served.

        `holder` is shown to those who wait. If it has to wait, `on_wait` is called with the users of the devices, as
        `users` returns them, and again when they change. Raises Stopped when `stop` is set while it waits.
        """
        assert not self._held and 0 <= count <= len(self._files), f"{count} of {list(self._files)}"
        ticket = _draw_ticket(self._folder, self._kind, self._keys.values())
        told: dict[str, str] | None = None
        try:
            while True:
                if stop.is_set():
                    raise Stopped
                if self._try_to_acquire(count, holder, Path(ticket.name)):
                    return
                if (users := self._holders()) != told:
                    on_wait(users)
                    told = users
                stop.wait(POLL_SECONDS)
        finally:
            with _gate(self._folder):
                Path(ticket.name).unlink()
                unlock(ticket)

    def release(self) -> None:
        """Release the devices at once, also if a child process has inherited their descriptors."""
        for name in self._held:
            self._files[name].truncate(0)
            fcntl.flock(self._files[name], fcntl.LOCK_UN)
        self._held.clear()

    def close(self) -> None:
        """Release the devices and close the lock files."""
        self.release()
        self._opened.close()

    def _try_to_acquire(self, count: int, holder: str, ticket: Path) -> bool:
        """All or nothing: taking slots one by one could deadlock two waiting stages."""
        with _gate(self._folder):
            self._busy.clear()
            for older in self._folder.glob(f"{self._kind}.*.ticket"):
                if _number(older) < _number(ticket) and set(older.read_text().split("\n")) & set(self._keys.values()):
                    if not (abandoned := _open_locked(older)):
                        self._busy.extend(self._files)
                        return False
                    older.unlink()  # its holder died
                    abandoned.close()
            free: list[str] = []
            for name, file in self._files.items():
                if len(free) == count:
                    break
                (free if try_lock(file) else self._busy).append(name)
            if len(free) < count:
                for name in free:
                    fcntl.flock(self._files[name], fcntl.LOCK_UN)
                return False
            for name in free:
                self._files[name].truncate(0)
                self._files[name].write(holder.encode())
            self._held = free
            return True

    def users(self) -> dict[str, str]:
        """Who uses which of the devices now: name -> holder, as given to `acquire`."""
        with _gate(self._folder):
            self._busy.clear()
            for name, file in self._files.items():
                if name not in self._held and try_lock(file):
                    fcntl.flock(file, fcntl.LOCK_UN)
                else:
                    self._busy.append(name)
            return self._holders()

    def _holders(self) -> dict[str, str]:
        holders = {}
        for name in self._busy:
            self._files[name].seek(0)
            holders[name] = self._files[name].read().decode(errors="replace")
        return holders


@contextmanager
def acquire(
    folder: Path,
    kind: str,
    names: Mapping[str, str],
    count: int,
    stop: threading.Event,
    on_wait: Callable[[Mapping[str, str]], object] = lambda users: None,
) -> Iterator[Slots]:
    """Hold `count` of the devices until the block ends. See `Slots.acquire`."""
    slots = Slots(folder, kind, names)
    try:
        slots.acquire(count, f"process {os.getpid()}", stop, on_wait)
        yield slots
    finally:
        slots.close()


@contextmanager
def _gate(folder: Path) -> Iterator[None]:
    """Held briefly around each change, so that tickets and slots are read and acquired as one step."""
    with locked(folder / "gate"):
        yield


def _draw_ticket(folder: Path, kind: str, keys: Iterable[str]) -> TextIO:
    with _gate(folder):
        number = 1 + max((_number(path) for path in folder.glob(f"{kind}.*.ticket")), default=0)
        ticket = _open_locked(folder / f"{kind}.{number:06}.ticket")
        assert ticket is not None, "a ticket of a new number belongs to no other process"
        ticket.write("\n".join(keys))
        ticket.flush()
        return ticket


def _number(ticket: Path) -> int:
    return int(ticket.name.split(".")[-2])


def _open_locked(path: Path) -> TextIO | None:
    """The file, opened and locked; None if another holder has it."""
    file = path.open("a")
    if try_lock(file):
        return file
    file.close()
    return None
