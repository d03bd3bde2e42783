"""What became of the zoo's rows, beside what was published of them.

Reads small files only, and knows neither torch nor MLflow. What has not been run yet stays visible as such. Tables are
made of it by report_table, the page by report_page: the same files give the same bytes - no clock but in the names of
logs, no run id, no absolute path.
"""

import csv
import json
import math
import os
import urllib.parse
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..accuracy import KINETICS400, PUBLISHED_CLIPS, Comparison, comparable_top1, compare, wilson_interval
from ..errors import UserError
from ..records import Metrics, newest_logs
from .error_analysis import ErrorAnalysis, read_error_analysis

if TYPE_CHECKING:
    from ..params import Params
    from ..recipe import Published

ClipStates = Mapping[str, Mapping[str, Mapping[str, int]]]
"""Form of the data (videos_256) -> split -> state -> number of clips."""

MARKS = {"data": "†", "recipe": "‡", "part": "§"}
"""Why a number of ours is no result of the row it stands in: another data set, a changed recipe, too few clips."""

SHAPING = {
    "speed": ("model.", "clips.", "augment.resize:", "test."),
    "memory": ("model.", "clips.", "test.", "init.frozen_stages:", "augment.crop_size:", "optim.videos_per_gpu:"),
}
"""What of a recipe a benchmark depends on; an accuracy depends on all of it."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the zoo, as params.yaml has it."""

    name: str
    family: str
    short_side: int
    """Pixels, of the data as stored."""
    published: "Published"
    overrides: tuple[str, ...] = ()
    """What the data set changes of the recipe: `schedule.epochs: 256 -> 10`."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a row. Accuracies are shares of 1."""

    row: Row
    evaluation: dict[str, Any] | None
    """None: not run yet. Else top1, top5, mean_class, clips (evaluated), missing (listed, not evaluated), protocol."""
    benchmark: dict[str, Any] | None
    """None: not run yet. Else videos_per_second, train_memory_mb, device, parameters …; each may be absent or None."""
    curves: list[dict[str, Any]]
    """Points of both curves: split, epoch, loss, top1, top5, lr; numbers, None where empty or not finite."""
    files: dict[str, str]
    """ckpt, log, json (of the last training), result, metrics, curves, recipe -> address relative to the report; only
    files that are there."""
    comparison: Comparison
    """Our top-1 beside the published one."""
    marks: dict[str, tuple[str, ...]]
    """accuracy, speed, memory -> keys of MARKS that hold for that number."""
    errors: ErrorAnalysis | None = None
    """None if the evaluation left no error analysis."""

    @property
    def has_run(self) -> bool:
        """Trained, evaluated or measured: there is some number of ours."""
        return self.evaluation is not None or self.benchmark is not None or bool(self.curves)

    @property
    def is_comparable(self) -> bool:
        """Evaluated by the recipe as published, on (nearly) all of the published clips."""
        return self.comparison.is_comparable

    def interval(self, name: str = "top1") -> tuple[float, float] | None:
        """95 % interval of top1 or top5, from the number of clips alone."""
        if self.evaluation is None:
            return None
        clips = self.evaluation["clips"]
        return wilson_interval(round(self.evaluation[name] * clips), clips)

    @property
    def listed(self) -> int:
        """Clips of the annotation's list, those that could not be evaluated included. Only of an evaluated row."""
        gone = (self.evaluation.get(key) or 0 for key in ("missing", "undecodable"))
        return self.evaluation.get("listed") or self.evaluation["clips"] + sum(gone)

    @property
    def gap(self) -> float | None:
        """Top-1, ours minus published, in percentage points; None where the two do not compare."""
        return self.comparison.gap_points


@dataclass(frozen=True, kw_only=True)
class Report:
    dataset: str
    results: list[Result]
    clip_states: ClipStates = field(default_factory=dict)

    @property
    def evaluated(self) -> list[Result]:
        return [result for result in self.results if result.evaluation is not None]

    @property
    def ran(self) -> list[Result]:
        return [result for result in self.results if result.has_run]

    @property
    def families(self) -> dict[str, list[Result]]:
        """Family's title -> its rows, in the order of params.yaml."""
        families: dict[str, list[Result]] = {}
        for result in self.results:
            families.setdefault(_FAMILIES.get(result.row.family, result.row.family), []).append(result)
        return families

    @property
    def changed(self) -> dict[tuple[str, ...], list[str]]:
        """Overrides -> the rows that have just these."""
        changed: dict[tuple[str, ...], list[str]] = {}
        for result in self.results:
            if result.row.overrides:
                changed.setdefault(tuple(result.row.overrides), []).append(result.row.name)
        return changed


