"""The training loop: SGD, clipped gradients, validation, and states on the disk from which a killed run goes on.

    scratch/state-<epochs>-<steps>.pth   all that the next step depends on; the newest few are kept
    scratch/best.pth                     weights of the best validation so far
    scratch/latest.pth                   weights of the last epoch

A step is one update of the weights: `accumulate` batches of every process.
"""

import contextlib
import itertools
import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import UserError
from .distributed import World
from .evaluate import Scores, evaluate
from .logs import eta
from .state import Plan, Run, State

MAX_WAITING = 0.2
"""Share of an epoch's time that may go by waiting for clips before the log says what to change."""

_SAME_CTRL_C_SECONDS = 3.0
"""torchrun hands Ctrl-C on to copies that have had it from the terminal: so soon after, it is no second one."""


def train(
    model: nn.Module,
    train_loader,
    val_loader,
    to_input: Callable[[Sequence], Tensor],
    *,
    plan: Plan,
    optimizer: torch.optim.Optimizer,
    lr_at: Callable[[int], float],
    device: torch.device,
    scratch: Path,
    on_start: Callable[[State], None],
    on_event: Callable[[dict[str, Any], int], None],
    on_text: Callable[[str], None],
    on_step: Callable[[int, int], None] = lambda done, total: None,
    world: World = World(),  # noqa: B008  # frozen
    compiled: bool = False,
    frozen: Iterable[nn.Module] = (),
    about: dict[str, Any] | None = None,
    data_advice: str = "",
) -> State:
    """Train to the last epoch and leave `scratch` with best.pth and latest.pth: weights, epoch, top1.

    train_loader yields batches with `views` (N of them, which to_input takes), labels, video_ids and undecodable, of
    this process' share, anew after set_epoch(epoch, start=batches to leave out). lr_at gives the learning rate of a
    0-based global step; a parameter group's `lr_scale` multiplies it. `frozen` modules stay in eval mode. `about` is
    kept with each state: what the run was made of.

    If scratch holds states of an interrupted run, it goes on from the newest that is whole, and ends with the same bits
    as an undisturbed run where the device computes repeatably. SIGTERM and Ctrl-C save a state and leave with
    SystemExit.

    These are called in the first process alone: on_start, once the state is known; on_event with each event of the log
    and its global step; on_text with lines for people, and data_advice where an epoch waited for clips too long;
    on_step with how many steps of how many are done.

    Raises NonFiniteLoss; UserError if a batch does not fit into memory; CheckpointError if no saved state can be used.
    """
    model.to(device)
    frozen = list(frozen)
    _train_mode(model, frozen)
    run = Run(model, optimizer, plan, device, world, scratch, about or {})
    state = run.resume(on_text if world.is_first else lambda text: None)
    if not world.is_first:
        on_event, on_text, on_step = (lambda line, step: None), (lambda text: None), (lambda done, total: None)
    else:
        on_start(state)
    network: nn.Module = model
    if world.size > 1:
        network = _parallel(model, device)
    forward = torch.compile(network) if compiled else network

    steps_per_epoch = math.ceil(len(train_loader) / plan.accumulate)
    total_steps = plan.epochs * steps_per_epoch
    with _stop_noted(world) as asked_to_stop:
        for epoch in range(state.finished_epochs, plan.epochs):
            _train_mode(model, frozen)
            train_loader.set_epoch(epoch, start=state.finished_steps * plan.accumulate)
            began = time.perf_counter()
            for number, batches in enumerate(_groups(train_loader, plan.accumulate), state.finished_steps):
                step = epoch * steps_per_epoch + number
                run.note_undecodable(batches, on_text)
                lr = run.set_lr(lr_at(step))
                agreed = run.agree(batches, asked_to_stop.status)
                if agreed.batches:
                    data_time = time.perf_counter() - began
                    where = f"epoch {epoch + 1}, step {number + 1}, lr {lr:.3g}"
                    values = run.step(network, forward, to_input, agreed, where)
                    now = time.perf_counter()
                    run.note({"data_time": data_time} | values | {"time": now - began}, agreed)
                    began = now
                state.finished_steps = number + 1
                if (number + 1) % plan.log_interval == 0 and (means := run.take_window()):
                    line = {"mode": "train", "epoch": epoch + 1, "iter": number + 1, "lr": lr}
                    if device.type == "cuda":
                        line["memory"] = int(torch.cuda.max_memory_allocated(device) / 2**20)
                    on_event(line | means, step + 1)
                    on_text(_train_text(line, means, steps_per_epoch, (total_steps - step - 1) * means["time"]))
                on_step(step + 1, total_steps)
                if agreed.stop:
                    run.save()
                    on_text(_stopped_text(f"after epoch {epoch + 1}, step {number + 1}, and saved"))
                    raise SystemExit(agreed.stop)
                if agreed.save and number + 1 < steps_per_epoch:
                    run.save()
            means = run.totals.means(world)
            if not means:
                raise UserError("no training clip decoded: " + "; ".join(state.undecodable[:3]))
            on_text(_waiting_text(epoch + 1, means, data_advice))
            lr, is_last, is_best = lr_at((epoch + 1) * steps_per_epoch - 1), epoch + 1 == plan.epochs, False
            if (epoch + 1) % plan.val_interval == 0 or is_last:
                world.broadcast_buffers(model)
                if world.size > 1:
                    run.save()  # together: asked to stop amid a validation, each process leaves by itself
                try:
                    scores = _validate(run.averaged, val_loader, to_input, world, asked_to_stop)
                except SystemExit:
                    if world.size == 1:
                        run.save()
                    step = f"epoch {epoch + 1}, step {state.finished_steps}"
                    on_text(_stopped_text(f"amid the validation; saved after {step}"))
                    raise
                is_best = _note_validation(state, scores, epoch)
                step = (epoch + 1) * steps_per_epoch
                _tell_validation(state, scores, len(val_loader), lr, step, on_event, on_text)
            curve = {"loss": means["loss"], "top1": means["top1_acc"], "top5": means["top5_acc"]}
            state.train_curve.append({"epoch": epoch + 1, "lr": lr} | curve)
            state.finished_epochs, state.finished_steps = epoch + 1, 0
            run.forget_means()
            if is_best:
                run.save_weights("best.pth", state.best_epoch, state.best_top1)
            if is_last:
                run.save_weights("latest.pth", plan.epochs, state.val_curve[-1]["top1"])
            if is_best or is_last or (epoch + 1) % plan.checkpoint_interval == 0:
                run.save()
    return state


