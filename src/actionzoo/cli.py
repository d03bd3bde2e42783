"""The command `actionzoo`: what is not a stage of the pipeline."""

import argparse
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

from . import __version__
from .errors import UserError
from .jobs.evaluate_checkpoint import MEASURES
from .names import did_you_mean
from .params import as_dict, load_params
from .process.stage import repair_rwlock, stage

FORMS = ("videos_256", "videos_320", "frames_256", "frames_320")


def main() -> None:
    with stage("actionzoo"):
        args = _parser().parse_args()
        args.run(args)


class _Parser(argparse.ArgumentParser):
    """Names the nearest of the words that it knows."""

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is not None and value not in action.choices:
            known = ", ".join(map(str, action.choices))
            raise argparse.ArgumentError(action, f"{value!r} is unknown{did_you_mean(value, action.choices)} ({known})")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="actionzoo", description=__doc__)
    parser.add_argument("--version", action="version", version=f"actionzoo {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    command = _add(
        commands,
        "demo",
        _demo,
        "build a row of each family on a made-up data set, on this machine alone, and show what came out",
        "It runs `dvc repro` for the rows that datasets.demo.tour names; plain `dvc repro` builds them all.",
    )

    _add(commands, "rows", _rows, "list the rows of the zoo")

    command = _add(commands, "params", _params, "check params.yaml; with a row: print what it really uses")
    command.add_argument("row", nargs="?", help="a key of params.yaml's recipes")

    _add(commands, "table", _table, "print the zoo table of the chosen data set, ours beside the published")

    command = _add(
        commands,
        "states",
        _states,
        "count the clips of a prepared form by split and state",
        "example: actionzoo states videos_256",
    )
    command.add_argument("form", choices=FORMS, metavar="form", help=", ".join(FORMS))

    command = _add(
        commands,
        "lists",
        _lists,
        "export the lists that MMAction2's users know, and the label map",
        "example: actionzoo lists videos_256 lists/",
    )
    command.add_argument("form", choices=FORMS, metavar="form", help=", ".join(FORMS))
    command.add_argument("out", type=Path, help="folder for <split>.txt and label_map.txt")

    about = "look at the chosen data set, or take over one that is prepared already"
    group = commands.add_parser("data", help=about, description=about[0].upper() + about[1:] + ".")
    data_commands = group.add_subparsers(title="commands", required=True, metavar="COMMAND")
    command = _add(
        data_commands,
        "report",
        _data_report,
        "write a page with counts, doubles, leaks, lists and pictures of a prepared form, and say the gist of it",
        "example: actionzoo data report videos_256",
    )
    command.add_argument("form", nargs="?", choices=FORMS, help="without it the first of these that is there")
    command.add_argument("--out", type=Path, help="folder; without it report/<dataset>")
    command.add_argument("--pictures", type=_count, default=12, help="clips shown of each class (default 12)")

    command = _add(
        data_commands,
        "check",
        _data_check,
        "verify archives and shards against their recorded hashes; what fails is made again by its stage, alone",
        "example: actionzoo data check --sample 20",
    )
    command.add_argument(
        "--sample", type=_positive, metavar="N", help="so many files, drawn anew each time; without it all"
    )
    command.add_argument("--seed", type=int, help="draw the same sample again")

    command = _add(
        data_commands,
        "adopt",
        _data_adopt,
        "read MMAction2's folders of videos or frames where they lie, by their list",
        "example: actionzoo data adopt videos_256 kinetics400_val_list_videos.txt videos_val --split val",
    )
    command.add_argument("form", choices=FORMS, help="what it is to be in data/<dataset>/")
    command.add_argument("list", type=Path, help="lines `path label`, for frames `folder number-of-frames label`")
    command.add_argument("folder", type=Path, help="what the list's paths are below of")
    command.add_argument("--split", required=True, choices=("train", "val", "test"), help="what the list becomes")
    command.add_argument("--classes", type=Path, help="a class name per line, in the order of the labels")

    _add(commands, "sync", _sync, "fill MLflow from the run folders: after a clone, a checkout, or with a lost store")

    command = _add(
        commands,
        "weights",
        _weights,
        "fetch somebody's weights for a row, check them, say what fits, and make a checkpoint of them",
        "example: actionzoo weights slowfast_r50_video_4x16x1_256e_kinetics400_rgb",
    )
    command.add_argument("row", help="a key of params.yaml's recipes")
    command.add_argument("source", nargs="?", help="file or URL; without it what was published for the row")
    command.add_argument("--out", type=Path, help="the checkpoint to write; without it weights/<row>.pth")
    command.add_argument("--num-classes", type=_positive, help="of the head; without it as many as the file's has")

    command = _add(
        commands,
        "train",
        _train,
        "train a row outside the pipeline, into a folder of your own",
        "example: actionzoo train slowfast_r50_video_4x16x1_256e_kinetics400_rgb --work-dir work --validate --seed 0",
    )
    command.add_argument("row", help="a key of params.yaml's recipes")
    command.add_argument(
        "--work-dir", type=Path, help="folder for logs, checkpoints and curves; default work_dirs/<row>"
    )
    command.add_argument(
        "--validate", action="store_true", help="every val_interval epochs; without it at the end alone"
    )
    command.add_argument("--seed", type=_count, help="instead of the recipe's")
    command.add_argument("--deterministic", action="store_true", help="bit-identical repeats")
    command.add_argument("--resume", type=Path, metavar="STATE", help="a saved state to go on from: state-*.pth")

    command = _add(
        commands,
        "test",
        _test,
        "test any checkpoint of a row on the chosen data set's clips; refuses one of another row",
        "example: actionzoo test slowfast_r50_video_4x16x1_256e_kinetics400_rgb work/best.pth "
        "--eval top_k_accuracy mean_class_accuracy --out result.json --average-clips prob",
    )
    command.add_argument("row", help="a key of params.yaml's recipes")
    command.add_argument(
        "checkpoint", help="whatever predict takes: a row, a run's folder, a file, a URL, models:/NAME/1"
    )
    command.add_argument(
        "--eval", nargs="+", choices=MEASURES, metavar="MEASURE", help=f"{' and '.join(MEASURES)}; without it both"
    )
    command.add_argument(
        "--topk", nargs="+", type=_positive, default=[1, 5], metavar="K", help="of top_k_accuracy; 1 and 5"
    )
    command.add_argument("--average-clips", choices=("prob", "score", "none"), help="over the views; else the recipe's")
    command.add_argument("--split", choices=("train", "val", "test"), default="val", help="whose clips; else val")
    command.add_argument("--precision", choices=("fp32", "tf32", "bf16", "fp16"), help="instead of runtime.precision")
    command.add_argument("--out", type=Path, metavar="FILE", help="result.json: scores of each clip, by its id")
    command.add_argument("--plain", action="store_true", help="--out as MMAction2's tools read it: a list of lists")
    command.add_argument("--views", type=Path, metavar="FILE", help="logits of every view, for `actionzoo scores`")

    command = _add(
        commands,
        "scores",
        _scores,
        "measure kept view logits again: fewer views, several rows together, calibration",
        "example: actionzoo scores runs/demo/*/views.safetensors --calibration",
    )
    command.add_argument("files", nargs="+", type=Path, metavar="FILE", help="views.safetensors; several are fused")
    command.add_argument("--clips", type=_positive, metavar="K", help="clips of each video, evenly spread; else all")
    command.add_argument("--crops", type=_positive, metavar="C", help="places they are cut at, 1 = centre; else all")
    command.add_argument("--average-clips", choices=("prob", "score"), default="prob", help="over the views; else prob")
    command.add_argument("--weights", nargs="+", type=float, metavar="W", help="of the files; else all alike")
    command.add_argument("--by-views", action="store_true", help="accuracy of 1 view, 2 views, … all")
    command.add_argument("--calibration", action="store_true", help="whether probabilities mean what they say")
    command.add_argument("--json", action="store_true", help="print JSON")

    command = _add(
        commands,
        "publish",
        _publish,
        "write a tested run's weights and what they were made of as .pth and .safetensors, named by their hashes",
        "example: actionzoo publish runs/demo/slowfast_r50_video_4x16x1_256e_kinetics400_rgb",
    )
    command.add_argument("folder", type=Path, help="the run's: runs/<dataset>/<row>")
    command.add_argument("--out", type=Path, help="folder for both files; without it the run's")

    command = _add(
        commands,
        "register",
        _register,
        "publish a tested run into MLflow's registry of models; `actionzoo predict models:/NAME/1` takes it from there",
        "example: actionzoo register runs/demo/slowfast_r50_video_4x16x1_256e_kinetics400_rgb --alias champion",
    )
    command.add_argument("folder", type=Path, help="the run's: runs/<dataset>/<row>")
    command.add_argument("--name", help="of the model; without it the row's")
    command.add_argument("--alias", help="a name that one version has at a time")

    command = _add(
        commands,
        "predict",
        _predict,
        "say which classes a trained network sees in videos, or in each window of a long one",
        "example: actionzoo predict slowfast_r50_video_4x16x1_256e_kinetics400_rgb holiday.mp4 --draw drawn.mp4",
    )
    _add_model(command)
    command.add_argument("videos", nargs="+", metavar="VIDEO", help="file, or folder for all videos below it")
    command.add_argument("--top", type=_positive, default=5, help="classes shown (default 5)")
    command.add_argument("--clips", type=_positive, help="clips of a video; without it those of the row's test")
    command.add_argument(
        "--crops", type=int, choices=(1, 3), help="crops of a clip; without it those of the row's test"
    )
    command.add_argument("--window", type=_seconds, metavar="SECONDS", help="predict each so many seconds alone")
    command.add_argument(
        "--stride",
        type=_seconds,
        metavar="SECONDS",
        help="from one window's start to the next; else no gap, no lap",
    )
    command.add_argument("--json", action="store_true", help="print an object per video, a line each (docs/use.md)")
    command.add_argument("--draw", type=Path, metavar="OUT", help="write copies with the classes on: .mp4 or a folder")
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), help="without it runtime.device")

    command = _add(
        commands,
        "export",
        _export,
        "write a trained network as a file that runs without this package, checked against the network",
        "example: actionzoo export slowfast_r50_video_4x16x1_256e_kinetics400_rgb --to onnx slowfast.onnx",
    )
    _add_model(command)
    command.add_argument("out", type=Path, help="the file to write")
    command.add_argument("--to", required=True, choices=("torchscript", "torch.export", "onnx"), help="the format")
    command.add_argument("--batch", type=_positive, help="clips of a call; without it any number")

    command = _add(commands, "ui", _ui, "open the MLflow UI on what was logged, on this machine alone")
    command.add_argument("--port", type=_port, default=5000, help="TCP port on 127.0.0.1 (default 5000)")

    return parser


