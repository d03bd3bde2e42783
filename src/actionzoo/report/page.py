"""The zoo as one HTML file that opens from disk: everything stands in it, and nothing of it needs the network.

Beside it may lie runs.js (run_links), which fills links that must not stand in the page.
"""

import base64
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from ..errors import UserError
from ..files.atomic import atomic_write
from .charts import bar, confusion_chart, curve_chart
from .error_analysis import ErrorAnalysis
from .html import page_templates
from .results import MARKS, Report, Result
from .tables import TEXT, clip_lines, numbers, our_cells, percent, warnings, why_not_comparable


def write_page(report: Report, out: Path) -> None:
    """Write out/zoo.html."""
    jinja = page_templates()
    jinja.filters |= {
        "numbers": numbers,
        "percent": percent,
        "breakable": _breakable,
        "thousands": lambda number: f"{number:,}",
    }
    text = TEXT["en"]
    page = jinja.get_template("zoo.html.j2").render(
        report=report,
        warnings=warnings(report, "en"),
        cells=lambda result: our_cells(result, "en"),
        used_marks=[mark for mark in MARKS if mark in _marks_shown(report)],
        badge=lambda mark: _badge(report, mark),
        marks={mark: said.format(dataset=report.dataset) for mark, said in text["marks"].items()},
        notes=text["notes"],
        why_not_comparable=why_not_comparable,
        charts=_charts,
        confusion=lambda errors: confusion_chart(errors.classes, errors.matrix.tolist()),
        views_chart=_views_chart,
        bar=bar,
        strip=_strip,
        clip_columns=text["clip_columns"],
        clip_lines=clip_lines(report),
        is_web=lambda address: bool(address) and address.startswith(("https://", "http://")),
    )
    with atomic_write(out / "zoo.html") as file:
        file.write(page.encode())


def _marks_shown(report: Report) -> set[str]:
    cells = (cell for result in report.results for cell in our_cells(result, "en").values())
    return {mark for cell in cells for mark in cell.marks}


def _badge(report: Report, mark: str) -> str:
    return {"data": report.dataset, "recipe": "changed", "part": "partial"}[mark]


def _charts(result: Result) -> list[Any]:
    def points(key: str, scale: float = 1) -> dict[str, list[tuple[float, float]]]:
        lines = [line for line in result.curves if line["epoch"] is not None and line[key] is not None]
        return {
            split: [(line["epoch"], scale * line[key]) for line in lines if line["split"] == split]
            for split in ("train", "val")
        }

    return [curve_chart("loss", points("loss")), curve_chart("top1 %", points("top1", 100), top=100)]


def _views_chart(errors: ErrorAnalysis) -> Markup:
    top1 = [(views, 100 * share) for views, share, _ in errors.by_views]
    top5 = [(views, 100 * share) for views, _, share in errors.by_views]
    return curve_chart("accuracy % by number of views", {"top5": top5, "top1": top1}, over="views", top=100)


def _strip(errors: ErrorAnalysis, name: str) -> str:
    """A JPEG as an address that needs no file."""
    try:
        return f"data:image/jpeg;base64,{base64.b64encode((errors.folder / name).read_bytes()).decode()}"
    except FileNotFoundError as error:
        row = errors.folder.stem
        raise UserError(
            f"{error.filename} is not there; delete {errors.folder} and run dvc repro evaluate@{row}"
        ) from None


def _breakable(name: str) -> Markup:
    """A long name that may break after each underscore."""
    return Markup("_<wbr>").join(escape(part) for part in name.split("_"))
