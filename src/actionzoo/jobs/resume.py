"""What an interrupted training leaves to the next."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..files.atomic import atomic_write
from ..files.json_files import read_json, write_json
from ..files.links import link_or_copy
from ..job import Job
from ..recipe import differences
from ..records import RunRecord
from ..run_files import RunFiles
from ..tracking.sessions import new_stamp
from ..weights.provenance import Provenance, init_source

if TYPE_CHECKING:
    from ..engine.distributed import World


class RunMemory:
    """What a resumed training must know from its first moment: the stamp of its logs and record, what it came from."""

    def __init__(self, path: Path):
        self.path = path
        known = read_json(path)
        self.stamp: str = known.get("stamp") or new_stamp()
        self.run_id: str | None = known.get("run_id")
        """Of the version before, which recorded a training under this id alone."""
        self.provenance = _provenance(known)

    def remember(self, provenance: Provenance, *, stamp: str = "", run_id: str | None = None) -> None:
        """`stamp` and `run_id` replace those that are known, if given."""
        self.stamp, self.run_id, self.provenance = stamp or self.stamp, run_id or self.run_id, provenance
        known = {"stamp": self.stamp, "run_id": self.run_id, "init": provenance.init_source}
        write_json(self.path, known | {"versions": provenance.versions, "init_sha256": provenance.init_sha256})


def _provenance(known: Mapping[str, Any]) -> Provenance:
    """What run.json or a state says; those of version 0.1 say nothing."""
    recipe, init, versions, sha256 = (known.get(key) for key in ("recipe", "init", "versions", "init_sha256"))
    return Provenance(
        versions=versions if isinstance(versions, dict) else {},
        init_source=init_source(recipe) if isinstance(recipe, dict) else init,
        init_sha256=sha256 if isinstance(sha256, str) else "",
    )


def changes_since(memory: RunMemory, job: Job, scratch: Path) -> list[str]:
    """A line for each difference to the training that left its states in `scratch` that DVC does not see."""
    anew = f"to train it anew, delete {scratch} and run `dvc repro -f train@{job.model}`"
    return job.notes_on(memory.provenance, anew)


_IDENTITY = ("model", "dataset", "manifest_sha256", "recipe", "batch", "lr")


def state_about(record: RunRecord) -> dict[str, object]:
    """What a saved state says of its training."""
    return {key: getattr(record, key) for key in (*_IDENTITY, "versions", "init_sha256")}


def _changes(about: Mapping[str, Any], record: RunRecord) -> list[str]:
    """What differs between the training that a state is of and this one, but for how and with what they run."""
    known = {"model": about.get("row")} | {key: about[key] for key in _IDENTITY if key in about}
    now = {key: getattr(record, key) for key in _IDENTITY}
    match known.get("recipe"):  # a state of version 0.1 does not say batch_norm; to be deleted with the next version
        case {"optim": dict(optim), **others}:
            known["recipe"] = others | {"optim": {"batch_norm": now["recipe"]["optim"].get("batch_norm")} | optim}
    return differences(known, now)


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
    about = saved["about"]
    stamp, run_id = about.get("stamp"), about.get("mlflow_run")
    RunMemory(scratch / "run.json").remember(_provenance(about), stamp=stamp or "", run_id=run_id)


def spread_states(scratch: Path, world: "World") -> None:
    """Give the first process's newest saved state to machines that do not see its folder. Every process must call it.

    Without it, they would go on from another state, or start over.
    """
    from ..engine.state import saved_states

    names = world.gather(next((path.name for path in saved_states(scratch)), ""))
    if len(set(names)) == 1:
        return
    content = world.gather(saved_states(scratch)[0].read_bytes() if world.is_first and names[0] else b"")[0]
    if world.local_rank == 0 and names[world.rank] != names[0]:
        scratch.mkdir(parents=True, exist_ok=True)
        for path in saved_states(scratch):
            path.unlink()
        if names[0]:
            with atomic_write(scratch / names[0]) as file:
                file.write(content)
    world.wait()


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
