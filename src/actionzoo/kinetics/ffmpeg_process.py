"""Run ffmpeg on one clip, and separate the clip's errors from the machine's.

    success                                the result
    an error of the clip                   BadVideo
    timeout                                a second attempt while no other clip is processed; then BadVideo
    disk, memory, threads, files, killed   a second attempt, alone; then MachineFault: nothing is recorded of the clip

A clip can provoke the machine's messages: a header that claims a huge frame makes ffmpeg say "Cannot allocate memory".
So after the second failure a control runs: our own picture through the same program, with room on the same disk. If the
control succeeds, a third attempt treats every error as the clip's.
"""

import contextlib
import dataclasses
import errno
import functools
import os
import re
import selectors
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from ..errors import MACHINE_ERRNOS, MachineFault, speaks_of_machine
from ..process.supervisor import die_with_parent

TIMED_OUT = "timed out"

MAX_COMPLAINT_BYTES = 64 * 2**10
"""Limit for what is kept of ffmpeg's messages; a broken clip can cause megabytes of them."""

Result = TypeVar("Result")


class BadVideo(Exception):
    """No picture can be had of a clip; the message is a short reason, fit for the manifest."""


class _TimedOut(BadVideo):
    pass


@dataclasses.dataclass(frozen=True)
class Clip:
    """A clip in a scratch folder of its own: mp4 cannot be read from a pipe."""

    folder: Path
    source: Path
    """The clip's file, under a name of ours."""
    deadline: float
    """Value of time.monotonic() at which the clip's work must have ended."""
    timeout_seconds: float
    is_machine_sound: bool
    """Whether the control succeeded, so that every error is the clip's."""

    def run(self, command: list[str]) -> str:
        """Run ffmpeg to its end; returns what it printed to stderr. Raises BadVideo or MachineFault."""
        status, complaint = _finish(command, self.deadline, self.timeout_seconds)
        complaint = complaint.replace(str(self.folder), "")
        # interrupted, ffmpeg exits with 255 and prints nothing
        if -status in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL) or (status == 255 and not complaint):
            raise MachineFault(
                f"ffmpeg was killed from outside (status {status}), perhaps because memory ran out; run again"
            )
        if not self.is_machine_sound and (fault := _machine_fault(status, complaint)):
            raise MachineFault(fault)
        if status:
            raise BadVideo(reason_of(complaint) if complaint else f"ffmpeg ended with status {status}")
        return complaint

    def check_time(self) -> None:
        """Raises BadVideo once the clip's time is over; for long work on ffmpeg's output."""
        if time.monotonic() > self.deadline:
            raise _TimedOut(f"{TIMED_OUT} after {self.timeout_seconds:g} s")


def process_clip(
    source: bytes | Path,
    work: Callable[[Clip], Result],
    *,
    timeout_seconds: float,
    scratch: Path | None,
    control: Callable[[Path], list[str]],
) -> Result:
    """The result of `work` on the clip, in a new folder in `scratch`, with the attempts of the module's docstring.

    `control` returns the command that must succeed on a sound machine; the command writes into the given folder.
    Raises BadVideo or MachineFault.
    """

    def attempt(is_machine_sound: bool) -> Result:
        with _clip_folder(source, scratch) as (folder, path):
            deadline = time.monotonic() + timeout_seconds
            return work(Clip(folder, path, deadline, timeout_seconds, is_machine_sound))

    if (len(source) if isinstance(source, bytes) else source.stat().st_size) == 0:
        raise BadVideo("zero bytes")
    try:
        with _GATE.among_others():
            return attempt(is_machine_sound=False)
    except (_TimedOut, MachineFault):
        pass
    with _GATE.alone():
        try:
            return attempt(is_machine_sound=False)
        except MachineFault:
            num_bytes = len(source) if isinstance(source, bytes) else source.stat().st_size
            if not _is_machine_sound(control, scratch, num_bytes):
                raise
        return attempt(is_machine_sound=True)


def reason_of(complaint: str) -> str:
    """The first line of ffmpeg's messages, without addresses and paths: the same clip gives the same reason."""
    if re.search(r"matches no streams|does not contain any stream", complaint):
        return "no video stream"
    if "partial file" in complaint:  # the demuxer's message, at no fixed place among the decoder's
        return "cut off"
    lines = [re.sub(r"^(\[[^\]]*\] *)+|@ 0x[0-9a-f]+", "", line).strip() for line in complaint.splitlines()]
    return next((line[:160] for line in lines if line), "no frame could be decoded")


