"""The process that records a training in MLflow while it goes on: python -m actionzoo.jobs.recorder.

It calls record.write every few seconds, for the folder that its first argument names (live.Request). A store that is
away is tried again each time; one that hangs holds this process alone, which the stage ends when its time is up. After
each call it prints a line of JSON, live.Progress. When its standard input is closed it makes a last call and ends.
"""

import contextlib
import dataclasses
import json
import os
import select
import signal
import sys
import threading
import time

from ..errors import UserError
from ..files.locks import locked
from ..tracking.live import LAST_ATTEMPTS, Progress, Request
from ..tracking.record import Known, write
from ..tracking.store import one_line
from ..tracking.system import sample_regularly
from .model_page import write_model_page

_VALUES_SECONDS, _FILES_SECONDS = 5.0, 60.0
"""Between two calls, and between two that send files. Logs grow, and each time they are sent whole."""


def main(argument: str) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)  # the stage gets them, too, and closes standard input
    request, parent, is_ending = Request(**json.loads(argument)), os.getppid(), threading.Event()
    sampler = threading.Thread(target=sample_regularly, args=(request.files().system(request.stamp), is_ending))
    if request.stamp:
        sampler.daemon = True
        sampler.start()
    known: dict[int, Known] = {}
    seconds, files_due, is_last, attempts = 0.0, 0.0, False, 0
    while not is_last:
        if is_last := _is_closed(seconds) or os.getppid() != parent:
            is_ending.set()
        with_files = is_last or time.monotonic() >= files_due
        is_done = _record(request, known, with_files=with_files)
        if with_files and is_done:
            files_due = time.monotonic() + _FILES_SECONDS
        seconds = _VALUES_SECONDS
    while not is_done and (attempts := attempts + 1) < LAST_ATTEMPTS:
        time.sleep(1)
        is_done = _record(request, known, with_files=True)


def _record(request: Request, known: dict[int, Known], *, with_files: bool) -> bool:
    """Record once, and print how it went; whether it succeeded."""
    error, files = "", request.files()
    try:
        if not request.is_reproduction:
            write_model_page(files)
        for number, description in enumerate(request.descriptions()):
            with locked(files.record_lock):
                write(
                    description,
                    files.root,
                    checkpoints=request.checkpoints,
                    with_files=with_files,
                    known=known.setdefault(number, Known()),
                )
    except Exception as failure:
        error = str(failure) if isinstance(failure, UserError) else one_line(failure)
    progress = Progress(
        points=sum(len(steps) for each in known.values() for steps in each.points.values()),
        files=sorted(name for each in known.values() for name in each.files),
        error=error,
    )
    with contextlib.suppress(BrokenPipeError):  # the stage is gone
        print(json.dumps(dataclasses.asdict(progress)), flush=True)
    return not error


def _is_closed(seconds: float) -> bool:
    """Whether standard input is closed within so many seconds."""
    ready, _, _ = select.select([0], [], [], seconds)
    return bool(ready) and not os.read(0, 1)


if __name__ == "__main__":
    # a call that fails is repeated by the loop
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    main(sys.argv[1])
