"""What a model costs on this machine: videos per second with and without decoding, memory in test and training, size.

One device, one video at a time with all its views, at the sizes that the recipe really uses. Published tables call the
network's speed "inference time" and the training's memory "GPU memory"; both are measured as they were. The network
alone and the way with decoding are measured in turns, and their medians and quartiles are kept.
"""

import contextlib
import dataclasses
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..devices import device_of, layout_of, place
from ..files.json_files import write_json
from ..files.locks import locked
from ..job import Job
from ..params import digest, workspace_of
from ..params.settings import Runtime
from ..process.supervisor import die_with_parent
from ..recipe import Recipe
from ..records import Benchmark
from ..tracking.live import recording
from ..zoo import build_model, freeze
from .adopt import adopt_benchmark, old_manifest_sha256

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..clips.inputs import View
    from ..engine.benchmark import Execution, Pass, Turns

NUM_CLASSES = 400
"""Classes of the networks that are measured, whatever the data set: the published ones have as many."""

_MEASUREMENT = 2
"""Version of what is measured: 2 has medians and quartiles. Results of another one are measured anew."""

WARMUP = 2
"""Videos that the network tests before its time counts."""

CLIPS, PASS_SECONDS = 16, 1.0
"""Clips of a pass from their bytes to scores: at most so many, and as many as take so long, but one."""


def benchmark(job: Job) -> str:
    """Measure the model on its device, with clips of val if they are there; returns the last line to print.

    Raises UserError.
    """
    import torch

    runtime, device = job.runtime, device_of(job.runtime)
    circumstances: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "precision": runtime.precision,
        "channels_last": runtime.channels_last,
        "compile": runtime.compile,
        "max_views": runtime.max_views,
    }
    fingerprint = _fingerprint(job, circumstances, job.manifest.sha256 if job.has_manifest else "")
    busy = f"{job.model} is being measured by another process, which would disturb this one: wait for it, or stop it"
    path = job.files.benchmark
    with locked(workspace_of(job.root) / ".scratch" / "benchmark" / job.dataset / f"{job.model}.lock", busy=busy):
        adopted = adopt_benchmark(job, _fingerprint(job, circumstances, old_manifest_sha256(job)))
        measured = adopted
        if measured is None:
            measured = dataclasses.replace(_measure(job, device), **circumstances, fingerprint=fingerprint)
        measured.write(path)
        write_json(job.files.metrics("benchmark"), measured.table())
    with recording(job.files, checkpoints=runtime.checkpoints):  # after the measurement, which it would disturb
        pass
    advice = (
        f"; machine was busy: these speeds may be far off; run `dvc repro -f -s benchmark@{job.model}` when "
        "nothing else runs"
    )
    about = f"{_summary(measured)}{advice if measured.machine_was_busy else ''} ({path})"
    return f"benchmark: {'adopted from the version before; ' if adopted else ''}{job.model}: {about}"


def _fingerprint(job: Job, circumstances: Mapping[str, Any], manifest_sha256: str) -> str:
    """Equal for measurements of the same thing on the same kind of machine."""
    recipe = job.recipe
    used = (recipe.model, recipe.init.frozen_stages, recipe.clips, recipe.augment, recipe.optim.videos_per_gpu)
    return digest(_MEASUREMENT, *used, recipe.test, circumstances, manifest_sha256)


def _measure(job: Job, device: "torch.device") -> Benchmark:
    from ..engine.benchmark import Video, take_turns, video_timer
    from ..engine.flops import count_macs, count_parameters

    recipe, runtime = job.recipe, job.runtime
    model = build_model(recipe.model, NUM_CLASSES)
    shape, num_views = _test_shape(recipe), recipe.test.num_clips * recipe.test.num_crops
    parameters, macs_per_view = count_parameters(model), count_macs(model, (1, *shape))
    ready, execution = _ready(model, runtime, device)
    test = video_timer(ready, Video(shape, num_views, recipe.test.average_clips, runtime.max_views), execution)
    for _ in range(WARMUP):
        test()
    with _passes(job, ready, execution) as run_pass:
        turns = take_turns(test, run_pass)
    del model, ready, test, run_pass
    is_gpu = device.type == "cuda"
    memory = _memory(recipe, runtime, device) if is_gpu else _memory_of_a_process(recipe, runtime)
    return dataclasses.replace(
        _speeds(turns),
        workers=runtime.num_workers if job.has_manifest else None,
        frames=frames_text(recipe),
        views=num_views,
        crop_size=recipe.test.crop_size,
        test_memory_mb=memory.test_mb,
        train_memory_mb=memory.train_mb,
        memory_of="tensors" if is_gpu else "process",
        memory_reason=memory.reason,
        parameters=parameters,
        macs_per_view=macs_per_view,
    )


