"""What a row costs on this machine: videos per second with and without decoding, memory in test and training, size.

One device, one video at a time with all its views, at the sizes that the row really uses. Published tables call the
network's speed "inference time" and the training's memory "GPU memory"; both are measured as they were. The network
alone and the way with decoding are measured in turns, and their medians and quartiles are kept.
"""

import contextlib
import platform
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..devices import device_of
from ..files.hashes import sha256_of
from ..files.json_files import read_json, write_json
from ..files.locks import locked
from ..job import RunFiles, data_folder
from ..kinetics.manifest import read_manifest
from ..params import Params, digest
from ..process.stage import die_with_parent
from ..recipe import Recipe
from ..zoo import build_model, freeze

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..engine.benchmark import Pass, Turns

NUM_CLASSES = 400
"""Of the networks that are measured, whatever the data set: the published ones are so."""

FORM = 2
"""Of benchmark.json: 2 has medians and quartiles. One of another form is measured anew when its stage runs."""

WARMUP = 2
"""Videos that the network tests before its time counts."""

CLIPS, PASS_SECONDS = 16, 1.0
"""Clips of a pass from their bytes to scores: at most so many, and as many as take so long, but one."""


def benchmark_row(params: Params, row: str, root: Path = Path()) -> str:
    """Measure `row` on its device, with clips of its val split if they are there; gives the last line to print.

    Raises UserError.
    """
    import torch

    recipe, files, runtime = params.recipe(row), RunFiles(root, params.name, row), params.runtime
    folder, device = data_folder(params, recipe, root), device_of(params.runtime)
    circumstances = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "precision": runtime.precision,
        "channels_last": runtime.channels_last,
        "compile": runtime.compile,
        "max_views": runtime.max_views,
    }
    manifest = sha256_of(folder / "manifest.csv") if (folder / "manifest.csv").is_file() else ""
    used = (recipe.model, recipe.init.frozen_stages, recipe.clips, recipe.augment, recipe.optim.videos_per_gpu)
    fingerprint = digest(FORM, *used, recipe.test, circumstances, manifest)
    busy = f"{row} is being measured by another process; two at once measure each other: wait for it, or end it"
    with locked(root / ".scratch" / "benchmark" / params.name / f"{row}.lock", busy=busy):
        made = read_json(files.metrics("benchmark.json"))
        if made.get("fingerprint") != fingerprint:
            made = (
                _measure(params, recipe, folder if manifest else None, device)
                | circumstances
                | {"fingerprint": fingerprint}
            )
            write_json(files.metrics("benchmark.json"), made)
    path = files.metrics("benchmark.json")
    busy = (
        f"; machine was busy: these speeds may be far off; delete the file and run `dvc repro benchmark@{row}` when "
        "nothing else runs"
    )
    return f"benchmark: {row}: {_summary(made)}{busy if made['machine_was_busy'] else ''} ({path})"


def _measure(params: Params, recipe: Recipe, folder: Path | None, device) -> dict[str, Any]:
    from ..engine.benchmark import take_turns, video_timer
    from ..engine.flops import count_macs, count_parameters

    model = build_model(recipe.model, NUM_CLASSES)
    shape, num_views = _test_shape(recipe), recipe.test.num_clips * recipe.test.num_crops
    size = {"parameters": count_parameters(model), "macs_per_view": count_macs(model, (1, *shape))}
    ready, how = _ready(params, model, device)
    test = video_timer(
        ready,
        shape,
        num_views=num_views,
        max_views=params.runtime.max_views,
        average_clips=recipe.test.average_clips,
        device=device,
        **how,
    )
    for _ in range(WARMUP):
        test()
    with _passes(params, recipe, folder, ready, device, how) as run_pass:
        turns = take_turns(test, run_pass)
    del model, ready, test, run_pass
    memory = _memory(params, recipe, device) if device.type == "cuda" else _memory_of_a_process(params, recipe)
    return {
        **_speeds(turns),
        "workers": params.runtime.num_workers if folder else None,
        "frames": frames_text(recipe),
        "views": num_views,
        "crop_size": recipe.test.crop_size,
        **memory,
        **size,
    }


def _speeds(turns: "Turns") -> dict[str, Any]:
    """Medians and quartiles in videos per second, and the seconds that they are of."""
    from ..engine.benchmark import seconds_quartiles

    def speeds(times: list[float]) -> list[float | None]:
        """First quartile, median, third."""
        return [1 / seconds for seconds in reversed(seconds_quartiles(times))] if times else [None] * 3

    low, alone, high = speeds(turns.alone)
    low_decoding, with_decoding, high_decoding = speeds(turns.with_decoding)
    return {
        "videos_per_second": alone,
        "videos_per_second_quartiles": [low, high],
        "seconds_per_video": [round(each, 6) for each in turns.alone],
        "end_to_end_videos_per_second": with_decoding,
        "end_to_end_quartiles": [low_decoding, high_decoding] if turns.passes else None,
        "end_to_end_seconds_per_video": [round(each, 6) for each in turns.with_decoding],
        "end_to_end_clips": sum(each.clips for each in turns.passes),
        "machine_was_busy": turns.machine_was_busy,
    }


def _test_shape(recipe: Recipe) -> tuple[int, int, int, int]:
    return 3, recipe.clips.clip_len, recipe.test.crop_size, recipe.test.crop_size


