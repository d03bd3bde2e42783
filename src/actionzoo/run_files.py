"""Where the files of a model's run lie.

runs/<dataset>/<model>/     best.pth latest.pth recipe.json history.jsonl    written by train
                            result.json views.safetensors errors/            evaluate
                            benchmark.json                                   benchmark
                            <time>.log <time>.log.json <time>.run.json <time>.environment.txt <time>.system.jsonl
                                                 of every training, no outputs of a stage: they hold times
metrics/<dataset>/<stage>/<model>/                               a small table for `dvc metrics` and `dvc exp show`
plots/<dataset>/<kind>/<model>/                                  a table for `dvc plots`
reproduction/                                                    the same of published weights: ReproductionFiles
"""

import dataclasses
import json
import re
import shutil
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Literal, get_args

Measured = Literal["train", "evaluate", "benchmark"]
"""The stages that write a table of metrics."""

_METRICS: dict[Measured, str] = {"train": "train.json", "evaluate": "test.json", "benchmark": "speed.json"}

Plot = Literal["loss", "top1", "classes", "confusion", "views"]
"""Kinds of plots: loss by epoch, validation top-1 by epoch, accuracy by class, confusion, top-1 by number of views."""


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """Where the files of a model's run lie: in the project's folders, or all of them in `work_dir`."""

    root: Path
    dataset: str
    model: str
    work_dir: Path | None = None
    workspace: Path | None = None
    """The folder whose .scratch holds unfinished work; None: root."""

    @property
    def run(self) -> Path:
        return self.work_dir or self.root / "runs" / self.dataset / self.model

    @property
    def logs(self) -> Path:
        """Folder of the logs. Experiments share it: their own folders are temporary, and no output holds the logs."""
        return self.work_dir or (self.workspace or self.root) / "runs" / self.dataset / self.model

    @property
    def base(self) -> Path:
        """The folder that all files of the run lie in."""
        return self.work_dir or self.root

    @property
    def best(self) -> Path:
        """The checkpoint of the best epoch."""
        return self.run / "best.pth"

    @property
    def latest(self) -> Path:
        """The checkpoint of the last epoch."""
        return self.run / "latest.pth"

    @property
    def recipe(self) -> Path:
        """RunRecord."""
        return self.run / "recipe.json"

    @property
    def history(self) -> Path:
        """The events of the training's JSON log, without what differs from run to run: durations, memory."""
        return self.run / "history.jsonl"

    def execution(self, stamp: str) -> Path:
        """records.Execution of the training that began at `stamp`."""
        return self.logs / f"{stamp}.run.json"

    def executions(self) -> dict[str, Path]:
        """Stamp -> `execution` of every training here, the oldest first."""
        paths = sorted(path for path in self.logs.glob("*.run.json") if _STAMP.fullmatch(path.name.partition(".")[0]))
        return {path.name.partition(".")[0]: path for path in paths}

    def environment(self, stamp: str) -> Path:
        """The machine and the packages of the training that began at `stamp`."""
        return self.logs / f"{stamp}.environment.txt"

    def system(self, stamp: str) -> Path:
        """How busy the machine was during the training that began at `stamp`."""
        return self.logs / f"{stamp}.system.jsonl"

    @property
    def result(self) -> Path:
        """TestResult."""
        return self.run / "result.json"

    @property
    def views(self) -> Path:
        """Logits of every view of the evaluation."""
        return self.run / "views.safetensors"

    @property
    def errors(self) -> Path:
        """Folder of the error analysis."""
        return self.run / "errors"

    @property
    def benchmark(self) -> Path:
        """Benchmark."""
        return self.run / "benchmark.json"

    def metrics(self, stage: Measured) -> Path:
        """The table of a few numbers that DVC shows; complete records are in `run`."""
        if self.work_dir:
            return self.work_dir / _METRICS[stage]
        return self.root / "metrics" / self.dataset / stage / self.model / _METRICS[stage]

    def plot(self, kind: Plot) -> Path:
        """The table of a plot."""
        if self.work_dir:
            return self.work_dir / f"{kind}.csv"
        return self.root / "plots" / self.dataset / kind / self.model / f"{kind}.csv"

    @property
    def unfinished(self) -> Path:
        """Folder of the model's interrupted trainings."""
        return self._scratch("train")

    def scratch(self, fingerprint: str) -> Path:
        """Folder of one interrupted training; a changed recipe has another one."""
        return self.unfinished / fingerprint[:16]

    @property
    def unfinished_evaluations(self) -> Path:
        """Folder of the model's interrupted evaluations."""
        return self._scratch("evaluate")

    @property
    def unfinished_reproductions(self) -> Path:
        """Folder of finished evaluations of published weights that DVC may not have yet."""
        return self._scratch("reproduce")

    @property
    def lock(self) -> Path:
        """Held by the training that writes to `run`."""
        return self.base / ".scratch" / "train" / self.dataset / self.model / ".lock"

    @property
    def page(self) -> Path:
        """The model's part of the report, as its MLflow run gets it."""
        return self._scratch("record") / "report.html"

    @property
    def record_lock(self) -> Path:
        """Held by the process that brings the MLflow record of the model up to date."""
        return self._scratch("record") / ".lock"

    def _scratch(self, stage: str) -> Path:
        if self.work_dir:
            return self.work_dir / ".scratch"
        return (self.workspace or self.root) / ".scratch" / stage / self.dataset / self.model


