"""Records a run in MLflow while it is in progress.

There is one experiment per data set and one run per training; the md5 of its checkpoint ties an evaluation to it.
MLflow is a copy to look at: the run folders hold the truth, and `record.sync` fills a store from them. Training
continues when the store is unreachable, full or damaged, with a warning.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..process.stage import sigterm_as_exit
from .names import Point
from .run_link import RunLink, leave_link
from .store import (
    POINTS_PER_BATCH,
    as_metrics,
    connect,
    is_server,
    keep_file,
    known_run,
    log_params,
    logger,
    milliseconds,
    one_line,
    relink_file,
    run_page,
    shown_uri,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

_FLUSH_SECONDS = 3.0

_CLOSE_ATTEMPTS = 3

_MAX_PENDING = 200_000

_TAG_LENGTH = 8000  # characters; a limit of MLflow


class Run:
    """A run in progress. Its methods warn about errors of the store instead of raising them."""

    def __init__(
        self, client: MlflowClient | None, id: str | None, *, artifacts: str | None = None, is_resumed: bool = False
    ) -> None:
        self.id = id
        """None if the store could not be opened: then nothing is recorded, and a warning at the end says so."""
        self._client = client
        self._artifacts = artifacts
        self._has_past = is_resumed
        self._past: dict[str, tuple[int, float] | None] = {}
        self._pending: list[Point] = []
        self._tags: dict[str, str] = {}
        self._dropped = 0
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._is_warned = False
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._send_regularly, name="tracking", daemon=True)
        if id is not None:
            self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record values at a step. Returns at once: a thread sends them every few seconds. Any thread may call this."""
        now = milliseconds()
        points = [Point(name, int(step), float(value), now) for name, value in metrics.items()]
        with self._lock:
            if self.id is None or len(self._pending) + len(points) > _MAX_PENDING:
                self._dropped += len(points)
            else:
                self._pending += points

    def tag(self, key: str, value: object) -> None:
        """Set a tag, replacing one of the same name; sent with the next values."""
        with self._lock:
            self._tags[key] = str(value)

    def artifact(self, path: Path, folder: str = "") -> None:
        """Add a file to the run's artifacts, under its own name in `folder`.

        In a store on this machine a large file becomes a hard link, so that a checkpoint takes its space once. Small
        files are copied, so that a log that grows later does not change the record.
        """
        if self._client is None or self.id is None or self._artifacts is None:
            return
        try:
            keep_file(self._client, self.id, self._artifacts, Path(path), folder)
        except Exception as error:
            self._warn(f"MLflow could not keep {path}", error)

    def relink(self, path: Path) -> None:
        """Make the artifact of a large file a hard link to it again: DVC replaces the outputs of a stage by other files
        of the same content. An artifact of other content stays as it is."""
        if self.id is None or self._artifacts is None:
            return
        try:
            relink_file(self._artifacts, Path(path))
        except OSError as error:
            self._warn(f"MLflow's copy of {path} could not become a link", error)

    def flush(self) -> bool:
        """Send all values that wait. False if the store did not accept them; they are kept for the next attempt."""
        with self._sending:
            while True:
                with self._lock:
                    points, tags = self._pending[:POINTS_PER_BATCH], dict(self._tags)
                if not points and not tags:
                    return True
                try:
                    self._send([point for point in points if self._is_new(point)], tags)
                except Exception as error:
                    self._warn("MLflow did not accept values; they are kept and sent again", error)
                    return False
                with self._lock:
                    del self._pending[: len(points)]
                    for key in [key for key, value in tags.items() if self._tags.get(key) == value]:
                        del self._tags[key]

    def _send(self, points: list[Point], tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        assert self._client is not None and self.id is not None, "a run without a store collects no values"
        # a batch that arrived, but whose answer was lost, may be sent again: MLflow stores equal points once
        self._client.log_batch(
            self.id, metrics=as_metrics(points), tags=[RunTag(key, value[:_TAG_LENGTH]) for key, value in tags.items()]
        )

    def _is_new(self, point: Point) -> bool:
        """Whether the run lacks the point. A resumed training repeats some steps; MLflow would store and draw both."""
        if not self._has_past or self._client is None or self.id is None:
            return True
        if point.name not in self._past:
            history = self._client.get_metric_history(self.id, point.name)
            last = max(history, key=lambda metric: (metric.step, metric.timestamp), default=None)
            self._past[point.name] = None if last is None else (last.step, last.value)
        past = self._past[point.name]
        return past is None or point.step > past[0] or (point.step == past[0] and point.value != past[1])

    def _send_regularly(self) -> None:
        while not self._is_closing.wait(_FLUSH_SECONDS):
            self.flush()

    def _close(self, phase: str, status: str, error: BaseException | None) -> None:
        """Send the remaining values, and end the run if this phase has created it: a finished training stays finished
        when its evaluation fails."""
        self._is_closing.set()
        if self._client is not None and self.id is not None:
            self._thread.join()
            self.tag(f"{phase}.status", status)
            if error is not None and status != "FINISHED":
                self.tag(f"{phase}.error", f"{type(error).__name__}: {error}"[:500])
            for attempt in range(_CLOSE_ATTEMPTS):
                if self.flush():
                    break
                time.sleep(attempt + 1 if attempt + 1 < _CLOSE_ATTEMPTS else 0)
            try:
                if self._client.get_run(self.id).data.tags.get("phase") == phase:
                    self._client.set_terminated(self.id, status)
            except Exception as failure:
                self._warn(f"MLflow could not mark the run as {status}", failure)
        if lost := self._dropped + len(self._pending):
            logger.warning(
                "tracking: %d values did not reach MLflow; the run's files have them, `actionzoo sync` sends them",
                lost,
            )

    def _warn(self, what: str, error: Exception) -> None:
        if not self._is_warned:
            self._is_warned = True
            logger.warning("tracking: %s (%s); further failures of this run are not shown", what, one_line(error))


@contextlib.contextmanager
def recorded_run(
    *,
    experiment: str,
    name: str,
    phase: str = "train",
    params: Mapping[str, object] | None = None,
    tags: Mapping[str, object] | None = None,
    run_id: str | None = None,
) -> Iterator[Run]:
    """A run that lasts as long as the block: its status becomes KILLED after Ctrl-C or SIGTERM, FAILED after another
    error, else FINISHED.

    experiment: the data set. name: the model.
    phase: train or evaluate. It prefixes tags such as `train.git_rev`, and only the phase that created a run ends it.
    params: may be nested. Recorded with new runs only, because MLflow refuses to change them.
    run_id: the run to continue; if the store does not know it, a new one is created.

    If the store cannot be opened, a warning is logged and the block runs without a record, with `.id` None.
    """
    active = _open(experiment, name, phase, params or {}, tags or {}, run_id)
    with sigterm_as_exit():
        try:
            yield active
        except BaseException as error:
            active._close(phase, _status_after(error), error)
            raise
        active._close(phase, "FINISHED", None)


def _open(
    experiment: str, name: str, phase: str, params: Mapping[str, object], tags: Mapping[str, object], run_id: str | None
) -> Run:
    all_tags = {key: str(value) for key, value in {"recipe": name, **_circumstances(phase), **tags}.items()}
    try:
        store = connect(experiment)
        client = store.client
        found = known_run(store, run_id) if run_id else None
        is_resumed = found is not None
        all_tags |= _flow_runs(phase, found.data.tags if found else {})
        if found is None:
            found = client.create_run(store.experiment_id, tags={"phase": phase, **all_tags}, run_name=name)
        elif found.data.tags.get("phase") == phase:
            client.update_run(found.info.run_id, status="RUNNING")
        artifacts = found.info.artifact_uri if store.keeps_files else None
        id: str = found.info.run_id
        leave_link(RunLink(name, phase, run_page(store, id), is_server()))
        active = Run(client, id, artifacts=artifacts, is_resumed=is_resumed)
    except Exception as error:
        logger.warning(
            "tracking: MLflow at %s cannot be used, so this run is not recorded (%s); its files are complete, and "
            "`actionzoo sync` records them later",
            shown_uri(),
            one_line(error),
        )
        return Run(None, None)
    if is_resumed:
        for key, value in all_tags.items():
            active.tag(key, value)
        return active
    try:
        log_params(client, id, params)
    except Exception as error:
        active._warn("MLflow did not accept the parameters", error)
    return active


def _circumstances(phase: str) -> dict[str, str]:
    """The code that runs and the stage or flow that started it, as tags of this phase."""
    tags = {
        "dvc_stage": os.environ.get("DVC_STAGE"),
        "prefect_flow_run_id": os.environ.get("ACTIONZOO_FLOW_RUN_ID"),
        "prefect_flow_run_name": os.environ.get("ACTIONZOO_FLOW_RUN_NAME"),
        "prefect_flow_run_url": os.environ.get("ACTIONZOO_FLOW_RUN_URL"),
    }
    if torch := sys.modules.get("torch"):
        tags["torch"] = torch.__version__
    if rev := _git("rev-parse", "HEAD"):
        tags["git_rev"] = rev
        # without dvc.lock, which DVC changes after each stage
        tags["git_dirty"] = str(bool(_git("status", "--porcelain", "--", ":(top)", ":(top,exclude)dvc.lock"))).lower()
    return {f"{phase}.{key}": value for key, value in tags.items() if value}


def _flow_runs(phase: str, known: Mapping[str, str]) -> dict[str, str]:
    """The tag with all flow runs that worked on this phase, the last one last: `name address`, separated by `; `."""
    id = os.environ.get("ACTIONZOO_FLOW_RUN_ID")
    if not id:
        return {}
    key = f"{phase}.prefect_flow_runs"
    recorded = known.get(key, known.get(f"{phase}.prefect_flow_run_id", ""))  # older versions kept the last id alone
    before = [entry for entry in recorded.split("; ") if entry and id not in entry]
    name = os.environ.get("ACTIONZOO_FLOW_RUN_NAME", "").replace(";", ",")
    entries = [*before, f"{name} {os.environ.get('ACTIONZOO_FLOW_RUN_URL') or id}".strip()]
    while len("; ".join(entries)) > _TAG_LENGTH and len(entries) > 1:
        del entries[0]
    return {key: "; ".join(entries)}


def _git(*arguments: str) -> str:
    """The output of git; empty without git or outside of a repository."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=60, check=True)
        return answer.stdout.strip()
    return ""


def _status_after(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        if error.code in (None, 0):
            return "FINISHED"
        return "KILLED" if error.code in (128 + signal.SIGINT, 128 + signal.SIGTERM) else "FAILED"
    return "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
