"""What a process of ours promises to whoever started it: plain words, a clean end, no orphans."""

import contextlib
import ctypes
import errno
import json
import logging
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from ..errors import MACHINE_ERRNOS, UserError, machine_fault
from ..files.addresses import without_secrets
from .ancestors import dvc_above, wait_for_end


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """The frame of every command: tells what a user can mend in a sentence, status 1; under DVC it dies with DVC."""
    if of_dvc := os.environ.get("DVC_STAGE"):  # not when started by hand: a training may outlive its terminal
        _end_with_dvc(name, of_dvc)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    try:
        yield
        if sys.stdout:
            sys.stdout.flush()  # a full disk or a reader that is gone shows here, and not after the last line of ours
    except SystemExit:
        _flush()
        raise
    except KeyboardInterrupt:
        _flush()
        with contextlib.suppress(OSError):
            print(f"{name}: interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():  # `actionzoo rows | head -1`: it has what it wants
            _flush()
            sys.exit(128 + signal.SIGPIPE)
        if (sentence := _sentence(error)) is None:
            _flush()
            raise
        _leave(name, sentence)


_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_NOT_OURS = {errno.EACCES, errno.EPERM, errno.EROFS}
_REMEDIES = {
    errno.EMFILE: "raise the limit (`ulimit -n 4096`) and run the same command again",
    errno.ENFILE: "close other programs and run the same command again",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.ENOTDIR: "a file stands where a folder is needed; name another place or move that file",
    errno.EISDIR: "a folder stands where a file is needed; name a file",
    errno.ELOOP: "symbolic links lead in a circle; mend them",
    errno.ENOENT: "check the name, or make what it names first",
    errno.EEXIST: "something is there already; move it away or name another place",
    errno.ENOTEMPTY: "it is not empty; is another process at work there?",
    errno.EINVAL: "the system does not take that name or value",
    errno.EPIPE: "a program that was to read this has ended; run the same command again",
}
"""errno -> what to do; with those of the machine, all that become a sentence."""


def _sentence(error: Exception) -> str | None:
    """What a user can mend, in words; None for what must be a mistake of ours."""
    match error:
        case UserError():
            return str(error)
        case OSError(errno=int()) if error.errno in _REMEDIES or error.errno in MACHINE_ERRNOS:
            place = f" at {os.fsdecode(error.filename)}" if isinstance(error.filename, str | bytes) else ""
            return f"{error.strerror}{place}; {_remedy(error.errno)}"
        case RecursionError():
            return "the input is nested too deeply to be read; look at the files that were named"
        case UnicodeDecodeError():
            found = error.object[error.start : error.start + 4].hex(" ")
            return (
                f"a file that should be text has bytes that are no {error.encoding} (at byte {error.start}: {found}); "
                "save it as UTF-8"
            )
        case UnicodeEncodeError():
            shown = ascii(error.object[error.start : error.end][:8])
            return f"{shown} cannot be written as {error.encoding}; set PYTHONUTF8=1, or rename what has it in its name"
    fault = machine_fault(error)
    return None if fault is None else str(fault)


def _remedy(number: int) -> str:
    if number in _NO_ROOM:
        return "free some space and run the same command again; what is finished stays"
    if number in _NOT_OURS:
        return "make it writable and run the same command again"
    return _REMEDIES.get(number, "see to the machine and run the same command again; what is finished stays")


def _reader_is_gone() -> bool:
    """Whether nobody reads our output any more, as opposed to a pipe of our own."""
    poll = select.poll()
    for number in (1, 2):
        poll.register(number, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _flush() -> None:
    """Write what is still to be printed, or drop it where that cannot be, lest Python complains at its end."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def sigterm_as_exit() -> Iterator[None]:
    """Let SIGTERM unwind the stack, so that what is open is closed; leaves alone whoever handles the signal already."""
    is_ours = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    is_ours = is_ours and threading.current_thread() is threading.main_thread()  # no other may set handlers

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    if is_ours:
        signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        if is_ours and signal.getsignal(signal.SIGTERM) is leave:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def repair_rwlock(root: Path) -> None:
    """Put aside the list of files in use that a DVC left half written when it was killed: no other would start again.

    DVC writes that file in place. One that is about to be written is whole a moment later.
    """
    path = root / ".dvc" / "tmp" / "rwlock"
    for _ in range(4):
        try:
            json.loads(path.read_text(encoding="utf-8"))
            return
        except FileNotFoundError:
            return
        except ValueError:
            time.sleep(0.3)
    with contextlib.suppress(FileNotFoundError):
        os.replace(path, path.with_name("rwlock.damaged"))


def die_with_parent() -> None:
    """Ask Linux to end this process when its parent dies, so that a killed pipeline leaves nothing running.

    Elsewhere it does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGTERM, 0, 0, 0)
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():  # it died before we asked
        os.kill(os.getpid(), signal.SIGTERM)


def _end_with_dvc(name: str, of_dvc: str) -> None:
    """Leave at once if the DVC that started this stage is gone already, as when it was killed during our imports;
    else get SIGTERM when it ends. The kernel tells of our parent, a thread tells of a DVC with a shell between."""
    if not sys.platform.startswith("linux"):
        return
    die_with_parent()
    dvc = dvc_above(of_dvc)
    if dvc is None:
        _leave(
            name,
            f"the DVC that started stage {of_dvc} has ended, so nothing was done; run it again. To run this script "
            "without DVC, unset the environment variable DVC_STAGE",
        )

    def follow() -> None:
        wait_for_end(dvc)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, name="end-with-dvc", daemon=True).start()


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


def _leave(name: str, message: str) -> NoReturn:
    with contextlib.suppress(OSError):  # who listened may be gone
        print(without_secrets(f"{name}: error: {message}"), file=sys.stderr, flush=True)
    _flush()
    sys.exit(1)
