"""Clips per CPU second, ours beside the way that MMAction2 goes, from the same source clips.

    python benchmarks/loader.py                      # prepares 256 pixel versions in a temporary folder; ten minutes
    python benchmarks/loader.py --memory-clips 0     # without the long run that watches the memory
    python benchmarks/loader.py --folder bench       # keeps the prepared data, and finds them the next time

Source is a mirror in the public layout, by default the one with real footage that lies beside the project, if it does;
else made-up clips. Two tasks: a random training clip of 32 frames, every second one, ready as float32 3 x 32 x 224 x
224; and the 30 views of 256 pixels of a test video. Each measurement is of a fresh process, in turn, with one thread
but for decord's own. CPU seconds are of all threads; on our side, whose loader runs as in a training, also of its one
worker process. Both draw the same clips, frames and boxes.

The other side is written after MMAction2's pipeline, step by step and plainly: one decord reader opened per clip, all
frames in one call, each frame resized to a short side of 256, cut and resized to 224, flipped, put into one float32
array and normalised there by cv2, transposed to channels first. Its files have x264's defaults: a keyframe every 250
frames, three B-frames, preset medium.
"""

import argparse
import collections
import contextlib
import gc
import io
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from actionzoo.kinetics.manifest import Clip
    from actionzoo.recipe import Augment, Clips, TestSpec

PROJECT = Path(__file__).resolve().parents[1]
REAL_FOOTAGE = PROJECT.parent / "shared" / "k400-mini"
CLIP_LEN, FRAME_INTERVAL, BATCH_SIZE, MAX_VIEWS = 32, 2, 8, 10
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
AREA, ASPECT_RATIO = (0.08, 1.0), (3 / 4, 4 / 3)

