"""Share what stages build with other machines through DVC's default remote.

The flow calls `before` and `after` around each stage that it runs, on machines that share (flows/machines.py). The
transport is DVC's run cache: a stage that another machine has built with the same inputs is restored, without git and
without dvc.lock of that machine. The files of a stage are pushed first, and its entry in the run cache after them, so
an entry that can be seen has its files.

Stages of the data (`download`, `resize`, `frames`) are not fetched: DVC does not see archives and shards, so each
machine builds its own, or finds those under a data root that machines share (ACTIONZOO_DATA).

    python -m flows.share fetch [--commit] STAGE...     restores stages; prints the names of those that it restored
    python -m flows.share push STAGE...
"""

import argparse
import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from actionzoo.errors import UserError
from actionzoo.files.addresses import without_secrets
from actionzoo.process.stage import repair_rwlock
from flows import command
from flows.dvc_process import SECRET
from flows.graph import Stage
from flows.request import Machine

RETRY_SECONDS: Sequence[float] = (5, 20, 60)
"""Before each further attempt while the remote cannot be reached."""

RESTORED = "restored "
"""Beginning of the lines with which `fetch` names what it restored."""

_EACH_MACHINE = ("download", "resize", "frames")


def before(stage: Stage, machine: Machine, log: Callable[[str], object] = print) -> None:
    """Restore `stage` if another machine has built it. Called before DVC is asked to build it; DVC then finds it in its
    run cache. Raises UserError if the remote cannot be reached, and Stopped."""
    if machine.shares and is_shared(stage.name) and stage.name not in machine.beside:
        push_kept_back(machine.root, machine.stop, log)
        fetch(machine.root, [stage.name], machine.stop, log)


def after(stage: Stage, machine: Machine, log: Callable[[str], object] = print) -> None:
    """Push what was built. Called after `stage` was built; does not fail: what could not be pushed is pushed at the
    next start. Raises Stopped."""
    if machine.shares and stage.name not in machine.beside:
        push(machine.root, [stage.name], machine.stop, log)


def is_shared(name: str) -> bool:
    """Whether the stage `name` built on one machine is of use on another: whether DVC sees all that it makes."""
    return name.partition("@")[0] not in _EACH_MACHINE


def fetch(
    root: Path, names: Sequence[str], stop: threading.Event, log: Callable[[str], object], *, commit: bool = False
) -> list[str]:
    """Restore the stages that the remote's run cache has for the present inputs; returns their names.

    `names` in the order of the graph. With `commit`, dvc.lock gets them too, as after `dvc repro`. Raises UserError if
    the remote cannot be reached, and Stopped.
    """
    words = ["fetch", *(["--commit"] if commit else []), *names]
    lines = _patiently(root, words, stop, log)
    return [line.removeprefix(RESTORED) for line in lines if line.startswith(RESTORED)]


def push(root: Path, names: Sequence[str], stop: threading.Event, log: Callable[[str], object]) -> bool:
    """Push the outputs of stages and the run cache. False if the remote could not be reached: then they are noted, and
    `push_kept_back` pushes them later."""
    _note_kept_back(root, names)
    try:
        _patiently(root, ["push", *names], stop, log)
    except UserError as error:
        log(f"{', '.join(names)}: built, but other machines do not have it yet: {error}")
        return False
    _forget_kept_back(root, names)
    return True


def push_kept_back(root: Path, stop: threading.Event, log: Callable[[str], object]) -> bool:
    """Push what an earlier run built and could not push. False if the remote still cannot be reached."""
    names = kept_back(root)
    return push(root, names, stop, log) if names else True


def kept_back(root: Path) -> list[str]:
    """Names of stages that were built here and are not in the remote yet."""
    return sorted(path.read_text(encoding="utf-8") for path in _kept_back_folder(root).glob("*"))


def _note_kept_back(root: Path, names: Iterable[str]) -> None:
    folder = _kept_back_folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name.replace("/", "_")).write_text(name, encoding="utf-8")


def _forget_kept_back(root: Path, names: Iterable[str]) -> None:
    for name in names:
        (_kept_back_folder(root) / name.replace("/", "_")).unlink(missing_ok=True)


def _kept_back_folder(root: Path) -> Path:
    return root / ".dvc" / "tmp" / "not_pushed"


