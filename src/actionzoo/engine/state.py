"""A training's state: what a step needs, and how it is saved and found again."""

import contextlib
import math
import random
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..errors import UserError
from .checkpoint import CheckpointError, load_checkpoint, save_checkpoint, trained_weights
from .distributed import World
from .metrics import top_k_accuracy
from .precision import Precision, autocast, grad_scaler


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


class Run:
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


def _out_of_memory(agreed: _Agreed, where: str, error: Exception) -> str:
    sizes = " + ".join(str(len(batch.video_ids)) for batch in agreed.batches)
    return (
        f"the GPU's memory does not hold {sizes} clips, at {where} ({str(error).splitlines()[0]}). Lower "
        "optim.videos_per_gpu and raise optim.accumulate by as much, or set runtime.precision to bf16; what is saved "
        "stays, run again"
    )