class _Gate:
    """Lets many clips be processed at once, or one alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._at_work, self._waiting_alone = 0, 0

    @contextlib.contextmanager
    def among_others(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting_alone)
            self._at_work += 1
        try:
            yield
        finally:
            self._leave()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._waiting_alone += 1
            self._changed.wait_for(lambda: not self._at_work)
            self._at_work = 1
        try:
            yield
        finally:
            with self._changed:
                self._waiting_alone -= 1
            self._leave()

    def _leave(self) -> None:
        with self._changed:
            self._at_work -= 1
            self._changed.notify_all()


_GATE = _Gate()


@contextlib.contextmanager
def _clip_folder(source: bytes | Path, scratch: Path | None) -> Iterator[tuple[Path, Path]]:
    """(a new folder in scratch, the source as a file in it). Raises MachineFault for errors of the disk."""
    with _machine_faults(scratch):
        if scratch is not None:
            scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=scratch, prefix="clip-", ignore_cleanup_errors=True) as name:
            path = Path(name) / "source"
            if isinstance(source, bytes):
                path.write_bytes(source)
            else:
                path.symlink_to(source.absolute())
            yield Path(name), path


@contextlib.contextmanager
def _machine_faults(scratch: Path | None) -> Iterator[None]:
    """Turns Python's errors about memory, disk, files and threads into MachineFault."""
    try:
        yield
    except MemoryError:
        raise MachineFault(_remedy(errno.ENOMEM, "Python could not hold a clip")) from None
    except OSError as error:
        if error.errno not in MACHINE_ERRNOS:
            raise
        raise MachineFault(_remedy(error.errno, f"{error.strerror} at {scratch or error.filename}")) from None


def _finish(command: list[str], deadline: float, timeout_seconds: float) -> tuple[int, str]:
    """(exit status, beginning of stderr). Raises BadVideo when the time is over."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=functools.partial(die_with_parent, signal.SIGKILL, parent=os.getpid()),
    )
    assert process.stderr is not None
    kept = bytearray()
    try:
        with selectors.DefaultSelector() as selector, process.stderr as pipe:
            selector.register(pipe, selectors.EVENT_READ)
            while True:
                if not selector.select(max(deadline - time.monotonic(), 0)):
                    raise _TimedOut(f"{TIMED_OUT} after {timeout_seconds:g} s")
                piece = os.read(pipe.fileno(), 2**16)
                if not piece:
                    break
                kept += piece[: MAX_COMPLAINT_BYTES - len(kept)]
                if time.monotonic() > deadline:  # it prints without end
                    raise _TimedOut(f"{TIMED_OUT} after {timeout_seconds:g} s")
        status = process.wait(max(deadline - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
        raise _TimedOut(f"{TIMED_OUT} after {timeout_seconds:g} s") from None
    finally:
        process.kill()
        process.wait()
    return status, kept.decode(errors="replace")


def _machine_fault(status: int, complaint: str) -> str:
    """Why the machine is suspected, '' if it is not. ffmpeg's exit status is the negative errno, in eight bits."""
    number = 256 - status
    if status > 0 and number in _SUSPECT:
        return _remedy(number, f"ffmpeg: {os.strerror(number)}")
    if status == -signal.SIGABRT:  # an allocation that failed
        return _remedy(errno.ENOMEM, "ffmpeg was aborted")
    if speaks_of_machine(complaint):
        line = next(line for line in complaint.splitlines() if speaks_of_machine(line))
        is_disk = re.search(r"space left|quota", line, re.IGNORECASE)
        return _remedy(errno.ENOSPC if is_disk else errno.ENOMEM, f"ffmpeg: {reason_of(line)}")
    return ""


def _remedy(number: int | None, what: str) -> str:
    match number:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return f"the disk is full ({what}); make room and run the same command again; what is finished stays"
        case errno.ENOMEM | errno.EAGAIN | errno.ENOBUFS:
            return (
                f"memory or processes ran out ({what}); close other programs, or lower runtime.jobs, and run the same "
                "command again; what is finished stays"
            )
        case errno.EMFILE | errno.ENFILE:
            return f"too many files are open ({what}); raise the limit (ulimit -n) and run the same command again"
        case _:
            return f"the machine failed ({what}); repair that and run the same command again; what is finished stays"


# without EPERM, which ffmpeg reports for a protocol that is not allowed
_SUSPECT = MACHINE_ERRNOS - {errno.EPERM, errno.EINTR}


def _is_machine_sound(control: Callable[[Path], list[str]], scratch: Path | None, num_bytes: int) -> bool:
    """Whether the disk has room for a clip of this size, and ffmpeg encodes our own picture."""
    try:
        with tempfile.TemporaryDirectory(dir=scratch, prefix="control-", ignore_cleanup_errors=True) as name:
            with (Path(name) / "room").open("wb") as file:
                for _ in range(2 * num_bytes // 2**20 + 16):
                    file.write(bytes(2**20))
            (Path(name) / "room").unlink()
            status, complaint = _finish(control(Path(name)), time.monotonic() + 120, 120)
    except (OSError, MemoryError, RuntimeError, BadVideo):
        return False
    return status == 0 and not speaks_of_machine(complaint)
