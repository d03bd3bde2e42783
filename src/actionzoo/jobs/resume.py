"""What an interrupted training leaves to the next."""

import contextlib
import datetime
from collections.abc import Mapping
from pathlib import Path

from ..errors import UserError
from ..files.json_files import read_json, write_json
from ..files.links import link_or_copy
from ..recipe import differences
from ..records import RunRecord
from ..run_files import RunFiles


class RunMemory:
    """What a resumed training must know from its first moment: its log files and its MLflow run."""

    def __init__(self, path: Path):
        self.path = path
        known = read_json(path)
        self.stamp: str = known.get("stamp") or datetime.datetime.now().strftime("%Y%m%d_%H%M%S")
        self.run_id: str | None = known.get("run_id")

    def remember(self, run_id: str | None) -> None:
        self.run_id = run_id
        write_json(self.path, {"stamp": self.stamp, "run_id": run_id})


def state_about(record: RunRecord) -> dict[str, object]:
    """What a saved state says of its training."""
    return {key: getattr(record, key) for key in ("model", "dataset", "manifest_sha256", "recipe", "batch", "lr")}


def _changes(about: Mapping[str, object], record: RunRecord) -> list[str]:
    """What differs between the training that a state is of and this one."""
    known = {"model" if key == "row" else key: value for key, value in about.items() if key != "mlflow_run"}
    return differences(known, state_about(record))


def take_state(source: Path, scratch: Path, record: RunRecord) -> None:
    """Let the training go on from a state that the user names. Raises UserError if it is of another recipe."""
    from ..engine.checkpoint import load_checkpoint

    if not source.is_file():
        raise UserError(f"{source} is not there; a saved state is called state-<epochs>-<steps>.pth")
    saved = load_checkpoint(source)
    if not isinstance(saved.get("about"), dict):
        raise UserError(f"{source} is no saved state but weights alone; give it as init.weights to start from it")
    if changes := _changes(saved["about"], record):
        raise UserError(
            f"{source} is of another training, it was not resumed: {'; '.join(changes)}. Set these back, or start anew "
            "with the state's weights in init.weights"
        )
    for path in scratch.glob("state-*.pth"):
        path.unlink()
    link_or_copy(source, scratch / source.name)
    RunMemory(scratch / "run.json").remember(saved["about"].get("mlflow_run"))


def other_unfinished(files: RunFiles, scratch: Path, record: RunRecord) -> list[str]:
    """A sentence for each training of this model that was interrupted and had another recipe."""
    from ..engine.checkpoint import CheckpointError, load_checkpoint
    from ..engine.state import saved_states

    lines = []
    for folder in sorted(files.unfinished.iterdir()):
        if folder == scratch or not folder.is_dir() or not (states := saved_states(folder)):
            continue
        with contextlib.suppress(CheckpointError):
            saved = load_checkpoint(states[0])
            if not isinstance(saved.get("about"), dict) or not isinstance(saved.get("state"), dict):
                continue
            changes = "; ".join(_changes(saved["about"], record)) or "other processes or batch norm"
            lines.append(
                f"not going on from {folder}, which stopped after epoch {saved['state'].get('finished_epochs')} of "
                f"another recipe: {changes}. Delete that folder if you do not want it any more"
            )
    return lines
