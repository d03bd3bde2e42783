"""The zoo's table, ours beside the published: Markdown (English and Chinese), one HTML file, JSON, and on a terminal.

Reads small files only, and knows neither torch nor MLflow. The same files give the same bytes: no clock, no run id, no
absolute path. What has not been run yet stays visible as such.
"""

import csv
import html
import json
import math
import os
import urllib.parse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actionzoo.accuracy import wilson_interval
from actionzoo.errors import UserError

if TYPE_CHECKING:
    from jinja2 import Environment
    from rich.table import Table

    from actionzoo.params import Params, Published

KINETICS400 = "kinetics400"
PUBLISHED_CLIPS = 19_796
"""Validation clips behind the published accuracies; ours are compared with them from 90 % of that number on."""

STATES = ("ok", "replaced", "short", "missing", "corrupt", "unlisted")
"""Of clips in a manifest; the first three are usable, all but the last belong to the annotation."""

ClipStates = Mapping[str, Mapping[str, Mapping[str, int]]]
"""Form of the data (videos_256) -> split -> state -> number of clips."""


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
    """ckpt, log, json -> address relative to the report; only files that are there."""
    is_comparable: bool
    """The recipe as published, on (nearly) the published clips: only then a difference means something."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of top1, from the number of clips alone."""
        if self.evaluation is None:
            return None
        clips = self.evaluation["clips"]
        return wilson_interval(round(self.evaluation["top1"] * clips), clips)

    @property
    def gap(self) -> float | None:
        """Top1, ours minus published, in points of per cent; None where the two do not compare."""
        if self.evaluation is None or not self.is_comparable:
            return None
        return 100 * self.evaluation["top1"] - self.row.published.top1[0]


