"""What a network costs: the time of testing a video, the memory of that and of training.

A video is one batch of all its views, as it is tested; time is the network's alone, from the views on the device to the
averaged scores in the host's memory.
"""

import contextlib
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .precision import Precision, autocast, grad_scaler
from .views import average_views


def seconds_per_video(
    model: nn.Module,
    clip_shape: tuple[int, int, int, int],
    *,
    num_views: int,
    average_clips: Literal["prob", "score"],
    device: torch.device,
    precision: Precision = "fp32",
    layout: torch.memory_format = torch.contiguous_format,
    max_views: int = 10,
    warmup: int = 2,
    most: int = 10,
    seconds: float = 2.0,
) -> list[float]:
    """Time `model` on videos of num_views random clips (3, T, H, W): the seconds of each, one after another.

    `most` after `warmup` others; fewer, but three, where they take longer than `seconds`. Each stands between two
    synchronisations and counts once. The model is left on the device, in eval mode.
    """
    test = video_timer(
        model,
        clip_shape,
        num_views=num_views,
        average_clips=average_clips,
        device=device,
        precision=precision,
        layout=layout,
        max_views=max_views,
    )
    times: list[float] = []
    for number in range(warmup + most):
        took = test()
        if number >= warmup:
            times.append(took)
        if len(times) >= 3 and sum(times) > seconds:
            break
    return times


def video_timer(
    model: nn.Module,
    clip_shape: tuple[int, int, int, int],
    *,
    num_views: int,
    average_clips: Literal["prob", "score"],
    device: torch.device,
    precision: Precision = "fp32",
    layout: torch.memory_format = torch.contiguous_format,
    max_views: int = 10,
) -> Callable[[], float]:
    """A function that tests one video of num_views random clips (3, T, H, W), and gives its seconds.

    They stand between two synchronisations. The model is left on the device, in eval mode.
    """
    model = model.to(device).eval()
    views = torch.randn(min(num_views, max_views), *clip_shape, device=device).contiguous(memory_format=layout)

    def test() -> float:
        _synchronise(device)
        began = time.perf_counter()
        _test(model, views, num_views, average_clips, device, precision)
        _synchronise(device)
        return time.perf_counter() - began

    return test


@dataclass(frozen=True)
class Pass:
    """A pass over real clips, from their bytes to their scores."""

    clips: int
    seconds: float


@dataclass(frozen=True)
class Turns:
    """The network alone and passes over real clips, measured in turns: both meet whatever else the machine does."""

    alone: list[float]
    """Seconds of each video."""
    passes: list[Pass]

    @property
    def with_decoding(self) -> list[float]:
        """Seconds of a video, on average over each pass."""
        return [each.seconds / each.clips for each in self.passes]

    @property
    def machine_was_busy(self) -> bool:
        """Either decoding made the network faster, which cannot be, or the times differ too much to tell."""
        samples = [self.alone, self.with_decoding] if self.passes else [self.alone]
        quartiles = [seconds_quartiles(times) for times in samples]
        is_wide = any(high - low > WIDE * median for low, median, high in quartiles)
        return is_wide or (bool(self.passes) and quartiles[1][1] < quartiles[0][1])


WIDE = 0.3
"""From the first quartile to the third, as a share of the median: above it other work disturbed a measurement."""


def take_turns(
    test: Callable[[], float],
    run_pass: Callable[[], Pass] | None,
    *,
    rounds: int = 5,
    seconds: float = 4.0,
    seconds_alone: float = 0.5,
) -> Turns:
    """`test` the network on videos for `seconds_alone`, at most four and at least one, then run a pass; and so on.

    For so many `rounds`; fewer, but three, where they take longer than `seconds`. A pass without clips does not count.
    """
    turns, began = Turns([], []), time.perf_counter()
    for number in range(rounds):
        if number >= 3 and time.perf_counter() - began > seconds:
            break
        times = [test()]
        while len(times) < 4 and sum(times) < seconds_alone:
            times.append(test())
        turns.alone.extend(times)
        if run_pass is not None and (made := run_pass()).clips:
            turns.passes.append(made)
    return turns


def seconds_quartiles(times: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    if len(times) == 1:
        return times[0], times[0], times[0]
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return low, median, high


def train_steps(
    model: nn.Module,
    clip_shape: tuple[int, int, int, int],
    *,
    batch_size: int,
    momentum: float,
    device: torch.device,
    precision: Precision = "fp32",
    layout: torch.memory_format = torch.contiguous_format,
    steps: int = 2,
) -> None:
    """Train `model`, in the mode it is in, on random clips (batch_size, 3, T, H, W): what needs the memory of training.

    The second step meets the momentum that the first one leaves, so it needs the most.
    """
    model.to(device)
    clips = torch.randn(batch_size, *clip_shape, device=device).contiguous(memory_format=layout)
    labels = torch.zeros(batch_size, dtype=torch.int64, device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=momentum)
    scaler = grad_scaler(precision, device)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        with autocast(precision, device):
            loss = F.cross_entropy(model(clips).float(), labels)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    _synchronise(device)


class PeakMemory:
    """The most memory in use since it was made, or since `restart`.

    On a GPU that of torch's tensors there, as MMAction2's logs have it. On a CPU this process' resident memory beyond
    what it was when this was made: to be had on Linux, and right in a process that did nothing yet.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._start = None if device.type == "cuda" else _resident("VmRSS")
        self.restart()

    def restart(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # forgets the highest one, proc(5)

    def megabytes(self) -> float | None:
        """In units of 2**20 bytes; None where it cannot be had."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / 2**20
        peak = _resident("VmHWM")
        return None if peak is None or self._start is None else peak - self._start


def _resident(key: str) -> float | None:
    """VmRSS, now, or VmHWM, at most; of this process, in units of 2**20 bytes."""
    with contextlib.suppress(OSError):
        if found := re.search(rf"^{key}:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE):
            return int(found[1]) / 1024
    return None


@torch.inference_mode()
def _test(
    model: Callable[[Tensor], Tensor],
    views: Tensor,
    num_views: int,
    average_clips: Literal["prob", "score"],
    device: torch.device,
    precision: Precision,
) -> Tensor:
    """Scores (1, num_classes) of a video, on the host; its views are `views`, taken again and again."""
    logits, missing = [], num_views
    while missing:
        with autocast(precision, device):
            logits.append(model(views[:missing]).float())
        missing -= len(logits[-1])
    return average_views(torch.cat(logits), num_views, average_clips).cpu()


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
