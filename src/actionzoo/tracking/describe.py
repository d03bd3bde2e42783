"""What MLflow shows of a run folder, taken from its files alone. Imports no mlflow.

The same files give the same description, whether the training goes on, has ended, or was restored by `dvc pull`.
"""

import csv
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from ..accuracy import Comparison, comparable_top1, compare
from ..errors import UserError
from ..files.hashes import md5_of
from ..files.json_files import json_lines
from ..files.markdown import escaped
from ..recipe import Kind, Published
from ..records import Benchmark, Execution, FlowRun, Reproduction, RunRecord, TestResult
from ..run_files import Plot, ReproductionFiles, RunFiles, logs_of
from .names import ERROR_ANALYSIS, TEST_STEP, Point, global_step, metrics_of_test, thinning, to_metrics
from .sessions import is_gone
from .story import story
from .titles import benchmark_metrics, comparison_tags, display_name, recipe_tags

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
"""As MLflow calls them."""

_STATUS: Mapping[str, Status] = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}

CHECKPOINTS = ("best.pth", "latest.pth")

_TABLES: tuple[Plot, ...] = ("classes", "confusion", "views")
"""Plots of the error analysis."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Input:
    """A data set that a run used."""

    name: str
    digest: str
    """Of the manifest, or of the list of clips: equal for equal clips."""
    context: Literal["training", "validation", "evaluation"]
    clips: int
    source: str
    """The manifest, relative to the project's folder."""
    details: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """More counts of clips."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """A run as MLflow should have it."""

    dataset: str
    model: str
    experiment: str
    name: str
    stamp: str = ""
    """When the training began, by the name of its logs; '' if it did not run in this workspace."""
    checkpoint_md5: str = ""
    """'' for an unfinished training."""
    known_id: str = ""
    """Id of the MLflow run that the version before began for this training."""
    status: Status
    began: int | None
    """Milliseconds since 1970, as the next one."""
    ended: int | None
    params: Mapping[str, str]
    tags: Mapping[str, str]
    note: str
    """Markdown, at the top of the run's page."""
    inputs: Sequence[Input]
    flow_runs: Sequence[FlowRun]
    """All flow runs that touched the training, the latest last."""
    points: Sequence[Point]
    """Each (name, step) once."""
    files: Mapping[str, Path]
    """Path among the artifacts -> a file that exists."""


def describe(files: RunFiles, stamp: str = "", published: Published | None = None) -> Description | None:
    """The training whose files are in the folder, or the one that began at `stamp`, finished or not.

    None if there is no such training. `published`: what was published for the model. Raises UserError for a damaged
    file.
    """
    executions = {key: Execution.read(path) for key, path in files.executions().items()}
    record = RunRecord.read_if_there(files.recipe)
    md5 = record.files[files.best.name].md5 if record and files.best.name in record.files else ""
    if not md5 and files.best.is_file():
        md5 = md5_of(files.best)
    if stamp:
        if (execution := executions.get(stamp)) is None:
            return None
        if not execution.checkpoint_md5 or execution.checkpoint_md5 != md5:
            return _unfinished(files, stamp, execution, published)
    elif not md5:
        return None
    mine = {key: execution for key, execution in executions.items() if execution.checkpoint_md5 == md5}
    return _finished(files, record, md5, mine, published)


def unfinished_stamps(files: RunFiles) -> list[str]:
    """Of the trainings in the folder that have not finished: those that go on, failed, or whose process is gone."""
    found = {stamp: Execution.read(path) for stamp, path in files.executions().items()}
    return [stamp for stamp, execution in found.items() if execution.record and not execution.checkpoint_md5]


