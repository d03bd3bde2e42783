"""The zoo as one HTML file that opens from disk and loads nothing from the network.

An optional runs.js beside it (run_links) fills in links that must not stand in the page.
"""

import base64
from collections.abc import Callable
from pathlib import Path

from markupsafe import Markup, escape

from ..accuracy import Reason
from ..errors import UserError
from ..files.atomic import atomic_write
from .charts import bar, confusion_chart, curve_chart
from .error_analysis import ErrorAnalysis
from .html import is_web, page_templates
from .results import MARKS, CurvePoint, ModelResults, ZooReport
from .table_texts import TEXTS
from .tables import clip_lines, notes_of, our_cells, percent, published_cells, warnings, why_not_comparable


def write_page(report: ZooReport, out: Path) -> None:
    """Write out/zoo.html. Raises UserError if a strip of the error analysis is missing."""
    jinja = page_templates()
    jinja.filters |= {"percent": percent, "breakable": _breakable}
    texts = TEXTS["en"]
    page = jinja.get_template("zoo.html.j2").render(
        report=report,
        warnings=warnings(report, "en"),
        ours=lambda model: our_cells(model, "en"),
        published=published_cells,
        used_marks=[mark for mark in MARKS if mark in _used_marks(report)],
        badge=lambda mark: _badge(report, mark),
        marks={mark: text.format(dataset=report.dataset) for mark, text in texts.marks.items()},
        notes=notes_of(report, "en"),
        remarks=_remarks(report),
        why_not_comparable=why_not_comparable,
        charts=_training_charts,
        confusion=lambda errors: confusion_chart(errors.classes, errors.matrix.tolist()),
        views_chart=_views_chart,
        bar=bar,
        strip=_strip,
        clip_columns=texts.clip_columns,
        clip_lines=clip_lines(report),
        is_web=is_web,
    )
    with atomic_write(out / "zoo.html") as file:
        file.write(page.encode())


def _remarks(report: ZooReport) -> dict[str, str]:
    """Model -> its remark, for models that have one."""
    notes = {model.entry.name: published_cells(model.entry).note["en"] for model in report.models}
    return {name: note for name, note in notes.items() if note}


def _used_marks(report: ZooReport) -> set[Reason]:
    return {mark for model in report.models for mark in our_cells(model, "en").marks}


def _badge(report: ZooReport, mark: Reason) -> str:
    return {"data": report.dataset, "recipe": "changed", "part": "partial"}[mark]


def _training_charts(model: ModelResults) -> list[Markup]:
    def loss(point: CurvePoint) -> float | None:
        return point.loss

    def top1(point: CurvePoint) -> float | None:
        return None if point.top1 is None else 100 * point.top1

    def series(value: Callable[[CurvePoint], float | None]) -> dict[str, list[tuple[float, float]]]:
        curves: dict[str, list[tuple[float, float]]] = {"train": [], "val": []}
        for point in model.curves:
            y = value(point)
            if point.epoch is not None and y is not None:
                curves[point.split].append((point.epoch, y))
        return curves

    return [curve_chart("loss", series(loss)), curve_chart("top1 %", series(top1), top=100)]


def _views_chart(errors: ErrorAnalysis) -> Markup:
    top1 = [(views, 100 * share) for views, share, _ in errors.by_views]
    top5 = [(views, 100 * share) for views, _, share in errors.by_views]
    return curve_chart("accuracy % by number of views", {"top5": top5, "top1": top1}, over="views", top=100)


def _strip(errors: ErrorAnalysis, name: str) -> str:
    """The JPEG as a data: address. Raises UserError."""
    try:
        return f"data:image/jpeg;base64,{base64.b64encode((errors.folder / name).read_bytes()).decode()}"
    except FileNotFoundError as error:
        model = errors.folder.parent.name
        raise UserError(
            f"{error.filename} is missing; delete {errors.folder} and run dvc repro evaluate@{model}"
        ) from None


def _breakable(name: str) -> Markup:
    """A long name that may wrap after each underscore."""
    return Markup("_<wbr>").join(escape(part) for part in name.split("_"))
