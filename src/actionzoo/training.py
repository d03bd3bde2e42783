"""A row's training: from its recipe to runs/<dataset>/<row>/, by one process or by many that torchrun started.

It knows its own finished work by a fingerprint of what shaped it, because DVC has one lock entry per stage: after
switching data sets there and back it is asked again for what lies ready.
"""

import contextlib
import csv
import datetime
import io
import math
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from . import tracking
from .errors import UserError
from .files.atomic import atomic_write
from .files.hashes import md5_of, sha256_of
from .files.json_files import read_json, write_json
from .files.locks import locked
from .kinetics.manifest import label_map, read_manifest
from .params import Params, Recipe, as_dict, digest
from .progress import progress
from .run_files import RowFiles, data_folder, device_of, device_type
from .zoo import build_model, freeze


def train_row(
    params: Params, row: str, root: Path = Path(), *, work_dir: Path | None = None, resume: Path | None = None
) -> str:
    """Train `row` on the chosen data set; gives the last line to print, in the first process alone.

    Started by torchrun, every process calls this. `work_dir` takes all the run's files instead of runs/ and metrics/.
    `resume` is a saved state to go on from, of the same recipe. Raises UserError, engine's NonFiniteLoss and
    CheckpointError.
    """
    recipe, files = params.recipe(row), RowFiles(root, params.name, row, work_dir)
    folder = data_folder(params, recipe, root)
    classes = label_map(read_manifest(folder / "manifest.csv"))
    manifest_sha256 = sha256_of(folder / "manifest.csv")
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    fingerprint = training_fingerprint(params, row, manifest_sha256, num_processes)
    if (made := _finished_training(files, fingerprint)) is not None:
        done = f"train: {row} is trained already, by this very recipe on these very clips; {_training_summary(made)}"
        return done if os.environ.get("RANK", "0") == "0" else ""

    import torch

    from .engine.distributed import joined

    batch, reference, lr = batch_and_lr(params, row, num_processes)
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
    }
    scratch = files.scratch(fingerprint)
    busy = f"{row} is being trained by another process, in {files.unfinished}; wait for it, or end it and run again"
    with joined(device_type(params)) as world, contextlib.ExitStack() as held:
        if world.is_first:
            held.enter_context(locked(files.unfinished / ".lock", busy=busy))
            scratch.mkdir(parents=True, exist_ok=True)
            if resume:
                _take_state(resume, scratch, made)
        world.wait()
        if params.runtime.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        state = _train(params, row, root, files, scratch, made, world)
        made |= {"best_epoch": state.best_epoch, "best_val_top1": state.best_top1}
        if world.is_first:
            shutil.rmtree(scratch)
    return f"train: {_training_summary(made)}; weights in {files.best}" if world.is_first else ""


def _train(params: Params, row: str, root: Path, files: RowFiles, scratch: Path, made: dict[str, Any], world):
    """What every process does; the first one logs, records and publishes. Gives engine's State."""
    from .engine.logs import RunLog
    from .engine.schedule import learning_rate
    from .engine.train import Plan, State, saved_states, train

    recipe, runtime = params.recipe(row), params.runtime
    device = device_of(params, world.local_rank)
    is_new = not saved_states(scratch)
    model, frozen, init = _network(params, row, root, made, device, world, is_new)
    quarantine = scratch / f"quarantine-{world.rank}.json"
    training, validation, to_network = _loaders(params, recipe, root, device, world, quarantine)
    made |= {"train_clips": len(training.clips), "val_clips": len(validation.clips)}
    steps_per_epoch = math.ceil(len(training) / recipe.optim.accumulate)
    schedule = {
        key: value
        for key, value in as_dict(recipe.schedule).items()
        if key not in ("val_interval", "checkpoint_interval", "log_interval")
    }
    plan = Plan(
        epochs=recipe.schedule.epochs,
        accumulate=recipe.optim.accumulate,
        max_grad_norm=recipe.optim.max_grad_norm,
        val_interval=recipe.schedule.val_interval,
        log_interval=recipe.schedule.log_interval,
        ema=recipe.optim.ema,
        checkpoint_interval=recipe.schedule.checkpoint_interval,
        save_seconds=60 * runtime.save_minutes,
        keep_states=runtime.keep_states,
        precision=runtime.precision,
    )
    canary = _canary(model, training, to_network, runtime.precision) if is_new else ""
    memory = _RunMemory(scratch / "run.json")
    log = RunLog(files.run, memory.stamp) if world.is_first else None

    def say(text: str) -> None:
        print(text, flush=True)
        log.say(text)

    def start(state: State) -> None:
        log.begin(_log_meta(made, files, steps_per_epoch), state.finished_epochs, state.finished_steps)
        if state.finished_epochs or state.finished_steps:
            amid = f", step {state.finished_steps}" if state.finished_steps else ""
            say(f"going on after epoch {state.finished_epochs}{amid} of an interrupted training")
        for line in (
            *(_other_unfinished(files, scratch, made) if is_new else ()),
            *([init.text()] if init else ()),
            *_start_table(model, made, params, device, world),
            f"clips      {training.text()}",
            *([canary] if canary else ()),
        ):
            say(line)

    with _recording(params, row, made, memory, world) as record, progress("steps", lines=False) as tell:

        def event(line: dict[str, Any], step: int) -> None:
            log.event(line)
            record.log(step, tracking.to_metrics(line))

        state = train(
            model,
            training,
            validation,
            to_network,
            plan=plan,
            optimizer=_optimizer(model, recipe, made["lr"]),
            lr_at=lambda step: learning_rate(step, steps_per_epoch, **(schedule | {"lr": made["lr"]})),
            device=device,
            scratch=scratch,
            on_start=start,
            on_event=event,
            on_text=say,
            on_step=lambda done, total: tell(row, done, total),
            world=world,
            compiled=runtime.compile,
            frozen=frozen,
            about=_about(made) | ({"mlflow_run": record.id} if world.is_first else {}),
            data_advice=training.advice(),
        )
        if world.is_first:
            result = {"best_epoch": state.best_epoch, "best_val_top1": state.best_top1}
            _publish_training(files, scratch, made | result | {"undecodable": state.undecodable}, state)
            for path in (files.best, files.latest, files.recipe, log.text_path, log.json_path):
                record.artifact(path)
            record.tag("checkpoint.md5", md5_of(files.best))
    return state