def _ready(params: Params, model, device) -> tuple[Any, dict[str, Any]]:
    """The model as runtime wants it, on the device; and the precision and the layout that go with it."""
    import torch

    from ..engine.precision import set_tf32

    runtime = params.runtime
    set_tf32(runtime.precision)
    layout = torch.channels_last_3d if runtime.channels_last else torch.contiguous_format
    model.to(device, memory_format=layout)
    return torch.compile(model) if runtime.compile else model, {"precision": runtime.precision, "layout": layout}


@contextlib.contextmanager
def _passes(
    params: Params, recipe: Recipe, folder: Path | None, model, device, how
) -> "Iterator[Callable[[], Pass] | None]":
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

    if folder is None:
        yield None
        return
    clips = [0, 1]  # by number, those of the next pass
    manifest = folder / "manifest.csv"
    loading = Loading(
        batch_size=1,
        workers=params.runtime.num_workers,
        timeout_seconds=params.runtime.clip_timeout_seconds,
        device=device,
    )
    val_clips = usable_clips(read_manifest(manifest), "val", manifest)
    loader = view_loader(folder, val_clips, recipe.test_spec, loading=loading, groups=clips)
    to_input = ToInput(mean=recipe.augment.mean, std=recipe.augment.std, device=device, layout=how["layout"])

    @torch.inference_mode()
    def test(views: list) -> None:
        logits, step = [], params.runtime.max_views
        for start in range(0, len(views), step):
            inputs = to_input(views[start : start + step])
            with autocast(how["precision"], device):
                logits.append(model(inputs).float())
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


def _memory(params: Params, recipe: Recipe, device) -> dict[str, Any]:
    """Peaks of a test and of training; what is there already counts on a GPU, and not on a CPU (PeakMemory)."""
    from ..engine.benchmark import PeakMemory, seconds_per_video, train_steps

    memory, optim = PeakMemory(device), recipe.optim
    model = build_model(recipe.model, NUM_CLASSES)
    ready, how = _ready(params, model, device)
    views = min(params.runtime.max_views, recipe.test.num_clips * recipe.test.num_crops)
    seconds_per_video(
        ready,
        _test_shape(recipe),
        num_views=views,
        max_views=views,
        average_clips="prob",
        device=device,
        warmup=0,
        most=1,
        **how,
    )
    made = _no_memory("", device.type) | {"test_memory_mb": memory.megabytes()}
    if made["test_memory_mb"] is None:
        return made | {"memory_reason": "this system does not say how much memory a process takes"}
    memory.restart()
    model.train()
    for module in freeze(model, recipe.init.frozen_stages):
        module.eval()
    shape = (3, recipe.clips.clip_len, recipe.augment.crop_size, recipe.augment.crop_size)
    try:
        train_steps(ready, shape, batch_size=optim.videos_per_gpu, momentum=optim.momentum, device=device, **how)
    except (RuntimeError, MemoryError) as error:  # the CPU's allocator has no exception of its own
        if "memory" not in str(error):
            raise
        return made | {"memory_reason": f"a training step of {optim.videos_per_gpu} clips does not fit into memory"}
    return made | {"train_memory_mb": memory.megabytes()}


def _memory_of_a_process(params: Params, recipe: Recipe) -> dict[str, Any]:
    """The same on a CPU, by a process that did nothing yet and that the kernel takes first, should memory run out."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_be_the_first_to_go) as pool:
        try:
            return pool.submit(_memory_on_cpu, params, recipe).result()
        except BrokenProcessPool:
            return _no_memory("the process that measured it was killed, as when memory runs out", "cpu")


def _memory_on_cpu(params: Params, recipe: Recipe) -> dict[str, Any]:
    import torch

    import actionzoo.engine.benchmark  # noqa: F401  # is not to count

    return _memory(params, recipe, torch.device("cpu"))


def _be_the_first_to_go() -> None:
    die_with_parent()
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _no_memory(reason: str, device: str) -> dict[str, Any]:
    of = "tensors" if device == "cuda" else "process"
    return {"test_memory_mb": None, "train_memory_mb": None, "memory_of": of, "memory_reason": reason}


def frames_text(recipe: Recipe) -> str:
    """Frames of all views as the published table counts them: (32+4)x10x3 frames."""
    frames = str(recipe.clips.clip_len)
    if recipe.model.family == "slowfast":
        frames = f"({frames}+{recipe.clips.clip_len // recipe.model.alpha})"
    return f"{frames}x{recipe.test.num_clips}x{recipe.test.num_crops} frames"


def _summary(made: dict[str, Any]) -> str:
    def number(key: str, layout: str) -> str:
        return "unknown" if made[key] is None else format(made[key], layout)

    def spread(key: str) -> str:
        return "" if made[key] is None else " (quartiles {:.2f}-{:.2f})".format(*made[key])

    return (
        f"{made['videos_per_second']:.2f} videos/s of {made['frames']} at {made['crop_size']} pixels on "
        f"{made['device']} in {made['precision']}{spread('videos_per_second_quartiles')}, with decoding "
        f"{number('end_to_end_videos_per_second', '.2f')}{spread('end_to_end_quartiles')}; "
        f"memory in test {number('test_memory_mb', '.0f')}, in training {number('train_memory_mb', '.0f')} MB; "
        f"{made['parameters'] / 1e6:.2f} M parameters, {made['macs_per_view'] / 1e9:.2f} G multiply-adds a view"
    )