# name -> (task, form, whose)
SIDES = {
    "plain train, x264's defaults": ("train", "default_256", "plain"),
    "plain train, our videos": ("train", "videos_256", "plain"),
    "plain train, our frames": ("train", "frames_256", "plain"),
    "ours train, videos": ("train", "videos_256", "ours"),
    "ours train, frames": ("train", "frames_256", "ours"),
    "videos, before a GPU": ("train", "videos_256", "worker"),
    "frames, before a GPU": ("train", "frames_256", "worker"),
    "plain test, x264's defaults": ("test", "default_256", "plain"),
    "ours test, videos": ("test", "videos_256", "ours"),
    "ours test, frames": ("test", "frames_256", "ours"),
}
# what is to be so many times as fast as what
TARGETS = [
    ("ours train, videos", "plain train, x264's defaults", 3),
    ("ours train, frames", "plain train, x264's defaults", 6),
    ("ours test, videos", "plain test, x264's defaults", 5),
    ("ours test, frames", "plain test, x264's defaults", 5),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mirror", help="a mirror in the public layout; default: real footage if it is there")
    parser.add_argument("--folder", type=Path, help="keep the prepared data here; without it, a temporary folder")
    parser.add_argument("--repeats", type=int, default=3, help="fresh processes per side, in turn; medians are shown")
    parser.add_argument("--clips", type=int, default=120, help="training clips of one measurement")
    parser.add_argument("--videos", type=int, default=10, help="test videos of one measurement")
    parser.add_argument(
        "--memory-clips", type=int, default=5000, help="clips over which the memory is watched, per form"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, too")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)  # the same file as a child of itself
    parser.add_argument("--watch", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        side, folder, count, kind = args.measure
        print(json.dumps(measure(side, Path(folder), int(count), kind)))
    elif args.watch:
        form, folder, count = args.watch
        print(json.dumps(watch_memory(Path(folder) / form, int(count))))
    else:
        with _folder(args.folder) as folder:
            compare(folder, args)


def compare(folder: Path, args: argparse.Namespace) -> None:
    print(f"{_cpu()}, {os.cpu_count()} cores; Python {platform.python_version()}", flush=True)
    prepare(folder, args.mirror)
    figures: dict[str, dict] = {name: {"cpu_ms": []} for name in SIDES}
    for _ in range(args.repeats):
        for name, (task, _, _) in SIDES.items():
            count = str(args.clips if task == "train" else args.videos)
            figures[name]["cpu_ms"].append(_child("--measure", name, str(folder), count, "whole")["cpu_ms"])
    print(f"\n{'':34}{'CPU ms':>9}{'(all runs)':>24}{'per CPU second':>17}")
    for name, side in figures.items():
        side["median"] = statistics.median(side["cpu_ms"])
        runs = " ".join(f"{value:.1f}" for value in side["cpu_ms"])
        print(f"{name:34}{side['median']:9.1f}{runs:>24}{1000 / side['median']:17.2f}", flush=True)
    print()
    for ours, plain, target in TARGETS:
        ratio = figures[plain]["median"] / figures[ours]["median"]
        verdict = "met" if ratio >= target else "NOT met"
        print(f"{ours:22}{ratio:6.2f} times as fast as {plain}; target {target}: {verdict}")
    print("\nCPU ms by step, of a run that is watched closely:")
    for name, (task, _, _) in SIDES.items():
        count = str(args.clips // 2 if task == "train" else args.videos // 2)
        figures[name]["steps"] = steps = _child("--measure", name, str(folder), count, "steps")["steps"]
        print(f"{name:34}" + "  ".join(f"{step} {value:.2f}" for step, value in steps.items()), flush=True)
    for form in ("videos_256", "frames_256"):
        if args.memory_clips:
            figures[f"memory, {form}"] = memory = _child("--watch", form, str(folder), str(args.memory_clips))
            curve = memory["together_mb"]
            print(
                f"\nmemory of loader and worker over {memory['clips']} clips from {form}, in MB: "
                + " ".join(f"{value:.0f}" for value in curve)
                + f"\n    second half against the quarter before it: {memory['growth']:+.2%}; "
                + ("flat" if abs(memory["growth"]) < 0.02 else "NOT flat"),
                flush=True,
            )
    if args.json:
        print(json.dumps(figures, indent=1))


def prepare(folder: Path, mirror: str | None) -> None:
    """folder/archive, videos_256 and frames_256 as our stages make them, default_256 as x264 makes it by itself."""
    from actionzoo.files.data_folder import DataFolder
    from actionzoo.kinetics.download import download
    from actionzoo.kinetics.execution import Execution
    from actionzoo.kinetics.frames import extract_frames
    from actionzoo.kinetics.resize import VideoFormat, resize
    from actionzoo.kinetics.synthetic import Mirror, make_mirror
    from actionzoo.kinetics.transcode import Encode

    if mirror is None and REAL_FOOTAGE.is_dir():
        mirror = str(REAL_FOOTAGE)
    if mirror is None:
        mirror = str(folder / "mirror")
        if not Path(mirror).is_dir():
            make_mirror(Path(mirror), Mirror(train_clips=8, val_clips=3, test_clips=1, parts=2, seed=0))
    execution = Execution(scratch=folder / "scratch", jobs=os.cpu_count() or 1, clip_timeout_seconds=300)
    print(f"clips: {mirror}", flush=True)
    archive = DataFolder.at(folder / "archive")
    download(mirror, archive, execution, splits=("train", "val"), parts="all")
    x264 = Encode(crf=23, preset="medium", gop=250, bframes=3, tune="none")
    for form, encode in {"videos_256": Encode(), "default_256": x264}.items():
        video_format = VideoFormat(256, encode)
        print(
            resize(archive, DataFolder.at(folder / form), execution, video_format=video_format, max_bad_share=1.0),
            flush=True,
        )
    videos, frames = DataFolder.at(folder / "videos_256"), DataFolder.at(folder / "frames_256")
    print(extract_frames(videos, frames, execution, max_bad_share=1.0), flush=True)


def measure(side: str, folder: Path, count: int, kind: str) -> dict:
    """CPU ms per clip over `count` clips; of kind `steps` also where they go, all in this process."""
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    task, form, whose = SIDES[side]
    clock = _Steps() if kind == "steps" else None
    make = {
        ("train", "plain"): plain_training,
        ("train", "ours"): our_training,
        ("train", "worker"): our_worker,
        ("test", "plain"): plain_tests,
        ("test", "ours"): our_tests,
    }[task, whose]
    clips = make(folder / form, clock)
    # imports, processes, and what else is done once
    for _ in range(2 * BATCH_SIZE if task == "train" else 2):
        next(clips)
    gc.collect()
    gc.freeze()  # neither side is to pay for what torch keeps
    if clock:
        clock.spent.clear()
    began = _cpu_seconds()
    for _ in range(count):
        next(clips)
    result: dict = {"cpu_ms": (_cpu_seconds() - began) / count * 1000}
    if clock:
        result["steps"] = {step: seconds / count * 1000 for step, seconds in clock.spent.items()}
    return result


# ours: the loaders as trainings and tests use them


def our_training(form: Path, clock: "_Steps | None") -> Iterator:
    """One ready clip after another, epoch after epoch; made batch by batch."""
    import torch

    from actionzoo.clips.inputs import ToInput
    from actionzoo.clips.loader import Loading, train_loader

    if clock:
        clock.watch_ours()
    loading = Loading(batch_size=BATCH_SIZE, workers=0 if clock else 1, timeout_seconds=120)
    loader = train_loader(form, clips_of(form, "train"), _clips(), _augment(), seed=0, loading=loading)
    to_input = ToInput(mean=MEAN, std=STD, device=torch.device("cpu"))
    for epoch in range(10**6):
        loader.set_epoch(epoch)
        for batch in loader:
            assert not batch.undecodable, batch.undecodable
            with _step(clock, "to input"):
                clips = to_input(batch.views)
            yield from clips
            del clips


def our_worker(form: Path, clock: "_Steps | None") -> Iterator:
    """What is left for the CPU where a GPU resizes, flips and normalises: the boxes of the frames, as stored."""
    import numpy as np

    from actionzoo.clips.dataset import TrainClips
    from actionzoo.clips.workers import keep_memory

    if clock:
        clock.watch_ours()
    keep_memory()
    clips = clips_of(form, "train")
    work = TrainClips(form, clips, _clips(), _augment(), seed=0, is_resized_later=True)
    slot = np.empty(work.slot_bytes, np.uint8)
    for epoch in range(10**6):
        for number in range(len(clips)):
            sample = work((epoch, number), slot)
            assert not sample.reason, sample.reason
            yield sample


def our_tests(form: Path, clock: "_Steps | None") -> Iterator:
    """The views of one video after another, at most ten of them at once as in an evaluation."""
    import torch

    from actionzoo.clips.inputs import ToInput
    from actionzoo.clips.loader import Loading, view_loader

    if clock:
        clock.watch_ours()
    loading = Loading(batch_size=1, workers=0 if clock else 1, timeout_seconds=120)
    loader = view_loader(form, clips_of(form, "val"), _test_spec(), loading=loading)
    to_input = ToInput(mean=MEAN, std=STD, device=torch.device("cpu"))
    while True:
        for batch in loader:
            assert not batch.undecodable, batch.undecodable
            for start in range(0, len(batch.views), MAX_VIEWS):
                part = batch.views[start : start + MAX_VIEWS]
                with _step(clock, "to input"):
                    clips = to_input(part)
                assert clips.shape == (MAX_VIEWS, 3, CLIP_LEN, 256, 256)
                del clips
            yield batch.video_ids


# the other side


def plain_training(form: Path, clock: "_Steps | None") -> Iterator:
    import cv2
    import numpy as np

    from actionzoo.clips import sampling, transforms
    from actionzoo.clips.loader import EpochBatches

    clips = clips_of(form, "train")
    order = EpochBatches(len(clips), batch_size=BATCH_SIZE, seed=0)
    for epoch in range(10**6):
        order.epoch = epoch
        batch = []
        for number in (number for batch in order for _, number in batch):
            rng = np.random.default_rng([0, epoch, number])
            wanted = sampling.train_frames(
                clips[number].num_frames, clip_len=CLIP_LEN, frame_interval=FRAME_INTERVAL, rng=rng
            )
            images = _plain_frames(form, clips[number], wanted, clock)
            with _step(clock, "resize"):
                images = _plain_resized(images)
                box = transforms.random_resized_box(*images[0].shape[:2], area=AREA, aspect_ratio=ASPECT_RATIO, rng=rng)
                rows, columns = slice(box.top, box.top + box.height), slice(box.left, box.left + box.width)
                images = [image[rows, columns] for image in images]
                images = [cv2.resize(image, (224, 224), interpolation=cv2.INTER_LINEAR) for image in images]
                if rng.random() < 0.5:
                    images = [cv2.flip(image, 1, image) for image in images]
            batch.append(_plain_input(images, 1, clock))
            if len(batch) == BATCH_SIZE:
                yield from _plain_batch(batch, clock)
                batch.clear()


def plain_tests(form: Path, clock: "_Steps | None") -> Iterator:
    from actionzoo.clips import sampling, transforms

    while True:
        for clip in clips_of(form, "val"):
            wanted = sampling.view_frames(
                clip.num_frames, clip_len=CLIP_LEN, frame_interval=FRAME_INTERVAL, num_clips=10
            )
            images = _plain_frames(form, clip, wanted.ravel(), clock)
            with _step(clock, "resize"):
                images = _plain_resized(images)
            images = [
                image[box.top : box.top + 256, box.left : box.left + 256]
                for box in transforms.three_boxes(*images[0].shape[:2], 256)
                for image in images
            ]
            yield _plain_batch([_plain_input(images, 10, clock)], clock)


def _plain_frames(form: Path, clip, wanted, clock: "_Steps | None") -> list:
    import cv2
    import decord
    import numpy as np

    from actionzoo.kinetics.frames import frame_spans
    from actionzoo.kinetics.shards import read_index, read_member

    shard = form / clip.shard
    if form.name.startswith("frames"):
        with _step(clock, "read"):
            spans = frame_spans(read_index(shard), clip)
            files = [read_member(shard, offset, size) for offset, size in spans[wanted].tolist()]
        with _step(clock, "decode"):
            images = [cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR) for file in files]
            return [cv2.cvtColor(image, cv2.COLOR_BGR2RGB) for image in images]
    with _step(clock, "read"):
        file = io.BytesIO(read_member(shard, clip.offset, clip.size))
    with _step(clock, "decode"):
        return list(decord.VideoReader(file, num_threads=1).get_batch(wanted).asnumpy())


def _plain_resized(images: list) -> list:
    import cv2

    from actionzoo.clips.transforms import short_side_size

    height, width = short_side_size(*images[0].shape[:2], 256)
    return [cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR) for image in images]


def _plain_batch(clips: list, clock: "_Steps | None"):
    import torch

    with _step(clock, "collate"):  # here the bytes of the transposed arrays move
        return torch.stack(clips)


def _plain_input(images: list, num_clips: int, clock: "_Steps | None"):
    import cv2
    import numpy as np
    import torch

    with _step(clock, "normalise"):
        array = np.empty((len(images), *images[0].shape), np.float32)
        for number, image in enumerate(images):
            array[number] = image
        mean, scale = np.float64(MEAN).reshape(1, -1), 1 / np.float64(STD).reshape(1, -1)
        for image in array:
            cv2.subtract(image, mean, image)
            cv2.multiply(image, scale, image)
    with _step(clock, "layout"):
        array = array.reshape(-1, num_clips, CLIP_LEN, *array.shape[1:])  # crops, clips, T, H, W, 3
        array = array.transpose(0, 1, 5, 2, 3, 4)
        return torch.from_numpy(array.reshape(-1, *array.shape[2:]))


# memory


def watch_memory(form: Path, count: int) -> dict:
    """Resident memory of a training's loader and its worker process, sampled 40 times over `count` clips."""
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    curve = []
    clips = our_training(form, None)
    for number in range(1, count + 1):
        next(clips)
        if number % max(1, count // 40) == 0:
            pids = [os.getpid(), *(process.pid for process in multiprocessing.active_children())]
            curve.append(sum(_resident_mb(pid) for pid in pids))
    half, quarter = curve[len(curve) // 2 :], curve[len(curve) // 4 : len(curve) // 2]
    growth = statistics.mean(half) / statistics.mean(quarter) - 1
    return {"clips": count, "together_mb": curve, "growth": growth}


def _resident_mb(pid: int) -> float:
    """What it has asked for, its share where it is shared. Without pages of files, of which any process that runs
    beside this one and reads the same libraries takes a share."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) / 1024 for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))


# steps


class _Steps:
    """CPU seconds of this process, all its threads, by step."""

    def __init__(self) -> None:
        self.spent: collections.Counter[str] = collections.Counter()

    @contextlib.contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        began = time.process_time()
        yield
        self.spent[step] += time.process_time() - began

    def watch_ours(self) -> None:
        """Put a watch around what the loader calls: opening (with reading), each frame's decoding, and its cut."""
        from actionzoo.clips import dataset, loader

        clock, open_clip, apply, views = self, dataset.open_clip, dataset.transforms.apply, loader.Loader._views

        class Watched:
            def __init__(self, folder: Path, clip):
                with clock("read, open"):
                    self.reader = open_clip(folder, clip)
                self.num_frames = self.reader.num_frames

            def each(self, frames) -> Iterator:
                decoded = self.reader.each(frames)
                while True:
                    with clock("decode"):
                        frame = next(decoded, None)
                    if frame is None:
                        return
                    yield frame

        dataset.open_clip = Watched
        dataset.transforms.apply = self._watched("resize", apply)
        loader.Loader._views = self._watched("into batch", views)

    def _watched(self, step: str, function: Callable) -> Callable:
        def watched(*args):
            with self(step):
                return function(*args)

        return watched


def _step(clock: _Steps | None, step: str):
    return clock(step) if clock else contextlib.nullcontext()


def _cpu_seconds() -> float:
    """Of this process and its children that live."""
    times = os.times()
    ticks = 0
    for process in multiprocessing.active_children():
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # user, system
    return times.user + times.system + ticks / os.sysconf("SC_CLK_TCK")


def clips_of(form: Path, split: str) -> "list[Clip]":
    """The usable clips of a split of the prepared data in `form`."""
    from actionzoo.clips.loader import usable_clips
    from actionzoo.kinetics.manifest import read_manifest

    return usable_clips(read_manifest(form / "manifest.csv"), split, form / "manifest.csv")


def _test_spec() -> "TestSpec":
    """30 views of 256 pixels."""
    from actionzoo.recipe import TestSpec

    return TestSpec(
        form="videos",
        short_side=256,
        clip_len=CLIP_LEN,
        frame_interval=FRAME_INTERVAL,
        resize=256,
        mean=MEAN,
        std=STD,
        num_clips=10,
        num_crops=3,
        crop_size=256,
        average_clips="prob",
    )


def _clips() -> "Clips":
    from actionzoo.recipe import Clips

    return Clips(form="videos", short_side=256, clip_len=CLIP_LEN, frame_interval=FRAME_INTERVAL)


def _augment() -> "Augment":
    from actionzoo.recipe import Augment

    return Augment(resize=256, crop_size=224, area=AREA, aspect_ratio=ASPECT_RATIO, flip=0.5, mean=MEAN, std=STD)


def _child(*arguments: str) -> dict:
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _cpu() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.machine()


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()
    else:
        with tempfile.TemporaryDirectory(prefix="actionzoo-loader-") as folder:
            yield Path(folder)


if __name__ == "__main__":
    main()