def _finished(
    files: RunFiles,
    record: RunRecord | None,
    md5: str,
    executions: Mapping[str, Execution],
    published: Published | None,
) -> Description:
    trained = [stamp for stamp, execution in executions.items() if execution.record]
    stamp = trained[-1] if trained else ""
    execution = executions[stamp] if stamp else None
    result = TestResult.read_if_there(files.result)
    if result and result.checkpoint_md5 != md5:
        result = None
    benchmark = Benchmark.read_if_there(files.benchmark)
    comparison = _compare(files, record, result, published)
    logs = _logs(files, stamp, record)
    points = [*_points_of_logs(logs or _there([files.history]), record), *_points_of_curves(files)]
    points += _points_of_system(files, stamp)
    points += [Point(name, TEST_STEP, value) for name, value in _measured(result, benchmark, comparison).items()]
    sessions = sorted((s for each in executions.values() for s in each.sessions), key=lambda session: session.began)
    whole = Execution(model=files.model, dataset=files.dataset, status="finished", began=0, sessions=tuple(sessions))
    anchor = files.recipe if record else files.best
    ended = execution.ended if execution and execution.ended else _milliseconds(anchor)
    return Description(
        dataset=files.dataset,
        model=files.model,
        experiment=files.dataset,
        name=display_name(files.model, record),
        stamp=stamp,
        checkpoint_md5=md5,
        known_id=execution.mlflow_run if execution else "",
        status="FINISHED",
        began=execution.began if execution else ended,
        ended=ended,
        params=_params(files, record),
        tags=_tags(files, record, result, execution, comparison) | {"checkpoint.md5": md5},
        note=story(files.model, files.dataset, record, result, comparison, published, benchmark),
        inputs=_inputs(files, record, result),
        flow_runs=whole.flow_runs,
        points=_last_of_each(points),
        files=_files(files, logs, stamp, has_result=result is not None),
    )


def _unfinished(files: RunFiles, stamp: str, execution: Execution, published: Published | None) -> Description:
    path = files.execution(stamp)
    record = RunRecord.from_json(execution.record, path) if execution.record else None
    logs = _logs(files, stamp, record)
    status: Status = _STATUS.get(execution.status, "RUNNING")
    comparison = _compare(files, record, None, published)
    tags = _tags(files, record, None, execution, comparison)
    if execution.error:
        tags["error"] = execution.error
    if status == "RUNNING" and execution.sessions and is_gone(execution.sessions[-1]):
        status = "FAILED"
        tags["error"] = "its process is gone, and it has not finished; run the same command again to go on"
    return Description(
        dataset=files.dataset,
        model=files.model,
        experiment=files.dataset,
        name=display_name(files.model, record),
        stamp=stamp,
        known_id=execution.mlflow_run,
        status=status,
        began=execution.began,
        ended=None if status == "RUNNING" else execution.ended or max(map(_milliseconds, [path, *logs])),
        params=_params(files, record),
        tags=tags,
        note=story(files.model, files.dataset, record, None, comparison, published, error=tags.get("error", "")),
        inputs=_inputs(files, record, None),
        flow_runs=execution.flow_runs,
        points=_last_of_each([*_points_of_logs(logs, record), *_points_of_system(files, stamp)]),
        files=_there_by_name(_of_execution(files, logs, stamp)),
    )


def describe_reproductions(files: ReproductionFiles) -> list[Description]:
    """The evaluations of a model's published files, in an experiment of their own: nothing was trained."""
    results = {kind: TestResult.read_if_there(files.result(kind)) for kind in get_args(Kind)}
    return [_reproduction(files, kind, result) for kind, result in results.items() if result]


def _reproduction(files: ReproductionFiles, kind: Kind, result: TestResult) -> Description:
    ended = _milliseconds(files.result(kind))
    params = {"model": files.model, "kind": kind, "file": result.file, "sha256": result.sha256, "test": result.protocol}
    tags = {"model": files.model, "dataset": files.dataset, "kind": kind, "checkpoint.md5": result.checkpoint_md5}
    return Description(
        dataset=files.dataset,
        model=files.model,
        experiment=f"{files.dataset}-reproduction",
        name=f"{files.model} {kind}",
        checkpoint_md5=result.checkpoint_md5,
        status="FINISHED",
        began=ended,
        ended=ended,
        params={key: value for key, value in params.items() if value},
        tags=tags | _evaluation_tags(result),
        note=_reproduction_note(files, kind, result),
        inputs=[_evaluated(files.dataset, "", result)],
        flow_runs=(),
        points=[
            Point(name, TEST_STEP, value)
            for name, value in metrics_of_test(result.metrics.counts(), result.protocol).items()
        ],
        files={path.name: path for path in (files.result(kind), files.record) if path.is_file()},
    )


def _params(files: RunFiles, record: RunRecord | None) -> dict[str, str]:
    """What shaped the training, by flat names: optim.lr. No value is JSON."""
    if record is None:
        return {"dataset": files.dataset}
    numbers = {
        "batch": record.batch,
        "lr": record.lr,
        "train_clips": record.train_clips,
        "val_clips": record.val_clips,
        "classes": len(record.classes),
    }
    changed = {f"changed.{key}": change for key, _, change in (line.partition(": ") for line in record.overrides)}
    flat = dict(_flatten(record.recipe))
    return {"dataset": record.dataset} | {key: str(value) for key, value in numbers.items() if value} | flat | changed


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """{'optim': {'lr': 0.1, 'milestones': [32, 48]}}  ->  ('optim.lr', '0.1'), ('optim.milestones', '32, 48')"""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{key}", ", ".join(map(_text, value))
        else:
            yield f"{prefix}{key}", _text(value)


