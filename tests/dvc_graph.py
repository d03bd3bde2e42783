"""A DVC graph of one stage, and its processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.processes import wait_for

SLOW_STAGE = """
import os, sys, time
from pathlib import Path
Path("importing").write_text(str(os.getpid()))
while not Path("go").exists():  # as an import that takes long
    time.sleep(0.02)
from actionzoo.process.stage import stage
with stage("made"):
    Path("working").touch()
    while not Path("finish").exists():
        time.sleep(0.02)
    Path("out").write_text("made")
"""


def write_graph(folder: Path, command: str = "python stage.py") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stage.py").write_text(SLOW_STAGE)
    (folder / "dvc.yaml").write_text(f"stages:\n  made:\n    cmd: {command}\n    outs: [out]\n")
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], cwd=folder, env=environment(), check=True)


def environment(**more: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {key: value for key, value in os.environ.items() if key != "DVC_STAGE"} | {"PATH": path} | more


def start_dvc(folder: Path, *words: str, **more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "dvc", *(words or ("repro",))]
    with (folder / "dvc.log").open("w") as log:
        return subprocess.Popen(command, cwd=folder, env=environment(**more), stdout=log, stderr=log)


def written(path: Path) -> int:
    """The number in the file, once it is there."""
    wait_for(lambda: path.is_file() and path.read_text())
    return int(path.read_text())


def kill(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
