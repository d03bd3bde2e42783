"""Recording in MLflow beside a stage: a process of its own does it, so that no store can hold or stop the stage."""

import contextlib
import dataclasses
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError
from ..run_files import ReproductionFiles, RunFiles
from .describe import CHECKPOINTS, Description, describe, describe_reproductions
from .record import Checkpoints, published_of
from .store import shown_uri

_log = logging.getLogger(__name__)

END_SECONDS = 25.0
"""So long a stage waits at its end for the last values and files to be recorded."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What the recorder is to record; plain values."""

    root: str
    dataset: str
    model: str
    work_dir: str | None
    workspace: str | None
    stamp: str
    """Of the training to record; '': the one whose files are in the folder."""
    is_reproduction: bool
    """Record evaluations of published weights instead."""
    checkpoints: Checkpoints

    def files(self) -> RunFiles:
        def path(text: str | None) -> Path | None:
            return None if text is None else Path(text)

        return RunFiles(Path(self.root), self.dataset, self.model, path(self.work_dir), path(self.workspace))

    def descriptions(self) -> list[Description]:
        """What is to be recorded now. Raises UserError for a damaged file."""
        files = self.files()
        if self.is_reproduction:
            return describe_reproductions(ReproductionFiles(files.root, self.dataset, self.model))
        description = describe(files, self.stamp, published_of(files))
        return [] if description is None else [description]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """What the recorder has achieved."""

    points: int = 0
    """Values in the store."""
    files: list[str] = dataclasses.field(default_factory=list)
    """Artifacts in the store."""
    error: str = ""
    """Of the last call; '' if it succeeded."""


@contextlib.contextmanager
def recording(
    files: RunFiles | ReproductionFiles, *, stamp: str = "", checkpoints: Checkpoints = "link"
) -> Iterator[None]:
    """Record the run's folder in MLflow while the block runs, and its final state at the end.

    `stamp`: record the training that began then; else the one whose files are in the folder. The block never waits for
    MLflow. Its end does, at most END_SECONDS; what is missing then is logged as a warning.
    """
    work_dir, workspace = (files.work_dir, files.workspace) if isinstance(files, RunFiles) else (None, None)
    recorder = _Recorder(
        Request(
            root=str(files.root.absolute()),
            dataset=files.dataset,
            model=files.model,
            work_dir=str(work_dir.absolute()) if work_dir else None,
            workspace=str(workspace.absolute()) if workspace else None,
            stamp=stamp,
            is_reproduction=isinstance(files, ReproductionFiles),
            checkpoints=checkpoints,
        )
    )
    try:
        yield
    finally:
        recorder.close()


class _Recorder:
    def __init__(self, request: Request):
        self._request, self._progress, self._is_warned = request, Progress(), False
        line = [sys.executable, "-m", "actionzoo.jobs.recorder", json.dumps(dataclasses.asdict(request))]
        self._process: subprocess.Popen[str] | None = None
        try:
            self._process = subprocess.Popen(
                line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        except OSError as error:
            _log.warning("tracking: this run is not recorded in MLflow (%s); `actionzoo sync` does it later", error)
            return
        self._reader = threading.Thread(target=self._read, name="tracking", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        """Take in what the recorder reports; the first failure is logged at once."""
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            with contextlib.suppress(ValueError, TypeError):
                self._progress = Progress(**json.loads(line))
            if self._progress.error and not self._is_warned:
                self._is_warned = True
                _log.warning(
                    "tracking: MLflow at %s does not take this run now (%s); it is tried again, and the run's files "
                    "are complete in any case",
                    shown_uri(Path(self._request.root)),
                    self._progress.error,
                )

    def close(self) -> None:
        if self._process is None:
            return
        assert self._process.stdin is not None
        deadline = time.monotonic() + END_SECONDS
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        is_late = False
        try:
            self._process.wait(deadline - time.monotonic())
        except subprocess.TimeoutExpired:
            is_late = True
            self._process.kill()
        except BaseException:  # Ctrl-C
            self._process.kill()
            raise
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        self._reader.join(1)
        why = f"it did not answer within {END_SECONDS:g} s" if is_late else self._progress.error
        if why or self._process.returncode != 0:
            self._tell_what_is_missing(why or f"the recording process ended with status {self._process.returncode}")

    def _tell_what_is_missing(self, why: str) -> None:
        try:
            descriptions = self._request.descriptions()
        except UserError as error:
            _log.warning("tracking: MLflow has no complete record of this run: %s", error)
            return
        if not descriptions:
            return
        missing = max(0, sum(len(each.points) for each in descriptions) - self._progress.points)
        left_out = () if self._request.checkpoints == "upload" else CHECKPOINTS
        wanted = [name for each in descriptions for name in each.files if name not in left_out]
        files = [name for name in dict.fromkeys(wanted) if name not in self._progress.files]
        what = [f"{missing} values"] if missing else []
        what += [", ".join(files)] if files else []
        _log.warning(
            "tracking: MLflow at %s has not all of this run (%s). Missing: %s. The run's folder has everything; "
            "`actionzoo sync` sends it",
            shown_uri(Path(self._request.root)),
            why,
            " and ".join(what) or "how it ended",
        )
