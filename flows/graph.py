"""The DVC graph for the scheduler: which stages each stage needs, and how many GPUs it asks for."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from actionzoo.errors import UserError
from actionzoo.files.addresses import without_secrets
from actionzoo.names import NAME_RULE, is_name


@dataclass(frozen=True)
class Stage:
    """A stage of dvc.yaml."""

    name: str
    """As `dvc repro` takes it: `train@slowfast_r50_8x8`."""
    gpus: int
    """`meta.gpus` in dvc.yaml; 0 if not set."""
    needs: tuple[str, ...]
    """Names of the stages whose outputs it reads."""


def read_graph(targets: Iterable[str] | None = None) -> tuple[Path, list[Stage]]:
    """The root of the DVC repository around the working directory, and its stages, each after those that it needs.

    With targets (names of stages, or of groups: `train` is every `train@...`), only these and the stages they need.
    Raises UserError for a target that does not exist, for a dvc.yaml that DVC cannot read, and for a recipe whose name
    is not safe as a word of a shell command.
    """
    from dvc.exceptions import DvcException  # takes 0.2 s, and helper processes do without
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            root = Path(repo.root_dir)
            needs = {
                stage.addressing: tuple(sorted(needed.addressing for needed in repo.index.graph.successors(stage)))
                for stage in repo.index.graph
            }
            gpus = {stage.addressing: _gpus(stage.addressing, stage.meta) for stage in repo.index.graph}
            order = [stage.addressing for stage in repo.index.stages]
    except DvcException as error:
        raise UserError(without_secrets(f"DVC cannot read its graph here: {error}")) from error

    for name in order:  # the key of a recipe becomes a word of the stage's shell command
        key = name.partition("@")[2]
        if key and not is_name(key):
            raise UserError(f"dvc.yaml has the stage {name[:120]!r}; a key of params.yaml has {NAME_RULE}: rename it")
    wanted = order if not targets else [name for target in targets for name in _expand(target, order)]
    stages: dict[str, Stage] = {}

    def add(name: str) -> None:
        if name not in stages:
            for needed in needs[name]:
                add(needed)
            stages[name] = Stage(name, gpus[name], needs[name])

    for name in wanted:
        add(name)
    return root, list(stages.values())


def _expand(target: str, names: list[str]) -> list[str]:
    if target in names:
        return [target]
    if group := [name for name in names if name.startswith(f"{target}@")]:
        return group
    known = [*names, *dict.fromkeys(name.partition("@")[0] for name in names if "@" in name)]
    near = difflib.get_close_matches(target, known, n=3, cutoff=0.5) or [name for name in known if target in name][:3]
    hint = f"did you mean {' or '.join(near)}?" if near else "`dvc stage list` lists all stages."
    raise UserError(f"dvc.yaml has no stage {target}; {hint}")


def _gpus(name: str, meta: Mapping[str, object] | None) -> int:
    gpus = (meta or {}).get("gpus", 0)
    if isinstance(gpus, int) and not isinstance(gpus, bool) and gpus >= 0:
        return gpus
    raise UserError(f"dvc.yaml: meta.gpus of {name} is {gpus!r}; write the number of GPUs it asks for, 0 for none.")
