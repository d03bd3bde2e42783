"""The key of a Prefect server on this machine. A client with the key can start flows, and flows run code as their user.

Loopback is open to every user of the machine and to every page in a browser. Each start of a server makes a new key,
which is never on a command line, where `ps` would show it.
"""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from actionzoo.files.atomic import atomic_write
from actionzoo.files.locks import try_lock

KEY_FILE = "key"
SETTINGS_FILE = "prefect.toml"
_MARK = "# Written by flows.local while its server runs, removed at the end; not for version control.\n"


def new_key() -> str:
    """A random key of 256 bits, in the form `user:password` that Prefect expects."""
    return f"actionzoo:{secrets.token_urlsafe(32)}"


@contextmanager
def key_file(folder: Path, key: str) -> Iterator[Path]:
    """Write the key to `folder`/key, readable by its user only, until the block ends. `folder` is created."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / KEY_FILE
    with atomic_write(path, mode=0o600) as file:
        file.write(f"{key}\n".encode())
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def settings_file(folder: Path, key: str) -> Iterator[bool]:
    """Write `folder`/prefect.toml, from which `prefect` commands typed in `folder` read the key, until the block ends.

    Readable by its user only. Yields False and leaves the file alone if the user wrote it, or if it belongs to another
    server that is still running.
    """
    path = folder / SETTINGS_FILE
    if not _is_free(path):
        yield False
        return
    with atomic_write(path, mode=0o600) as file:
        file.write(f'{_MARK}[api]\nauth_string = "{key}"\n'.encode())
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # held while the server runs: see _is_free
        try:
            yield True
        finally:
            if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
                path.unlink()


def _is_free(path: Path) -> bool:
    """Whether there is no prefect.toml, or one that flows.local wrote for a server that no longer runs."""
    try:
        with path.open("rb") as file:
            return file.read(len(_MARK)) == _MARK.encode() and try_lock(file)
    except FileNotFoundError:
        return not path.is_symlink()
    except OSError:
        return False