def _speeds(turns: "Turns") -> Benchmark:
    """Medians and quartiles in videos per second, and the seconds they come from."""
    from ..engine.benchmark import seconds_quartiles

    def speeds(seconds: list[float]) -> tuple[float, float, float]:
        """First quartile, median, third."""
        low, median, high = (1 / each for each in reversed(seconds_quartiles(seconds)))
        return low, median, high

    low, alone, high = speeds(turns.alone)
    made = Benchmark(
        videos_per_second=alone,
        videos_per_second_quartiles=(low, high),
        seconds_per_video=tuple(round(each, 6) for each in turns.alone),
        end_to_end_seconds_per_video=tuple(round(each, 6) for each in turns.with_decoding),
        end_to_end_clips=sum(each.clips for each in turns.passes),
        machine_was_busy=turns.machine_was_busy,
    )
    if not turns.with_decoding:
        return made
    low, with_decoding, high = speeds(turns.with_decoding)
    return dataclasses.replace(made, end_to_end_videos_per_second=with_decoding, end_to_end_quartiles=(low, high))


def _test_shape(recipe: Recipe) -> tuple[int, int, int, int]:
    return 3, recipe.clips.clip_len, recipe.test.crop_size, recipe.test.crop_size


def _ready(model: "nn.Module", runtime: Runtime, device: "torch.device") -> "tuple[nn.Module, Execution]":
    """The model on the device as runtime wants it, and how it is executed."""
    import torch

    from ..engine.benchmark import Execution
    from ..engine.precision import set_tf32

    set_tf32(runtime.precision)
    place(model, runtime, device)
    ready = torch.compile(model) if runtime.compile else model
    return cast("nn.Module", ready), Execution(device, runtime.precision, layout_of(runtime))


@contextlib.contextmanager
def _passes(job: Job, model: "nn.Module", execution: "Execution") -> "Iterator[Callable[[], Pass] | None]":
    """A function that makes a pass over the first clips of val, from their bytes to averaged scores, by the loader that
    tests use. None where there are no clips.

    A pass begins with nothing decoded ahead, so that no clip is had for free; and it ends with nothing left to decode,
    so that the network's turn after it is the network's alone.
    """
    import torch

    from ..clips.inputs import ToInput
    from ..clips.loader import Loading, usable_clips, view_loader
    from ..engine.benchmark import Pass
    from ..engine.precision import autocast
    from ..engine.views import average_views

    if not job.has_manifest:
        yield None
        return
    recipe, runtime, device = job.recipe, job.runtime, execution.device
    clips = [0, 1]  # by number, those of the next pass
    loading = Loading(
        batch_size=1,
        workers=runtime.num_workers,
        timeout_seconds=runtime.clip_timeout_seconds,
        device=device,
    )
    val_clips = usable_clips(job.manifest, "val", job.manifest.path)
    loader = view_loader(job.data, val_clips, recipe.test_spec, loading=loading, groups=clips)
    augment = recipe.augment
    to_input = ToInput(mean=augment.mean, std=augment.std, device=device, layout=execution.layout)

    @torch.inference_mode()
    def test(views: "Sequence[View]") -> None:
        logits, step = [], runtime.max_views
        for start in range(0, len(views), step):
            with autocast(execution.precision, device):
                logits.append(model(to_input(views[start : start + step])).float())
        average_views(torch.cat(logits), len(views), recipe.test.average_clips).cpu()

    def run_pass() -> Pass:
        began, done = time.perf_counter(), 0
        for batch in loader:
            if batch.video_ids:
                test(batch.views)
                done += 1
        return Pass(done, time.perf_counter() - began)

    try:
        del clips[len(loader.clips) :]
        run_pass()  # starts the processes
        tried = run_pass()
        fitting = int(PASS_SECONDS * max(1, tried.clips) / tried.seconds)
        clips[:] = range(min(max(1, fitting), CLIPS, len(loader.clips)))
        yield run_pass
    finally:
        loader.close()