def _add(commands, name: str, run, text: str, epilog: str | None = None) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", epilog=epilog)
    command.set_defaults(run=run)
    return command


def _add_model(command: argparse.ArgumentParser) -> None:
    """What names a trained network."""
    command.add_argument("model", help="a row, a checkpoint, a run's folder, or models:/NAME/VERSION of MLflow")
    command.add_argument("--row", help="whose checkpoint it is, if it does not say so itself")
    command.add_argument("--classes", type=Path, metavar="FILE", help="class names, a line each, if it has none")


def _positive(text: str) -> int:
    return _whole(text, 1, 2**31 - 1)


def _count(text: str) -> int:
    return _whole(text, 0, 2**31 - 1)


def _port(text: str) -> int:
    return _whole(text, 1, 65535)


def _whole(text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and least <= int(text) <= most):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no whole number from {least} to {most}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no number of seconds above 0")
    return seconds


def _demo(args) -> None:
    from .tracking.store import ui_command

    params = load_params()
    if params.name != "demo":
        raise UserError(
            f"{params.path}: data.name is {params.name}, not demo; `dvc repro` builds the zoo on {params.name}"
        )
    _outside_git()
    rows = params.dataset.tour or params.models()
    _repro(*(f"{stage}@{row}" for row in rows for stage in ("evaluate", "benchmark")))
    _repro("-s", "report")  # of what there is: by itself it would have all rows built
    print()
    _table(args)
    print(f"\nreport   {Path('report') / params.name / 'zoo.html'}\nMLflow   {ui_command()}")


