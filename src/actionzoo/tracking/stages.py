"""What stages do for the record: they write who ran what into the run's folder, and have the folder recorded."""

import contextlib
import dataclasses
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from ..errors import UserError
from ..files.addresses import without_secrets
from ..process.stage import sigterm_as_exit
from ..records import Execution, RunRecord
from ..run_files import RunFiles
from .live import recording
from .record import Checkpoints
from .sessions import git_commit, new_stamp, now_milliseconds, this_session, write_environment


@contextlib.contextmanager
def recorded_training(
    files: RunFiles, stamp: str, record: RunRecord, *, checkpoints: Checkpoints, mlflow_run: str = ""
) -> Iterator[None]:
    """Note that this process trains, and record the training in MLflow while the block runs.

    How the block ends becomes the training's status, and SIGTERM ends it as SystemExit. A training that is resumed
    keeps its `stamp` and gets one more session. `mlflow_run`: see Execution.
    """
    commit, is_dirty = git_commit(files.root)
    path = files.execution(stamp)
    known = _read(path)
    execution = Execution(
        model=files.model,
        dataset=files.dataset,
        status="running",
        began=known.began if known else now_milliseconds(),
        sessions=(*(known.sessions if known else ()), this_session("train")),
        git_commit=commit,
        git_dirty=is_dirty,
        record=record.as_json(),
        mlflow_run=mlflow_run or (known.mlflow_run if known else ""),
    )
    execution.write(path)
    write_environment(files.environment(stamp), record)
    with sigterm_as_exit(), recording(files, stamp=stamp, checkpoints=checkpoints):
        try:
            yield
        except BaseException as error:
            status, text = _status_after(error), "" if isinstance(error, KeyboardInterrupt) else _one_line(error)
            if status != "finished":
                with contextlib.suppress(OSError):  # a full disk may be the error
                    dataclasses.replace(execution, status=status, error=text, ended=now_milliseconds()).write(path)
            raise


def finish_training(files: RunFiles, stamp: str, record: RunRecord) -> None:
    """Note that the training has finished: its files are in their places."""
    path = files.execution(stamp)
    if known := _read(path):
        md5 = record.files[files.best.name].md5
        done = dataclasses.replace(known, status="finished", error="", ended=now_milliseconds(), checkpoint_md5=md5)
        dataclasses.replace(done, record=record.as_json()).write(path)


@contextlib.contextmanager
def recorded_stage(files: RunFiles, stage: str, checkpoint_md5: str, checkpoints: Checkpoints) -> Iterator[None]:
    """Note that this process works on what came of the training that made this checkpoint, and record its folder."""
    _note_session(files, stage, checkpoint_md5)
    with recording(files, checkpoints=checkpoints):
        yield


def _note_session(files: RunFiles, stage: str, checkpoint_md5: str) -> None:
    found = {path: execution for path in files.executions().values() if (execution := _read(path))}
    path = next((path for path, each in found.items() if each.checkpoint_md5 == checkpoint_md5), None)
    execution = found[path] if path else None
    if path is None or execution is None:  # it was trained elsewhere
        path = files.execution(new_stamp())
        now = now_milliseconds()
        execution = Execution(
            model=files.model,
            dataset=files.dataset,
            status="finished",
            began=now,
            ended=now,
            checkpoint_md5=checkpoint_md5,
        )
    dataclasses.replace(execution, sessions=(*execution.sessions, this_session(stage))).write(path)


def _read(path: Path) -> Execution | None:
    """None for a damaged file, too: who ran a training does not stop another one."""
    with contextlib.suppress(UserError):
        return Execution.read_if_there(path)
    return None


def _status_after(error: BaseException) -> Literal["finished", "failed", "killed"]:
    if isinstance(error, SystemExit):
        if error.code in (None, 0):
            return "finished"
        return "killed" if error.code in (128 + signal.SIGINT, 128 + signal.SIGTERM) else "failed"
    return "killed" if isinstance(error, KeyboardInterrupt) else "failed"


def _one_line(error: BaseException) -> str:
    return without_secrets(" ".join(f"{type(error).__name__}: {error}".split()))[:500]
