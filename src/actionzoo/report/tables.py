"""The zoo's tables in words: Markdown in English and Chinese, JSON, and on a terminal.

Columns are those of the published tables, in their order, ours beside the published. A number of ours that is no
result of its row bears its mark in its own cell.
"""

import html
import json
import urllib.parse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..accuracy import PUBLISHED_CLIPS
from ..files.atomic import atomic_write
from ..kinetics.manifest import STATES, USABLE
from .results import MARKS, Report, Result, as_json, is_busy, warnings_of

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

    from ..recipe import Published

TEXT: dict[str, dict[str, Any]] = {
    "en": {
        "title": "Model zoo on {dataset}",
        "not_kinetics": (
            "This is not Kinetics-400. Accuracies on `{dataset}` say whether the pipeline works, and nothing about "
            "the published numbers beside them."
        ),
        "nothing_ran": "Nothing ran yet: none of the {rows} rows has a number of ours.",
        "overridden": (
            "{count} of {rows} rows ran with a changed recipe (see Changed recipes). Their numbers are not results of "
            "the recipes they are named after."
        ),
        "overridden_some": (
            "{count} of {rows} rows ran with a changed recipe (see Changed recipes); {waiting} did not run yet. "
            "Numbers by a changed recipe are not results of the recipe that they are named after."
        ),
        "busy": (
            "The machine was busy while the speed of {count} rows was measured; see their cells. Their speeds may be "
            "far off: measure again when nothing else runs."
        ),
        "partial": "{count} evaluated rows saw fewer than 90 % of the {clips} published validation clips.",
        "summary": "{count} of {rows} rows evaluated.",
        "columns": [
            *("config", "resolution", "GPUs", "backbone", "pretrain"),
            *("top1 published", "top1 ours (95 %)", "top5 published", "top5 ours (95 %)"),
            *("inference time (video/s) published", "inference time (video/s) ours"),
            *("gpu_mem (M) published", "gpu_mem (M) ours"),
            *("ckpt", "log", "json"),
        ],
        "short_side": "short side {side}",
        "not_run": "not run yet",
        "busy_cell": "machine was busy",
        "ours": "ours",
        "of_clips": "{clips} of {listed} clips",
        "end_to_end": "{speed} with decoding",
        "test_memory": "{memory} in test",
        "process_memory": "of a process on a CPU",
        "marks": {
            "data": "measured on {dataset}, not on Kinetics-400",
            "recipe": "by a changed recipe, see Changed recipes",
            "part": "on fewer than 90 % of the published validation clips",
        },
        "notes_title": "How to read it",
        "notes": [
            "GPUs: 8x4 is 8 GPUs on each of 4 machines, as for the published weights; x is not known.",
            "A second published number belongs to other weights, or came later as a correction; see the row's remark.",
            "Ours: accuracy over the clips that were evaluated. The interval is Wilson's, from their number alone; "
            "another seed moves the result as well.",
            "Inference time: one device, one video at a time with all its views, the network's time alone, as "
            "published; beside it with decoding, views and transfer. Both are medians, measured in turns, with their "
            "quartiles in brackets.",
            "gpu_mem: while training, on one GPU with the recipe's videos_per_gpu, as published; beside it in a test. "
            "Where there is no GPU, the resident memory of a process.",
            f"The published validation set has {PUBLISHED_CLIPS:,} videos. Links of ours lead to the best checkpoint, "
            "and to the log of the last training for people and for programs.",
        ],
        "files": "Files",
        "file_kinds": {
            "result": "scores of every clip",
            "metrics": "metrics",
            "curves": "training curve",
            "recipe": "recipe as used",
        },
        "remarks": "Remarks",
        "changed": "Changed recipes",
        "clips": "Clips",
        "clip_columns": ["data", "split", "listed", "usable", *STATES],
    },
    "zh": {
        "title": "{dataset} 上的模型库",
        "not_kinetics": "这不是 Kinetics-400。`{dataset}` 上的准确率只说明流程能否跑通，与旁边的公布数值没有可比性。",
        "nothing_ran": "尚未运行任何一行：{rows} 行中都还没有本项目的数值。",
        "overridden": "{rows} 行中有 {count} 行使用了修改过的配方运行（见下文），其数值不代表同名配方的结果。",
        "overridden_some": (
            "{rows} 行中有 {count} 行使用了修改过的配方运行（见下文），{waiting} 行尚未运行；"
            "使用修改过的配方得到的数值不代表同名配方的结果。"
        ),
        "busy": "有 {count} 行在测速时机器正忙（见相应单元格），其速度可能偏差很大；请在机器空闲时重新测量。",
        "partial": "有 {count} 行评测所用的视频不足公布验证集（{clips} 个）的 90 %。",
        "summary": "{rows} 行中已评测 {count} 行。",
        "columns": [
            *("配置文件", "分辨率", "GPU 数量", "主干网络", "预训练"),
            *("top1 准确率（公布）", "top1 准确率（本项目，95 %）"),
            *("top5 准确率（公布）", "top5 准确率（本项目，95 %）"),
            *("推理时间 (video/s)（公布）", "推理时间 (video/s)（本项目）"),
            *("GPU 显存占用 (M)（公布）", "GPU 显存占用 (M)（本项目）"),
            *("ckpt", "log", "json"),
        ],
        "short_side": "短边 {side}",
        "not_run": "尚未运行",
        "busy_cell": "测速时机器正忙",
        "ours": "本项目",
        "of_clips": "{listed} 个视频中的 {clips} 个",
        "end_to_end": "含解码 {speed}",
        "test_memory": "测试时 {memory}",
        "process_memory": "CPU 进程内存",
        "marks": {
            "data": "在 {dataset} 上测得，而非 Kinetics-400",
            "recipe": "使用了修改过的配方，见“修改过的配方”",
            "part": "所用视频不足公布验证集的 90 %",
        },
        "notes_title": "说明",
        "notes": [
            "GPU 数量：8x4 表示 4 台机器、每台 8 块 GPU，与公布的权重一致；x 表示未知。",
            "第二个公布数值属于另一份权重，或是后来的更正；见该行的备注。",
            "本项目：在实际评测的视频上计算的准确率。Wilson 区间仅由视频数量决定；更换随机种子同样会改变结果。",
            "推理时间：单个设备、逐个视频、包含其全部视图，仅计网络部分，与公布值的测法相同；旁边是含解码、取帧与传输的数值。"
            "两者交替测量，均取中位数，括号内为四分位数。",
            "GPU 显存占用：单块 GPU、按配方的 videos_per_gpu 训练时的占用，与公布值的测法相同；旁边是测试时的占用。"
            "没有 GPU 时为进程的常驻内存。",
            f"公布的验证集包含 {PUBLISHED_CLIPS:,} 个视频。"
            "本项目的链接指向最佳权重，以及最近一次训练的文本日志与 JSON 日志。",
        ],
        "files": "文件",
        "file_kinds": {
            "result": "每个视频的得分",
            "metrics": "指标",
            "curves": "训练曲线",
            "recipe": "实际使用的配方",
        },
        "remarks": "备注",
        "changed": "修改过的配方",
        "clips": "视频片段",
        "clip_columns": [
            *("数据", "划分", "标注", "可用"),
            *("正常", "已替换", "过短", "缺失", "损坏", "未标注"),
        ],
    },
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A number of ours as it stands in a table."""

    value: str = ""
    notes: tuple[str, ...] = ()
    """What belongs to it, in the order of its importance."""
    marks: tuple[str, ...] = ()
    """Keys of MARKS."""


def write_tables(report: Report, out: Path) -> None:
    """Write out/zoo.md, zoo.zh.md and zoo.json."""
    facts = as_json(report) | {"warnings": warnings(report, "en")}
    for name, text in {
        "zoo.md": _markdown(report, "en"),
        "zoo.zh.md": _markdown(report, "zh"),
        "zoo.json": json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
    }.items():
        with atomic_write(out / name) as file:
            file.write(text.encode())


def terminal_table(report: Report) -> "TerminalTable":
    """Row, top1 with its interval, published top1, their difference or why there is none; to be printed by rich."""
    lines = []
    for result in report.results:
        if result.evaluation is None:
            top1, note = "not run yet", ""
        else:
            top1 = f"{percent(result.evaluation['top1'])} ({_interval(result, 'top1')})"
            note = f"{result.gap:+.2f}" if result.gap is not None else why_not_comparable(report.dataset, result)
        lines.append((result.row.name, top1, numbers(result.row.published.top1), note))
    title = f"{report.dataset}: {len(report.evaluated)} of {len(report.results)} rows evaluated"
    return TerminalTable(title=title, lines=tuple(lines), warnings=tuple(warnings(report, "en")))


@dataclass(frozen=True, kw_only=True)
class TerminalTable:
    """A table where the terminal is wide enough for whole names, else a name and its numbers in two lines: names are to
    be copied."""

    title: str
    lines: tuple[tuple[str, str, str, str], ...]
    """Name, top1, published top1, note."""
    warnings: tuple[str, ...]

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.text import Text

        table = self._table()
        if table.__rich_measure__(console, options.update(max_width=10_000)).maximum <= options.max_width:
            yield table
            return
        yield Text(f"{self.title}; top1 % (95 %)", style="bold")
        for name, top1, published, note in self.lines:
            yield Text(name)
            yield Text(", ".join(filter(None, [f"    {top1}", published and f"published {published}", note])))
        for warning in self.warnings:
            yield Text(warning, style="bold yellow")

    def _table(self) -> "Table":
        from rich.markup import escape
        from rich.table import Table

        table = Table(
            title=escape(self.title), caption=escape("\n".join(self.warnings)) or None, caption_style="bold yellow"
        )
        table.add_column("row", no_wrap=True)
        table.add_column("top1 % (95 %)", justify="right", no_wrap=True)
        table.add_column("published", justify="right", no_wrap=True)
        table.add_column("note", no_wrap=True)
        for line in self.lines:
            table.add_row(*(escape(cell) for cell in line))
        return table


def our_cells(result: Result, language: str) -> dict[str, Cell]:
    """top1, top5, speed, memory."""
    text = TEXT[language]
    return {name: _accuracy(result, name, text) for name in ("top1", "top5")} | {
        "speed": _speed(result, text),
        "memory": _memory(result, text),
    }


def warnings(report: Report, language: str) -> list[str]:
    """A sentence for each thing that keeps the numbers from being results on Kinetics-400."""
    return [TEXT[language][key].format(**values) for key, values in warnings_of(report)]


def why_not_comparable(dataset: str, result: Result) -> str:
    """In a word or two, for a row that is evaluated."""
    if "data" in result.marks["accuracy"]:
        return f"on {dataset}"
    if "recipe" in result.marks["accuracy"]:
        return "changed recipe"
    if not result.row.published.top1:
        return "nothing published"
    return f"{result.evaluation['clips']:,} clips"


def numbers(values: Iterable[float]) -> str:
    """Published accuracies as they were written: 82.76/82.6, 77.90."""
    return "/".join(str(value) for value in values)


def percent(share: float) -> str:
    return f"{100 * share:.2f}"


def clip_lines(report: Report) -> list[list[str]]:
    """data, split, listed, usable, and every state."""
    lines = []
    for form, splits in report.clip_states.items():
        for split, counts in splits.items():
            listed = sum(count for state, count in counts.items() if state != "unlisted")
            usable = sum(counts.get(state, 0) for state in USABLE)
            lines.append(
                [form, split, *(f"{n:,}" for n in (listed, usable, *(counts.get(state, 0) for state in STATES)))]
            )
    return lines


def _accuracy(result: Result, name: str, text: dict[str, Any]) -> Cell:
    if result.evaluation is None:
        return Cell(notes=(text["not_run"],))
    notes = [_interval(result, name)]
    if name == "top1":
        counts = {"clips": f"{result.evaluation['clips']:,}", "listed": f"{result.listed:,}"}
        gap = [] if result.gap is None else [f"{result.gap:+.2f}"]
        notes = [*gap, *notes, text["of_clips"].format(**counts)]
    return Cell(value=percent(result.evaluation[name]), notes=tuple(notes), marks=result.marks["accuracy"])


def _speed(result: Result, text: dict[str, Any]) -> Cell:
    """As the published cell has it, 1.6 ((32+4)x10x3 frames); then the device, and the speed with decoding."""
    made = result.benchmark or {}
    if made.get("videos_per_second") is None:
        return Cell(notes=(text["not_run"],))
    device = made.get("device", "")
    if made.get("precision", "fp32") != "fp32":
        device = f"{device}, {made['precision']}"
    with_decoding = made.get("end_to_end_videos_per_second")
    decoding_text = f"{with_decoding or 0:.2f}{_quartiles(made.get('end_to_end_quartiles'))}"
    notes = (
        _quartiles(made.get("videos_per_second_quartiles")).strip(),
        f"({made['frames']})" if "frames" in made else "",
        device,
        "" if with_decoding is None else text["end_to_end"].format(speed=decoding_text),
        text["busy_cell"] if is_busy(made) else "",
    )
    value = f"{made['videos_per_second']:.2f}"
    return Cell(value=value, notes=tuple(filter(None, notes)), marks=result.marks["speed"])


def _quartiles(bounds: list[float] | None) -> str:
    return f" ({bounds[0]:.2f}–{bounds[1]:.2f})" if bounds else ""


def _memory(result: Result, text: dict[str, Any]) -> Cell:
    made = result.benchmark
    if made is None:
        return Cell(notes=(text["not_run"],))
    train, test = made.get("train_memory_mb"), made.get("test_memory_mb")
    notes = (
        made.get("memory_reason", ""),
        "" if test is None else text["test_memory"].format(memory=f"{test:.0f}"),
        text["process_memory"] if made.get("memory_of") == "process" and (train or test) else "",
    )
    value = "" if train is None else f"{train:.0f}"
    return Cell(value=value, notes=tuple(filter(None, notes)), marks=result.marks["memory"] if value else ())


def _interval(result: Result, name: str) -> str:
    low, high = result.interval(name)
    return f"{100 * low:.1f}–{100 * high:.1f}"


def _markdown(report: Report, language: str) -> str:
    text = TEXT[language]
    parts = [f"# {_md(text['title'].format(dataset=report.dataset))}"]
    parts += [f"> **⚠ {_md(warning, keep='`')}**" for warning in warnings(report, language)]
    parts += [text["summary"].format(count=len(report.evaluated), rows=len(report.results))]
    for family, results in report.families.items():
        lines = [_markdown_row(result, language) for result in results]
        parts += [f"## {_md(family)}", _md_table(text["columns"], lines, left=1)]
        if marks := {
            mark for result in results for cell in our_cells(result, language).values() for mark in cell.marks
        }:
            said = [f"{sign} {text['marks'][mark]}" for mark, sign in MARKS.items() if mark in marks]
            parts += ["  \n".join(_md(line.format(dataset=report.dataset)) for line in said)]
    parts += [f"## {text['notes_title']}", "\n".join(f"{n}. {note}" for n, note in enumerate(text["notes"], start=1))]
    if remarks := [result.row for result in report.results if result.row.published.note.en]:
        lines = [f"- {_md(row.name)}: {_md(row.published.note.text(language))}" for row in remarks]
        parts += [f"## {text['remarks']}", "\n".join(lines)]
    if files := _file_lines(report, text["file_kinds"]):
        parts += [f"## {text['files']}", "\n".join(files)]
    if report.changed:
        parts += [f"## {text['changed']}"]
        for overrides, names in report.changed.items():
            parts += ["\n".join(f"- {_md(name)}" for name in names)]
            parts += ["```\n" + "\n".join(override.replace("`", "'") for override in overrides) + "\n```"]
    if report.clip_states:
        parts += [f"## {text['clips']}"]
        lines = [[_md(cell) for cell in line] for line in clip_lines(report)]
        parts += [_md_table(text["clip_columns"], lines, left=2)]
    return "\n\n".join(parts) + "\n"


def _markdown_row(result: Result, language: str) -> list[str]:
    text, row, published = TEXT[language], result.row, result.row.published
    ours = {name: _md_cell(cell) for name, cell in our_cells(result, language).items()}
    page = f"zoo.html#{urllib.parse.quote(row.name)}"

    def links(kind: str, mine: str | None) -> str:
        names = ("ckpt", "infer_ckpt") if kind == "ckpt" else (kind,)
        addresses = {name: getattr(published, name) for name in names}
        links = [f"[{name}](<{_md_address(address)}>)" for name, address in addresses.items() if address]
        if mine:
            links.append(f"[{text['ours']}](<{mine}>)")
        return " / ".join(links)

    return [
        f"[{_md(row.name)}](<{page}>)",
        text["short_side"].format(side=row.short_side),
        *(_md(cell) for cell in (published.gpus, published.backbone, published.pretrained)),
        numbers(published.top1),
        ours["top1"],
        numbers(published.top5),
        ours["top5"],
        _md(published.inference),
        ours["speed"],
        _published_memory(published),
        ours["memory"],
        links("ckpt", result.files.get("ckpt")),
        links("log", result.files.get("log")),
        links("json", result.files.get("json")),
    ]


def _published_memory(published: "Published") -> str:
    """x: the published table does not say."""
    if not published.config:
        return ""
    return "x" if published.gpu_mem_mb is None else str(published.gpu_mem_mb)


def _file_lines(report: Report, kinds: dict[str, str]) -> list[str]:
    """A line for each row that has files beside those of the table."""
    lines = []
    for result in report.results:
        links = [f"[{said}](<{result.files[kind]}>)" for kind, said in kinds.items() if kind in result.files]
        if links:
            lines.append(f"- {_md(result.row.name)}: {', '.join(links)}")
    return lines


def _md_cell(cell: Cell) -> str:
    notes = "; ".join(cell.notes)
    if not cell.value:
        return _md(notes)
    marks = "".join(MARKS[mark] for mark in cell.marks)
    return f"**{_md(cell.value)}**{marks}" + (f" {_md(notes)}" if notes else "")


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