def _network(params: Params, row: str, root: Path, made: dict[str, Any], device, world, is_new: bool):
    """The network as training wants it, its frozen modules, and what it starts from (weights.Report, or None)."""
    import torch

    from .engine.norms import split_norms, synchronise_norms
    from .engine.precision import set_tf32

    recipe, runtime = params.recipe(row), params.runtime
    torch.manual_seed(recipe.seed)
    set_tf32(runtime.precision)
    model = build_model(recipe.model, len(made["classes"]))
    init = _load_init(model, params, row, root) if is_new else None
    frozen = freeze(model, recipe.init.frozen_stages)
    if runtime.batch_norm == "sync" and world.size > 1:
        synchronise_norms(model)
    elif runtime.batch_norm == "ghost":
        split_norms(model, params.recipes[row].optim.videos_per_gpu)
    model.to(device).train()
    if runtime.channels_last:
        model.to(memory_format=torch.channels_last_3d)
    torch.manual_seed(recipe.seed + world.rank)  # dropout differs from process to process
    return model, frozen, init


def _optimizer(model, recipe: Recipe, lr: float):
    """SGD. The backbone is a group of its own only where it learns at another rate than the head."""
    import torch

    groups: list[dict[str, Any]] = [{"params": list(model.parameters())}]
    if recipe.init.backbone_lr != 1:
        head = [p for name, p in model.named_parameters() if not name.startswith("backbone.")]
        backbone = [p for name, p in model.named_parameters() if name.startswith("backbone.")]
        groups = [{"params": backbone, "lr_scale": recipe.init.backbone_lr}, {"params": head}]
    optim = recipe.optim
    return torch.optim.SGD(groups, lr=lr, momentum=optim.momentum, weight_decay=optim.weight_decay)


def _loaders(params: Params, recipe: Recipe, root: Path, device, world, quarantine: Path):
    """Training clips, validation clips, and what makes a network's input of them."""
    import torch

    from .clips.inputs import ToInput
    from .clips.loader import train_loader, view_loader

    folder, runtime = data_folder(params, recipe, root), params.runtime
    loading = {
        "batch_size": recipe.optim.videos_per_gpu,
        "workers": runtime.num_workers,
        "timeout_seconds": runtime.clip_timeout_seconds,
        "rank": world.rank,
        "world_size": world.size,
        "device": device,
        "quarantine": quarantine,
    }
    training = train_loader(folder, recipe.clips, recipe.augment, seed=recipe.seed, **loading)
    validation = view_loader(folder, recipe.clips, recipe.augment, split="val", **loading)
    layout = torch.channels_last_3d if runtime.channels_last else torch.contiguous_format
    to_input = ToInput(mean=recipe.augment.mean, std=recipe.augment.std, device=device)

    def to_network(views):
        return to_input(views).contiguous(memory_format=layout)

    return training, validation, to_network