@dataclasses.dataclass(frozen=True)
class _Memory:
    """Peaks in MB, None where unknown, and why."""

    test_mb: float | None = None
    train_mb: float | None = None
    reason: str = ""


def _memory(recipe: Recipe, runtime: Runtime, device: "torch.device") -> _Memory:
    """Peaks of a test and of training. What is there already counts on a GPU, and not on a CPU (PeakMemory)."""
    from ..engine.benchmark import PeakMemory, Video, seconds_per_video, train_steps

    memory, optim = PeakMemory(device), recipe.optim
    model = build_model(recipe.model, NUM_CLASSES)
    ready, execution = _ready(model, runtime, device)
    views = min(runtime.max_views, recipe.test.num_clips * recipe.test.num_crops)
    seconds_per_video(ready, Video(_test_shape(recipe), views, max_views=views), execution, warmup=0, most=1)
    test_mb = memory.megabytes()
    if test_mb is None:
        return _Memory(reason="this system does not say how much memory a process takes")
    memory.restart()
    model.train()
    for module in freeze(model, recipe.init.frozen_stages):
        module.eval()
    shape = (3, recipe.clips.clip_len, recipe.augment.crop_size, recipe.augment.crop_size)
    try:
        train_steps(ready, shape, execution, batch_size=optim.videos_per_gpu, momentum=optim.momentum)
    except (RuntimeError, MemoryError) as error:  # the CPU's allocator has no exception of its own
        if "memory" not in str(error):
            raise
        return _Memory(test_mb, reason=f"a training step of {optim.videos_per_gpu} clips does not fit into memory")
    return _Memory(test_mb, memory.megabytes())


def _memory_of_a_process(recipe: Recipe, runtime: Runtime) -> _Memory:
    """The same on a CPU, in a fresh process, which the kernel kills first if memory runs out."""
    with ProcessPoolExecutor(1, get_context("spawn"), _be_the_first_to_go, (os.getpid(),)) as pool:
        try:
            return pool.submit(_memory_on_cpu, recipe, runtime).result()
        except BrokenProcessPool:
            return _Memory(reason="the process that measured it was killed, as when memory runs out")


def _memory_on_cpu(recipe: Recipe, runtime: Runtime) -> _Memory:
    import torch

    import actionzoo.engine.benchmark  # noqa: F401  # its memory is not to count

    return _memory(recipe, runtime, torch.device("cpu"))


def _be_the_first_to_go(parent: int) -> None:
    die_with_parent(parent=parent)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def frames_text(recipe: Recipe) -> str:
    """Frames of all views as the published table counts them: (32+4)x10x3 frames."""
    frames = str(recipe.clips.clip_len)
    if recipe.model.family == "slowfast":
        frames = f"({frames}+{recipe.clips.clip_len // recipe.model.alpha})"
    return f"{frames}x{recipe.test.num_clips}x{recipe.test.num_crops} frames"


def _summary(made: Benchmark) -> str:
    def number(value: float | None, layout: str) -> str:
        return "unknown" if value is None else format(value, layout)

    def spread(quartiles: tuple[float, ...] | None) -> str:
        return "" if quartiles is None else " (quartiles {:.2f}-{:.2f})".format(*quartiles)

    return (
        f"{number(made.videos_per_second, '.2f')} videos/s of {made.frames} at {made.crop_size} pixels on "
        f"{made.device} in {made.precision}{spread(made.videos_per_second_quartiles)}, with decoding "
        f"{number(made.end_to_end_videos_per_second, '.2f')}{spread(made.end_to_end_quartiles)}; "
        f"memory in test {number(made.test_memory_mb, '.0f')}, in training {number(made.train_memory_mb, '.0f')} MB; "
        f"{(made.parameters or 0) / 1e6:.2f} M parameters, {(made.macs_per_view or 0) / 1e9:.2f} G multiply-adds a view"
    )
