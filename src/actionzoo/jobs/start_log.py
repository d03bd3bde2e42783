"""What a training says of itself before its first step."""

import platform
from typing import Any

from ..job import RunFiles
from ..params import Params


def start_table(model, made: dict[str, Any], params: Params, device, world) -> list[str]:
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


def canary(model, training, to_network, precision: str) -> str:
    """A line on how close the chosen precision is to fp32, on two clips of this training; empty for fp32 itself."""
    from ..engine.precision import check_precision

    if precision == "fp32":
        return ""
    batch = next(iter(training))
    return check_precision(model, to_network(batch.views[:2]), precision)


def log_meta(made: dict[str, Any], files: RunFiles, steps_per_epoch: int) -> dict[str, Any]:
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


def training_summary(made: dict[str, Any]) -> str:
    return (
        f"{made['row']}: val top-1 {made['best_val_top1']:.4f} at epoch {made['best_epoch']} of "
        f"{made['recipe']['schedule']['epochs']}"
    )


def _environment(torch) -> str:
    cuda = f", CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}" if torch.cuda.is_available() else ""
    return (
        f"Python {platform.python_version()}, torch {torch.__version__}{cuda}, {platform.system()} {platform.machine()}"
    )
