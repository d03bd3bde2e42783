"""What a training reports: the table before its first step, both logs, the progress bar."""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..engine.distributed import World
from ..engine.listener import Event, Listener
from ..engine.logs import RunLog
from ..engine.precision import check_precision
from ..engine.state import State
from ..job import Job
from ..records import RunRecord

if TYPE_CHECKING:
    from ..clips.inputs import ToInput
    from ..clips.loader import TrainLoader


@dataclass
class TrainingReport(Listener):
    """The listener of the first process."""

    job: Job
    fingerprint: str
    """RunRecord's."""
    steps_per_epoch: int
    lines: list[str]
    """Logged once, before the first step."""
    log: RunLog
    on_progress: Callable[[str, int, int], None]

    def on_start(self, state: State) -> None:
        meta = _log_meta(self.job, self.fingerprint, self.steps_per_epoch)
        self.log.begin(meta, state.finished_epochs, state.finished_steps)
        if state.finished_epochs or state.finished_steps:
            step = f", step {state.finished_steps}" if state.finished_steps else ""
            self.on_text(f"resuming an interrupted training after epoch {state.finished_epochs}{step}")
        for line in self.lines:
            self.on_text(line)

    def on_event(self, event: Event, step: int) -> None:
        self.log.event(event)

    def on_text(self, text: str) -> None:
        print(text, flush=True)
        self.log.say(text)

    def on_step(self, done: int, total: int) -> None:
        self.on_progress(self.job.model, done, total)


def start_table(network: nn.Module, job: Job, record: RunRecord, device: torch.device, world: World) -> list[str]:
    """What is really in force, for people who start days of training. The network is in training mode."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm3d)]
    fixed = sum(not norm.weight.requires_grad for norm in norms)
    evaluating = sum(not norm.training for norm in norms)
    kinds = {"local": "their own batch", "sync": "the batches of all processes", "ghost": "parts of the batch"}
    parameters = list(network.parameters())
    count = sum(p.numel() for p in parameters) / 1e6
    learning = sum(p.numel() for p in parameters if p.requires_grad) / 1e6
    recipe, runtime, optim = job.recipe, job.runtime, job.recipe.optim
    why = "as in the recipe, optim.scale_lr is off"
    if optim.scale_lr:
        why = f"{optim.lr} x {record.batch} / {record.reference_batch} videos"
    switches = {
        "channels last": runtime.channels_last,
        "compiled": runtime.compile,
        "deterministic": runtime.deterministic,
        f"averaged weights, decay {optim.ema}": optim.ema > 0,
    }
    how = ", ".join([runtime.precision, *(name for name, is_on in switches.items() if is_on)])
    lines = [
        f"model      {record.model} on {record.dataset}: {record.train_clips} training and {record.val_clips} "
        f"validation clips, {len(record.classes)} classes",
        f"network    {count:.2f} M parameters, {learning:.2f} M of them learn",
        f"norms      {len(norms)}: {len(norms) - evaluating} see {kinds[optim.batch_norm]}, {evaluating} use stored "
        f"statistics, {fixed} have frozen weights",
        f"learning   lr {record.lr:.6g} ({why})",
        f"batch      {record.batch} = {world.size} processes x {optim.videos_per_gpu} videos x "
        f"{optim.accumulate} accumulated; published: {job.written.optim.videos_per_gpu} a GPU",
        f"precision  {how}",
        f"device     {_device_text(device)}; torch {torch.__version__}, cuDNN {_cudnn_version()}",
    ]
    if fixed == len(norms) and recipe.init.weights is None:
        lines.append("warning    batch norm is frozen and there are no weights to start from: nothing normalises")
    if record.overrides:
        lines.append(f"overrides  of datasets.{record.dataset}, which make the accuracy one of another recipe:")
        lines += [f"           {override}" for override in record.overrides]
    return lines


def precision_check(network: nn.Module, training: "TrainLoader", to_input: "ToInput", job: Job) -> list[str]:
    """A line on how close the chosen precision is to fp32, on two clips of this training; none for fp32 itself."""
    if job.runtime.precision == "fp32":
        return []
    batch = next(iter(training))
    return [check_precision(network, to_input(batch.views[:2]), job.runtime.precision)]


def device_name(device: torch.device) -> str:
    """The name of a GPU; '' for a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""


def _device_text(device: torch.device) -> str:
    return device_name(device) or f"cpu ({platform.machine()})"


def _cudnn_version() -> int | None:
    version: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]  # torch has no type for it
    return version


def _log_meta(job: Job, fingerprint: str, steps_per_epoch: int) -> dict[str, object]:
    """The first line of log.json: MMAction2's keys, and by the fingerprint the log is found again (run_files)."""
    return {
        "env_info": _environment(),
        "seed": job.recipe.seed,
        "config_name": job.model,
        "work_dir": str(job.files.run),
        "exp_name": job.model,
        "hook_msgs": {},
        "iters_per_epoch": steps_per_epoch,
        "dataset": job.dataset,
        "fingerprint": fingerprint,
    }


def _environment() -> str:
    cuda = f", CUDA {torch.version.cuda}, cuDNN {_cudnn_version()}" if torch.cuda.is_available() else ""
    return (
        f"Python {platform.python_version()}, torch {torch.__version__}{cuda}, {platform.system()} {platform.machine()}"
    )