def _repro(*arguments: str) -> None:
    # the `python` that DVC starts has to be this one
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-m", "dvc", "repro", *arguments]
    repair_rwlock(Path.cwd())
    if status := subprocess.run(command, env=environment, check=False).returncode:
        raise UserError(f"dvc repro left with status {status}; what is finished stays, run the same command again")


def _outside_git() -> None:
    """A copy of the project without its history needs to tell DVC so."""
    folder = Path.cwd()
    if not any((parent / ".git").exists() for parent in (folder, *folder.parents)):
        subprocess.run([sys.executable, "-m", "dvc", "config", "--local", "core.no_scm", "true"], check=True)


def _rows(args) -> None:
    print("\n".join(load_params().models()))


def _params(args) -> None:
    params = load_params()
    if args.row:
        print(json.dumps(as_dict(params.recipe(args.row)), indent=2))
        for override in params.overrides(args.row):
            print(f"# datasets.{params.name} overrides {override}")
    else:
        print(
            f"{params.path}: {len(params.recipes)} rows, {len(params.datasets)} data sets, data.name is {params.name}"
        )


def _table(args) -> None:
    from rich.console import Console

    from .report.results import model_entries, read_report
    from .report.tables import terminal_table

    params = load_params()
    report = read_report(dataset=params.name, entries=model_entries(params), root=Path(), out=params.folder("report"))
    Console().print(terminal_table(report))


