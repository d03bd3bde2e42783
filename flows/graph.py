"""The DVC graph for the scheduler: which stages each stage needs, what has changed, and the order of dvc.lock."""

import difflib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actionzoo.errors import UserError
from actionzoo.files.addresses import without_secrets
from actionzoo.files.atomic import atomic_write
from actionzoo.names import NAME_RULE, is_name
from actionzoo.process.stage import repair_rwlock
from flows.stage.dvc_lock import lock_holder


@dataclass(frozen=True)
class Stage:
    """A stage of dvc.yaml."""

    name: str
    """As `dvc repro` takes it: `train@slowfast_r50_8x8`."""
    gpus: int
    """`meta.gpus` in dvc.yaml; 0 if not set."""
    needs: tuple[str, ...]
    """Names of the stages whose outputs it reads."""
    commands: int = 1
    """How many shells DVC starts one after the other to run it."""
    retries: int = 0
    """`meta.retries` in dvc.yaml: how often to run it again after a fault that may pass by itself."""


def read_graph(targets: Iterable[str] | None = None, folder: Path | None = None) -> tuple[Path, list[Stage]]:
    """The root of the DVC repository around `folder` (the working directory if None), and its stages in the order of
    `dvc repro`, which puts each after those that it needs.

    With targets (names of stages, or of groups: `train` is every `train@...`), only these and the stages they need.
    Raises UserError for a target that does not exist, for a dvc.yaml that DVC cannot read, and for a recipe whose name
    is not safe as a word of a shell command.
    """
    with _opened(folder) as repo:
        return Path(repo.root_dir), [stage for stage, _ in _planned(repo, targets)]


def ask_dvc(
    targets: Iterable[str] | None = None,
    folder: Path | None = None,
    on_wait: Callable[[int], object] = lambda holder: None,
) -> tuple[Path, list[Stage], dict[str, str | None]]:
    """As read_graph, and what DVC says of each stage: its changes, in the words of `dvc status`; None if it is up to
    date.

    A stage that DVC cannot look at, as while another process builds it, has the reason for that as its change. If
    another process holds DVC's lock, `on_wait` is called with its pid before this waits for it.
    """
    from dvc.exceptions import DvcException

    changes: dict[str, str | None] = {}
    with _opened(folder) as repo:
        root = Path(repo.root_dir)
        repair_rwlock(root)
        if (holder := lock_holder(root)) is not None:
            on_wait(holder)
        with repo.lock:
            planned = _planned(repo, targets)
            for stage, its in planned:
                try:
                    found = its.status(check_updates=True).get(its.addressing, [])
                    changes[stage.name] = ", ".join(json.dumps(change) for change in found) or None
                except DvcException as error:
                    changes[stage.name] = " ".join(str(error).split())
    return root, [stage for stage, _ in planned], changes


@contextmanager
def _opened(folder: Path | None) -> Iterator[Any]:
    from dvc.exceptions import DvcException  # takes 0.2 s, and helper processes do without
    from dvc.repo import Repo

    try:
        with Repo(None if folder is None else str(folder), _wait_for_lock=True) as repo:
            yield repo
    except DvcException as error:
        raise UserError(without_secrets(f"DVC cannot read its graph here: {error}")) from error


def _planned(repo: Any, targets: Iterable[str] | None) -> list[tuple[Stage, Any]]:
    """Each stage, and DVC's own of it."""
    from dvc.repo.reproduce import plan_repro

    graph = repo.index.graph
    known = {_address(stage): stage for stage in repo.index.stages}
    for name in known:  # the key of a recipe becomes a word of the stage's shell command
        key = name.partition("@")[2]
        if key and not is_name(key):
            raise UserError(f"dvc.yaml has the stage {name[:120]!r}; a key of params.yaml has {NAME_RULE}: rename it")
    wanted = list(known) if not targets else [name for target in targets for name in _expand(target, [*known])]
    return [
        (
            Stage(
                _address(stage),
                _count("gpus", stage),
                tuple(sorted(_address(needed) for needed in graph.successors(stage))),
                len(stage.cmd if isinstance(stage.cmd, list) else (stage.cmd or "").splitlines()),
                _count("retries", stage),
            ),
            stage,
        )
        for stage in plan_repro(graph, [known[name] for name in dict.fromkeys(wanted)])
    ]


def is_target(name: str, targets: Sequence[str]) -> bool:
    """Whether the targets name this stage or its group; without targets, all are meant."""
    return not targets or name in targets or name.partition("@")[0] in targets


def locked_stages(root: Path) -> list[str]:
    """Names of the stages in dvc.lock, in its order; empty if there is no dvc.lock. Raises UserError."""
    from dvc.utils.serialize import YAMLFileCorruptedError, load_yaml

    try:
        return list(load_yaml(root / "dvc.lock").get("stages", {}))
    except FileNotFoundError:
        return []
    except YAMLFileCorruptedError as error:
        raise UserError(without_secrets(f"dvc.lock cannot be read: {error}")) from error


def sort_lock(root: Path, before: Sequence[str], stages: Sequence[Stage]) -> None:
    """Give dvc.lock the order that `dvc repro` would have given it.

    DVC keeps the places of stages that were there `before` and appends new ones as they finish. Those that `stages`
    built at the same time are put in the order of the graph: however it was built, the same zoo has the same dvc.lock.
    """
    from dvc.repo import Repo
    from dvc.utils.serialize import dumps_yaml, parse_yaml_for_update

    places = {name: place for place, name in enumerate(dict.fromkeys([*before, *(stage.name for stage in stages)]))}

    def in_order(names: Iterable[str]) -> list[str]:
        return sorted(names, key=lambda name: places.get(name, len(places)))

    now, path = locked_stages(root), root / "dvc.lock"
    if now == in_order(now):
        return
    with Repo(str(root), _wait_for_lock=True) as repo, repo.lock:
        content = parse_yaml_for_update(path.read_text(encoding="utf-8"), str(path))
        found = content["stages"]
        for name in in_order(found):  # all anew: another flow may have added some meanwhile
            found[name] = found.pop(name)
        with atomic_write(path) as file:
            file.write(dumps_yaml(content).encode())


def _address(stage: Any) -> str:
    """The stage's name in its repository. DVC's own has a path before it if that is not the working directory."""
    address: str = stage.addressing
    return address.removeprefix(os.path.relpath(stage.repo.root_dir) + os.sep).removeprefix("dvc.yaml:")


def _expand(target: str, names: list[str]) -> list[str]:
    if target in names:
        return [target]
    if group := [name for name in names if name.startswith(f"{target}@")]:
        return group
    known = [*names, *dict.fromkeys(name.partition("@")[0] for name in names if "@" in name)]
    near = difflib.get_close_matches(target, known, n=3, cutoff=0.5) or [name for name in known if target in name][:3]
    hint = f"did you mean {' or '.join(near)}?" if near else "`dvc stage list` lists all stages."
    raise UserError(f"dvc.yaml has no stage {target}; {hint}")


def _count(key: str, stage: Any) -> int:
    """`meta.KEY` of DVC's stage."""
    value = (stage.meta or {}).get(key, 0)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    meaning = {"gpus": "number of GPUs it asks for", "retries": "number of times to run it again"}[key]
    raise UserError(f"dvc.yaml: meta.{key} of {stage.addressing} is {value!r}; write the {meaning}, 0 for none.")
