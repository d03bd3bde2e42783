"""The table of published weights, measured beside published: released/report/<dataset>/released.{md,html,json}."""

from pathlib import Path
from typing import Any

from ..accuracy import KINETICS400
from ..files.atomic import atomic_write
from ..files.json_files import read_json, write_json
from ..params import Params
from ..weights.published import published_files
from .html import page_templates


def write_released_report(params: Params, root: Path = Path()) -> str:
    """The table of all rows as released.md, .html and .json; gives the last line to print. What is not tested yet stays
    visible as such."""
    lines, tested = [], 0
    for row in params.recipes:
        measured = read_json(root / "released" / "metrics" / params.name / f"{row}.json")
        for kind, published in published_files(params, row).items():
            tested += kind in measured
            numbers = {"published_top1": published.top1, "published_top5": published.top5}
            lines.append({"row": row, "kind": kind, "address": published.address, **numbers, **measured.get(kind, {})})
    out = root / "released" / "report" / params.name
    warning = "" if params.name == KINETICS400 else f"{params.name} is not Kinetics-400: nothing here can be compared."
    for line in lines:  # what was measured holds numbers alone, not how they were written
        published = published_files(params, line["row"])[line["kind"]]
        line.update({"published_top1_text": str(published.top1), "published_top5_text": str(published.top5)})
    write_json(out / "released.json", {"dataset": params.name, "files": lines})
    for name, text in {
        "released.md": _markdown(params, lines, warning),
        "released.html": _html(params, lines, warning),
    }.items():
        with atomic_write(out / name) as file:
            file.write(text.encode())
    return f"released: {tested} of {len(lines)} published files tested; open {out / 'released.html'}"


_COLUMNS = (
    "row",
    "file",
    "top1 published",
    "top1 here (95 %)",
    "top5 published",
    "top5 here (95 %)",
    "clips",
    "verdict",
)


def _cells(line: dict[str, Any]) -> tuple[str, ...]:
    """One line of the table, as texts in the order of _COLUMNS."""
    published = line["published_top1_text"], line["published_top5_text"]
    if "verdict" not in line:
        return line["row"], line["kind"], published[0], "not run yet", published[1], "", "", ""
    here = [
        f"{100 * line[name]:.2f} ({100 * line[f'{name}_low']:.2f}–{100 * line[f'{name}_high']:.2f})"
        for name in ("top1", "top5")
    ]
    clips = f"{line['clips']:,} of {line['listed']:,}, {line['protocol']} views"
    return line["row"], line["kind"], published[0], here[0], published[1], here[1], clips, _said(line)


def _said(line: dict[str, Any]) -> str:
    return f"{line['verdict']} ({line['why']})"


_READING = (
    "Reproduced: on all clips of the published list, the published top-1 lies in the 95 % interval (Wilson) of what "
    "was measured here; not reproduced: it lies outside. Different data: the question cannot be asked, for the reason "
    "that is named. The "
    "interval knows the number of clips alone; copies of Kinetics-400 differ in their clips as well."
)


def _markdown(params: Params, lines: list[dict[str, Any]], warning: str) -> str:
    rows = [_COLUMNS, ("---",) * len(_COLUMNS)]
    for line in lines:
        name, kind, *others = _cells(line)
        rows.append((f"`{name}`", f"[{kind}]({line['address']})", *others))
    table = "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)
    return (
        "\n\n".join(
            part
            for part in (f"# Published weights on {params.name}", warning and f"**{warning}**", table, _READING)
            if part
        )
        + "\n"
    )


def _html(params: Params, lines: list[dict[str, Any]], warning: str) -> str:
    return (
        page_templates()
        .get_template("released.html.j2")
        .render(
            dataset=params.name,
            columns=_COLUMNS,
            rows=[(line, _cells(line)) for line in lines],
            warning=warning,
            reading=_READING,
            is_web=lambda address: address.startswith(("https://", "http://")),
        )
    )
