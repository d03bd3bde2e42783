"""Train a model: from its recipe to runs/<dataset>/<model>/, by one process or by many that torchrun started."""

import contextlib
import csv
import dataclasses
import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..devices import device_of, layout_of, place
from ..files.atomic import atomic_write
from ..files.hashes import md5_of
from ..files.json_files import write_json
from ..files.kept import drop_cached, is_due, keep, publish_again
from ..files.links import link_or_copy
from ..files.locks import locked
from ..job import Job
from ..process.progress import progress
from ..recipe import CosineSchedule, Recipe, StepSchedule, as_dict
from ..records import Circumstances, FileRecord, RunRecord
from ..run_files import RunFiles
from ..tracking.live import recording
from ..tracking.stages import finish_training, recorded_training
from ..weights.initial import check_initial_weights, load_initial_weights
from ..weights.provenance import Provenance, versions
from ..zoo import build_model, freeze
from .adopt import adopt_states, adopt_training
from .resume import RunMemory, changes_since, other_unfinished, spread_states, state_about, take_state
from .shared_states import SharedStates, shared_states

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..clips.inputs import ToInput
    from ..clips.loader import Loader, TrainLoader
    from ..engine.distributed import World
    from ..engine.logs import RunLog
    from ..engine.plan import Plan
    from ..engine.schedule import Cosine, Step
    from ..engine.state import State
    from ..weights.load import LoadReport


def train(job: Job, *, resume: Path | None = None) -> str:
    """Train the job's model; returns the last line to print, in the first process alone.

    Started by torchrun, every process calls this. `resume` is a saved state of the same recipe, from which the training
    goes on. Raises UserError, engine's NonFiniteLoss and CheckpointError.
    """
    files, num_processes = job.files, int(os.environ.get("WORLD_SIZE", "1"))
    scratch, is_first = files.scratch(job.resume_key(num_processes)), os.environ.get("RANK", "0") == "0"
    if is_due(scratch, job.root):
        return _publish_again(job, scratch) if is_first else ""
    if (adopted := adopt_training(job, is_first=is_first)) is not None:
        return f"train: adopted from the version before; {adopted.summary()}" if is_first else ""
    if job.init:
        check_initial_weights(job.init, job.recipe.model)

    import torch

    from ..engine.distributed import joined

    record = _record_of(job, num_processes)
    shared: SharedStates | None = None
    with joined(job.device_type) as world, contextlib.ExitStack() as held:
        if world.is_first:
            held.enter_context(_locked(files, scratch))
            drop_cached(files.unfinished, job.root)
            adopt_states(job, num_processes)
            scratch.mkdir(parents=True, exist_ok=True)
            shared = held.enter_context(shared_states(job, scratch))
            if resume:
                take_state(resume, scratch, record)
            elif shared:
                shared.take_newest(record, _print)
        world.wait()
        spread_states(scratch, world)
        if job.runtime.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        record = _train(job, record, scratch, world, shared)
        if world.is_first:
            if shared:
                shared.delete()
            keep(scratch, files.base, _outputs(files))
    return f"train: {record.summary()}; weights in {files.best}" if world.is_first else ""


@contextlib.contextmanager
def _locked(files: RunFiles, scratch: Path) -> Iterator[None]:
    """Lock the run's folder, and the scratch folder, which experiments share. Raises UserError if another has one."""
    busy = f"{files.model} is being trained by another process, in {files.unfinished}; wait for it, or stop it first"
    with locked(files.lock, busy=busy), locked(scratch.with_name(f".{scratch.name}.lock"), busy=busy):
        yield


def _record_of(job: Job, num_processes: int) -> RunRecord:
    """What is known of the training before it begins."""
    batch, runtime = job.batch(num_processes), job.runtime
    return RunRecord(
        model=job.model,
        dataset=job.dataset,
        fingerprint=job.training_fingerprint(),
        manifest_sha256=job.manifest.sha256,
        recipe=as_dict(job.recipe),
        overrides=job.overrides,
        batch=batch.size,
        reference_batch=batch.reference,
        lr=batch.lr,
        circumstances=Circumstances(
            device=job.device_type,
            processes=num_processes,
            nodes=int(os.environ.get("GROUP_WORLD_SIZE", "1")),  # torchrun sets it
            precision=runtime.precision,
            channels_last=runtime.channels_last,
            compile=runtime.compile,
            deterministic=runtime.deterministic,
        ),
        versions=versions(),
        classes=tuple(job.manifest.classes),
        files={},
    )


