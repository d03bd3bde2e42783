"""The page with which a flow run ends: a Markdown artifact with what was built, how well, and where to see it."""

import json
import platform
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import formatdate
from pathlib import Path
from typing import get_args
from urllib.parse import quote

import httpx
import yaml
from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.context import FlowRunContext
from prefect.exceptions import PrefectException
from prefect.runtime import deployment
from prefect.settings import get_current_settings

from actionzoo.accuracy import KINETICS400
from actionzoo.files.addresses import without_secrets
from actionzoo.files.json_files import read_json
from actionzoo.files.markdown import escaped, fenced
from actionzoo.run_files import Measured, ReproductionFiles, RunFiles
from actionzoo.tracking.pages import ui_address
from actionzoo.tracking.run_link import RunLink
from flows import progress
from flows.request import Machine, Outcome, Request, What
from flows.server import FILES

MAX_STAGES, MAX_FAILURES, MAX_TABLE = 300, 20, 100_000
"""The most stages and failures on the page, and the most characters of the zoo's table."""

_DONE: tuple[What, ...] = ("built", "restored", "up to date")
_ORDER: tuple[What, ...] = ("failed", "stopped", "not run", "built", "restored", "would be built", "up to date")


def publish(outcomes: Sequence[Outcome], request: Request, machine: Machine) -> None:
    """Publish the page. Called inside the flow run, once all its stages have ended.

    Runs of one kind on one data set share the artifact's key, `zoo-demo-train`: Prefect shows them as a history. A
    server that does not take it costs the page alone.
    """
    project = machine.root.parent if request.folder else machine.root
    dataset, kind = _dataset(project), _kind(request)
    words = ["zoo", dataset or "", kind, "dry-run" if request.dry_run else ""]
    try:
        create_markdown_artifact(
            _Page(outcomes, project, machine.root, dataset).text(),
            key="-".join(filter(None, (re.sub("[^a-z0-9]+", "-", word.lower()).strip("-") for word in words))),
            description=f"{kind}{f' on {dataset}' if dataset else ''}: {summary(outcomes)}",
        )
    except (httpx.HTTPError, PrefectException) as error:  # what was built is built
        get_run_logger().warning(f"the server did not take the page of this run: {type(error).__name__}")
    progress.forget(machine.root)


def summary(outcomes: Sequence[Outcome]) -> str:
    """How many stages came to what: `2 built, 1 failed, 3 not run`."""
    counts = {what: sum(outcome.what == what for outcome in outcomes) for what in _ORDER}
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "no stages"


