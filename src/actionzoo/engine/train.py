"""The training loop: SGD, clipped gradients, validation, and a state on the disk from which a killed run goes on."""

import itertools
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from actionzoo.errors import UserError

from .checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from .evaluate import evaluate
from .logs import eta
from .metrics import top_k_accuracy

MAX_WAITING = 0.2
"""Share of an epoch's time that may go by waiting for clips before the log says what to change."""


class NonFiniteLoss(UserError):
    """The loss left the numbers; names the step and its clips."""


@dataclass
class State:
    """What a run knows between epochs besides model and optimiser."""

    finished_epochs: int = 0
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
    device: torch.device,
    lr_at: Callable[[int], float],
    momentum: float,
    weight_decay: float,
    max_grad_norm: float,
    accumulate: int,
    epochs: int,
    val_interval: int,
    checkpoint_interval: int,
    log_interval: int,
    scratch: Path,
    on_start: Callable[[State], None],
    on_event: Callable[[dict[str, Any], int], None],
    on_text: Callable[[str], None],
    data_advice: str = "",
) -> State:
    """Train to the last epoch and leave `scratch` with best.pth and latest.pth: weights, epoch, top1.

    train_loader yields batches with `views` (N of them, which to_input takes), labels, video_ids and undecodable, anew
    after set_epoch(epoch). Each step takes `accumulate` of them, as if they were one; only batch norm sees them one by
    one.
    lr_at gives the learning rate of a 0-based global step. If scratch holds the state of an
    interrupted run, it goes on after that run's last saved epoch. on_start hears the state once it is known; on_event
    gets each event of the log with its global step; on_text lines for people, with data_advice where an epoch waited
    for clips too long.

    Raises NonFiniteLoss; CheckpointError if the saved state is damaged.
    """
    model.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr_at(0), momentum=momentum, weight_decay=weight_decay)
    state = _resume(scratch, model, optimizer, device)
    on_start(state)
    steps_per_epoch = math.ceil(len(train_loader) / accumulate)
    for epoch in range(state.finished_epochs, epochs):
        train_loader.set_epoch(epoch)
        model.train()
        meter, totals = _Meter(), _Meter()
        began = time.perf_counter()
        for number, batches in enumerate(_groups(train_loader, accumulate)):
            _note_undecodable(batches, state, on_text)
            batches = [batch for batch in batches if batch.video_ids]
            if not batches:
                continue
            step = epoch * steps_per_epoch + number
            data_time = time.perf_counter() - began
            for group in optimizer.param_groups:
                group["lr"] = lr_at(step)
            optimizer.zero_grad(set_to_none=True)
            value, logits, labels = _accumulate_gradients(model, batches, to_input, device)
            grad_norm = nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
            if not math.isfinite(value):
                names = [name for batch in batches for name in batch.video_ids]
                raise NonFiniteLoss(
                    f"loss is {value} at epoch {epoch + 1}, step {number + 1}, lr {lr_at(step):.3g}, clips "
                    f"{', '.join(names)}; the state after epoch {state.finished_epochs} is kept. Lower "
                    "optim.lr or max_grad_norm, or lengthen schedule.warmup_epochs"
                )
            optimizer.step()
            top1, top5 = top_k_accuracy(logits, labels, (1, 5))
            now = time.perf_counter()
            values = {
                "data_time": data_time,
                "top1_acc": top1,
                "top5_acc": top5,
                "loss_cls": value,
                "loss": value,
                "grad_norm": grad_norm.item(),
                "time": now - began,
            }
            began = now
            meter.add(values, len(labels))
            totals.add(values, len(labels))
            if (number + 1) % log_interval == 0:
                means, meter = meter.means(), _Meter()
                line = {"mode": "train", "epoch": epoch + 1, "iter": number + 1, "lr": lr_at(step)}
                if device.type == "cuda":
                    line["memory"] = int(torch.cuda.max_memory_allocated(device) / 2**20)
                on_event(line | means, step + 1)
                left = (epochs * steps_per_epoch - step - 1) * means["time"]
                on_text(_train_text(line, means, steps_per_epoch, left))
        if not totals.count:
            raise UserError("no training clip decoded: " + "; ".join(state.undecodable[:3]))
        means = totals.means()
        on_text(_waiting_text(epoch + 1, means, data_advice))
        state.train_curve.append(
            {
                "epoch": epoch + 1,
                "lr": lr_at((epoch + 1) * steps_per_epoch - 1),
                "loss": means["loss"],
                "top1": means["top1_acc"],
                "top5": means["top5_acc"],
            }
        )
        is_last = epoch + 1 == epochs
        is_best = False
        if (epoch + 1) % val_interval == 0 or is_last:
            is_best = _validate(
                model,
                val_loader,
                to_input,
                state,
                epoch,
                lr_at((epoch + 1) * steps_per_epoch - 1),
                (epoch + 1) * steps_per_epoch,
                on_event,
                on_text,
            )
        state.finished_epochs = epoch + 1
        if is_best:
            save_checkpoint(scratch / "best.pth", _weights(model, state.best_epoch, state.best_top1))
        if is_last:
            save_checkpoint(scratch / "latest.pth", _weights(model, epochs, state.val_curve[-1]["top1"]))
        if is_best or is_last or (epoch + 1) % checkpoint_interval == 0:
            save_checkpoint(scratch / "state.pth", _snapshot(model, optimizer, state))
    return state


