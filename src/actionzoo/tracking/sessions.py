"""Who runs a training, when, where and from which commit: the facts of records.Execution."""

import contextlib
import datetime
import getpass
import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
import time
from pathlib import Path

from ..files.atomic import atomic_write
from ..process.ancestors import is_alive, this_process
from ..records import FlowRun, RunRecord, Session


def new_stamp() -> str:
    """The time as the names of logs have it: 20260131_235959."""
    return datetime.datetime.now().strftime("%Y%m%d_%H%M%S")


def is_gone(session: Session) -> bool:
    """Whether its process has ended, as far as this machine can tell: False for a process of another host."""
    if session.host != socket.gethostname():
        return False
    return session.boot != _boot_id() or not is_alive(session.pid, session.started)


def this_session(stage: str) -> Session:
    """This process, at work on `stage`."""
    process, flow_run = this_process(), os.environ.get("ACTIONZOO_FLOW_RUN_ID")
    user = ""
    with contextlib.suppress(OSError, KeyError, ImportError):  # a container may know no name for its user
        user = getpass.getuser()
    return Session(
        stage=stage,
        began=now_milliseconds(),
        host=socket.gethostname(),
        boot=_boot_id(),
        pid=os.getpid(),
        started=process.started if process else 0,
        user=user,
        flow_run=FlowRun(
            id=flow_run,
            name=os.environ.get("ACTIONZOO_FLOW_RUN_NAME", ""),
            url=os.environ.get("ACTIONZOO_FLOW_RUN_URL", ""),
        )
        if flow_run
        else None,
    )


def _boot_id() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def git_commit(folder: Path) -> tuple[str, bool]:
    """Git's commit, and whether tracked files differ from it, dvc.lock left out: DVC changes it after each stage.

    ('', False) without Git or outside of a repository.
    """
    if not (commit := _git(folder, "rev-parse", "HEAD")):
        return "", False
    status = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ":(top)", ":(top,exclude)dvc.lock")
    return commit, bool(status)


def _git(folder: Path, *arguments: str) -> str:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
        return answer.stdout.strip()
    return ""


def write_environment(path: Path, record: RunRecord) -> None:
    """The machine, Python and all installed packages."""
    circumstances = record.circumstances
    packages = {found.name: found.version for found in importlib.metadata.distributions() if found.name}
    lines = [
        f"{platform.system()} {platform.release()} {platform.machine()}, {os.cpu_count()} CPU cores",
        f"Python {platform.python_version()}",
        *(
            [f"{circumstances.processes} x {circumstances.device_name or circumstances.device}"]
            if circumstances
            else []
        ),
        *([f"CUDA {cuda}"] if (cuda := _cuda()) else []),
        "",
        *(f"{name}=={packages[name]}" for name in sorted(packages, key=str.lower)),
    ]
    with atomic_write(path) as file:
        file.write(("\n".join(lines) + "\n").encode())


def _cuda() -> str:
    torch = sys.modules.get("torch")
    version = getattr(getattr(torch, "version", None), "cuda", None)
    if not version:
        return ""
    driver = ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True).stdout.split("\n")[0]
    return f"{version}, driver {driver or 'unknown'}"


def now_milliseconds() -> int:
    """Since 1970."""
    return int(time.time() * 1000)