@dataclass(frozen=True)
class _Page:
    outcomes: Sequence[Outcome]
    project: Path
    root: Path
    """Of the DVC repository: the project, or a folder of it."""
    dataset: str | None
    """None in a repository without params.yaml."""

    def text(self) -> str:
        parts = [self._sentence(), *self._failures(), *self._links(), *self._stages(), *self._accuracies()]
        return "\n\n".join(parts) + "\n"

    def _sentence(self) -> str:
        context = FlowRunContext.get()
        began = context.start_time if context else None
        took = f" in {_duration((datetime.now(UTC) - began).total_seconds())}" if began else ""
        on = f" on the data set **{escaped(self.dataset)}**" if self.dataset else ""
        count = f"{len(self.outcomes)} stage{'' if len(self.outcomes) == 1 else 's'}"
        return f"**{escaped(summary(self.outcomes))}**, of {count}{on}{took}."

    def _failures(self) -> Iterable[str]:
        failed = [outcome for outcome in self.outcomes if outcome.what == "failed"]
        if not failed:
            return
        yield "## Failed"
        for outcome in failed[:MAX_FAILURES]:
            yield f"**{escaped(outcome.stage)}**"
            yield fenced(without_secrets(outcome.message)[:4000])
        if len(failed) > MAX_FAILURES:
            yield f"and {len(failed) - MAX_FAILURES} more, see their task runs"
        missed = [escaped(outcome.stage) for outcome in self.outcomes if outcome.what == "not run"]
        waiting = f" Not run, because they need these: {', '.join(missed[:MAX_STAGES])}." if missed else ""
        yield f"Remove the cause and start again: finished stages are not repeated.{waiting}"

    def _stages(self) -> Iterable[str]:
        yield "## Stages"
        # all of them; of more than fit, those that were worked on come first
        chosen = list(self.outcomes)
        if len(chosen) > MAX_STAGES:
            chosen = sorted(chosen, key=lambda outcome: _ORDER.index(outcome.what))[:MAX_STAGES]
        rows = [
            [escaped(outcome.stage), outcome.what, _duration(outcome.seconds), _duration(outcome.waited)]
            for outcome in chosen
        ]
        yield _table(["stage", "what", "worked", "waited"], rows)
        if len(self.outcomes) > len(chosen):
            yield f"and {len(self.outcomes) - len(chosen)} more"

    def _accuracies(self) -> Iterable[str]:
        """The zoo's table if this run knows that it is up to date, else what was measured of the models of this run."""
        if self.dataset is None:
            return
        if self._has_report and (table := self._report_table()):
            yield table
        elif self.root != self.project:
            if rows := self._reproduced():
                yield "## Published weights, measured here"
                yield _table(["model", "file", "top1 % published", "top1 % here", "top5 % here", "views", ""], rows)
        elif rows := self._measured():
            yield "## Accuracies"
            if self.dataset != KINETICS400:
                yield (
                    f"> **⚠ This is not Kinetics-400. Accuracies on {escaped(self.dataset)} show whether the pipeline "
                    "works, and compare with no published number.**"
                )
            yield _table(["model", "top1 %", "top5 %", "views", "clips", "measured", "val top1 % of training"], rows)

    def _report_table(self) -> str:
        """zoo.md or reproduction.md, as a part of this page; empty if there is none."""
        path = next(filter(Path.is_file, (self._report / name for name in ("zoo.md", "reproduction.md"))), None)
        if path is None:
            return ""
        try:
            text = without_secrets(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return ""
        if len(text) > MAX_TABLE:
            return f"## Table\n\nThe table is too long for this page: {escaped(str(path))}"
        text = _narrowed(re.sub(r"^(#{1,5} )", r"#\1", text, flags=re.MULTILINE))
        page = self._address(path.with_suffix(".html"))

        def absolute(match: re.Match[str]) -> str:
            shown, address = match[1], match[2]
            if re.match("https?://", address):
                return match[0]
            if page is None:
                return shown
            return f"[{shown}](<{httpx.URL(page).join(address)}>)"

        return re.sub(r"\[((?:\\.|[^\]\\])*)\]\(<([^>]*)>\)", absolute, text).strip()

    def _measured(self) -> list[list[str]]:
        assert self.dataset is not None
        what = {outcome.stage: outcome.what for outcome in self.outcomes}
        rows = []
        for model in _models(self.outcomes):
            files = RunFiles(self.root, self.dataset, model)
            test = read_json(files.metrics("evaluate"))
            is_of_this_run = what.get(f"evaluate@{model}") in _DONE
            measured = "" if not test else "in this run" if is_of_this_run else "before, maybe of another training"
            trained = what.get(f"train@{model}") in _DONE
            row = [
                *(_percent(test.get(key)) for key in ("top1", "top5")),
                *(escaped(str(test.get(key, ""))) for key in ("protocol", "clips")),
                measured if what.get(f"evaluate@{model}") != "up to date" else "up to date",
                _percent(read_json(files.metrics("train")).get("val_top1")) if trained else "",
            ]
            if any(row):
                rows.append([escaped(model), *row])
        return rows

    def _reproduced(self) -> list[list[str]]:
        assert self.dataset is not None
        rows = []
        for model in _models(self.outcomes):
            known = read_json(ReproductionFiles(self.project, self.dataset, model).metrics)
            for kind, file in known.items():
                if isinstance(file, dict):
                    shares = (_percent(file.get(key)) for key in ("published_top1", "top1", "top5"))
                    texts = (escaped(str(file.get(key, ""))) for key in ("protocol", "verdict"))
                    rows.append([escaped(model), escaped(kind), *shares, *texts])
        return rows

    def _links(self) -> Iterable[str]:
        links = [*self._report_links(), *(f"- {progress.link_text(link)}" for link in self._runs())]
        if links:
            yield "## See"
            yield "\n".join(links)

    def _report_links(self) -> Iterable[str]:
        if self.dataset is None:
            return
        for name, what in _REPORTS.items():
            path = self._report / name
            if not path.is_file():
                continue
            address = self._address(path)
            when = "" if self._has_report and name != "data.html" else f" (of {_time(path)}, not made by this run)"
            if address:
                yield f"- [{name}](<{address}>): {what}{when}"
            else:
                yield f"- {name}: {what}{when}; on {escaped(platform.node())} at {escaped(str(path))}"

    def _runs(self) -> Iterable[RunLink]:
        """Links to the models' runs in MLflow: those that this flow run recorded, else those that the report knows."""
        found = [link for outcome in self.outcomes for link in progress.run_links(self.root, outcome.stage)]
        yield from found
        known = {link.name for link in found}
        pages = _pages_of(self._report / "runs.js") if self.dataset and self.root == self.project else {}
        for model in _models(self.outcomes):
            if model not in known and model in pages:
                yield RunLink(model, "train", pages[model], is_served=not pages[model].startswith(ui_address()))

    @property
    def _report(self) -> Path:
        return self.root / "report" / str(self.dataset)

    @property
    def _has_report(self) -> bool:
        """Whether the report is up to date for sure."""
        return any(outcome.stage == "report" and outcome.what in _DONE for outcome in self.outcomes)

    def _address(self, path: Path) -> str | None:
        """Where the server shows the file; None if it does not: one that is not ours, or that of another checkout."""
        server, key = progress.server_address(), get_current_settings().api.auth_string
        if not server or not key:
            return None
        address = f"{server}{FILES}/{quote(path.relative_to(self.project).as_posix())}"
        user, _, word = key.get_secret_value().partition(":")
        try:
            answer, stat = httpx.head(address, auth=(user, word), timeout=5), path.stat()
        except (httpx.HTTPError, OSError):
            return None
        same = (str(stat.st_size), formatdate(stat.st_mtime, usegmt=True))
        told = (answer.headers.get("content-length"), answer.headers.get("last-modified"))
        return address if answer.is_success and told == same else None


_REPORTS = {
    "zoo.html": "the models' numbers beside the published ones, curves, error analysis",
    "data.html": "the data set: counts, duplicates, pictures of every class",
    "reproduction.html": "the published weights, measured here",
}
"""Files of a report -> what they show."""


def _dataset(project: Path) -> str | None:
    """`data.name` of params.yaml; None in a repository that has none."""
    try:
        text = (project / "params.yaml").read_text(encoding="utf-8")
        found = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))["data"]["name"]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def _kind(request: Request) -> str:
    """What kind of run this is: the deployment's name, else the group of its targets."""
    if isinstance(name := deployment.name, str) and name:
        return name
    groups = {target.partition("@")[0] for target in request.targets}
    return groups.pop() if len(groups) == 1 else "stages" if groups else "all"