def _validate(model, val_loader, to_input, state: State, epoch: int, lr: float, step: int, on_event, on_text) -> bool:
    scores = evaluate(model, val_loader, to_input)
    for reason in scores.undecodable:
        on_text(f"validation lacks a clip that does not decode: {reason}")
    values = scores.accuracies()
    state.val_curve.append({"epoch": epoch + 1} | values)
    event = {"top1_acc": values["top1"], "top5_acc": values["top5"], "mean_class_accuracy": values["mean_class"]}
    on_event({"mode": "val", "epoch": epoch + 1, "iter": len(val_loader), "lr": lr} | event, step)
    on_text(
        f"Epoch(val) [{epoch + 1}][{len(val_loader)}]\t"
        + ", ".join(f"{key}: {value:.4f}" for key, value in event.items())
    )
    is_best = values["top1"] > state.best_top1
    if is_best:
        state.best_top1, state.best_epoch = values["top1"], epoch + 1
    return is_best


def _weights(model: nn.Module, epoch: int, top1: float) -> dict[str, Any]:
    """What a finished checkpoint holds. No clock, no run id: equal trainings give equal files."""
    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    return {"meta": {"epoch": epoch, "val_top1": top1}, "state_dict": weights}


def _snapshot(model: nn.Module, optimizer: torch.optim.Optimizer, state: State) -> dict[str, Any]:
    version, numbers, gauss = random.getstate()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "state": vars(state),
        "rng": {
            "torch": torch.get_rng_state(),
            "python": [version, list(numbers), gauss],
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        },
    }


def _resume(scratch: Path, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> State:
    try:
        saved = load_checkpoint(scratch / "state.pth", device)
    except FileNotFoundError:
        return State()
    try:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        state = State(**saved["state"])
        torch.set_rng_state(saved["rng"]["torch"].cpu())
        version, numbers, gauss = saved["rng"]["python"]
        random.setstate((version, tuple(numbers), gauss))
        if torch.cuda.is_available() and saved["rng"]["cuda"]:
            torch.cuda.set_rng_state_all([rng.cpu() for rng in saved["rng"]["cuda"]])
    except (KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{scratch / 'state.pth'} does not fit this training ({str(error).splitlines()[0]}); "
            f"delete {scratch} to start over"
        ) from None
    return state


def _groups(loader, size: int) -> Iterator[list]:
    """Lists of `size` batches, the last one of what is left."""
    batches = iter(loader)
    while group := list(itertools.islice(batches, size)):
        yield group


def _accumulate_gradients(
    model: nn.Module, batches: list, to_input: Callable[[Sequence], Tensor], device: torch.device
) -> tuple[float, Tensor, Tensor]:
    """Gradients of the mean loss over all clips of the batches; gives that loss, and logits and labels on the CPU."""
    labels = torch.cat([batch.labels for batch in batches])
    value, logits = 0.0, []
    for batch in batches:
        scores = model(to_input(batch.views))
        loss = F.cross_entropy(scores, batch.labels.to(device, non_blocking=True)) * (len(batch.labels) / len(labels))
        loss.backward()
        value += loss.item()
        logits.append(scores.detach().float().cpu())
    return value, torch.cat(logits), labels


def _note_undecodable(batches: list, state: State, on_text) -> None:
    for reason in (reason for batch in batches for reason in batch.undecodable):
        if reason not in state.undecodable:
            state.undecodable.append(reason)
            on_text(f"left out, does not decode: {reason}")


def _train_text(line: dict[str, Any], means: dict[str, float], steps_per_epoch: int, left: float) -> str:
    memory = f"memory: {line['memory']}, " if "memory" in line else ""
    return (
        f"Epoch [{line['epoch']}][{line['iter']}/{steps_per_epoch}]\tlr: {line['lr']:.3e}, eta: {eta(left)}, "
        f"time: {means['time']:.3f}, data_time: {means['data_time']:.3f}, {memory}"
        f"top1_acc: {means['top1_acc']:.4f}, top5_acc: {means['top5_acc']:.4f}, "
        f"loss_cls: {means['loss_cls']:.4f}, loss: {means['loss']:.4f}, grad_norm: {means['grad_norm']:.4f}"
    )


def _waiting_text(epoch: int, means: dict[str, float], advice: str) -> str:
    share = means["data_time"] / means["time"]
    text = f"Epoch [{epoch}]\twaited for clips {share:.1%} of the time"
    return f"{text}; {advice}" if advice and share > MAX_WAITING else text


class _Meter:
    """Means of named values, weighted by samples."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self.count = 0

    def add(self, values: dict[str, float], count: int) -> None:
        for key, value in values.items():
            self._sums[key] = self._sums.get(key, 0.0) + value * count
        self.count += count

    def means(self) -> dict[str, float]:
        return {key: value / self.count for key, value in self._sums.items()}
