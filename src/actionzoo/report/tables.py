"""The zoo's tables: as Markdown in English and Chinese, as JSON, and for a terminal.

Columns are those of the published tables, in their order, with ours beside the published. A number of ours that is no
result of the published model carries a mark next to it.
"""

import json
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..accuracy import Reason
from ..files.atomic import atomic_write
from ..files.markdown import escaped
from ..kinetics.manifest import STATES, USABLE
from ..records import Metrics
from ..weights.provenance import versions
from .results import MARKS, ModelEntry, ModelResults, ZooReport, as_json, warnings_of
from .table_texts import TEXTS, Language, Texts

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A number of ours as it stands in a table."""

    value: str = ""
    """Empty if there is no number."""
    notes: tuple[str, ...] = ()
    """Texts beside the number, the most important first."""
    marks: tuple[Reason, ...] = ()
    """Why the number is no result of the published model."""


@dataclass(frozen=True, kw_only=True)
class PublishedCells:
    """The published columns of a model; texts are empty if nothing was published."""

    gpus: str = ""
    backbone: str = ""
    pretrained: str = ""
    top1: str = ""
    """As printed: 82.76/82.6, 77.90."""
    top5: str = ""
    inference: str = ""
    gpu_mem: str = ""
    """MB; x: not stated."""
    note: Mapping[Language, str]
    """A remark; empty if there is none."""
    links: Mapping[Literal["ckpt", "log", "json"], tuple[tuple[str, str], ...]]
    """Column -> name and address of each published file."""


def write_tables(report: ZooReport, out: Path) -> None:
    """Write out/zoo.md, zoo.zh.md and zoo.json."""
    content = as_json(report) | {"warnings": warnings(report, "en")}
    for name, text in {
        "zoo.md": _markdown(report, "en"),
        "zoo.zh.md": _markdown(report, "zh"),
        "zoo.json": json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
    }.items():
        with atomic_write(out / name) as file:
            file.write(text.encode())


def terminal_table(report: ZooReport) -> "TerminalTable":
    """A table for rich to print: model, top1 with its interval, published top1, and their gap or why there is none."""
    rows = []
    for model in report.models:
        top1, note = TEXTS["en"].not_run, ""
        if model.metrics is not None:
            top1 = f"{percent(model.metrics.accuracies['top1'])} ({_interval(model.metrics, 'top1')})"
            gap = model.comparison.gap_points
            note = why_not_comparable(report.dataset, model) if gap is None else f"{gap:+.2f}"
        rows.append((model.entry.name, top1, published_cells(model.entry).top1, note))
    title = f"{report.dataset}: {len(report.evaluated)} of {len(report.models)} models evaluated"
    return TerminalTable(title=title, rows=tuple(rows), warnings=tuple(warnings(report, "en")))


@dataclass(frozen=True, kw_only=True)
class TerminalTable:
    """A table if the terminal is wide enough for whole names, else two lines per model: names must be copyable."""

    title: str
    rows: tuple[tuple[str, str, str, str], ...]
    """Model, top1, published top1, note."""
    warnings: tuple[str, ...]

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.text import Text

        table = self._table()
        if table.__rich_measure__(console, options.update(max_width=10_000)).maximum <= options.max_width:
            yield table
            return
        yield Text(f"{self.title}; top1 % (95 %)", style="bold")
        for name, top1, published, note in self.rows:
            yield Text(name)
            texts = (top1, f"published {published}" if published else "", note)
            yield Text(f"    {', '.join(filter(None, texts))}")
        for warning in self.warnings:
            yield Text(warning, style="bold yellow")

    def _table(self) -> "Table":
        from rich.markup import escape
        from rich.table import Table

        table = Table(
            title=escape(self.title), caption=escape("\n".join(self.warnings)) or None, caption_style="bold yellow"
        )
        table.add_column("model", no_wrap=True)
        table.add_column("top1 % (95 %)", justify="right", no_wrap=True)
        table.add_column("published", justify="right", no_wrap=True)
        table.add_column("note", no_wrap=True)
        for row in self.rows:
            table.add_row(*(escape(cell) for cell in row))
        return table


@dataclass(frozen=True, kw_only=True)
class OurCells:
    top1: Cell
    top5: Cell
    speed: Cell
    memory: Cell

    @property
    def marks(self) -> set[Reason]:
        return {mark for cell in (self.top1, self.top5, self.speed, self.memory) for mark in cell.marks}


def our_cells(model: ModelResults, language: Language) -> OurCells:
    texts = TEXTS[language]
    return OurCells(
        top1=_accuracy(model, "top1", texts),
        top5=_accuracy(model, "top5", texts),
        speed=_speed(model, texts),
        memory=_memory(model, texts),
    )


def published_cells(entry: ModelEntry) -> PublishedCells:
    published = entry.published
    if published is None:
        return PublishedCells(note={"en": "", "zh": ""}, links={"ckpt": (), "log": (), "json": ()})
    files = {
        "ckpt": {"ckpt": published.ckpt, "infer_ckpt": published.infer_ckpt},
        "log": {"log": published.log},
        "json": {"json": published.json},
    }
    return PublishedCells(
        gpus=published.gpus,
        backbone=published.backbone,
        pretrained=published.pretrained,
        top1="/".join(map(str, published.top1)),
        top5="/".join(map(str, published.top5)),
        inference=published.inference,
        gpu_mem="x" if published.gpu_mem_mb is None else str(published.gpu_mem_mb),
        note={"en": published.note.text("en"), "zh": published.note.text("zh")},
        links={
            column: tuple((name, address) for name, address in files[column].items() if address)
            for column in ("ckpt", "log", "json")
        },
    )


def warnings(report: ZooReport, language: Language) -> list[str]:
    """A sentence for everything that keeps our numbers from being results on Kinetics-400."""
    return [TEXTS[language].warnings[key].format(**values) for key, values in warnings_of(report)]


def notes_of(report: ZooReport, language: Language) -> list[str]:
    """How to read the table, and which models were trained with other versions than are installed."""
    texts, now = TEXTS[language], versions()
    trained = {model.entry.name: model.trained_with for model in report.models}
    others = [
        texts.trained_with.format(model=escaped(name), versions=escaped(_versions(known)))
        for name, known in trained.items()
        if any(now.get(program, version) != version for program, version in known.items())
    ]
    if not others:
        return list(texts.notes)
    separator = "；" if language == "zh" else "; "
    return [*texts.notes, texts.other_versions.format(now=_versions(now), models=separator.join(others))]


def _versions(known: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in known.items())


def why_not_comparable(dataset: str, model: ModelResults) -> str:
    """A word or two; only for an evaluated model that is not comparable."""
    reasons = model.comparison.reasons
    if "data" in reasons:
        return f"on {dataset}"
    if "recipe" in reasons:
        return "changed recipe"
    if "part" in reasons and model.metrics is not None:
        return f"{model.metrics.clips:,} clips"
    return "nothing published"


def percent(share: float) -> str:
    """0.8125 -> 81.25"""
    return f"{100 * share:.2f}"


def clip_lines(report: ZooReport) -> list[list[str]]:
    """Rows of the table of clips: data, split, listed, usable, and each state."""
    lines = []
    for prepared, splits in report.clip_states.items():
        for split, counts in splits.items():
            listed = sum(count for state, count in counts.items() if state != "unlisted")
            usable = sum(counts.get(state, 0) for state in USABLE)
            numbers = (listed, usable, *(counts.get(state, 0) for state in STATES))
            lines.append([prepared, split, *(f"{number:,}" for number in numbers)])
    return lines


def _accuracy(model: ModelResults, name: str, texts: Texts) -> Cell:
    metrics, gap = model.metrics, model.comparison.gap_points
    if metrics is None:
        return Cell(notes=(texts.not_run,))
    notes = [_interval(metrics, name)]
    if name == "top1":
        counts = texts.clips_of_listed.format(clips=f"{metrics.clips:,}", listed=f"{metrics.num_listed:,}")
        notes = [*([] if gap is None else [f"{gap:+.2f}"]), *notes, counts]
    return Cell(value=percent(metrics.accuracies[name]), notes=tuple(notes), marks=model.marks["accuracy"])


def _speed(model: ModelResults, texts: Texts) -> Cell:
    """In the form of the published cell, 1.6 ((32+4)x10x3 frames); then the device, and the speed with decoding."""
    benchmark = model.benchmark
    if benchmark is None or benchmark.videos_per_second is None:
        return Cell(notes=(texts.not_run,))
    device = benchmark.device
    if benchmark.precision not in ("", "fp32"):
        device = f"{device}, {benchmark.precision}"
    with_decoding = ""
    if benchmark.end_to_end_videos_per_second is not None:
        speed = f"{benchmark.end_to_end_videos_per_second:.2f}{_quartiles(benchmark.end_to_end_quartiles)}"
        with_decoding = texts.end_to_end.format(speed=speed)
    notes = (
        _quartiles(benchmark.videos_per_second_quartiles).strip(),
        f"({benchmark.frames})" if benchmark.frames else "",
        device,
        with_decoding,
        texts.machine_was_busy if benchmark.is_disturbed else "",
    )
    value = f"{benchmark.videos_per_second:.2f}"
    return Cell(value=value, notes=tuple(filter(None, notes)), marks=model.marks["speed"])


def _quartiles(bounds: Sequence[float] | None) -> str:
    return f" ({bounds[0]:.2f}–{bounds[1]:.2f})" if bounds else ""


def _memory(model: ModelResults, texts: Texts) -> Cell:
    benchmark = model.benchmark
    if benchmark is None:
        return Cell(notes=(texts.not_run,))
    train, test = benchmark.train_memory_mb, benchmark.test_memory_mb
    notes = (
        benchmark.memory_reason,
        "" if test is None else texts.test_memory.format(memory=f"{test:.0f}"),
        texts.process_memory if benchmark.memory_of == "process" and (train or test) else "",
    )
    value = "" if train is None else f"{train:.0f}"
    return Cell(value=value, notes=tuple(filter(None, notes)), marks=model.marks["memory"] if value else ())


def _interval(metrics: Metrics, name: str) -> str:
    low, high = metrics.interval(name)
    return f"{100 * low:.1f}–{100 * high:.1f}"


def _markdown(report: ZooReport, language: Language) -> str:
    texts = TEXTS[language]
    parts = [f"# {escaped(texts.title.format(dataset=report.dataset))}"]
    parts += [f"> **⚠ {escaped(warning, keep='`')}**" for warning in warnings(report, language)]
    parts += [texts.summary.format(count=len(report.evaluated), models=len(report.models))]
    for family, models in report.families.items():
        rows = [_markdown_row(model, language) for model in models]
        parts += [f"## {escaped(family)}", _md_table(texts.columns, rows, left=1)]
        if used := {mark for model in models for mark in our_cells(model, language).marks}:
            legend = [f"{sign} {texts.marks[mark]}" for mark, sign in MARKS.items() if mark in used]
            parts += ["  \n".join(escaped(line.format(dataset=report.dataset)) for line in legend)]
    parts += [
        f"## {texts.notes_title}",
        "\n".join(f"{n}. {note}" for n, note in enumerate(notes_of(report, language), start=1)),
    ]
    notes = {model.entry.name: published_cells(model.entry).note[language] for model in report.models}
    if any(notes.values()):
        lines = [f"- {escaped(name)}: {escaped(note)}" for name, note in notes.items() if note]
        parts += [f"## {texts.remarks_title}", "\n".join(lines)]
    if files := _file_lines(report, texts):
        parts += [f"## {texts.files_title}", "\n".join(files)]
    if report.changed:
        parts += [f"## {texts.changed_title}"]
        for overrides, names in report.changed.items():
            parts += ["\n".join(f"- {escaped(name)}" for name in names)]
            parts += ["```\n" + "\n".join(override.replace("`", "'") for override in overrides) + "\n```"]
    if report.clip_states:
        parts += [f"## {texts.clips_title}"]
        clip_rows = [[escaped(cell) for cell in line] for line in clip_lines(report)]
        parts += [_md_table(texts.clip_columns, clip_rows, left=2)]
    return "\n\n".join(parts) + "\n"


def _markdown_row(model: ModelResults, language: Language) -> list[str]:
    texts, entry, published = TEXTS[language], model.entry, published_cells(model.entry)
    ours = our_cells(model, language)

    def links(column: Literal["ckpt", "log", "json"]) -> str:
        links = [f"[{name}](<{_md_address(address)}>)" for name, address in published.links[column]]
        if column in model.files:  # ckpt; our logs are linked from the page
            links.append(f"[{texts.ours}](<{model.files[column]}>)")
        return " / ".join(links)

    return [
        f"[{escaped(entry.name)}](<zoo.html#{urllib.parse.quote(entry.name)}>)",
        texts.short_side.format(side=entry.short_side),
        *(escaped(text) for text in (published.gpus, published.backbone, published.pretrained)),
        published.top1,
        _md_cell(ours.top1),
        published.top5,
        _md_cell(ours.top5),
        escaped(published.inference),
        _md_cell(ours.speed),
        published.gpu_mem,
        _md_cell(ours.memory),
        links("ckpt"),
        links("log"),
        links("json"),
    ]


def _file_lines(report: ZooReport, texts: Texts) -> list[str]:
    """A line for each model with files that the table does not link."""
    lines = []
    for model in report.models:
        links = [f"[{text}](<{model.files[kind]}>)" for kind, text in texts.files.items() if kind in model.files]
        if links:
            lines.append(f"- {escaped(model.entry.name)}: {', '.join(links)}")
    return lines


def _md_cell(cell: Cell) -> str:
    notes = "; ".join(cell.notes)
    if not cell.value:
        return escaped(notes)
    marks = "".join(MARKS[mark] for mark in cell.marks)
    return f"**{escaped(cell.value)}**{marks}" + (f" {escaped(notes)}" if notes else "")


def _md_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int) -> str:
    """The first `left` columns are aligned left, the others centred."""
    rule = [":--"] * left + [":--:"] * (len(columns) - left)
    return "\n".join(f"| {' | '.join(row)} |" for row in [columns, rule, *rows])


def _md_address(address: str) -> str:
    return urllib.parse.quote(address, safe=":/?&=#%@+,;~!$'()*")
