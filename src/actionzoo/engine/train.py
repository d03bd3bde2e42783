"""The training loop: SGD with clipped gradients, validation, and saved states from which a killed training resumes.

A step is one update of the weights: `plan.accumulate` batches of every process.
"""

import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import UserError
from .data import Batch, Loader, TrainingData
from .distributed import World
from .evaluate import Inference, Scores, evaluate
from .listener import Event, Listener
from .logs import eta
from .plan import Plan
from .schedule import learning_rate
from .state import State, StateFolder
from .stop_signals import StopRequest, stop_requests
from .trainer import Trainer

MAX_WAITING = 0.2
"""Share of an epoch's time that may go by waiting for clips before the log says what to change."""


def train(
    model: nn.Module,
    data: TrainingData,
    plan: Plan,
    folder: StateFolder,
    listener: Listener,
    world: World = World(),  # noqa: B008  # frozen
) -> State:
    """Train to the last epoch; leave best.pth and latest.pth in the folder, each with weights, epoch and top1.

    The model lies on the device that it trains on. Every module keeps the mode that it is in: call `model.train()`
    first, then `eval()` on what is frozen.

    If the folder holds states of an interrupted training, the newest one that is whole is resumed; the result has the
    same bits as an undisturbed training where the device computes repeatably. SIGTERM and Ctrl-C save a state and leave
    with SystemExit(128 + signal).

    The listener is called in the first process alone. Raises NonFiniteLoss; UserError if a batch does not fit into
    memory or no clip decodes; CheckpointError if there are saved states and none can be used.
    """
    if not world.is_first:
        listener = Listener()
    trainer = Trainer(model, plan, folder, world)
    state = trainer.resume(listener.on_text)
    listener.on_start(state)
    network = _parallel(model, trainer.device) if world.size > 1 else model
    forward: Callable[[Tensor], Tensor] = torch.compile(network) if plan.is_compiled else network

    steps_per_epoch = math.ceil(len(data.training) / plan.accumulate)
    total_steps = plan.epochs * steps_per_epoch
    with stop_requests(world) as stop:
        for epoch in range(state.finished_epochs, plan.epochs):
            data.training.set_epoch(epoch, start=state.finished_steps * plan.accumulate)
            began = time.perf_counter()
            for number, batches in enumerate(_groups(data.training, plan.accumulate), state.finished_steps):
                step = epoch * steps_per_epoch + number
                trainer.note_undecodable(batches, listener.on_text)
                lr = learning_rate(plan.schedule, step, steps_per_epoch)
                trainer.set_lr(lr)
                agreed = trainer.agree(batches, stop.status)
                if agreed.batches:
                    data_time = time.perf_counter() - began
                    where = f"epoch {epoch + 1}, step {number + 1}, lr {lr:.3g}"
                    values = trainer.step(network, forward, data.to_input, agreed, where)
                    now = time.perf_counter()
                    trainer.note({"data_time": data_time} | values | {"time": now - began}, agreed)
                    began = now
                state.finished_steps = number + 1
                if (number + 1) % plan.log_interval == 0 and (means := trainer.take_window()):
                    event: Event = {"mode": "train", "epoch": epoch + 1, "iter": number + 1, "lr": lr}
                    if trainer.device.type == "cuda":
                        event["memory"] = int(torch.cuda.max_memory_allocated(trainer.device) / 2**20)
                    listener.on_event({**event, **means}, step + 1)
                    seconds_left = (total_steps - step - 1) * means["time"]
                    listener.on_text(_train_text(event, means, steps_per_epoch, seconds_left))
                listener.on_step(step + 1, total_steps)
                if agreed.exit_status:
                    trainer.save()
                    listener.on_text(_stopped_text(f"after epoch {epoch + 1}, step {number + 1}, and saved"))
                    raise SystemExit(agreed.exit_status)
                if agreed.is_save_due and number + 1 < steps_per_epoch:
                    trainer.save()
            means = trainer.totals.means(world)
            if not means:
                raise UserError("no training clip decoded: " + "; ".join(state.undecodable[:3]))
            listener.on_text(_waiting_text(epoch + 1, means, data.advice))
            lr = learning_rate(plan.schedule, (epoch + 1) * steps_per_epoch - 1, steps_per_epoch)
            is_last, is_best = epoch + 1 == plan.epochs, False
            if (epoch + 1) % plan.val_interval == 0 or is_last:
                world.broadcast_buffers(model)
                if world.size > 1:
                    trainer.save()  # together, because during a validation each process leaves by itself
                try:
                    scores = _validate(trainer.averaged, data, world, stop)
                except SystemExit:
                    if world.size == 1:
                        trainer.save()
                    where = f"epoch {epoch + 1}, step {state.finished_steps}"
                    listener.on_text(_stopped_text(f"amid the validation; saved after {where}"))
                    raise
                is_best = _note_validation(state, scores, epoch)
                event = _validation_event(state, len(data.validation), lr)
                listener.on_event(event, (epoch + 1) * steps_per_epoch)
                for text in _validation_texts(event, scores):
                    listener.on_text(text)
            curve = {"loss": means["loss"], "top1": means["top1_acc"], "top5": means["top5_acc"]}
            state.train_curve.append({"epoch": epoch + 1, "lr": lr} | curve)
            state.finished_epochs, state.finished_steps = epoch + 1, 0
            trainer.forget_means()
            if is_best:
                trainer.save_weights("best.pth", state.best_epoch, state.best_top1)
            if is_last:
                trainer.save_weights("latest.pth", plan.epochs, state.val_curve[-1]["top1"])
            if is_best or is_last or (epoch + 1) % plan.checkpoint_interval == 0:
                trainer.save()
    return state


