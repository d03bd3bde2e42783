"""Files of our own in the storage of DVC's default remote, whatever kind it is: a folder, S3, SSH."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import UserError
from .addresses import without_secrets
from .atomic import partial_beside

FOLDER = "actionzoo"
"""The folder beside DVC's own, which holds our files; DVC neither reads nor deletes it."""


class RemoteFolder:
    """A folder in the remote's storage. Its methods raise UserError if the storage cannot be reached."""

    def __init__(self, fs: Any, path: str, shown: str):
        self._fs, self._path, self._shown = fs, path, shown  # fs: dvc.fs.FileSystem, which has no types

    def __str__(self) -> str:
        return self._shown

    def names(self) -> list[str]:
        """Names of the files in the folder, sorted; none if the folder does not exist."""
        with self._reported("list"):
            try:
                return sorted(self._fs.name(path) for path in self._fs.find(self._path))
            except FileNotFoundError:
                return []

    def fetch(self, name: str, target: Path) -> None:
        """Copy a file of the folder to `target`, whole or not at all."""
        partial = partial_beside(target)
        try:
            with self._reported("read"):
                self._fs.get_file(self._fs.join(self._path, name), str(partial))
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def put(self, source: Path, name: str) -> None:
        """Store a file under `name`, whole or not at all: it is uploaded under another name first."""
        from dvc_objects.fs.utils import as_atomic

        with (
            self._reported("write"),
            as_atomic(self._fs, self._fs.join(self._path, name), create_parents=True) as partial,
        ):
            self._fs.put_file(str(source), partial)

    def delete(self, names: list[str]) -> None:
        """Delete files of the folder; those that do not exist are passed over."""
        for name in names:
            with self._reported("delete"), contextlib.suppress(FileNotFoundError):
                self._fs.remove(self._fs.join(self._path, name))

    @contextlib.contextmanager
    def _reported(self, what: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:  # each kind of storage raises exceptions of its own
            text = without_secrets(" ".join(str(error).split())[:300])
            raise UserError(f"cannot {what} {self._shown} ({type(error).__name__}: {text})") from None


def remote_folder(root: Path, name: str) -> RemoteFolder | None:
    """The folder actionzoo/<name> in the storage of the default remote of the DVC repository at `root`.

    None if the repository has no default remote. Raises UserError if DVC cannot open it.
    """
    from dvc.config import NoRemoteError
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            remote = repo.cloud.get_remote()
            path = remote.fs.join(remote.path, FOLDER, *name.split("/"))
            return RemoteFolder(remote.fs, path, without_secrets(f"{FOLDER}/{name} of DVC's remote {remote.name}"))
    except NoRemoteError:
        return None
    except (DvcException, ImportError, ValueError, OSError) as error:
        raise UserError(without_secrets(f"DVC cannot open its remote: {error}")) from error
