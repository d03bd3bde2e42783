"""A small made-up mirror with all flaws, made once per session."""

from pathlib import Path

import pytest

from actionzoo.kinetics.synthetic import Mirror, make_mirror


@pytest.fixture(scope="session")
def tiny_mirror(tmp_path_factory) -> Path:
    """Per class and split one clip, the flaws on top; two parts per split."""
    root = tmp_path_factory.mktemp("tiny") / "mirror"
    make_mirror(root, Mirror(train_clips=1, val_clips=1, test_clips=1, parts=2, seed=0))
    return root