def _print(text: str) -> None:
    print(text, flush=True)


def _train(job: Job, record: RunRecord, scratch: Path, world: "World", shared: SharedStates | None) -> RunRecord:
    """Train in every process; the first one logs, records and publishes. Returns the finished record."""
    from ..engine.data import TrainingData
    from ..engine.listener import Listener
    from ..engine.logs import RunLog
    from ..engine.state import StateFolder, saved_states
    from ..engine.train import train as train_network
    from .training_report import TrainingReport, device_name, precision_check, start_table

    device, is_new = device_of(job.runtime, world.local_rank), not saved_states(scratch)
    network, loaded = _network(job, len(record.classes), device, world, is_new=is_new)
    training, validation, to_input = _loaders(job, device, world, scratch / f"quarantine-{world.rank}.json")
    memory = RunMemory(scratch / "run.json")
    assert record.circumstances is not None
    record = dataclasses.replace(
        record,
        circumstances=dataclasses.replace(record.circumstances, device_name=device_name(device)),
        train_clips=len(training.clips),
        val_clips=len(validation.clips),
        init_sha256=loaded.sha256 if loaded else memory.provenance.init_sha256,
    )
    data, plan = TrainingData(training, validation, to_input, training.advice()), _plan(job, record.lr)
    check = precision_check(network, training, to_input, job) if is_new else []
    if not world.is_first:
        state = train_network(network, data, plan, StateFolder(scratch, state_about(record)), Listener(), world)
        return _finished(record, state)

    log = RunLog(job.files.logs, memory.stamp)
    lines = [
        *(other_unfinished(job.files, scratch, record) if is_new else changes_since(memory, job, scratch)),
        *([loaded.text()] if loaded else []),
        *start_table(network, job, record, device, world),
        f"clips      {training.text()}",
        *check,
    ]
    memory.remember(Provenance.of(record))
    recorded = recorded_training(
        job.files, memory.stamp, record, checkpoints=job.runtime.checkpoints, mlflow_run=memory.run_id or ""
    )
    steps_per_epoch = math.ceil(len(training) / plan.accumulate)
    with recorded, progress("steps", lines=False, per_epoch=steps_per_epoch) as on_progress:
        about = state_about(record) | {"stamp": memory.stamp}
        folder = StateFolder(scratch, about, shared.offer) if shared else StateFolder(scratch, about)
        report = TrainingReport(job, record.fingerprint, steps_per_epoch, lines, log, on_progress)
        state = train_network(network, data, plan, folder, report, world)
        record = _publish(job.files, scratch, _finished(record, state), state, log)
        finish_training(job.files, memory.stamp, record)
    return record


def _finished(record: RunRecord, state: "State") -> RunRecord:
    return dataclasses.replace(
        record,
        best_epoch=state.best_epoch,
        best_val_top1=state.best_top1,
        undecodable=tuple(state.undecodable),
    )


def _plan(job: Job, lr: float) -> "Plan":
    """The engine's settings."""
    from ..engine.plan import Plan

    recipe, runtime = job.recipe, job.runtime
    return Plan(
        schedule=learning_rate_schedule(recipe, lr),
        momentum=recipe.optim.momentum,
        weight_decay=recipe.optim.weight_decay,
        backbone_lr_scale=recipe.init.backbone_lr,
        accumulate=recipe.optim.accumulate,
        max_grad_norm=recipe.optim.max_grad_norm,
        val_interval=recipe.schedule.val_interval,
        log_interval=recipe.schedule.log_interval,
        ema=recipe.optim.ema,
        checkpoint_interval=recipe.schedule.checkpoint_interval,
        save_seconds=60 * runtime.save_minutes,
        keep_states=runtime.keep_states,
        precision=runtime.precision,
        is_compiled=runtime.compile,
    )


def learning_rate_schedule(recipe: Recipe, lr: float) -> "Cosine | Step":
    """The recipe's schedule as the engine takes it; `lr` is the learning rate after warm-up."""
    from ..engine.schedule import Cosine, Step

    schedule = recipe.schedule
    epochs, warmup_epochs, warmup_ratio = schedule.epochs, schedule.warmup_epochs, schedule.warmup_ratio
    match schedule:
        case CosineSchedule():
            return Cosine(
                lr=lr,
                min_lr=schedule.min_lr,
                epochs=epochs,
                warmup_epochs=warmup_epochs,
                warmup_ratio=warmup_ratio,
            )
        case StepSchedule():
            return Step(
                lr=lr,
                milestones=schedule.milestones,
                gamma=schedule.gamma,
                epochs=epochs,
                warmup_epochs=warmup_epochs,
                warmup_ratio=warmup_ratio,
            )


