"""Runs: the demo, and training and evaluation outside the pipeline."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from .arguments import MEASURES, Precision, Split, number, one_of, whole
from .models import ModelName, resolve, resolve_checkpoint
from .usage import Command

app = typer.Typer()
command = partial(app.command, cls=Command, rich_help_panel="Run")

Average = Literal["prob", "score", "none"]
AVERAGES: tuple[Literal["prob", "score"], ...] = ("prob", "score")


@command(epilog="example: actionzoo demo")
def demo() -> None:
    """Build one model of each family on synthetic videos.

    Runs `dvc repro` for the demo recipes of params.yaml, on this machine alone, and prints their table. Plain
    `dvc repro` builds all models.
    """
    from ..errors import UserError
    from ..params import load_params
    from ..tracking.store import runs_address, ui_command
    from .look import table

    params = load_params()
    if params.name != "demo":
        raise UserError(
            f"{params.path}: data.name is {params.name}, not demo; `dvc repro` builds the zoo on {params.name}"
        )
    _allow_dvc_outside_git(params.root)
    names = params.dataset.demo_recipes or params.models()
    _dvc_repro(params.root, *(f"{stage}@{name}" for name in names for stage in ("evaluate", "benchmark")))
    _dvc_repro(params.root, "-s", "report")  # alone: with its dependencies it would build all models
    print()
    table()
    print(f"\nreport   {params.folder('report') / 'zoo.html'}\nMLflow   {ui_command()}")
    print(f"         {runs_address(params.name, params.root)}")


def _dvc_repro(project: Path, *arguments: str) -> None:
    from ..errors import UserError
    from ..process.stage import repair_rwlock

    # DVC starts `python`, which has to be this one
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    repair_rwlock(project)
    line = [sys.executable, "-m", "dvc", "repro", *arguments]
    if status := subprocess.run(line, cwd=project, env=environment, check=False).returncode:
        raise UserError(f"dvc repro ended with status {status}; what is finished stays, run the same command again")


def _allow_dvc_outside_git(project: Path) -> None:
    """Tell DVC to do without git, if this is a copy of the project without its history."""
    folder = project.absolute()
    if not any((parent / ".git").exists() for parent in (folder, *folder.parents)):
        line = [sys.executable, "-m", "dvc", "config", "--local", "core.no_scm", "true"]
        subprocess.run(line, cwd=project, check=True)


@command(epilog="example: actionzoo train slowfast_r50_video --work-dir work --validate")
def train(
    model: ModelName,
    work_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", parser=Path, help="folder for logs, checkpoints and curves (default work_dirs/<model>)"
        ),
    ] = None,
    validate: Annotated[
        bool, typer.Option("--validate", help="every schedule.val_interval epochs, not only at the end")
    ] = False,
    seed: Annotated[int | None, typer.Option(metavar="N", parser=whole(0), help="instead of the recipe's seed")] = None,
    deterministic: Annotated[bool, typer.Option("--deterministic", help="make repeated runs bit-identical")] = False,
    resume: Annotated[
        Path | None, typer.Option(metavar="STATE", parser=Path, help="saved state to continue from: state-*.pth")
    ] = None,
) -> None:
    """Train a model outside the pipeline."""
    import dataclasses

    from ..job import Job
    from ..jobs.torchrun import launch_torchrun
    from ..jobs.train import train as train_job
    from ..params import load_params

    params = load_params()
    name = resolve(params, model)
    if deterministic:
        params = dataclasses.replace(params, runtime=dataclasses.replace(params.runtime, deterministic=True))
    if not validate:
        params = params.changed(name, schedule={"val_interval": params.recipe(name).schedule.epochs})
    params = params.changed(name, seed=seed)
    launch_torchrun(params.runtime)
    job = Job.of(params, name, params.root, work_dir or Path("work_dirs") / name)
    if summary := train_job(job, resume=resume):
        print(summary)


@command(
    epilog="""\
