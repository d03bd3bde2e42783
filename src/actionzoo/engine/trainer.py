"""One step of a training, over accumulated batches and all processes; and how a training is saved and resumed."""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..errors import UserError
from .checkpoint import CheckpointError, load_checkpoint, save_checkpoint, trained_weights
from .data import Batch, ToInput
from .distributed import World
from .metrics import top_k_accuracy
from .plan import Plan
from .precision import autocast, grad_scaler
from .state import Meter, State, StateFolder, rng_state, set_rng_state


class NonFiniteLoss(UserError):
    """The loss or the gradient is NaN or infinite; names the step and its clips."""


@dataclass(frozen=True)
class StepBatches:
    """What all processes have agreed to do in a step."""

    batches: list[Batch]
    """Of this process. A batch is left out in all processes if one of them has no clip of it."""
    num_clips: int
    """Clips in these batches, over all processes."""
    exit_status: int
    """Status to leave with after this step; 0 goes on."""
    is_save_due: bool
    """Whether to save a state after this step."""


class Trainer:
    """Everything that changes while a training runs: weights, optimizer, averages, counters."""

    def __init__(self, model: nn.Module, plan: Plan, folder: StateFolder, world: World):
        self._model, self._plan, self._folder, self._world = model, plan, folder, world
        self.device = next(model.parameters()).device
        self._optimizer = _sgd(model, plan)
        self._scaler = grad_scaler(plan.precision, self.device)
        self._ema = _ema(model, plan.ema) if plan.ema else None
        self._saved_at = time.monotonic()
        self.state, self.window, self.totals = State(), Meter(), Meter()

    @property
    def averaged(self) -> nn.Module:
        """The network that is validated and kept."""
        return self._ema.module if self._ema else self._model

    def set_lr(self, lr: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)

    def agree(self, batches: Sequence[Batch], exit_status: int) -> StepBatches:
        """Agree with the other processes on the batches of a step. Every process must call it."""
        is_due = time.monotonic() - self._saved_at >= self._plan.save_seconds
        counts = [float(len(batch.video_ids)) for batch in batches]
        gathered = self._world.gather_numbers([float(exit_status), float(is_due), *counts])
        usable = [number for number in range(len(batches)) if min(values[2 + number] for values in gathered) > 0]
        return StepBatches(
            batches=[batches[number] for number in usable],
            num_clips=int(sum(values[2 + number] for values in gathered for number in usable)),
            exit_status=int(max(values[0] for values in gathered)),
            is_save_due=bool(gathered[0][1]),
        )

    def step(
        self,
        network: nn.Module,
        forward: Callable[[Tensor], Tensor],
        to_input: ToInput,
        agreed: StepBatches,
        where: str,
    ) -> dict[str, float]:
        """Update the weights once, by the gradient of the mean loss over the clips of all processes.

        `network` is the model, wrapped if there are several processes; `forward` is `network`, compiled or not.
        Returns the means of top1_acc, top5_acc, loss_cls and loss over this process's clips, and grad_norm before
        clipping. Raises NonFiniteLoss, and UserError if a batch does not fit into memory; `where` names the step.
        """
        self._optimizer.zero_grad(set_to_none=True)
        loss_sum, logits, labels = 0.0, [], []
        try:
            for number, batch in enumerate(agreed.batches):
                is_last = number + 1 == len(agreed.batches)
                # processes exchange gradients with the last batch alone
                with contextlib.nullcontext() if is_last else _local_gradients(network):
                    with autocast(self._plan.precision, self.device):
                        scores = forward(to_input(batch.views))
                        loss = F.cross_entropy(scores.float(), batch.labels.to(self.device, non_blocking=True))
                    # DistributedDataParallel takes the mean over processes
                    share = len(batch.labels) * self._world.size / agreed.num_clips
                    self._scaler.scale(loss * share).backward()  # type: ignore[no-untyped-call]  # torch has no type
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
        mean_loss = loss_sum / sum(map(len, labels))
        return {"top1_acc": top1, "top5_acc": top5, "loss_cls": mean_loss, "loss": mean_loss, "grad_norm": grad_norm}

    def note(self, means: Mapping[str, float], agreed: StepBatches) -> None:
        """Count a step's values in the means of the log window and of the epoch."""
        count = sum(len(batch.labels) for batch in agreed.batches)
        self.window.add(means, count)
        self.totals.add(means, count)

    def take_window(self) -> dict[str, float]:
        """Return the means since the last call, and start a new window; empty if no clip decoded."""
        means, self.window = self.window.means(self._world), Meter()
        return means

    def forget_means(self) -> None:
        self.window, self.totals = Meter(), Meter()

    def note_undecodable(self, batches: Iterable[Batch], on_text: Callable[[str], None]) -> None:
        """Keep and report the clips that did not decode, each once."""
        for reason in (reason for batch in batches for reason in batch.undecodable):
            if reason not in self.state.undecodable:
                self.state.undecodable.append(reason)
                on_text(f"left out, does not decode: {reason}")

    def save_weights(self, name: str, epoch: int, top1: float) -> None:
        """Write the validated network's weights into the folder, in the first process."""
        if self._world.is_first:
            save_checkpoint(self._folder.path / name, trained_weights(self.averaged, epoch, top1))

    def save(self) -> None:
        """Save everything that the next step depends on. Every process must call it."""
        rngs = self._world.gather(rng_state())
        if self._world.is_first:
            content = {
                "about": dict(self._folder.about),
                "model": self._model.state_dict(),
                "ema": self._ema.state_dict() if self._ema else None,
                "optimizer": self._optimizer.state_dict(),
                "scaler": self._scaler.state_dict(),
                "state": vars(self.state),
                "window": vars(self.window),
                "totals": vars(self.totals),
                "rngs": rngs,
            }
            path = self._folder.state_path(self.state)
            save_checkpoint(path, content)
            self._folder.on_saved(path, self.state)
            self._folder.keep_newest(self._plan.keep_states)
        self._saved_at = time.monotonic()

    def resume(self, on_text: Callable[[str], None]) -> State:
        """Load the newest saved state that is whole, if there is one; report each that is damaged.

        Raises CheckpointError if there are saved states and none of them can be used.
        """
        faults: list[str] = []
        for path in self._folder.saved_states():
            try:
                self._load(load_checkpoint(path, self.device), path)
            except (CheckpointError, FileNotFoundError) as error:
                faults.append(str(error))
                continue
            for fault in faults:
                on_text(f"warning: {fault}; going on from {path.name}, the state before it")
            return self.state
        if faults:
            raise CheckpointError(
                f"no saved state can be used: {'; '.join(faults)}; delete {self._folder.path} to start over"
            )
        return self.state

    def _load(self, saved: Mapping[str, Any], path: Path) -> None:
        try:
            self._model.load_state_dict(saved["model"])
            if self._ema:
                self._ema.load_state_dict(saved["ema"])
            self._optimizer.load_state_dict(saved["optimizer"])
            self._scaler.load_state_dict(saved["scaler"])
            self.state = State(**saved["state"])
            self.window, self.totals = Meter(**saved["window"]), Meter(**saved["totals"])
            if self._world.rank < len(saved["rngs"]):
                set_rng_state(saved["rngs"][self._world.rank])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path} does not fit this training ({str(error).splitlines()[0]})") from None

    def _check_finite(self, loss_sum: float, grad_norm: float, agreed: StepBatches, where: str) -> None:
        # with scaled losses an infinite gradient is a step left out, and the scale is lowered
        is_bad = not math.isfinite(loss_sum) or not (self._scaler.is_enabled() or math.isfinite(grad_norm))
        if not any(values[0] for values in self._world.gather_numbers([float(is_bad)])):
            return
        names = [name for batch in agreed.batches for name in batch.video_ids] if is_bad else []
        names = [name for gathered in self._world.gather(names) for name in gathered]
        what = f"loss is {loss_sum}" if not math.isfinite(loss_sum) else f"gradient has norm {grad_norm}"
        kept = self._folder.saved_states()
        raise NonFiniteLoss(
            f"{what} at {where}, clips {', '.join(names)}; "
            + (f"the last good state is {kept[0]}" if kept else "no state was saved yet")
            + ". Lower optim.lr or optim.max_grad_norm, or lengthen schedule.warmup_epochs; look at these clips"
        )


