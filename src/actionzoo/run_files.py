"""Where the files of a model's run lie."""

import dataclasses
import re
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """Where the files of a model's run lie: in the project's folders, or all of them in `work_dir`."""

    root: Path
    dataset: str
    model: str
    work_dir: Path | None = None

    @property
    def run(self) -> Path:
        return self.work_dir or self.root / "runs" / self.dataset / self.model

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
    def result(self) -> Path:
        """TestResult."""
        return self.run / "result.json"

    @property
    def views(self) -> Path:
        """Logits of every view of the evaluation."""
        return self.run / "views.safetensors"

    def metrics(self, kind: str = "json") -> Path:
        """kind: json (Metrics), benchmark.json (Benchmark), train.csv and val.csv (curves)."""
        return (self.work_dir or self.root / "metrics" / self.dataset) / f"{self.model}.{kind}"

    @property
    def unfinished(self) -> Path:
        """Folder of the model's interrupted trainings."""
        if self.work_dir:
            return self.work_dir / ".scratch"
        return self.root / ".scratch" / "train" / self.dataset / self.model

    def scratch(self, fingerprint: str) -> Path:
        """Folder of one interrupted training; a changed recipe has another one."""
        return self.unfinished / fingerprint[:16]


def newest_logs(run: Path) -> dict[str, Path]:
    """The log files of the last training in a run's folder: log (<time>.log) and json (<time>.log.json), if there."""
    stamps = {path.name.split(".")[0] for path in run.glob("*.log*") if _LOG.fullmatch(path.name) and path.is_file()}
    stamp = max(stamps, default="")
    logs = {"log": run / f"{stamp}.log", "json": run / f"{stamp}.log.json"}
    return {kind: path for kind, path in logs.items() if path.is_file()}


_LOG = re.compile(r"[0-9]{8}_[0-9]{6}\.log(\.json)?")
