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
import random
import re
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from actionzoo.errors import UserError

from .checkpoint import CheckpointError, load_checkpoint, save_checkpoint, trained_weights
from .distributed import World
from .evaluate import Scores, evaluate
from .logs import eta
from .metrics import top_k_accuracy
from .precision import Precision, autocast, grad_scaler

MAX_WAITING = 0.2
"""Share of an epoch's time that may go by waiting for clips before the log says what to change."""

_SAME_CTRL_C_SECONDS = 3.0
"""torchrun hands Ctrl-C on to copies that have had it from the terminal: so soon after, it is no second one."""


class NonFiniteLoss(UserError):
    """The loss left the numbers; names the step and its clips."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Numbers of a training. The first block shapes its result, the second does not beyond rounding."""

    epochs: int
    accumulate: int
    """Batches of a process whose gradients make one step."""
    max_grad_norm: float
    val_interval: int
    """Epochs."""
    log_interval: int
    """Steps."""
    ema: float = 0.0
    """Decay per step of averaged weights, which are then the ones that are validated and kept; 0 for none."""

    checkpoint_interval: int
    """Epochs from one saved state to the next, at most."""
    save_seconds: float = math.inf
    """Seconds from one saved state to the next, at most; it may be amid an epoch."""
    keep_states: int = 2
    """Older ones are there for the case that the newest is damaged."""
    precision: Precision = "fp32"


@dataclass
class Meter:
    """Sums of named values over clips."""

    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0

    def add(self, values: dict[str, float], count: int) -> None:
        for key, value in values.items():
            self.sums[key] = self.sums.get(key, 0.0) + value * count
        self.count += count

    def means(self, world: World) -> dict[str, float]:
        """Over the clips of all processes; empty if there were none."""
        heard = world.gather_numbers([float(self.count), *self.sums.values()])
        count, *sums = (sum(told) for told in zip(*heard, strict=True))
        return {key: value / count for key, value in zip(self.sums, sums, strict=True)}


@dataclass
class State:
    """What a run knows beside weights and optimiser."""

    finished_epochs: int = 0
    finished_steps: int = 0
    """Of the epoch that is not finished."""
    best_top1: float = -1.0
    best_epoch: int = 0
    train_curve: list[dict[str, float]] = field(default_factory=list)
    """One line per epoch: epoch, lr, loss, top1, top5."""
    val_curve: list[dict[str, float]] = field(default_factory=list)
    """One line per validation: epoch, top1, top5, mean_class."""
    undecodable: list[str] = field(default_factory=list)
    """Clips that did not decode, each once."""


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
    run = _Run(model, optimizer, plan, device, world, scratch, about or {})
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


def saved_states(scratch: Path) -> list[Path]:
    """Saved states, the newest first."""
    return sorted((path for path in scratch.glob("state-*.pth") if _STATE.fullmatch(path.name)), reverse=True)


_STATE = re.compile(r"state-\d{5}-\d{7}\.pth")


@dataclass(frozen=True)
class _Agreed:
    """What all processes do in a step."""

    batches: list
    """Of this process; those left out of which some process has no clip."""
    num_clips: int
    """In these batches, of all processes."""
    stop: int
    """The status to leave with, 0 to go on."""
    save: bool