def _text(value: object) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
    return str(value)


def _tags(
    files: RunFiles,
    record: RunRecord | None,
    result: TestResult | None,
    execution: Execution | None,
    comparison: Comparison,
) -> dict[str, str]:
    tags = {"model": files.model, "dataset": files.dataset, "mlflow.source.name": "stages/train.py"}
    tags |= {"mlflow.source.type": "LOCAL"} | comparison_tags(comparison, result)
    if record:
        tags |= {"manifest.sha256": record.manifest_sha256, **record.versions} | recipe_tags(record)
        if protocol := _protocol(record):
            tags["protocol"] = protocol
    if result:
        tags |= _evaluation_tags(result)
    if execution:
        if execution.git_commit:
            tags |= {"git.commit": execution.git_commit, "git.dirty": str(execution.git_dirty).lower()}
            tags["mlflow.source.git.commit"] = execution.git_commit
        if execution.sessions:
            tags |= {"mlflow.user": execution.sessions[0].user, "host": execution.sessions[-1].host}
    return {key: value for key, value in tags.items() if value}


def _evaluation_tags(result: TestResult) -> dict[str, str]:
    metrics = result.metrics
    tags = {
        "protocol": result.protocol,
        "test.precision": result.precision,
        "test.list_sha256": metrics.list_sha256,
    }
    return {key: value for key, value in tags.items() if value}


def _protocol(record: RunRecord) -> str:
    """Clips x crops of the recipe's own test; '' if it does not say."""
    test = record.recipe.get("test")
    return f"{test.get('num_clips')}x{test.get('num_crops')}" if isinstance(test, dict) else ""


def _compare(
    files: RunFiles, record: RunRecord | None, result: TestResult | None, published: Published | None
) -> Comparison:
    """The rule of report, registry and record: accuracy.compare."""
    overrides = record.overrides if record else ()
    return compare(files.dataset, overrides, result.metrics if result else None, comparable_top1(published))


def _measured(result: TestResult | None, benchmark: Benchmark | None, comparison: Comparison) -> dict[str, float]:
    """What was measured once. The published accuracy stands beside ours only where the two compare."""
    values = metrics_of_test(result.metrics.counts(), result.protocol) if result else {}
    if comparison.gap_points is not None and comparison.published_top1 is not None:
        values |= {"test/top1_published": comparison.published_top1 / 100, "test/top1_gap": comparison.gap_points / 100}
    return values | (benchmark_metrics(benchmark) if benchmark else {})


def _inputs(files: RunFiles, record: RunRecord | None, result: TestResult | None) -> list[Input]:
    inputs = []
    if record and record.manifest_sha256:
        clips = record.recipe.get("clips")
        form = f"{clips.get('form')}_{clips.get('short_side')}" if isinstance(clips, dict) else ""
        manifest = f"data/{files.dataset}/{form}/manifest.csv"
        of_training = Input(
            name=f"{files.dataset} {form} train",
            digest=record.manifest_sha256[:32],
            context="training",
            clips=record.train_clips,
            source=manifest,
            details={"classes": len(record.classes)},
        )
        name, clips_of_val = f"{files.dataset} {form} val", record.val_clips
        inputs += [of_training, dataclasses.replace(of_training, name=name, context="validation", clips=clips_of_val)]
        if result:
            inputs.append(_evaluated(f"{files.dataset} {form}", manifest, result))
    return inputs


def _evaluated(name: str, manifest: str, result: TestResult) -> Input:
    metrics = result.metrics
    return Input(
        name=f"{name} {result.split}",
        digest=(metrics.published_list_sha256 or metrics.list_sha256 or result.checkpoint_md5)[:32],
        context="evaluation",
        clips=metrics.clips,
        source=manifest,
        details={"listed": metrics.num_listed, "missing": metrics.missing, "undecodable": metrics.undecodable},
    )


def _reproduction_note(files: ReproductionFiles, kind: Kind, result: TestResult) -> str:
    """What of the reproduction's own verdict is known."""
    text = f"Published weights `{result.file}` ({kind}) of `{files.model}`, evaluated on `{files.dataset}`."
    reproduction = Reproduction.read_if_there(files.record)
    if reproduction and (file := reproduction.files.get(kind)):
        text += f"\n\nPublished top-1 {file.published_top1} %: **{escaped(file.verdict)}** ({escaped(file.why)})."
    return f"{text}\n"


