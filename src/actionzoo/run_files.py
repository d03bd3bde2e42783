"""Where a row's files lie, and the device that it runs on: what training and testing share."""

import re
from dataclasses import dataclass
from pathlib import Path

from .errors import UserError
from .params import Params
from .recipe import Recipe


@dataclass(frozen=True)
class RowFiles:
    """Where a row's files lie: in the project's folders, or all in one that the user names."""

    root: Path
    dataset: str
    row: str
    work_dir: Path | None = None

    @property
    def run(self) -> Path:
        return self.work_dir or self.root / "runs" / self.dataset / self.row

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
        return (self.work_dir or self.root / "metrics" / self.dataset) / f"{self.row}.{kind}"

    @property
    def unfinished(self) -> Path:
        """Folder of unfinished trainings."""
        if self.work_dir:
            return self.work_dir / ".scratch"
        return self.root / ".scratch" / "train" / self.dataset / self.row

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


def device_type(params: Params) -> str:
    """cuda or cpu. Raises UserError if params ask for a GPU that torch does not see."""
    import torch

    if params.runtime.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"{params.path}: runtime.device is cuda, but torch {torch.__version__} sees no GPU; "
            "set it to auto or cpu, or install a CUDA build of torch"
        )
    return "cuda" if params.runtime.device != "cpu" and torch.cuda.is_available() else "cpu"


def device_of(params: Params, local_rank: int = 0):
    """The device of a process, by its number among those on this machine."""
    import torch

    return torch.device("cuda", local_rank) if device_type(params) == "cuda" else torch.device("cpu")