def _validate(model: nn.Module, data: TrainingData, world: World, stop: StopRequest) -> Scores:
    def leave_if_asked(done: int) -> None:
        if stop.status:
            raise SystemExit(stop.status)

    return evaluate(model, data.validation, Inference(data.to_input), on_batch=leave_if_asked, world=world)


def _note_validation(state: State, scores: Scores, epoch: int) -> bool:
    """Add a validation to the curve; return whether it is the best so far."""
    values = scores.accuracies()
    state.val_curve.append({"epoch": epoch + 1} | values)
    is_best = values["top1"] > state.best_top1
    if is_best:
        state.best_top1, state.best_epoch = values["top1"], epoch + 1
    return is_best


def _validation_event(state: State, num_batches: int, lr: float) -> Event:
    values = state.val_curve[-1]
    return {
        "mode": "val",
        "epoch": values["epoch"],
        "iter": num_batches,
        "lr": lr,
        "top1_acc": values["top1"],
        "top5_acc": values["top5"],
        "mean_class_accuracy": values["mean_class"],
    }


def _validation_texts(event: Event, scores: Scores) -> list[str]:
    accuracies = ", ".join(f"{key}: {event[key]:.4f}" for key in ("top1_acc", "top5_acc", "mean_class_accuracy"))
    return [
        *(f"validation lacks a clip that does not decode: {reason}" for reason in scores.undecodable),
        f"Epoch(val) [{event['epoch']}][{event['iter']}]\t{accuracies}",
    ]


def _stopped_text(where: str) -> str:
    return f"stopped {where}; run the same command again to go on from there"


def _waiting_text(epoch: int, means: dict[str, float], advice: str) -> str:
    share = means["data_time"] / means["time"]
    text = f"Epoch [{epoch}]\twaited for clips {share:.1%} of the time"
    return f"{text}; {advice}" if advice and share > MAX_WAITING else text


def _parallel(model: nn.Module, device: torch.device) -> DistributedDataParallel:
    with warnings.catch_warnings():
        # torch 2.13 has another name for it, 2.10 does not know that one
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        ids = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)


def _groups(loader: Loader, size: int) -> Iterator[list[Batch]]:
    """Yield lists of `size` batches; the last list may be shorter."""
    batches = iter(loader)
    while group := list(itertools.islice(batches, size)):
        yield group


def _train_text(event: Event, means: dict[str, float], steps_per_epoch: int, seconds_left: float) -> str:
    memory = f"memory: {event['memory']}, " if "memory" in event else ""
    return (
        f"Epoch [{event['epoch']}][{event['iter']}/{steps_per_epoch}]\t"
        f"lr: {event['lr']:.3e}, eta: {eta(seconds_left)}, "
        f"time: {means['time']:.3f}, data_time: {means['data_time']:.3f}, {memory}"
        f"top1_acc: {means['top1_acc']:.4f}, top5_acc: {means['top5_acc']:.4f}, "
        f"loss_cls: {means['loss_cls']:.4f}, loss: {means['loss']:.4f}, grad_norm: {means['grad_norm']:.4f}"
    )