class _Run:
    """All that changes while a training runs."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        plan: Plan,
        device: torch.device,
        world: World,
        scratch: Path,
        about: dict[str, Any],
    ):
        self._model, self._optimizer, self._plan, self._device = model, optimizer, plan, device
        self._world, self._scratch, self._about = world, scratch, about
        self._scaler = grad_scaler(plan.precision, device)
        self._ema = (
            AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(plan.ema), use_buffers=True) if plan.ema else None
        )
        self._saved_at = time.monotonic()
        self.state, self.window, self.totals = State(), Meter(), Meter()

    @property
    def averaged(self) -> nn.Module:
        """The network that is validated and kept."""
        return self._ema.module if self._ema else self._model

    def set_lr(self, lr: float) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        return lr

    def agree(self, batches: list, stop: int) -> _Agreed:
        """The batches that all processes have clips of, and whether to save or stop after them."""
        is_due = time.monotonic() - self._saved_at >= self._plan.save_seconds
        counts = [float(len(batch.video_ids)) for batch in batches]
        heard = self._world.gather_numbers([float(stop), float(is_due), *counts])
        usable = [number for number in range(len(batches)) if min(told[2 + number] for told in heard) > 0]
        return _Agreed(
            batches=[batches[number] for number in usable],
            num_clips=int(sum(told[2 + number] for told in heard for number in usable)),
            stop=int(max(told[0] for told in heard)),
            save=bool(heard[0][1]),
        )

    def step(self, network: nn.Module, forward, to_input, agreed: _Agreed, where: str) -> dict[str, float]:
        """One update of the weights; gives means over this process' clips. Gradients are those of the mean loss over
        all clips of all processes."""
        self._optimizer.zero_grad(set_to_none=True)
        loss_sum, logits, labels = 0.0, [], []
        try:
            for number, batch in enumerate(agreed.batches):
                is_last = number + 1 == len(agreed.batches)
                # processes exchange gradients with the last batch alone
                quiet = network.no_sync() if self._world.size > 1 and not is_last else contextlib.nullcontext()
                with quiet:
                    with autocast(self._plan.precision, self._device):
                        scores = forward(to_input(batch.views))
                        loss = F.cross_entropy(scores.float(), batch.labels.to(self._device, non_blocking=True))
                    # DistributedDataParallel takes the mean over processes
                    share = len(batch.labels) * self._world.size / agreed.num_clips
                    self._scaler.scale(loss * share).backward()
                loss_sum += loss.item() * len(batch.labels)
                logits.append(scores.detach().float().cpu())
                labels.append(batch.labels)
        except torch.OutOfMemoryError as error:
            raise UserError(_out_of_memory(agreed, where, error)) from None
        self._scaler.unscale_(self._optimizer)
        grad_norm = nn.utils.clip_grad_norm_(self._model.parameters(), self._plan.max_grad_norm).item()
        self._check_finite(loss_sum, grad_norm, agreed, where)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._ema:
            self._ema.update_parameters(self._model)
        top1, top5 = top_k_accuracy(torch.cat(logits), torch.cat(labels), (1, 5))
        loss = loss_sum / sum(map(len, labels))
        return {"top1_acc": top1, "top5_acc": top5, "loss_cls": loss, "loss": loss, "grad_norm": grad_norm}

    def note(self, values: dict[str, float], agreed: _Agreed) -> None:
        count = sum(len(batch.labels) for batch in agreed.batches)
        self.window.add(values, count)
        self.totals.add(values, count)

    def take_window(self) -> dict[str, float]:
        """Means since the last call; empty if no clip decoded."""
        means, self.window = self.window.means(self._world), Meter()
        return means

    def forget_means(self) -> None:
        self.window, self.totals = Meter(), Meter()

    def note_undecodable(self, batches: list, on_text) -> None:
        for reason in (reason for batch in batches for reason in batch.undecodable):
            if reason not in self.state.undecodable:
                self.state.undecodable.append(reason)
                on_text(f"left out, does not decode: {reason}")

    def save_weights(self, name: str, epoch: int, top1: float) -> None:
        if self._world.is_first:
            save_checkpoint(self._scratch / name, trained_weights(self.averaged, epoch, top1))

    def save(self) -> None:
        """All that the next step depends on. Every process has to call it."""
        rngs = self._world.gather(_rng_state())
        if self._world.is_first:
            name = f"state-{self.state.finished_epochs:05d}-{self.state.finished_steps:07d}.pth"
            content = {
                "about": self._about,
                "model": self._model.state_dict(),
                "ema": self._ema.state_dict() if self._ema else None,
                "optimizer": self._optimizer.state_dict(),
                "scaler": self._scaler.state_dict(),
                "state": vars(self.state),
                "window": vars(self.window),
                "totals": vars(self.totals),
                "rngs": rngs,
            }
            save_checkpoint(self._scratch / name, content)
            for path in saved_states(self._scratch)[self._plan.keep_states :]:
                path.unlink(missing_ok=True)
        self._saved_at = time.monotonic()

    def resume(self, on_text) -> State:
        """Take over the newest saved state that is whole. Raises CheckpointError if there are some and none is."""
        faults = []
        for path in saved_states(self._scratch):
            try:
                self._take_over(load_checkpoint(path, self._device), path)
            except (CheckpointError, FileNotFoundError) as error:
                faults.append(str(error))
                continue
            for fault in faults:
                on_text(f"warning: {fault}; going on from {path.name}, the state before it")
            return self.state
        if faults:
            raise CheckpointError(
                f"no saved state can be used: {'; '.join(faults)}; delete {self._scratch} to start over"
            )
        return self.state

    def _take_over(self, saved: dict[str, Any], path: Path) -> None:
        try:
            self._model.load_state_dict(saved["model"])
            if self._ema:
                self._ema.load_state_dict(saved["ema"])
            self._optimizer.load_state_dict(saved["optimizer"])
            self._scaler.load_state_dict(saved["scaler"])
            self.state = State(**saved["state"])
            self.window, self.totals = Meter(**saved["window"]), Meter(**saved["totals"])
            if self._world.rank < len(saved["rngs"]):
                _set_rng_state(saved["rngs"][self._world.rank])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path} does not fit this training ({str(error).splitlines()[0]})") from None

    def _check_finite(self, loss_sum: float, grad_norm: float, agreed: _Agreed, where: str) -> None:
        # with scaled losses an infinite gradient is a step left out, and the scale is lowered
        is_bad = not math.isfinite(loss_sum) or not (self._scaler.is_enabled() or math.isfinite(grad_norm))
        if not any(told[0] for told in self._world.gather_numbers([float(is_bad)])):
            return
        names = [name for batch in agreed.batches for name in batch.video_ids] if is_bad else []
        names = [name for told in self._world.gather(names) for name in told]
        what = f"loss is {loss_sum}" if not math.isfinite(loss_sum) else f"gradient has norm {grad_norm}"
        kept = saved_states(self._scratch)
        raise NonFiniteLoss(
            f"{what} at {where}, clips {', '.join(names)}; "
            + (f"the last good state is {kept[0]}" if kept else "no state was saved yet")
            + ". Lower optim.lr or optim.max_grad_norm, or lengthen schedule.warmup_epochs; look at these clips"
        )


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


def _rng_state() -> dict[str, Any]:
    version, numbers, gauss = random.getstate()
    cuda = torch.cuda.get_rng_state().cpu() if torch.cuda.is_available() else None
    return {"torch": torch.get_rng_state(), "python": [version, list(numbers), gauss], "cuda": cuda}


def _set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"].cpu())
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    if torch.cuda.is_available() and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"].cpu())


def _groups(loader, size: int) -> Iterator[list]:
    """Lists of `size` batches, the last one of what is left."""
    batches = iter(loader)
    while group := list(itertools.islice(batches, size)):
        yield group


def _out_of_memory(agreed: _Agreed, where: str, error: Exception) -> str:
    sizes = " + ".join(str(len(batch.video_ids)) for batch in agreed.batches)
    return (
        f"the GPU's memory does not hold {sizes} clips, at {where} ({str(error).splitlines()[0]}). Lower "
        "optim.videos_per_gpu and raise optim.accumulate by as much, or set runtime.precision to bf16; what is saved "
        "stays, run again"
    )


def _train_text(line: dict[str, Any], means: dict[str, float], steps_per_epoch: int, left: float) -> str:
    memory = f"memory: {line['memory']}, " if "memory" in line else ""
    return (
        f"Epoch [{line['epoch']}][{line['iter']}/{steps_per_epoch}]\tlr: {line['lr']:.3e}, eta: {eta(left)}, "
        f"time: {means['time']:.3f}, data_time: {means['data_time']:.3f}, {memory}"
        f"top1_acc: {means['top1_acc']:.4f}, top5_acc: {means['top5_acc']:.4f}, "
        f"loss_cls: {means['loss_cls']:.4f}, loss: {means['loss']:.4f}, grad_norm: {means['grad_norm']:.4f}"
    )
