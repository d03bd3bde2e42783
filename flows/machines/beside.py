"""Run a stage's command without DVC: for a machine that takes part in a training that another machine builds.

python -m flows.machines.beside STAGE
"""

import os
import subprocess
import sys


def main() -> None:
    from dvc.repo import Repo

    with Repo() as repo:
        (stage,) = repo.stage.collect(sys.argv[1])
    shell = os.environ.get("SHELL") or "/bin/sh"  # as DVC does
    for command in stage.cmd if isinstance(stage.cmd, list) else stage.cmd.splitlines():
        if status := subprocess.run([shell, "-c", command], cwd=stage.wdir).returncode:
            sys.exit(f"{command}, exited with {status}")


if __name__ == "__main__":
    main()
