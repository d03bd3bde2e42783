"""The frame of every command: errors in plain sentences, a clean end on signals, no orphans."""

import contextlib
import errno
import json
import logging
import os
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from ..errors import MACHINE_ERRNOS, TEMPORARY, TemporaryFault, UserError, machine_fault
from ..files.addresses import without_secrets
from ..files.locks import try_lock
from .ancestors import dvc_above, dvc_lives_in, lives, wait_for_end
from .supervisor import die_with_parent


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """Run the block as the command `name`: errors that a user can fix are printed as one sentence, with exit status 1
    (TEMPORARY for faults that may pass by themselves).

    Started by DVC, the process ends when DVC ends.
    """
    if of_dvc := os.environ.get("DVC_STAGE"):  # started by hand, a training may outlive its terminal
        _end_with_dvc(name, of_dvc)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    try:
        yield
        if sys.stdout:
            sys.stdout.flush()  # a full disk or a closed pipe must show here, not when Python exits
    except SystemExit:
        _flush()
        raise
    except KeyboardInterrupt:
        _flush()
        with contextlib.suppress(OSError):
            print(f"{name}: interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():  # as in `actionzoo models | head -1`
            _flush()
            sys.exit(128 + signal.SIGPIPE)
        if (sentence := _sentence(error)) is None:
            _flush()
            raise
        _leave(name, sentence, TEMPORARY if isinstance(error, TemporaryFault) else 1)


_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_NOT_OURS = {errno.EACCES, errno.EPERM, errno.EROFS}
_REMEDIES = {
    errno.EMFILE: "raise the limit (`ulimit -n 4096`) and run the same command again",
    errno.ENFILE: "close other programs and run the same command again",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.ENOTDIR: "a file stands where a folder is needed; name another path or move that file",
    errno.EISDIR: "a folder stands where a file is needed; name a file",
    errno.ELOOP: "symbolic links form a circle; correct them",
    errno.ENOENT: "check the name, or create the file first",
    errno.EEXIST: "the path exists already; move it away or name another path",
    errno.ENOTEMPTY: "the folder is not empty; check whether another process uses it",
    errno.EINVAL: "the system does not accept that name or value; choose another",
    errno.EPIPE: "the program that reads this has ended; run the same command again",
}
"""errno -> the remedy. These errors and MACHINE_ERRNOS are printed as a sentence; others keep their traceback."""


def _sentence(error: Exception) -> str | None:
    """The message for an error that a user can fix; None for an error that must be a bug."""
    match error:
        case UserError():
            return str(error)
        case OSError(errno=int(number)) if number in _REMEDIES or number in MACHINE_ERRNOS:
            place = f" at {os.fsdecode(error.filename)}" if isinstance(error.filename, str | bytes) else ""
            return f"{error.strerror}{place}; {_remedy(number)}"
        case RecursionError():
            return "the input is nested too deeply to be read; check the files that the command names"
        case UnicodeDecodeError():
            found = error.object[error.start : error.start + 4].hex(" ")
            return (
                f"a text file has bytes that are no {error.encoding} (at byte {error.start}: {found}); save it as UTF-8"
            )
        case UnicodeEncodeError():
            shown = ascii(error.object[error.start : error.end][:8])
            return f"{shown} cannot be written as {error.encoding}; set PYTHONUTF8=1, or rename the file with that name"
    fault = machine_fault(error)
    return None if fault is None else str(fault)


def _remedy(number: int) -> str:
    if number in _NO_ROOM:
        return "free some space and run the same command again; finished work is kept"
    if number in _NOT_OURS:
        return "make it writable and run the same command again"
    return _REMEDIES.get(number, "check the machine and run the same command again; finished work is kept")


def _reader_is_gone() -> bool:
    """Whether the reader of stdout or stderr has closed it; False if the broken pipe is one that we opened."""
    poll = select.poll()
    for number in (1, 2):
        poll.register(number, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _flush() -> None:
    """Write buffered output, or discard it if it cannot be written: Python would complain about it when it exits."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def sigterm_as_exit() -> Iterator[None]:
    """Let SIGTERM raise SystemExit within the block, so that open files and runs are closed. A handler that is already
    set stays."""
    is_ours = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    is_ours = is_ours and threading.current_thread() is threading.main_thread()  # other threads may not set handlers

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
    """Move .dvc/tmp/rwlock to rwlock.damaged if it is no JSON and no process can need it any more: DVC writes it in
    place, and refuses to start after a kill has cut it off.

    The file stays if a process holds the lock under which DVC writes it, or a DVC of this repository still lives, or a
    process that the file names: a DVC that has its entries in the file fails without them.
    """
    path = root / ".dvc" / "tmp" / "rwlock"
    if _damaged_text(path) is None:
        return
    with path.with_name("rwlock.lock").open("a") as guard:
        for _ in range(10):
            if try_lock(guard):
                break
            time.sleep(0.3)
        else:
            return
        text = _damaged_text(path)
        if text is None or dvc_lives_in(root):
            return
        named = {int(pid) for pid in re.findall(r'"pid": *(\d{1,9})', text)} - {os.getpid()}
        if not any(lives(pid) for pid in named):
            os.replace(path, path.with_name("rwlock.damaged"))


def _damaged_text(path: Path) -> str | None:
    """The file's text if it is there and is no JSON."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    try:
        json.loads(text)
    except ValueError:
        return text
    return None


def _end_with_dvc(name: str, of_dvc: str) -> None:
    """Exit at once if the DVC that started this stage has ended, perhaps during the imports; else send this process
    SIGTERM when it ends. The kernel watches the parent; a thread watches a DVC that has a shell in between."""
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

    def watch() -> None:
        wait_for_end(dvc)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="end-with-dvc", daemon=True).start()


class _Formatter(logging.Formatter):
    """Hides passwords in addresses."""

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


def _leave(name: str, message: str, status: int = 1) -> NoReturn:
    with contextlib.suppress(OSError):  # the terminal may be closed
        print(without_secrets(f"{name}: error: {message}"), file=sys.stderr, flush=True)
    _flush()
    sys.exit(status)