def _models(outcomes: Iterable[Outcome]) -> list[str]:
    """Models that stages of this run are about, in the order of the graph."""
    kinds = get_args(Measured)
    names = (outcome.stage.partition("@") for outcome in outcomes)
    return list(dict.fromkeys(model for kind, _, model in names if kind in kinds and model))


def _pages_of(runs: Path) -> dict[str, str]:
    """Model -> page of its run in MLflow, from the report's runs.js; empty if it is not there."""
    try:
        text = runs.read_text(encoding="utf-8")
        links = json.loads(text[text.index("(") + 1 : text.rindex(")")])
        return {model: entry["mlflow"] for model, entry in links.items() if isinstance(entry.get("mlflow"), str)}
    except (OSError, ValueError, AttributeError):
        return {}


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """`rows` are Markdown already."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


_LEFT_OUT = {"resolution", "GPUs", "backbone", "pretrain"}
"""Columns of zoo.md that say nothing of our results; with them, Prefect's page would cut ours off."""


def _narrowed(text: str) -> str:
    """Markdown without these columns of its tables."""
    lines, kept = [], None
    for line in text.split("\n"):
        if not line.startswith("| "):
            kept = None
        else:
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            if kept is None:  # the head of a table
                kept = [number for number, cell in enumerate(cells) if cell.strip() not in _LEFT_OUT]
            line = f"|{'|'.join(cells[number] for number in kept if number < len(cells))}|"
        lines.append(line)
    return "\n".join(lines)


def _time(path: Path) -> str:
    """When the file was written, in local time."""
    return f"{datetime.fromtimestamp(path.stat().st_mtime).astimezone():%Y-%m-%d %H:%M %Z}"


def _percent(share: object) -> str:
    return f"{100 * share:.2f}" if isinstance(share, int | float) else ""


def _duration(seconds: float | None) -> str:
    """`3.2 s`, `41 s`, `12 min 5 s`, `2 h 10 min`; empty for None."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
