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
from ..tracking.live import Progress, Request
from ..tracking.pages import run_page
from ..tracking.record import Known, write
from ..tracking.run_link import RunLink, leave_link
from ..tracking.store import is_server, one_line, pages_address
from ..tracking.system import sample_regularly

_VALUES_SECONDS, _FILES_SECONDS = 5.0, 60.0
"""Between two calls, and between two that send files. Logs grow, and each time they are sent whole."""

_PAUSE = 20
"""Between two calls, so many times as long as the one before has taken: 5 % of a CPU core at most."""

_LAST_SECONDS, _LAST_ATTEMPTS = 20.0, 3
"""So long, or so often if they fail at once, the last values are sent before the recorder gives up."""


def main(argument: str) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)  # the stage gets them, too, and closes standard input
    request, parent, is_ending = Request(**json.loads(argument)), os.getppid(), threading.Event()
    sampler = threading.Thread(target=sample_regularly, args=(request.files().system(request.stamp), is_ending))
    if request.stamp:
        sampler.daemon = True
        sampler.start()
    known: dict[int, Known] = {}
    seconds, files_due, is_last = 0.0, 0.0, False
    while not is_last:
        if is_last := _is_closed(seconds) or os.getppid() != parent:
            is_ending.set()
        began = time.monotonic()
        with_files = is_last or began >= files_due
        is_done = _record(request, known, with_files=with_files)
        if with_files and is_done:
            files_due = time.monotonic() + _FILES_SECONDS
        seconds = max(_VALUES_SECONDS, _PAUSE * (time.monotonic() - began))
    attempts, deadline = 1, time.monotonic() + _LAST_SECONDS
    while not is_done and time.monotonic() < deadline:
        time.sleep(1)
        began = time.monotonic()
        is_done, attempts = _record(request, known, with_files=True), attempts + 1
        if attempts >= _LAST_ATTEMPTS and time.monotonic() - began < 1:  # nobody answers
            break


def _record(request: Request, known: dict[int, Known], *, with_files: bool) -> bool:
    """Record once, and print how it went; whether it succeeded."""
    error, files = "", request.files()
    try:
        if not request.is_reproduction and files.result.is_file():
            from .model_page import write_model_page  # not yet needed while it trains

            write_model_page(files)
        for number, description in enumerate(request.descriptions()):
            with locked(files.record_lock):
                written = write(
                    description,
                    files.root,
                    checkpoints=request.checkpoints,
                    with_files=with_files,
                    known=known.setdefault(number, Known()),
                )
            page = run_page(pages_address(files.root), written.experiment_id, written.run_id)
            name = description.name if request.is_reproduction else description.model
            leave_link(RunLink(name, "train" if request.stamp else "evaluate", page, is_server(files.root)))
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
