"""A job: one recipe to be run, with everything that running it takes."""

import re
from dataclasses import dataclass
from pathlib import Path

from .params import Params
from .recipe import Recipe


@dataclass(frozen=True)
class RunFiles:
    """Where a row's files lie: in the project's folders, or all in one that the user names."""

    root: Path
    dataset: str
    model: str
    work_dir: Path | None = None

    @property
    def run(self) -> Path:
        return self.work_dir or self.root / "runs" / self.dataset / self.model

    @property
    def best(self) -> Path:
        return self.run / "best.pth"

    @property
    def latest(self) -> Path:
        return self.run / "latest.pth"

    @property
    def recipe(self) -> Path:
        """What the run was made of; written last, so that it vouches for the rest."""
        return self.run / "recipe.json"

    @property
    def result(self) -> Path:
        return self.run / "result.json"

    @property
    def views(self) -> Path:
        """Logits of every view, as the evaluation saw them."""
        return self.run / "views.safetensors"

    def metrics(self, kind: str = "json") -> Path:
        """kind: json (evaluation), benchmark.json, train.csv, val.csv."""
        return (self.work_dir or self.root / "metrics" / self.dataset) / f"{self.model}.{kind}"

    @property
    def unfinished(self) -> Path:
        """Folder of unfinished trainings."""
        if self.work_dir:
            return self.work_dir / ".scratch"
        return self.root / ".scratch" / "train" / self.dataset / self.model

    def scratch(self, fingerprint: str) -> Path:
        """Of an unfinished training; a changed recipe has another one."""
        return self.unfinished / fingerprint[:16]


def newest_logs(run: Path) -> dict[str, Path]:
    """log and json of the last training in a run's folder, <time>.log and <time>.log.json, as far as they are there."""
    stamps = {path.name.split(".")[0] for path in run.glob("*.log*") if _LOG.fullmatch(path.name) and path.is_file()}
    stamp = max(stamps, default="")
    logs = {"log": run / f"{stamp}.log", "json": run / f"{stamp}.log.json"}
    return {kind: path for kind, path in logs.items() if path.is_file()}


_LOG = re.compile(r"[0-9]{8}_[0-9]{6}\.log(\.json)?")


def data_folder(params: Params, recipe: Recipe, root: Path) -> Path:
    """The prepared form that the row reads, e.g. data/demo/videos_256."""
    return root / "data" / params.name / f"{recipe.clips.form}_{recipe.clips.short_side}"
