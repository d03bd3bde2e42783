"""A project with the shipped flows, deployments and params.yaml, whose stages only pretend to work.

A training touches `begun_<model>`, tells how far it is, and ends once there is a file `go`.
"""

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

DVC_YAML = """
stages:
  resize:
    foreach: [256, 320]
    do:
      cmd: mkdir -p data/${data.name} && echo ${item} > data/${data.name}/videos_${item}
      params: [data.name]
      outs: ["data/${data.name}/videos_${item}"]
  frames:
    foreach: [256, 320]
    do:
      cmd: cp data/${data.name}/videos_${item} data/${data.name}/frames_${item}
      deps: ["data/${data.name}/videos_${item}"]
      outs: ["data/${data.name}/frames_${item}"]
  train:
    foreach: ${recipes}
    do:
      cmd: >-
        touch begun_${key}; echo $CUDA_VISIBLE_DEVICES >> gpus;
        printf '{"what":"${key}","done":30,"total":1960,"unit":"steps","seconds_left":2460,"per_epoch":10}'
        > $ACTIONZOO_PROGRESS/progress.json;
        while [ ! -e go ]; do sleep 0.1; done;
        mkdir -p runs/${data.name} && echo ${key} > runs/${data.name}/${key}.pth
      deps: ["data/${data.name}/${item.clips.form}_${item.clips.short_side}"]
      outs: ["runs/${data.name}/${key}.pth"]
      meta: {gpus: 1}
  evaluate:
    foreach: ${recipes}
    do:
      cmd: mkdir -p metrics/${data.name} && cp runs/${data.name}/${key}.pth metrics/${data.name}/${key}.txt
      deps: ["runs/${data.name}/${key}.pth"]
      outs: ["metrics/${data.name}/${key}.txt"]
  benchmark:
    foreach: ${recipes}
    do:
      cmd: mkdir -p speed/${data.name} && echo 1 > speed/${data.name}/${key}.txt
      deps: ["data/${data.name}/${item.clips.form}_${item.clips.short_side}"]
      outs: ["speed/${data.name}/${key}.txt"]
  report:
    cmd: cat metrics/${data.name}/*.txt > report.txt
    deps: ["metrics/${data.name}"]
    outs: [report.txt]
"""

REPRODUCTION = """
vars: [../params.yaml]
stages:
  evaluate:
    foreach: ${recipes}
    do:
      cmd: cp ../data/${data.name}/${item.clips.form}_${item.clips.short_side} ${key}.txt
      deps: ["../data/${data.name}/${item.clips.form}_${item.clips.short_side}"]
      outs: ["${key}.txt"]
"""


def make_zoo(folder: Path) -> Path:
    """Make the project in a new folder."""
    (folder / "reproduction").mkdir(parents=True)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    for repository, stages in ((folder, DVC_YAML), (folder / "reproduction", REPRODUCTION)):
        options = [] if repository == folder else ["--subdir"]
        subprocess.run([sys.executable, "-m", "dvc", "init", "-q", *options], cwd=repository, check=True)
        (repository / "dvc.yaml").write_text(textwrap.dedent(stages))
    for name in ("params.yaml", "published.yaml", "prefect.yaml"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "flows", folder / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    return folder