def _validate(model: nn.Module, loader, to_input, world: World, asked_to_stop: "_StopAsked") -> Scores:
    def leave_if_asked(done: int) -> None:
        if asked_to_stop.status:
            raise SystemExit(asked_to_stop.status)

    return evaluate(model, loader, to_input, on_batch=leave_if_asked, world=world)


def _note_validation(state: State, scores: Scores, epoch: int) -> bool:
    """Whether it is the best so far."""
    values = scores.accuracies()
    state.val_curve.append({"epoch": epoch + 1} | values)
    is_best = values["top1"] > state.best_top1
    if is_best:
        state.best_top1, state.best_epoch = values["top1"], epoch + 1
    return is_best


def _tell_validation(state: State, scores: Scores, batches: int, lr: float, step: int, on_event, on_text) -> None:
    for reason in scores.undecodable:
        on_text(f"validation lacks a clip that does not decode: {reason}")
    values = state.val_curve[-1]
    event = {"top1_acc": values["top1"], "top5_acc": values["top5"], "mean_class_accuracy": values["mean_class"]}
    on_event({"mode": "val", "epoch": values["epoch"], "iter": batches, "lr": lr} | event, step)
    said = ", ".join(f"{key}: {value:.4f}" for key, value in event.items())
    on_text(f"Epoch(val) [{values['epoch']}][{batches}]\t{said}")


class _StopAsked:
    """Whether a signal asked for the end."""

    def __init__(self, world: World):
        self.status = 0
        """What to leave with: 128 + the signal's number; 0 while nobody asked."""
        self._world = world
        self._interrupted_at: float | None = None

    def on_signal(self, number: int, _frame: object) -> None:
        self.status = self.status or 128 + number
        if number != signal.SIGINT:
            return
        now = time.monotonic()
        if self._interrupted_at is None:
            self._interrupted_at = now
            if self._world.is_first:  # print() may be at work already
                os.write(2, b"\nstopping: this step is finished and saved first; Ctrl-C once more ends at once\n")
            if self._world.size == 1:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
        elif now - self._interrupted_at >= _SAME_CTRL_C_SECONDS:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)


@contextlib.contextmanager
def _stop_noted(world: World) -> Iterator[_StopAsked]:
    """SIGTERM and Ctrl-C are noted, for the length of the block; a second Ctrl-C ends the process at once. Only the
    main thread may listen."""
    asked = _StopAsked(world)
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    if before[signal.SIGINT] is signal.SIG_IGN:  # started in the background: the terminal's Ctrl-C is not for us
        del before[signal.SIGINT]
    for number in before:
        signal.signal(number, asked.on_signal)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stopped_text(where: str) -> str:
    return f"stopped {where}; run the same command again to go on from there"


def _waiting_text(epoch: int, means: dict[str, float], advice: str) -> str:
    share = means["data_time"] / means["time"]
    text = f"Epoch [{epoch}]\twaited for clips {share:.1%} of the time"
    return f"{text}; {advice}" if advice and share > MAX_WAITING else text


def _parallel(model: nn.Module, device: torch.device) -> nn.Module:
    with warnings.catch_warnings():
        # torch 2.13 has another name for it, 2.10 does not know that one
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        ids = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)


def _train_mode(model: nn.Module, frozen: list[nn.Module]) -> None:
    model.train()
    for module in frozen:
        module.eval()


def _groups(loader, size: int) -> Iterator[list]:
    """Lists of `size` batches, the last one of what is left."""
    batches = iter(loader)
    while group := list(itertools.islice(batches, size)):
        yield group


def _train_text(line: dict[str, Any], means: dict[str, float], steps_per_epoch: int, left: float) -> str:
    memory = f"memory: {line['memory']}, " if "memory" in line else ""
    return (
        f"Epoch [{line['epoch']}][{line['iter']}/{steps_per_epoch}]\tlr: {line['lr']:.3e}, eta: {eta(left)}, "
        f"time: {means['time']:.3f}, data_time: {means['data_time']:.3f}, {memory}"
        f"top1_acc: {means['top1_acc']:.4f}, top5_acc: {means['top5_acc']:.4f}, "
        f"loss_cls: {means['loss_cls']:.4f}, loss: {means['loss']:.4f}, grad_norm: {means['grad_norm']:.4f}"
    )
