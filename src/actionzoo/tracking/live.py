"""A run that is under way, recorded in MLflow while it goes on.

One experiment per data set, one flat run per trained model; the md5 of its checkpoint ties an evaluation to it.
MLflow is a copy for looking at. The truth lies in the run folders, and `record.sync` fills a store from them.
Training continues when the store is away, full or broken: that is a warning."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..process.stage import sigterm_as_exit
from .names import Point
from .store import (
    POINTS_PER_BATCH,
    as_metrics,
    connect,
    keep_file,
    known_run,
    log_params,
    logger,
    milliseconds,
    one_line,
    relink_file,
    shown_uri,
)

_FLUSH_SECONDS = 3.0

_CLOSE_ATTEMPTS = 3

_MAX_PENDING = 200_000


class Run:
    """An open run. None of its methods raises because of the store."""

    def __init__(self, client: Any, id: str | None, *, artifacts: str | None, is_resumed: bool) -> None:
        self.id = id
        """None where the store could not be opened: then nothing is recorded, and the run's end says so."""
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
        self._thread = threading.Thread(target=self._send_now_and_then, name="tracking", daemon=True)
        if id is not None:
            self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record values at a step. Returns at once; a thread sends them every few seconds, any thread may call."""
        now = milliseconds()
        points = [(name, int(step), float(value), now) for name, value in metrics.items()]
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
        """Keep a file with the run, under its own name in `folder`.

        In a store on this machine a big file is a hard link: no second copy of a checkpoint. Small ones are copied, so
        that a log which grows later does not change the record.
        """
        if self.id is None or self._artifacts is None:
            return
        try:
            keep_file(self._client, self.id, self._artifacts, Path(path), folder)
        except Exception as error:
            self._warn(f"MLflow could not keep {path}", error)

    def relink(self, path: Path) -> None:
        """Make the kept copy of a big file a hard link to it again: DVC puts another file of the same content in the
        place of what a stage made. Files of other content stay as they are."""
        if self.id is None or self._artifacts is None:
            return
        try:
            relink_file(self._artifacts, Path(path))
        except OSError as error:
            self._warn(f"MLflow's copy of {path} could not become a link", error)

    def flush(self) -> bool:
        """Send what is waiting; False if the store did not take it, in which case it keeps waiting."""
        with self._sending:
            while True:
                with self._lock:
                    points, tags = self._pending[:POINTS_PER_BATCH], dict(self._tags)
                if not points and not tags:
                    return True
                try:
                    self._send([point for point in points if self._is_news(point)], tags)
                except Exception as error:
                    self._warn("MLflow did not take values; they are kept and sent again", error)
                    return False
                with self._lock:
                    del self._pending[: len(points)]
                    for key in [key for key, value in tags.items() if self._tags.get(key) == value]:
                        del self._tags[key]

    def _send(self, points: list[Point], tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        # A batch that arrived although its answer did not may be sent again: equal points are one point to MLflow.
        self._client.log_batch(
            self.id, metrics=as_metrics(points), tags=[RunTag(key, value[:8000]) for key, value in tags.items()]
        )

    def _is_news(self, point: Point) -> bool:
        """Whether the run does not have the point. Resumed a little before its end, a training passes steps again;
        MLflow would keep and draw both."""
        if not self._has_past:
            return True
        name, step, value, _ = point
        if name not in self._past:
            history = self._client.get_metric_history(self.id, name)
            last = max(history, key=lambda metric: (metric.step, metric.timestamp), default=None)
            self._past[name] = last and (last.step, last.value)
        past = self._past[name]
        return past is None or step > past[0] or (step == past[0] and value != past[1])

    def _send_now_and_then(self) -> None:
        while not self._is_closing.wait(_FLUSH_SECONDS):
            self.flush()

    def _close(self, phase: str, status: str, error: BaseException | None) -> None:
        """Send the rest and end the run, if it is this phase's own: a finished training stays finished when its
        evaluation fails."""
        self._is_closing.set()
        if self.id is not None:
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
                self._warn(f"MLflow does not know that the run is {status}", failure)
        if lost := self._dropped + len(self._pending):
            logger.warning(
                "tracking: %d values did not reach MLflow; the run's files have them, `actionzoo sync` sends them", lost
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
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, object] | None = None,
    run_id: str | None = None,
) -> Iterator[Run]:
    """A run for the length of the block: finished if it ends well, KILLED by Ctrl-C or SIGTERM, else FAILED.

    `run_id` goes on with that run; one that the store does not know makes a new one. `params`, nested as they are, are
    recorded with new runs only, because MLflow refuses to change them. `phase` says who writes (train, evaluate): it
    prefixes tags such as `train.git_rev`, and only the phase that made a run ends it.
    A store that cannot be opened is warned about; the block runs all the same, with `.id` None.
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
    experiment: str, name: str, phase: str, params: Mapping[str, Any], tags: Mapping[str, object], run_id: str | None
) -> Run:
    all_tags = {key: str(value) for key, value in {"recipe": name, **_circumstances(phase), **tags}.items()}
    try:
        client, experiment_id, keeps_files = connect(experiment)
        found = known_run(client, experiment_id, run_id) if run_id else None
        is_resumed = found is not None
        if found is None:
            found = client.create_run(experiment_id, tags={"phase": phase, **all_tags}, run_name=name)
        elif found.data.tags.get("phase") == phase:
            client.update_run(found.info.run_id, status="RUNNING")
        artifacts = found.info.artifact_uri if keeps_files else None
        active = Run(client, found.info.run_id, artifacts=artifacts, is_resumed=is_resumed)
    except Exception as error:
        logger.warning(
            "tracking: MLflow at %s cannot be used, this run is not recorded (%s); "
            "its files are complete all the same, and `actionzoo sync` records them later",
            shown_uri(),
            one_line(error),
        )
        return Run(None, None, artifacts=None, is_resumed=False)
    if is_resumed:
        for key, value in all_tags.items():
            active.tag(key, value)
        return active
    try:
        log_params(client, active.id, params)
    except Exception as error:
        active._warn("MLflow did not take the parameters", error)
    return active


def _circumstances(phase: str) -> dict[str, str]:
    """Which code ran, and who started it, as tags of this phase."""
    tags = {"dvc_stage": os.environ.get("DVC_STAGE"), "prefect_flow_run_id": os.environ.get("ACTIONZOO_FLOW_RUN_ID")}
    if torch := sys.modules.get("torch"):
        tags["torch"] = torch.__version__
    if rev := _git("rev-parse", "HEAD"):
        tags["git_rev"] = rev
        # dvc.lock changes with every stage that ends, without anybody having touched the code
        tags["git_dirty"] = str(bool(_git("status", "--porcelain", "--", ":(top)", ":(top,exclude)dvc.lock"))).lower()
    return {f"{phase}.{key}": value for key, value in tags.items() if value}


def _git(*arguments: str) -> str:
    """What git prints, nothing where there is no git or no repository."""
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