def _states(args) -> None:
    from .kinetics.manifest import count_states, read_manifest

    counts = count_states(read_manifest(_manifest(args.form)))
    names = list(next(iter(counts.values()), {}))
    print(f"{'split':8}" + "".join(f"{name:>10}" for name in names) + f"{'listed':>10}")
    for split, states in counts.items():
        listed = sum(count for name, count in states.items() if name != "unlisted")
        print(f"{split:8}" + "".join(f"{states[name]:>10,}" for name in names) + f"{listed:>10,}")


def _lists(args) -> None:
    from .kinetics.manifest import export_lists, read_manifest

    for path in export_lists(read_manifest(_manifest(args.form)), args.out):
        print(path)


def _data_report(args) -> None:
    from .kinetics.overview import summary
    from .process.progress import progress
    from .report.data_page import write_data_report

    params = load_params()
    data, out = params.folder("data"), args.out or params.folder("report")
    form = args.form or next((form for form in FORMS if (data / form / "manifest.csv").is_file()), None)
    if form is None:
        raise UserError(f"{data} has none of {', '.join(FORMS)} yet; run `dvc repro resize@256`, or another of them")
    with progress("clips") as tell:
        overview = write_data_report(
            data, form, out, pictures=max(0, args.pictures), jobs=params.runtime.num_jobs, on_progress=tell
        )
    print(f"{summary(overview)}\n{out / 'data.html'}")


def _data_check(args) -> None:
    from .kinetics.check import check_data
    from .process.progress import progress

    with progress("bytes") as tell:
        checked = check_data(load_params().folder("data"), sample=args.sample, seed=args.seed, progress=tell)
    print(checked.text())
    if checked.damages:
        sys.exit(1)


def _data_adopt(args) -> None:
    from functools import partial

    from .clips.looking import contents_of
    from .kinetics.import_mmaction import adopt
    from .process.progress import progress

    params = load_params()
    look = partial(contents_of, workers=params.runtime.num_workers, timeout_seconds=params.runtime.clip_timeout_seconds)
    with progress("clips") as tell:
        said = adopt(
            params.folder("data") / args.form,
            args.split,
            args.list,
            args.folder,
            look=look,
            classes=args.classes,
            max_bad_share=params.dataset.max_bad_share,
            progress=tell,
        )
    print(said)


def _manifest(form: str) -> Path:
    return load_params().folder("data") / form / "manifest.csv"


def _sync(args) -> None:
    from .tracking.record import sync

    for done in sync(Path()):
        why = f" ({done.reason})" if done.reason else ""
        print(f"{done.dataset}/{done.row}: {done.action}, {done.points} values{why}")


def _weights(args) -> None:
    from .process.progress import progress
    from .weights.load import import_weights

    with progress("bytes") as tell:
        out, report = import_weights(args.row, args.source, out=args.out, num_classes=args.num_classes, tell=tell)
    print(f"{report.text()}\nweights: {args.row} in {out}")