def rows_of(params: "Params") -> list[Row]:
    """The rows that params.yaml names, with what the chosen data set changes of them."""
    from ..recipe import NOTHING_PUBLISHED

    return [
        Row(
            name=name,
            family=recipe.model.family,
            short_side=recipe.clips.short_side,
            published=params.published.get(name, NOTHING_PUBLISHED),
            overrides=tuple(params.overrides(name)),
        )
        for name, recipe in params.recipes.items()
    ]


def read_report(
    *, dataset: str, rows: Iterable[Row], root: Path, out: Path, clip_states: ClipStates | None = None
) -> Report:
    """What became of the rows, from root/metrics/<dataset>/<row>.json, .benchmark.json, .train.csv and .val.csv.

    `out` is the folder the report will be in, for its links. Raises UserError for a file that cannot be used.
    """
    results = [_result(row, root / "metrics" / dataset, root / "runs" / dataset, dataset, out) for row in rows]
    return Report(dataset=dataset, results=results, clip_states=clip_states or {})


def warnings_of(report: Report) -> list[tuple[str, dict[str, Any]]]:
    """What keeps the numbers from being results on Kinetics-400: keys of report_table's texts, and their numbers."""
    warnings: list[tuple[str, dict[str, Any]]] = []
    rows, ran = len(report.results), len(report.ran)
    if not ran:
        warnings.append(("nothing_ran", {"rows": rows}))
    if report.dataset != KINETICS400:
        warnings.append(("not_kinetics", {"dataset": report.dataset}))
    if changed := sum(bool(result.row.overrides) for result in report.ran):
        key = "overridden" if ran == rows else "overridden_some"
        warnings.append((key, {"count": changed, "rows": rows, "waiting": rows - ran}))
    if partial := sum("part" in result.marks["accuracy"] for result in report.evaluated):
        warnings.append(("partial", {"count": partial, "clips": f"{PUBLISHED_CLIPS:,}"}))
    if busy := sum(is_busy(result.benchmark) for result in report.results):
        warnings.append(("busy", {"count": busy}))
    return warnings


def is_busy(benchmark: dict[str, Any] | None) -> bool:
    """Whether other work disturbed a benchmark: it says so, or has a speed with decoding above the network's alone.

    The latter cannot be; files of older versions do not say so themselves.
    """
    made = benchmark or {}
    alone, with_decoding = made.get("videos_per_second"), made.get("end_to_end_videos_per_second")
    return bool(made.get("machine_was_busy")) or (None not in (alone, with_decoding) and with_decoding > alone)


