"""Results of the version before: found, and taken over instead of computed again. To be deleted with the next version.

That version had other outputs, which persisted: the checkpoints and result.json where they are now, and everything else
as metrics/<dataset>/<model>.<kind>. DVC deletes an output of the same name before it starts a stage of this version. So
the files are looked for where the stage `settings`, which runs first, has put links to them; where they were; and,
by their md5 in dvc.lock, in DVC's cache.
"""

import csv
import dataclasses
import hashlib
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..errors import UserError
from ..files.dvc_cache import cached_file
from ..files.hashes import md5_of
from ..files.json_files import write_json
from ..files.links import link_or_copy
from ..files.yaml_files import read_yaml
from ..recipe import as_dict
from ..records import Benchmark, FileRecord, Record, RunRecord, TestResult
from ..run_files import Measured, RunFiles, logs_of

if TYPE_CHECKING:
    from ..job import Job

_SAVED = Path(".scratch", "before")
_RUN = ("best.pth", "latest.pth", "recipe.json", "result.json", "views.safetensors")
_FILES: dict[Measured, tuple[str, ...]] = {
    "train": ("best.pth", "latest.pth", "recipe.json", "train.csv", "val.csv"),
    "evaluate": ("result.json", "views.safetensors", "json", "classes.csv", "confusion.csv", "views.csv"),
    "benchmark": ("benchmark.json",),
}
"""Stage -> what it wrote: names in the run's folder (_RUN), else the ends of names in metrics/."""

R = TypeVar("R", bound=Record)


def save_links(root: Path, workspace: Path) -> None:
    """Link the files of that version's runs to .scratch/before, where DVC does not delete them. For `settings`."""
    for curve in (root / "metrics").glob("*/*.train.csv"):
        dataset, model = curve.parent.name, curve.name.removesuffix(".train.csv")
        for name in (name for names in _FILES.values() for name in names):
            path = _path(dataset, model, name)
            link = workspace / _SAVED / path
            if (root / path).is_file() and not link.exists():
                link.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(root / path, link)


def remove_links(root: Path, workspace: Path, dataset: str, models: Iterable[str]) -> None:
    """Delete what that version left of stages that have run in this one. For `report`, which comes last."""
    for model in models:
        files = RunFiles(root, dataset, model)
        for stage, names in _FILES.items():
            if not files.metrics(stage).is_file():
                continue
            for name in names:
                path = _path(dataset, model, name)
                (workspace / _SAVED / path).unlink(missing_ok=True)
                if name not in _RUN:
                    (root / path).unlink(missing_ok=True)
            if stage == "evaluate":
                for kind in ("errors", "looks"):
                    shutil.rmtree(root / _path(dataset, model, kind), ignore_errors=True)
    saved = workspace / _SAVED
    if not any(path.is_file() for path in saved.rglob("*")):
        shutil.rmtree(saved, ignore_errors=True)


def adopt_training(job: "Job", *, is_first: bool = True) -> RunRecord | None:
    """Publish the finished training of that version by the same recipe on the same clips; None if there is none.

    All processes find the same; only the first publishes.
    """
    found = _Before(job, "train")
    record = found.record("recipe.json", RunRecord)
    if record is None or not job.is_training_of(record, old_manifest_sha256(job)):
        return None
    files = job.files
    for name, known in record.files.items():
        path = found.file(name if name.endswith(".pth") else name.removeprefix(f"{job.model}."))
        if path is None or md5_of(path) != known.md5:
            return None
    targets = {
        "best.pth": files.best,
        "latest.pth": files.latest,
        "train.csv": files.plot("loss"),
        "val.csv": files.plot("top1"),
    }
    paths = {target: path for name, target in targets.items() if (path := found.file(name)) is not None}
    if len(paths) < len(targets):
        return None
    if not is_first:
        return record
    from ..engine.logs import write_history

    for target, path in paths.items():
        _place(path, target)
    with files.plot("loss").open(encoding="utf-8", newline="") as file:
        *_, last = csv.DictReader(file)
    kept = {path.name: FileRecord(md5=md5_of(path), size=path.stat().st_size) for path in (files.best, files.latest)}
    record = dataclasses.replace(
        record,
        fingerprint=job.training_fingerprint(),
        manifest_sha256=job.manifest.sha256,
        recipe=as_dict(job.recipe),
        files=kept,
    )
    write_history(logs_of(files.logs, ""), files.history)
    write_json(files.metrics("train"), record.table(float(last["loss"])))
    record.write(files.recipe)
    return record


