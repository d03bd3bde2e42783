"""What a process of ours promises to whoever started it: plain words, a clean end, no orphans."""

import contextlib
import ctypes
import errno
import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from .ancestors import dvc_above, wait_for_end
from .errors import UserError


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """The frame of every command: tells what a user can mend in a sentence, status 1; under DVC it dies with DVC."""
    if of_dvc := os.environ.get("DVC_STAGE"):  # not when started by hand: a training may outlive its terminal
        _end_with_dvc(name, of_dvc)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        yield
    except UserError as error:
        _leave(name, str(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        place = f" at {error.filename}" if error.filename else ""
        remedy = (
            "free some space and run the same command again; what is finished stays"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else "make it writable and run the same command again"
        )
        _leave(name, f"{error.strerror}{place}; {remedy}")
    except KeyboardInterrupt:
        print(f"{name}: interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(130)


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


def mend_dvc(root: Path) -> None:
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


def _leave(name: str, message: str) -> NoReturn:
    with contextlib.suppress(OSError):  # who listened may be gone
        print(f"{name}: error: {message}", file=sys.stderr, flush=True)
    sys.exit(1)