@dataclass(frozen=True, kw_only=True)
class Report:
    dataset: str
    results: list[Result]
    clip_states: ClipStates = field(default_factory=dict)

    @property
    def evaluated(self) -> list[Result]:
        return [result for result in self.results if result.evaluation is not None]

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
    return [
        Row(
            name=name,
            family=recipe.model.family,
            short_side=recipe.clips.short_side,
            published=recipe.published,
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


def write_report(report: Report, out: Path) -> None:
    """Write out/zoo.md, zoo.zh.md, zoo.html and zoo.json."""
    for name, text in {
        "zoo.md": _markdown(report, "en"),
        "zoo.zh.md": _markdown(report, "zh"),
        "zoo.html": _html(report),
        "zoo.json": json.dumps(_as_json(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
    }.items():
        _write(out / name, text)


def terminal_table(report: Report) -> "Table":
    """Row, top1 with its interval, published top1, their difference or why there is none; to be printed by rich."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title=escape(f"{report.dataset}: {len(report.evaluated)} of {len(report.results)} rows evaluated"),
        caption=escape("\n".join(_warnings(report, "en"))) or None,
        caption_style="bold yellow",
    )
    table.add_column("row", overflow="fold")
    table.add_column("top1 % (95 %)", justify="right", no_wrap=True)
    table.add_column("published", justify="right", no_wrap=True)
    table.add_column("note", overflow="fold")
    for result in report.results:
        if result.evaluation is None:
            top1, note = "not run yet", ""
        else:
            top1 = f"{_percent(result.evaluation['top1'])} ({_interval(result)})"
            note = f"{result.gap:+.2f}" if result.gap is not None else _why_not_comparable(report.dataset, result)
        cells = (result.row.name, top1, _numbers(result.row.published.top1), note)
        table.add_row(*(escape(cell) for cell in cells))
    return table


def page_templates() -> "Environment":
    """The package's templates. What comes into them is escaped, and a name that is not given is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("actionzoo"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


_FAMILIES = {"slowfast": "SlowFast", "csn": "CSN"}

_TEXT: dict[str, dict[str, Any]] = {
    "en": {
        "title": "Model zoo on {dataset}",
        "not_kinetics": (
            "This is not Kinetics-400. Accuracies on `{dataset}` say that the pipeline works, and nothing about "
            "the published numbers beside them."
        ),
        "overridden": (
            "{count} of {rows} rows ran with a changed recipe (see Changed recipes). Their numbers are not results of "
            "the recipes they are named after."
        ),
        "partial": "{count} evaluated rows saw fewer than 90 % of the {clips} published validation clips.",
        "summary": "{count} of {rows} rows evaluated.",
        "columns": [
            *("config", "resolution", "GPUs", "backbone", "pretrain"),
            *("top1 published", "top1 ours (95 %)", "top5 published", "top5 ours"),
            *("video/s published", "video/s ours", "GPU memory (M) published", "GPU memory (M) ours"),
            *("ckpt", "log", "json"),
        ],
        "short_side": "short side {side}",
        "not_run": "not run yet",
        "ours": "ours",
        "notes_title": "How to read it",
        "notes": [
            "GPUs: 8x4 is 8 GPUs on each of 4 machines, as for the published weights; x is not known.",
            "A second published number belongs to other weights, or came later as a correction; see the row's remark.",
            "Ours: accuracy over the clips that were evaluated. The interval is Wilson's, from their number alone; "
            "another seed moves the result as well.",
            "video/s: published on one GPU, one video at a time, network only; ours on the device that is named.",
            "GPU memory: published while training, on one GPU; ours while the benchmark ran.",
            "The published validation set has 19,796 videos. Links of ours lead to checkpoint, curves and metrics.",
        ],
        "remarks": "Remarks",
        "changed": "Changed recipes",
        "clips": "Clips",
        "clip_columns": ["data", "split", "listed", "usable", *STATES],
    },
    "zh": {
        "title": "{dataset} 上的模型库",
        "not_kinetics": "这不是 Kinetics-400。`{dataset}` 上的准确率只说明流程可以跑通，与旁边的公布数值没有可比性。",
        "overridden": "{rows} 行中有 {count} 行使用了修改过的配方（见下文），其数值不代表同名配方的结果。",
        "partial": "有 {count} 行评测所用的视频不足公布验证集（{clips} 个）的 90 %。",
        "summary": "{rows} 行中已评测 {count} 行。",
        "columns": [
            *("配置文件", "分辨率", "GPU 数量", "主干网络", "预训练"),
            *("top1 准确率（公布）", "top1 准确率（本项目，95 %）", "top5 准确率（公布）", "top5 准确率（本项目）"),
            *(
                "推理时间 video/s（公布）",
                "推理时间 video/s（本项目）",
                "GPU 显存占用 (M)（公布）",
                "GPU 显存占用 (M)（本项目）",
            ),
            *("ckpt", "log", "json"),
        ],
        "short_side": "短边 {side}",
        "not_run": "尚未运行",
        "ours": "本项目",
        "notes_title": "说明",
        "notes": [
            "GPU 数量：8x4 表示 4 台机器、每台 8 块 GPU，与公布的权重一致；x 表示未知。",
            "第二个公布数值属于另一份权重，或是后来的更正；见该行的备注。",
            "本项目：在实际评测的视频上计算的准确率。Wilson 区间仅由视频数量决定；更换随机种子同样会改变结果。",
            "推理时间：公布值为单块 GPU、逐个视频、仅网络部分；本项目的数值在所注明的设备上测得。",
            "GPU 显存占用：公布值为训练时单块 GPU 的占用；本项目的数值为基准测试时的占用。",
            "公布的验证集包含 19,796 个视频。本项目的链接指向权重、训练曲线与评测指标。",
        ],
        "remarks": "备注",
        "changed": "修改过的配方",
        "clips": "视频片段",
        "clip_columns": [
            *("数据", "划分", "标注", "可用"),
            *("正常", "已替换", "过短", "缺失", "损坏", "未标注"),
        ],
    },
}


def _result(row: Row, metrics_dir: Path, runs_dir: Path, dataset: str, out: Path) -> Result:
    metrics = metrics_dir / f"{row.name}.json"
    train_curve, val_curve = (metrics_dir / f"{row.name}.{kind}.csv" for kind in ("train", "val"))
    evaluation = _read_json(metrics, f"dvc repro evaluate@{row.name}")
    if evaluation is not None:
        _check_evaluation(metrics, evaluation)
    files = {"ckpt": runs_dir / row.name / "best.pth", "log": train_curve, "json": metrics}
    return Result(
        row=row,
        evaluation=evaluation,
        benchmark=_read_json(metrics_dir / f"{row.name}.benchmark.json", f"dvc repro benchmark@{row.name}"),
        curves=_read_curve(train_curve, "train", row.name) + _read_curve(val_curve, "val", row.name),
        files={kind: _address(path, out) for kind, path in files.items() if path.is_file()},
        is_comparable=dataset == KINETICS400
        and not row.overrides
        and (evaluation is None or evaluation["clips"] >= 0.9 * PUBLISHED_CLIPS),
    )


def _read_json(path: Path, remedy: str) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
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
            except ValueError as error:
                raise UserError(
                    f"{path}, line {lines.line_num}: {error}; expected numbers; delete it and run dvc repro train@{row}"
                ) from None
    except FileNotFoundError:
        return []


def _address(path: Path, out: Path) -> str:
    return urllib.parse.quote(Path(os.path.relpath(path, out)).as_posix())


def _warnings(report: Report, language: str) -> list[str]:
    """What keeps the numbers from being results on Kinetics-400."""
    text = _TEXT[language]
    warnings = []
    if report.dataset != KINETICS400:
        warnings.append(text["not_kinetics"].format(dataset=report.dataset))
    if changed := sum(bool(result.row.overrides) for result in report.results):
        warnings.append(text["overridden"].format(count=changed, rows=len(report.results)))
    elif report.dataset == KINETICS400 and (partial := sum(not result.is_comparable for result in report.evaluated)):
        warnings.append(text["partial"].format(count=partial, clips=f"{PUBLISHED_CLIPS:,}"))
    return warnings


def _why_not_comparable(dataset: str, result: Result) -> str:
    if dataset != KINETICS400:
        return f"on {dataset}"
    if result.row.overrides:
        return "changed recipe"
    return f"{result.evaluation['clips']:,} clips"


def _numbers(values: Iterable[float]) -> str:
    return "/".join(str(float(value)) for value in values)


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _interval(result: Result) -> str:
    low, high = result.interval
    return f"{100 * low:.1f}–{100 * high:.1f}"


def _benchmark(result: Result, key: str, layout: str) -> str:
    value = (result.benchmark or {}).get(key)
    return "" if value is None else format(value, layout)


def _as_json(report: Report) -> dict[str, Any]:
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
            "note",
        )
        rows.append(
            {
                "name": result.row.name,
                "family": result.row.family,
                "short_side": result.row.short_side,
                "published": {"top1": list(published.top1), "top5": list(published.top5)}
                | {key: getattr(published, key) for key in keys},
                "ours": result.evaluation,
                "top1_interval": result.interval and [round(bound, 6) for bound in result.interval],
                "top1_gap_points": None if result.gap is None else round(result.gap, 4),
                "is_comparable": result.is_comparable,
                "overrides": list(result.row.overrides),
                "benchmark": result.benchmark,
                "files": result.files,
            }
        )
    return {
        "dataset": report.dataset,
        "warnings": _warnings(report, "en"),
        "rows": rows,
        "clips": {
            form: {split: dict(counts) for split, counts in splits.items()}
            for form, splits in report.clip_states.items()
        },
    }


def _clip_lines(report: Report) -> list[list[str]]:
    """data, split, listed, usable, and every state."""
    lines = []
    for form, splits in report.clip_states.items():
        for split, counts in splits.items():
            listed = sum(count for state, count in counts.items() if state != "unlisted")
            usable = sum(counts.get(state, 0) for state in STATES[:3])
            lines.append(
                [form, split, *(f"{n:,}" for n in (listed, usable, *(counts.get(state, 0) for state in STATES)))]
            )
    return lines


# --- Markdown


def _markdown(report: Report, language: str) -> str:
    text = _TEXT[language]
    parts = [f"# {_md(text['title'].format(dataset=report.dataset))}"]
    parts += [f"> **⚠ {_md(warning, keep='`')}**" for warning in _warnings(report, language)]
    parts += [text["summary"].format(count=len(report.evaluated), rows=len(report.results))]
    for family, results in report.families.items():
        lines = [_markdown_row(result, text) for result in results]
        parts += [f"## {_md(family)}", _md_table(text["columns"], lines, left=1)]
    parts += [f"## {text['notes_title']}", "\n".join(f"{n}. {note}" for n, note in enumerate(text["notes"], start=1))]
    if remarks := [result.row for result in report.results if result.row.published.note]:
        lines = [f"- {_md(row.name)}: {_md(row.published.note)}" for row in remarks]
        parts += [f"## {text['remarks']}", "\n".join(lines)]
    if report.changed:
        parts += [f"## {text['changed']}"]
        for overrides, names in report.changed.items():
            parts += ["\n".join(f"- {_md(name)}" for name in names)]
            parts += ["```\n" + "\n".join(override.replace("`", "'") for override in overrides) + "\n```"]
    if report.clip_states:
        parts += [f"## {text['clips']}"]
        lines = [[_md(cell) for cell in line] for line in _clip_lines(report)]
        parts += [_md_table(text["clip_columns"], lines, left=2)]
    return "\n\n".join(parts) + "\n"


def _markdown_row(result: Result, text: dict[str, Any]) -> list[str]:
    row, published, evaluation = result.row, result.row.published, result.evaluation
    top1 = text["not_run"] if evaluation is None else f"**{_percent(evaluation['top1'])}** ({_interval(result)})"
    if result.gap is not None:
        top1 += f" {result.gap:+.2f}"
    speed = _benchmark(result, "videos_per_second", ".2f")
    if speed and (device := _benchmark(result, "device", "")):
        speed += f" ({device})"

    def links(kind: str) -> str:
        names = ("ckpt", "infer_ckpt") if kind == "ckpt" else (kind,)
        addresses = {name: getattr(published, name) for name in names}
        links = [f"[{name}](<{_md_address(address)}>)" for name, address in addresses.items() if address]
        if kind in result.files:
            links.append(f"[{text['ours']}](<{result.files[kind]}>)")
        return " / ".join(links)

    return [
        _md(row.name),
        text["short_side"].format(side=row.short_side),
        *(_md(cell) for cell in (published.gpus, published.backbone, published.pretrained)),
        _numbers(published.top1),
        top1,
        _numbers(published.top5),
        "" if evaluation is None else f"**{_percent(evaluation['top5'])}**",
        _md(published.inference),
        _md(speed),
        "x" if published.gpu_mem_mb is None else str(published.gpu_mem_mb),
        _benchmark(result, "train_memory_mb", ".0f"),
        *(links(kind) for kind in ("ckpt", "log", "json")),
    ]


def _md_table(columns: list[str], lines: list[list[str]], *, left: int) -> str:
    """The first `left` columns are aligned left, the others centred."""
    rule = [":--"] * left + [":--:"] * (len(columns) - left)
    return "\n".join(f"| {' | '.join(line)} |" for line in [columns, rule, *lines])


def _md(text: str, keep: str = "") -> str:
    """Text that Markdown shows as it is, in a table too."""
    text = html.escape(" ".join(text.split()), quote=False)
    return "".join(f"\\{sign}" if sign in "\\`*[]|" and sign not in keep else sign for sign in text)


def _md_address(address: str) -> str:
    return urllib.parse.quote(address, safe=":/?&=#%@+,;~!$'()*")


# --- HTML


def _html(report: Report) -> str:
    jinja = page_templates()
    jinja.filters |= {
        "numbers": _numbers,
        "percent": _percent,
        "interval": _interval,
        "breakable": _breakable,
        "thousands": lambda number: f"{number:,}",
    }
    charts = [
        (result, _chart("loss", result.curves, "loss"), _chart("top1 %", result.curves, "top1", scale=100, top=100))
        for result in report.results
        if result.curves
    ]
    return jinja.get_template("zoo.html.j2").render(
        report=report,
        warnings=_warnings(report, "en"),
        notes=_TEXT["en"]["notes"],
        benchmark=_benchmark,
        why_not_comparable=_why_not_comparable,
        charts=charts,
        clip_columns=_TEXT["en"]["clip_columns"],
        clip_lines=_clip_lines(report),
        is_web=lambda address: bool(address) and address.startswith(("https://", "http://")),
    )


def _breakable(name: str) -> Any:
    """A long name that may break after each underscore."""
    from markupsafe import Markup, escape

    return Markup("_<wbr>").join(escape(part) for part in name.split("_"))


def _chart(title: str, curves: list[dict[str, Any]], key: str, *, scale: float = 1, top: float | None = None) -> Any:
    """One quantity over the epochs as SVG, train and val; the y axis runs from 0 to `top`, by default a round number
    above the data."""
    from markupsafe import Markup, escape

    width, height, left, right, above, below = 360, 180, 34, 10, 24, 22
    points = {
        split: [
            (line["epoch"], scale * line[key])
            for line in curves
            if line["split"] == split and line["epoch"] is not None and line[key] is not None
        ]
        for split in ("train", "val")
    }
    everything = [point for series in points.values() for point in series]
    if not everything:
        return Markup(f'<p class="none">{escape(title)}: no values</p>')
    first, last = min(x for x, _ in everything), max(x for x, _ in everything)
    y_ticks = _ticks(0, top or max(y for _, y in everything) or 1, 4)
    top = top or y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        share = (x - first) / (last - first) if last > first else 0.5
        return left + share * (width - left - right), height - below - y / top * (height - above - below)

    svg = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)} over epochs">',
        f'<text class="title" x="{left}" y="14">{escape(title)}</text>',
    ]
    for y in y_ticks:
        _, at = place(first, y)
        svg.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        svg.append(f'<text class="tick" x="{left - 6}" y="{at + 3.5:.1f}" text-anchor="end">{y:g}</text>')
    for x in _whole_ticks(first, last):
        at, _ = place(x, 0)
        svg.append(f'<text class="tick" x="{at:.1f}" y="{height - 6}" text-anchor="middle">{x:g}</text>')
    legend = width - right
    for split, series in reversed(points.items()):
        if not series:
            continue
        places = [place(x, y) for x, y in series]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        svg.append(f'<polyline class="{split}" points="{line}"/>')
        if len(places) <= 12:
            svg += [f'<circle class="{split}" cx="{x:.1f}" cy="{y:.1f}" r="2.4"/>' for x, y in places]
        svg.append(f'<text class="legend {split}" x="{legend}" y="14" text-anchor="end">{split}</text>')
        legend -= 34
    return Markup("".join([*svg, "</svg>"]))


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers in steps of 1, 2, 2.5 or 5 x 10^n; the last one reaches `high`."""
    raw = (high - low) / about
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    return [low + n * step for n in range(math.ceil((high - low) / step - 1e-9) + 1)]


def _whole_ticks(first: float, last: float) -> list[float]:
    """At most seven whole epochs between the first and the last."""
    step = next(step for step in _steps() if (last - first) / step <= 6)
    return [n * step for n in range(math.ceil(first / step), math.floor(last / step) + 1)]


def _steps() -> Iterable[int]:
    power = 1
    while True:
        yield from (power, 2 * power, 5 * power)
        power *= 10


def _write(path: Path, text: str) -> None:
    """The whole file or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8", newline="\n")
    os.replace(partial, path)
