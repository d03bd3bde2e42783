"""The results of the zoo's models, beside what was published for them.

Reads small files only, and needs neither torch nor MLflow. A model that has not run stays in the report as such. The
report is the input of tables.py and page.py: equal files give equal bytes - no clock, no run id, no absolute path.
"""

import csv
import dataclasses
import math
import os
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..accuracy import KINETICS400, PUBLISHED_CLIPS, Comparison, Reason, comparable_top1, compare
from ..errors import UserError
from ..records import Benchmark, Metrics, RunRecord, TestResult
from ..run_files import RunFiles
from .error_analysis import ErrorAnalysis, read_error_analysis

if TYPE_CHECKING:
    from ..params import Params
    from ..recipe import Published

ClipStates = Mapping[str, Mapping[str, Mapping[str, int]]]
"""Prepared data (videos_256) -> split -> state -> number of clips."""

MARKS: dict[Reason, str] = {"data": "†", "recipe": "‡", "part": "§"}
"""Why a number of ours is no result of the published model: another data set, a changed recipe, too few clips."""

Measure = Literal["accuracy", "speed", "memory"]

_SHAPING: dict[Measure, tuple[str, ...]] = {
    "speed": ("model.", "clips.", "augment.resize:", "test."),
    "memory": ("model.", "clips.", "test.", "init.frozen_stages:", "augment.crop_size:", "optim.videos_per_gpu:"),
}
"""The parts of a recipe that a benchmark depends on; an accuracy depends on all of it."""


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """A model of the zoo, as params.yaml has it."""

    name: str
    family: str
    short_side: int
    """Pixels, of the data as stored."""
    published: "Published | None"
    overrides: tuple[str, ...] = ()
    """What the data set changes of the recipe: `schedule.epochs: 256 -> 10`."""


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """A point of a training's curves; what is absent or not finite is None."""

    split: Literal["train", "val"]
    epoch: float | None
    loss: float | None
    top1: float | None
    """0 to 1."""
    top5: float | None
    """0 to 1."""
    lr: float | None


@dataclass(frozen=True, kw_only=True)
class ModelResults:
    """Everything that was measured for a model here."""

    entry: ModelEntry
    metrics: Metrics | None
    """None: not evaluated yet. Else top1 and top5 are there."""
    comparison: Comparison
    """Our top1 beside the published one."""
    benchmark: Benchmark | None
    """None: not measured yet."""
    curves: Sequence[CurvePoint]
    files: Mapping[str, str]
    """ckpt, result, curves, recipe, benchmark -> address relative to the report; only files that exist. Logs are not
    among them: their names hold a clock time (run_links)."""
    errors: ErrorAnalysis | None = None
    """None if the evaluation left no error analysis."""
    trained_with: Mapping[str, str] = field(default_factory=dict)
    """actionzoo and torch -> version; empty if the training does not say."""

    @property
    def has_run(self) -> bool:
        """Whether there is any number of ours: the model was trained, evaluated or measured."""
        return self.metrics is not None or self.benchmark is not None or bool(self.curves)

    @property
    def marks(self) -> dict[Measure, tuple[Reason, ...]]:
        """Why each of our numbers is no result of the published model."""
        overrides = self.entry.overrides
        marks: dict[Measure, tuple[Reason, ...]] = {"accuracy": self.comparison.reasons}
        for measure, keys in _SHAPING.items():
            marks[measure] = ("recipe",) if any(override.startswith(keys) for override in overrides) else ()
        return marks