def as_json(report: Report) -> dict[str, Any]:
    """All of it for programs, plain values alone."""
    rows = []
    for result in report.results:
        published = result.row.published
        keys = (
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
        rows.append(
            {
                "name": result.row.name,
                "family": result.row.family,
                "short_side": result.row.short_side,
                "published": {"top1": list(published.top1), "top5": list(published.top5)}
                | {f"{name}_text": "/".join(map(str, getattr(published, name))) for name in ("top1", "top5")}
                | {key: getattr(published, key) for key in keys}
                | {"note": published.note.en},
                "ours": result.evaluation,
                **{f"{name}_interval": _rounded(result.interval(name)) for name in ("top1", "top5")},
                "top1_gap_points": None if result.gap is None else round(result.gap, 4),
                "is_comparable": result.is_comparable,
                "marks": {what: list(marks) for what, marks in result.marks.items()},
                "overrides": list(result.row.overrides),
                "benchmark": result.benchmark,
                "machine_was_busy": is_busy(result.benchmark),
                "most_confused": [asdict(pair) for pair in result.errors.pairs] if result.errors else [],
                "worst_clips": [asdict(clip) for clip in result.errors.worst] if result.errors else [],
                "files": result.files,
            }
        )
    return {
        "dataset": report.dataset,
        "rows": rows,
        "clips": {
            form: {split: dict(counts) for split, counts in splits.items()}
            for form, splits in report.clip_states.items()
        },
    }


_FAMILIES = {"slowfast": "SlowFast", "csn": "CSN"}


def _rounded(bounds: tuple[float, float] | None) -> list[float] | None:
    return bounds and [round(bound, 6) for bound in bounds]


def _result(row: Row, metrics_dir: Path, runs_dir: Path, dataset: str, out: Path) -> Result:
    metrics, run = metrics_dir / f"{row.name}.json", runs_dir / row.name
    train_curve, val_curve = (metrics_dir / f"{row.name}.{kind}.csv" for kind in ("train", "val"))
    evaluation = _read_json(metrics, f"dvc repro evaluate@{row.name}")
    if evaluation is not None:
        _check_evaluation(metrics, evaluation)
    measured = metrics_dir / f"{row.name}.benchmark.json"
    benchmark = _read_json(measured, f"dvc repro benchmark@{row.name}")
    if benchmark is not None:
        _check_benchmark(measured, benchmark)
    files = {
        "ckpt": run / "best.pth",
        **newest_logs(run),
        "result": run / "result.json",
        "metrics": metrics,
        "curves": train_curve,
        "recipe": run / "recipe.json",
    }
    metrics_here = None if evaluation is None else Metrics.from_json(evaluation, metrics)
    comparison = compare(dataset, row.overrides, metrics_here, comparable_top1(row.published))
    return Result(
        row=row,
        evaluation=evaluation,
        benchmark=benchmark,
        curves=_read_curve(train_curve, "train", row.name) + _read_curve(val_curve, "val", row.name),
        files={kind: _address(path, out) for kind, path in files.items() if path.is_file()},
        comparison=comparison,
        marks={"accuracy": comparison.reasons} | _cost_marks(row),
        errors=None if evaluation is None else read_error_analysis(metrics),
    )


def _cost_marks(row: Row) -> dict[str, tuple[str, ...]]:
    """Why our speed and memory are no results of the published model."""
    return {
        what: ("recipe",) if any(override.startswith(keys) for override in row.overrides) else ()
        for what, keys in SHAPING.items()
    }


def _read_json(path: Path, remedy: str) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:  # no UTF-8, too many digits or brackets
        raise UserError(f"{path} is no JSON ({error}); delete it and run {remedy}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__}, expected an object; delete it and run {remedy}")
    return values


def _check_evaluation(path: Path, evaluation: dict[str, Any]) -> None:
    remedy = f"delete it and run dvc repro evaluate@{path.stem}"
    for key in ("top1", "top5"):
        value = evaluation.get(key)
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise UserError(f"{path}: {key} is {value!r}, expected a share between 0 and 1; {remedy}")
    clips = evaluation.get("clips")
    if not isinstance(clips, int) or clips < 1:
        raise UserError(f"{path}: clips is {clips!r}, expected how many were evaluated; {remedy}")
    for key in ("listed", "missing", "undecodable", "mean_class"):
        if not _is_number_or_none(evaluation.get(key)):
            raise UserError(f"{path}: {key} is {evaluation[key]!r}, expected a number; {remedy}")


_NUMBERS = ("videos_per_second", "end_to_end_videos_per_second", "train_memory_mb", "test_memory_mb")
_RANGES = ("videos_per_second_quartiles", "end_to_end_quartiles")
_TEXTS = ("device", "precision", "frames", "memory_reason")


def _check_benchmark(path: Path, benchmark: dict[str, Any]) -> None:
    """What the tables show of it; a file of an older version may lack some."""

    def is_range(value: Any) -> bool:
        return value is None or (isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)))

    faults = {
        **{key: "a number" for key in _NUMBERS if not _is_number_or_none(benchmark.get(key))},
        **{key: "two numbers" for key in _RANGES if not is_range(benchmark.get(key))},
        **{key: "a text" for key in _TEXTS if not isinstance(benchmark.get(key, ""), str)},
    }
    for key, expected in faults.items():
        row = path.name.removesuffix(".benchmark.json")
        raise UserError(
            f"{path}: {key} is {benchmark[key]!r}, expected {expected}; delete it and run dvc repro benchmark@{row}"
        )


def _is_number_or_none(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e300  # a NaN is not below it


def _read_curve(path: Path, split: str, row: str) -> list[dict[str, Any]]:
    """No lines where there is no file."""

    def number(text: str | None) -> float | None:
        value = float(text) if text else None
        return value if value is not None and math.isfinite(value) else None

    try:
        with open(path, encoding="utf-8", newline="") as file:
            lines = csv.DictReader(file)
            try:
                return [
                    {"split": split} | {key: number(line.get(key)) for key in ("epoch", "loss", "top1", "top5", "lr")}
                    for line in lines
                ]
            except (ValueError, csv.Error) as error:
                raise UserError(
                    f"{path}, line {lines.line_num}: {error}; expected numbers; delete it and run dvc repro train@{row}"
                ) from None
    except FileNotFoundError:
        return []


def _address(path: Path, out: Path) -> str:
    return urllib.parse.quote(Path(os.path.relpath(path, out)).as_posix())
