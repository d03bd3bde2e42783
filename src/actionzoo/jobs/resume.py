"""What makes two trainings equal, and what an interrupted one leaves to the next."""

import contextlib
import datetime
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files.hashes import md5_of
from ..files.json_files import read_json, write_json
from ..files.links import link_or_copy
from ..job import RunFiles
from ..params import Params, digest


def training_fingerprint(params: Params, row: str, manifest_sha256: str, num_processes: int = 1) -> str:
    """Equal for trainings that would end the same, but for rounding.

    The learning rate stands in it beside the recipe as used: the reference batch it is scaled from is that of the
    recipe as written, which a data set's overrides can hide.
    """
    recipe = params.recipe(row)
    sections = (recipe.seed, recipe.model, recipe.init, recipe.clips, recipe.augment, recipe.optim, recipe.schedule)
    scaled = batch_and_lr(params, row, num_processes)
    return digest(*sections, scaled, num_processes, params.runtime.batch_norm, manifest_sha256)


def batch_and_lr(params: Params, row: str, num_processes: int = 1) -> tuple[int, int, float]:
    """Clips of one step, clips of the reference batch, and the learning rate for the former."""
    from ..engine.schedule import scaled_lr

    optim, reference = params.recipe(row).optim, params.recipes[row].optim.reference_batch
    batch = optim.videos_per_gpu * optim.accumulate * num_processes
    lr = scaled_lr(optim.lr, batch=batch, reference_batch=reference) if optim.scale_lr else optim.lr
    return batch, reference, lr


def finished_training(files: RunFiles, fingerprint: str) -> dict[str, Any] | None:
    made = read_json(files.recipe)
    if made.get("fingerprint") != fingerprint or not isinstance(made.get("files"), dict):
        return None
    for name, known in made["files"].items():
        path = files.run / name if name.endswith(".pth") else files.metrics().parent / name
        if not path.is_file() or path.stat().st_size != known["size"] or md5_of(path) != known["md5"]:
            return None
    return made


class RunMemory:
    """What an interrupted training's successor must know from its first moment: which logs, which MLflow run."""

    def __init__(self, path: Path):
        self.path = path
        known = read_json(path)
        self.stamp: str = known.get("stamp") or datetime.datetime.now().strftime("%Y%m%d_%H%M%S")
        self.run_id: str | None = known.get("run_id")

    def remember(self, run_id: str | None) -> None:
        self.run_id = run_id
        write_json(self.path, {"stamp": self.stamp, "run_id": run_id})


def state_about(made: dict[str, Any]) -> dict[str, Any]:
    """What a saved state says of its training."""
    return {key: made[key] for key in ("row", "dataset", "manifest_sha256", "recipe", "batch", "lr")}


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """`recipe.optim.lr: 0.1 -> 0.05`"""
    lines = []
    for key in [*before, *(key for key in now if key not in before)]:
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old} -> {new}")
    return lines


def take_state(source: Path, scratch: Path, made: dict[str, Any]) -> None:
    """Let the training go on from a state that the user names. Raises UserError if it is of another recipe."""
    from ..engine.checkpoint import load_checkpoint

    if not source.is_file():
        raise UserError(f"{source} is not there; a saved state is called state-<epochs>-<steps>.pth")
    saved = load_checkpoint(source)
    if not isinstance(saved.get("about"), dict):
        raise UserError(f"{source} is no saved state but weights alone; give it as init.weights to start from it")
    about = {key: value for key, value in saved["about"].items() if key != "mlflow_run"}
    if changes := _differences(about, state_about(made)):
        raise UserError(
            f"{source} is of another training, it was not resumed: {'; '.join(changes)}. Set these back, or start anew "
            "with the state's weights in init.weights"
        )
    for path in scratch.glob("state-*.pth"):
        path.unlink()
    link_or_copy(source, scratch / source.name)
    RunMemory(scratch / "run.json").remember(saved["about"].get("mlflow_run"))


def other_unfinished(files: RunFiles, scratch: Path, made: dict[str, Any]) -> list[str]:
    """A sentence for each training of this row that was left unfinished under another recipe."""
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
            about = {key: value for key, value in saved["about"].items() if key != "mlflow_run"}
            changes = "; ".join(_differences(about, state_about(made))) or "other processes or batch norm"
            lines.append(
                f"not going on from {folder}, which stopped after epoch {saved['state'].get('finished_epochs')} of "
                f"another recipe: {changes}. Delete that folder if you do not want it any more"
            )
    return lines