@dataclass(frozen=True, kw_only=True)
class ZooReport:
    dataset: str
    models: Sequence[ModelResults]
    """In the order of params.yaml."""
    clip_states: ClipStates = field(default_factory=dict)

    @property
    def evaluated(self) -> list[ModelResults]:
        return [model for model in self.models if model.metrics is not None]

    @property
    def ran(self) -> list[ModelResults]:
        return [model for model in self.models if model.has_run]

    @property
    def families(self) -> dict[str, list[ModelResults]]:
        """Title of a family -> its models."""
        families: dict[str, list[ModelResults]] = {}
        for model in self.models:
            families.setdefault(_FAMILIES.get(model.entry.family, model.entry.family), []).append(model)
        return families

    @property
    def changed(self) -> dict[tuple[str, ...], list[str]]:
        """Overrides -> names of the models that have exactly these."""
        changed: dict[tuple[str, ...], list[str]] = {}
        for model in self.models:
            if model.entry.overrides:
                changed.setdefault(model.entry.overrides, []).append(model.entry.name)
        return changed


WarningKey = Literal["nothing_ran", "not_kinetics", "overridden", "overridden_some", "partial", "busy"]
"""Names of the warnings' texts in table_texts."""


def model_entries(params: "Params") -> list[ModelEntry]:
    """The models of params.yaml, with what the chosen data set changes of their recipes."""
    return [
        ModelEntry(
            name=name,
            family=recipe.model.family,
            short_side=recipe.clips.short_side,
            published=params.published.get(name),
            overrides=tuple(params.overrides(name)),
        )
        for name, recipe in params.recipes.items()
    ]


def read_report(
    *, dataset: str, entries: Iterable[ModelEntry], root: Path, out: Path, clip_states: ClipStates | None = None
) -> ZooReport:
    """The models' results, from the folders root/runs/<dataset>/<model> and their plots.

    `out` is the folder of the report, to which its links are relative. Raises UserError for a damaged file.
    """
    models = [_results(entry, root, dataset, out) for entry in entries]
    return ZooReport(dataset=dataset, models=models, clip_states=clip_states or {})


def warnings_of(report: ZooReport) -> list[tuple[WarningKey, dict[str, str | int]]]:
    """Everything that keeps our numbers from being results on Kinetics-400, with the values of the warnings' texts."""
    warnings: list[tuple[WarningKey, dict[str, str | int]]] = []
    total, ran = len(report.models), len(report.ran)
    if not ran:
        warnings.append(("nothing_ran", {"models": total}))
    if report.dataset != KINETICS400:
        warnings.append(("not_kinetics", {"dataset": report.dataset}))
    if changed := sum(bool(model.entry.overrides) for model in report.ran):
        key: WarningKey = "overridden" if ran == total else "overridden_some"
        warnings.append((key, {"count": changed, "models": total, "waiting": total - ran}))
    if partial := sum("part" in model.comparison.reasons for model in report.evaluated):
        warnings.append(("partial", {"count": partial, "models": total, "clips": f"{PUBLISHED_CLIPS:,}"}))
    if busy := sum(model.benchmark is not None and model.benchmark.is_disturbed for model in report.models):
        warnings.append(("busy", {"count": busy, "models": total}))
    return warnings


_PUBLISHED_KEYS = (
    "gpus",
    "backbone",
    "pretrained",
    "inference",
    "gpu_mem_mb",
    "ckpt",
    "infer_ckpt",
    "log",
    "json",
)


def as_json(report: ZooReport) -> dict[str, Any]:
    """The report as plain values: the content of zoo.json."""
    return {
        "dataset": report.dataset,
        "rows": [_model_as_json(model) for model in report.models],
        "clips": {
            prepared: {split: dict(counts) for split, counts in splits.items()}
            for prepared, splits in report.clip_states.items()
        },
    }


