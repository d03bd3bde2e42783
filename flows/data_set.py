"""The data set that the flow runs of a project build: `data.name` of params.yaml.

Each flow run holds the shared side of a lock while it builds. A run that asks for another data set changes the name
when it has the lock alone and no `dvc` of a terminal builds, so that no process has read the old name.
"""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from actionzoo.errors import UserError
from actionzoo.files.yaml_files import read_yaml
from actionzoo.names import did_you_mean
from actionzoo.params import load_params
from actionzoo.params.keep import choose_dataset

POLL_SECONDS = 1.0
REPOSITORIES = (".", "reproduction")  # of DVC, below the project; all read its params.yaml


@contextmanager
def held(root: Path, wanted: str | None, on_wait: Callable[[str], object], *, put_back: bool = False) -> Iterator[str]:
    """Keep params.yaml of the project in `root` at the data set `wanted` until the block ends; gives its name.

    None means the one that it names; '' if there is none, as in another project than ours. Another is written into it
    as soon as nothing else builds in the project; `on_wait` gets what it waits for, once for each cause. With
    `put_back`, the old name is restored at the end, and no other run builds until then. Raises UserError for a data set
    that is not in params.yaml, and if that does not hold.
    """
    if not (root / ".dvc").is_dir():
        yield ""
        return
    path, lock = root / "params.yaml", root / ".dvc" / "tmp" / "data_set.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    told: set[str] = set()

    def wait(cause: str) -> None:
        if cause not in told:
            on_wait(cause)
        told.add(cause)
        time.sleep(POLL_SECONDS)

    with lock.open("a") as file:
        while True:
            if not _try(file.fileno(), fcntl.LOCK_SH):
                wait("a run that tries another data set in this project")
                continue
            present = _name_in(path)
            if wanted is None:
                yield present
                return
            check(path, wanted)
            if wanted == present:
                yield present
                return
            if not _try(file.fileno(), fcntl.LOCK_EX):
                wait(f"the runs that build {present} in this project; {wanted} is built after them")
                continue
            if not _choose(path, wanted, wait):
                continue
            if put_back:
                try:
                    yield wanted
                finally:
                    while not _choose(path, present, wait):
                        pass
                return


def _name_in(path: Path) -> str:
    try:
        return str(read_yaml(path, "")["data"]["name"])
    except (UserError, KeyError, TypeError):
        return ""


def check(path: Path, wanted: str) -> None:
    """Raise UserError if params.yaml, which is at `path`, has no such data set."""
    datasets = load_params(path).datasets
    if wanted not in datasets:
        raise UserError(
            f"data is {wanted}, which is not under datasets in {path.name}{did_you_mean(wanted, datasets)}; "
            f"there are {', '.join(datasets)}"
        )


def _try(lock: int, kind: int) -> bool:
    """Take the lock or convert it; it is lost if that is not possible at once."""
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        fcntl.flock(lock, fcntl.LOCK_UN)
        return False
    return True


def _choose(path: Path, name: str, wait: Callable[[str], object]) -> bool:
    """Write the name if no DVC works in the project; else wait a moment and return False."""
    from dvc.lock import LockError  # takes 0.2 s
    from dvc.repo import Repo

    try:
        with Repo(str(path.parent)) as repo, repo.lock:  # DVC holds it but while a stage's command runs
            if builders := _builders(path.parent):
                wait(f"the DVC that builds in this project: {', '.join(builders)}")
                return False
            choose_dataset(path, name)
            return True
    except LockError:
        wait("the DVC that works in this project")
        return False


def _builders(root: Path) -> list[str]:
    """The commands of the DVC processes that run stages of the project, as they are written in its lock files."""
    found: dict[str, None] = {}
    for repository in REPOSITORIES:
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            locks = json.loads((root / repository / ".dvc" / "tmp" / "rwlock").read_text(encoding="utf-8"))
            holders = [*locks["write"].values(), *(holder for readers in locks["read"].values() for holder in readers)]
            found |= dict.fromkeys(holder["cmd"] for holder in holders if _exists(holder["pid"]))
    return list(found)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        pass
    return True
