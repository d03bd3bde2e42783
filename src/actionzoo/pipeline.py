"""What a row goes through: trained, tested, timed. The stages of the same names call these, and nothing else does.

Each knows its own finished work by a fingerprint of what shaped it, because DVC has one lock entry per stage: after
switching data sets there and back it asks again for what lies ready.
"""

import csv
import datetime
import hashlib
import io
import math
import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from . import tracking
from .errors import UserError
from .json_files import read_json, write_json
from .kinetics.atomic import atomic_write
from .kinetics.manifest import label_map, read_manifest
from .params import Params, Recipe, as_dict, digest
from .zoo import build_model


@dataclass(frozen=True)
class RowFiles:
    """Where a row's files lie."""

    root: Path
    dataset: str
    row: str

    @property
    def run(self) -> Path:
        return self.root / "runs" / self.dataset / self.row

    @property
    def best(self) -> Path:
        return self.run / "best.pth"

    @property
    def latest(self) -> Path:
        return self.run / "latest.pth"

    @property
    def recipe(self) -> Path:
        """What the run was made of; written last, so that it vouches for the rest."""
        return self.run / "recipe.json"

    @property
    def result(self) -> Path:
        return self.run / "result.json"

    def metrics(self, kind: str = "json") -> Path:
        """kind: json (evaluation), benchmark.json, train.csv, val.csv."""
        return self.root / "metrics" / self.dataset / f"{self.row}.{kind}"

    def scratch(self, fingerprint: str) -> Path:
        """Of an unfinished training; a changed recipe has another one."""
        return self.root / ".scratch" / "train" / self.dataset / self.row / fingerprint[:16]


def data_folder(params: Params, recipe: Recipe, root: Path) -> Path:
    """The prepared form that the row reads, e.g. data/demo/videos_256."""
    return root / "data" / params.name / f"{recipe.clips.form}_{recipe.clips.short_side}"


