"""Trained networks: use them, export them, import and publish their weights."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, get_args

import typer

from ..predict.export_formats import FORMATS, Format
from .arguments import Device, one_of, seconds, whole
from .models import ModelName, complete_models, resolve, resolve_checkpoint
from .usage import Command

app = typer.Typer()
command = partial(app.command, cls=Command, rich_help_panel="Model")

Network = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        parser=str,
        autocompletion=complete_models,
        help="a model's name or a part of it, a checkpoint, a run's folder, or models:/NAME/VERSION",
    ),
]
OfModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        parser=str,
        autocompletion=complete_models,
        help="the model that the checkpoint is of, if it does not say so itself",
    ),
]
Classes = Annotated[
    Path | None, typer.Option(metavar="FILE", parser=Path, help="class names, one per line, if the checkpoint has none")
]


@command(
    epilog="""\
example: actionzoo predict slowfast_r50_video holiday.mp4 --draw drawn.mp4
example: actionzoo predict models:/slowfast/1 films/ --window 2 --json"""
)
def predict(
    network: Network,
    videos: Annotated[
        list[str], typer.Argument(metavar="VIDEO", parser=str, help="a file, or a folder for all videos below it")
    ],
    model: OfModel = None,
    classes: Classes = None,
    top: Annotated[int, typer.Option(metavar="N", parser=whole(1), help="classes shown")] = 5,
    clips: Annotated[
        int | None, typer.Option(metavar="N", parser=whole(1), help="clips of a video (default: the recipe's)")
    ] = None,
    crops: Annotated[
        str | None,
        typer.Option(metavar="N", parser=one_of(("1", "3")), help="1 or 3 crops of a clip (default: the recipe's)"),
    ] = None,
    window: Annotated[
        float | None, typer.Option(metavar="SECONDS", parser=seconds, help="predict each window of this length alone")
    ] = None,
    stride: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", parser=seconds, help="from one window's start to the next (default: --window)"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="print one JSON object per video and line")] = False,
    draw: Annotated[
        Path | None,
        typer.Option(metavar="OUT", parser=Path, help="write copies with the classes drawn: .mp4 or a folder"),
    ] = None,
    device: Annotated[
        Device | None,
        typer.Option(
            metavar="DEVICE", parser=one_of(get_args(Device)), help="auto, cpu or cuda (default: runtime.device)"
        ),
    ] = None,
) -> None:
    """Predict the classes of videos, or of their windows."""
    from ..predict.video_paths import PredictRequest, check_request

    request = PredictRequest(videos, top=top, window_seconds=window, stride_seconds=stride, draw=draw, as_json=json)
    check_request(request)

    from ..params import load_params

    params = load_params()
    checkpoint = resolve_checkpoint(params, network)
    of_model = None if model is None else resolve(params, model)

    from ..predict.command import predict_all
    from ..predict.predictor import open_predictor

    predictor = open_predictor(
        checkpoint,
        model=of_model,
        classes=classes,
        num_clips=clips,
        num_crops=None if crops is None else int(crops),
        device=device,
        root=params.root,
    )
    print(predictor.trained.text(), file=sys.stderr)
    predict_all(predictor, request)


@command(epilog="example: actionzoo export slowfast_r50_video --to onnx slowfast.onnx")
def export(
    network: Network,
    out: Annotated[Path, typer.Argument(metavar="FILE", parser=Path, help="the file to write")],
    to: Annotated[
        Format, typer.Option(metavar="FORMAT", parser=one_of(FORMATS), help=f"{', '.join(FORMATS)} (required)")
    ],
    model: OfModel = None,
    classes: Classes = None,
    batch: Annotated[
        int | None, typer.Option(metavar="N", parser=whole(1), help="clips per call (default: any number)")
    ] = None,
) -> None:
    """Export a network to run without this package.

    The file's outputs are compared with the network's before it is kept.
    """
    from ..params import load_params
    from ..predict.export_formats import check_target
    from ..weights.checkpoints import open_trained

    check_target(to, out)
    params = load_params()
    of_model = None if model is None else resolve(params, model)
    source = resolve_checkpoint(params, network)
    trained = open_trained(source, params=params, model=of_model, classes=classes, root=params.root)

    from ..predict.export import export_model

    print(export_model(trained, to, out, batch=batch))


@command(
    epilog="""\
example: actionzoo weights slowfast_r50_video
example: actionzoo weights slowfast_r50_video mine.pth --out weights/mine.pth"""
)
def weights(
    model: ModelName,
    source: Annotated[
        str | None,
        typer.Argument(metavar="SOURCE", parser=str, help="file or URL (default: the model's published weights)"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", parser=Path, help="checkpoint to write (default weights/<model>.pth)"),
    ] = None,
    num_classes: Annotated[
        int | None,
        typer.Option(metavar="N", parser=whole(1), help="outputs of the classifier (default: the file's)"),
    ] = None,
) -> None:
    """Download and check weights; write a checkpoint.

    Prints which tensors match, which are renamed, left over or missing.
    """
    from ..params import load_params
    from ..process.progress import progress
    from ..weights.load import import_weights

    name = resolve(load_params(), model)
    with progress("bytes") as on_progress:
        path, report = import_weights(name, source, out=out, num_classes=num_classes, on_progress=on_progress)
    print(f"{report.text()}\nweights: {name} in {path}")


RunFolder = Annotated[
    Path, typer.Argument(metavar="FOLDER", parser=Path, help="an evaluated run's folder: runs/<dataset>/<model>")
]


@command(epilog="example: actionzoo publish runs/demo/slowfast_r50_4x16x1_256e_kinetics400_rgb")
def publish(
    folder: RunFolder,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", parser=Path, help="folder for both files (default: the run's)")
    ] = None,
) -> None:
    """Write a run's weights as .pth and .safetensors.

    The names end in a part of each file's hash. Both files hold the recipe, the result and the versions used.
    """
    from ..weights.publish import publish_run

    for path in publish_run(folder, out):
        print(path)


@command(
    epilog="""\
example: actionzoo register --alias champion \\
             runs/demo/slowfast_r50_video_4x16x1_256e_kinetics400_rgb"""
)
def register(
    folder: RunFolder,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", parser=str, help="registered name (default: the model's)")
    ] = None,
    alias: Annotated[
        str | None, typer.Option(metavar="ALIAS", parser=str, help="a name that one version has at a time")
    ] = None,
) -> None:
    """Publish a run to MLflow's model registry.

    `actionzoo predict models:/NAME/1` uses it from there.
    """
    from ..weights.publish import register_run

    print(register_run(folder, name, alias))
