"""Both sides of the measurement make the same clips, so our pixels are those of a plain way, written by itself."""

import importlib.util
import itertools
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from actionzoo.clips.inputs import to_input
from actionzoo.clips.inspect import inspect_clips
from actionzoo.clips.loader import Loading, view_loader
from actionzoo.kinetics.import_mmaction import MMActionSplit, import_mmaction
from actionzoo.kinetics.transcode import from_frames, to_jpegs
from tests.kinetics.small_films import QUICK

pytestmark = pytest.mark.slow

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "loader.py"
look = partial(inspect_clips, workers=1, timeout_seconds=60)


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("loader_benchmark", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Eight films of short side 256, as videos_256 and frames_256; upright ones are for tests."""
    root = tmp_path_factory.mktemp("films")
    rng = np.random.default_rng(0)
    lists: dict[str, list[str]] = {"train": [], "val": []}
    for number in range(9):
        split, size = ("train", (256, 340)) if number < 8 else ("val", (340, 256))
        frames = rng.integers(0, 256, (70, 12, 12, 3), np.uint8)
        frames = frames.repeat(-(-size[0] // 12), 1).repeat(-(-size[1] // 12), 2)[:, : size[0], : size[1]]
        data = from_frames(frames, fps=25, encode=QUICK)
        (root / f"{number}.mp4").write_bytes(data)
        (root / str(number)).mkdir()
        for place, jpeg in enumerate(to_jpegs(data, qscale=5, timeout_seconds=60, scratch=root / "scratch").frames, 1):
            (root / str(number) / f"img_{place:05d}.jpg").write_bytes(jpeg)
        lists[split].append(str(number))
    for split, names in lists.items():
        (root / "videos.txt").write_text("".join(f"{name}.mp4 0\n" for name in names))
        (root / "frames.txt").write_text("".join(f"{name} 70 0\n" for name in names))
        for kind in ("videos", "frames"):
            import_mmaction(root / f"{kind}_256", MMActionSplit(split, root / f"{kind}.txt", root), inspect=look)
    return root


def test_training_clips_are_those_of_the_plain_way(benchmark, data):
    plain = itertools.islice(benchmark.plain_training(data / "videos_256", None), 8)
    ours = itertools.islice(benchmark.our_training(data / "videos_256", None), 8)
    for one, other in zip(plain, ours, strict=True):
        assert one.shape[-4:] == other.shape == (3, 32, 224, 224)
        torch.testing.assert_close(one.view_as(other), other, rtol=0, atol=1e-5)


def test_test_views_are_those_of_the_plain_way(benchmark, data):
    plain = next(benchmark.plain_tests(data / "videos_256", None))
    form, loading = data / "videos_256", Loading(batch_size=1, workers=0, timeout_seconds=60)
    loader = view_loader(form, benchmark.clips_of(form, "val"), benchmark._test_spec(), loading=loading)
    (batch,) = loader
    ours = to_input(batch.views, mean=benchmark.MEAN, std=benchmark.STD, device=torch.device("cpu"))
    assert ours.shape == (30, 3, 32, 256, 256)
    torch.testing.assert_close(plain.view_as(ours), ours, rtol=0, atol=1e-5)


def test_videos_and_frames_differ_by_what_jpeg_costs(benchmark, data):
    videos, frames = (next(benchmark.our_training(data / form, None)) for form in ("videos_256", "frames_256"))
    assert 0 < (videos - frames).abs().mean() < 0.2


def test_memory_is_watched(benchmark, data):
    seen = benchmark.watch_memory(data / "videos_256", 40)
    assert len(seen["together_mb"]) == 40 and min(seen["together_mb"]) > 50
