"""Fixtures for all tests: a small made-up mirror with all flaws, made once; params.yaml as shipped; one thread."""

import dataclasses
from pathlib import Path

import pytest

from actionzoo.kinetics.synthetic import Mirror, make_mirror
from actionzoo.params import load_params

_LONG = (
    "test_end_to_end",
    "test_pipeline",
    "test_dvc_page",
    "test_run_cache",
    "test_local",
    "test_guarded",
    "test_scale",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first: workers that take one file after the other then end at about the same time."""
    items.sort(key=lambda item: _LONG.index(item.path.stem) if item.path.stem in _LONG else len(_LONG))


@pytest.fixture(scope="session")
def tiny_mirror(tmp_path_factory) -> Path:
    """Per class and split one clip, the flaws on top; two parts per split."""
    root = tmp_path_factory.mktemp("tiny") / "mirror"
    make_mirror(root, Mirror(train_clips=1, val_clips=1, test_clips=1, parts=2, seed=0))
    return root


@pytest.fixture(scope="session")
def tiny_data(tiny_mirror, tmp_path_factory) -> Path:
    """A project's folder with data/demo/videos_256 made of that mirror, at a short side of 80."""
    from actionzoo.kinetics.transcode import Encode
    from tests.kinetics.data_stages import make_archive, make_videos

    root = tmp_path_factory.mktemp("tiny_data")
    data, scratch = root / "data" / "demo", root / "scratch"
    archive = make_archive(tiny_mirror, data, scratch=scratch)
    make_videos(archive, data / "videos_256", 80, encode=Encode(), scratch=scratch)
    return root


@pytest.fixture
def tiny_project(tiny_data, tmp_path) -> Path:
    """A project of one test alone, on the clips of train and val with all their flaws, as val."""
    from tests.tiny_network import with_manifest

    (tmp_path / "data").symlink_to(tiny_data / "data")
    return with_manifest(tmp_path, lambda clip: dataclasses.replace(clip, split=clip.split.replace("train", "val")))


@pytest.fixture
def one_thread():
    """For comparisons to the bit with a forked process, which has one thread: two threads round sums differently."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def params():
    """params.yaml as shipped, whatever the environment says of sources."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ACTIONZOO_SOURCE", "ACTIONZOO_DATA"):
            patch.delenv(name, raising=False)
        return load_params(Path(__file__).resolve().parents[1] / "params.yaml")