def _local_gradients(network: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Accumulate gradients in this process, without sending them."""
    return network.no_sync() if isinstance(network, DistributedDataParallel) else contextlib.nullcontext()


def _sgd(model: nn.Module, plan: Plan) -> torch.optim.SGD:
    """SGD. The backbone is a parameter group of its own only where its learning rate differs from the head's."""
    groups: list[dict[str, Any]] = [{"params": list(model.parameters())}]
    if plan.backbone_lr_scale != 1:
        head = [p for name, p in model.named_parameters() if not name.startswith("backbone.")]
        backbone = [p for name, p in model.named_parameters() if name.startswith("backbone.")]
        groups = [{"params": backbone, "lr_scale": plan.backbone_lr_scale}, {"params": head}]
    return torch.optim.SGD(groups, lr=plan.schedule.lr, momentum=plan.momentum, weight_decay=plan.weight_decay)


def _ema(model: nn.Module, decay: float) -> AveragedModel:
    average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]  # torch has no type
    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)


def _out_of_memory(agreed: StepBatches, where: str, error: Exception) -> str:
    sizes = " + ".join(str(len(batch.video_ids)) for batch in agreed.batches)
    return (
        f"the GPU's memory does not hold {sizes} clips, at {where} ({str(error).splitlines()[0]}). Lower "
        "optim.videos_per_gpu and raise optim.accumulate by as much, or set runtime.precision to bf16; what is saved "
        "stays, run again"
    )
