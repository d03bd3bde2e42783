"""The key of a Prefect server on this machine. A client with the key can start flows, and flows run code as their user.

Loopback is open to every user of the machine and to every page in a browser. The key is new at each start of a server,
and never on a command line, where `ps` would show it.
"""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from actionzoo.files.atomic import atomic_write

KEY_FILE = "key"
SETTINGS_FILE = "prefect.toml"
_MARK = "# Written by flows.local while its server runs, removed at the end; not for version control.\n"


def new_key() -> str:
    """256 random bits, in the form `user:password` that Prefect asks for."""
    return f"actionzoo:{secrets.token_urlsafe(32)}"


@contextmanager
def key_file(folder: Path, key: str) -> Iterator[Path]:
    """`folder`/key with the key in it, which only its user can read, until the block ends."""
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
    """`folder`/prefect.toml, from which every `prefect` command typed in `folder` takes the key, until the block ends.

    Only its user can read it. Gives False, and leaves the file alone, if the user wrote it or if it belongs to another
    server that still runs.
    """
    path = folder / SETTINGS_FILE
    if not _is_free(path):
        yield False
        return
    with atomic_write(path, mode=0o600) as file:
        file.write(f'{_MARK}[api]\nauth_string = "{key}"\n'.encode())
    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        try:
            yield True
        finally:
            if path.exists() and os.path.samestat(path.stat(), os.fstat(held.fileno())):
                path.unlink()


def _is_free(path: Path) -> bool:
    """Whether no prefect.toml is there, or one of ours whose server is gone."""
    try:
        with path.open("rb") as file:
            if file.read(len(_MARK)) != _MARK.encode():
                return False
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return not path.is_symlink()
    except OSError:
        return False
    return True