def _train(args) -> None:
    import dataclasses

    from .jobs.torchrun import launch_torchrun
    from .jobs.train import train_row

    params = load_params()
    params.check_model(args.row)
    if args.deterministic:
        params = dataclasses.replace(params, runtime=dataclasses.replace(params.runtime, deterministic=True))
    if not args.validate:
        params = params.changed(args.row, schedule={"val_interval": params.recipe(args.row).schedule.epochs})
    params = params.changed(args.row, seed=args.seed)
    launch_torchrun(params.runtime)
    work_dir = args.work_dir or Path("work_dirs") / args.row
    if said := train_row(params, args.row, work_dir=work_dir, resume=args.resume):
        print(said)


def _test(args) -> None:
    import dataclasses

    from .jobs.evaluate_checkpoint import evaluate_checkpoint
    from .jobs.torchrun import launch_torchrun

    params = load_params()
    params.check_model(args.row)
    if args.plain and not args.out:
        raise UserError("--plain says how --out is written; name that file: --out result.json --plain")
    if args.precision:
        params = dataclasses.replace(params, runtime=dataclasses.replace(params.runtime, precision=args.precision))
    launch_torchrun(params.runtime)
    said = evaluate_checkpoint(
        params,
        args.row,
        args.checkpoint,
        measures=args.eval,
        topk=args.topk,
        average_clips=args.average_clips,
        split=args.split,
        out=args.out,
        is_plain=args.plain,
        views=args.views,
    )
    if said:
        print(said)


def _scores(args) -> None:
    from .jobs.view_scores import as_json, as_text, measure

    made = measure(
        args.files,
        clips=args.clips,
        crops=args.crops,
        average_clips=args.average_clips,
        weights=args.weights,
        is_by_views=args.by_views,
        is_calibrated=args.calibration,
    )
    print(as_json(made) if args.json else as_text(made))


def _publish(args) -> None:
    from .weights.publish import publish_run

    for path in publish_run(args.folder, args.out):
        print(path)


def _register(args) -> None:
    from .weights.publish import register_run

    print(register_run(args.folder, args.name, args.alias))


def _predict(args) -> None:
    from .predict.video_paths import check_request

    check_request(
        args.videos, window_seconds=args.window, stride_seconds=args.stride, draw=args.draw, as_json=args.json
    )

    from .predict.command import predict_all
    from .predict.predictor import open_predictor

    predictor = open_predictor(
        args.model, row=args.row, classes=args.classes, num_clips=args.clips, num_crops=args.crops, device=args.device
    )
    print(predictor.trained.text(), file=sys.stderr)
    predict_all(
        predictor,
        args.videos,
        top=args.top,
        window_seconds=args.window,
        stride_seconds=args.stride,
        as_json=args.json,
        draw=args.draw,
    )


def _export(args) -> None:
    from .predict.export_formats import check_target
    from .weights.checkpoints import open_trained
    from .zoo import project_params

    check_target(args.to, args.out)
    trained = open_trained(args.model, params=project_params(), row=args.row, classes=args.classes)

    from .predict.export import export_model

    print(export_model(trained, args.to, args.out, batch=args.batch))


def _ui(args) -> None:
    import socket

    from .tracking.store import ui_command

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", args.port))
        except OSError:
            raise UserError(
                f"port {args.port} on 127.0.0.1 is in use; `actionzoo ui --port {args.port + 1}` takes another"
            ) from None
    _lead_to_runs(f"http://127.0.0.1:{args.port}")
    command = ui_command(port=args.port)
    print(f"{command}\nopen http://127.0.0.1:{args.port}, Ctrl-C ends it", flush=True)
    # by the shell's own means: `env` would show the settings, a password among them, to all who list processes
    os.execv("/bin/sh", ["/bin/sh", "-c", re.sub(r"^((?:\w+=\S+ )*)", r"\1exec ", command)])


def _lead_to_runs(server: str) -> None:
    """Let the report's links lead to the pages that are opened there."""
    from .report.run_links import write_run_links

    params = load_params()
    if (params.folder("report") / "zoo.html").is_file():
        write_run_links(params, server=server)


if __name__ == "__main__":
    main()