@dataclasses.dataclass(frozen=True)
class ReproductionFiles:
    """Where the files of a model's published weights lie, in the graph of its own that evaluates them."""

    root: Path
    dataset: str
    model: str

    @property
    def project(self) -> Path:
        """The folder of that graph, which has a DVC cache of its own."""
        return self.root / "reproduction"

    @property
    def results(self) -> Path:
        return self.project / "results" / self.dataset / self.model

    @property
    def record(self) -> Path:
        """records.Reproduction."""
        return self.results / "reproduction.json"

    def result(self, kind: str) -> Path:
        """records.TestResult of a published file; kind is ckpt or infer_ckpt."""
        return self.results / f"{kind}.json"

    def views(self, kind: str) -> Path:
        return self.results / f"{kind}.views.safetensors"

    @property
    def metrics(self) -> Path:
        """The table of a few numbers that DVC shows."""
        return self.project / "metrics" / self.dataset / self.model / "reproduction.json"

    @property
    def report(self) -> Path:
        """Folder of the table of all models."""
        return self.project / "report" / self.dataset


def make_output_folders(root: Path, dataset: str, models: Iterable[str]) -> None:
    """Make the folders of metrics and plots of models that were not built yet, which stay empty.

    `dvc metrics` and `dvc plots` report a folder output that is absent as "failed to load", and say nothing of an empty
    one. Folders that dvc.lock knows are left alone: if such a folder is absent, `dvc pull` or `dvc checkout` is due.
    """
    known = _locked(root)
    for folder in _tables(root, dataset, models):
        if _line(root, folder) not in known:
            folder.mkdir(parents=True, exist_ok=True)


def delete_tables(root: Path, dataset: str, kept: Collection[str]) -> list[str]:
    """Delete the folders of metrics and plots of all models but those to keep; returns the models that had some.

    The report depends on all folders that are there, and a colleague's clone has only those of the graph. A folder that
    dvc.lock does not know is kept: DVC could not restore it.
    """
    known = _locked(root)
    folders = [path for top in ("metrics", "plots") for path in sorted((root / top / dataset).glob("*/*"))]
    gone = [folder for folder in folders if folder.name not in kept and _line(root, folder) in known]
    for folder in gone:
        shutil.rmtree(folder)
    return list(dict.fromkeys(folder.name for folder in gone))


def _tables(root: Path, dataset: str, models: Iterable[str]) -> Iterator[Path]:
    """The folders of metrics and plots of models."""
    for model in models:
        files = RunFiles(root, dataset, model)
        yield from (files.metrics(stage).parent for stage in _METRICS)
        yield from (files.plot(kind).parent for kind in get_args(Plot))


def _locked(root: Path) -> str:
    """The text of dvc.lock; empty if it is not there."""
    lock = root / "dvc.lock"
    return lock.read_text(encoding="utf-8") if lock.is_file() else ""


def _line(root: Path, folder: Path) -> str:
    """The line of dvc.lock that names the folder."""
    return f"path: {folder.relative_to(root).as_posix()}\n"


def logs_of(folder: Path, mark: str) -> list[Path]:
    """The <time>.log.json files in RunFiles.logs that belong to the training with this RunRecord.log_mark, in the order
    of their times.

    The folder holds the logs of every training of the model, and DVC restores the outputs of any of them. '' stands for
    a training of version 0.1, whose logs do not say to which training they belong.
    """
    paths = sorted(path for path in folder.glob("*.log.json") if _LOG.fullmatch(path.name) and path.is_file())
    return [path for path in paths if _fingerprint(path) == mark]


def newest_logs(folder: Path, mark: str) -> dict[str, Path]:
    """The files of the last of `logs_of`: log (<time>.log) and json (<time>.log.json), if there."""
    if not (paths := logs_of(folder, mark)):
        return {}
    text = paths[-1].with_suffix("")
    return {"json": paths[-1]} | ({"log": text} if text.is_file() else {})


_STAMP = re.compile(r"[0-9]{8}_[0-9]{6}")

_LOG = re.compile(rf"{_STAMP.pattern}\.log\.json")


def _fingerprint(log: Path) -> str:
    """The fingerprint in the log's first line; empty if it has none."""
    with log.open(encoding="utf-8", errors="replace") as file:
        line = file.readline(_MAX_LINE)
    try:
        first = json.loads(line)
    except (ValueError, RecursionError):
        return ""
    found = first.get("fingerprint") if isinstance(first, dict) else None
    return found if isinstance(found, str) else ""


_MAX_LINE = 1 << 20