def train_row(params: Params, row: str, root: Path = Path()) -> str:
    """Train `row` on the chosen data set; gives the last line to print.

    Raises UserError, engine's NonFiniteLoss and CheckpointError.
    """
    recipe, files = params.recipe(row), RowFiles(root, params.name, row)
    folder = data_folder(params, recipe, root)
    clips = read_manifest(folder / "manifest.csv")
    classes = label_map(clips)
    manifest_sha256 = _sha256(folder / "manifest.csv")
    fingerprint = training_fingerprint(params, row, manifest_sha256)
    if (made := _finished_training(files, fingerprint)) is not None:
        return f"train: {row} is trained already, by this very recipe on these very clips; {_training_summary(made)}"

    import torch

    from .clips.inputs import to_input
    from .clips.loader import train_loader, view_loader
    from .engine.logs import RunLog
    from .engine.schedule import learning_rate
    from .engine.train import State, train

    device = _device(params)
    torch.manual_seed(recipe.seed)
    if params.runtime.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    model = build_model(recipe.model, len(classes))
    batch, reference, lr = _batch_and_lr(params, row)
    loading = {
        "batch_size": recipe.optim.videos_per_gpu,
        "workers": params.runtime.num_workers,
        "timeout_seconds": params.runtime.clip_timeout_seconds,
        "device": device,
        "quarantine": files.scratch(fingerprint) / "quarantine.json",
    }
    training = train_loader(folder, recipe.clips, recipe.augment, seed=recipe.seed, **loading)
    validation = view_loader(folder, recipe.clips, recipe.augment, split="val", **loading)
    steps_per_epoch = math.ceil(len(training) / recipe.optim.accumulate)
    schedule = {
        key: value
        for key, value in vars(recipe.schedule).items()
        if key not in ("val_interval", "checkpoint_interval", "log_interval") and not key.startswith("_")
    }

    scratch = files.scratch(fingerprint)
    scratch.mkdir(parents=True, exist_ok=True)
    init = None if (scratch / "state.pth").exists() else _load_init(model, params, row, root)
    memory = _RunMemory(scratch / "run.json")
    log = RunLog(files.run, memory.stamp)

    def say(text: str) -> None:
        print(text, flush=True)
        log.say(text)

    made: dict[str, Any] = {
        "row": row,
        "dataset": params.name,
        "fingerprint": fingerprint,
        "manifest_sha256": manifest_sha256,
        "recipe": {key: value for key, value in as_dict(recipe).items() if key != "published"},
        "overrides": params.overrides(row),
        "batch": batch,
        "reference_batch": reference,
        "lr": lr,
        "classes": classes,
        "train_clips": len(training.clips),
        "val_clips": len(validation.clips),
    }

    def start(state: State) -> None:
        meta = {
            "env_info": _environment(torch),
            "seed": recipe.seed,
            "config_name": row,
            "work_dir": str(files.run),
            "exp_name": row,
            "hook_msgs": {},
            "iters_per_epoch": steps_per_epoch,
            "dataset": params.name,
        }
        log.begin(meta, finished_epochs=state.finished_epochs)
        if state.finished_epochs:
            say(f"going on after epoch {state.finished_epochs} of an interrupted training")
        elif init:
            say(init.text())
        for line in _start_table(model, made, device):
            say(line)
        say(f"clips      {training.text()}")

    with tracking.run(
        experiment=params.name,
        name=row,
        phase="train",
        params=tracking.run_params(made),
        tags={"recipe": row, "dataset": params.name, "manifest.sha256": manifest_sha256},
        run_id=memory.run_id,
    ) as record:
        memory.remember(record.id)

        def event(line: dict[str, Any], step: int) -> None:
            log.event(line)
            record.log(step, tracking.to_metrics(line))

        state = train(
            model,
            training,
            validation,
            partial(to_input, mean=recipe.augment.mean, std=recipe.augment.std, device=device),
            device=device,
            lr_at=lambda step: learning_rate(step, steps_per_epoch, **(schedule | {"lr": lr})),
            momentum=recipe.optim.momentum,
            weight_decay=recipe.optim.weight_decay,
            max_grad_norm=recipe.optim.max_grad_norm,
            accumulate=recipe.optim.accumulate,
            epochs=recipe.schedule.epochs,
            val_interval=recipe.schedule.val_interval,
            checkpoint_interval=recipe.schedule.checkpoint_interval,
            log_interval=recipe.schedule.log_interval,
            scratch=scratch,
            on_start=start,
            on_event=event,
            on_text=say,
            data_advice=training.advice(),
        )

        made |= {"best_epoch": state.best_epoch, "best_val_top1": state.best_top1, "undecodable": state.undecodable}
        _publish_training(files, scratch, made, state)
        record.tag("checkpoint.md5", made["files"]["best.pth"]["md5"])
        for path in (files.best, files.latest, files.recipe, log.text_path, log.json_path):
            record.artifact(path)
    shutil.rmtree(scratch)
    return f"train: {_training_summary(made)}; weights in {files.best}"