def adopt_states(job: "Job", num_processes: int) -> None:
    """Move the saved states that the same training left in that version to where this version looks for them."""
    before = job.files.scratch(job.resume_key(num_processes, old_manifest_sha256(job)))
    now = job.files.scratch(job.resume_key(num_processes))
    if before.is_dir() and not now.exists():
        before.rename(now)


def adopt_evaluation(job: "Job", checkpoint_md5: str, *, is_first: bool = True) -> TestResult | None:
    """Publish result.json and view logits of that version for the same checkpoint and clips; None if there are none."""
    from ..engine.views import fingerprint_of

    found = _Before(job, "evaluate")
    result = found.record("result.json", TestResult)
    path, views = found.file("result.json"), found.file("views.safetensors")
    if result is None or path is None or views is None:
        return None
    known = job.old_evaluation_fingerprint(checkpoint_md5, manifest_sha256=old_manifest_sha256(job))
    if not result.fingerprint == fingerprint_of(views) == known:
        return None
    if is_first:
        _place(views, job.files.views)
        _place(path, job.files.result)
    return result


def adopt_benchmark(job: "Job", fingerprint: str) -> Benchmark | None:
    """That version's measurement with this fingerprint, which is for `old_manifest_sha256`; None if there is none."""
    measured = _Before(job, "benchmark").record("benchmark.json", Benchmark)
    return measured if measured is not None and measured.fingerprint == fingerprint else None


def old_manifest_sha256(job: "Job") -> str:
    """The hash of `old_manifest`; empty without a manifest."""
    return hashlib.sha256(old_manifest(job)).hexdigest() if job.has_manifest else ""


def old_manifest(job: "Job") -> bytes:
    """The manifest as that version wrote it, whose names of shards had no key."""
    return re.sub(rb"-[0-9a-f]{8}(?=\.tar,)", b"", job.manifest.path.read_bytes())


class _Before:
    """The files of one stage of that version."""

    def __init__(self, job: "Job", stage: str):
        self._job = job
        self._md5s = {} if job.files.work_dir else _locked_md5s(job.root, f"{stage}@{job.model}")

    def file(self, name: str) -> Path | None:
        """`name` is that of a file in the run's folder, or train.csv and the like."""
        files = self._job.files
        if files.work_dir:
            return None
        path = _path(files.dataset, files.model, name)
        for folder in ((files.workspace or files.root) / _SAVED, files.root):
            if (folder / path).is_file():
                return folder / path
        md5 = self._md5s.get(path)
        return cached_file(files.root, md5) if md5 else None

    def record(self, name: str, kind: type[R]) -> R | None:
        """None for a damaged file, too: then the work is done again."""
        path = self.file(name)
        try:
            return kind.read(path) if path else None
        except UserError:
            return None


def _locked_md5s(root: Path, stage: str) -> dict[str, str]:
    """Path -> md5 of the stage's outputs in dvc.lock, which DVC rewrites after the stage."""
    try:
        entry = read_yaml(root / "dvc.lock", "delete it")["stages"][stage]
        return {out["path"]: out["md5"] for out in entry["outs"]}
    except (UserError, OSError, KeyError, TypeError):
        return {}


def _path(dataset: str, model: str, name: str) -> str:
    return f"runs/{dataset}/{model}/{name}" if name in _RUN else f"metrics/{dataset}/{model}.{name}"


def _place(source: Path, target: Path) -> None:
    if source != target:
        target.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(source, target)
