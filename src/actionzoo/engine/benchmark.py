"""What a network costs: the time of evaluating a video, and the memory of that and of training.

All views of a video make one evaluation of it. Its time is the network's alone, from the views on the device to the
averaged scores in the host's memory.
"""

import contextlib
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .precision import Precision, autocast, grad_scaler
from .views import Average, average_views


@dataclass(frozen=True)
class Execution:
    """How a network is executed."""

    device: torch.device
    precision: Precision = "fp32"
    layout: torch.memory_format = torch.contiguous_format
    """Memory layout of the clips."""


@dataclass(frozen=True)
class Video:
    """A video as a network sees it: the shape of its random views."""

    clip_shape: tuple[int, int, int, int]
    """(3, T, H, W) of each view."""
    num_views: int
    average_clips: Average = "prob"
    max_views: int = 10
    """Views that pass through the network at once, at most."""


def seconds_per_video(
    model: nn.Module,
    video: Video,
    execution: Execution,
    *,
    warmup: int = 2,
    most: int = 10,
    seconds: float = 2.0,
) -> list[float]:
    """Return the seconds of evaluating each of `most` videos, after `warmup` videos that do not count.

    Once the counted ones have taken more than `seconds` together, three are enough. Each time is measured between two
    synchronisations of the device and counts once. The model is left on the device, in eval mode.
    """
    evaluate = video_timer(model, video, execution)
    times: list[float] = []
    for number in range(warmup + most):
        took = evaluate()
        if number >= warmup:
            times.append(took)
        if len(times) >= 3 and sum(times) > seconds:
            break
    return times


def video_timer(model: nn.Module, video: Video, execution: Execution) -> Callable[[], float]:
    """Return a function that evaluates one video and returns its seconds, between two synchronisations.

    The model is left on the device, in eval mode.
    """
    device = execution.device
    model = model.to(device).eval()
    views = torch.randn(min(video.num_views, video.max_views), *video.clip_shape, device=device)
    views = views.contiguous(memory_format=execution.layout)

    def timed() -> float:
        _synchronise(device)
        began = time.perf_counter()
        _evaluate(model, views, video, execution)
        _synchronise(device)
        return time.perf_counter() - began

    return timed


@dataclass(frozen=True)
class Pass:
    """One pass over real clips, from their bytes to their scores."""

    clips: int
    seconds: float
    """Of the whole pass."""


@dataclass(frozen=True)
class Turns:
    """Times of the network alone and of passes over real clips, taken alternately so that both meet the same load."""

    alone: list[float]
    """Seconds per video of the network alone."""
    passes: list[Pass]

    @property
    def with_decoding(self) -> list[float]:
        """Mean seconds per video of each pass."""
        return [each.seconds / each.clips for each in self.passes]

    @property
    def machine_was_busy(self) -> bool:
        """Whether the times vary too much, or are shorter with decoding than without, which is impossible."""
        samples = [self.alone, self.with_decoding] if self.passes else [self.alone]
        quartiles = [seconds_quartiles(times) for times in samples]
        is_wide = any(high - low > WIDE * median for low, median, high in quartiles)
        return is_wide or (bool(self.passes) and quartiles[1][1] < quartiles[0][1])


WIDE = 0.3
"""Distance of the quartiles as a share of the median, above which other work disturbed the measurement."""


def take_turns(
    evaluate: Callable[[], float],
    run_pass: Callable[[], Pass] | None,
    *,
    rounds: int = 5,
    seconds: float = 4.0,
    seconds_alone: float = 0.5,
) -> Turns:
    """Measure the network alone and with decoding alternately, for `rounds` rounds.

    A round calls `evaluate`, which returns the seconds of one video, for `seconds_alone` but at least once and at most
    four times, then `run_pass`. After `seconds`, three rounds are enough. A pass without clips does not count.
    """
    turns, began = Turns([], []), time.perf_counter()
    for number in range(rounds):
        if number >= 3 and time.perf_counter() - began > seconds:
            break
        times = [evaluate()]
        while len(times) < 4 and sum(times) < seconds_alone:
            times.append(evaluate())
        turns.alone.extend(times)
        if run_pass is not None and (finished := run_pass()).clips:
            turns.passes.append(finished)
    return turns


def seconds_quartiles(times: Sequence[float]) -> tuple[float, float, float]:
    """Return the first quartile, the median and the third quartile of at least one time."""
    if len(times) == 1:
        return times[0], times[0], times[0]
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return low, median, high


def train_steps(
    model: nn.Module,
    clip_shape: tuple[int, int, int, int],
    execution: Execution,
    *,
    batch_size: int,
    momentum: float,
    steps: int = 2,
) -> None:
    """Train `model`, in the mode it is in, on random clips (batch_size, 3, T, H, W), to need the memory of training.

    The second step needs the most, because the first one leaves the momentum.
    """
    device = execution.device
    model.to(device)
    clips = torch.randn(batch_size, *clip_shape, device=device).contiguous(memory_format=execution.layout)
    labels = torch.zeros(batch_size, dtype=torch.int64, device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=momentum)
    scaler = grad_scaler(execution.precision, device)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        with autocast(execution.precision, device):
            loss = F.cross_entropy(model(clips).float(), labels)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch has no type
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    _synchronise(device)


class PeakMemory:
    """The most memory in use since this object was made, or since `restart`.

    On a GPU: the memory of torch's tensors, as MMAction2's logs report it. On a CPU, on Linux alone: the resident
    memory of this process beyond what it was when this object was made; exact in a process that did nothing before.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._start = None if device.type == "cuda" else _resident_mb("VmRSS")
        self.restart()

    def restart(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # forgets the peak, proc(5)

    def megabytes(self) -> float | None:
        """Return the peak in units of 2**20 bytes; None where the system does not report it."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / 2**20
        peak = _resident_mb("VmHWM")
        return None if peak is None or self._start is None else peak - self._start


def _resident_mb(key: str) -> float | None:
    """Read VmRSS (the memory in use) or VmHWM (its peak) of this process, in units of 2**20 bytes."""
    with contextlib.suppress(OSError):
        if found := re.search(rf"^{key}:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE):
            return int(found[1]) / 1024
    return None


@torch.inference_mode()
def _evaluate(model: nn.Module, views: Tensor, video: Video, execution: Execution) -> Tensor:
    """Return a video's scores, (1, num_classes) on the host; `views` are used again until there are num_views."""
    logits, missing = [], video.num_views
    while missing:
        with autocast(execution.precision, execution.device):
            logits.append(model(views[:missing]).float())
        missing -= len(logits[-1])
    return average_views(torch.cat(logits), video.num_views, video.average_clips).cpu()


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
