"""The exceptions that users are meant to read."""

import errno
import re


class UserError(Exception):
    """Something the user can mend. The message names file, key or clip, the value found, and the next step.

    Command lines print it as one line and leave with status 1; a traceback is for our own mistakes.
    """


class TemporaryFault(UserError):
    """A fault outside of this machine that may pass by itself, as of a network: the same command may succeed later.

    A stage leaves with status TEMPORARY, by which a flow knows that another attempt is worth while.
    """


TEMPORARY = 75
"""EX_TEMPFAIL of sysexits.h."""


class MachineFault(UserError):
    """The machine failed, not the data: disk, memory, processes, files. Nothing may be recorded about the clip at hand;
    the work stays unfinished, and the next run does it."""


_ERRNO_NAMES = (
    *("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "ESTALE", "ENODEV", "ENXIO", "EREMOTEIO"),
    *("ENOMEM", "EAGAIN", "EMFILE", "ENFILE", "ENOBUFS", "ENOLCK", "EBUSY", "EINTR", "ETIMEDOUT", "ENOTCONN"),
)
MACHINE_ERRNOS = frozenset(getattr(errno, name) for name in _ERRNO_NAMES if hasattr(errno, name))
"""errno values that speak of the machine, whatever file is being read or written."""

_MACHINE_TEXTS = re.compile(
    r"No space left on device|Disk quota exceeded|can(?:no|')t allocate memory|Out of memory|std::bad_alloc"
    r"|Resource temporarily unavailable|Too many open files|Input/output error|Read-only file system"
    r"|Permission denied|Stale file handle|pthread_create|frame_thread_encoder_init|thread_init|can't start new thread"
    r"|malloc of size|Failed to allocate",
    re.IGNORECASE,
)


def speaks_of_machine(text: str) -> bool:
    """Whether another program's message blames the machine (disk, memory, threads, files) and not its input."""
    return _MACHINE_TEXTS.search(text) is not None


def machine_fault(error: BaseException) -> MachineFault | None:
    """The same error as a MachineFault, if it is one of the machine's: no memory, a system call that failed for want of
    something, another program's or library's complaint of that. None for every other error."""
    match error:
        case MachineFault():
            return error
        case MemoryError():
            return MachineFault(f"no memory left ({error}); close other programs or use fewer workers, and run again")
        case OSError(errno=int()):
            is_fault = error.errno in MACHINE_ERRNOS
        case _:
            is_fault = speaks_of_machine(str(error))
    if not is_fault:
        return None
    return MachineFault(f"the machine failed: {' '.join(str(error).split())[:200]}; see to that and run again")
