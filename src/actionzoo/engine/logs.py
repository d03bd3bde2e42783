"""The two logs of a training: <time>.log to read, <time>.log.json for programs.

The JSON log has a line per event with MMAction2's keys, so that MMAction2's analysis scripts read it; its first line
describes the run. It is the source of record: curves, MLflow runs and reports can be made from it again.
"""

import datetime
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..files.atomic import atomic_write


class RunLog:
    """Appends to both files, which are closed after every line."""

    def __init__(self, folder: Path, stamp: str):
        folder.mkdir(parents=True, exist_ok=True)
        self.text_path = folder / f"{stamp}.log"
        self.json_path = folder / f"{stamp}.log.json"

    def begin(self, meta: dict[str, Any], finished_epochs: int, finished_steps: int = 0) -> None:
        """Start the JSON log with the line `meta`, or resume it: events behind the finished steps are dropped.

        finished_steps counts the steps of the epoch after finished_epochs.
        """
        if not self.json_path.exists():
            self._append(self.json_path, json.dumps(meta))
            return
        kept = [json.dumps(meta)] + [
            json.dumps(line) for line in read_log(self.json_path) if _is_finished(line, finished_epochs, finished_steps)
        ]
        with atomic_write(self.json_path) as file:
            file.write(("\n".join(kept) + "\n").encode())

    def say(self, text: str) -> None:
        """Append a line to the readable log, with the local time."""
        now = datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        self._append(self.text_path, f"{now} - actionzoo - INFO - {text}")

    def event(self, line: dict[str, Any]) -> None:
        """Append a line to the JSON log; floats are rounded to 5 decimals, as in MMAction2."""
        rounded = {key: round(value, 5) if isinstance(value, float) else value for key, value in line.items()}
        self._append(self.json_path, json.dumps(rounded))

    @staticmethod
    def _append(path: Path, line: str) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


_MEASURED = ("data_time", "time", "memory")
"""Keys of an event that differ from run to run."""


def write_history(logs: Iterable[Path], path: Path) -> None:
    """Write the events of JSON logs without what differs from run to run: equal trainings give equal files.

    The first line of each log becomes one with the number of steps of an epoch.
    """
    lines: list[dict[str, Any]] = []
    for log in logs:
        first = json.loads(log.read_text(encoding="utf-8").partition("\n")[0])
        lines.append({"format_version": 1, "iters_per_epoch": first.get("iters_per_epoch")})
        lines += [{key: value for key, value in line.items() if key not in _MEASURED} for line in read_log(log)]
    with atomic_write(path) as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines).encode())


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of a .log.json, without its first line. A last line that a kill cut off is left out."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            return
        if number > 0:
            yield event


def _is_finished(line: dict[str, Any], finished_epochs: int, finished_steps: int) -> bool:
    epoch, step = int(line["epoch"]), int(line["iter"])
    is_of_next_epoch = epoch == finished_epochs + 1 and line["mode"] == "train"
    return epoch <= finished_epochs or (is_of_next_epoch and step <= finished_steps)


def eta(seconds: float) -> str:
    """Format a duration: `1 day, 2:03:04`."""
    return str(datetime.timedelta(seconds=int(seconds)))