def evaluate_row(params: Params, row: str, root: Path = Path()) -> str:
    """Test the best checkpoint of `row` on all views of the val split; gives the last line to print.

    Raises UserError, engine's CheckpointError.
    """
    recipe, files = params.recipe(row), RowFiles(root, params.name, row)
    folder = data_folder(params, recipe, root)
    clips = read_manifest(folder / "manifest.csv")
    classes = label_map(clips)
    if not files.best.is_file():
        raise UserError(f"{files.best} is not there; `dvc repro train@{row}` makes it")

    from .engine.checkpoint import load_checkpoint

    checkpoint_md5 = tracking.checkpoint_md5(files.best)
    fingerprint = digest(
        recipe.model, recipe.clips, recipe.augment, recipe.test, _sha256(folder / "manifest.csv"), checkpoint_md5
    )
    made = read_json(files.result)
    if made.get("fingerprint") == fingerprint and read_json(files.metrics()).get("top1") == made["metrics"]["top1"]:
        return f"evaluate: {row} is tested already, this very checkpoint on these very clips; {_test_summary(made)}"

    checkpoint = load_checkpoint(files.best)
    model = build_model(recipe.model, len(classes))
    model.load_state_dict(checkpoint["state_dict"])
    tested = run_test(params, row, model, root)
    metrics = tested["metrics"] | {"epoch": checkpoint["meta"]["epoch"]}
    made = {
        "row": row,
        "dataset": params.name,
        "fingerprint": fingerprint,
        "checkpoint_md5": checkpoint_md5,
        **tested,
        "metrics": metrics,
        "classes": classes,
    }
    write_json(files.metrics(), metrics)
    write_json(files.result, made, indent=None)

    published = params.recipes[row].published.top1[0] / 100
    run_id = tracking.find_run(params.name, row, checkpoint_md5)
    with tracking.run(
        experiment=params.name,
        name=row,
        phase="evaluate",
        run_id=run_id,
        params=tracking.run_params(made),
        tags={
            "recipe": row,
            "dataset": params.name,
            "checkpoint.md5": checkpoint_md5,
            "test.protocol": recipe.test.protocol,
        },
    ) as record:
        line = metrics | {"mode": "test", "top1_published": published, "top1_gap": metrics["top1"] - published}
        record.log(tracking.TEST_STEP, tracking.to_metrics(line))
        record.artifact(files.result)
    return f"evaluate: {_test_summary(made)}; scores in {files.result}"


def run_test(
    params: Params, row: str, model, root: Path = Path(), label_places: Sequence[int] | None = None
) -> dict[str, Any]:
    """All views of the row's val clips through `model`, as the row's test says.

    `label_places` says which of the network's classes each label of the data set is, if it is not the same number.
    Gives protocol, average_clips, metrics (top1, top5, mean_class; how many clips were evaluated, missing, undecodable,
    listed), undecodable (a sentence each) and clips (video_id, label, scores). Raises UserError.
    """
    import torch

    from .clips.inputs import to_input
    from .clips.loader import view_loader
    from .engine.evaluate import evaluate

    recipe, device = params.recipe(row), _device(params)
    folder = data_folder(params, recipe, root)
    listed = sum(clip.split == "val" and clip.is_listed for clip in read_manifest(folder / "manifest.csv"))
    loader = view_loader(
        folder,
        recipe.clips,
        recipe.augment,
        split="val",
        num_clips=recipe.test.num_clips,
        num_crops=recipe.test.num_crops,
        crop_size=recipe.test.crop_size,
        batch_size=1,
        workers=params.runtime.num_workers,
        timeout_seconds=params.runtime.clip_timeout_seconds,
        device=device,
    )
    print(
        f"{row}: {len(loader.clips)} clips, {recipe.test.protocol} views of {recipe.test.crop_size} pixels, {device}; "
        f"{loader.text()}",
        flush=True,
    )
    scores = evaluate(
        model.to(device),
        loader,
        partial(to_input, mean=recipe.augment.mean, std=recipe.augment.std, device=device),
        average_clips=recipe.test.average_clips,
        on_batch=_progress("evaluate", len(loader.clips)),
    )
    if label_places is not None:
        scores.labels = torch.tensor(label_places)[scores.labels]
    metrics = scores.accuracies() | {
        "clips": len(scores.video_ids),
        "missing": listed - len(loader.clips),
        "undecodable": len(scores.undecodable),
        "listed": listed,
        "protocol": recipe.test.protocol,
    }
    return {
        "protocol": recipe.test.protocol,
        "average_clips": recipe.test.average_clips,
        "metrics": metrics,
        "undecodable": scores.undecodable,
        "clips": [
            {"video_id": video_id, "label": label, "scores": row_scores}
            for video_id, label, row_scores in zip(
                scores.video_ids, scores.labels.tolist(), scores.scores.tolist(), strict=True
            )
        ],
    }


