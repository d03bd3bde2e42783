"""How far a stage is, on Prefect's page, and what else a stage tells the flow that started it."""

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from functools import lru_cache
from pathlib import Path
from typing import cast
from urllib.parse import quote
from uuid import UUID

import httpx
from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectException
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from prefect.utilities.urls import url_for

from actionzoo.files.markdown import escaped
from actionzoo.process.progress import FOLDER_VARIABLE, Snapshot, read_progress
from actionzoo.tracking.run_link import RunLink, read_links

SHOWN_AFTER, UPDATED_EVERY = 5.0, 5.0
"""Seconds that a stage must have run before its progress is shown, and seconds between two updates."""


def notes_folder(root: Path, stage: str) -> Path:
    """Folder in which a stage of this flow run leaves its progress and the links to its runs in MLflow; created."""
    folder = _folder(root) / quote(stage, safe="@")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def environment(root: Path, stage: str) -> dict[str, str]:
    """Environment variables with which a stage records this flow run in MLflow, and tells it how far it is."""
    return {
        "ACTIONZOO_FLOW_RUN_ID": flow_run.id or "",
        "ACTIONZOO_FLOW_RUN_NAME": flow_run.name or "",
        "ACTIONZOO_FLOW_RUN_URL": _run_page(flow_run.id or ""),
        FOLDER_VARIABLE: str(notes_folder(root, stage)),
    }


def server_address() -> str | None:
    """Address of the server that the flow reports to, without /api; None for servers of another build, such as Prefect
    Cloud."""
    address = PREFECT_API_URL.value() or ""
    return address.removesuffix("/api") if address.endswith("/api") else None


@lru_cache
def _run_page(id: str) -> str:
    """Address of a flow run's page; empty if its server shows no pages."""
    address = (url_for("flow-run", obj_id=id) if id else None) or ""
    if address and (server := server_address()):
        try:
            return address if httpx.get(f"{server}/ui-settings", timeout=5).is_success else ""
        except httpx.HTTPError:
            return ""
    return address


def run_links(root: Path, stage: str) -> list[RunLink]:
    """The runs in MLflow that a stage of this flow run recorded."""
    return read_links(_folder(root) / quote(stage, safe="@"))


def forget(root: Path) -> None:
    """Delete the notes of all stages of this flow run."""
    shutil.rmtree(_folder(root), ignore_errors=True)


@contextmanager
def shown(root: Path, stage: str) -> Iterator[None]:
    """Show how far the stage is, in a progress artifact of the task run in which this is called, until the block ends.

    Only for a stage that takes longer than a few seconds and counts its work. A server that does not answer costs the
    artifact alone.
    """
    ended = threading.Event()
    folder = notes_folder(root, stage)
    thread = threading.Thread(target=copy_context().run, args=(_show, folder, ended), name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(10)


def _show(folder: Path, ended: threading.Event) -> None:
    began = updated = time.monotonic()
    artifact: UUID | None = None
    last: tuple[float, str] | None = None
    while True:
        is_over = ended.wait(1)
        now = time.monotonic()
        if is_over and artifact is None:
            return
        is_due = now - began >= SHOWN_AFTER if artifact is None else now - updated >= UPDATED_EVERY
        if (is_due or is_over) and (snapshot := read_progress(folder)):
            state = (round(100 * snapshot.share, 2), _text(snapshot, read_links(folder), is_over=is_over))
            if state != last:
                try:
                    if artifact is None:
                        # without a key: it belongs to its run, not among the artifacts of the whole project
                        artifact = cast(UUID, create_progress_artifact(state[0], description=state[1]))
                    else:
                        update_progress_artifact(artifact, *state)
                except (httpx.HTTPError, PrefectException) as error:
                    get_run_logger().warning(f"progress is not shown any more: {type(error).__name__}")
                    return
                last, updated = state, now
        if is_over:
            return


def _text(snapshot: Snapshot, links: list[RunLink], *, is_over: bool) -> str:
    """How far it is comes first: Prefect's page shows some 20 letters of this beside others."""
    text = f"{snapshot.amount()}, ended" if is_over else snapshot.left()
    return "; ".join([f"{escaped(text)}: {escaped(snapshot.what)}", *(link_text(link) for link in links)])


def link_text(link: RunLink) -> str:
    """A link to a run in MLflow, in Markdown."""
    when = "" if link.is_served else " (after `make ui`)"
    return f"[{escaped(link.phase)} {escaped(link.name)} in MLflow](<{quote(link.page, safe=':/?&=#%@+,;~!$')}>){when}"


def _folder(root: Path) -> Path:
    return root / ".dvc" / "tmp" / "flow-runs" / str(flow_run.id or "none")