def _files(files: RunFiles, logs: Sequence[Path], stamp: str, *, has_result: bool) -> dict[str, Path]:
    named = {path.name: path for path in (files.best, files.latest, files.recipe, files.history)}
    named |= _of_execution(files, logs, stamp)
    for kind in ("loss", "top1"):
        path = files.plot("loss" if kind == "loss" else "top1")
        named[f"curves/{path.name}"] = path
    if has_result:
        named |= {files.result.name: files.result, files.page.name: files.page}
        analysis = [*(files.plot(kind) for kind in _TABLES), *sorted(files.errors.glob("*"))]
        named |= {f"{ERROR_ANALYSIS}/{path.name}": path for path in analysis}
    named[files.benchmark.name] = files.benchmark
    return _there_by_name(named)


def _of_execution(files: RunFiles, logs: Sequence[Path], stamp: str) -> dict[str, Path]:
    named = {path.name: path for log in logs for path in (log, log.with_suffix(""))}
    return named | ({"environment.txt": files.environment(stamp)} if stamp else {})


def _there_by_name(named: Mapping[str, Path]) -> dict[str, Path]:
    return {name: path for name, path in named.items() if path.is_file()}


def _there(paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if path.is_file()]


def _logs(files: RunFiles, stamp: str, record: RunRecord | None) -> list[Path]:
    """The .log.json files of the training."""
    if stamp:
        return _there([files.logs / f"{stamp}.log.json"])
    return logs_of(files.logs, record.log_mark if record else "")


def _points_of_logs(paths: Iterable[Path], record: RunRecord | None) -> list[Point]:
    """The values of the logs, thinned. A training of version 0.1 that was interrupted has several logs; where they
    overlap, the later one counts."""
    recipe = record.recipe if record else {}
    schedule = recipe.get("schedule")
    epochs, interval = (
        (value if isinstance(value := schedule.get(key), int) else 1 for key in ("epochs", "log_interval"))
        if isinstance(schedule, dict)
        else (1, 1)
    )
    points = []
    for path in paths:
        iters_per_epoch = None
        for number, line in json_lines(path, "correct or delete the line"):
            iters_per_epoch = line.get("iters_per_epoch", iters_per_epoch)
            if not (metrics := to_metrics(line)):
                continue
            if not isinstance(iters_per_epoch, int) or iters_per_epoch < 1:
                raise UserError(
                    f"{path}, line {number}: no line before it has iters_per_epoch, so its step is unknown; add the "
                    "key to the first line"
                )
            try:
                step = global_step(line, iters_per_epoch)
            except ValueError as error:
                raise UserError(f"{path}, line {number}: {error}; correct or delete the line") from None
            every = thinning(epochs, iters_per_epoch, interval)
            if line.get("mode") == "val" or math.ceil(step / interval) % every == 0:
                points += [Point(name, step, value) for name, value in metrics.items() if math.isfinite(value)]
    return points


_CURVES: Mapping[Plot, Mapping[str, str]] = {
    "loss": {"loss": "epoch/train_loss", "top1": "epoch/train_top1", "lr": "epoch/lr"},
    "top1": {"top1": "epoch/val_top1", "mean_class": "epoch/val_mean_class"},
}
"""Curve -> its column -> the name in MLflow; their steps are epochs."""


def _points_of_curves(files: RunFiles) -> Iterator[Point]:
    for kind, names in _CURVES.items():
        if not (path := files.plot(kind)).is_file():
            continue
        with path.open(encoding="utf-8", newline="") as file:
            for line in csv.DictReader(file):
                for column, name in names.items():
                    try:
                        epoch, value = float(line.get("epoch") or "nan"), float(line.get(column) or "nan")
                    except ValueError:
                        continue
                    if math.isfinite(epoch) and math.isfinite(value):
                        yield Point(name, int(epoch), value)


def _points_of_system(files: RunFiles, stamp: str) -> list[Point]:
    if not stamp or not (path := files.system(stamp)).is_file():
        return []
    lines = [line for _, line in json_lines(path, "delete the file")]
    return [
        Point(f"system/{key}", number, float(value))
        for number, line in enumerate(lines)
        for key, value in line.items()
        if isinstance(value, int | float) and math.isfinite(value)
    ]


def _last_of_each(points: Iterable[Point]) -> list[Point]:
    return list({(point.name, point.step): point for point in points}.values())


def _milliseconds(path: Path) -> int:
    return int(path.stat().st_mtime * 1000)