def _recording(params: Params, row: str, made: dict[str, Any], memory: "_RunMemory", world):
    """The MLflow run, in the first process; nothing in the others."""
    if not world.is_first:
        return contextlib.nullcontext()
    return _first_recording(params, row, made, memory)


@contextlib.contextmanager
def _first_recording(params: Params, row: str, made: dict[str, Any], memory: "_RunMemory"):
    with tracking.run(
        experiment=params.name,
        name=row,
        phase="train",
        params=tracking.run_params(made),
        tags={"recipe": row, "dataset": params.name, "manifest.sha256": made["manifest_sha256"]},
        run_id=memory.run_id,
    ) as record:
        memory.remember(record.id)
        yield record


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
    from .engine.schedule import scaled_lr

    optim, reference = params.recipe(row).optim, params.recipes[row].optim.reference_batch
    batch = optim.videos_per_gpu * optim.accumulate * num_processes
    lr = scaled_lr(optim.lr, batch=batch, reference_batch=reference) if optim.scale_lr else optim.lr
    return batch, reference, lr


def _load_init(model, params: Params, row: str, root: Path):
    """Load what the recipe starts from, if it names something; gives weights.Report, or None."""
    from .progress import progress
    from .published import base_name, fetch_published, other_network, published_file
    from .weights import CACHE, fetch_weights, load_weights

    source = params.recipe(row).init.weights
    if source is None:
        return None
    published = published_file(params, source) if source in params.recipes else None
    if source in params.recipes and published is None:
        raise UserError(f"recipes.{row}.init.weights is {source}, which has no published weights; give a file or URL")
    if published and (changes := other_network(published, params.recipe(row).model)):
        raise UserError(
            f"recipes.{row}.init.weights is {source}, whose published {published.name} is of another network than "
            f"{row} trains. To start from it, set {', '.join(f'{key}: {value}' for key, value in changes.items())} in "
            f"datasets.{params.name}.overrides.{row}.model"
        )
    try:
        with progress("bytes") as tell:
            if published:
                source = fetch_published(published, root / CACHE, tell=tell)
            elif mirrors := params.mirrors.get(base_name(source)):
                source = fetch_weights(source, root / CACHE, mirrors=mirrors, tell=tell)
            return load_weights(model, source, cache=root / CACHE, tell=tell)
    except UserError as error:
        raise UserError(
            f"{row} starts from recipes.{row}.init.weights, and they are not to be had: {error}\n"
            "Set that key to a file or URL that is, or to null to start from random weights"
        ) from None


def _finished_training(files: RowFiles, fingerprint: str) -> dict[str, Any] | None:
    made = read_json(files.recipe)
    if made.get("fingerprint") != fingerprint or not isinstance(made.get("files"), dict):
        return None
    for name, known in made["files"].items():
        path = files.run / name if name.endswith(".pth") else files.metrics().parent / name
        if not path.is_file() or path.stat().st_size != known["size"] or md5_of(path) != known["md5"]:
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
    made["files"] = {path.name: {"md5": md5_of(path), "size": path.stat().st_size} for path in paths}
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


def _start_table(model, made: dict[str, Any], params: Params, device, world) -> list[str]:
    """What is really on, for the eyes of whoever starts days of training. The model is in training mode."""
    import torch
    from torch import nn

    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm3d)]
    fixed = sum(not norm.weight.requires_grad for norm in norms)
    evaluating = sum(not norm.training for norm in norms)
    kinds = {"local": "their own batch", "sync": "the batches of all processes", "ghost": "parts of the batch"}
    parameters = list(model.parameters())
    count = sum(p.numel() for p in parameters) / 1e6
    learning = sum(p.numel() for p in parameters if p.requires_grad) / 1e6
    recipe, runtime = made["recipe"], params.runtime
    optim = recipe["optim"]
    why = (
        f"{optim['lr']} x {made['batch']} / {made['reference_batch']} videos"
        if optim["scale_lr"]
        else "as in the recipe, optim.scale_lr is off"
    )
    switches = [
        name
        for name, is_on in {
            "channels last": runtime.channels_last,
            "compiled": runtime.compile,
            "deterministic": runtime.deterministic,
            f"averaged weights, decay {optim['ema']}": optim["ema"] > 0,
        }.items()
        if is_on
    ]
    lines = [
        f"row        {made['row']} on {made['dataset']}: {made['train_clips']} training and {made['val_clips']} "
        f"validation clips, {len(made['classes'])} classes",
        f"network    {count:.2f} M parameters, {learning:.2f} M of them learn",
        f"norms      {len(norms)}: {len(norms) - evaluating} see {kinds[runtime.batch_norm]}, {evaluating} use stored "
        f"statistics, {fixed} have frozen weights",
        f"learning   lr {made['lr']:.6g} ({why})",
        f"batch      {made['batch']} = {world.size} processes x {optim['videos_per_gpu']} videos x "
        f"{optim['accumulate']} accumulated; published: {params.recipes[made['row']].optim.videos_per_gpu} a GPU",
        f"precision  {runtime.precision}{', ' if switches else ''}{', '.join(switches)}",
        f"device     {_device_text(device)}; torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}",
    ]
    if fixed == len(norms) and recipe["init"]["weights"] is None:
        lines.append("warning    batch norm is frozen and there are no weights to start from: nothing normalises")
    if made["overrides"]:
        lines.append(f"overrides  of datasets.{made['dataset']}, so this is no result to compare:")
        lines += [f"           {override}" for override in made["overrides"]]
    return lines


