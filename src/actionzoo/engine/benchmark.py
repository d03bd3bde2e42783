"""How fast a network tests one video: all its views, model time alone."""

import statistics
import time

import torch
from torch import nn


@torch.inference_mode()
def inference_speed(
    model: nn.Module,
    clip_shape: tuple[int, int, int, int],
    *,
    num_views: int,
    device: torch.device,
    max_views: int = 10,
    warmup: int = 1,
    repeats: int = 5,
) -> dict[str, float | None]:
    """Videos per second on random input, one video of num_views clips (3, T, H, W) at a time; median over repeats.

    Also peak_memory_mb of the device's tensors; None where the device is no GPU.
    """
    model = model.to(device).eval()
    views = torch.randn(num_views, *clip_shape, device=device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    for repeat in range(warmup + repeats):
        _synchronise(device)
        began = time.perf_counter()
        for part in views.split(max_views):
            model(part)
        _synchronise(device)
        if repeat >= warmup:
            seconds.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
    return {"videos_per_second": 1 / statistics.median(seconds), "peak_memory_mb": peak}


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