def _model_as_json(model: ModelResults) -> dict[str, Any]:
    entry, metrics, gap = model.entry, model.metrics, model.comparison.gap_points
    return {
        "name": entry.name,
        "family": entry.family,
        "short_side": entry.short_side,
        "published": _published_as_json(entry.published),
        "ours": None if metrics is None else metrics.as_json(),
        **{f"{name}_interval": _rounded_interval(metrics, name) for name in ("top1", "top5")},
        "top1_gap_points": None if gap is None else round(gap, 4),
        "is_comparable": model.comparison.is_comparable,
        "marks": {measure: list(marks) for measure, marks in model.marks.items()},
        "overrides": list(entry.overrides),
        "benchmark": None if model.benchmark is None else model.benchmark.as_json(),
        "machine_was_busy": model.benchmark is not None and model.benchmark.is_disturbed,
        "most_confused": [dataclasses.asdict(pair) for pair in model.errors.pairs] if model.errors else [],
        "worst_clips": [dataclasses.asdict(clip) for clip in model.errors.worst] if model.errors else [],
        "files": dict(model.files),
    }


def _published_as_json(published: "Published | None") -> dict[str, Any] | None:
    """Numbers, and beside them the texts they were published as: 77.90."""
    if published is None:
        return None
    texts = {f"{name}_text": "/".join(map(str, getattr(published, name))) for name in ("top1", "top5")}
    others = {key: getattr(published, key) for key in _PUBLISHED_KEYS}
    numbers = {"top1": list(published.top1), "top5": list(published.top5)}
    return numbers | texts | others | {"note": published.note.en}


def _rounded_interval(metrics: Metrics | None, name: str) -> list[float] | None:
    return None if metrics is None else [round(bound, 6) for bound in metrics.interval(name)]


_FAMILIES = {"slowfast": "SlowFast", "csn": "CSN"}


def _results(entry: ModelEntry, root: Path, dataset: str, out: Path) -> ModelResults:
    run = RunFiles(root, dataset, entry.name)
    result = TestResult.read_if_there(run.result)
    metrics = result.metrics if result else None
    for key in ("top1", "top5"):
        if metrics is not None and key not in metrics.accuracies:
            raise UserError(f"{run.result} has no {key}; {TestResult.rebuild(run.result)}")
    loss, top1 = run.plot("loss"), run.plot("top1")
    files = {
        "ckpt": run.best,
        "result": run.result,
        "curves": loss,
        "recipe": run.recipe,
        "benchmark": run.benchmark,
    }
    return ModelResults(
        entry=entry,
        metrics=metrics,
        comparison=compare(dataset, entry.overrides, metrics, comparable_top1(entry.published)),
        benchmark=Benchmark.read_if_there(run.benchmark),
        curves=_read_curve(loss, "train", entry.name) + _read_curve(top1, "val", entry.name),
        files={kind: _address(path, out) for kind, path in files.items() if path.is_file()},
        errors=None if metrics is None else read_error_analysis(run),
        trained_with=_versions(run),
    )


def _versions(run: RunFiles) -> Mapping[str, str]:
    """Those of the training; none without a sound run record, which costs only a note."""
    try:
        record = RunRecord.read_if_there(run.recipe)
    except UserError:
        return {}
    return record.versions if record else {}


def _read_curve(path: Path, split: Literal["train", "val"], model: str) -> list[CurvePoint]:
    """The points of a curve; none if there is no file. Raises UserError."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            lines = csv.DictReader(file)
            try:
                return [
                    CurvePoint(
                        split=split,
                        epoch=_finite(line.get("epoch")),
                        loss=_finite(line.get("loss")),
                        top1=_finite(line.get("top1")),
                        top5=_finite(line.get("top5")),
                        lr=_finite(line.get("lr")),
                    )
                    for line in lines
                ]
            except (ValueError, csv.Error) as error:
                raise UserError(
                    f"{path}, line {lines.line_num}: {error}; expected numbers; delete it and run "
                    f"dvc repro train@{model}"
                ) from None
    except FileNotFoundError:
        return []


def _finite(text: str | None) -> float | None:
    """The number; None for an empty cell and for one that is not finite. Raises ValueError."""
    value = float(text) if text else None
    return value if value is not None and math.isfinite(value) else None


def _address(path: Path, out: Path) -> str:
    return urllib.parse.quote(Path(os.path.relpath(path, out)).as_posix())