def _device_text(device) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})"


def _canary(model, training, to_network, precision: str) -> str:
    """A line on how close the chosen precision is to fp32, on two clips of this training; empty for fp32 itself."""
    from .engine.precision import check_precision

    if precision == "fp32":
        return ""
    batch = next(iter(training))
    return check_precision(model, to_network(batch.views[:2]), precision)


def _about(made: dict[str, Any]) -> dict[str, Any]:
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


def _take_state(source: Path, scratch: Path, made: dict[str, Any]) -> None:
    """Let the training go on from a state that the user names. Raises UserError if it is of another recipe."""
    from .engine.checkpoint import load_checkpoint

    if not source.is_file():
        raise UserError(f"{source} is not there; a saved state is called state-<epochs>-<steps>.pth")
    saved = load_checkpoint(source)
    if not isinstance(saved.get("about"), dict):
        raise UserError(f"{source} is no saved state but weights alone; give it as init.weights to start from it")
    about = {key: value for key, value in saved["about"].items() if key != "mlflow_run"}
    if changes := _differences(about, _about(made)):
        raise UserError(
            f"{source} is of another training, it was not resumed: {'; '.join(changes)}. Set these back, or start anew "
            "with the state's weights in init.weights"
        )
    for path in scratch.glob("state-*.pth"):
        path.unlink()
    _link(source, scratch / source.name)
    _RunMemory(scratch / "run.json").remember(saved["about"].get("mlflow_run"))


def _other_unfinished(files: RowFiles, scratch: Path, made: dict[str, Any]) -> list[str]:
    """A sentence for each training of this row that was left unfinished under another recipe."""
    from .engine.checkpoint import CheckpointError, load_checkpoint
    from .engine.train import saved_states

    lines = []
    for folder in sorted(files.unfinished.iterdir()):
        if folder == scratch or not folder.is_dir() or not (states := saved_states(folder)):
            continue
        with contextlib.suppress(CheckpointError):
            saved = load_checkpoint(states[0])
            if not isinstance(saved.get("about"), dict) or not isinstance(saved.get("state"), dict):
                continue
            about = {key: value for key, value in saved["about"].items() if key != "mlflow_run"}
            changes = "; ".join(_differences(about, _about(made))) or "other processes or batch norm"
            lines.append(
                f"not going on from {folder}, which stopped after epoch {saved['state'].get('finished_epochs')} of "
                f"another recipe: {changes}. Delete that folder if you do not want it any more"
            )
    return lines


def _log_meta(made: dict[str, Any], files: RowFiles, steps_per_epoch: int) -> dict[str, Any]:
    """The first line of log.json, with MMAction2's keys."""
    import torch

    return {
        "env_info": _environment(torch),
        "seed": made["recipe"]["seed"],
        "config_name": made["row"],
        "work_dir": str(files.run),
        "exp_name": made["row"],
        "hook_msgs": {},
        "iters_per_epoch": steps_per_epoch,
        "dataset": made["dataset"],
    }


def _training_summary(made: dict[str, Any]) -> str:
    return (
        f"{made['row']}: val top-1 {made['best_val_top1']:.4f} at epoch {made['best_epoch']} of "
        f"{made['recipe']['schedule']['epochs']}"
    )


def _environment(torch) -> str:
    cuda = f", CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}" if torch.cuda.is_available() else ""
    return (
        f"Python {platform.python_version()}, torch {torch.__version__}{cuda}, {platform.system()} {platform.machine()}"
    )


def _write_csv(path: Path, lines: list[dict[str, float]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {key: round(value, 6) if isinstance(value, float) else value for key, value in line.items()} for line in lines
    )
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())