example: actionzoo evaluate slowfast_r50_video work/best.pth --out result.json
example: actionzoo evaluate slowfast_r50_video work/best.pth --topk 1 5 \\
             --eval top_k_accuracy mean_class_accuracy --average-clips prob"""
)
def evaluate(
    model: ModelName,
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT", parser=str, help="a model, a run's folder, a file, a URL, or models:/NAME/VERSION"
        ),
    ],
    measures: Annotated[
        list[str] | None,
        typer.Option(
            "--eval", metavar="MEASURE...", parser=one_of(MEASURES), help=f"{' and '.join(MEASURES)} (default: both)"
        ),
    ] = None,
    topk: Annotated[
        list[int] | None, typer.Option(metavar="K...", parser=whole(1), help="of top_k_accuracy (default 1 5)")
    ] = None,
    average_clips: Annotated[
        Average | None,
        typer.Option(
            metavar="HOW",
            parser=one_of(get_args(Average)),
            help="prob, score or none: how views are averaged (default: the recipe's)",
        ),
    ] = None,
    split: Annotated[
        Split, typer.Option(metavar="SPLIT", parser=one_of(get_args(Split)), help="train, val or test")
    ] = "val",
    precision: Annotated[
        Precision | None,
        typer.Option(
            metavar="P",
            parser=one_of(get_args(Precision)),
            help=f"{', '.join(get_args(Precision))} (default: runtime.precision)",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", parser=Path, help="write the scores of each clip: result.json")
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="write --out as MMAction2's tools read it, a list of lists")
    ] = False,
    views: Annotated[
        Path | None, typer.Option(metavar="FILE", parser=Path, help="write every view's logits, for `actionzoo scores`")
    ] = None,
) -> None:
    """Measure a checkpoint on the chosen data set.

    A checkpoint of another model is refused.
    """
    import dataclasses

    from ..errors import UserError
    from ..jobs.evaluate_checkpoint import Wanted, evaluate_checkpoint
    from ..jobs.torchrun import launch_torchrun
    from ..params import load_params

    params = load_params()
    name = resolve(params, model)
    if plain and not out:
        raise UserError("--plain says how --out is written; name that file: --out result.json --plain")
    if precision:
        params = dataclasses.replace(params, runtime=dataclasses.replace(params.runtime, precision=precision))
    launch_torchrun(params.runtime)
    wanted = Wanted(
        measures=measures,
        topk=topk or (1, 5),
        average_clips=average_clips,
        split=split,
        out=out,
        is_plain=plain,
        views=views,
    )
    summary = evaluate_checkpoint(params, name, resolve_checkpoint(params, checkpoint), wanted, params.root)
    if summary:
        print(summary)


@command(
    epilog="""\
example: actionzoo scores runs/demo/*/views.safetensors --calibration
example: actionzoo scores a/views.safetensors b/views.safetensors --weights 1 2"""
)
def scores(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE", parser=Path, help="views.safetensors; several are fused")
    ],
    clips: Annotated[
        int | None,
        typer.Option(metavar="N", parser=whole(1), help="clips of each video, evenly spread (default: all)"),
    ] = None,
    crops: Annotated[
        int | None, typer.Option(metavar="N", parser=whole(1), help="crops of each clip, 1 = centre (default: all)")
    ] = None,
    average_clips: Annotated[
        Literal["prob", "score"],
        typer.Option(metavar="HOW", parser=one_of(AVERAGES), help="prob or score: how views are averaged"),
    ] = "prob",
    weights: Annotated[
        list[float] | None,
        typer.Option(metavar="W...", parser=number, help="weights of the files (default: equal)"),
    ] = None,
    by_views: Annotated[
        bool, typer.Option("--by-views", help="print the accuracy of 1 view, 2 views, ... all")
    ] = False,
    calibration: Annotated[
        bool, typer.Option("--calibration", help="compare the probabilities with the accuracy they promise")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Measure saved view logits again, without the videos.

    With fewer views, with several models fused, or for calibration.
    """
    from ..jobs.view_scores import ScoresRequest, as_json, as_text, measure

    request = ScoresRequest(
        clips=clips,
        crops=crops,
        average_clips=average_clips,
        weights=weights,
        is_by_views=by_views,
        is_calibrated=calibration,
    )
    measured = measure(files, request)
    print(as_json(measured) if json else as_text(measured))
