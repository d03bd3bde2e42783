"""What a flow run costs beside DVC: CPU seconds, by the number of stages.

    python benchmarks/flow_overhead.py                   # 10, 57 and 200 stages: some minutes
    python benchmarks/flow_overhead.py --stages 10

It makes a DVC repository of one stage that prepares data, and of trainings and evaluations that need it; each only
copies a small file. It measures, with all child processes: `dvc status` and the question that the flow asks DVC, each a
process of its own, and the whole flow run, all on the finished graph; and the flow run that builds it. The Prefect
server runs beside them and is not counted.
"""

import argparse
import dataclasses
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
ASK = "from flows.graph import ask_dvc; assert not any(ask_dvc()[2].values())"


@dataclasses.dataclass(frozen=True)
class Figures:
    """CPU seconds."""

    stages: int
    status: float
    """`dvc status`."""
    question: float
    flow: float
    """A flow run that finds all up to date."""
    build: float
    """The flow run that builds all."""

    def text(self) -> str:
        return (
            f"{self.stages:6}{self.status:12.2f}{self.question:12.2f}{self.question / self.status:8.2f}"
            f"{self.flow:12.2f}{self.build / self.stages:14.2f}"
        )


HEADER = f"{'stages':>6}{'dvc status':>12}{'question':>12}{'ratio':>8}{'flow run':>12}{'build, a stage':>14}"


def measure(folder: Path, stages: int, environment: dict[str, str], repeats: int = 3) -> Figures:
    """Make a repository in `folder` and build it. `environment` names a Prefect server. Of `repeats` measurements on
    the finished graph, the smallest counts.
    """
    folder.mkdir(parents=True)
    (folder / "dvc.yaml").write_text(graph(stages))
    (folder / "in.txt").write_text("one\n")
    flow, dvc = [sys.executable, "-m", "flows.pipeline"], [sys.executable, "-m", "dvc"]
    cpu_seconds([*dvc, "init", "-q", "--no-scm"], folder, environment)
    build = cpu_seconds([*flow, "--cpu-slots", "4"], folder, environment)

    def least(words: Sequence[str]) -> float:
        return min(cpu_seconds(words, folder, environment) for _ in range(repeats))

    return Figures(stages, least([*dvc, "status"]), least([sys.executable, "-c", ASK]), least(flow), build)


def graph(stages: int) -> str:
    """A dvc.yaml of so many stages, an odd number rounded up to one."""
    keys = [f"m{number:03}" for number in range(stages // 2)]
    return f"""
stages:
  prepare: {{cmd: cp in.txt prepared.txt, deps: [in.txt], outs: [prepared.txt]}}
  train:
    foreach: {keys}
    do: {{cmd: "cp prepared.txt t_${{item}}.txt", deps: [prepared.txt], outs: ["t_${{item}}.txt"], meta: {{gpus: 1}}}}
  evaluate:
    foreach: {keys[: (stages - 1) // 2]}
    do: {{cmd: "cp t_${{item}}.txt e_${{item}}.txt", deps: ["t_${{item}}.txt"], outs: ["e_${{item}}.txt"]}}
"""


def cpu_seconds(words: Sequence[str], folder: Path, environment: dict[str, str]) -> float:
    """CPU seconds of a command with its descendants."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{' '.join(words)} ended with status {done.returncode}:\n{done.stdout}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", type=int, nargs="+", default=[10, 57, 200], metavar="N", help="default: 10 57 200")
    numbers = parser.parse_args().stages
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PREFECT_HOME"] = f"{folder}/prefect"
        os.environ["ACTIONZOO_SLOTS"] = f"{folder}/slots"
        from flows.server.keys import new_key
        from flows.server.process import client_settings, free_port, local_server

        port, key = free_port(), new_key()
        with local_server(port, key, with_ui=False):
            environment = os.environ | client_settings(port, key)
            environment |= {"PYTHONPATH": os.pathsep.join([str(PROJECT), str(PROJECT / "src")])}
            print("CPU seconds\n" + HEADER, flush=True)
            for number in numbers:
                print(measure(Path(folder, str(number)), number, environment).text(), flush=True)


if __name__ == "__main__":
    main()