def has_remote(root: Path) -> bool:
    """Whether the DVC repository has a default remote. Raises UserError if its settings cannot be read."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            return bool(repo.config["core"].get("remote"))
    except DvcException as error:
        raise UserError(without_secrets(f"DVC cannot read its settings in {root}: {error}")) from error


def lacking_data(root: Path, names: Iterable[str]) -> list[str]:
    """Those of the data stages `names` whose archives or shards are not on this machine, although DVC has their
    manifests: from another machine, or from git. Raises UserError."""
    from actionzoo.kinetics.inventory import read_inventory
    from actionzoo.kinetics.shard_list import SHARDS, read_shards
    from actionzoo.params import load_params

    if not (root / "params.yaml").is_file():
        return []
    data, lacking = load_params(root / "params.yaml").data_folder(), []
    for name in names:
        stage, _, size = name.partition("@")
        if stage in ("resize", "frames"):
            form = data / f"{'videos' if stage == 'resize' else 'frames'}_{size}"
            if any(not (form.stored / line.shard).is_file() for line in read_shards(form.tracked / SHARDS)):
                lacking.append(name)
    archive = data / "archive"
    if any(name.startswith("resize@") for name in lacking) and "download" in names:
        files = read_inventory(archive.tracked).files
        if any(not (archive.stored / file).is_file() for file in files):
            lacking.insert(0, "download")
    return lacking


def _patiently(root: Path, words: Sequence[str], stop: threading.Event, log: Callable[[str], object]) -> list[str]:
    """Run this module as a program, again after a pause if it fails; returns what it printed. Raises UserError."""
    for seconds in (*RETRY_SECONDS, None):
        lines: list[str] = []
        repair_rwlock(root)
        status = command.run(
            [sys.executable, "-m", "flows.share", *words], cwd=root, env=_environment(), on_line=lines.append, stop=stop
        )
        if status == 0:
            return lines
        reason = without_secrets(lines[-1][:500] if lines else f"exit status {status}")
        if seconds is None:
            break
        log(f"DVC's remote: {reason}; trying again in {seconds:.0f} s")
        if stop.wait(seconds):
            raise command.Stopped
    raise UserError(f"DVC's remote: {reason}. Make it reachable (`dvc remote list`, `dvc push`) and start again")


def _environment() -> dict[str, str]:
    project = str(Path(__file__).resolve().parent.parent)
    paths = [project, *filter(None, [os.environ.get("PYTHONPATH")])]
    inherited = {name: value for name, value in os.environ.items() if name not in SECRET}
    return {**inherited, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def _fetch(names: Sequence[str], *, commit: bool) -> None:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.stage.cache import RunCacheNotFoundError

    with Repo(_wait_for_lock=True) as repo, repo.lock:
        _raise_if_interrupted(repo)
        repo.stage_cache.pull(None)
        for name in names:
            (stage,) = repo.stage.collect(name)
            try:
                repo.stage_cache.restore(stage, pull=True)
            except RunCacheNotFoundError:
                continue
            except (DvcException, FileNotFoundError):
                if all(dependency.exists for dependency in stage.deps):
                    raise
                continue  # a stage that it needs was not restored
            if commit:  # as `dvc repro` does
                stage.save()
                stage.commit()
                stage.dump(update_pipeline=False)
            print(f"{RESTORED}{name}")


def _raise_if_interrupted(repo: Any) -> None:
    """Let a transfer that fails raise an error if the remote has the files. DVC takes the stage for one that nobody has
    built, and would build it again."""
    pull = repo.cloud.pull

    def checked(*arguments: Any, **options: Any) -> Any:
        result = pull(*arguments, **options)
        remote = repo.cloud.get_remote().odb
        if missed := [found.value for found in result.failed if remote.exists(found.value)]:
            raise UserError(f"{len(missed)} files of the remote could not be fetched, such as {missed[0]}")
        return result

    repo.cloud.pull = checked


def _push(names: Sequence[str]) -> None:
    from dvc.repo import Repo

    with Repo(_wait_for_lock=True) as repo:
        repo.push(targets=list(names))
        with repo.lock:
            repo.stage_cache.push(None)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flows.share", description=__doc__)
    parser.add_argument("what", choices=["fetch", "push"])
    parser.add_argument("--commit", action="store_true", help="fetch: write dvc.lock, as `dvc repro` does")
    parser.add_argument("stages", nargs="+", metavar="STAGE")
    arguments = parser.parse_args()
    try:
        if arguments.what == "fetch":
            _fetch(arguments.stages, commit=arguments.commit)
        else:
            _push(arguments.stages)
    except Exception as error:  # each kind of storage raises exceptions of its own
        sys.exit(without_secrets(f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"))


if __name__ == "__main__":
    main()