def benchmark_row(params: Params, row: str, root: Path = Path()) -> str:
    """Time the network of `row` on random input of its test's shape; gives the last line to print."""
    recipe, files = params.recipe(row), RowFiles(root, params.name, row)
    fingerprint = digest(recipe.model, recipe.clips, recipe.test)
    made = read_json(files.metrics("benchmark.json"))
    if made.get("fingerprint") != fingerprint:
        import torch

        from .engine.benchmark import inference_speed
        from .engine.flops import count_macs, count_parameters

        device = _device(params)
        model = build_model(recipe.model, 400)
        shape = (3, recipe.clips.clip_len, recipe.test.crop_size, recipe.test.crop_size)
        num_views = recipe.test.num_clips * recipe.test.num_crops
        made = inference_speed(model, shape, num_views=num_views, device=device) | {
            "parameters": count_parameters(model),
            "macs_per_view": count_macs(model, (1, *shape)),
            "views": num_views,
            "frames": _frames_text(recipe),
            "crop_size": recipe.test.crop_size,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})",
            "threads": torch.get_num_threads(),
            "fingerprint": fingerprint,
        }
        write_json(files.metrics("benchmark.json"), made)
    return (
        f"benchmark: {row}: {made['videos_per_second']:.2f} videos/s of {made['frames']} at {made['crop_size']} "
        f"pixels on {made['device']}, {made['parameters'] / 1e6:.2f} M parameters, "
        f"{made['macs_per_view'] / 1e9:.2f} G multiply-adds a view ({files.metrics('benchmark.json')})"
    )


def training_fingerprint(params: Params, row: str, manifest_sha256: str) -> str:
    """Equal for trainings that would end the same.

    The learning rate stands in it beside the recipe as used: the reference batch it is scaled from is that of the
    recipe as written, which a data set's overrides can hide.
    """
    recipe = params.recipe(row)
    sections = (recipe.seed, recipe.model, recipe.init, recipe.clips, recipe.augment, recipe.optim, recipe.schedule)
    return digest(*sections, _batch_and_lr(params, row), manifest_sha256)


def _load_init(model, params: Params, row: str, root: Path):
    """Load what the recipe starts from, if it names something; gives weights.Report, or None."""
    from .progress import progress
    from .weights import CACHE, load_weights

    source = params.recipe(row).init.weights
    if source is None:
        return None
    try:
        with progress("bytes") as tell:
            return load_weights(model, source, cache=root / CACHE, tell=tell)
    except UserError as error:
        raise UserError(
            f"{row} starts from recipes.{row}.init.weights, and they are not to be had: {error}\n"
            "Set that key to a file or URL that is, or to null to start from random weights"
        ) from None


def _batch_and_lr(params: Params, row: str) -> tuple[int, int, float]:
    """Clips of one step, clips of the reference batch, and the learning rate for the former."""
    from .engine.schedule import scaled_lr

    optim, reference = params.recipe(row).optim, params.recipes[row].optim.reference_batch
    batch = optim.videos_per_gpu * optim.accumulate
    lr = scaled_lr(optim.lr, batch=batch, reference_batch=reference) if optim.scale_lr else optim.lr
    return batch, reference, lr


def _device(params: Params):
    import torch

    if params.runtime.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"{params.path}: runtime.device is cuda, but torch {torch.__version__} sees no GPU; "
            "set it to auto or cpu, or install a CUDA build of torch"
        )
    is_cuda = params.runtime.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if is_cuda else "cpu")


def _finished_training(files: RowFiles, fingerprint: str) -> dict[str, Any] | None:
    made = read_json(files.recipe)
    if made.get("fingerprint") != fingerprint:
        return None
    for name, known in made["files"].items():
        path = files.run / name if name.endswith(".pth") else files.metrics().parent / name
        if not path.is_file() or path.stat().st_size != known["size"] or tracking.checkpoint_md5(path) != known["md5"]:
            return None
    return made


def _publish_training(files: RowFiles, scratch: Path, made: dict[str, Any], state) -> None:
    """Put the finished files in their places, recipe.json last. Killed in between, the next run does it again: the
    scratch folder keeps its own links."""
    for name in ("best.pth", "latest.pth"):
        _link(scratch / name, files.run / name)
    _write_csv(files.metrics("train.csv"), state.train_curve)
    _write_csv(files.metrics("val.csv"), state.val_curve)
    paths = (files.best, files.latest, files.metrics("train.csv"), files.metrics("val.csv"))
    made["files"] = {path.name: {"md5": tracking.checkpoint_md5(path), "size": path.stat().st_size} for path in paths}
    write_json(files.recipe, made)


