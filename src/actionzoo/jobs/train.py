"""A row's training: from its recipe to runs/<dataset>/<row>/, by one process or by many that torchrun started.

It knows its own finished work by a fingerprint of what shaped it, because DVC has one lock entry per stage: after
switching data sets there and back it is asked again for what lies ready.
"""

import contextlib
import csv
import io
import math
import os
import shutil
from pathlib import Path
from typing import Any

from ..devices import device_of, device_type
from ..errors import UserError
from ..files.atomic import atomic_write
from ..files.hashes import md5_of, sha256_of
from ..files.json_files import write_json
from ..files.links import link_or_copy
from ..files.locks import locked
from ..job import RunFiles, data_folder
from ..kinetics.manifest import label_map, read_manifest
from ..params import Params, as_dict
from ..process.progress import progress
from ..recipe import Recipe
from ..tracking.live import recorded_run
from ..tracking.names import run_params, to_metrics
from ..zoo import build_model, freeze
from .resume import (
    RunMemory,
    batch_and_lr,
    finished_training,
    other_unfinished,
    state_about,
    take_state,
    training_fingerprint,
)
from .start_log import canary, log_meta, start_table, training_summary


def train_row(
    params: Params, row: str, root: Path = Path(), *, work_dir: Path | None = None, resume: Path | None = None
) -> str:
    """Train `row` on the chosen data set; gives the last line to print, in the first process alone.

    Started by torchrun, every process calls this. `work_dir` takes all the run's files instead of runs/ and metrics/.
    `resume` is a saved state to go on from, of the same recipe. Raises UserError, engine's NonFiniteLoss and
    CheckpointError.
    """
    recipe, files = params.recipe(row), RunFiles(root, params.name, row, work_dir)
    folder = data_folder(params, recipe, root)
    classes = label_map(read_manifest(folder / "manifest.csv"))
    manifest_sha256 = sha256_of(folder / "manifest.csv")
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    fingerprint = training_fingerprint(params, row, manifest_sha256, num_processes)
    if (made := finished_training(files, fingerprint)) is not None:
        done = f"train: {row} is trained already, by this very recipe on these very clips; {training_summary(made)}"
        return done if os.environ.get("RANK", "0") == "0" else ""

    import torch

    from ..engine.distributed import joined

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
    with joined(device_type(params.runtime)) as world, contextlib.ExitStack() as held:
        if world.is_first:
            held.enter_context(locked(files.unfinished / ".lock", busy=busy))
            scratch.mkdir(parents=True, exist_ok=True)
            if resume:
                take_state(resume, scratch, made)
        world.wait()
        if params.runtime.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        state = _train(params, row, root, files, scratch, made, world)
        made |= {"best_epoch": state.best_epoch, "best_val_top1": state.best_top1}
        if world.is_first:
            shutil.rmtree(scratch)
    return f"train: {training_summary(made)}; weights in {files.best}" if world.is_first else ""


def _train(params: Params, row: str, root: Path, files: RunFiles, scratch: Path, made: dict[str, Any], world):
    """What every process does; the first one logs, records and publishes. Gives engine's State."""
    from ..engine.logs import RunLog
    from ..engine.schedule import learning_rate
    from ..engine.state import Plan, State, saved_states
    from ..engine.train import train

    recipe, runtime = params.recipe(row), params.runtime
    device = device_of(params.runtime, world.local_rank)
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
    precision_line = canary(model, training, to_network, runtime.precision) if is_new else ""
    memory = RunMemory(scratch / "run.json")
    log = RunLog(files.run, memory.stamp) if world.is_first else None

    def say(text: str) -> None:
        print(text, flush=True)
        log.say(text)

    def start(state: State) -> None:
        log.begin(log_meta(made, files, steps_per_epoch), state.finished_epochs, state.finished_steps)
        if state.finished_epochs or state.finished_steps:
            amid = f", step {state.finished_steps}" if state.finished_steps else ""
            say(f"going on after epoch {state.finished_epochs}{amid} of an interrupted training")
        for line in (
            *(other_unfinished(files, scratch, made) if is_new else ()),
            *([init.text()] if init else ()),
            *start_table(model, made, params, device, world),
            f"clips      {training.text()}",
            *([precision_line] if precision_line else ()),
        ):
            say(line)

    with _recording(params, row, made, memory, world) as record, progress("steps", lines=False) as tell:

        def event(line: dict[str, Any], step: int) -> None:
            log.event(line)
            record.log(step, to_metrics(line))

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
            about=state_about(made) | ({"mlflow_run": record.id} if world.is_first else {}),
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

    from ..engine.norms import split_norms, synchronise_norms
    from ..engine.precision import set_tf32

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

    from ..clips.inputs import ToInput
    from ..clips.loader import Loading, train_loader, usable_clips, view_loader

    folder, runtime, augment = data_folder(params, recipe, root), params.runtime, recipe.augment
    manifest = folder / "manifest.csv"
    clips = read_manifest(manifest)
    loading = Loading(
        batch_size=recipe.optim.videos_per_gpu,
        workers=runtime.num_workers,
        timeout_seconds=runtime.clip_timeout_seconds,
        rank=world.rank,
        world_size=world.size,
        device=device,
        quarantine=quarantine,
    )
    for_training, for_validation = (usable_clips(clips, split, manifest) for split in ("train", "val"))
    training = train_loader(folder, for_training, recipe.clips, augment, seed=recipe.seed, loading=loading)
    validation = view_loader(folder, for_validation, recipe.validation_spec, loading=loading)
    layout = torch.channels_last_3d if runtime.channels_last else torch.contiguous_format
    return training, validation, ToInput(mean=augment.mean, std=augment.std, device=device, layout=layout)


def _recording(params: Params, row: str, made: dict[str, Any], memory: "RunMemory", world):
    """The MLflow run, in the first process; nothing in the others."""
    if not world.is_first:
        return contextlib.nullcontext()
    return _first_recording(params, row, made, memory)


@contextlib.contextmanager
def _first_recording(params: Params, row: str, made: dict[str, Any], memory: "RunMemory"):
    with recorded_run(
        experiment=params.name,
        name=row,
        phase="train",
        params=run_params(made),
        tags={"recipe": row, "dataset": params.name, "manifest.sha256": made["manifest_sha256"]},
        run_id=memory.run_id,
    ) as record:
        memory.remember(record.id)
        yield record


def _load_init(model, params: Params, row: str, root: Path):
    """Load what the recipe starts from, if it names something; gives weights.Report, or None."""
    from ..process.progress import progress
    from ..weights.download import fetch_weights
    from ..weights.load import CACHE, load_weights
    from ..weights.published import base_name, fetch_published, other_network, published_file

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


def _publish_training(files: RunFiles, scratch: Path, made: dict[str, Any], state) -> None:
    """Put the finished files in their places, recipe.json last. Killed in between, the next run does it again: the
    scratch folder keeps its own links."""
    for name in ("best.pth", "latest.pth"):
        link_or_copy(scratch / name, files.run / name)
    _write_csv(files.metrics("train.csv"), state.train_curve)
    _write_csv(files.metrics("val.csv"), state.val_curve)
    paths = (files.best, files.latest, files.metrics("train.csv"), files.metrics("val.csv"))
    made["files"] = {path.name: {"md5": md5_of(path), "size": path.stat().st_size} for path in paths}
    write_json(files.recipe, made)


def _write_csv(path: Path, lines: list[dict[str, float]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {key: round(value, 6) if isinstance(value, float) else value for key, value in line.items()} for line in lines
    )
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())
