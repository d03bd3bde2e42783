"""The archive of the small mirror, downloaded once."""

from pathlib import Path

import pytest

from tests.kinetics.data_stages import make_archive


@pytest.fixture(scope="session")
def tiny_archive(tiny_mirror, tmp_path_factory) -> Path:
    """archive/ of all splits; tests may put what they make of it beside it, but must not change it."""
    return make_archive(tiny_mirror, tmp_path_factory.mktemp("tiny_archive"))