def _network(
    job: Job, num_classes: int, device: "torch.device", world: "World", *, is_new: bool
) -> "tuple[nn.Module, LoadReport | None]":
    """The network on its device, in the modes of training; and the weights loaded into it, if it starts from any."""
    import torch

    from ..engine.norms import split_norms, synchronise_norms
    from ..engine.precision import set_tf32

    recipe, runtime = job.recipe, job.runtime
    torch.manual_seed(recipe.seed)
    set_tf32(runtime.precision)
    network = build_model(recipe.model, num_classes)
    loaded = load_initial_weights(network, job.init, job.downloads) if job.init and is_new else None
    frozen = freeze(network, recipe.init.frozen_stages)
    if recipe.optim.batch_norm == "sync" and world.size > 1:
        synchronise_norms(network)
    elif recipe.optim.batch_norm == "ghost":
        split_norms(network, job.written.optim.videos_per_gpu)
    place(network, runtime, device).train()
    for module in frozen:
        module.eval()
    torch.manual_seed(recipe.seed + world.rank)  # dropout differs from process to process
    return network, loaded


def _loaders(
    job: Job, device: "torch.device", world: "World", quarantine: Path
) -> "tuple[TrainLoader, Loader, ToInput]":
    """Training clips, validation clips, and what makes the network's input of their views."""
    from ..clips.inputs import ToInput
    from ..clips.loader import Loading, train_loader, usable_clips, view_loader

    recipe, runtime, manifest = job.recipe, job.runtime, job.manifest
    loading = Loading(
        batch_size=recipe.optim.videos_per_gpu,
        workers=runtime.num_workers,
        timeout_seconds=runtime.clip_timeout_seconds,
        rank=world.rank,
        world_size=world.size,
        device=device,
        quarantine=quarantine,
    )
    clips, val_clips = (usable_clips(manifest, split, manifest.path) for split in ("train", "val"))
    training = train_loader(job.data, clips, recipe.clips, recipe.augment, seed=recipe.seed, loading=loading)
    validation = view_loader(job.data, val_clips, recipe.validation_spec, loading=loading)
    augment = recipe.augment
    return training, validation, ToInput(mean=augment.mean, std=augment.std, device=device, layout=layout_of(runtime))


def _publish(files: RunFiles, scratch: Path, record: RunRecord, state: "State", log: "RunLog") -> RunRecord:
    """Put the finished files in their places, recipe.json last; returns the record that vouches for them.

    Killed in between, the next run does it again: the scratch folder keeps its own links.
    """
    from ..engine.logs import write_history

    for path in (files.best, files.latest):
        link_or_copy(scratch / path.name, path)
    _write_csv(files.plot("loss"), state.train_curve)
    _write_csv(files.plot("top1"), state.val_curve)
    write_history([log.json_path], files.history)
    write_json(files.metrics("train"), record.table(state.train_curve[-1]["loss"]))
    known = {path.name: FileRecord(md5=md5_of(path), size=path.stat().st_size) for path in (files.best, files.latest)}
    record = dataclasses.replace(record, files=known)
    record.write(files.recipe)
    return record


def _outputs(files: RunFiles) -> list[Path]:
    return [
        files.best,
        files.latest,
        files.recipe,
        files.history,
        files.metrics("train"),
        files.plot("loss"),
        files.plot("top1"),
    ]


def _publish_again(job: Job, scratch: Path) -> str:
    """Publish a training that was killed after its end, before DVC had its files; returns the last line to print."""
    files = job.files
    with _locked(files, scratch):
        publish_again(scratch, files.base)
    with recording(files, checkpoints=job.runtime.checkpoints):
        pass
    return f"train: it had finished, and its files were published again; {RunRecord.read(files.recipe).summary()}"


def _write_csv(path: Path, lines: Sequence[Mapping[str, float]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {key: round(value, 6) if isinstance(value, float) else value for key, value in line.items()} for line in lines
    )
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())
