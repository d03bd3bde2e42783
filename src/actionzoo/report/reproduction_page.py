"""The table of published weights, measured here beside published: reproduction/report/."""

import dataclasses
from pathlib import Path
from typing import Any

from ..accuracy import KINETICS400
from ..files.atomic import atomic_write
from ..files.json_files import write_json
from ..params import Params
from ..records import ReproducedFile, Reproduction
from ..run_files import ReproductionFiles
from ..weights.published import PublishedFile, published_files
from .html import is_web, page_templates

COLUMNS = (
    "model",
    "file",
    "top1 published",
    "top1 here (95 %)",
    "top5 published",
    "top5 here (95 %)",
    "clips",
    "verdict",
)

_READING = (
    "Reproduced: on all clips of the published list, the published top-1 lies in the 95 % interval (Wilson) of the "
    "top-1 measured here; not reproduced: it lies outside. Different data: no verdict is possible, for the named "
    "reason. The interval follows from the number of clips alone; copies of Kinetics-400 differ in their clips as well."
)


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table: one published file."""

    published: PublishedFile
    measured: ReproducedFile | None
    """None: not run yet."""

    def cells(self) -> tuple[str, ...]:
        """Texts in the order of COLUMNS."""
        published, measured = self.published, self.measured
        name, top1, top5 = published.model_name, str(published.top1), str(published.top5)
        if measured is None:
            return name, published.kind, top1, "not run yet", top5, "", "", ""
        metrics = measured.metrics
        here = {}
        for key in ("top1", "top5"):
            low, high = metrics.interval(key)
            here[key] = f"{100 * metrics.accuracies[key]:.2f} ({100 * low:.2f}–{100 * high:.2f})"
        clips = f"{metrics.clips:,} of {metrics.num_listed:,}, {metrics.protocol} views"
        verdict = f"{measured.verdict} ({measured.why})"
        return name, published.kind, top1, here["top1"], top5, here["top5"], clips, verdict

    def as_json(self) -> dict[str, Any]:
        published = self.published
        plain = {
            "model": published.model_name,
            "kind": published.kind,
            "address": published.address,
            "published_top1": published.top1,
            "published_top5": published.top5,
        }
        measured = {} if self.measured is None else self.measured.as_json()
        texts = {"published_top1_text": str(published.top1), "published_top5_text": str(published.top5)}
        return plain | measured | texts  # a float has lost the text it was published as: 77.90


def write_reproduction_page(params: Params, root: Path | None = None) -> str:
    """Write the table of all models as reproduction.md, .html and .json; return the closing line.

    Files that were not evaluated yet stay visible as such. Raises UserError for damaged metrics.
    """
    root = root or params.root
    rows = []
    for model in params.recipes:
        reproduction = Reproduction.read_if_there(ReproductionFiles(root, params.name, model).record)
        measured = {} if reproduction is None else reproduction.files
        rows += [Row(published, measured.get(kind)) for kind, published in published_files(params, model).items()]
    warning = "" if params.name == KINETICS400 else f"{params.name} is not Kinetics-400: nothing here is comparable."
    out = ReproductionFiles(root, params.name, "").report
    write_json(out / "reproduction.json", {"dataset": params.name, "files": [row.as_json() for row in rows]})
    for name, text in {
        "reproduction.md": _markdown(params.name, rows, warning),
        "reproduction.html": _html(params.name, rows, warning),
    }.items():
        with atomic_write(out / name) as file:
            file.write(text.encode())
    evaluated = sum(row.measured is not None for row in rows)
    return f"reproduce: {evaluated} of {len(rows)} published files evaluated; open {out / 'reproduction.html'}"


def _markdown(dataset: str, rows: list[Row], warning: str) -> str:
    lines = [COLUMNS, ("---",) * len(COLUMNS)]
    for row in rows:
        name, kind, *others = row.cells()
        lines.append((f"`{name}`", f"[{kind}]({row.published.address})", *others))
    table = "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
    parts = (f"# Published weights on {dataset}", warning and f"**{warning}**", table, _READING)
    return "\n\n".join(part for part in parts if part) + "\n"


def _html(dataset: str, rows: list[Row], warning: str) -> str:
    page = page_templates().get_template("reproduction.html.j2")
    return page.render(dataset=dataset, columns=COLUMNS, rows=rows, warning=warning, reading=_READING, is_web=is_web)