def _link(source: Path, target: Path) -> None:
    beside = target.with_name(f".{target.name}.partial")
    beside.unlink(missing_ok=True)
    try:
        os.link(source, beside)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, beside)
    os.replace(beside, target)


class _RunMemory:
    """What an interrupted training's successor must know from its first moment: which logs, which MLflow run."""

    def __init__(self, path: Path):
        self.path = path
        known = read_json(path)
        self.stamp: str = known.get("stamp") or datetime.datetime.now().strftime("%Y%m%d_%H%M%S")
        self.run_id: str | None = known.get("run_id")

    def remember(self, run_id: str | None) -> None:
        self.run_id = run_id
        write_json(self.path, {"stamp": self.stamp, "run_id": run_id})


def _start_table(model, made: dict[str, Any], device) -> list[str]:
    """What is really on, for the eyes of whoever starts days of training."""
    from torch import nn

    model.train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm3d)]
    frozen = sum(not norm.weight.requires_grad for norm in norms)
    evaluating = sum(not norm.training for norm in norms)
    optim = made["recipe"]["optim"]
    why = (
        f"{optim['lr']} x {made['batch']} / {made['reference_batch']} videos"
        if optim["scale_lr"]
        else "as in the recipe, optim.scale_lr is off"
    )
    lines = [
        f"row        {made['row']} on {made['dataset']}: {made['train_clips']} training and {made['val_clips']} "
        f"validation clips, {len(made['classes'])} classes",
        f"network    {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters; {len(norms)} batch norms, "
        f"{evaluating} with stored statistics, {frozen} frozen",
        f"learning   lr {made['lr']:.6g} ({why}), batch {made['batch']} on {device}",
    ]
    if frozen and made["recipe"]["init"]["weights"] is None:
        lines.append("warning    batch norm is frozen and there are no weights to start from: nothing normalises")
    if made["overrides"]:
        lines.append(f"overrides  of datasets.{made['dataset']}, so this is no result to compare:")
        lines += [f"           {override}" for override in made["overrides"]]
    return lines


def _training_summary(made: dict[str, Any]) -> str:
    return (
        f"{made['row']}: val top-1 {made['best_val_top1']:.4f} at epoch {made['best_epoch']} of "
        f"{made['recipe']['schedule']['epochs']}"
    )


def _test_summary(made: dict[str, Any]) -> str:
    metrics = made["metrics"]
    gone = metrics["missing"] + metrics["undecodable"]
    return (
        f"{made['row']}: top-1 {metrics['top1']:.4f}, top-5 {metrics['top5']:.4f}, mean class "
        f"{metrics['mean_class']:.4f} ({made['protocol']} views, {metrics['clips']} of {metrics['listed']} listed "
        f"clips, {gone} missing or undecodable)"
    )


def _frames_text(recipe: Recipe) -> str:
    """Frames of all views as the published table counts them: (32+4)x10x3 frames."""
    frames = str(recipe.clips.clip_len)
    if recipe.model.family == "slowfast":
        frames = f"({frames}+{recipe.clips.clip_len // recipe.model.alpha})"
    return f"{frames}x{recipe.test.num_clips}x{recipe.test.num_crops} frames"


def _environment(torch) -> str:
    cuda = f", CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}" if torch.cuda.is_available() else ""
    return (
        f"Python {platform.python_version()}, torch {torch.__version__}{cuda}, {platform.system()} {platform.machine()}"
    )


def _progress(what: str, total: int):
    """A line at every tenth."""
    shown = -1

    def on_batch(done: int) -> None:
        nonlocal shown
        if (tenth := done * 10 // max(total, 1)) > shown:
            shown = tenth
            print(f"{what}: {done} of {total} clips", flush=True)

    return on_batch


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_csv(path: Path, lines: list[dict[str, float]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {key: round(value, 6) if isinstance(value, float) else value for key, value in line.items()} for line in lines
    )
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())
